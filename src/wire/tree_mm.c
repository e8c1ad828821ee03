/* Address spaces. There may be tens of thousands of VMAs in one: they travel as columns of numbers,
 * most of which take one byte. */
#include "wire/tree_priv.h"

#include <string.h>

#define PAGES_MAX (UINT64_MAX / CR_PAGE_SIZE)

/* ---- ranges: the distance from the end of the one before, and the length ---- */

static uint64_t gap_of(uint64_t start, uint64_t *end_before, uint64_t end)
{
	uint64_t gap = (start - *end_before) / CR_PAGE_SIZE;

	*end_before = end;
	return gap;
}

/* *at: the end of the range before, in pages; moved on. False if that leaves the address space. */
static bool next_range(uint64_t *at, uint64_t gap, uint64_t length, uint64_t *start, uint64_t *end)
{
	if (gap > PAGES_MAX - *at || length > PAGES_MAX - *at - gap)
		return false;
	*start = (*at + gap) * CR_PAGE_SIZE;
	*at += gap + length;
	*end = *at * CR_PAGE_SIZE;
	return true;
}

/* ---- names ---- */

/* The index of a name in the table, counting from 1; appended if none of the last few is the same.
 */
static uint32_t put_name(Tree__Mm *pb, const char *name)
{
	enum { LOOK_BACK = 16 };

	if (!name)
		return 0;
	for (size_t i = pb->n_names; i > 0 && i + LOOK_BACK > pb->n_names; i--)
		if (!strcmp(pb->names[i - 1], name))
			return (uint32_t)i;
	pb->names[pb->n_names++] = (char *)name;
	return (uint32_t)pb->n_names;
}

static const char **get_names(struct arena *a, const Tree__Mm *pb)
{
	const char **names = arena_array(a, const char *, pb->n_names);

	for (size_t i = 0; names && i < pb->n_names; i++) {
		names[i] = arena_strdup(a, pb->names[i]);
		if (!names[i])
			return NULL;
	}
	return names;
}

/* ---- VMAs ---- */

/* clang-format off */
#define VMA_COLUMNS(X) \
	X(gap_pages) X(length_pages) X(offset_pages) X(prot) X(kind) X(flags) X(file) \
	X(object) X(name) X(ino) X(dev)
/* clang-format on */

static bool alloc_columns(struct arena *a, Tree__Mm *pb, size_t n)
{
#define ALLOC(f) (pb->f = arena_alloc(a, sizeof(*pb->f) * n)) &&
	return VMA_COLUMNS(ALLOC)(pb->names = arena_array(a, char *, n));
#undef ALLOC
}

static void put_vmas(Tree__Mm *pb, const struct mm *in)
{
	uint64_t end = 0;

	for (size_t i = 0; i < in->n_vmas; i++) {
		const struct vma *v = &in->vmas[i];

		pb->gap_pages[i] = gap_of(v->start, &end, v->end);
		pb->length_pages[i] = (v->end - v->start) / CR_PAGE_SIZE;
		pb->offset_pages[i] = v->offset / CR_PAGE_SIZE;
		pb->prot[i] = v->prot;
		pb->kind[i] = v->kind;
		pb->flags[i] = v->flags;
		pb->file[i] = tree_put_index(v->file);
		pb->object[i] = tree_put_index(v->object);
		pb->name[i] = put_name(pb, v->name);
		pb->ino[i] = v->ino;
		pb->dev[i] = v->dev;
	}
#define COUNT(f) pb->n_##f =
	VMA_COLUMNS(COUNT) in->n_vmas;
#undef COUNT
}

static bool vma_has_file(enum vma_kind k)
{
	return k == VMA_FILE_PRIVATE || k == VMA_FILE_SHARED;
}

static bool vma_has_object(enum vma_kind k)
{
	return k == VMA_SHARED_OBJ || k == VMA_FILE_PRIVATE;
}

