/* Shared memory: pages into objects, and then to whoever waits for them. lazy_state.h says how what
 * is missing, what is there and what was removed are told apart. Huge pages are filled in pages of
 * 4 KiB like others; but they are removed, and show or are lost, as a whole: a *unit*. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "base/log.h"
#include "dest/fetch.h"
#include "kernel/uffd.h"
#include "model/lazy.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* 5.14 */
#endif

enum {
	STEP_PAGES = 16,   /* with the lock, as in fetch_put.c */
	AROUND_PAGES = 32, /* shown with the one that was touched */
};

static size_t position(const struct fetch *f, const struct lazy_object *o)
{
	return (size_t)(o - f->sh->objects);
}

/* The first page of the unit. */
static uint64_t first_of(const struct lazy_object *o, uint64_t page)
{
	return page - page % o->unit;
}

static uint64_t unit_bytes(const struct lazy_object *o)
{
	return o->unit * CR_PAGE_SIZE;
}

static pid_t origin_of(const struct lazy_object *o)
{
	return LAZY_OBJECT + (pid_t)o->index;
}

/* ---- our own mappings ---- */

int objects_guard(struct fetch *f, struct cr_err *err)
{
	for (uint32_t i = 0; i < f->sh->n_objects; i++) {
		const struct lazy_object *o = &f->sh->objects[i];
		size_t bytes = o->pages * CR_PAGE_SIZE;
		void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, 0);

		if (p == MAP_FAILED)
			return cr_err_sys(err, "mapping shared memory");
		f->guards[i] = p;
		lazy_close(&f->sh->guard_fds[i]); /* of a fetcher before */
		f->sh->guard_fds[i] = uffd_guard(p, bytes, err);
		if (f->sh->guard_fds[i] < 0)
			return f->sh->guard_fds[i];
	}
	return 0;
}

static struct iovec of_guard(const struct fetch *f, const struct lazy_object *o, uint64_t page,
			     uint64_t pages)
{
	return (struct iovec){f->guards[position(f, o)] + page * CR_PAGE_SIZE,
			      pages * CR_PAGE_SIZE};
}

/* 1, 0, or a negative errno if that cannot be found out. madvise(2): EFAULT is where a touch would
 * lead to SIGBUS, and nothing else. */
static int is_there(const struct fetch *f, const struct lazy_object *o, uint64_t page)
{
	const struct iovec g = of_guard(f, o, page, 1);

	if (!madvise(g.iov_base, g.iov_len, MADV_POPULATE_READ))
		return 1;
	return errno == EFAULT ? 0 : -errno;
}

/* How many of n pages were written: one that is not there ends it. */
static uint64_t write_over(const struct fetch *f, const struct lazy_object *o, uint64_t page,
			   uint64_t n, const uint8_t *data)
{
	struct iovec local = {(void *)data, n * CR_PAGE_SIZE}, remote = of_guard(f, o, page, n);
	ssize_t done = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);

	return done < 0 ? 0 : (uint64_t)done / CR_PAGE_SIZE;
}

/* ---- showing ---- */

static void poison(const struct lazy_space *sp, const struct lazy_object *o, uint64_t va)
{
	if (uffd_poison(sp->uffd, va, unit_bytes(o)) < 0)
		uffd_wake(sp->uffd, va, unit_bytes(o));
}

/* Pages behind one that was touched, as far as they are all there: each touch would cost a fault.
 * Of huge pages that is little.
 */
static void show_around(struct fetch *f, struct lazy_space *sp, const struct lazy_object *o,
			uint64_t page, uint64_t va, uint64_t until)
{
	uint64_t n = 1;

	while (o->unit == 1 && n < AROUND_PAGES && page + n < o->pages &&
	       va + n * CR_PAGE_SIZE < until && !lazy_object_missing(f->sh, o, page + n) &&
	       !lazy_object_lost(f->sh, o, page + n))
		n++;
	/* stops where it is shown already, or nothing is mapped */
	if (n > 1 && uffd_continue(sp->uffd, va + CR_PAGE_SIZE, (n - 1) * CR_PAGE_SIZE, true) < 0)
		return;
}

