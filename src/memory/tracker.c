#include "memory/tracker.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include "kernel/pagemap.h"
#include "kernel/uffd.h"
#include "model/layout.h"

enum { LOWEST_VA = 4096, READ_UNEXAMINED_BYTES = 16 * 4096 };

int tracker_init(struct tracker *t, pid_t pid, uint32_t target, int uffd, size_t *digest_budget,
		 struct cr_err *err)
{
	char path[64];

	*t = (struct tracker){.pid = pid, .target = target, .uffd = uffd, .pagemap = -1, .mem = -1};
	sentmap_init(&t->sent, digest_budget);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	t->mem = open(path, O_RDONLY | O_CLOEXEC);
	if (t->mem < 0)
		return cr_err_sys(err, "opening %s", path);
	t->pagemap = pagemap_open(pid, err);
	return t->pagemap < 0 ? t->pagemap : 0;
}

void tracker_done(struct tracker *t)
{
	close_fdp(&t->uffd);
	close_fdp(&t->pagemap);
	close_fdp(&t->mem);
	sentmap_done(&t->sent);
	free(t->vmas);
	t->vmas = NULL;
	vec_done(&t->guards);
	vec_done(&t->retry);
}

struct round {
	struct tracker *t;
	const struct mm *mm;
	struct reader *r;
	bool final;
	uint64_t cursor; /* final: up to where [.., cursor) of the current extent has been accounted
			    for */
};

/* ---- what is to be done with a page ---- */

/* A page that the destination may hold and the source no longer does. */
static int drop_page(struct round *ro, const struct vma *v, uint64_t va, struct cr_err *err)
{
	struct sent_chunk *c = sentmap_chunk(&ro->t->sent, va, false);

	if (!c || !chunk_test(c->sent, chunk_index(va)))
		return 0;
	if (v->kind ==
	    VMA_FILE_PRIVATE) /* the file's page shows again: its bytes are sent as data */
		return reader_add(ro->r, va, va + CR_PAGE_SIZE, false, err);
	chunk_clear(c->sent, chunk_index(va));
	if (c->digests)
		memset(&c->digests[chunk_index(va)], 0, sizeof(*c->digests));
	return reader_zero(ro->r, va, err);
}

static int drop_range(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		      struct cr_err *err)
{
	int r = 0;

	for (uint64_t va = start; va < end && !r;) {
		if (!sentmap_chunk(&ro->t->sent, va, false)) {
			va = va - va % CHUNK_SIZE + CHUNK_SIZE;
			continue;
		}
		r = drop_page(ro, v, va, err);
		va += CR_PAGE_SIZE;
	}
	return r;
}

static int add_guard(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct addr_range *g = vec_push(&ro->t->guards);

	if (!g)
		return cr_err_oom(err);
	*g = (struct addr_range){start, end};
	sentmap_forget(&ro->t->sent, start, end);
	return 0;
}

static int on_guard(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return add_guard(arg, e->start, e->end, err);
}

/* Guards that a former round has protected do not show as written any more: they are looked up
 * where they were. New ones show in the scan. */
static int look_at_guards(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	__typeof__(t->guards) known = t->guards;
	int r = 0;

	memset(&t->guards, 0, sizeof(t->guards));
	for (size_t i = 0; i < known.n && !r; i++) {
		struct pagemap_query q = {.start = known.v[i].start,
					  .end = known.v[i].end,
					  .mask = PAGE_CAT_GUARD,
					  .ret = PAGE_CAT_GUARD};

		r = pagemap_walk(t->pagemap, &q, on_guard, ro, err);
	}
	vec_done(&known);
	return r;
}

