/* What stays behind at the source: noted round by round, discarded here, and at last put under a
 * userfaultfd. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "dest/lazy.h"
#include "dest/uffd_shell.h"
#include "kernel/pagemap.h"
#include "kernel/thp.h"
#include "kernel/uffd.h"
#include "model/lazy.h"

/* A gap between missing pages from which on the memory for their bits is not worth it. */
#define GAP_BYTES (64ull << 20)

#ifndef PIDFD_SELF
#define PIDFD_SELF (-10000)
#endif

enum {
	DISCARDS = 512, /* with one call; at most 1,024, IOV_MAX */
	REGISTER_ATTEMPTS = 100,
};

static struct lazy_proc *proc_of(struct lazy *l, pid_t pid, bool create)
{
	vec_foreach (p, &l->procs)
		if (p->pid == pid)
			return p;
	struct lazy_proc *p = create ? vec_push(&l->procs) : NULL;
	if (!p)
		return NULL;
	p->pid = pid;
	p->uffd = -1;
	sentmap_init(&p->left, &l->no_digests);
	return p;
}

static int note(struct lazy_proc *p, uint64_t start, uint64_t end, struct cr_err *err)
{
	for (uint64_t va = start; va < end; va += CR_PAGE_SIZE) {
		struct sent_chunk *c = sentmap_chunk(&p->left, va, true);

		if (!c)
			return cr_err_oom(err);
		chunk_set(c->lazy, chunk_index(va));
	}
	return 0;
}

int lazy_note(struct lazy *l, pid_t pid, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct lazy_proc *p = proc_of(l, pid, true);

	return p ? note(p, start, end, err) : cr_err_oom(err);
}

static int on_present(const struct page_extent *e, void *arg, struct cr_err *err)
{
	const struct shell *sh = arg;

	return cr_err_set(err, CR_ERR_BUG, EEXIST, "page %#llx of %d could not be discarded",
			  (unsigned long long)e->start, sh->pid);
}

/* A page that is still there would never be fetched, and its old contents would be the task's. */
static int check_gone(const struct shell *sh, const struct msg_range *v, size_t n,
		      struct cr_err *err)
{
	_cleanup_fd_ int fd = pagemap_open(sh->pid, err);
	int r = fd < 0 ? fd : 0;

	for (size_t i = 0; i < n && !r; i++) {
		const struct pagemap_query q = {.start = v[i].start,
						.end = v[i].end,
						.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED,
						.ret = PAGE_CAT_ALL};

		r = pagemap_walk(fd, &q, on_present, (void *)sh, err);
	}
	return r;
}

/* One call for each. Where nothing is mapped any more it fails, and nothing is lost; where pages
 * are locked it fails, and they are there still. */
static int discard_singly(struct shell *sh, const struct msg_range *v, size_t n, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);

	for (size_t i = 0; i < n; i++)
		rqueue(rt, NULL, SYS_madvise, v[i].start, v[i].end - v[i].start, MADV_DONTNEED);
	int r = rtask_run(rt, err);
	return r ? r : check_gone(sh, v, n, err);
}

/* How many of the first ranges were discarded whole. *ret: what the call said. */
static size_t discard_some(struct shell *sh, const struct msg_range *v, size_t n, long *ret)
{
	struct rtask *rt = shell_leader(sh);
	uint64_t va, done = 0;
	size_t k = 0;

	rtask_scratch_reset(rt);
	struct iovec *iov = rtask_scratch(rt, n * sizeof(*iov), &va);
	for (size_t i = 0; i < n; i++)
		iov[i] = (struct iovec){(void *)v[i].start, v[i].end - v[i].start};
	*ret = rcall_now(rt, SYS_process_madvise, PIDFD_SELF, va, n, MADV_DONTNEED, 0);
	rtask_scratch_reset(rt);
	while (*ret > 0 && k < n && done + v[k].end - v[k].start <= (uint64_t)*ret)
		done += v[k].end - v[k].start, k++;
	return k;
}

