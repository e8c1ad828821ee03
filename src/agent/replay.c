#include "agent/replay.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "agent/replay_copy.h"
#include "model/layout.h"
#include "model/lazy.h"
#include "wire/lazy_stream.h"
#include "pageserver/place.h"

struct replay {
	const struct replay_from *from;
	const struct process *p; /* whose pages these are; NULL: an object's */
	uint64_t *eager;         /* lazy_eager_pages() of it */
	size_t n_eager;
	uint64_t left;          /* pages that were not placed */
	uint8_t *buf;           /* LAZY_PAGES_MAX pages */
	struct targets targets; /* by the image's numbers, which seed the hashes */
	struct place_memory mem;
	const struct image_pages *pages;
	const uint8_t *map;       /* of the page file; NULL: it has none */
	struct replay_copy *copy; /* its shell began as a copy of another; else NULL */
	struct page_ack placed;
	struct page_digest want; /* of the data pages placed */
};

/* ---- where the pages go ---- */

static int target_of_process(pid_t pid, const struct shells *s, struct target *t,
			     struct cr_err *err)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	t->kind = TARGET_PROCESS;
	t->pid = pid;
	t->forbid_start = s->hole_start;
	t->forbid_end = s->hole_end;
	t->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (t->pidfd < 0)
		return cr_err_sys(err, "pidfd_open of %d", pid);
	t->fd = open(path, O_RDWR | O_CLOEXEC);
	return t->fd < 0 ? cr_err_sys(err, "open %s", path) : 0;
}

static int target_of_object(int fd, struct target *t, struct cr_err *err)
{
	t->kind = TARGET_OBJECT;
	t->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return t->fd < 0 ? cr_err_sys(err, "descriptor of an object") : 0;
}

static int add_target(struct replay *rp, const struct dest *d, const struct image_target *it,
		      pid_t pid, size_t object, struct cr_err *err)
{
	struct target *t = calloc(1, sizeof(*t));

	if (!t)
		return cr_err_oom(err);
	t->pidfd = t->fd = t->uffd = -1;
	int r = pid ? target_of_process(pid, d->shells, t, err)
		    : target_of_object(d->objects.list.v[object].fd, t, err);
	if (r) {
		target_free(t);
		return r;
	}
	return targets_set(&rp->targets, it->pages.target, t, err);
}

/* ---- the page file ---- */

int replay_map(const struct image_pages *p, const uint8_t **ret, struct cr_err *err)
{
	size_t bytes = p->slots * IMAGE_CHUNK_BYTES;
	struct stat sb;

	*ret = NULL;
	if (fstat(p->fd, &sb))
		return cr_err_sys(err, "pages-%u", p->target);
	if ((uint64_t)sb.st_size < bytes)
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "pages-%u: cut off: %lld bytes where %zu belong", p->target,
				  (long long)sb.st_size, bytes);
	if (!bytes)
		return 0;
	void *m = mmap(NULL, bytes, PROT_READ, MAP_SHARED, p->fd, 0);
	if (m == MAP_FAILED)
		return cr_err_sys(err, "map pages-%u", p->target);
	*ret = m;
	return 0;
}

void replay_unmap(const struct image_pages *p, const uint8_t *map)
{
	if (map)
		munmap((void *)map, p->slots * IMAGE_CHUNK_BYTES);
}

/* ---- placing ---- */

static int place_here(struct replay *rp, uint64_t va, enum page_kind kind, unsigned int n,
		      const uint8_t *data, struct cr_err *err)
{
	struct page_wire_run run = {.kind = (uint8_t)kind, .addr = va, .npages = n};
	struct page_batch b = {.target = rp->pages->target, .nruns = 1, .runs = &run};

	if (kind == PAGE_DATA) {
		b.payload = data;
		b.wire_bytes = b.data_bytes = n * CR_PAGE_SIZE;
	}
	return place_batch(&rp->targets, &b, &rp->mem, &rp->placed, err);
}

/* What has to be asked for, a few pages at a time. */
static int fetch_pages(struct replay *rp, uint64_t va, unsigned int n, struct cr_err *err)
{
	int r = 0;

	for (unsigned int at = 0, k; at < n && !r; at += k) {
		uint64_t from = va + at * CR_PAGE_SIZE;

		k = n - at < LAZY_PAGES_MAX ? n - at : LAZY_PAGES_MAX;
		r = rp->from->read(rp->from->arg, rp->p ? rp->p->pid : 0, rp->pages->target, from,
				   k, rp->buf, err);
		if (!r)
			r = place_here(rp, from, PAGE_DATA, k, rp->buf, err);
	}
	return r;
}

