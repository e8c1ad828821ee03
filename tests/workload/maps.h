/* The address space as the kernel shows it, for comparing before and after a move.
 *
 * Two looks are equal when every address has the same permissions, name, file offset and VmFlags.
 * Neighbours that only differ in being one VMA or two are the same: the kernel may merge and split.
 * The stack may have grown. Nothing here allocates: a look must not change what it looks at. */
#pragma once
#include "workload.h"

enum { MAPS_MAX = 70000 };

struct maps_entry {
	uint64_t start, end, offset;
	char perms[5];
	char flags[75]; /* VmFlags without those below */
	char name[72];
};
struct maps_look {
	struct maps_entry *v;
	size_t n;
};

/* um: pages of it are still being fetched.
 * ac: whether memory is accounted depends on the protection it was mapped with. sd: soft-dirty. gu:
 * that there may be guard pages, which is passed on when mappings merge and split; touching them
 * tells. */
static inline bool maps_flag_ignored(const char *f)
{
	return !strncmp(f, "ac", 2) || !strncmp(f, "sd", 2) || !strncmp(f, "gu", 2) ||
	       !strncmp(f, "um", 2);
}

static inline void maps_add_flags(struct maps_entry *e, const char *p)
{
	size_t n = 0;

	for (; *p && *p != '\n'; p++) {
		if (*p == ' ')
			continue;
		if (!maps_flag_ignored(p) && n + 3 < sizeof(e->flags)) {
			e->flags[n++] = p[0];
			e->flags[n++] = p[1];
			e->flags[n++] = ' ';
		}
		p++;
	}
	e->flags[n] = 0;
}

static inline bool maps_same_look(const struct maps_entry *a, const struct maps_entry *b)
{
	return !strcmp(a->perms, b->perms) && !strcmp(a->flags, b->flags) &&
	       !strcmp(a->name, b->name);
}

/* The last entry is complete: join it to the one before if they only differ by where they start. */
static inline void maps_join(struct maps_look *m)
{
	struct maps_entry *b = &m->v[m->n - 1], *a = b - 1;

	if (m->n < 2 || a->end != b->start || !maps_same_look(a, b) || a->name[0] == '[')
		return;
	if (a->offset + (a->end - a->start) != b->offset && (a->offset || b->offset))
		return;
	a->end = b->end;
	m->n--;
}

static inline void maps_line(struct maps_look *m, const char *line)
{
	struct maps_entry *e;
	char perms[8];
	uint64_t start, end, offset;
	int at = 0;

	if (!strncmp(line, "VmFlags:", 8) && m->n) {
		maps_add_flags(&m->v[m->n - 1], line + 8);
		maps_join(m);
		return;
	}
	if (line[0] >= 'A' && line[0] <= 'Z')
		return;
	if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %n", &start, &end, perms, &offset, &at) < 4 ||
	    !at)
		return;
	wl_check(m->n < MAPS_MAX, "more mappings than expected");
	e = &m->v[m->n++];
	*e = (struct maps_entry){.start = start, .end = end, .offset = offset};
	memcpy(e->perms, perms, 4);
	snprintf(e->name, sizeof(e->name), "%s", line + at);
	e->name[strcspn(e->name, "\n")] = 0;
}

static inline void maps_take(struct maps_look *m)
{
	static char buf[65536];
	size_t have = 0;
	ssize_t n;
	int fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);

	if (!m->v)
		m->v = mmap(NULL, MAPS_MAX * sizeof(*m->v), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	wl_must(fd >= 0 && m->v != MAP_FAILED, "open smaps");
	m->n = 0;
	while ((n = read(fd, buf + have, sizeof(buf) - have - 1)) > 0) {
		char *p = buf, *nl;

		have += n;
		buf[have] = 0;
		for (; (nl = strchr(p, '\n')); p = nl + 1) {
			*nl = 0;
			maps_line(m, p);
		}
		have -= p - buf;
		memmove(buf, p, have);
	}
	wl_must(!n, "read smaps");
	close(fd);
}

static inline void maps_say(const char *what, const struct maps_entry *e)
{
	dprintf(2, "%s %lx-%lx %s %lx '%s' %s\n", what, e->start, e->end, e->perms, e->offset,
		e->name, e->flags);
}

static inline void maps_compare(const struct maps_look *before, const struct maps_look *after)
{
	for (size_t i = 0; i < before->n && i < after->n; i++) {
		const struct maps_entry *a = &before->v[i], *b = &after->v[i];
		const bool stack = !strcmp(a->name, "[stack]");

		if (maps_same_look(a, b) && a->end == b->end && (a->offset == b->offset || stack) &&
		    (a->start == b->start || (stack && b->start < a->start)))
			continue;
		maps_say("expected", a);
		maps_say("got", b);
		wl_fail("mapping: expected %lx-%lx %s %lx '%s' %s, got %lx-%lx %s %lx '%s' %s",
			a->start, a->end, a->perms, a->offset, a->name, a->flags, b->start, b->end,
			b->perms, b->offset, b->name, b->flags);
	}
	wl_same("number of mappings", before->n, after->n);
}
