/* The last round of a tracker, at the stop, which protects nothing; and the last look. */
#include <sys/mman.h>
#include <unistd.h>
#include "memory/register.h"
#include "memory/tracker_round.h"
#include "memory/zero.h"
#include "model/layout.h"
#include "model/lazy.h"

enum {
	READ_UNEXAMINED_BYTES = 16 * 4096,
	/* what lies between is looked at faster than another call asks about it */
	SAME_LOOK_BYTES = 8 * 4096,
};

/* ---- what stayed behind ---- */

/* It was to be fetched, and is sent after all. */
static int send_left(struct round *ro, uint64_t va, struct cr_err *err)
{
	struct sent_chunk *c = sentmap_chunk(&ro->t->sent, va, false);

	if (!c || !chunk_test(c->lazy, chunk_index(va)))
		return 0;
	chunk_clear(c->lazy, chunk_index(va));
	ro->t->pages_lazy--;
	return reader_add(ro->r, va, va + CR_PAGE_SIZE, true, err);
}

/* At the stop: pages that may not be missing, as is known only now. */
static int send_what_may_not_be_left(struct round *ro, struct cr_err *err)
{
	const struct tracker *t = ro->t;
	const struct mm *mm = ro->mm;
	int r = 0;

	for (size_t i = 0; i < t->n_eager && !r; i++)
		r = send_left(ro, t->eager[i], err);
	for (size_t i = 0; i < mm->n_vmas && !r; i++) {
		const struct vma *v = &mm->vmas[i];

		if (v->kind != VMA_ANON || round_leaves(ro, v))
			continue;
		for (uint64_t va = v->start; va < v->end && !r; va += CR_PAGE_SIZE)
			if (!sentmap_chunk((struct sentmap *)&t->sent, va, false))
				va = va - va % CHUNK_SIZE + CHUNK_SIZE - CR_PAGE_SIZE;
			else
				r = send_left(ro, va, err);
	}
	return r;
}

/* ---- what is written, and what is gone ---- */

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
			r = round_drop_range(ro, v, v->start > gap.start ? v->start : gap.start,
					     v->end < gap.end ? v->end : gap.end, err);
	}
	ro->cursor = e->end;
	if (r)
		return r;
	bool special = e->categories & (PAGE_CAT_FILE | PAGE_CAT_PFNZERO | PAGE_CAT_GUARD);
	if (!special && !(e->categories & PAGE_CAT_WRITTEN) && !ro->all && !ro->t->always_full)
		return 0;
	return round_for_pieces(ro, e, round_send_range, err);
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
	int r = round_walk_copied(ro, &q, on_final_present, err);
	return r ? r : on_final_present(&tail, ro, err);
}

/* Its page tables are there, or looked at now. */
static void mark_seen(struct round *ro, uint64_t start, uint64_t end)
{
	for (uint64_t va = start - start % CHUNK_SIZE; va < end; va += CHUNK_SIZE) {
		struct sent_chunk *c = sentmap_chunk(&ro->t->sent, va, false);

		if (c)
			c->scratch[0] = 1;
	}
}

static bool is_examined_whole(const struct round *ro, const struct vma *v)
{
	return v->kind == VMA_FILE_PRIVATE || ro->t->always_full;
}

static int look_at_pending(struct round *ro, struct cr_err *err)
{
	const struct vma *v = ro->pending_vma;
	uint64_t start = ro->pending.start, end = ro->pending.end;

	ro->pending_vma = NULL;
	if (!v)
		return 0;
	if (v->kind == VMA_ANON && v->prot & PROT_READ && !ro->pending_many &&
	    !round_leaves(ro, v) && end - start <= READ_UNEXAMINED_BYTES) {
		/* cheaper read than asked about: what is absent reads as zeros, a guard not at all
		 */
		ro->t->pages_written += (end - start) / CR_PAGE_SIZE;
		return reader_add(ro->r, start, end, true, err);
	}
	mark_seen(ro, start, end);
	return examine(ro, start, end, err);
}

/* 1: nothing in it has to be looked at closer: pages that are there or not, no guards. */
static int has_no_markers(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	uint64_t entries[READ_UNEXAMINED_BYTES / CR_PAGE_SIZE];
	size_t n = (end - start) / CR_PAGE_SIZE;

	if (n > ARRAY_SIZE(entries))
		return 0;
	int r = pagemap_entries(ro->t->pagemap, start, n, entries, err);
	for (size_t i = 0; i < n && !r; i++)
		if (pagemap_entry_marker(entries[i]))
			return 0;
	return r ? r : 1;
}

