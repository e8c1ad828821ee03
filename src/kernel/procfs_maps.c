#include "kernel/procfs.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include "model/tree.h"

/* A line of maps, proc_pid_maps(5): "start-end rwxp offset major:minor inode      name". */
struct maps_cursor {
	const char *p;
	unsigned int line;
	/* the name before, as in the text: neighbours are mostly of one file */
	const char *last_raw;
	size_t last_raw_len;
	const char *last_name;
};

static const signed char hex_value[256] = {
    ['0'] = 1, ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9, ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
};

/* Both return false when there is no digit or the number overflows. */
static bool take_hex(const char **p, uint64_t *ret)
{
	uint64_t v = 0;
	const char *s = *p;
	int d;

	while ((d = hex_value[(unsigned char)*s])) {
		if (v >> 60)
			return false;
		v = v << 4 | (uint64_t)(d - 1);
		s++;
	}
	bool any = s != *p;
	*p = s;
	*ret = v;
	return any;
}

static bool take_dec(const char **p, uint64_t *ret)
{
	uint64_t v = 0;
	const char *s = *p;

	while (*s >= '0' && *s <= '9') {
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
			return false;
		s++;
	}
	bool any = s != *p;
	*p = s;
	*ret = v;
	return any;
}

static bool take_char(const char **p, char c)
{
	if (**p != c)
		return false;
	++*p;
	return true;
}

static bool take_perms(const char **p, struct proc_map *m)
{
	static const struct {
		char on;
		uint32_t prot;
	} bits[] = {{'r', PROT_READ}, {'w', PROT_WRITE}, {'x', PROT_EXEC}};

	for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
		if (**p == bits[i].on)
			m->prot |= bits[i].prot;
		else if (**p != '-')
			return false;
		++*p;
	}
	if (**p != 'p' && **p != 's')
		return false;
	m->shared = **p == 's';
	++*p;
	return true;
}

/* The kernel writes a newline in a path as \012 and leaves backslashes alone (seq_path with "\n"),
 * so that a file that is really named \012 cannot be told from it. */
static char *copy_unescaped(struct arena *a, const char *raw, size_t len)
{
	char *out = arena_alloc(a, len + 1), *w = out;

	if (!out)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		if (raw[i] == '\\' && len - i >= 4 && !memcmp(raw + i, "\\012", 4)) {
			*w++ = '\n';
			i += 3;
		} else {
			*w++ = raw[i];
		}
	}
	*w = '\0';
	return out;
}

static const char *name_of(struct maps_cursor *c, struct arena *a, const char *raw, size_t len)
{
	if (!len)
		return "";
	if (c->last_raw && len == c->last_raw_len && !memcmp(raw, c->last_raw, len))
		return c->last_name;
	c->last_raw = raw;
	c->last_raw_len = len;
	c->last_name = copy_unescaped(a, raw, len);
	return c->last_name;
}

static int bad_line(const struct maps_cursor *c, const char *why, struct cr_err *err)
{
	int len = (int)strcspn(c->p, "\n");

	return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "maps line %u: %s: %.*s", c->line, why,
			  len < 100 ? len : 100, c->p);
}

/* One mapping; the cursor then stands at the start of the next line. */
static int take_mapping(struct maps_cursor *c, struct proc_maps *out, struct cr_err *err)
{
	const char *p = c->p;
	uint64_t prev_end = out->list.n ? out->list.v[out->list.n - 1].end : 0;
	uint64_t major, minor;
	struct proc_map *m = vec_push(&out->list);

	if (!m)
		return cr_err_oom(err);
	if (!take_hex(&p, &m->start) || !take_char(&p, '-') || !take_hex(&p, &m->end) ||
	    !take_char(&p, ' ') || !take_perms(&p, m) || !take_char(&p, ' ') ||
	    !take_hex(&p, &m->offset) || !take_char(&p, ' ') || !take_hex(&p, &major) ||
	    !take_char(&p, ':') || !take_hex(&p, &minor) || !take_char(&p, ' ') ||
	    !take_dec(&p, &m->ino) || (*p != ' ' && *p != '\n'))
		return bad_line(c, "not a mapping", err);
	/* Addresses never go backwards, even when the task maps and unmaps while it is read
	 * (Documentation/filesystems/proc.rst, "smaps"). */
	if (m->start >= m->end || m->start < prev_end || (m->start | m->end) % CR_PAGE_SIZE)
		return bad_line(c, "impossible addresses", err);
	m->dev = makedev((unsigned int)major, (unsigned int)minor);
	while (*p == ' ')
		p++;
	const char *eol = strchr(p, '\n');
	if (!eol)
		return bad_line(c, "cut off", err);
	m->name = name_of(c, out->names, p, (size_t)(eol - p));
	if (!m->name)
		return cr_err_oom(err);
	c->p = eol + 1;
	return 0;
}

#define CODE(a, b) ((uint16_t)((unsigned char)(a) << 8 | (unsigned char)(b)))