static int show(struct fetch *f, struct lazy_space *sp, const struct lazy_object *o, uint64_t page,
		uint64_t va, uint64_t until)
{
	int64_t n = uffd_continue(sp->uffd, va, unit_bytes(o), false);
	unsigned int tries = 0;

	if (n > 0)
		show_around(f, sp, o, page, va, until);
	if (n > 0)
		return 0;
	int r = n == -EAGAIN ? put_make_way(f, sp, &tries) : 0;
	/* it looks again, and so do we: another page may be there now, or none */
	if (sp->used)
		uffd_wake(sp->uffd, va, unit_bytes(o));
	return r;
}

/* va: of a huge page its beginning, as the kernel reports it. */
int objects_fault(struct fetch *f, struct lazy_space *sp, uint64_t va)
{
	uint64_t page, until;
	unsigned int tries = 0;
	struct lazy_object *o = lazy_object_at(f->sh, sp, va, &page, &until);

	if (!o) { /* what has brought it there is an event that has not been read yet */
		int r = put_make_way(f, sp, &tries);

		if (sp->used)
			uffd_wake(sp->uffd, va, CR_PAGE_SIZE);
		return r;
	}
	if (lazy_object_lost(f->sh, o, page)) {
		poison(sp, o, va);
		return 0;
	}
	if (!lazy_object_waits(f->sh, o, page))
		return show(f, sp, o, page, va, until);
	return tasks_wait_for(f, sp, va, origin_of(o), page * CR_PAGE_SIZE, o->unit);
}

/* A unit that is not there: nothing of it is missing, and nothing lost. */
static void forget(struct fetch *f, const struct lazy_object *o, uint64_t page)
{
	for (uint64_t i = first_of(o, page), end = i + o->unit; i < end; i++) {
		f->st->left -= lazy_object_clear(f->sh, o, i);
		lazy_object_found(f->sh, o, i);
	}
}

int objects_removed(struct fetch *f, const struct lazy_space *sp, uint64_t va)
{
	uint64_t page;
	struct lazy_object *o = lazy_object_at(f->sh, sp, va, &page, NULL);
	int there = o ? is_there(f, o, page) : 1;

	/* nobody but a task takes a page away, and nobody makes one before this */
	if (there)
		return there < 0 ? there : 0;
	if (o)
		forget(f, o, page);
	return 0;
}

void objects_wake(struct fetch *f, const struct lazy_space *sp)
{
	for (size_t i = 0; i < f->waiters.n;) {
		struct waiter *w = &f->waiters.v[i];

		if (w->space != sp || w->origin < LAZY_OBJECT) {
			i++;
			continue;
		}
		uffd_wake(sp->uffd, w->va, CR_PAGE_SIZE);
		*w = f->waiters.v[--f->waiters.n];
	}
}

/* Whoever waits for that page. What does not show now, because an event has to be read first or it
 * was removed, is looked at again. */
static void show_to_waiters(struct fetch *f, const struct lazy_object *o, uint64_t page)
{
	bool lost = lazy_object_lost(f->sh, o, page);
	uint64_t src = first_of(o, page) * CR_PAGE_SIZE;

	for (size_t i = 0; i < f->waiters.n;) {
		struct waiter *w = &f->waiters.v[i];

		if (w->origin != origin_of(o) || w->src != src) {
			i++;
			continue;
		}
		tasks_note_latency(f, w);
		if (lost)
			poison(w->space, o, w->va);
		else if (uffd_continue(w->space->uffd, w->va, unit_bytes(o), false) <= 0)
			uffd_wake(w->space->uffd, w->va, unit_bytes(o));
		*w = f->waiters.v[--f->waiters.n];
	}
}

/* ---- putting ---- */

static void punch(const struct lazy_object *o, uint64_t page, uint64_t n)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	if (fallocate(o->fd, mode, (off_t)(page * CR_PAGE_SIZE), (off_t)(n * CR_PAGE_SIZE)))
		log_error("fetching pages: zeros: %s", strerror(errno));
}

