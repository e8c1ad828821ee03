/* Private huge pages (hugetlb). They can only be put as a whole: what comes of one, over whichever
 * connections, is kept until nothing of it lacks. Until it is in place it is missing, so that
 * whoever takes over, or a new connection, asks for all of it. */
#include <string.h>
#include <sys/mman.h>
#include "base/log.h"
#include "dest/fetch.h"
#include "kernel/uffd.h"
#include "model/lazy.h"

enum {
	TRIES_MAX = 64, /* for a page out of the pool that is reserved for nobody */
	/* at a time: more than can be on the way, of connections of which one is slow */
	STAGED_MAX = 1024,
};

/* Is a huge page missing in this space, that was at src at the source? *va: where it is here. */
static bool is_missing(struct fetch *f, struct lazy_space *sp, uint64_t src, uint64_t *va,
		       uint64_t *bit)
{
	uint64_t page;
	const struct lazy_seg *seg = lazy_find_src(f->sh, sp, src, &page);

	if (!seg || !seg->huge)
		return false;
	*va = seg->start + page * CR_PAGE_SIZE;
	*bit = seg->bit0 + page;
	return true;
}

static bool is_missing_anywhere(struct fetch *f, pid_t origin, uint64_t src)
{
	uint64_t va, bit;

	for (size_t i = 0; i < f->sh->top; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];

		if (sp->used && sp->origin == origin && is_missing(f, sp, src, &va, &bit))
			return true;
	}
	return false;
}

/* ---- what has come of it ---- */

static struct staged *find_staged(struct fetch *f, pid_t origin, uint64_t src)
{
	vec_foreach (s, &f->staged)
		if (s->origin == origin && s->src == src)
			return s;
	return NULL;
}

static struct staged *stage(struct fetch *f, pid_t origin, uint64_t src)
{
	struct staged *s = find_staged(f, origin, src);

	if (s)
		return s;
	/* memory is taken where it is written to */
	void *mem =
	    mmap(NULL, LAZY_HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	s = mem == MAP_FAILED ? NULL : vec_push(&f->staged);
	if (s)
		*s = (struct staged){.origin = origin, .src = src, .mem = mem};
	else if (mem != MAP_FAILED)
		munmap(mem, LAZY_HUGE_BYTES);
	return s;
}

/* Whoever has taken it out frees it. */
static struct staged take_out(struct fetch *f, struct staged *s)
{
	struct staged was = *s;

