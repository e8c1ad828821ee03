/* What the tasks do while pages are missing: they fault, fork, move and discard memory, and end. */
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/log.h"
#include "dest/fetch.h"
#include "kernel/uffd.h"
#include "model/lazy.h"

enum { EVENTS_MAX = 64 /* in a row of one space */ };

void tasks_count_left(struct fetch *f)
{
	uint64_t n = 0;

	for (size_t i = 0; i < f->sh->top; i++)
		n += lazy_count(f->sh, &f->sh->spaces[i]);
	f->st->left = n + lazy_objects_count(f->sh);
}

void tasks_note_loss(struct fetch *f, pid_t pid, uint64_t start, uint64_t end, uint64_t pages)
{
	if (f->st->n_losses < LAZY_LOSSES)
		f->st->losses[f->st->n_losses++] = (struct lazy_loss){pid, start, end, pages};
}

void tasks_drop_space(struct fetch *f, struct lazy_space *sp)
{
	size_t n = 0;

	for (size_t i = 0; i < f->waiters.n; i++)
		if (f->waiters.v[i].space != sp)
			f->waiters.v[n++] = f->waiters.v[i];
	f->waiters.n = n;
	lazy_space_drop(sp);
	tasks_count_left(f);
}

void tasks_sweep(struct fetch *f)
{
	for (size_t i = 0; i < f->sh->top; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];

		if (sp->used && uffd_is_dead(sp->uffd))
			tasks_drop_space(f, sp);
	}
	f->swept_us = now_us();
}

void tasks_note_latency(struct fetch *f, const struct waiter *w)
{
	uint64_t us = now_us() - w->since_us;

	f->st->buckets[lazy_bucket(us)]++;
	if (us > f->st->max_us)
		f->st->max_us = us;
}

void tasks_arrived(struct fetch *f, const struct lazy_space *sp, uint64_t va)
{
	for (size_t i = 0; i < f->waiters.n;) {
		struct waiter *w = &f->waiters.v[i];

		if (w->space != sp || w->va != va) {
			i++;
			continue;
		}
		tasks_note_latency(f, w);
		*w = f->waiters.v[--f->waiters.n];
	}
}

/* Zeros where nothing is missing: memory that nobody had written. */
static int give_zeros(struct fetch *f, struct lazy_space *sp, uint64_t va)
{
	for (unsigned int tries = 0;;) {
		int64_t n = uffd_put(sp->uffd, va, NULL, CR_PAGE_SIZE);
		uint64_t page;
		int r;

		if (n == -EINVAL)
			return huge_give_zeros(f, sp, va & ~(LAZY_HUGE_BYTES - 1));
		if (n != -EAGAIN) {
			if (n < 0)
				uffd_wake(sp->uffd, va, CR_PAGE_SIZE);
			return 0;
		}
		r = put_make_way(f, sp, &tries);
		if (r)
			return r;
		if (!sp->used || lazy_find_here(f->sh, sp, va, &page)) {
			/* by a move it has become missing: it will be asked for */
			if (sp->used)
				uffd_wake(sp->uffd, va, CR_PAGE_SIZE);
			return 0;
		}
	}
}

int tasks_wait_for(struct fetch *f, struct lazy_space *sp, uint64_t va, pid_t origin, uint64_t src,
		   uint32_t npages)
{
	bool asked = false;

	f->st->faults++;
	vec_foreach (w, &f->waiters) {
		bool same = w->origin == origin && w->src == src;

		/* another thread; or the same, which faults again after each signal */
		if (same && w->space == sp && w->va == va)
			return 0;
		asked |= same;
	}
	struct waiter *w = vec_push(&f->waiters);
	if (!w)
		return -ENOMEM;
	*w = (struct waiter){.space = sp,
			     .va = va,
			     .origin = origin,
			     .src = src,
			     .npages = npages,
			     .since_us = now_us()};
	return asked ? 0 : fetch_want(f, origin, src, npages);
}

