/* The fetcher: serves the faults of the tasks, takes the pages that the source sends, follows what
 * the tasks do to their memory.
 *
 * One thread, so that nothing changes between looking at what is missing and putting a page there:
 * an event that happens in between makes the kernel refuse the page (EAGAIN) until it was read.
 * Events go first, then what was asked for, then what is pushed, a small piece at a time. */
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "dest/lazy.h"
#include "kernel/uffd.h"
#include "wire/lazy_stream.h"

enum {
	READ_BYTES = 128 * 1024, /* at once, of what is pushed */
	BUFFER_BYTES = 2 * (LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX),
	EVENTS_MAX = 64, /* in a row of one space */
	SWEEP_US = 1000000,
};

struct in { /* what came over a connection */
	uint8_t *buf;
	size_t n;
};

struct waiter { /* a fault that was asked for */
	struct lazy_space *space;
	uint64_t va;
	pid_t origin;
	uint64_t src;
	uint64_t since_us;
};

struct fetch {
	struct lazy_shared *sh;
	struct lazy_stats *st;
	int control;
	pid_t supervisor;
	uint64_t timeout_us, alone_since_us, swept_us; /* alone: without the source; 0: is not */
	bool started, told, complete_sent, bye;
	struct in urgent, bulk;
	VEC(uint8_t) out; /* to the source */
	size_t out_done;
	VEC(struct waiter) waiters;
};

/* ---- to the source ---- */

static int say(struct fetch *f, const struct lazy_frame *fr, const void *payload)
{
	size_t n = f->out.n, want = n + LAZY_HDR_BYTES + fr->payload;

	if (f->out_done == f->out.n) {
		f->out.n = f->out_done = n = 0;
		want = LAZY_HDR_BYTES + fr->payload;
	}
	if (vec_reserve_((void **)&f->out.v, &f->out.cap, want, 1))
		return -ENOMEM;
	lazy_frame_encode(f->out.v + n, fr);
	if (fr->payload)
		memcpy(f->out.v + n + LAZY_HDR_BYTES, payload, fr->payload);
	f->out.n = want;
	return 0;
}

static int flush(struct fetch *f)
{
	while (f->out_done < f->out.n) {
		ssize_t n = send(f->sh->urgent_fd, f->out.v + f->out_done, f->out.n - f->out_done,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		f->out_done += (size_t)n;
	}
	return 0;
}

static int want(struct fetch *f, pid_t origin, uint64_t src)
{
	const struct lazy_frame fr = {.type = LAZY_WANT, .pid = origin, .npages = 1, .addr = src};

	if (!f->told)
		return 0; /* is asked for when the source is there */
	int r = say(f, &fr, NULL);
	return r ? r : flush(f);
}

static void lose_source(struct fetch *f, const char *why)
{
	if (f->sh->urgent_fd >= 0 || f->sh->bulk_fd >= 0)
		log_info("fetching pages: the connection to the source is lost: %s", why);
	close_fdp(&f->sh->urgent_fd);
	close_fdp(&f->sh->bulk_fd);
	f->urgent.n = f->bulk.n = 0;
	f->out.n = f->out_done = 0;
	f->started = f->told = f->complete_sent = false;
	if (!f->alone_since_us)
		f->alone_since_us = now_us();
}

/* ---- what is missing ---- */

static void count_left(struct fetch *f)
{
	uint64_t n = 0;

	for (size_t i = 0; i < LAZY_SPACES; i++)
		n += lazy_count(f->sh, &f->sh->spaces[i]);
	f->st->left = n;
}

static void drop_space(struct fetch *f, struct lazy_space *sp)
{
	size_t n = 0;

	for (size_t i = 0; i < f->waiters.n; i++)
		if (f->waiters.v[i].space != sp)
			f->waiters.v[n++] = f->waiters.v[i];
	f->waiters.n = n;
	lazy_space_drop(sp);
	count_left(f);
}

/* Of processes that have ended or called execve(2), nothing tells. */
static void sweep(struct fetch *f)
{
	for (size_t i = 0; i < LAZY_SPACES; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];

		if (sp->used && uffd_is_dead(sp->uffd))
			drop_space(f, sp);
	}
	f->swept_us = now_us();
}