	*s = f->staged.v[--f->staged.n];
	return was;
}

static void unstage(struct fetch *f, pid_t origin, uint64_t src)
{
	struct staged *s = find_staged(f, origin, src);

	if (s) {
		struct staged was = take_out(f, s);
		munmap(was.mem, LAZY_HUGE_BYTES);
	}
}

void huge_forget_staged(struct fetch *f)
{
	vec_foreach (s, &f->staged)
		munmap(s->mem, LAZY_HUGE_BYTES);
	vec_done(&f->staged);
}

static bool is_whole(const struct staged *s)
{
	uint64_t all = ~0ull;

	for (size_t i = 0; i < ARRAY_SIZE(s->have); i++)
		all &= s->have[i];
	return all == ~0ull;
}

/* first: of the pages in s. */
static void note_pages(struct staged *s, unsigned int first, uint32_t n, const uint8_t *data)
{
	for (unsigned int i = first; i < first + n; i++) {
		bool had = s->have[i / 64] >> (i % 64) & 1;

		if (!had && data)
			memcpy(s->mem + i * CR_PAGE_SIZE, data + (i - first) * CR_PAGE_SIZE,
			       CR_PAGE_SIZE);
		s->have[i / 64] |= 1ull << (i % 64);
	}
}

/* ---- into its place ---- */

struct put {
	struct fetch *f;
	const uint8_t *mem; /* NULL: poison */
	bool pushed;
	uint64_t pages;
};

static int64_t put_whole(const struct put *p, const struct lazy_space *sp, uint64_t va)
{
	return p->mem ? uffd_put(sp->uffd, va, p->mem, LAZY_HUGE_BYTES)
		      : uffd_poison(sp->uffd, va, LAZY_HUGE_BYTES);
}

/* A child has no page reserved, fork(2): what its parent lacked it may get only if one is free.
 * Returns as uffd_put(). */
static int64_t do_without(const struct put *p, const struct lazy_space *sp, uint64_t va)
{
	log_error(
	    "fetching pages: no huge page is free for a child of process %d, at %#llx: SIGBUS "
	    "for who touches it",
	    sp->origin, (unsigned long long)va);
	p->f->st->lost += LAZY_HUGE_PAGES;
	return uffd_poison(sp->uffd, va, LAZY_HUGE_BYTES);
}

/* Whenever the lock was let go, the space may be another's, and the page elsewhere. */
static int put_in_space(struct put *p, struct lazy_space *sp, pid_t origin, uint64_t src)
{
	struct fetch *f = p->f;
	uint64_t va, bit;
	unsigned int tries = 0;
	int e = 0;

	while (!e && sp->used && sp->origin == origin && is_missing(f, sp, src, &va, &bit)) {
		int64_t r = put_whole(p, sp, va);

		if (r == -ENOMEM && tries > TRIES_MAX)
			r = do_without(p, sp, va);
		if (r > 0) {
			put_done_with(f, sp, va, bit, LAZY_HUGE_PAGES);
			p->pages += LAZY_HUGE_PAGES;
		} else if (r == -ESRCH) {
			tasks_drop_space(f, sp);
		} else if (r == -EAGAIN || r == -ENOMEM) {
			e = put_make_way_for(f, sp, p->pushed, &tries);
		} else if (r == -EEXIST || r == -ENOENT || r == -EINVAL) {
			/* there already, or no longer mapped: an event may say so */
			e = r == -EEXIST || p->pushed ? 0 : tasks_read_events(f, sp);
			if (e > 0) {
				e = 0;
				continue;
			}
			uffd_wake(sp->uffd, va, LAZY_HUGE_BYTES);
			put_done_with(f, sp, va, bit, LAZY_HUGE_PAGES);
		} else {
			log_error("fetching pages: huge page %#llx: %s", (unsigned long long)va,
				  strerror((int)-r));
			e = (int)r;
		}
	}
	return e;
}

static int put_everywhere(struct put *p, pid_t origin, uint64_t src)
{
	struct fetch *f = p->f;
	uint64_t forks;
	int r = 0;

	do {
		forks = f->forks;
		for (size_t i = 0; i < f->sh->top && !r; i++)
			r = put_in_space(p, &f->sh->spaces[i], origin, src);
	} while (!r && forks != f->forks);
	/* what came of it once more, meanwhile */
	unstage(f, origin, src);
	return r;
}

int huge_put(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data, enum fill fill,
	     bool pushed, uint64_t *pages)
{
	uint64_t src = fr->addr & ~(LAZY_HUGE_BYTES - 1);
	unsigned int first = (unsigned int)((fr->addr - src) / CR_PAGE_SIZE);
	struct put p = {.f = f, .pushed = pushed};
	int r;

	if (!is_missing_anywhere(f, fr->pid, src))
		return 0;
	if (first + fr->npages > LAZY_HUGE_PAGES) {
		f->lost_why = "pages across the end of a huge page";
		return 1;
	}
	if (fill == FILL_POISON) {
		r = put_everywhere(&p, fr->pid, src);
	} else {
		if (f->staged.n >= STAGED_MAX && !find_staged(f, fr->pid, src)) {
			/* beside the pages themselves: it would take as much memory again */
			f->lost_why = "parts of too many huge pages, and none of them whole";
			return 1;
		}
		struct staged *s = stage(f, fr->pid, src);
		if (!s)
			return -ENOMEM;
		note_pages(s, first, fr->npages, data);
		if (!is_whole(s))
			return 1;
		struct staged whole = take_out(f, s);
		p.mem = whole.mem;
		r = put_everywhere(&p, fr->pid, src);
		munmap(whole.mem, LAZY_HUGE_BYTES);
	}
	*pages = p.pages;
	return r ? r : 1;
}

/* ---- zeros ---- */

int huge_give_zeros(struct fetch *f, struct lazy_space *sp, uint64_t va)
{
	void *zeros = mmap(NULL, LAZY_HUGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned int tries = 0;
	uint64_t page;
	int r = zeros == MAP_FAILED ? -ENOMEM : 0;

	/* by a move it may become missing: then it will be asked for */
	while (!r && sp->used && !lazy_find_here(f->sh, sp, va, &page)) {
		int64_t n = uffd_put(sp->uffd, va, zeros, LAZY_HUGE_BYTES);

		if (n == -ENOMEM && tries > TRIES_MAX)
			n = uffd_poison(sp->uffd, va, LAZY_HUGE_BYTES);
		if (n != -EAGAIN && n != -ENOMEM)
			break;
		r = put_make_way(f, sp, &tries);
	}
	if (sp->used)
		uffd_wake(sp->uffd, va, LAZY_HUGE_BYTES);
	if (zeros != MAP_FAILED)
		munmap(zeros, LAZY_HUGE_BYTES);
	return r;
}