static int on_fault(struct fetch *f, struct lazy_space *sp, const struct uffd_msg *m)
{
	uint64_t page, va = m->arg.pagefault.address & ~(CR_PAGE_SIZE - 1);

	if (m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
		return objects_fault(f, sp, va);
	struct lazy_seg *seg = lazy_find_here(f->sh, sp, va, &page);
	if (seg && seg->huge) {
		page -= page % LAZY_HUGE_PAGES;
		return tasks_wait_for(f, sp, seg->start + page * CR_PAGE_SIZE, sp->origin,
				      seg->src + page * CR_PAGE_SIZE, LAZY_HUGE_PAGES);
	}
	if (seg)
		return tasks_wait_for(f, sp, va, sp->origin, seg->src + page * CR_PAGE_SIZE, 1);
	int r = objects_removed(f, sp, va);
	return r ? r : give_zeros(f, sp, va);
}

/* Waiters whose address has changed: they are woken, and look again. */
static void forget_waiters(struct fetch *f, const struct lazy_space *sp, uint64_t start,
			   uint64_t end)
{
	for (size_t i = 0; i < f->waiters.n;) {
		struct waiter *w = &f->waiters.v[i];

		if (w->space != sp || w->va < start || w->va >= end) {
			i++;
			continue;
		}
		uffd_wake(sp->uffd, w->va, CR_PAGE_SIZE);
		*w = f->waiters.v[--f->waiters.n];
	}
}

static void on_move(struct fetch *f, struct lazy_space *sp, uint64_t from, uint64_t to,
		    uint64_t len)
{
	if (lazy_move(f->sh, sp, from, to, len)) {
		/* moved in more pieces than can be kept apart: never zeros */
		int64_t n = uffd_poison(sp->uffd, to, len);

		log_error("fetching pages: no room to note what was moved to %#llx (%lld)",
			  (unsigned long long)to, (long long)n);
		f->st->lost += lazy_forget(f->sh, sp, from, from + len);
	}
	forget_waiters(f, sp, from, from + len);
	objects_wake(f, sp);
}

/* The supervisor ties the child's life to ours. */
static void tell_of_fork(struct fetch *f)
{
	const struct fetch_hand nobody = {.fd = -1};

	/* no room: it has been told, and has not looked yet */
	if (send(f->control, &nobody, sizeof(nobody), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("fetching pages: %s", strerror(errno));
}

/* What is in sh->event, perhaps left by the fetcher before. */
static int act(struct fetch *f)
{
	const struct uffd_msg *m = &f->sh->event;
	struct lazy_space *sp = &f->sh->spaces[f->sh->event_space];
	int r = 0;

	switch (m->event) {
	case UFFD_EVENT_PAGEFAULT:
		r = on_fault(f, sp, m);
		break;
	case UFFD_EVENT_FORK:
		if (!lazy_fork(f->sh, sp, (int)m->arg.fork.ufd)) {
			tasks_sweep(f);
			if (!lazy_fork(f->sh, sp, (int)m->arg.fork.ufd))
				return -ENOSPC;
		}
		f->forks++;
		tasks_count_left(f);
		tell_of_fork(f);
		break;
	case UFFD_EVENT_REMAP:
		on_move(f, sp, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		break;
	case UFFD_EVENT_UNMAP:
		r = lazy_unmap(f->sh, sp, m->arg.remove.start, m->arg.remove.end);
		if (r)
			return r;
		objects_wake(f, sp);
		/* fall through */
	case UFFD_EVENT_REMOVE: /* of whole pages of shared memory it says nothing: lazy_state.h */
		if (m->event == UFFD_EVENT_REMOVE)
			objects_zeroed(f, sp, m->arg.remove.start, m->arg.remove.end);
		f->st->left -= lazy_forget(f->sh, sp, m->arg.remove.start, m->arg.remove.end);
		forget_waiters(f, sp, m->arg.remove.start, m->arg.remove.end);
		break;
	default:
		break;
	}
	return r;
}

static int act_once(struct fetch *f)
{
	struct uffd_msg event = f->sh->event;
	int r;

	/* a fault or zeros may need another event to be read first: this one is a copy by then */
	if (event.event == UFFD_EVENT_PAGEFAULT) {
		uint32_t space = f->sh->event_space;

		f->sh->event.event = 0;
		r = on_fault(f, &f->sh->spaces[space], &event);
	} else {
		r = act(f);
		f->sh->event.event = 0;
	}
	return r;
}

int tasks_act_on_left_over(struct fetch *f)
{
	return f->sh->event.event ? act_once(f) : 0;
}

/* The message is read into shared memory: should this process end
 * before it has acted on it, the next one does. */
int tasks_read_events(struct fetch *f, struct lazy_space *sp)
{
	int n = 0;

	while (n < EVENTS_MAX && sp->used) {
		f->sh->event_space = (uint32_t)(sp - f->sh->spaces);
		ssize_t got = read(sp->uffd, &f->sh->event, sizeof(f->sh->event));

		if (got != (ssize_t)sizeof(f->sh->event)) {
			f->sh->event.event = 0;
			return n;
		}
		int r = act_once(f);
		if (r)
			return r;
		n++;
	}
	return n;
}