static void arrived(struct fetch *f, const struct lazy_space *sp, uint64_t va)
{
	for (size_t i = 0; i < f->waiters.n;) {
		struct waiter *w = &f->waiters.v[i];

		if (w->space != sp || w->va != va) {
			i++;
			continue;
		}
		uint64_t us = now_us() - w->since_us;
		f->st->buckets[lazy_bucket(us)]++;
		if (us > f->st->max_us)
			f->st->max_us = us;
		*w = f->waiters.v[--f->waiters.n];
	}
}

static int read_events(struct fetch *f, struct lazy_space *sp);

/* An event has to be read first; who made it may need a moment to go on from there. */
static int make_way(struct fetch *f, struct lazy_space *sp, unsigned int *tries)
{
	const struct timespec pause = {.tv_nsec = 50 * 1000};
	int r = read_events(f, sp);

	if (r == 0 && ++*tries > 3)
		nanosleep(&pause, NULL);
	return r < 0 ? r : 0;
}

/* Zeros where nothing is missing: memory that nobody had written. */
static int give_zeros(struct fetch *f, struct lazy_space *sp, uint64_t va)
{
	for (unsigned int tries = 0;;) {
		int64_t n = uffd_put(sp->uffd, va, NULL, CR_PAGE_SIZE);
		uint64_t page;
		int r;

		if (n != -EAGAIN) {
			if (n < 0)
				uffd_wake(sp->uffd, va, CR_PAGE_SIZE);
			return 0;
		}
		r = make_way(f, sp, &tries);
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

static int on_fault(struct fetch *f, struct lazy_space *sp, uint64_t va)
{
	uint64_t page;
	struct lazy_seg *seg;
	bool asked = false;

	va &= ~(CR_PAGE_SIZE - 1);
	seg = lazy_find_here(f->sh, sp, va, &page);
	if (!seg)
		return give_zeros(f, sp, va);
	uint64_t src = seg->src + page * CR_PAGE_SIZE;
	vec_foreach (w, &f->waiters)
		asked |= w->origin == sp->origin && w->src == src;
	struct waiter *w = vec_push(&f->waiters);
	if (!w)
		return -ENOMEM;
	*w = (struct waiter){
	    .space = sp, .va = va, .origin = sp->origin, .src = src, .since_us = now_us()};
	f->st->faults++;
	return asked ? 0 : want(f, sp->origin, src);
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
}

/* What is in sh->event, perhaps left by the fetcher before. */
static int act(struct fetch *f)
{
	const struct uffd_msg *m = &f->sh->event;
	struct lazy_space *sp = &f->sh->spaces[f->sh->event_space];
	int r = 0;

	switch (m->event) {
	case UFFD_EVENT_PAGEFAULT:
		r = on_fault(f, sp, m->arg.pagefault.address);
		break;
	case UFFD_EVENT_FORK:
		if (!lazy_fork(f->sh, sp, (int)m->arg.fork.ufd)) {
			sweep(f);
			if (!lazy_fork(f->sh, sp, (int)m->arg.fork.ufd))
				return -ENOSPC;
		}
		count_left(f);
		break;
	case UFFD_EVENT_REMAP:
		on_move(f, sp, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
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
		r = on_fault(f, &f->sh->spaces[space], event.arg.pagefault.address);
	} else {
		r = act(f);
		f->sh->event.event = 0;
	}
	return r;
}

/* Returns how many were read. The message is read into shared memory: should this process end
 * before it has acted on it, the next one does. */
static int read_events(struct fetch *f, struct lazy_space *sp)
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

/* ---- pages ---- */

/* The stretch of missing pages that begins at src, here. 0: it is not missing. */
static uint32_t stretch(struct fetch *f, struct lazy_space *sp, uint64_t src, uint32_t most,
			uint64_t *va, uint64_t *bit)
{
	uint64_t page;
	uint32_t n = 1;
	struct lazy_seg *seg = lazy_find_src(f->sh, sp, src, &page);

	if (!seg)
		return 0;
	*va = seg->start + page * CR_PAGE_SIZE;
	*bit = seg->bit0 + page;
	while (n < most && page + n < seg->pages && lazy_test(f->sh, sp, *bit + n))
		n++;
	return n;
}

static void done_with(struct fetch *f, struct lazy_space *sp, uint64_t va, uint64_t bit,
		      uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++) {
		f->st->left -= lazy_clear(f->sh, sp, bit + i);
		arrived(f, sp, va + i * CR_PAGE_SIZE);
	}
}

enum fill { FILL_DATA, FILL_ZEROS, FILL_POISON };

/* n pages that were at src, wherever they are missing in this space. data NULL: zeros. */
static int put_in_space(struct fetch *f, struct lazy_space *sp, uint64_t src, uint32_t n,
			const uint8_t *data, enum fill fill)
{
	unsigned int tries = 0;
	bool single = false; /* the stretch may cross from one mapping to the next */

	for (uint32_t at = 0; at < n && sp->used;) {
		uint64_t va, bit;
		uint32_t k =
		    stretch(f, sp, src + at * CR_PAGE_SIZE, single ? 1 : n - at, &va, &bit);

		if (!k) {
			at++;
			continue;
		}
		int64_t r = fill == FILL_POISON
				? uffd_poison(sp->uffd, va, k * CR_PAGE_SIZE)
				: uffd_put(sp->uffd, va, data ? data + at * CR_PAGE_SIZE : NULL,
					   k * CR_PAGE_SIZE);
		if (r > 0) {
			done_with(f, sp, va, bit, (uint64_t)r / CR_PAGE_SIZE);
			at += (uint32_t)((uint64_t)r / CR_PAGE_SIZE);
			single = false;
			if (fill == FILL_POISON)
				f->st->lost += (uint64_t)r / CR_PAGE_SIZE;
			continue;
		}
		if (r == -ESRCH) {
			drop_space(f, sp);
		} else if (r == -EAGAIN || r == -ENOMEM) {
			int e = make_way(f, sp, &tries);

			if (e)
				return e;
		} else if ((r == -ENOENT || r == -EINVAL) && k > 1) {
			single = true;
		} else if (r == -EEXIST || r == -ENOENT || r == -EINVAL) {
			/* there already, or no longer mapped: an event may say so */
			int e = r == -EEXIST ? 0 : read_events(f, sp);

			if (e < 0)
				return e;
			if (e > 0)
				continue;
			uffd_wake(sp->uffd, va, CR_PAGE_SIZE);
			done_with(f, sp, va, bit, 1);
			single = false;
			at++;
		} else {
			log_error("fetching pages: page %#llx: %s", (unsigned long long)va,
				  strerror((int)-r));
			return (int)r;
		}
	}
	return 0;
}

static int put_pages(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data,
		     enum fill fill)
{
	int r = 0;

	for (size_t i = 0; i < LAZY_SPACES && !r; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];

		if (sp->used && sp->origin == fr->pid)
			r = put_in_space(f, sp, fr->addr, fr->npages, data, fill);
	}
	return r;
}

/* ---- from the source ---- */

/* All that is missing, in any space, by its place at the source. */
static int tell_missing_of(struct fetch *f, pid_t origin)
{
	_cleanup_free_ uint8_t *payload = malloc(LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES);
	struct lazy_frame fr = {.type = LAZY_MISSING, .pid = origin};
	size_t budget = 0;
	struct sentmap all;
	int r = payload ? 0 : -ENOMEM;

	sentmap_init(&all, &budget);
	for (size_t i = 0; i < LAZY_SPACES; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];
		uint32_t n;
		const struct lazy_seg *v = lazy_segs(f->sh, sp, &n);

		for (uint32_t k = 0; sp->used && sp->origin == origin && k < n && !r; k++)
			for (uint64_t p = 0; p < v[k].pages; p++) {
				uint64_t src = v[k].src + p * CR_PAGE_SIZE;

				if (!lazy_test(f->sh, sp, v[k].bit0 + p))
					continue;
				struct sent_chunk *c = sentmap_chunk(&all, src, true);
				if (!c) {
					r = -ENOMEM;
					break;
				}
				chunk_set(c->lazy, chunk_index(src));
			}
	}
	for (size_t i = 0; i < all.cap && !r; i++) {
		struct lazy_chunk c = {.start = all.slots[i].start};

		if (!all.slots[i].used)
			continue;
		memcpy(c.bits, all.slots[i].lazy, sizeof(c.bits));
		lazy_chunk_encode(payload + fr.npages++ * LAZY_CHUNK_BYTES, &c);
		fr.payload = fr.npages * LAZY_CHUNK_BYTES;
		if (fr.npages == LAZY_CHUNKS_MAX) {
			r = say(f, &fr, payload);
			fr.npages = 0;
		}
	}
	if (!r && fr.npages)
		r = say(f, &fr, payload);
	sentmap_done(&all);
	return r;
}