static int place_run(struct replay *rp, const struct image_chunk *c, enum page_kind kind,
		     unsigned int first, unsigned int n, struct cr_err *err)
{
	uint64_t va = c->va + first * CR_PAGE_SIZE;

	if (kind != PAGE_DATA)
		return place_here(rp, va, kind, n, NULL, err);
	for (unsigned int i = first; i < first + n; i++)
		page_digest_add(&rp->want, c->hash[i]);
	if (rp->from->read)
		return fetch_pages(rp, va, n, err);
	const uint8_t *data = rp->map + image_page_offset(c, first);
	/* in one go instead of page by page; where it cannot be had (5.14), touching does it */
	if (madvise((void *)data, n * CR_PAGE_SIZE, MADV_POPULATE_READ))
		errno = 0;
	return place_here(rp, va, kind, n, data, err);
}

static int place_bits(struct replay *rp, const struct image_chunk *c, enum page_kind kind,
		      const uint64_t bits[8], struct cr_err *err)
{
	int r = 0;

	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES && !r; i++) {
		unsigned int first = i;

		if (!(bits[i / 64] >> (i % 64))) {
			i |= 63;
			continue;
		}
		while (i < IMAGE_CHUNK_PAGES && image_bit(bits, i))
			i++;
		if (i > first)
			r = place_run(rp, c, kind, first, i - first, err);
	}
	return r;
}

/* Which pages of bits may be missing when the task runs: they are taken out, and noted. */
static int leave_lazy(struct replay *rp, const struct image_chunk *c, uint64_t bits[8],
		      struct cr_err *err)
{
	const struct mm *mm = rp->p ? &rp->p->mm : NULL;
	int r = 0;

	if (!rp->from->lazy || !mm)
		return 0;
	for (size_t i = layout_lower(mm->vmas, mm->n_vmas, c->va);
	     i < mm->n_vmas && mm->vmas[i].start < c->va + IMAGE_CHUNK_BYTES && !r; i++) {
		const struct vma *v = &mm->vmas[i];
		/* of a huge page the image may have a part */
		bool may = vma_is_lazy(v) && !v->page_bytes;

		for (unsigned int k = 0; k < IMAGE_CHUNK_PAGES && may && !r; k++) {
			uint64_t va = c->va + k * CR_PAGE_SIZE;

			if (va < v->start || va >= v->end || !image_bit(bits, k) ||
			    lazy_is_eager(rp->eager, rp->n_eager, va))
				continue;
			bits[k / 64] &= ~(1ull << (k % 64));
			rp->left++;
			r = lazy_note(rp->from->lazy, rp->p->pid, va, va + CR_PAGE_SIZE, err);
		}
	}
	return r;
}

static int place_data(struct replay *rp, const struct image_chunk *c, struct cr_err *err)
{
	uint64_t bits[8];

	memcpy(bits, c->data, sizeof(bits));
	int r = leave_lazy(rp, c, bits, err);
	if (!r && rp->copy)
		r = replay_copy_shared(rp->copy, c, rp->map, bits, err);
	return r ? r : place_bits(rp, c, PAGE_DATA, bits, err);
}

static int place_stray(void *arg, uint64_t va, const uint8_t *page, struct cr_err *err)
{
	struct replay *rp = arg;

	return place_here(rp, va, page ? PAGE_DATA : PAGE_ZERO, 1, page, err);
}

/* Which page was it? Only asked once the sum has told that there is one. */
static int name_the_damage(const struct image_pages *p, struct cr_err *err)
{
	uint8_t page[CR_PAGE_SIZE];

	if (p->fd < 0)
		return cr_err_set(err, CR_ERR_PEER, EBADMSG,
				  "pages of target %u are not those of the index here", p->target);
	vec_foreach (cp, &p->chunks)
		for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++) {
			int r = image_pages_read(p, (*cp)->va + i * CR_PAGE_SIZE, page, NULL, err);

			if (r)
				return r;
		}
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG, "pages-%u: changed while it was read",
			  p->target);
}

