/* The fetcher: serves the faults of the tasks, takes the pages that the source sends. fetch.h says
 * who does what. */
#include "dest/fetch.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/log.h"
#include "kernel/uffd.h"
#include "wire/lazy_stream.h"

enum {
	BUFFER_BYTES = 2 * (LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX),
	SWEEP_US = 1000000,
	PRIORITY = 6, /* of requests, tc-prio(8) */
	PATIENCE =
	    64, /* packets; the source has less, so it comes to us where both are on one machine */
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

/* Of a shared huge page, which is waited for as a whole, a part may be there. */
static int say_wants(struct fetch *f, const struct lazy_object *o, uint64_t src, uint32_t npages)
{
	int r = 0;

	for (uint32_t at = 0; at < npages && !r;) {
		struct lazy_frame fr = {.type = LAZY_WANT,
					.pid = LAZY_OBJECT + (pid_t)o->index,
					.addr = src + at * CR_PAGE_SIZE};

		fr.npages = lazy_object_run(f->sh, o, fr.addr / CR_PAGE_SIZE, npages - at);
		if (fr.npages)
			r = say(f, &fr, NULL);
		at += fr.npages ? fr.npages : 1;
	}
	return r;
}

int fetch_want(struct fetch *f, pid_t origin, uint64_t src, uint32_t npages)
{
	const struct lazy_frame fr = {
	    .type = LAZY_WANT, .pid = origin, .npages = npages, .addr = src};
	const struct lazy_object *o =
	    origin < LAZY_OBJECT ? NULL : lazy_object_of(f->sh, (uint32_t)(origin - LAZY_OBJECT));

	if (!f->told || (o && f->holds))
		return 0; /* is asked for when the source is there, or has said what it knows */
	int r = o ? say_wants(f, o, src, npages) : say(f, &fr, NULL);
	/* a connection that broke is found out by who reads from it */
	if (!r && flush(f))
		f->lost_why = "sending a request";
	return r;
}

/* ---- losing it ---- */

void fetch_give_up(struct fetch *f, const char *why)
{
	pthread_mutex_lock(&f->lock);
	f->lost_why = why;
	pthread_mutex_unlock(&f->lock);
}

/* Without the lock, which the others may need to come to their end. */
static void drop_connections(struct fetch *f, const char *why)
{
	if (f->sh->urgent_fd >= 0)
		log_info("fetching pages: the connection to the source is lost: %s", why);
	for (size_t i = 0; i < LAZY_BULK_MAX; i++)
		bulk_drop(f, i);
	lazy_close(&f->sh->urgent_fd);
	huge_forget_staged(f);
	f->urgent.n = 0;
	f->out.n = f->out_done = 0;
	f->started = f->told = f->holds = f->complete_sent = false;
	f->lost_why = NULL;
	if (!f->alone_since_us)
		f->alone_since_us = now_us();
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
	for (size_t i = 0; i < f->sh->top; i++) {
		struct lazy_space *sp = &f->sh->spaces[i];
		uint32_t n;
		const struct lazy_seg *v = lazy_segs(f->sh, sp, &n);

		for (uint32_t k = 0; sp->used && sp->origin == origin && k < n && !r; k++)
			for (uint64_t p = 0; p < v[k].pages && !v[k].object; p++) {
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

static int tell_missing_object(struct fetch *f, const struct lazy_object *o)
{
	_cleanup_free_ uint8_t *payload = malloc(LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES);
	struct lazy_frame fr = {.type = LAZY_MISSING, .pid = LAZY_OBJECT + (pid_t)o->index};
	int r = payload ? 0 : -ENOMEM;

	for (uint64_t page = 0; page < o->pages && !r; page += CHUNK_PAGES) {
		struct lazy_chunk c = {.start = page * CR_PAGE_SIZE};

		if (!lazy_object_words(f->sh, o, page, c.bits))
			continue;
		lazy_chunk_encode(payload + fr.npages++ * LAZY_CHUNK_BYTES, &c);
		fr.payload = fr.npages * LAZY_CHUNK_BYTES;
		if (fr.npages == LAZY_CHUNKS_MAX) {
			r = say(f, &fr, payload);
			fr.npages = 0;
		}
	}
	return !r && fr.npages ? say(f, &fr, payload) : r;
}

static int tell_missing(struct fetch *f)
{
	const struct lazy_frame end = {.type = LAZY_MISSING_END};
	VEC(pid_t) seen = {0};
	int r = 0;

	for (size_t i = 0; i < f->sh->top && !r; i++) {
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
	for (uint32_t i = 0; i < f->sh->n_objects && !r; i++)
		r = tell_missing_object(f, &f->sh->objects[i]);
	if (!r)
		r = say(f, &end, NULL);
	f->told = true;
	vec_foreach (w, &f->waiters)
		if (!r)
			r = fetch_want(f, w->origin, w->src, w->npages);
	return r ? r : flush(f);
}

/* The source is there: it is told what is missing, and what is waited for. */
static int on_start(struct fetch *f, bool tells)
{
	int r = 0;

	if (f->started)
		return 0;
	pthread_mutex_lock(&f->lock);
	f->started = true;
	f->holds = tells;
	f->st->connects++;
	f->alone_since_us = 0;
	r = tell_missing(f);
	pthread_mutex_unlock(&f->lock);
	return r;
}

/* What is still missing of shared memory has to be asked for. */
static int on_told(struct fetch *f)
{
	int r = 0;

	pthread_mutex_lock(&f->lock);
	bool held = f->holds && f->told;
	f->holds = false;
	vec_foreach (w, &f->waiters)
		if (!r && held && w->origin >= LAZY_OBJECT)
			r = fetch_want(f, w->origin, w->src, w->npages);
	pthread_mutex_unlock(&f->lock);
	return r;
}

static int on_clean(struct fetch *f, const struct lazy_frame *fr, const uint8_t *payload,
		    bool pushed)
{
	int r = pushed || fr->pid < LAZY_OBJECT ? -EPROTO : objects_clean(f, fr, payload);

	if (r == -EPROTO)
		fetch_give_up(f, "what it says is clean cannot be");
	return r == -EPROTO ? 0 : r;
}

int fetch_on_frame(struct fetch *f, const struct lazy_frame *fr, const uint8_t *payload,
		   bool pushed)
{
	switch (fr->type) {
	case LAZY_START:
		return pushed ? 0 : on_start(f, fr->npages);
	case LAZY_PAGES:
		return put_pages(f, fr, payload, FILL_DATA, pushed);
	case LAZY_ZEROS:
		return put_pages(f, fr, NULL, FILL_ZEROS, pushed);
	case LAZY_UNREADABLE:
		return put_pages(f, fr, NULL, FILL_POISON, pushed);
	case LAZY_UNCHANGED:
		if (fr->pid >= LAZY_OBJECT)
			return put_pages(f, fr, NULL, FILL_UNCHANGED, pushed);
		fetch_give_up(f, "memory of a process, unchanged");
		return 0;
	case LAZY_CLEAN:
		return on_clean(f, fr, payload, pushed);
	case LAZY_TOLD:
		return pushed ? 0 : on_told(f);
	case LAZY_BYE:
		f->bye |= !pushed;
		return 0;
	default:
		fetch_give_up(f, "it says what is ours to say");
		return 0;
	}
}

/* Whole frames of what has come. */
static int take_frames(struct fetch *f, struct in *in)
{
	size_t at = 0;
	int r = 0;

	while (!r && !f->lost_why && in->n - at >= LAZY_HDR_BYTES) {
		struct cr_err err = {0};
		struct lazy_frame fr;

		if (lazy_frame_decode(&fr, in->buf + at, &err) || fr.payload > LAZY_PAYLOAD_MAX) {
			fetch_give_up(f, "not a frame of ours");
			return 0;
		}
		if (in->n - at < LAZY_HDR_BYTES + fr.payload)
			break;
		if (!lazy_frame_intact(&fr, in->buf + at + LAZY_HDR_BYTES)) {
			fetch_give_up(f, "pages were damaged on their way");
			return 0;
		}
		r = fetch_on_frame(f, &fr, in->buf + at + LAZY_HDR_BYTES, false);
		at += LAZY_HDR_BYTES + fr.payload;
	}
	memmove(in->buf, in->buf + at, in->n - at);
	in->n -= at;
	return r;
}

static int receive(struct fetch *f, struct in *in, int fd)
{
	ssize_t n = recv(fd, in->buf + in->n, BUFFER_BYTES - in->n, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		fetch_give_up(f, "it is closed");
		return 0;
	}
	in->n += (size_t)n;
	near_cpu_follow(&f->near, fd, PATIENCE);
	return take_frames(f, in);
}

/* ---- the end ---- */

static int say_complete(struct fetch *f)
{
	struct msg_postcopy p;
	uint8_t payload[LAZY_STATS_BYTES];
	const struct lazy_frame fr = {.type = LAZY_COMPLETE, .payload = sizeof(payload)};

	if (!f->sh->guarding)
		f->st->ended_us = now_us();
	lazy_stats_fill(f->st, &p);
	lazy_stats_encode(payload, &p);
	f->complete_sent = true;
	int r = say(f, &fr, payload);
	return r ? r : flush(f);
}

/* From here on the tasks need nobody. */
static void finished(struct fetch *f)
{
	f->sh->phase = LAZY_FINISHED;
	lazy_untie(f->sh);
}

static bool any_space(const struct fetch *f)
{
	bool any = false;

	for (size_t i = 0; i < f->sh->top; i++)
		any |= f->sh->spaces[i].used;
	return any;
}

/* Shared memory is lost: as long as anybody has it mapped, the userfaultfds stay. The source is
 * told that nothing more is wanted, should it come back. 1: the end. */
static int guard_lost(struct fetch *f)
{
	f->sh->guarding = 1;
	__atomic_store_n(&f->st->guarding, 1, __ATOMIC_RELEASE);
	if (!any_space(f)) {
		finished(f);
		f->st->ended_us = now_us();
		return 1;
	}
	return f->told && !f->complete_sent ? say_complete(f) : 0;
}

/* With the lock. 1: the end. */
static int conclude(struct fetch *f)
{
	uint64_t now = now_us();

	f->st->seen_us = now;
	/* The supervisor is gone. Before the commit that is the end of it: whoever settles needs
	 * the lock that we hold as well. Later the rest is up to us. */
	if (getppid() != f->supervisor && !f->sh->committed)
		return -EOWNERDEAD;
	if (now - f->swept_us > SWEEP_US)
		tasks_sweep(f);
	if (f->sh->guarding)
		return guard_lost(f);
	if (f->st->left && f->alone_since_us && now - f->alone_since_us > f->timeout_us) {
		pthread_mutex_unlock(&f->lock);
		put_poison_all(f);
		pthread_mutex_lock(&f->lock);
		tasks_count_left(f);
		if (lazy_objects_any_lost(f->sh))
			return guard_lost(f);
		finished(f);
		f->st->ended_us = now_us();
		return 1;
	}
	if (f->st->left)
		return 0;
	/* counted down by differences: once more, from the bits */
	tasks_count_left(f);
	if (f->st->left)
		return 0;
	if (lazy_objects_any_lost(f->sh))
		return guard_lost(f);
	if (f->sh->phase != LAZY_FINISHED)
		objects_trim(f);
	finished(f);
	if (!f->st->ended_us)
		f->st->ended_us = now;
	if (f->bye || f->alone_since_us)
		return 1; /* the source asks for the outcome when it comes back */
	return f->told && !f->complete_sent ? say_complete(f) : 0;
}

/* ---- the loop ---- */

static int *place_for(struct fetch *f, enum msg_lazy_kind kind, size_t *i)
{
	if (kind == MSG_LAZY_URGENT)
		return &f->sh->urgent_fd;
	for (*i = 0; *i < LAZY_BULK_MAX; ++*i)
		if (f->sh->bulk_fds[*i] < 0)
			return &f->sh->bulk_fds[*i];
	return NULL;
}

static void set_options(int fd)
{
	const int one = 1, priority = PRIORITY;

	/* for the sake of latency; a unix socket has none of them */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
}

static void take_connection(struct fetch *f)
{
	struct fetch_hand h;
	size_t i = 0;

	/* noted before it is taken out: one of the two tells the supervisor, should we end here */
	if (recv(f->control, &h, sizeof(h), MSG_DONTWAIT | MSG_PEEK) != sizeof(h))
		return;
	if (h.fd >= 0 && h.kind == MSG_LAZY_URGENT)
		drop_connections(f, "another one came");
	int *place = h.fd >= 0 ? place_for(f, (enum msg_lazy_kind)h.kind, &i) : NULL;
	if (place)
		*place = h.fd;
	if (recv(f->control, &h, sizeof(h), MSG_DONTWAIT) < 0)
		return;
	if (h.fd >= 0 && !place)
		close(h.fd);
	else if (h.fd >= 0 && h.kind == MSG_LAZY_URGENT)
		set_options(h.fd);
	else if (h.fd >= 0)
		bulk_start(f, i);
}

/* With the lock. */
static int serve_spaces(struct fetch *f, const struct pollfd *p, const uint32_t *which, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && r >= 0; i++)
		if (p[i].revents && f->sh->spaces[which[i]].used)
			r = tasks_read_events(f, &f->sh->spaces[which[i]]);
	return r < 0 ? r : 0;
}

static int step(struct fetch *f)
{
	static struct pollfd p[LAZY_SPACES + 3];
	static uint32_t which[LAZY_SPACES];
	size_t n = 0;

	for (uint32_t i = 0; i < f->sh->top; i++) {
		if (!f->sh->spaces[i].used)
			continue;
		which[n] = i;
		p[3 + n++] = (struct pollfd){.fd = f->sh->spaces[i].uffd, .events = POLLIN};
	}
	int fd = f->sh->urgent_fd;
	short out = f->out_done < f->out.n ? POLLOUT : 0;
	p[0] = (struct pollfd){.fd = f->control, .events = POLLIN};
	p[1] = (struct pollfd){.fd = fd, .events = (short)(POLLIN | out)};
	p[2] = (struct pollfd){.fd = f->page_server, .events = POLLIN};
	if (poll(p, 3 + n, 100) < 0 && errno != EINTR)
		return -errno;
	pthread_mutex_lock(&f->lock);
	int r = serve_spaces(f, p + 3, which, n);
	if (!r && fd >= 0 && p[1].revents & POLLOUT && flush(f))
		f->lost_why = strerror(errno);
	pthread_mutex_unlock(&f->lock);
	if (!r && fd >= 0 && p[1].revents & ~POLLOUT)
		r = receive(f, &f->urgent, fd);
	if (!r && p[2].revents)
		r = bulk_hear(f);
	if (!r && f->page_server_mad)
		r = -EPROTO;
	if (!r && p[0].revents & POLLIN)
		take_connection(f);
	if (f->lost_why)
		drop_connections(f, f->lost_why);
	pthread_mutex_lock(&f->lock);
	r = r ? r : conclude(f);
	pthread_mutex_unlock(&f->lock);
	return r;
}

static int take_over(struct fetch *f)
{
	pthread_mutex_lock(&f->lock);
	int r = tasks_act_on_left_over(f);
	/* faults that were read and not served are lost: those who wait fault again */
	for (size_t i = 0; i < f->sh->top; i++)
		if (f->sh->spaces[i].used)
			uffd_wake(f->sh->spaces[i].uffd, CR_PAGE_SIZE,
				  0x7ffffffff000ull - CR_PAGE_SIZE);
	pthread_mutex_unlock(&f->lock);
	return r;
}

struct life {
	struct fetch f;
	bool takes_over;
	int r; /* 1: nothing is missing any more */
};

static void *urgent_main(void *arg)
{
	struct life *l = arg;
	struct fetch *f = &l->f;

	near_cpu_init(&f->near);
	l->r = l->takes_over ? take_over(f) : 0;
	if (!f->st->started_us)
		f->st->started_us = now_us();
	tasks_count_left(f);
	while (!l->r)
		l->r = step(f);
	if (l->r < 0)
		log_error("fetching pages: %s", strerror(-l->r));
	return NULL;
}

/* A fault never waits for a thread of lower priority that has lost its CPU. */
static void init_lock(pthread_mutex_t *lock)
{
	pthread_mutexattr_t a;

	pthread_mutexattr_init(&a);
	pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(lock, &a);
	pthread_mutexattr_destroy(&a);
}

/* All is done by threads of the library's making: this one was made by clone(2), of which the
 * library knows nothing, and could not take a lock that knows its owner. */
int fetch_run(const struct fetch_args *a)
{
	static struct life l;
	struct cr_err err = {0};
	pthread_t urgent;

	l = (struct life){.takes_over = a->takes_over,
			  .f = {.sh = a->shared,
				.st = a->stats,
				.control = a->control,
				.wake = a->wake,
				.page_server = a->shared->page_server,
				.supervisor = getppid(),
				.timeout_us = a->timeout_ms * 1000ull,
				.urgent.buf = malloc(BUFFER_BYTES),
				.alone_since_us = now_us(),
				.swept_us = now_us()}};
	init_lock(&l.f.lock);
	if (objects_guard(&l.f, &err)) {
		log_error("fetching pages: %s", err.msg);
		return 1;
	}
	if (!l.f.urgent.buf || pthread_create(&urgent, NULL, urgent_main, &l))
		return 1;
	pthread_join(urgent, NULL);
	return l.r == 1 ? 0 : 1;
}
