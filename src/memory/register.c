/* Registering a part of a VMA splits it. The task may change its mappings at any moment, so no
 * address taken from a look at them is sure to be an edge of a VMA when the ioctl comes. What is
 * registered is therefore never a mapping but a gap: all there is between two VMAs that are
 * registered already. Whatever comes up, grows or merges in it is taken whole; what grows out of a
 * registered one inherits its registration. Mappings that exist when tracking begins are registered
 * while the task is stopped.
 *
 * What was registered before keeps its marks of writes, and must not be registered a second time
 * should it drop out meanwhile: a merge by mremap(2) leaves pages behind that look protected and
 * are not (KERNEL: userfaultfd_reset_ctx clears the VMA's flags, not its page tables). All that is
 * registered has its protection cleared before the next scan, and then reads as written. */
#include "memory/register.h"

#include <sys/mman.h>

#include "kernel/pagemap.h"
#include "kernel/procfs.h"
#include "kernel/uffd.h"
#include "memory/capture_private.h"
#include "model/layout.h"

enum {
	PASSES = 4,
	LOWEST_GAP = 64 * 1024, /* vm.mmap_min_addr: ranges below are refused */
	HUGE_BYTES = 2 << 20,
};
/* How much is unprotected under one hold of the task's mmap lock. */
static const uint64_t UNPROTECT_BYTES = 1ull << 30;

/* ---- one range ---- */

static bool is_refusal(int r)
{
	return r == -EPERM || r == -EINVAL || r == -EBUSY;
}

static int remember(struct addr_ranges *list, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct addr_range *slot = vec_push(list);

	if (!slot)
		return cr_err_oom(err);
	*slot = (struct addr_range){start, end};
	return 0;
}

/* 1: something in it cannot be registered, nothing was done. What went away meanwhile, or fails
 * half way, shows in the next look. first: where the first mapping in it begins, as of the last
 * look. If that consists of huge pages, the range has to begin at one. */
static int register_range(struct tracker *t, uint64_t start, uint64_t end, uint64_t first,
			  struct cr_err *err)
{
	int r = uffd_register(t->uffd, start, end);

	if (r == -EINVAL && ALIGN_UP(start, HUGE_BYTES) <= first) {
		start = ALIGN_UP(start, HUGE_BYTES);
		r = uffd_register(t->uffd, start, end);
	}
	if (is_refusal(r))
		return 1;
	return remember(&t->unsettled, start, end, err);
}

struct unprotecting {
	struct tracker *t;
	bool left;
};

/* A range that has huge pages in it is refused unless it begins and ends between two of them,
 * whatever else it has (KERNEL: mwriteprotect_range): mapping by mapping. */
static int unprotect_mappings(struct unprotecting *u, uint64_t start, uint64_t end,
			      struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_(proc_maps_done) struct proc_maps maps = {0};
	struct cr_err torn = {0};
	ssize_t n = proc_read(u->t->pid, "maps", &text, err);

	if (n < 0)
		return (int)n;
	u->left |= !!proc_maps_parse(text, &maps, &torn);
	vec_foreach (m, &maps.list) {
		uint64_t from = m->start > start ? m->start : start;
		uint64_t to = m->end < end ? m->end : end;

		if (from < to && uffd_unprotect(u->t->uffd, from, to))
			u->left = true;
	}
	return 0;
}

static int unprotect_extent(const struct page_extent *e, void *arg, struct cr_err *err)
{
	struct unprotecting *u = arg;
	int r = 0;

	for (uint64_t at = e->start; at < e->end && !r;) {
		uint64_t end = at - at % UNPROTECT_BYTES + UNPROTECT_BYTES;

		if (end > e->end)
			end = e->end;
		int failed = uffd_unprotect(u->t->uffd, at, end);
		if (failed == -EINVAL)
			r = unprotect_mappings(u, at, end, err);
		else if (failed)
			u->left = true; /* it has changed: perhaps done half way */
		at = end;
	}
	return r;
}

/* All that is registered in these ranges reads as written from here on; what could not be done is
 * tried again next round. */
static int settle(struct tracker *t, struct cr_err *err)
{
	struct addr_ranges list = t->unsettled;
	int r = 0;

	memset(&t->unsettled, 0, sizeof(t->unsettled));
	vec_foreach (g, &list) {
		const struct pagemap_query q = {.start = g->start,
						.end = g->end,
						.mask = PAGE_CAT_WPALLOWED,
						.ret = PAGE_CAT_WPALLOWED};
		struct unprotecting u = {.t = t};

		if (!r)
			r = pagemap_walk(t->pagemap, &q, unprotect_extent, &u, err);
		if (!r && u.left)
			r = remember(&t->unsettled, g->start, g->end, err);
	}
	vec_done(&list);
	return r;
}