static int place_target(struct replay *rp, struct cr_err *err)
{
	int r = rp->from->read ? 0 : replay_map(rp->pages, &rp->map, err);

	rp->placed = (struct page_ack){0};
	rp->want = (struct page_digest){0};
	vec_foreach (cp, &rp->pages->chunks) {
		if (!r)
			r = place_data(rp, *cp, err);
	}
	replay_unmap(rp->pages, rp->map);
	rp->map = NULL;
	if (!r && !page_digest_equal(rp->want, rp->placed.digest))
		r = name_the_damage(rp->pages, err);
	vec_foreach (cp, &rp->pages->chunks) {
		if (!r)
			r = place_bits(rp, *cp, PAGE_ZERO, (*cp)->zero, err);
	}
	if (!r && rp->copy)
		r = replay_copy_strays(rp->copy, place_stray, rp, err);
	return r;
}

static int no_pages(size_t which, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
			  "the image has no pages of process or object %zu", which);
}

static void count(const struct replay *rp, struct replay_stats *ret)
{
	ret->data_pages += rp->placed.data_pages;
	ret->zero_pages += rp->placed.zero_pages;
}

static void replay_copy_freep(struct replay_copy **c)
{
	replay_copy_free(*c);
}

static int replay_process(struct replay *rp, const struct dest *d, const struct image *im,
			  struct shell *sh, struct replay_stats *ret, struct cr_err *err)
{
	const struct image_target *it = image_find(im, sh->pid, 0, 0);
	_cleanup_(replay_copy_freep) struct replay_copy *copy = NULL;

	if (!it)
		return no_pages((size_t)sh->pid, err);
	rp->pages = &it->pages;
	rp->p = tree_find_process(d->tree, sh->pid);
	int r = add_target(rp, d, it, sh->pid, 0, err);
	if (!r && rp->p && lazy_eager_pages(rp->p, &rp->eager, &rp->n_eager))
		r = cr_err_oom(err);
	if (!r && rp->p && sh->copy_of) {
		const struct image_target *of = image_find(im, sh->copy_of, 0, 0);

		r = of ? replay_copy_new(&copy, rp->p, rp->pages, sh->copy_of, &of->pages,
					 rp->eager, rp->n_eager, err)
		       : no_pages((size_t)sh->copy_of, err);
	}
	rp->copy = copy;
	if (!r)
		r = place_target(rp, err);
	rp->copy = NULL;
	free(take_ptr(rp->eager));
	rp->n_eager = 0;
	sh->copy_of = 0;
	sh->replayed = true;
	ret->shared_pages += copy ? replay_copy_count(copy) : 0;
	count(rp, ret);
	return r;
}

static int replay_object(struct replay *rp, const struct dest *d, const struct image *im,
			 size_t object, struct replay_stats *ret, struct cr_err *err)
{
	const struct shared_object *so = &d->tree->objects[object];
	const struct image_target *it = image_find(im, 0, so->ino, so->dev);

	if (!it)
		return no_pages(object, err);
	rp->pages = &it->pages;
	rp->p = NULL;
	int r = add_target(rp, d, it, 0, object, err);
	if (!r)
		r = place_target(rp, err);
	count(rp, ret);
	return r;
}

int replay_pages(struct dest *d, const struct image *im, const struct replay_from *from,
		 struct replay_stats *ret, struct cr_err *err)
{
	_cleanup_free_ uint8_t *buf = malloc(LAZY_PAYLOAD_MAX);
	struct replay rp = {.from = from, .buf = buf};
	int r = buf ? 0 : cr_err_oom(err);
	void *zeros = mmap(NULL, PAGE_BATCH_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (zeros == MAP_FAILED)
		return cr_err_oom(err);
	rp.mem.zeros = zeros;
	for (size_t i = 0; i < d->tree->n_procs && !r; i++) {
		struct shell *sh = shells_find(d->shells, d->tree->procs[i].pid);

		if (sh && !d->tree->procs[i].zombie && !sh->replayed)
			r = replay_process(&rp, d, im, sh, ret, err);
	}
	for (size_t i = 0; i < d->tree->n_objects && !r && !from->more; i++)
		r = replay_object(&rp, d, im, i, ret, err);
	ret->left_pages += rp.left;
	targets_done(&rp.targets);
	munmap(zeros, PAGE_BATCH_BYTES);
	return r;
}