static int get_vma(const Tree__Mm *pb, size_t i, const char **names, uint64_t *at, struct vma *out,
		   struct cr_err *err)
{
	if (!next_range(at, pb->gap_pages[i], pb->length_pages[i], &out->start, &out->end) ||
	    pb->offset_pages[i] > PAGES_MAX)
		return tree_bad(err, "mapping %zu is out of bounds", i);
	out->offset = pb->offset_pages[i] * CR_PAGE_SIZE;
	out->prot = pb->prot[i];
	out->kind = (enum vma_kind)pb->kind[i];
	out->flags = pb->flags[i];
	out->file = vma_has_file(out->kind) ? tree_get_index(pb->file[i]) : UINT32_MAX;
	out->object = vma_has_object(out->kind) ? tree_get_index(pb->object[i]) : UINT32_MAX;
	if (pb->name[i] > pb->n_names)
		return tree_bad(err, "mapping %zu: there is no name %u", i, pb->name[i]);
	out->name = pb->name[i] ? names[pb->name[i] - 1] : NULL;
	out->ino = pb->ino[i];
	out->dev = pb->dev[i];
	return 0;
}

static int get_vmas(struct arena *a, const Tree__Mm *pb, struct mm *out, struct cr_err *err)
{
	size_t n = pb->n_gap_pages;
	uint64_t at = 0;

#define SAME(f) &&pb->n_##f == n
	if (!(true VMA_COLUMNS(SAME)))
		return tree_bad(err, "columns of the mappings differ in length");
#undef SAME
	const char **names = get_names(a, pb);
	out->vmas = arena_array(a, struct vma, n);
	if (!names || !out->vmas)
		return cr_err_oom(err);
	for (size_t i = 0; i < n; i++) {
		int r = get_vma(pb, i, names, &at, &out->vmas[i], err);

		if (r < 0)
			return r;
		out->n_vmas++;
	}
	return 0;
}

/* ---- huge pages ---- */

static bool put_huge(struct arena *a, Tree__Mm *pb, const struct mm *in)
{
	size_t n = 0;

	for (size_t i = 0; i < in->n_vmas; i++)
		n += !!in->vmas[i].page_bytes;
	pb->huge_vma = arena_array(a, uint32_t, n);
	pb->huge_page_bytes = arena_array(a, uint64_t, n);
	pb->huge_there = arena_array(a, uint64_t, n);
	pb->huge_own = arena_array(a, uint64_t, n);
	pb->huge_stays = arena_array(a, protobuf_c_boolean, n);
	if (!pb->huge_vma || !pb->huge_page_bytes || !pb->huge_there || !pb->huge_own ||
	    !pb->huge_stays)
		return false;
	pb->n_huge_vma = pb->n_huge_page_bytes = pb->n_huge_there = pb->n_huge_own = n;
	pb->n_huge_stays = n;
	n = 0;
	for (size_t i = 0; i < in->n_vmas; i++) {
		const struct vma *v = &in->vmas[i];

		if (!v->page_bytes)
			continue;
		pb->huge_vma[n] = (uint32_t)i;
		pb->huge_page_bytes[n] = v->page_bytes;
		pb->huge_there[n] = v->huge_there;
		pb->huge_stays[n] = v->huge_stays;
		pb->huge_own[n++] = v->huge_own;
	}
	return true;
}

static int get_huge(const Tree__Mm *pb, struct mm *out, struct cr_err *err)
{
	size_t n = pb->n_huge_vma;

	if (pb->n_huge_page_bytes != n || pb->n_huge_there != n || pb->n_huge_own != n ||
	    (pb->n_huge_stays && pb->n_huge_stays != n))
		return tree_bad(err, "columns of the huge pages differ in length");
	for (size_t i = 0; i < n; i++) {
		if (pb->huge_vma[i] >= out->n_vmas || !pb->huge_page_bytes[i])
			return tree_bad(err, "huge pages of mapping %u", pb->huge_vma[i]);
		struct vma *v = &out->vmas[pb->huge_vma[i]];
		v->page_bytes = pb->huge_page_bytes[i];
		v->huge_there = pb->huge_there[i];
		v->huge_own = pb->huge_own[i];
		v->huge_stays = pb->n_huge_stays && pb->huge_stays[i];
	}
	return 0;
}

/* ---- guard ranges ---- */