static int tell_missing(struct fetch *f)
{
	const struct lazy_frame end = {.type = LAZY_MISSING_END};
	VEC(pid_t) seen = {0};
	int r = 0;

	for (size_t i = 0; i < LAZY_SPACES && !r; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];
		bool before = !sp->used;

		vec_foreach (p, &seen)
			before |= *p == sp->origin;
		if (before)
			continue;
		pid_t *slot = vec_push(&seen);
		r = slot ? tell_missing_of(f, sp->origin) : -ENOMEM;
		if (slot)
			*slot = sp->origin;
	}
	vec_done(&seen);
	if (!r)
		r = say(f, &end, NULL);
	f->told = true;
	vec_foreach (w, &f->waiters)
		if (!r)
			r = want(f, w->origin, w->src);
	return r ? r : flush(f);
}

static int on_frame(struct fetch *f, const struct lazy_frame *fr, const uint8_t *payload,
		    bool pushed)
{
	uint64_t before = f->st->left;
	int r = 0;

	switch (fr->type) {
	case LAZY_START:
		if (!pushed && !f->started) {
			f->started = true;
			f->st->connects++;
			f->alone_since_us = 0;
			r = tell_missing(f);
		}
		return r;
	case LAZY_PAGES:
		if (lazy_digest(payload, fr->payload) != fr->digest) {
			lose_source(f, "pages were damaged on their way");
			return 0;
		}
		r = put_pages(f, fr, payload, FILL_DATA);
		break;
	case LAZY_ZEROS:
		r = put_pages(f, fr, NULL, FILL_ZEROS);
		break;
	case LAZY_UNREADABLE:
		r = put_pages(f, fr, NULL, FILL_POISON);
		break;
	case LAZY_BYE:
		f->bye = true;
		return 0;
	default:
		lose_source(f, "it says what is ours to say");
		return 0;
	}
	if (pushed && before > f->st->left)
		f->st->pushed += before - f->st->left;
	return r;
}