/* ---- a look, and what follows from it ---- */

static int on_bare(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return remember(arg, e->start, e->end, err);
}

static int scan_bare(const struct tracker *t, struct addr_ranges *ret, struct cr_err *err)
{
	const struct pagemap_query q = {
	    .start = CR_PAGE_SIZE,
	    .end = PAGEMAP_TOP,
	    .inverted = PAGE_CAT_WPALLOWED,
	    .mask = PAGE_CAT_WPALLOWED,
	    .ret = PAGE_CAT_WPALLOWED,
	};

	return pagemap_walk(t->pagemap, &q, on_bare, ret, err);
}

int register_list_bare(const struct tracker *t, struct addr_ranges *ret, struct cr_err *err)
{
	int r = scan_bare(t, ret, err);

	vec_foreach (g, &t->unsettled)
		if (!r)
			r = remember(ret, g->start, g->end, err);
	addr_ranges_tidy(ret);
	return r;
}

/* Mapped as something that is compared as a whole, and not page by page. */
static bool is_known_other(const struct mm *mm, const struct addr_range *g)
{
	for (uint64_t at = g->start; at < g->end;) {
		const struct vma *v = layout_find(mm->vmas, mm->n_vmas, at);

		if (!v || vma_is_copied(v))
			return false;
		at = v->end;
	}
	return true;
}

/* Shared memory, also POSIX and of removed files, memory/shared_tracker.h; and not to be tracked is
 * what cannot be written, which may be open for reading only. */
static bool is_shared_memory(const struct proc_map *m)
{
	return m->shared && m->prot & PROT_WRITE &&
	       (!strncmp(m->name, "/dev/zero", 9) || !strncmp(m->name, "/SYSV", 5) ||
		!strncmp(m->name, "[anon_shmem:", 12) || !strncmp(m->name, "/memfd:", 7) ||
		!strncmp(m->name, "/dev/shm/", 9) || map_is_unlinked(m));
}

static bool is_wanted(const struct proc_map *m, bool shared)
{
	if (m->shared)
		return shared && is_shared_memory(m);
	return strncmp(m->name, "[v", 2); /* [vvar], [vdso], [vsyscall] */
}

static bool is_registered(const struct tracker *t, uint64_t va)
{
	struct page_extent e;
	struct cr_err ignored = {0};
	uint64_t at = va;
	const struct pagemap_query q = {.start = va,
					.end = va + CR_PAGE_SIZE,
					.mask = PAGE_CAT_WPALLOWED,
					.ret = PAGE_CAT_WPALLOWED};

	return pagemap_scan(t->pagemap, &q, &at, &e, 1, &ignored) == 1;
}

struct gap {
	uint64_t start, end;
	const struct proc_map *maps; /* in it, as of the last look */
	size_t n;
};

static int register_around(struct tracker *t, const struct gap *g, bool shared, struct cr_err *err);

/* The mappings are wanted, and the range ends or begins at others that are not. */
static int register_stretch(struct tracker *t, const struct gap *g, bool shared, struct cr_err *err)
{
	int r = register_range(t, g->start, g->end, g->maps->start, err);

	/* shared memory in it was to be had only for reading, or is of huge pages */
	if (r == 1 && shared)
		r = register_around(t, g, false, err);
	/* 1: its mappings went away, or are never to be tracked: they read as written */
	return r < 0 ? r : 0;
}

/* Something in the gap is not for userfaultfd (vvar; a file that was opened for reading, mapped
 * shared): around all that is not wanted. Its edges are as of the look, and may have moved. */
static int register_around(struct tracker *t, const struct gap *g, bool shared, struct cr_err *err)
{
	struct gap part = {.start = g->start};
	int r = 0;

	for (size_t i = 0; i <= g->n && !r; i++) {
		const struct proc_map *m = i < g->n ? &g->maps[i] : NULL;

		if (m && is_wanted(m, shared)) {
			if (!part.n++)
				part.maps = m;
			continue;
		}
		part.end = m ? m->start : g->end;
		if (part.n)
			r = register_stretch(t, &part, shared, err);
		part = (struct gap){.start = m ? m->end : 0};
	}
	return r;
}

