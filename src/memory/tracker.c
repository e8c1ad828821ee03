#include "memory/tracker.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "kernel/pagemap.h"
#include "memory/donor.h"
#include "memory/register.h"
#include "memory/zero.h"
#include "model/layout.h"
#include "model/lazy.h"
#include "wire/page_digest.h"

enum {
	LOWEST_VA = 4096,
	READ_UNEXAMINED_BYTES = 16 * 4096,
	/* what lies between is looked at faster than another call asks about it */
	SAME_LOOK_BYTES = 8 * 4096,
	AGAIN_MAX = 16384, /* ranges */
};

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

int tracker_arm(struct tracker *t, struct cr_err *err)
{
	return register_all(t, err);
}

void tracker_done(struct tracker *t)
{
	table_probes_free(t->probes); /* before what it reads is closed */
	t->probes = NULL;
	close_fdp(&t->uffd);
	close_fdp(&t->pagemap);
	close_fdp(&t->mem);
	sentmap_done(&t->sent);
	free(t->vmas);
	t->vmas = NULL;
	vec_done(&t->guards);
	vec_done(&t->unsettled);
	donor_forget(t);
	vec_done(&t->retry);
	vec_done(&t->news);
	vec_done(&t->again);
	free(t->eager);
	t->eager = NULL;
}

struct round {
	struct tracker *t;
	const struct mm *mm;
	struct reader *r;
	bool final;
	bool all;        /* final: what is examined counts as written, whatever the marks say */
	uint64_t cursor; /* final: up to where [.., cursor) of the current extent has been accounted
			    for */
	/* final: reported and not looked at yet; the mapping in which it ends; of several extents?
	 */
	struct addr_range pending;
	const struct vma *pending_vma;
	bool pending_many;
};

/* ---- what is to be done with a page ---- */

static int add_news(struct tracker *t, uint64_t va, struct cr_err *err)
{
	struct addr_range *last = t->news.n ? &t->news.v[t->news.n - 1] : NULL;

	if (last && last->end == va) {
		last->end += CR_PAGE_SIZE;
		return 0;
	}
	last = vec_push(&t->news);
	if (!last)
		return cr_err_oom(err);
	*last = (struct addr_range){va, va + CR_PAGE_SIZE};
	return 0;
}

/* A page that the destination may hold and the source no longer does. */
static int drop_page(struct round *ro, const struct vma *v, uint64_t va, struct cr_err *err)
{
	struct tracker *t = ro->t;
	struct sent_chunk *c = sentmap_chunk(&t->sent, va, false);

	if (!c || !chunk_test(c->sent, chunk_index(va)))
		return 0;
	/* the file's page shows again: its bytes are sent as data, an image is to have none */
	if (v->kind == VMA_FILE_PRIVATE && !t->keeps)
		return reader_add(ro->r, va, va + CR_PAGE_SIZE, false, err);
	chunk_clear(c->sent, chunk_index(va));
	if (c->digests)
		memset(&c->digests[chunk_index(va)], 0, sizeof(*c->digests));
	return v->kind == VMA_FILE_PRIVATE ? add_news(t, va, err) : reader_zero(ro->r, va, err);
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

/* ---- leaving pages behind ---- */

/* It is pushed early: a hint, for which not much memory is spent. */
static void note_again(struct tracker *t, uint64_t va)
{
	struct addr_range *last = t->again.n ? &t->again.v[t->again.n - 1] : NULL;

	if (last && last->end == va) {
		last->end += CR_PAGE_SIZE;
		return;
	}
	last = t->again.n < AGAIN_MAX ? vec_push(&t->again) : NULL;
	if (last)
		*last = (struct addr_range){va, va + CR_PAGE_SIZE};
}

/* The destination shall fetch it from here, whatever it holds by then. What it has there of old has
 * to go: only what is missing is fetched. */
static int leave_page(struct round *ro, uint64_t va, struct cr_err *err)
{
	struct tracker *t = ro->t;
	struct sent_chunk *c = sentmap_chunk(&t->sent, va, true);
	unsigned int i = chunk_index(va);

	if (!c)
		return cr_err_oom(err);
	if (chunk_test(c->lazy, i)) {
		note_again(t, va);
		return 0;
	}
	chunk_set(c->lazy, i);
	chunk_clear(c->sent, i);
	t->pages_lazy++;
	return add_news(t, va, err);
}

static bool leaves(const struct round *ro, const struct vma *v)
{
	return ro->t->lazy && vma_is_lazy(v);
}

static int leave_range(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	const struct tracker *t = ro->t;
	int r = 0;

	for (uint64_t va = start; va < end && !r; va += CR_PAGE_SIZE)
		r = lazy_is_eager(t->eager, t->n_eager, va)
			? reader_add(ro->r, va, va + CR_PAGE_SIZE, true, err)
			: leave_page(ro, va, err);
	return r;
}

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

		if (v->kind != VMA_ANON || vma_is_lazy(v))
			continue;
		for (uint64_t va = v->start; va < v->end && !r; va += CR_PAGE_SIZE)
			if (!sentmap_chunk((struct sentmap *)&t->sent, va, false))
				va = va - va % CHUNK_SIZE + CHUNK_SIZE - CR_PAGE_SIZE;
			else
				r = send_left(ro, va, err);
	}
	return r;
}