/* Whole frames of what has come. */
static int take_frames(struct fetch *f, struct in *in, bool pushed)
{
	size_t at = 0;
	int r = 0;

	while (!r && in->n - at >= LAZY_HDR_BYTES) {
		struct cr_err err = {0};
		struct lazy_frame fr;

		if (lazy_frame_decode(&fr, in->buf + at, &err)) {
			lose_source(f, err.msg);
			return 0;
		}
		if (fr.payload > LAZY_PAYLOAD_MAX) {
			lose_source(f, "a frame that is too long");
			return 0;
		}
		if (in->n - at < LAZY_HDR_BYTES + fr.payload)
			break;
		r = on_frame(f, &fr, in->buf + at + LAZY_HDR_BYTES, pushed);
		if (!in->n) /* the connection was given up */
			return r;
		at += LAZY_HDR_BYTES + fr.payload;
	}
	memmove(in->buf, in->buf + at, in->n - at);
	in->n -= at;
	return r;
}

static int receive(struct fetch *f, struct in *in, int fd, bool pushed)
{
	size_t room = BUFFER_BYTES - in->n;

	if (room > READ_BYTES)
		room = READ_BYTES;
	ssize_t n = recv(fd, in->buf + in->n, room, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		lose_source(f, n ? strerror(errno) : "closed");
		return 0;
	}
	in->n += (size_t)n;
	return take_frames(f, in, pushed);
}