static int by_start(const void *a, const void *b)
{
	const struct addr_range *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* Ascending and disjoint. */
static void tidy_guards(struct tracker *t)
{
	size_t n = 0;

	if (!t->guards.n)
		return;
	qsort(t->guards.v, t->guards.n, sizeof(*t->guards.v), by_start);
	for (size_t i = 1; i < t->guards.n; i++) {
		struct addr_range *last = &t->guards.v[n], *g = &t->guards.v[i];

		if (g->start > last->end)
			t->guards.v[++n] = *g;
		else if (g->end > last->end)
			last->end = g->end;
	}
	t->guards.n = n + 1;
}

/* Swapped pages one by one: some are markers that userfaultfd left behind, no pages at all. */
static int send_swapped(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
			struct cr_err *err)
{
	int r = 0;

	for (uint64_t va = start; va < end && !r; va += CR_PAGE_SIZE) {
		uint64_t entry;

		r = pagemap_entry(ro->t->pagemap, va, &entry, err);
		if (!r)
			r = pagemap_entry_marker(entry) ? drop_page(ro, v, va, err)
							: reader_add(ro->r, va, va + CR_PAGE_SIZE,
								     v->kind == VMA_ANON, err);
	}
	return r;
}

static int send_range(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		      uint64_t categories, struct cr_err *err)
{
	if (categories & PAGE_CAT_GUARD)
		return add_guard(ro, start, end, err);
	if (categories & PAGE_CAT_PFNZERO)
		return v->kind == VMA_ANON ? drop_range(ro, v, start, end, err)
					   : reader_add(ro->r, start, end, false, err);
	if (categories & PAGE_CAT_FILE)
		return drop_range(ro, v, start, end, err);
	ro->t->pages_written += (end - start) / CR_PAGE_SIZE;
	if (categories & PAGE_CAT_SWAPPED)
		return send_swapped(ro, v, start, end, err);
	return reader_add(ro->r, start, end, v->kind == VMA_ANON, err);
}

typedef int (*piece_fn)(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
			uint64_t categories, struct cr_err *err);

/* Cut an extent at the mappings that are copied page by page. */
static int for_pieces(struct round *ro, const struct page_extent *e, piece_fn fn,
		      struct cr_err *err)
{
	const struct mm *mm = ro->mm;
	int r = 0;

	for (size_t i = layout_lower(mm->vmas, mm->n_vmas, e->start);
	     i < mm->n_vmas && mm->vmas[i].start < e->end && !r; i++) {
		const struct vma *v = &mm->vmas[i];
		uint64_t start = v->start > e->start ? v->start : e->start;
		uint64_t end = v->end < e->end ? v->end : e->end;

		if (vma_is_copied(v))
			r = fn(ro, v, start, end, e->categories, err);
	}
	return r;
}

static int on_written(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return for_pieces(arg, e, send_range, err);
}

/* ---- registering ---- */

static int track_piece(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		       uint64_t categories, struct cr_err *err)
{
	(void)categories;
	(void)v;
	(void)err;
	/* What cannot be tracked reads as written in every scan, and is told apart by its digests.
	 * What went away meanwhile is found by the next round. */
	if (uffd_track(ro->t->uffd, start, end))
		return 0;
	return 0;
}

static int on_untracked(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return for_pieces(arg, e, track_piece, err);
}

/* What is not tracked yet: new mappings, and those that a remap or a merge has taken out. The scan
 * is exact where a comparison of maps is not: the same address may look the same and be another
 * mapping. */
static int track_new(struct round *ro, struct cr_err *err)
{
	const struct pagemap_query q = {
	    .start = LOWEST_VA,
	    .end = PAGEMAP_TOP,
	    .inverted = PAGE_CAT_WPALLOWED,
	    .mask = PAGE_CAT_WPALLOWED,
	    .ret = PAGE_CAT_WPALLOWED,
	};

	return ro->t->uffd < 0 ? 0 : pagemap_walk(ro->t->pagemap, &q, on_untracked, ro, err);
}

/* ---- rounds beside the running task ---- */

/* Mappings that the destination made anew (another thing is mapped there now): nothing of what was
 * sent is there any more, and all that is present has to be sent, written or not. */
static int resend_changed(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	int r = 0;

	for (size_t i = 0; t->rounds && i < ro->mm->n_vmas && !r; i++) {
		const struct vma *v = &ro->mm->vmas[i];
		struct pagemap_query q = {.start = v->start,
					  .end = v->end,
					  .ret = PAGE_CAT_ALL,
					  .anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};

		if (vma_is_copied(v) && !layout_kept(t->vmas, t->n_vmas, v))
			r = pagemap_walk(t->pagemap, &q, on_written, ro, err);
	}
	return r;
}

/* Before anything of this layout is sent: what the destination has unmapped, it has lost. */
static void forget_unmapped(struct tracker *t, const struct mm *mm)
{
	for (size_t i = 0; i < t->n_vmas; i++)
		if (vma_is_copied(&t->vmas[i]) && !layout_kept(mm->vmas, mm->n_vmas, &t->vmas[i]))
			for (uint64_t va = t->vmas[i].start; va < t->vmas[i].end;) {
				uint64_t next = va - va % CHUNK_SIZE + CHUNK_SIZE;
				const struct vma *now = layout_find(mm->vmas, mm->n_vmas, va);
				bool kept = now && vma_same_backing(now, &t->vmas[i]);
				uint64_t end = kept ? now->end : va + CR_PAGE_SIZE;

				if (!kept && !sentmap_chunk(&t->sent, va, false))
					end = next; /* nothing sent there */
				if (!kept)
					sentmap_forget(&t->sent, va,
						       end < t->vmas[i].end ? end : t->vmas[i].end);
				va = end;
			}
}

static int keep_layout(struct tracker *t, const struct mm *mm, struct cr_err *err)
{
	struct vma *v = calloc(mm->n_vmas + 1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	memcpy(v, mm->vmas, mm->n_vmas * sizeof(*v));
	for (size_t i = 0; i < mm->n_vmas; i++)
		v[i].name = NULL;
	free(t->vmas);
	t->vmas = v;
	t->n_vmas = mm->n_vmas;
	return 0;
}

static int retry_unread(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	int r = 0;
	__typeof__(t->retry) list = t->retry;

	memset(&t->retry, 0, sizeof(t->retry));
	for (size_t i = 0; i < list.n && !r; i++) {
		struct pagemap_query q = {.start = list.v[i],
					  .end = list.v[i] + CR_PAGE_SIZE,
					  .anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED,
					  .ret = PAGE_CAT_ALL};

		r = pagemap_walk(t->pagemap, &q, on_written, ro, err);
	}
	vec_done(&list);
	return r;
}

static int on_present(const struct page_extent *e, void *arg, struct cr_err *err)
{
	struct round *ro = arg;

	(void)err;
	/* the file's own page is nothing that was sent; zero pages are as good as none */
	if (e->categories & (PAGE_CAT_FILE | PAGE_CAT_PFNZERO | PAGE_CAT_GUARD))
		return 0;
	for (uint64_t va = e->start; va < e->end; va += CR_PAGE_SIZE) {
		struct sent_chunk *c = sentmap_chunk(&ro->t->sent, va, false);

		if (c)
			chunk_set(c->scratch, chunk_index(va));
	}
	return 0;
}

/* Pages that were sent and are gone: discarded since. A scan for written pages does not show them.
 */
static int drop_absent(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	const struct pagemap_query q = {.start = LOWEST_VA,
					.end = PAGEMAP_TOP,
					.ret = PAGE_CAT_ALL,
					.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};

	for (size_t i = 0; i < t->sent.cap; i++)
		memset(t->sent.slots[i].scratch, 0, sizeof(t->sent.slots[i].scratch));
	int r = pagemap_walk(t->pagemap, &q, on_present, ro, err);
	for (size_t i = 0; i < t->sent.cap && !r; i++) {
		struct sent_chunk *c = &t->sent.slots[i];

		for (unsigned int k = 0; c->used && k < CHUNK_PAGES && !r; k++) {
			if (!(c->sent[k / 64] & ~c->scratch[k / 64])) {
				k |= 63;
				continue;
			}
			uint64_t va = c->start + k * CR_PAGE_SIZE;
			const struct vma *v = layout_find(ro->mm->vmas, ro->mm->n_vmas, va);
			if (!chunk_test(c->sent, k) || chunk_test(c->scratch, k))
				continue;
			if (v && vma_is_copied(v))
				r = drop_page(ro, v, va, err);
		}
	}
	return r;
}

static int running_round(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	const struct pagemap_query q = {
	    .start = LOWEST_VA,
	    .end = PAGEMAP_TOP,
	    .mask = PAGE_CAT_WRITTEN,
	    .anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED,
	    .ret = PAGE_CAT_ALL, /* exactly WRITTEN would report absent pages too, and mark them */
	    .protect = t->uffd >= 0,
	};
	int r = track_new(ro, err);

	if (!r)
		r = pagemap_walk(t->pagemap, &q, on_written, ro, err);
	/* a page may come again below, with other contents: not while its first copy is in flight
	 */
	if (!r)
		r = reader_barrier(ro->r, err);
	if (!r)
		r = resend_changed(ro, err);
	if (!r)
		r = retry_unread(ro, err);
	if (!r)
		r = reader_barrier(ro->r, err);
	/* once: the scan costs as much as all the rest of a round, and the last round sees them too
	 */
	if (!r && t->rounds == 1)
		r = drop_absent(ro, err);
	return r;
}

/* ---- the last round ---- */

static int on_final_present(const struct page_extent *e, void *arg, struct cr_err *err)
{
	struct round *ro = arg;
	const struct page_extent gap = {.start = ro->cursor, .end = e->start};
	int r = 0;

	for (size_t i = layout_lower(ro->mm->vmas, ro->mm->n_vmas, gap.start);
	     gap.start < gap.end && i < ro->mm->n_vmas && ro->mm->vmas[i].start < gap.end && !r;
	     i++) {
		const struct vma *v = &ro->mm->vmas[i];

		if (vma_is_copied(v))
			r = drop_range(ro, v, v->start > gap.start ? v->start : gap.start,
				       v->end < gap.end ? v->end : gap.end, err);
	}
	ro->cursor = e->end;
	if (r)
		return r;
	bool special = e->categories & (PAGE_CAT_FILE | PAGE_CAT_PFNZERO | PAGE_CAT_GUARD);
	if (!special && !(e->categories & PAGE_CAT_WRITTEN) && !ro->t->always_full)
		return 0;
	return for_pieces(ro, e, send_range, err);
}

/* Everything in [start, end), page by page: what is there and written, and what is gone. */
static int examine(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	const struct pagemap_query q = {.start = start,
					.end = end,
					.ret = PAGE_CAT_ALL,
					.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};
	const struct page_extent tail = {.start = end, .end = end};

	ro->cursor = start;
	int r = pagemap_walk(ro->t->pagemap, &q, on_final_present, ro, err);
	return r ? r : on_final_present(&tail, ro, err);
}

static int examine_piece(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
			 uint64_t categories, struct cr_err *err)
{
	(void)categories;
	if (v->kind == VMA_FILE_PRIVATE || ro->t->always_full)
		return 0; /* examined whole */
	if (v->kind == VMA_ANON && end - start <= READ_UNEXAMINED_BYTES) {
		/* cheaper read than asked about: what is absent reads as zeros, a guard not at all
		 */
		ro->t->pages_written += (end - start) / CR_PAGE_SIZE;
		return reader_add(ro->r, start, end, true, err);
	}
	for (uint64_t va = start - start % CHUNK_SIZE; va < end; va += CHUNK_SIZE) {
		struct sent_chunk *c = sentmap_chunk(&ro->t->sent, va, false);

		if (c)
			c->scratch[0] = 1; /* its page table is there */
	}
	return examine(ro, start, end, err);
}

static int on_reported(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return for_pieces(arg, e, examine_piece, err);
}

/* A page table that was freed whole is not reported: one page of each chunk tells. */
static int look_for_freed_tables(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	int r = 0;

	for (size_t i = 0; i < t->sent.cap && !r; i++) {
		struct sent_chunk *c = &t->sent.slots[i];
		unsigned int k = 0;
		uint64_t entry;

		if (!c->used || c->scratch[0])
			continue;
		while (k < CHUNK_PAGES && !chunk_test(c->sent, k))
			k++;
		if (k == CHUNK_PAGES)
			continue;
		r = pagemap_entry(t->pagemap, c->start + k * CR_PAGE_SIZE, &entry, err);
		if (!r && pagemap_entry_empty(entry)) {
			struct page_extent e = {.start = c->start, .end = c->start + CHUNK_SIZE};

			r = for_pieces(ro, &e, examine_piece, err);
		}
	}
	return r;
}

static int final_round(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	/* mask and return exactly WRITTEN: the kernel's fast path, a fifth of the time. It also
	 * reports what is absent, which is wanted here; without protecting it leaves no marks. */
	const struct pagemap_query fast = {
	    .start = LOWEST_VA,
	    .end = PAGEMAP_TOP,
	    .mask = PAGE_CAT_WRITTEN,
	    .ret = PAGE_CAT_WRITTEN,
	};
	int r = 0;

	for (size_t i = 0; i < t->sent.cap; i++)
		t->sent.slots[i].scratch[0] = 0;
	r = pagemap_walk(t->pagemap, &fast, on_reported, ro, err);
	/* a discarded page of a private file mapping leaves a marker that the fast path passes over
	 */
	for (size_t i = 0; i < ro->mm->n_vmas && !r; i++) {
		const struct vma *v = &ro->mm->vmas[i];

		if (vma_is_copied(v) && (v->kind == VMA_FILE_PRIVATE || t->always_full))
			r = examine(ro, v->start, v->end, err);
	}
	if (!r)
		r = resend_changed(ro, err);
	if (!r)
		r = reader_finish(ro->r, err);
	reader_set_unread(ro->r, NULL, NULL);
	return r ? r : retry_unread(ro, err);
}

/* ---- both ---- */

static int remember_unread(uint64_t va, void *arg)
{
	struct tracker *t = arg;
	uint64_t *slot = vec_push(&t->retry);

	if (!slot)
		return -1;
	*slot = va;
	return 0;
}

int tracker_round(struct tracker *t, const struct mm *mm, struct reader *r, bool final,
		  struct cr_err *err)
{
	struct round ro = {.t = t, .mm = mm, .r = r, .final = final};

	t->pages_written = 0;
	forget_unmapped(t, mm);
	int e = reader_target(r, t->target, &t->sent,
			      t->shares_cow ? READ_PROC_MEM : READ_PROCESS_VM, t->pid, t->mem, err);
	reader_set_unread(r, remember_unread, t);
	if (!e)
		e = look_at_guards(&ro, err);
	if (!e)
		e = final ? final_round(&ro, err) : running_round(&ro, err);
	tidy_guards(t);
	if (!e)
		e = reader_finish(r, err);
	reader_set_unread(r, NULL, NULL);
	if (!e)
		e = keep_layout(t, mm, err);
	t->rounds++;
	return e ? cr_err_ctx(err, "memory of %d", t->pid) : 0;
}

int tracker_last_look(struct tracker *t, const struct mm *mm, struct reader *r, struct cr_err *err)
{
	struct round ro = {.t = t, .mm = mm, .r = r, .final = true};
	int e = reader_target(r, t->target, &t->sent,
			      t->shares_cow ? READ_PROC_MEM : READ_PROCESS_VM, t->pid, t->mem, err);

	if (!e)
		e = look_for_freed_tables(&ro, err);
	if (!e)
		e = reader_finish(r, err);
	return e ? cr_err_ctx(err, "memory of %d", t->pid) : 0;
}