/* Nothing of the unit will be seen. */
static void lose(struct fetch *f, const struct lazy_object *o, uint64_t page)
{
	uint64_t first = first_of(o, page);

	for (uint64_t i = first; i < first + o->unit; i++)
		lazy_object_lose(f->sh, o, i);
	for (uint64_t i = first; i < first + o->unit; i++)
		f->st->left -= lazy_object_clear(f->sh, o, i);
	f->st->lost += o->unit;
	show_to_waiters(f, o, page);
}

/* n missing pages. First the contents, then the word that they are there: in between nobody can see
 * them, and whoever takes over does it again. Returns how many were done, or a negative errno. */
static int64_t put_missing(struct fetch *f, const struct lazy_object *o, uint64_t page, uint64_t n,
			   const uint8_t *data, enum fill fill)
{
	if (fill == FILL_POISON) {
		lose(f, o, page);
		return 1;
	}
	if (fill == FILL_DATA) {
		uint64_t done = write_over(f, o, page, n, data);
		int there = done ? 0 : is_there(f, o, page);

		if (there)
			return there < 0 ? there : -EIO;
		/* the first is not there: it was removed, and is not missing */
		n = done ? done : 1;
	} else if (fill == FILL_ZEROS) {
		punch(o, page, n);
	}
	for (uint64_t i = 0; i < n; i++) {
		f->st->left -= lazy_object_clear(f->sh, o, page + i);
		if (!lazy_object_waits(f->sh, o, page + i))
			show_to_waiters(f, o, page + i);
	}
	return (int64_t)n;
}

/* Of one huge page. What a task removes of it, madvise(2) MADV_REMOVE, is a part of it that is zero
 * (5.19): what comes late must not be put over that. */
static void zero_part(struct fetch *f, const struct lazy_space *sp, uint64_t start, uint64_t end)
{
	uint64_t page;
	const struct lazy_object *o =
	    start < end ? lazy_huge_object_at(f->sh, sp, start, &page) : NULL;

	for (; o && start < end; start += CR_PAGE_SIZE, page++)
		if (lazy_object_missing(f->sh, o, page) &&
		    put_missing(f, o, page, 1, NULL, FILL_ZEROS) < 0)
			return;
}

/* Before it happens: the kernel waits for this event to be read. Whole huge pages go, or only leave
 * the page table, MADV_DONTNEED; which is seen when they are touched (objects_removed()). */
void objects_zeroed(struct fetch *f, const struct lazy_space *sp, uint64_t start, uint64_t end)
{
	uint64_t whole = ALIGN_UP(start, LAZY_HUGE_BYTES), last = end & ~(LAZY_HUGE_BYTES - 1);

	zero_part(f, sp, start, whole < end ? whole : end);
	if (last >= whole)
		zero_part(f, sp, last, end);
}

int objects_put(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data, enum fill fill,
		bool pushed)
{
	uint64_t first = fr->addr / CR_PAGE_SIZE, placed = 0;
	int64_t r = 0;

	pthread_mutex_lock(&f->lock);
	const struct lazy_object *o = lazy_object_of(f->sh, (uint32_t)(fr->pid - LAZY_OBJECT));
	for (uint64_t at = 0; o && at < fr->npages;) {
		uint64_t most = fr->npages - at < STEP_PAGES ? fr->npages - at : STEP_PAGES;
		uint32_t n = lazy_object_run(f->sh, o, first + at, (uint32_t)most);

		if (!n) {
			at++;
			continue;
		}
		r = put_missing(f, o, first + at, n, data ? data + at * CR_PAGE_SIZE : NULL, fill);
		if (r < 0)
			break;
		at += (uint64_t)r;
		placed += (uint64_t)r;
		if (pushed) { /* a fault may wait */
			pthread_mutex_unlock(&f->lock);
			pthread_mutex_lock(&f->lock);
		}
	}
	if (fill == FILL_UNCHANGED) /* they were not missing, as it turns out */
		f->st->pages_lazy -= placed;
	else if (pushed)
		f->st->pushed += placed;
	pthread_mutex_unlock(&f->lock);
	return r < 0 ? (int)r : 0;
}