/* By process_madvise(2) of the shell for itself, many ranges with each call: pages written at
 * random are as many ranges. That may discard since 6.13; a kernel
 * without PIDFD_SELF says EBADF. */
static int discard(struct shell *sh, const struct msg_range *v, size_t n, struct cr_err *err)
{
	for (size_t at = 0; at < n;) {
		size_t some = n - at < DISCARDS ? n - at : DISCARDS;
		long ret;
		size_t done = discard_some(sh, v + at, some, &ret);
		bool never = ret == -EBADF || ret == -ENOSYS || ret == -EPERM;

		at += done;
		if (done)
			continue;
		some = never ? n - at : 1;
		int r = discard_singly(sh, v + at, some, err);
		if (r)
			return r;
		at += some;
	}
	return 0;
}

int lazy_leave(struct lazy *l, struct shell *sh, const struct msg_reset *rs, struct cr_err *err)
{
	struct lazy_proc *p = proc_of(l, sh->pid, true);
	int r = p ? shell_unpark(NULL, sh, err) : cr_err_oom(err);

	for (size_t i = 0; i < rs->n_ranges && !r; i++) {
		const struct msg_range *g = &rs->ranges[i];

		if (g->start >= g->end || g->end > PAGEMAP_TOP)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "pages beyond user memory");
		r = note(p, g->start, g->end, err);
	}
	if (!r)
		r = discard(sh, rs->ranges, rs->n_ranges, err);
	return r ? cr_err_ctx(err, "discarding what is to be fetched of %d", sh->pid) : 0;
}

/* ---- shared memory ---- */

bool lazy_has_objects(void)
{
	/* a huge page is mapped whole, with what is missing in it */
	return !thp_shared();
}

static struct lazy_behind *behind(struct lazy *l, uint32_t index)
{
	vec_foreach (o, &l->objects)
		if (o->index == index)
			return o;
	return NULL;
}

static const struct lazy_behind *behind_of(struct lazy *l, const struct vma *v)
{
	const struct lazy_behind *o = v->object == UINT32_MAX ? NULL : behind(l, v->object);

	return o && !o->taken_back ? o : NULL;
}

static struct lazy_behind *new_behind(struct lazy *l, uint32_t index, int fd,
				      const struct shared_object *so, struct cr_err *err)
{
	const uint64_t bytes = ALIGN_UP(so->size, (uint64_t)CR_PAGE_SIZE);
	_cleanup_fd_ int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	_cleanup_free_ uint64_t *left = calloc(bytes / CR_PAGE_SIZE / 64 + 1, sizeof(*left));
	struct lazy_behind *o = own < 0 || !left ? NULL : vec_push(&l->objects);

	if (!o) {
		if (own < 0)
			cr_err_sys(err, "dup");
		else
			cr_err_oom(err);
		return NULL;
	}
	*o = (struct lazy_behind){.index = index,
				  .fd = take_fd(&own),
				  .bytes = bytes,
				  .left = take_ptr(left),
				  .huge = so->page_bytes != 0};
	return o;
}

/* Each page that may be missing has to be there, see lazy_state.h; the others must not. */
int lazy_leave_object(struct lazy *l, int fd, const struct shared_object *so,
		      const struct msg_reset *rs, struct cr_err *err)
{
	struct lazy_behind *o = behind(l, rs->object);

	if (!o)
		o = new_behind(l, rs->object, fd, so, err);
	if (!o)
		return -err->code;
	if (ALIGN_UP(so->size, (uint64_t)CR_PAGE_SIZE) != o->bytes)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "shared memory has another size now");
	o->taken_back = false;
	for (size_t i = 0; i < rs->n_ranges; i++) {
		const struct msg_range *g = &rs->ranges[i];

		if (fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)g->start, (off_t)(g->end - g->start)))
			return cr_err_sys(err, "memory for %llu bytes of shared memory",
					  (unsigned long long)(g->end - g->start));
		for (uint64_t p = g->start / CR_PAGE_SIZE; p < g->end / CR_PAGE_SIZE; p++)
			o->left[p / 64] |= 1ull << p % 64;
	}
	return 0;
}

