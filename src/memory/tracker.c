#include "memory/tracker.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "kernel/pagemap.h"
#include "memory/donor.h"
#include "memory/register.h"
#include "memory/tracker_round.h"
#include "model/layout.h"
#include "model/lazy.h"
#include "wire/page_digest.h"

enum {
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

int round_drop_range(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
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

bool round_leaves(const struct round *ro, const struct vma *v)
{
	return ro->t->lazy && vma_is_lazy(v) && (!v->page_bytes || ro->t->lazy_huge);
}

int round_leave_range(struct round *ro, uint64_t start, uint64_t end, struct cr_err *err)
{
	const struct tracker *t = ro->t;
	int r = 0;

	for (uint64_t va = start; va < end && !r; va += CR_PAGE_SIZE)
		r = lazy_is_eager(t->eager, t->n_eager, va)
			? reader_add(ro->r, va, va + CR_PAGE_SIZE, true, err)
			: leave_page(ro, va, err);
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
	if (round_leaves(ro, v))
		return round_leave_range(ro, start, end, err);
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

int round_send_range(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		     uint64_t categories, struct cr_err *err)
{
	if (categories & PAGE_CAT_GUARD)
		return add_guard(ro, start, end, err);
	if (categories & PAGE_CAT_PFNZERO)
		return v->kind == VMA_ANON ? round_drop_range(ro, v, start, end, err)
					   : reader_add(ro->r, start, end, false, err);
	if (categories & PAGE_CAT_FILE)
		return round_drop_range(ro, v, start, end, err);
	if (!ro->t->donor)
		return send_pages(ro, v, start, end, categories, err);
	struct send_rest rest = {ro, v, categories};
	return donor_for_rest(ro->t, start, end, send_part, &rest, err);
}

/* Cut an extent at the mappings that are copied page by page. */
int round_for_pieces(struct round *ro, const struct page_extent *e, piece_fn fn, struct cr_err *err)
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
	return round_for_pieces(arg, e, round_send_range, err);
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
int round_walk_copied(struct round *ro, const struct pagemap_query *q, pagemap_fn fn,
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

	return start < end ? round_walk_copied(ro, &q, on_written, err) : 0;
}

int round_resend_changed(struct round *ro, struct cr_err *err)
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

int round_retry_unread(struct round *ro, struct cr_err *err)
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
int round_drop_absent(struct round *ro, struct cr_err *err)
{
	struct tracker *t = ro->t;
	const struct pagemap_query q = {.start = LOWEST_VA,
					.end = PAGEMAP_TOP,
					.ret = PAGE_CAT_ALL,
					.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};

	for (size_t i = 0; i < t->sent.cap; i++)
		memset(t->sent.slots[i].scratch, 0, sizeof(t->sent.slots[i].scratch));
	int r = round_walk_copied(ro, &q, on_present, err);
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
		r = round_resend_changed(ro, err);
	/* a page may come again below, with other contents: not while its first copy is in flight
	 */
	if (!r)
		r = reader_barrier(ro->r, err);
	if (!r)
		r = round_walk_copied(ro, &q, on_written, err);
	if (!r)
		r = reader_barrier(ro->r, err);
	if (!r)
		r = round_retry_unread(ro, err);
	if (!r)
		r = reader_barrier(ro->r, err);
	/* once: the scan costs as much as all the rest of a round, and the last round sees them too
	 */
	if (!r && t->rounds == 1)
		r = round_drop_absent(ro, err);
	return r;
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
		e = final ? round_final(&ro, err) : running_round(&ro, err);
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