/* ---- the end ---- */

static void end_without_source(struct fetch *f)
{
	for (size_t i = 0; i < LAZY_SPACES; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];
		uint32_t n;
		const struct lazy_seg *v = lazy_segs(f->sh, sp, &n);

		for (uint32_t k = 0; sp->used && k < n; k++) {
			uint64_t had = f->st->lost;
			uint64_t start = v[k].start, pages = v[k].pages;

			for (uint64_t p = 0; p < pages; p += LAZY_PAGES_MAX) {
				uint32_t m = pages - p < LAZY_PAGES_MAX ? (uint32_t)(pages - p)
									: LAZY_PAGES_MAX;
				if (put_in_space(f, sp, v[k].src + p * CR_PAGE_SIZE, m, NULL,
						 FILL_POISON))
					break;
			}
			if (f->st->lost > had)
				log_error("fetching pages: %llu pages of process %d at %#llx-%#llx "
					  "are lost with the source: SIGBUS for who touches them",
					  (unsigned long long)(f->st->lost - had), sp->origin,
					  (unsigned long long)start,
					  (unsigned long long)(start + pages * CR_PAGE_SIZE));
		}
	}
	count_left(f);
}

static int say_complete(struct fetch *f)
{
	struct msg_postcopy p;
	uint8_t payload[LAZY_STATS_BYTES];
	const struct lazy_frame fr = {.type = LAZY_COMPLETE, .payload = sizeof(payload)};

	f->st->ended_us = now_us();
	lazy_stats_fill(f->st, &p);
	lazy_stats_encode(payload, &p);
	f->complete_sent = true;
	int r = say(f, &fr, payload);
	return r ? r : flush(f);
}

/* 1: the end. */
static int conclude(struct fetch *f)
{
	uint64_t now = now_us();

	f->st->seen_us = now;
	/* The supervisor is gone. Before the commit that is the end of it: whoever settles needs
	 * the lock that we hold as well. Later the rest is up to us. */
	if (getppid() != f->supervisor && !f->sh->committed)
		return -EOWNERDEAD;
	if (now - f->swept_us > SWEEP_US)
		sweep(f);
	if (f->st->left && f->alone_since_us && now - f->alone_since_us > f->timeout_us) {
		end_without_source(f);
		f->sh->phase = LAZY_FINISHED;
		f->st->ended_us = now_us();
		return 1;
	}
	if (f->st->left)
		return 0;
	/* counted down by differences: once more, from the bits */
	count_left(f);
	if (f->st->left)
		return 0;
	f->sh->phase = LAZY_FINISHED;
	if (!f->st->ended_us)
		f->st->ended_us = now;
	if (f->bye || f->alone_since_us)
		return 1; /* the source asks for the outcome when it comes back */
	return f->told && !f->complete_sent ? say_complete(f) : 0;
}

/* ---- the loop ---- */