void lazy_take_back_object(struct lazy *l, uint32_t index)
{
	struct lazy_behind *o = behind(l, index);

	if (o)
		o->taken_back = true;
}

/* ---- the end ---- */

static int by_start(const void *a, const void *b)
{
	const struct sent_chunk *const *x = a, *const *y = b;

	return (*x)->start < (*y)->start ? -1 : (*x)->start > (*y)->start;
}

static int chunks_in_order(struct sentmap *m, struct sent_chunk ***ret, size_t *n,
			   struct cr_err *err)
{
	struct sent_chunk **v = calloc(m->n + 1, sizeof(struct sent_chunk *));

	*n = 0;
	if (!v)
		return cr_err_oom(err);
	for (size_t i = 0; i < m->cap; i++)
		if (m->slots[i].used)
			v[(*n)++] = &m->slots[i];
	qsort(v, *n, sizeof(struct sent_chunk *), by_start);
	*ret = v;
	return 0;
}

/* The missing pages of a chunk that lie in v, as a bit for each. Returns whether there are any. */
static bool bits_in(const struct sent_chunk *c, const struct vma *v, uint64_t ret[8])
{
	uint64_t first = v->start > c->start ? (v->start - c->start) / CR_PAGE_SIZE : 0;
	uint64_t end =
	    v->end < c->start + CHUNK_SIZE ? (v->end - c->start) / CR_PAGE_SIZE : CHUNK_PAGES;
	uint64_t any = 0;

	for (unsigned int i = 0; i < 8; i++) {
		uint64_t word = c->lazy[i];

		if (first > i * 64ull)
			word &= first >= (i + 1) * 64ull ? 0 : ~0ull << (first % 64);
		if (end < (i + 1) * 64ull)
			word &= end <= i * 64ull ? 0 : ~(~0ull << (end % 64));
		any |= ret[i] = word;
	}
	return any;
}

struct walk { /* over one process's missing pages */
	const struct process *p;
	struct sent_chunk **chunks; /* ascending */
	size_t n_chunks;
	/* what it makes; shared NULL: only the counts */
	struct lazy_shared *shared;
	struct lazy_space *space;
	uint64_t segs, bits;
};

/* What is eager is not missing. */
static int walk_init(struct walk *w, struct lazy_proc *lp, const struct process *p,
		     struct cr_err *err)
{
	_cleanup_free_ uint64_t *eager = NULL;
	size_t n = 0;

	*w = (struct walk){.p = p};
	if (lazy_eager_pages(p, &eager, &n))
		return cr_err_oom(err);
	for (size_t i = 0; i < n; i++) {
		struct sent_chunk *c = sentmap_chunk(&lp->left, eager[i], false);

		if (c)
			chunk_clear(c->lazy, chunk_index(eager[i]));
	}
	return chunks_in_order(&lp->left, &w->chunks, &w->n_chunks, err);
}

static void walk_done(struct walk *w)
{
	free(w->chunks);
}

static int end_seg(struct walk *w, struct lazy_seg *seg, struct cr_err *err)
{
	if (!seg->pages)
		return 0;
	if (w->shared && lazy_space_add(w->shared, w->space, seg))
		return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no room for what is missing");
	w->segs++;
	w->bits += seg->pages;
	*seg = (struct lazy_seg){0};
	return 0;
}

static bool all_are_set(const uint64_t words[8])
{
	uint64_t all = ~0ull;

	for (unsigned int i = 0; i < 8; i++)
		all &= words[i];
	return all == ~0ull;
}

/* Segments are made of whole chunks, so that bits are copied by the word; those of other mappings
 * in the first and the last of them stay clear. *k: where to begin, moved on. */
