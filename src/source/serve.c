/* Connections to the destination, and answers to what it asks for. */
#include "source/serve.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include "base/clock.h"
#include "source/serve_state.h"
#include "wire/link.h"

enum {
	CONNECT_MS = 2000,
	ANSWER_MS = 5000,
	PAUSE_MS = 100,
	PRIORITY = 6,               /* of requests: before what is pushed, tc-prio(8) */
	NOTSENT_BYTES = 128 * 1024, /* of what is pushed, in our kernel */
	IN_BYTES = LAZY_HDR_BYTES + LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES,
	OUT_MAX = 4 << 20, /* a destination that asks and does not read */
	PROGRESS_US = 1000000,
	SERVE_PRIORITY = 30, /* SCHED_FIFO: a task waits for each answer */
	PATIENCE = 4,        /* packets; the destination has more */
};

/* ---- out ---- */

static int append(void *arg, const struct lazy_frame *f, const void *payload)
{
	struct out *o = arg;

	if (o->done == o->b.n)
		o->b.n = o->done = 0;
	size_t n = o->b.n, all = n + LAZY_HDR_BYTES + f->payload;
	if (vec_reserve_((void **)&o->b.v, &o->b.cap, all, 1))
		return -ENOMEM;
	lazy_frame_encode(o->b.v + n, f);
	if (f->payload)
		memcpy(o->b.v + n + LAZY_HDR_BYTES, payload, f->payload);
	o->b.n = all;
	return 0;
}

static bool is_pending(const struct out *o)
{
	return o->done < o->b.n;
}

static int flush(struct server *s)
{
	struct out *o = &s->out;

	while (is_pending(o)) {
		ssize_t n = send(s->urgent, o->b.v + o->done, o->b.n - o->done,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		o->done += (size_t)n;
	}
	return 0;
}

/* ---- requests ---- */

static int send_now(struct server *s, const struct memory *m, uint64_t va, uint32_t n)
{
	int r = serve_read_pages(m, va, n, s->pages, append, &s->out);

	return r ? r : flush(s);
}

/* Pages behind those that were asked for, as far as nobody has sent them. */
static int send_ahead(struct server *s, struct memory *m, uint64_t va, uint32_t pages)
{
	int r = 0;

	for (uint32_t at = 0; at < pages && !r;) {
		pthread_mutex_lock(&s->lock);
		uint32_t n = left_take_run(s, m, va + at * CR_PAGE_SIZE, pages - at);
		pthread_mutex_unlock(&s->lock);
		if (n)
			r = send_now(s, m, va + at * CR_PAGE_SIZE, n);
		at += n ? n : 1;
	}
	return r;
}

static int answer(struct server *s, const struct lazy_frame *f)
{
	struct memory *m = left_memory_of(s, f->pid);

	if (!m || s->out.b.n - s->out.done > OUT_MAX)
		return -EPROTO;
	pthread_mutex_lock(&s->lock);
	/* whether it has been pushed does not matter: that may wait in a queue */
	for (uint32_t i = 0; i < f->npages; i++) {
		uint64_t va = f->addr + i * CR_PAGE_SIZE;

		s->sv->result.asked_again += !left_was_told(m, va);
		left_take(s, m, va);
	}
	uint32_t ahead = left_asked(s, m, f->addr, f->npages);
	pthread_mutex_unlock(&s->lock);
	int r = send_now(s, m, f->addr, f->npages);
	return r ? r : send_ahead(s, m, f->addr + f->npages * CR_PAGE_SIZE, ahead);
}

/* ---- in ---- */

static int take_missing(struct server *s, const struct lazy_frame *f, const uint8_t *payload)
{
	struct memory *m = left_memory_of(s, f->pid);
	int r = 0;

	if (!m || s->pushing)
		return -EPROTO;
	for (uint32_t i = 0; i < f->npages && !r; i++) {
		struct lazy_chunk c;
		struct cr_err err = {0};

		if (lazy_chunk_decode(&c, payload + i * LAZY_CHUNK_BYTES, &err))
			return -EPROTO;
		r = left_add(s, m, &c);
	}
	return r;
}

static int begin_pushing(struct server *s)
{
	int r = left_sort(s);

	s->pushing = true;
	return r ? r : push_start(s);
}

static int on_complete(struct server *s, const uint8_t *payload)
{
	const struct lazy_frame bye = {.type = LAZY_BYE};
	uint64_t asked_again = s->sv->result.asked_again;

	lazy_stats_decode(&s->sv->result, payload);
	s->sv->result.asked_again = asked_again;
	s->complete = true;
	/* should it be lost, its end of the connection does as well */
	int r = append(&s->out, &bye, NULL);
	return r ? r : flush(s);
}

static int on_frame(struct server *s, const struct lazy_frame *f, const uint8_t *payload)
{
	switch (f->type) {
	case LAZY_MISSING:
		return take_missing(s, f, payload);
	case LAZY_MISSING_END:
		return s->pushing ? -EPROTO : begin_pushing(s);
	case LAZY_WANT:
		return s->pushing ? answer(s, f) : -EPROTO;
	case LAZY_COMPLETE:
		return on_complete(s, payload);
	default:
		return -EPROTO;
	}
}

static int receive(struct server *s)
{
	ssize_t n = recv(s->urgent, s->in + s->n_in, 2 * IN_BYTES - s->n_in, MSG_DONTWAIT);
	size_t at = 0;
	int r = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	s->n_in += (size_t)n;
	near_cpu_follow(&s->near, s->urgent, PATIENCE);
	while (!r && s->n_in - at >= LAZY_HDR_BYTES) {
		struct cr_err err = {0};
		struct lazy_frame f;

		if (lazy_frame_decode(&f, s->in + at, &err) ||
		    f.payload > IN_BYTES - LAZY_HDR_BYTES)
			return -EPROTO;
		if (s->n_in - at < LAZY_HDR_BYTES + f.payload)
			break;
		r = on_frame(s, &f, s->in + at + LAZY_HDR_BYTES);
		at += LAZY_HDR_BYTES + f.payload;
	}
	memmove(s->in, s->in + at, s->n_in - at);
	s->n_in -= at;
	return r;
}

/* ---- connections ---- */

static int open_lazy(struct server *s, enum msg_lazy_kind kind, int *ret, struct cr_err *err)
{
	const struct serve *sv = s->sv;
	struct msg_hello hello = {.version = MSG_VERSION,
				  .role = MSG_ROLE_PEER,
				  .id = sv->id,
				  .token = sv->token,
				  .host = sv->host};
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_LAZY), reply;
	int r = link_connect(&l, sv->peer_address, CONNECT_MS, err);

	if (!r)
		r = link_hello(l, &hello, ANSWER_MS, &reply, err);
	if (r)
		return r;
	msg_free(&reply);
	m.lazy.kind = kind;
	r = link_call(l, &m, MSG_OK, ANSWER_MS, &reply, err);
	if (r)
		return r;
	msg_free(&reply);
	*ret = fcntl(link_fd(l), F_DUPFD_CLOEXEC, 3);
	return *ret < 0 ? cr_err_sys(err, "dup") : 0;
}