static void take_connection(struct fetch *f)
{
	struct fetch_hand h;

	/* noted before it is taken out: one of the two tells the supervisor, should we end here */
	if (recv(f->control, &h, sizeof(h), MSG_DONTWAIT | MSG_PEEK) != sizeof(h))
		return;
	if (h.kind == MSG_LAZY_URGENT) {
		lose_source(f, "another one came");
		f->sh->urgent_fd = h.fd;
	} else {
		close_fdp(&f->sh->bulk_fd);
		f->bulk.n = 0;
		f->sh->bulk_fd = h.fd;
	}
	if (recv(f->control, &h, sizeof(h), MSG_DONTWAIT) < 0)
		return;
}

static int serve_spaces(struct fetch *f, const struct pollfd *p, const uint32_t *which, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && r >= 0; i++)
		if (p[i].revents && f->sh->spaces[which[i]].used)
			r = read_events(f, &f->sh->spaces[which[i]]);
	return r < 0 ? r : 0;
}

static int step(struct fetch *f)
{
	static struct pollfd p[LAZY_SPACES + 3];
	static uint32_t which[LAZY_SPACES];
	size_t n = 0;

	for (uint32_t i = 0; i < LAZY_SPACES; i++) {
		if (!f->sh->spaces[i].used)
			continue;
		which[n] = i;
		p[3 + n++] = (struct pollfd){.fd = f->sh->spaces[i].uffd, .events = POLLIN};
	}
	short out = f->out_done < f->out.n ? POLLOUT : 0;
	p[0] = (struct pollfd){.fd = f->control, .events = POLLIN};
	p[1] = (struct pollfd){.fd = f->sh->urgent_fd, .events = (short)(POLLIN | out)};
	p[2] = (struct pollfd){.fd = f->sh->bulk_fd, .events = POLLIN};
	if (poll(p, 3 + n, 100) < 0 && errno != EINTR)
		return -errno;
	int r = serve_spaces(f, p + 3, which, n);
	if (!r && p[0].revents & POLLIN)
		take_connection(f);
	int fd = f->sh->urgent_fd;
	if (!r && fd >= 0 && fd == p[1].fd && p[1].revents & POLLOUT && flush(f))
		lose_source(f, strerror(errno));
	if (!r && f->sh->urgent_fd >= 0 && fd == p[1].fd && p[1].revents & ~POLLOUT)
		r = receive(f, &f->urgent, fd, false);
	fd = f->sh->bulk_fd;
	if (!r && fd >= 0 && fd == p[2].fd && p[2].revents)
		r = receive(f, &f->bulk, fd, true);
	return r ? r : conclude(f);
}

int fetch_run(const struct fetch_args *a)
{
	struct fetch f = {
	    .sh = a->shared,
	    .st = a->stats,
	    .control = a->control,
	    .supervisor = getppid(),
	    .timeout_us = a->timeout_ms * 1000ull,
	    .urgent.buf = malloc(BUFFER_BYTES),
	    .bulk.buf = malloc(BUFFER_BYTES),
	    .alone_since_us = now_us(),
	    .swept_us = now_us(),
	};
	int r = f.urgent.buf && f.bulk.buf ? 0 : -ENOMEM;

	if (a->takes_over) {
		if (!r && f.sh->event.event)
			r = act_once(&f);
		/* faults that were read and not served are lost: those who wait fault again */
		for (size_t i = 0; i < LAZY_SPACES; i++)
			if (f.sh->spaces[i].used)
				uffd_wake(f.sh->spaces[i].uffd, CR_PAGE_SIZE,
					  0x7ffffffff000ull - CR_PAGE_SIZE);
	}
	if (!f.st->started_us)
		f.st->started_us = now_us();
	count_left(&f);
	while (!r)
		r = step(&f);
	if (r < 0)
		log_error("fetching pages: %s", strerror(-r));
	return r == 1 ? 0 : 1;
}