static int walk_vma(struct walk *w, const struct vma *v, size_t *k, struct cr_err *err)
{
	struct lazy_seg seg = {0};
	int r = 0;

	while (*k < w->n_chunks && w->chunks[*k]->start + CHUNK_SIZE <= v->start)
		(*k)++;
	for (size_t i = *k; i < w->n_chunks && w->chunks[i]->start < v->end && !r; i++) {
		const struct sent_chunk *c = w->chunks[i];
		uint64_t words[8];

		if (!bits_in(c, v, words))
			continue;
		if (v->page_bytes && !all_are_set(words))
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "a part of the huge page at %#llx stays behind",
					  (unsigned long long)c->start);
		if (seg.pages && c->start - seg.start - seg.pages * CR_PAGE_SIZE > GAP_BYTES)
			r = end_seg(w, &seg, err);
		if (!seg.pages)
			seg = (struct lazy_seg){.start = c->start,
						.src = c->start,
						.bit0 = w->bits,
						.huge = v->page_bytes != 0};
		seg.pages = (c->start - seg.start) / CR_PAGE_SIZE + CHUNK_PAGES;
		if (w->shared)
			lazy_mark_words(w->shared, w->space, seg.bit0 + seg.pages - CHUNK_PAGES,
					words);
	}
	return r ? r : end_seg(w, &seg, err);
}

static int walk_all(struct walk *w, struct cr_err *err)
{
	size_t k = 0;
	int r = 0;

	w->segs = w->bits = 0;
	for (size_t i = 0; i < w->p->mm.n_vmas && !r; i++)
		if (vma_is_lazy(&w->p->mm.vmas[i]))
			r = walk_vma(w, &w->p->mm.vmas[i], &k, err);
	return r;
}

/* Each mapping in which something is missing. */
static int register_all(struct lazy_proc *lp, struct shell *sh, struct walk *w, struct cr_err *err)
{
	const struct process *p = w->p;
	size_t k = 0;
	int r = 0;

	for (size_t i = 0; i < p->mm.n_vmas && !r; i++) {
		const struct vma *v = &p->mm.vmas[i];

		w->segs = 0;
		if (vma_is_lazy(v))
			r = walk_vma(w, v, &k, err);
		if (r || !w->segs)
			continue;
		/* With privileges (flags 0): faults of the kernel, in system calls, have to wait as
		 * well, and the children of the tasks are ours to serve. */
		if (lp->uffd < 0)
			lp->uffd = uffd_shell_open(sh, 0, uffd_missing_features(), err);
		r = lp->uffd < 0 ? lp->uffd : 0;
		if (!r)
			r = uffd_serve_missing(lp->uffd, v->start, v->end, err);
	}
	return r;
}

/* Every mapping of what stays behind, with nothing of it in the page tables. The kernel makes no
 * huge page of it for anybody who asks for one (MADV_COLLAPSE): it would map what is missing as
 * well. */
static int register_shared(struct lazy *l, struct lazy_proc *lp, struct shell *sh,
			   const struct process *p, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);
	int r = 0;

	for (size_t i = 0; i < p->mm.n_vmas && !r; i++) {
		const struct vma *v = &p->mm.vmas[i];

		const struct lazy_behind *o = behind_of(l, v);

		if (!o)
			continue;
		/* a kernel without huge pages says EINVAL */
		if (!o->huge)
			rqueue(rt, NULL, SYS_madvise, v->start, v->end - v->start, MADV_NOHUGEPAGE);
		rqueue(rt, "MADV_DONTNEED", SYS_madvise, v->start, v->end - v->start,
		       MADV_DONTNEED);
		r = rtask_run(rt, err);
		if (!r && lp->uffd < 0)
			lp->uffd = uffd_shell_open(sh, 0, uffd_missing_features(), err);
		if (!r)
			r = lp->uffd < 0 ? lp->uffd : 0;
		if (!r)
			r = uffd_serve_shared(lp->uffd, v->start, v->end, err);
	}
	return r;
}

static int on_shown(const struct page_extent *e, void *arg, struct cr_err *err)
{
	(void)e, (void)err;
	*(bool *)arg = true;
	return 0;
}

/* Has somebody who looked into the shell had the kernel fill its page tables meanwhile? */
static int shows_shared(struct lazy *l, const struct shell *sh, const struct process *p, bool *ret,
			struct cr_err *err)
{
	_cleanup_fd_ int fd = pagemap_open(sh->pid, err);
	int r = fd < 0 ? fd : 0;