/* In address order. Neighbours are looked at together: the stacks of hundreds of threads lie side
 * by side, each with a page that was written, one that nobody can read, and many that are not
 * there. */
static int examine_piece(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
			 uint64_t categories, struct cr_err *err)
{
	(void)categories;
	if (is_examined_whole(ro, v))
		return 0;
	if (round_leaves(ro, v)) { /* said, not read: there may be many */
		int r = has_no_markers(ro, start, end, err);

		if (r == 1)
			ro->t->pages_written += (end - start) / CR_PAGE_SIZE;
		if (r)
			return r < 0 ? r : round_leave_range(ro, start, end, err);
	}
	if (ro->pending_vma &&
	    (start == ro->pending.end ||
	     (v == ro->pending_vma && start - ro->pending.end <= SAME_LOOK_BYTES))) {
		ro->pending_many = true;
	} else {
		int r = look_at_pending(ro, err);

		if (r)
			return r;
		ro->pending_many = false;
		ro->pending.start = start;
	}
	ro->pending.end = end;
	ro->pending_vma = v;
	return 0;
}

static int on_reported(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return round_for_pieces(arg, e, examine_piece, err);
}

/* A page table that was freed whole is not reported: one page of each chunk tells. What was sent
 * since that was asked was there. */
static int look_for_freed_tables(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	const struct table_probe *v = NULL;
	size_t n = 0;
	int r = 0;

	if (!t->probes)
		r = table_probes_begin(&t->probes, t->pagemap, &t->sent, err);
	if (!r)
		r = table_probes_end(t->probes, &v, &n, err);
	for (size_t i = 0; i < n && !r; i++) {
		const struct sent_chunk *c = sentmap_chunk(&t->sent, v[i].va, false);

		if (!c || c->scratch[0] || !pagemap_entry_empty(v[i].entry))
			continue;
		struct page_extent e = {.start = c->start, .end = c->start + CHUNK_SIZE};
		r = round_for_pieces(ro, &e, examine_piece, err);
		if (!r)
			r = look_at_pending(ro, err);
	}
	table_probes_free(t->probes);
	t->probes = NULL;
	return r;
}

static int examine_bare(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
			uint64_t categories, struct cr_err *err)
{
	(void)categories;
	return is_examined_whole(ro, v) ? 0 : examine(ro, start, end, err);
}

/* Of mappings that are not registered the scan knows nothing: those that are new since the last
 * round, and those that a merge has taken out, whose pages may look protected and be written. */
static int send_bare(struct round *ro, const struct addr_ranges *bare, struct cr_err *err)
{
	int r = 0;

	ro->all = true;
	for (size_t i = 0; i < bare->n && !r; i++) {
		const struct page_extent e = {.start = bare->v[i].start, .end = bare->v[i].end};

		r = round_for_pieces(ro, &e, examine_bare, err);
	}
	ro->all = false;
	return r;
}

/* Where one half of what is copied lies before, and the other behind; 0: it is not worth it. */
static uint64_t middle_of(const struct mm *mm)
{
	uint64_t all = 0, before = 0;

	for (size_t i = 0; i < mm->n_vmas; i++)
		all += vma_is_copied(&mm->vmas[i]) ? mm->vmas[i].end - mm->vmas[i].start : 0;
	for (size_t i = 0; i < mm->n_vmas && all >= PAGEMAP_SPLIT_BYTES; i++) {
		const struct vma *v = &mm->vmas[i];
		uint64_t bytes = vma_is_copied(v) ? v->end - v->start : 0;

		if (before + bytes >= all / 2) /* where a page table begins */
			return (v->start + (all / 2 - before)) & ~(uint64_t)(CHUNK_SIZE - 1);
		before += bytes;
	}
	return 0;
}

static int send_reported(struct round *ro, const struct addr_ranges *bare, struct cr_err *err)
{
	/* mask and return exactly WRITTEN: the kernel's fast path, a fifth of the time. It also
	 * reports what is absent, which is wanted here; without protecting it leaves no marks. */
	struct pagemap_query fast = {
	    .start = LOWEST_VA,
	    .mask = PAGE_CAT_WRITTEN,
	    .ret = PAGE_CAT_WRITTEN,
	    .split = middle_of(ro->mm),
	};
	int r = 0;

	for (size_t i = 0; i <= bare->n && !r; i++) {
		fast.end = i < bare->n ? bare->v[i].start : PAGEMAP_TOP;
		if (fast.start < fast.end)
			r = round_walk_copied(ro, &fast, on_reported, err);
		fast.start = i < bare->n ? bare->v[i].end : 0;
	}
	return r ? r : look_at_pending(ro, err);
}