static void set_urgent_options(int fd)
{
	const int one = 1, priority = PRIORITY;

	/* for the sake of latency; a unix socket has none of them */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
}

/* What waits unsent in our kernel comes before whatever is chosen next. */
static int set_bulk_options(int fd, struct cr_err *err)
{
	const int one = 1, notsent = NOTSENT_BYTES, flags = fcntl(fd, F_GETFL);

	/* a thread of its own waits for it */
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK))
		return cr_err_sys(err, "a connection to push pages on");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent, sizeof(notsent));
	return 0;
}

static void forget_connection(struct server *s)
{
	push_stop(s);
	close_fdp(&s->urgent);
	s->out.b.n = s->out.done = 0;
	s->n_in = 0;
	s->pushing = false;
	left_forget(s);
}

static int open_bulk(struct server *s, size_t i, struct cr_err *err)
{
	struct pusher *p = calloc(1, sizeof(*p));

	if (!p)
		return cr_err_oom(err);
	p->s = s;
	p->fd = -1;
	s->pushers[i] = p;
	int r = open_lazy(s, MSG_LAZY_BULK, &p->fd, err);
	return r ? r : set_bulk_options(p->fd, err);
}

static size_t streams(const struct server *s)
{
	uint32_t n = s->sv->streams ? s->sv->streams : 1;

	return n < LAZY_BULK_MAX ? n : LAZY_BULK_MAX;
}

static int begin(struct server *s, struct cr_err *err)
{
	const struct lazy_frame start = {.type = LAZY_START};

	set_urgent_options(s->urgent);
	token_bucket_set(&s->bucket, s->sv->max_bandwidth, now_us());
	int r = append(&s->out, &start, NULL);
	if (!r)
		r = flush(s);
	return r ? cr_err_set(err, CR_ERR_IO, -r, "starting to serve pages: %s", strerror(-r)) : 0;
}

static int connect_all(struct server *s, struct cr_err *err)
{
	int r = open_lazy(s, MSG_LAZY_URGENT, &s->urgent, err);

	for (size_t i = 0; i < streams(s) && !r; i++)
		r = open_bulk(s, i, err);
	return r ? r : begin(s, err);
}

/* Does the destination say that it has all, although nobody told us? */
static bool is_done_there(const struct serve *sv)
{
	struct msg_hello hello = {.version = MSG_VERSION,
				  .role = MSG_ROLE_PEER,
				  .id = sv->id,
				  .token = sv->token,
				  .host = sv->host};
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_QUERY), reply = {0};
	struct cr_err ignored = {0};

	m.query.id = sv->id;
	if (link_connect(&l, sv->peer_address, CONNECT_MS, &ignored) ||
	    link_hello(l, &hello, ANSWER_MS, &reply, &ignored))
		return false;
	msg_free(&reply);
	if (link_call(l, &m, MSG_STATE, ANSWER_MS, &reply, &ignored))
		return false;
	bool done = reply.state.state == MSG_STATE_RUNNING;
	msg_free(&reply);
	return done;
}