static bool put_guards(struct arena *a, Tree__Mm *pb, const struct mm *in)
{
	uint64_t end = 0;

	pb->guard_gap_pages = arena_array(a, uint64_t, in->n_guards);
	pb->guard_length_pages = arena_array(a, uint64_t, in->n_guards);
	if (!pb->guard_gap_pages || !pb->guard_length_pages)
		return false;
	for (size_t i = 0; i < in->n_guards; i++) {
		const struct addr_range *g = &in->guards[i];

		pb->guard_gap_pages[i] = gap_of(g->start, &end, g->end);
		pb->guard_length_pages[i] = (g->end - g->start) / CR_PAGE_SIZE;
	}
	pb->n_guard_gap_pages = pb->n_guard_length_pages = in->n_guards;
	return true;
}

static int get_guards(struct arena *a, const Tree__Mm *pb, struct mm *out, struct cr_err *err)
{
	uint64_t at = 0;

	if (pb->n_guard_gap_pages != pb->n_guard_length_pages)
		return tree_bad(err, "columns of the guard ranges differ in length");
	out->guards = arena_array(a, struct addr_range, pb->n_guard_gap_pages);
	if (!out->guards)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_guard_gap_pages; i++) {
		struct addr_range *g = &out->guards[out->n_guards++];

		if (!next_range(&at, pb->guard_gap_pages[i], pb->guard_length_pages[i], &g->start,
				&g->end))
			return tree_bad(err, "guard range %zu is out of bounds", i);
	}
	return 0;
}

/* ---- pages with mutexes ---- */

static bool put_held(struct arena *a, Tree__Mm *pb, const struct mm *in)
{
	pb->held_pages = arena_array(a, uint64_t, in->n_held);
	if (!pb->held_pages)
		return false;
	for (size_t i = 0; i < in->n_held; i++)
		pb->held_pages[i] = in->held[i] / CR_PAGE_SIZE;
	pb->n_held_pages = in->n_held;
	return true;
}

static int get_held(struct arena *a, const Tree__Mm *pb, struct mm *out, struct cr_err *err)
{
	out->held = arena_array(a, uint64_t, pb->n_held_pages);
	if (!out->held)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_held_pages; i++) {
		if (pb->held_pages[i] > UINT64_MAX / CR_PAGE_SIZE)
			return tree_bad(err, "page %zu with mutexes is out of bounds", i);
		out->held[out->n_held++] = pb->held_pages[i] * CR_PAGE_SIZE;
	}
	return 0;
}

/* ---- the whole ---- */

/* clang-format off */
#define MM_NUMBERS(X) \
	X(start_code) X(end_code) X(start_data) X(end_data) X(start_brk) X(brk) \
	X(start_stack) X(arg_start) X(arg_end) X(env_start) X(env_end) X(dumpable) \
	X(thp_disable) X(layout_digest) X(exe_object)
/* clang-format on */

Tree__Mm *tree_put_mm(struct arena *a, const struct mm *in)
{
	Tree__Mm *pb = pb_new(a, &tree__mm__descriptor);

	if (!pb || !alloc_columns(a, pb, in->n_vmas) || !put_guards(a, pb, in) ||
	    !put_held(a, pb, in) || !put_huge(a, pb, in))
		return NULL;
	put_vmas(pb, in);
	MM_NUMBERS(TREE_PUT)
	pb->auxv = pb_bytes(in->auxv, in->auxv_len);
	pb->exe_file = tree_put_index(in->exe_file);
	return pb;
}

int tree_get_mm(struct arena *a, const Tree__Mm *pb, struct mm *out, struct cr_err *err)
{
	int r = get_vmas(a, pb, out, err);

	if (r == 0)
		r = get_huge(pb, out, err);
	if (r == 0)
		r = get_guards(a, pb, out, err);
	if (r == 0)
		r = get_held(a, pb, out, err);
	if (r == 0)
		r = tree_get_bytes(a, &pb->auxv, &out->auxv, &out->auxv_len, err);
	MM_NUMBERS(TREE_GET)
	out->exe_file = tree_get_index(pb->exe_file);
	return r;
}
