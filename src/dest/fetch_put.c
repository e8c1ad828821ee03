/* Pages into their place. */
#include <string.h>
#include <time.h>
#include "base/log.h"
#include "dest/fetch.h"
#include "kernel/uffd.h"

/* In one step: as long as it takes, a fault waits for the lock. */
enum { STEP_PAGES = 16 };

int put_make_way(struct fetch *f, struct lazy_space *sp, unsigned int *tries)
{
	const struct timespec pause = {.tv_nsec = 50 * 1000};
	int r = tasks_read_events(f, sp);

	if (r == 0 && ++*tries > 3)
		nanosleep(&pause, NULL);
	return r < 0 ? r : 0;
}

/* The stretch of missing pages that begins at src, here. 0: it is not missing. */
static uint32_t stretch(struct fetch *f, struct lazy_space *sp, uint64_t src, uint32_t most,
			uint64_t *va, uint64_t *bit)
{
	uint64_t page;
	uint32_t n = 1;
	struct lazy_seg *seg = lazy_find_src(f->sh, sp, src, &page);

	if (!seg || seg->huge) /* those are put as a whole */
		return 0;
	*va = seg->start + page * CR_PAGE_SIZE;
	*bit = seg->bit0 + page;
	while (n < most && page + n < seg->pages && lazy_test(f->sh, sp, *bit + n))
		n++;
	return n;
}

void put_done_with(struct fetch *f, struct lazy_space *sp, uint64_t va, uint64_t bit,
		   uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++) {
		f->st->left -= lazy_clear(f->sh, sp, bit + i);
		tasks_arrived(f, sp, va + i * CR_PAGE_SIZE);
	}
}

struct put { /* one frame's pages */
	struct fetch *f;
	const struct lazy_frame *fr;
	const uint8_t *data; /* NULL: zeros */
	enum fill fill;
	bool pushed;
	uint64_t placed;
};

int put_make_way_for(struct fetch *f, struct lazy_space *sp, bool pushed, unsigned int *tries)
{
	const struct timespec pause = {.tv_nsec = 50 * 1000};

	if (!pushed)
		return put_make_way(f, sp, tries);
	++*tries;
	pthread_mutex_unlock(&f->lock);
	nanosleep(&pause, NULL);
	pthread_mutex_lock(&f->lock);
	return 0;
}

static int64_t put_stretch(const struct put *p, const struct lazy_space *sp, uint64_t va,
			   uint32_t at, uint32_t k)
{
	const uint8_t *data = p->data ? p->data + at * CR_PAGE_SIZE : NULL;

	return p->fill == FILL_POISON ? uffd_poison(sp->uffd, va, k * CR_PAGE_SIZE)
				      : uffd_put(sp->uffd, va, data, k * CR_PAGE_SIZE);
}

/* There already, or no longer mapped: an event may say so. Returns whether to look again. */
static int pass_over(struct put *p, struct lazy_space *sp, uint64_t va, uint64_t bit, int why)
{
	int e = why == -EEXIST || p->pushed ? 0 : tasks_read_events(p->f, sp);

	if (e)
		return e < 0 ? e : 1;
	uffd_wake(sp->uffd, va, CR_PAGE_SIZE);
	put_done_with(p->f, sp, va, bit, 1);
	return 0;
}