/* What was sent there stays at the destination until the guard is set with the last tree. Should it
 * be taken away before, the page is absent, and dropped as such. */
static int add_guard(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct addr_range *g = vec_push(&ro->t->guards);

	if (!g)
		return cr_err_oom(err);
	*g = (struct addr_range){start, end};
	return 0;
}

static int on_guard(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return add_guard(arg, e->start, e->end, err);
}

static int look_for_guards(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	const struct pagemap_query q = {
	    .start = start, .end = end, .mask = PAGE_CAT_GUARD, .ret = PAGE_CAT_GUARD};

	return pagemap_walk(ro->t->pagemap, &q, on_guard, ro, err);
}

/* Guards that a former round has protected do not show as written any more: they are looked up
 * where they were. New ones show in the scan. Their protection outlives the userfaultfd (KERNEL:
 * change_pte_range passes guards over), so what an earlier tracker has protected is looked for
 * everywhere in the first round. */
static int look_at_guards(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	struct addr_ranges known = t->guards;
	int r = 0;

	memset(&t->guards, 0, sizeof(t->guards));
	if (!t->rounds) {
		r = look_for_guards(ro, CR_PAGE_SIZE, PAGEMAP_TOP, err);
		if (r == -EINVAL) { /* before 6.15 none can be seen */
			cr_err_clear(err);
			r = 0;
		}
	}
	for (size_t i = 0; i < known.n && !r; i++)
		r = look_for_guards(ro, known.v[i].start, known.v[i].end, err);
	vec_done(&known);
	return r;
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

static int send_pages(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		      uint64_t categories, struct cr_err *err)
{
	ro->t->pages_written += (end - start) / CR_PAGE_SIZE;
	if (leaves(ro, v))
		return leave_range(ro, start, end, err);
	if (categories & PAGE_CAT_SWAPPED)
		return send_swapped(ro, v, start, end, err);
	return reader_add(ro->r, start, end, v->kind == VMA_ANON, err);
}

struct send_rest {
	struct round *ro;
	const struct vma *v;
	uint64_t categories;
};

static int send_part(uint64_t start, uint64_t end, void *arg, struct cr_err *err)
{
	struct send_rest *s = arg;

	return send_pages(s->ro, s->v, start, end, s->categories, err);
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
	if (!ro->t->donor)
		return send_pages(ro, v, start, end, categories, err);
	struct send_rest rest = {ro, v, categories};
	return donor_for_rest(ro->t, start, end, send_part, &rest, err);
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

/* Whether a page is the file's, the kernel looks up in its struct page: that takes ten times as
 * long as all the rest of a look at it. In anonymous memory no page is. */
static uint64_t no_file(uint64_t categories)
{
	return categories & ~(uint64_t)PAGE_CAT_FILE;
}

/* What one query asks for: of small anonymous mappings the same as of their neighbours, since a
 * call of its own is not worth it. */
static uint64_t asked_of(const struct vma *v, const struct pagemap_query *q, uint64_t neighbours)
{
	if (v->kind != VMA_ANON)
		return q->ret;
	return v->end - v->start < CHUNK_SIZE ? neighbours : no_file(q->ret);
}

/* All but what is compared as a whole: that may be large, and is not to be protected. */
static int walk_copied(struct round *ro, const struct pagemap_query *q, pagemap_fn fn,
		       struct cr_err *err)
{
	const struct mm *mm = ro->mm;
	struct pagemap_query part = *q;
	int r = 0;

	for (size_t i = layout_lower(mm->vmas, mm->n_vmas, q->start); i <= mm->n_vmas && !r; i++) {
		const struct vma *v =
		    i < mm->n_vmas && mm->vmas[i].start < q->end ? &mm->vmas[i] : NULL;
		bool copied = v && vma_is_copied(v);
		uint64_t ret = copied ? asked_of(v, q, part.ret) : q->ret;

		if (copied && ret == part.ret)
			continue;
		part.end = v ? v->start : q->end;
		if (part.start < part.end)
			r = pagemap_walk(ro->t->pagemap, &part, fn, ro, err);
		if (!v)
			break;
		if (!copied)
			part.start = v->end;
		else if (part.start < part.end)
			part.start = part.end;
		part.ret = ret;
	}
	return r;
}

/* ---- rounds beside the running task ---- */

/* Where the destination has made a mapping anew (another thing is mapped there now, or it has
 * grown), nothing of what was sent is there, and all that is present has to go. What reads as
 * written comes with the scan; here is the rest: a round may have cleared marks of pages that were
 * not in its layout yet. */
static int resend_part(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	const struct pagemap_query q = {.start = start,
					.end = end,
					.inverted = PAGE_CAT_WRITTEN,
					.mask = PAGE_CAT_WRITTEN,
					.ret = PAGE_CAT_ALL,
					.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};

	return start < end ? walk_copied(ro, &q, on_written, err) : 0;
}

static int resend_changed(struct round *ro, struct cr_err *err)
{
	const struct tracker *t = ro->t;
	int r = 0;

	/* without a userfaultfd all is sent in any case */
	for (size_t i = 0; t->uffd >= 0 && t->rounds && i < ro->mm->n_vmas && !r; i++) {
		const struct vma *v = &ro->mm->vmas[i];
		uint64_t at = v->start; /* up to here all is kept, or sent */

		if (!vma_is_copied(v))
			continue;
		for (size_t k = layout_lower(t->vmas, t->n_vmas, at);
		     k < t->n_vmas && t->vmas[k].start < v->end && !r; k++) {
			const struct vma *old = &t->vmas[k];

			if (!vma_same_backing(old, v))
				continue;
			r = resend_part(ro, at, old->start, err);
			at = old->end;
		}
		if (!r)
			r = resend_part(ro, at, v->end, err);
	}
	return r;
}

/* Before anything of this layout is sent: what the destination has unmapped, it has lost. */
static void forget_unmapped(struct tracker *t, const struct mm *mm)
{
	for (size_t i = 0; i < t->n_vmas && !t->keeps; i++)
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
	int r = walk_copied(ro, &q, on_present, err);
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
	    .mask = t->uffd >= 0 ? PAGE_CAT_WRITTEN : 0,
	    .anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED,
	    .ret = PAGE_CAT_ALL, /* exactly WRITTEN would report absent pages too, and mark them */
	    .protect = t->uffd >= 0,
	};
	int r = register_new(t, ro->mm, err);

	if (!r)
		r = resend_changed(ro, err);
	/* a page may come again below, with other contents: not while its first copy is in flight
	 */
	if (!r)
		r = reader_barrier(ro->r, err);
	if (!r)
		r = walk_copied(ro, &q, on_written, err);
	if (!r)
		r = reader_barrier(ro->r, err);
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
	if (!special && !(e->categories & PAGE_CAT_WRITTEN) && !ro->all && !ro->t->always_full)
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
	int r = walk_copied(ro, &q, on_final_present, err);
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
	if (v->kind == VMA_ANON && v->prot & PROT_READ && !ro->pending_many && !leaves(ro, v) &&
	    end - start <= READ_UNEXAMINED_BYTES) {
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
	if (leaves(ro, v)) { /* said, not read: there may be many */
		int r = has_no_markers(ro, start, end, err);

		if (r == 1)
			ro->t->pages_written += (end - start) / CR_PAGE_SIZE;
		if (r)
			return r < 0 ? r : leave_range(ro, start, end, err);
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
	return for_pieces(arg, e, examine_piece, err);
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
		r = for_pieces(ro, &e, examine_piece, err);
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

		r = for_pieces(ro, &e, examine_bare, err);
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
			r = walk_copied(ro, &fast, on_reported, err);
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
		return drop_range(ro, v, start, end, err);
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

static int final_round(struct round *ro, struct cr_err *err)
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
		r = resend_changed(ro, err);
	if (!r && t->lazy)
		r = send_what_may_not_be_left(ro, err);
	/* an image may have pages of what was mapped there once */
	if (!r && t->keeps)
		r = drop_absent(ro, err);
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
	t->again.n = 0;
	forget_unmapped(t, mm);
	int e = reader_target(r, t->target, &t->sent,
			      t->shares_cow ? READ_PROC_MEM : READ_PROCESS_VM, t->pid, t->mem, err);
	reader_set_unread(r, remember_unread, t);
	reader_set_unsteady(r, t->eager, t->n_eager);
	if (!e)
		e = donor_look(t, err);
	if (!e)
		e = look_at_guards(&ro, err);
	if (!e)
		e = final ? final_round(&ro, err) : running_round(&ro, err);
	addr_ranges_tidy(&t->guards);
	if (!e)
		e = reader_finish(r, err);
	reader_set_unread(r, NULL, NULL);
	reader_set_unsteady(r, NULL, 0);
	if (!e)
		e = keep_layout(t, mm, err);
	donor_forget(t);
	t->rounds++;
	return e ? cr_err_ctx(err, "memory of %d", t->pid) : 0;
}

/* Zeros of anonymous memory go with the rest: no page is as good, but of a mapping that is another
 * thing later. */
static void forget_in_chunk(struct tracker *t, struct sent_chunk *c, const struct mm *mm)
{
	for (unsigned int k = 0; k < CHUNK_PAGES; k++) {
		uint64_t va = c->start + k * CR_PAGE_SIZE;
		const struct vma *v = layout_find(mm->vmas, mm->n_vmas, va);
		bool zeros =
		    c->digests && XXH128_isEqual(c->digests[k], page_hash_zero(t->target, va));

		if (chunk_test(c->sent, k) &&
		    (!v || !vma_is_copied(v) || (zeros && v->kind == VMA_ANON)))
			sentmap_forget(&t->sent, va, va + CR_PAGE_SIZE);
	}
}

void tracker_pruned(struct tracker *t, const struct mm *mm)
{
	for (size_t i = 0; i < t->sent.cap; i++)
		if (t->sent.slots[i].used)
			forget_in_chunk(t, &t->sent.slots[i], mm);
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