	*ret = false;
	for (size_t i = 0; i < p->mm.n_vmas && !r; i++) {
		const struct pagemap_query q = {.start = p->mm.vmas[i].start,
						.end = p->mm.vmas[i].end,
						.mask = PAGE_CAT_PRESENT,
						.ret = PAGE_CAT_PRESENT};

		if (behind_of(l, &p->mm.vmas[i]))
			r = pagemap_walk(fd, &q, on_shown, ret, err);
	}
	return r;
}

struct intruders { /* pages that are missing, and there */
	struct lazy_proc *lp;
	VEC(struct msg_range) list;
};

static int on_intruders(struct intruders *in, const struct page_extent *e, uint64_t page_bytes,
			struct cr_err *err)
{
	for (uint64_t va = e->start; va < e->end; va += page_bytes) {
		const struct sent_chunk *c = sentmap_chunk(&in->lp->left, va, false);

		if (!c || !chunk_test(c->lazy, chunk_index(va)))
			continue;
		struct msg_range *g = vec_push(&in->list);
		if (!g)
			return cr_err_oom(err);
		*g = (struct msg_range){va, va + page_bytes};
	}
	return 0;
}

static int on_zero_page(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return on_intruders(arg, e, CR_PAGE_SIZE, err);
}

/* Reading makes none of zeros there, but one like any other. */
static int on_huge_page(const struct page_extent *e, void *arg, struct cr_err *err)
{
	return on_intruders(arg, e, LAZY_HUGE_BYTES, err);
}

static int find_intruders(struct intruders *in, const struct shell *sh, const struct walk *w,
			  struct cr_err *err)
{
	const struct mm *mm = &w->p->mm;
	_cleanup_fd_ int fd = pagemap_open(sh->pid, err);
	int r = fd < 0 ? fd : 0;

	in->list.n = 0;
	for (size_t i = 0; i < mm->n_vmas && !r; i++) {
		const struct vma *v = &mm->vmas[i];
		uint64_t half = v->start + (v->end - v->start) / 2;
		uint64_t what = v->page_bytes ? PAGE_CAT_PRESENT : PAGE_CAT_PFNZERO;
		const struct pagemap_query q = {
		    .start = v->start,
		    .end = v->end,
		    .mask = what,
		    .ret = what,
		    .split = v->end - v->start < PAGEMAP_SPLIT_BYTES ? 0 : half & ~0xfffull,
		};

		if (vma_is_lazy(v))
			r = pagemap_walk(fd, &q, v->page_bytes ? on_huge_page : on_zero_page, in,
					 err);
	}
	return r;
}

/* Whoever reads out of the shell meanwhile (/proc/PID/cmdline, as ps(1) does) has the kernel put a
 * page of zeros where one is missing: it would be taken for the one that is to be fetched. None
 * comes once the mappings are registered, so there they are looked for; the mappings are let go
 * for as long as it takes to discard them. */
static int register_clean(struct lazy *l, struct lazy_proc *lp, struct shell *sh, struct walk *w,
			  struct cr_err *err)
{
	struct intruders in = {.lp = lp};
	bool shown = false;
	int r = -EAGAIN;

	for (unsigned int i = 0; i < REGISTER_ATTEMPTS && r == -EAGAIN; i++) {
		r = in.list.n ? discard(sh, in.list.v, in.list.n, err) : 0;
		if (!r)
			r = register_all(lp, sh, w, err);
		if (!r)
			r = register_shared(l, lp, sh, w->p, err);
		if (!r && lp->uffd >= 0)
			r = find_intruders(&in, sh, w, err);
		if (!r)
			r = shows_shared(l, sh, w->p, &shown, err);
		if (r || (!in.list.n && !shown))
			break;
		close_fdp(&lp->uffd);
		r = cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
			       "somebody reads out of its memory all the time");
	}
	vec_done(&in.list);
	return r;
}