/* Wherever they are missing in this space. */
static int put_in_space(struct put *p, struct lazy_space *sp)
{
	const struct lazy_frame *fr = p->fr;
	struct fetch *f = p->f;
	unsigned int tries = 0;
	bool single = false; /* the stretch may cross from one mapping to the next */

	/* whenever the lock was let go, the space may be another's */
	for (uint32_t at = 0; at < fr->npages && sp->used && sp->origin == fr->pid;) {
		uint64_t va, bit;
		uint32_t most = fr->npages - at < STEP_PAGES ? fr->npages - at : STEP_PAGES;
		uint32_t k =
		    stretch(f, sp, fr->addr + at * CR_PAGE_SIZE, single ? 1 : most, &va, &bit);
		int64_t r;
		int e = 0;

		if (!k) {
			at++;
			continue;
		}
		r = put_stretch(p, sp, va, at, k);
		if (r > 0) {
			uint32_t pages = (uint32_t)((uint64_t)r / CR_PAGE_SIZE);

			put_done_with(f, sp, va, bit, pages);
			at += pages;
			p->placed += pages;
			single = false;
		} else if (r == -ESRCH) {
			tasks_drop_space(f, sp);
		} else if (r == -EAGAIN || r == -ENOMEM) {
			e = put_make_way_for(f, sp, p->pushed, &tries);
		} else if ((r == -ENOENT || r == -EINVAL || r == -EEXIST) && k > 1) {
			single = true;
		} else if (r == -EEXIST || r == -ENOENT || r == -EINVAL) {
			e = pass_over(p, sp, va, bit, (int)r);
			at += e == 0;
			single = single && e == 1;
		} else {
			log_error("fetching pages: page %#llx: %s", (unsigned long long)va,
				  strerror((int)-r));
			e = (int)r;
		}
		if (e < 0)
			return e;
		if (p->pushed) { /* a fault may wait */
			pthread_mutex_unlock(&f->lock);
			pthread_mutex_lock(&f->lock);
		}
	}
	return 0;
}

/* A child that comes meanwhile lacks what its parent lacked, wherever its space is. */
static int put_in_spaces(struct put *p)
{
	struct fetch *f = p->f;
	uint64_t forks;
	int r = 0;

	do {
		forks = f->forks;
		for (size_t i = 0; i < f->sh->top && !r; i++) {
			struct lazy_space *sp = &f->sh->spaces[i];

			if (sp->used && sp->origin == p->fr->pid)
				r = put_in_space(p, sp);
		}
	} while (!r && forks != f->forks);
	return r;
}

int put_pages(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data, enum fill fill,
	      bool pushed)
{
	struct put p = {.f = f, .fr = fr, .data = data, .fill = fill, .pushed = pushed};
	int r = 0;

	if (fr->pid >= LAZY_OBJECT)
		return objects_put(f, fr, data, fill, pushed);
	pthread_mutex_lock(&f->lock);
	int huge = huge_put(f, fr, data, fill, pushed, &p.placed);
	r = huge < 0 ? huge : 0;
	if (!huge)
		r = put_in_spaces(&p);
	if (pushed)
		f->st->pushed += p.placed;
	if (fill == FILL_POISON)
		f->st->lost += p.placed;
	pthread_mutex_unlock(&f->lock);
	return r;
}

/* ---- the end ---- */

static void poison_seg(struct fetch *f, const struct lazy_space *sp, const struct lazy_seg *seg)
{
	const struct lazy_seg was = *seg;
	uint64_t had = f->st->lost;
	pid_t origin = sp->origin;

	for (uint64_t p = 0; p < was.pages; p += LAZY_PAGES_MAX) {
		uint64_t n = was.pages - p < LAZY_PAGES_MAX ? was.pages - p : LAZY_PAGES_MAX;
		const struct lazy_frame fr = {
		    .pid = origin, .npages = (uint32_t)n, .addr = was.src + p * CR_PAGE_SIZE};

		if (put_pages(f, &fr, NULL, FILL_POISON, false))
			break;
	}
	const uint64_t end = was.start + was.pages * CR_PAGE_SIZE;
	if (f->st->lost == had)
		return;
	tasks_note_loss(f, origin, was.start, end, f->st->lost - had);
	log_error("fetching pages: %llu pages of process %d at %#llx-%#llx are lost with "
		  "the source: SIGBUS for who touches them",
		  (unsigned long long)(f->st->lost - had), origin, (unsigned long long)was.start,
		  (unsigned long long)end);
}

void put_poison_all(struct fetch *f)
{
	for (size_t i = 0; i < f->sh->top; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];
		uint32_t n;
		const struct lazy_seg *v = lazy_segs(f->sh, sp, &n);

		for (uint32_t k = 0; sp->used && k < n; k++)
			if (!v[k].object)
				poison_seg(f, sp, &v[k]);
	}
	pthread_mutex_lock(&f->lock);
	objects_lose_all(f);
	pthread_mutex_unlock(&f->lock);
}