/* A discarded page of a private file mapping leaves a marker that the fast path passes over. */
static int send_examined_whole(struct round *ro, const struct addr_ranges *bare, struct cr_err *err)
{
	size_t k = 0;
	int r = 0;

	for (size_t i = 0; i < ro->mm->n_vmas && !r; i++) {
		const struct vma *v = &ro->mm->vmas[i];

		while (k < bare->n && bare->v[k].end <= v->start)
			k++;
		ro->all = k < bare->n && bare->v[k].start < v->end;
		if (vma_is_copied(v) && is_examined_whole(ro, v))
			r = examine(ro, v->start, v->end, err);
	}
	ro->all = false;
	return r;
}

/* ---- huge pages that were discarded ---- */

/* 1: some of it is not zero. */
static int has_contents(const struct tracker *t, uint64_t start, uint64_t end, struct cr_err *err)
{
	uint8_t page[CR_PAGE_SIZE];

	for (uint64_t va = start; va < end; va += CR_PAGE_SIZE) {
		ssize_t n = pread(t->mem, page, sizeof(page), (off_t)va);

		if (n != (ssize_t)sizeof(page))
			return n < 0 ? cr_err_sys(err, "reading a huge page at %#llx",
						  (unsigned long long)va)
				     : cr_err_set(err, CR_ERR_KERNEL, EIO,
						  "reading a huge page at %#llx",
						  (unsigned long long)va);
		if (!page_is_zero(page))
			return 1;
	}
	return 0;
}

static int look_at_huge(struct round *ro, const struct vma *v, uint64_t start, struct cr_err *err)
{
	uint64_t entry, end = start + v->page_bytes;
	int r = pagemap_entry(ro->t->pagemap, start, &entry, err);

	if (r)
		return r;
	if (pagemap_entry_empty(entry) || pagemap_entry_marker(entry))
		return round_drop_range(ro, v, start, end, err);
	r = has_contents(ro->t, start, end, err);
	return r ? (r < 0 ? r : 0) : reader_add(ro->r, start, end, true, err);
}

/* Of a huge page that was protected, MADV_DONTNEED leaves the protection behind (KERNEL:
 * __unmap_hugepage_range, PTE_MARKER_UFFD_WP). Reading from there makes a page of zeros that is
 * protected from the start, so no scan tells of it. Until it is written to it has nothing but
 * zeros: one that has contents in it is the one that was sent. */
static int send_discarded_huge(struct round *ro, struct cr_err *err)
{
	const struct sentmap *sent = &ro->t->sent;
	int r = reader_finish(ro->r, err); /* what it has may enlarge the map */

	for (size_t i = 0; i < sent->cap && !r; i++) {
		const struct sent_chunk *c = &sent->slots[i];
		const struct vma *v =
		    c->used ? layout_find(ro->mm->vmas, ro->mm->n_vmas, c->start) : NULL;
		bool any = false;

		if (!v || !v->page_bytes || c->scratch[0])
			continue;
		for (size_t k = 0; k < ARRAY_SIZE(c->sent); k++)
			any |= c->sent[k] != 0;
		if (any)
			r = look_at_huge(ro, v, c->start, err);
	}
	return r;
}

int round_final(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	struct addr_ranges bare = {0};

	for (size_t i = 0; i < t->sent.cap; i++)
		t->sent.slots[i].scratch[0] = 0;
	table_probes_free(t->probes); /* of a stop that was undone */
	t->probes = NULL;
	int r = table_probes_begin(&t->probes, t->pagemap, &t->sent, err);
	if (!r)
		r = register_list_bare(t, &bare, err);
	if (!r)
		r = send_bare(ro, &bare, err);
	if (!r)
		r = send_reported(ro, &bare, err);
	if (!r)
		r = send_examined_whole(ro, &bare, err);
	if (!r)
		r = send_discarded_huge(ro, err);
	vec_done(&bare);
	if (!r)
		r = round_resend_changed(ro, err);
	if (!r && t->lazy)
		r = send_what_may_not_be_left(ro, err);
	/* an image may have pages of what was mapped there once */
	if (!r && t->keeps)
		r = round_drop_absent(ro, err);
	if (!r)
		r = reader_finish(ro->r, err);
	reader_set_unread(ro->r, NULL, NULL);
	return r ? r : round_retry_unread(ro, err);
}

/* ---- after it ---- */

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
