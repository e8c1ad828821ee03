/* mem: the memory of a process, as the image has it. */
#include <getopt.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include "migrate/units.h"
#include "model/layout.h"
#include "tools/cr-image/cr_image.h"

static int usage(FILE *f)
{
	fputs("usage: cr-image mem [OPTION…] DIR PID [START-END | START+LENGTH | NAME]\n\n"
	      "Without a range: the mappings of the process, and how much of each the image has. "
	      "With one: its\nbytes on standard output. Addresses are hexadecimal; NAME is a "
	      "mapping's, such as [stack].\n\n"
	      "  --hex     as text, 16 bytes a line\n"
	      "  --zeros   write zeros for what is not in the image: pages that a mapped file has "
	      "itself, and\n            addresses without memory; else these are an error\n",
	      f);
	return f == stdout ? ST_OK : ST_USAGE;
}

struct mem {
	struct view v;
	const struct process *p;
	const struct image_target *own; /* its private pages */
	bool hex, zeros;
	uint64_t hex_at;
};

/* ---- where a page is ---- */

/* The pages of the object that a mapping shows, and where there. NULL: it shows none. */
static const struct image_pages *object_pages(const struct mem *m, const struct vma *v, uint64_t va,
					      uint64_t *ret_at)
{
	if (v->object == UINT32_MAX)
		return NULL;
	const struct shared_object *o = &m->v.tree->objects[v->object];
	const struct image_target *it = image_find(m->v.im, 0, o->ino, o->dev);

	*ret_at = v->offset + (va - v->start);
	return it ? &it->pages : NULL;
}

/* *ret_there: false if the image does not have it and cannot say what it is. */
static int read_page(const struct mem *m, const struct vma *v, uint64_t va,
		     uint8_t buf[CR_PAGE_SIZE], bool *ret_there, struct cr_err *err)
{
	uint64_t at;
	bool there = false;
	int r = 0;

	if (vma_is_copied(v) && m->own)
		r = image_pages_read(&m->own->pages, va, buf, &there, err);
	if (r || there || v->kind == VMA_ANON) {
		*ret_there = true; /* anonymous memory that is nowhere reads as zeros */
		return r;
	}
	const struct image_pages *p = object_pages(m, v, va, &at);
	*ret_there = p;
	memset(buf, 0, CR_PAGE_SIZE);
	return p ? image_pages_read(p, at, buf, NULL, err) : 0;
}

/* ---- output ---- */

static int put_hex(struct mem *m, const uint8_t *b, size_t n)
{
	for (size_t i = 0; i < n; i += 16) {
		printf("%012" PRIx64 " ", m->hex_at + i);
		for (size_t k = 0; k < 16; k++)
			if (i + k < n)
				printf(" %02x", b[i + k]);
			else
				fputs("   ", stdout);
		fputs("  ", stdout);
		for (size_t k = 0; k < 16 && i + k < n; k++)
			putchar(b[i + k] >= ' ' && b[i + k] < 0x7f ? b[i + k] : '.');
		putchar('\n');
	}
	m->hex_at += n;
	return 0;
}

static int put(struct mem *m, const uint8_t *b, size_t n, struct cr_err *err)
{
	if (m->hex)
		put_hex(m, b, n);
	else
		fwrite(b, 1, n, stdout);
	return ferror(stdout) ? cr_err_sys(err, "write") : 0;
}

static int dump_page(struct mem *m, uint64_t va, uint64_t start, uint64_t end, struct cr_err *err)
{
	const struct vma *v = layout_find(m->p->mm.vmas, m->p->mm.n_vmas, va);
	uint64_t from = start > va ? start - va : 0;
	uint64_t to = end - va < CR_PAGE_SIZE ? end - va : CR_PAGE_SIZE;
	uint8_t page[CR_PAGE_SIZE] = {0};
	bool there = false;
	int r = v ? read_page(m, v, va, page, &there, err) : 0;

	if (!r && !there && !m->zeros)
		r = cr_err_set(err, CR_ERR_INPUT, EFAULT,
			       v ? "%#llx: not in the image: the mapped file has it (%s); --zeros "
				   "writes zeros for such"
				 : "%#llx: process has no memory there%s; --zeros writes zeros",
			       (unsigned long long)va, v && v->name ? v->name : "");
	return r ? r : put(m, page + from, to - from, err);
}

static int dump(struct mem *m, uint64_t start, uint64_t end, struct cr_err *err)
{
	int r = 0;

	m->hex_at = start;
	for (uint64_t va = start - start % CR_PAGE_SIZE; va < end && !r; va += CR_PAGE_SIZE)
		r = dump_page(m, va, start, end, err);
	if (!r && fflush(stdout))
		r = cr_err_sys(err, "write");
	return r;
}