/* ---- the loop ---- */

static void tell_progress(struct server *s)
{
	uint64_t now = now_us();

	if (!s->sv->progress || !s->pushing || now - s->told_us < PROGRESS_US)
		return;
	s->told_us = now;
	pthread_mutex_lock(&s->lock);
	uint64_t left = s->left;
	pthread_mutex_unlock(&s->lock);
	s->sv->progress(s->sv->arg, left);
}

static int serve_connected(struct server *s)
{
	while (!s->complete) {
		struct pollfd p = {.fd = s->urgent,
				   .events = (short)(POLLIN | (is_pending(&s->out) ? POLLOUT : 0))};
		int r = 0, n = poll(&p, 1, 200);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p.revents & POLLOUT)
			r = flush(s);
		if (!r && n > 0 && p.revents & ~POLLOUT)
			r = receive(s);
		if (r)
			return r;
		tell_progress(s);
	}
	return 0;
}

/* Threads that it starts have none of it. */
static void set_priority(bool high)
{
	struct sched_param sp = {.sched_priority = high ? SERVE_PRIORITY : 0};

	/* without the privilege it is only slower */
	if (sched_setscheduler(0, high ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &sp))
		return;
}

static int serve_until_complete(struct server *s, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000 * 1000};
	uint64_t deadline = now_us() + s->sv->timeout_ms * 1000ull;

	for (;;) {
		cr_err_clear(err);
		int r = connect_all(s, err);

		if (!r) {
			r = serve_connected(s);
			deadline = now_us() + s->sv->timeout_ms * 1000ull;
			if (r)
				cr_err_set(err, CR_ERR_PEER, -r, "the connection broke: %s",
					   strerror(-r));
		}
		forget_connection(s);
		if (s->complete || (r && is_done_there(s->sv))) {
			cr_err_clear(err);
			return 0;
		}
		if (now_us() > deadline) {
			err->code = ETIMEDOUT;
			return cr_err_ctx(err, "the destination was away for %u ms",
					  s->sv->timeout_ms)
				   ?: -ETIMEDOUT;
		}
		nanosleep(&pause, NULL);
	}
}

static int open_memories(struct server *s, struct cr_err *err)
{
	for (size_t i = 0; i < s->sv->n_pids; i++) {
		struct memory *m = vec_push(&s->memories);
		char path[64];

		if (!m)
			return cr_err_oom(err);
		m->sv = s->sv;
		m->pid = s->sv->pids[i];
		m->mem = -1;
		if (s->sv->read)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/mem", m->pid);
		m->mem = open(path, O_RDONLY | O_CLOEXEC);
		if (m->mem < 0)
			return cr_err_sys(err, "opening %s", path);
	}
	return 0;
}

static void server_free(struct server **sp)
{
	struct server *s = *sp;

	if (!s)
		return;
	forget_connection(s);
	left_done(s);
	vec_done(&s->out.b);
	pthread_mutex_destroy(&s->lock);
	free(s->in);
	free(s);
}

/* Whoever answers never waits for a thread of lower priority that has lost its CPU. */
static void init_lock(pthread_mutex_t *lock)
{
	pthread_mutexattr_t a;

	pthread_mutexattr_init(&a);
	pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(lock, &a);
	pthread_mutexattr_destroy(&a);
}

static int server_new(struct server **ret, struct serve *sv, struct cr_err *err)
{
	struct server *s = calloc(1, sizeof(*s));

	if (!s)
		return cr_err_oom(err);
	s->sv = sv;
	s->urgent = -1;
	init_lock(&s->lock);
	*ret = s;
	s->in = malloc(2 * IN_BYTES);
	return s->in ? open_memories(s, err) : cr_err_oom(err);
}

int serve_run(struct serve *sv, struct cr_err *err)
{
	_cleanup_(server_free) struct server *s = NULL;
	int r = server_new(&s, sv, err);

	set_priority(true);
	if (!r) {
		near_cpu_init(&s->near);
		r = serve_until_complete(s, err);
		near_cpu_leave(&s->near);
	}
	set_priority(false);
	return r;
}

int serve_on(struct serve *sv, int urgent, int bulk, struct cr_err *err)
{
	_cleanup_(server_free) struct server *s = NULL;
	struct pusher *p = calloc(1, sizeof(*p));
	int r = p ? server_new(&s, sv, err) : cr_err_oom(err);

	if (r) {
		close(urgent);
		close(bulk);
		free(p);
		return r;
	}
	p->s = s;
	p->fd = bulk;
	s->pushers[0] = p;
	s->urgent = urgent;
	r = set_bulk_options(bulk, err);
	if (!r)
		r = begin(s, err);
	if (r)
		return r;
	r = serve_connected(s);
	return r ? cr_err_set(err, CR_ERR_IO, -r, "serving pages: %s", strerror(-r)) : 0;
}