/* Those who wait for what is not missing, as it turns out. */
static void show_what_is_there(struct fetch *f, const struct lazy_object *o)
{
	for (size_t i = 0; i < f->waiters.n;) {
		const struct waiter *w = &f->waiters.v[i];
		uint64_t page = w->src / CR_PAGE_SIZE;

		if (w->origin != origin_of(o) || lazy_object_waits(f->sh, o, page))
			i++;
		else /* another takes its place */
			show_to_waiters(f, o, page);
	}
}

int objects_clean(struct fetch *f, const struct lazy_frame *fr, const uint8_t *payload)
{
	struct cr_err err = {0};
	struct lazy_chunk c;

	for (uint32_t i = 0; i < fr->npages; i++) {
		if (lazy_chunk_decode(&c, payload + i * LAZY_CHUNK_BYTES, &err))
			return -EPROTO;
		pthread_mutex_lock(&f->lock);
		const struct lazy_object *o =
		    lazy_object_of(f->sh, (uint32_t)(fr->pid - LAZY_OBJECT));
		uint64_t n =
		    o ? lazy_object_clear_words(f->sh, o, c.start / CR_PAGE_SIZE, c.bits) : 0;
		f->st->left -= n;
		f->st->pages_lazy -= n;
		if (n)
			show_what_is_there(f, o);
		pthread_mutex_unlock(&f->lock);
	}
	return 0;
}

/* ---- the end ---- */

/* Memory that was taken for pages of which nobody has seen or sent anything: they were zeros and
 * are. To lseek(2) they are holes as long as they do not show anywhere, and that is up to us. */
static void trim(const struct lazy_object *o)
{
	const off_t end = (off_t)(o->pages * CR_PAGE_SIZE);

	for (off_t at = 0, hole, data; at < end; at = data) {
		hole = lseek(o->fd, at, SEEK_HOLE);
		data = hole < 0 || hole >= end ? -1 : lseek(o->fd, hole, SEEK_DATA);
		if (hole < 0 || hole >= end || (data < 0 && errno != ENXIO))
			return;
		data = data < 0 || data > end ? end : data;
		hole = (off_t)ALIGN_UP((uint64_t)hole, CR_PAGE_SIZE);
		if (hole < data)
			punch(o, (uint64_t)hole / CR_PAGE_SIZE,
			      (uint64_t)(data - hole) / CR_PAGE_SIZE);
	}
}

void objects_trim(const struct fetch *f)
{
	for (uint32_t i = 0; i < f->sh->n_objects; i++)
		if (f->sh->objects[i].unit == 1)
			trim(&f->sh->objects[i]);
}

static void say_mapping(struct fetch *f, const struct lazy_space *sp, const struct lazy_seg *seg)
{
	const struct lazy_object *o = &f->sh->objects[seg->object - 1];
	uint64_t n = 0;

	for (uint64_t i = 0; i < seg->pages; i += o->unit)
		if (lazy_object_waits(f->sh, o, seg->src / CR_PAGE_SIZE + i))
			n += o->unit;
	const uint64_t end = seg->start + seg->pages * CR_PAGE_SIZE;
	if (!n)
		return;
	tasks_note_loss(f, sp->origin, seg->start, end, n);
	log_error("fetching pages: shared memory of process %d at %#llx-%#llx: %llu pages "
		  "are lost with the source: SIGBUS for who touches them",
		  sp->origin, (unsigned long long)seg->start, (unsigned long long)end,
		  (unsigned long long)n);
}

void objects_lose_all(struct fetch *f)
{
	for (size_t i = 0; i < f->sh->top; i++) {
		const struct lazy_space *sp = &f->sh->spaces[i];
		uint32_t n;
		const struct lazy_seg *v = lazy_segs(f->sh, sp, &n);

		for (uint32_t k = 0; sp->used && k < n; k++)
			if (v[k].object)
				say_mapping(f, sp, &v[k]);
	}
	for (uint32_t i = 0; i < f->sh->n_objects; i++) {
		const struct lazy_object *o = &f->sh->objects[i];

		for (uint64_t page = 0; page < o->pages; page += o->unit)
			if (lazy_object_waits(f->sh, o, page))
				lose(f, o, page);
	}
}