/* ---- the mappings ---- */

static uint64_t count_pages(const struct image_pages *p, uint64_t start, uint64_t end)
{
	uint64_t n = 0;

	for (size_t i = p ? image_pages_lower(p, start) : 0; p && i < p->chunks.n; i++) {
		const struct image_chunk *c = p->chunks.v[i];

		for (unsigned int k = 0; k < IMAGE_CHUNK_PAGES; k++) {
			uint64_t va = c->va + k * CR_PAGE_SIZE;

			n += va >= start && va < end && image_bit(c->data, k);
		}
		if (c->va >= end)
			break;
	}
	return n;
}

static void list_mapping(const struct mem *m, const struct vma *v)
{
	const char *file = v->file != UINT32_MAX ? m->v.tree->mapped_files[v->file].path
			   : v->name             ? v->name
						 : "";
	char text[UNITS_TEXT];
	uint64_t at = 0, n = 0;
	const struct image_pages *shared = object_pages(m, v, v->start, &at);

	if (vma_is_copied(v) && m->own)
		n = count_pages(&m->own->pages, v->start, v->end);
	if (shared)
		n += count_pages(shared, at, at + (v->end - v->start));
	printf("%012" PRIx64 "-%012" PRIx64 " %c%c%c%c %10s  %s\n", v->start, v->end,
	       v->prot & PROT_READ ? 'r' : '-', v->prot & PROT_WRITE ? 'w' : '-',
	       v->prot & PROT_EXEC ? 'x' : '-',
	       v->kind == VMA_SHARED_OBJ || v->kind == VMA_FILE_SHARED ? 's' : 'p',
	       units_format_bytes(n * CR_PAGE_SIZE, text), file);
}

/* ---- what was asked for ---- */

static bool parse_hex(const char *text, const char **end, uint64_t *ret)
{
	char *e;

	errno = 0;
	*ret = strtoull(text, &e, 16);
	*end = e;
	return e != text && !errno && *text != '-' && *text != '+';
}

static int parse_range(const struct mem *m, const char *text, uint64_t *start, uint64_t *end,
		       struct cr_err *err)
{
	const char *at;
	uint64_t n;

	for (size_t i = 0; i < m->p->mm.n_vmas; i++) {
		const struct vma *v = &m->p->mm.vmas[i];

		if (v->name && !strcmp(v->name, text)) {
			*start = v->start;
			*end = v->end;
			return 0;
		}
	}
	if (parse_hex(text, &at, start) && (*at == '-' || *at == '+')) {
		bool length = *at == '+';

		if (parse_hex(at + 1, &at, &n) && !*at) {
			*end = length ? *start + n : n;
			if (*end > *start && *end <= 1ull << 57)
				return 0;
		}
	}
	return cr_err_set(
	    err, CR_ERR_INPUT, EINVAL,
	    "'%s': neither START-END nor START+LENGTH, hexadecimal, nor the name of a "
	    "mapping",
	    text);
}

static int run(struct mem *m, char **args, struct cr_err *err)
{
	uint64_t pid, start = 0, end = 0;
	int r = view_open(&m->v, args[0], err);

	if (!r)
		r = units_parse_number(args[1], 1, 4 << 20, &pid, err);
	if (r)
		return r;
	m->p = tree_find_process(m->v.tree, (pid_t)pid);
	if (!m->p || m->p->zombie)
		return cr_err_set(err, CR_ERR_INPUT, ESRCH, "image %s: no process %s with memory",
				  args[0], args[1]);
	m->own = image_find(m->v.im, (pid_t)pid, 0, 0);
	if (args[2]) {
		r = parse_range(m, args[2], &start, &end, err);
		return r ? r : dump(m, start, end, err);
	}
	for (size_t i = 0; i < m->p->mm.n_vmas; i++)
		list_mapping(m, &m->p->mm.vmas[i]);
	return 0;
}

int verb_mem(int argc, char **argv)
{
	static const struct option options[] = {{"hex", no_argument, NULL, 'x'},
						{"zeros", no_argument, NULL, 'z'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	struct mem m = {0};
	struct cr_err err = {0};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'x')
			m.hex = true;
		else if (c == 'z')
			m.zeros = true;
		else
			return usage(c == 'h' ? stdout : stderr);
	}
	if (argc - optind < 2 || argc - optind > 3)
		return usage(stderr);
	int status = run(&m, argv + optind, &err) ? trouble(&err) : ST_OK;
	view_done(&m.v);
	return status;
}