static uint32_t vmflag_of(char a, char b)
{
	switch (CODE(a, b)) {
	case CODE('g', 'd'):
		return VMA_F_GROWSDOWN;
	case CODE('d', 'c'):
		return VMA_F_DONTFORK;
	case CODE('d', 'd'):
		return VMA_F_DONTDUMP;
	case CODE('h', 'g'):
		return VMA_F_HUGEPAGE;
	case CODE('n', 'h'):
		return VMA_F_NOHUGEPAGE;
	case CODE('m', 'g'):
		return VMA_F_MERGEABLE;
	case CODE('n', 'r'):
		return VMA_F_NORESERVE;
	case CODE('w', 'f'):
		return VMA_F_WIPEONFORK;
	case CODE('s', 'r'):
		return VMA_F_SEQ;
	case CODE('r', 'r'):
		return VMA_F_RAND;
	case CODE('l', 'o'):
		return VMA_F_LOCKED;
	case CODE('g', 'u'):
		return VMA_F_GUARD;
	default: /* ours to reproduce are only the above */
		return 0;
	}
}

/* proc(5), Documentation/filesystems/proc.rst, "VmFlags". */
static const char *special_of(char a, char b)
{
	switch (CODE(a, b)) {
	case CODE('d', 'p'): /* 6.11 */
		return "droppable memory (MAP_DROPPABLE)";
	case CODE('s', 's'): /* 6.6 */
		return "a shadow stack";
	case CODE('s', 'l'): /* 6.10 */
		return "sealed memory (mseal)";
	default:
		return NULL;
	}
}

static uint32_t vmflags_of(const char *p, const char *eol, const char **special, bool *fetched)
{
	uint32_t flags = 0;

	while (eol - p >= 2) {
		if (*p == ' ') {
			p++;
			continue;
		}
		flags |= vmflag_of(p[0], p[1]);
		if (!*special)
			*special = special_of(p[0], p[1]);
		/* userfaultfd is asked for what is missing, or not in the page tables */
		*fetched |= p[0] == 'u' && (p[1] == 'm' || p[1] == 'i');
		p += 2;
	}
	return flags;
}

/* "Key:   number kB": false if the line is another. */
static bool take_kb(const char *line, const char *key, uint64_t *ret_bytes)
{
	size_t n = strlen(key);
	uint64_t kb;

	if (strncmp(line, key, n))
		return false;
	line += n;
	line += strspn(line, " ");
	if (!take_dec(&line, &kb) || kb > UINT64_MAX / 1024)
		return false;
	*ret_bytes = kb * 1024;
	return true;
}

/* Documentation/filesystems/proc.rst, "smaps". */
static void take_huge(const char *line, struct proc_map *m)
{
	uint64_t shared;

	if (take_kb(line, "Shared_Hugetlb:", &shared))
		m->all_huge += shared;
	else if (take_kb(line, "Private_Hugetlb:", &m->own_huge))
		m->all_huge += m->own_huge;
	else
		take_kb(line, "KernelPageSize:", &m->page_bytes);
}

/* "Key:   value" lines of smaps belong to the mapping before them. */
static int take_detail(struct maps_cursor *c, struct proc_maps *out, struct cr_err *err)
{
	static const char flags[] = "VmFlags:", pkey[] = "ProtectionKey:";
	const char *eol = strchr(c->p, '\n');

	if (!out->list.n)
		return bad_line(c, "detail without a mapping", err);
	if (!eol)
		return bad_line(c, "cut off", err);
	struct proc_map *m = &out->list.v[out->list.n - 1];
	if (!strncmp(c->p, flags, sizeof(flags) - 1)) {
		m->vmflags = vmflags_of(c->p + sizeof(flags) - 1, eol, &m->special, &m->fetched);
	} else if (!strncmp(c->p, pkey, sizeof(pkey) - 1)) {
		const char *p = c->p + sizeof(pkey) - 1;
		uint64_t n;

		p += strspn(p, " ");
		if (!take_dec(&p, &n))
			return bad_line(c, "not a protection key", err);
		m->pkey = (uint32_t)n;
	} else {
		take_huge(c->p, m);
	}
	c->p = eol + 1;
	return 0;
}

static int parse(const char *text, bool smaps, struct proc_maps *out, struct cr_err *err)
{
	struct maps_cursor c = {.p = text, .line = 1};
	int r = 0;

	memset(out, 0, sizeof(*out));
	out->names = arena_new();
	if (!out->names)
		return cr_err_oom(err);
	for (; *c.p && r == 0; c.line++) {
		/* details begin with a capital letter, addresses are lower-case hex */
		if (smaps && *c.p >= 'A' && *c.p <= 'Z')
			r = take_detail(&c, out, err);
		else
			r = take_mapping(&c, out, err);
	}
	if (r < 0)
		proc_maps_done(out);
	return r;
}

int proc_maps_parse(const char *text, struct proc_maps *out, struct cr_err *err)
{
	return parse(text, false, out, err);
}

int proc_smaps_parse(const char *text, struct proc_maps *out, struct cr_err *err)
{
	return parse(text, true, out, err);
}

/* details begin with a capital letter, addresses are lower-case hex */
size_t proc_smaps_to_maps(char *text)
{
	char *to = text;

	for (char *p = text; *p;) {
		size_t len = strcspn(p, "\n");

		len += p[len] == '\n';
		if (*p < 'A' || *p > 'Z') {
			memmove(to, p, len);
			to += len;
		}
		p += len;
	}
	*to = '\0';
	return (size_t)(to - text);
}

void proc_maps_done(struct proc_maps *m)
{
	vec_done(&m->list);
	arena_free(m->names);
	m->names = NULL;
}