static size_t count_shared(struct lazy *l, const struct process *p)
{
	size_t n = 0;

	for (size_t i = 0; i < p->mm.n_vmas; i++)
		n += behind_of(l, &p->mm.vmas[i]) != NULL;
	return n;
}

int lazy_register(struct lazy *l, struct shell *sh, const struct process *p, struct cr_err *err)
{
	size_t shared = count_shared(l, p);
	struct lazy_proc *lp = proc_of(l, sh->pid, shared > 0);
	_cleanup_(walk_done) struct walk w = {0};

	if (!lp)
		return shared ? cr_err_oom(err) : 0;
	int r = walk_init(&w, lp, p, err);
	if (!r)
		r = register_clean(l, lp, sh, &w, err);
	if (!r)
		r = walk_all(&w, err);
	if (r)
		return cr_err_ctx(err, "memory of %d that is to be fetched", sh->pid);
	lp->segs = w.segs + shared;
	lp->bits = w.bits;
	return 0;
}

static int add_shared(struct lazy *l, struct lazy_space *sp, const struct process *p,
		      struct cr_err *err)
{
	for (size_t i = 0; i < p->mm.n_vmas; i++) {
		const struct vma *v = &p->mm.vmas[i];

		if (!behind_of(l, v))
			continue;
		const struct lazy_object *o = lazy_object_of(l->shared, v->object);
		const struct lazy_seg seg = {.start = v->start,
					     .pages = (v->end - v->start) / CR_PAGE_SIZE,
					     .src = v->offset,
					     .object = (uint32_t)(o - l->shared->objects) + 1};
		if (lazy_space_add(l->shared, sp, &seg))
			return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no room for shared memory");
	}
	return 0;
}

static int add_objects(struct lazy *l, const struct tree *t, struct cr_err *err)
{
	vec_foreach (o, &l->objects) {
		if (o->taken_back)
			continue;
		if (!object_is_lazy(t, o->index))
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "shared memory %u cannot stay behind", o->index);
		if (o->bytes != ALIGN_UP(t->objects[o->index].size, (uint64_t)CR_PAGE_SIZE))
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "shared memory %u has another size now", o->index);
		if (lazy_object_add(l->shared, o->index, o->fd, o->bytes / CR_PAGE_SIZE,
				    o->huge ? LAZY_HUGE_PAGES : 1, o->left))
			return cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG,
					  "more than %d pieces of shared memory are missing; use "
					  "--mode precopy",
					  LAZY_OBJECTS);
		o->fd = -1; /* the state's now */
	}
	return 0;
}

/* What was noted of one process, as a space. */
static int make_space(struct lazy *l, struct lazy_proc *lp, const struct process *p,
		      struct cr_err *err)
{
	_cleanup_(walk_done) struct walk w = {0};
	int r = walk_init(&w, lp, p, err);

	if (r)
		return r;
	w.shared = l->shared;
	w.space = lazy_space_new(l->shared, lp->uffd, p->pid);
	if (!w.space)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG,
				  "pages are missing in more than %d processes; use --mode precopy",
				  LAZY_SPACES);
	r = walk_all(&w, err);
	if (!r)
		r = add_shared(l, w.space, p, err);
	if (r)
		return r;
	lp->uffd = -1; /* the space's now */
	w.space->used = 1;
	return 0;
}

int lazy_make_spaces(struct lazy *l, const struct tree *t, struct cr_err *err)
{
	uint64_t segs = 0, bits = 0, object_pages = 0;
	int r;

	vec_foreach (lp, &l->procs) {
		segs = lp->segs > segs ? lp->segs : segs;
		bits = lp->bits > bits ? lp->bits : bits;
	}
	vec_foreach (o, &l->objects)
		object_pages += o->bytes / CR_PAGE_SIZE;
	r = lazy_state_new(&l->shared, segs, bits, object_pages, (uint32_t)l->objects.n, err);
	if (!r)
		r = add_objects(l, t, err);
	vec_foreach (lp, &l->procs) {
		const struct process *p = tree_find_process(t, lp->pid);

		if (!r && p && lp->uffd >= 0)
			r = make_space(l, lp, p, err);
	}
	return r;
}