static int register_gap(struct tracker *t, const struct gap *g, struct cr_err *err)
{
	/* as late as can be: if an edge has moved since the look, the next pass looks again */
	if ((g->start > LOWEST_GAP && !is_registered(t, g->start - CR_PAGE_SIZE)) ||
	    (g->end < PAGEMAP_TOP && !is_registered(t, g->end)))
		return 0;
	int r = register_range(t, g->start, g->end, g->n ? g->maps->start : 0, err);
	return r == 1 ? register_around(t, g, t->shared, err) : r;
}

/* The scan passes over mappings without pages of their own (vvar): these are asked for. */
static bool is_bare(const struct tracker *t, const struct addr_ranges *bare, size_t *k,
		    const struct proc_map *m)
{
	while (*k < bare->n && bare->v[*k].end <= m->start)
		(*k)++;
	return (*k < bare->n && bare->v[*k].start <= m->start) ||
	       (!is_wanted(m, false) && !is_registered(t, m->start));
}

static int register_gaps(struct tracker *t, const struct proc_maps *maps,
			 const struct addr_ranges *bare, struct cr_err *err)
{
	struct gap g = {.start = LOWEST_GAP, .maps = maps->list.v};
	bool wanted = false;
	size_t k = 0;
	int r = 0;

	for (size_t i = 0; i <= maps->list.n && !r; i++) {
		const struct proc_map *m = i < maps->list.n ? &maps->list.v[i] : NULL;

		if (m && m->start >= PAGEMAP_TOP)
			m = NULL;
		if (m && is_bare(t, bare, &k, m)) {
			wanted |= is_wanted(m, t->shared);
			if (!g.n++ && m->start < g.start) /* vm.mmap_min_addr can be lowered */
				g.start = m->start;
			continue;
		}
		g.end = m ? m->start : PAGEMAP_TOP;
		if (wanted)
			r = register_gap(t, &g, err);
		if (!m)
			break;
		g = (struct gap){.start = m->end, .maps = m + 1};
		wanted = false;
	}
	return r;
}

static int register_bare(struct tracker *t, const struct addr_ranges *bare, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	struct proc_maps maps = {0};
	struct cr_err torn = {0};
	ssize_t n = proc_read(t->pid, "maps", &text, err);

	if (n < 0)
		return (int)n;
	if (proc_maps_parse(text, &maps, &torn))
		return 0; /* torn: the next pass */
	int r = register_gaps(t, &maps, bare, err);
	proc_maps_done(&maps);
	return r;
}

/* *ret_more: something was there to do. */
static int pass(struct tracker *t, const struct mm *mm, bool *ret_more, struct cr_err *err)
{
	struct addr_ranges bare = {0};
	int r = scan_bare(t, &bare, err);

	*ret_more = false;
	for (size_t i = 0; i < bare.n && !*ret_more && !r; i++)
		*ret_more = !is_known_other(mm, &bare.v[i]);
	if (!r && *ret_more)
		r = register_bare(t, &bare, err);
	vec_done(&bare);
	return r;
}

static int on_foreign(const struct page_extent *e, void *arg, struct cr_err *err)
{
	const struct tracker *t = arg;

	(void)e;
	return cr_err_set(
	    err, CR_ERR_UNSUPPORTED, ENOTSUP,
	    "process %d: somebody else tracks its memory (another migration, or cr-agent "
	    "pre-dump --track); end that first",
	    t->pid);
}

/* Nothing is registered by us yet. What is then tracked belongs to somebody else: his marks of
 * writes are the only ones that there are, and each of us would clear those of the other. */
static int refuse_foreign(struct tracker *t, struct cr_err *err)
{
	const struct pagemap_query q = {.start = CR_PAGE_SIZE,
					.end = PAGEMAP_TOP,
					.mask = PAGE_CAT_WPALLOWED,
					.ret = PAGE_CAT_WPALLOWED};

	return pagemap_walk(t->pagemap, &q, on_foreign, t, err);
}

/* Nothing is registered yet, so no scan has to tell where: it would walk all page tables, 3 ms for
 * each GiB, while the task stands still. */
int register_all(struct tracker *t, struct cr_err *err)
{
	struct addr_range whole = {CR_PAGE_SIZE, PAGEMAP_TOP};
	const struct addr_ranges bare = {.v = &whole, .n = 1};
	int r = t->uffd >= 0 ? refuse_foreign(t, err) : 0;

	return r || t->uffd < 0 ? r : register_bare(t, &bare, err);
}

int register_new(struct tracker *t, const struct mm *mm, struct cr_err *err)
{
	bool more = t->uffd >= 0;
	int r = 0;

	for (int i = 0; i < PASSES && more && !r; i++)
		r = pass(t, mm, &more, err);
	return r || t->uffd < 0 ? r : settle(t, err);
}
