/* Answers to what the destination asks for, on connections that there are. */
#include "source/serve.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "source/serve_state.h"

enum {
	PRIORITY = 6,               /* of requests: before what is pushed, tc-prio(8) */
	NOTSENT_BYTES = 128 * 1024, /* of what is pushed, in our kernel */
	IN_BYTES = LAZY_HDR_BYTES + LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES,
	OUT_MAX = 4 << 20, /* no more requests are taken before the destination has read */
	PROGRESS_US = 1000000,
	PATIENCE = 4, /* packets; the destination has more */
};

/* ---- out ---- */

static int append(struct out *o, const struct lazy_frame *f, const void *payload)
{
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

static int put_answer(void *arg, const struct lazy_frame *f, const void *payload)
{
	struct server *s = arg;

	s->sv->result.asked_clean += f->type == LAZY_UNCHANGED ? f->npages : 0;
	return append(&s->out, f, payload);
}

static int put_ahead(void *arg, const struct lazy_frame *f, const void *payload)
{
	struct server *s = arg;

	return append(&s->out, f, payload);
}

static int send_now(struct server *s, const struct memory *m, uint64_t va, uint32_t n,
		    serve_put_fn put)
{
	int r = 0;

	for (uint32_t at = 0; at < n && !r; at += LAZY_PAGES_MAX) {
		uint32_t some = n - at < LAZY_PAGES_MAX ? n - at : LAZY_PAGES_MAX;

		r = serve_read_pages(m, va + at * CR_PAGE_SIZE, some, s->pages, put, s);
		r = r ? r : flush(s);
	}
	return r;
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
			r = send_now(s, m, va + at * CR_PAGE_SIZE, n, put_ahead);
		at += n ? n : 1;
	}
	return r;
}

static int answer(struct server *s, const struct lazy_frame *f)
{
	struct memory *m = left_memory_of(s, f->pid);

	if (!m)
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
	int r = send_now(s, m, f->addr, f->npages, put_answer);
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

/* What of shared memory is known to be as it was sent: the destination asks for no page of it
 * before it knows. */
static bool tells(const struct server *s)
{
	bool any = false;

	vec_foreach (m, &s->memories)
		any |= serve_known_tells(&m->known);
	return any;
}

static int tell_clean_of(struct server *s, struct memory *m)
{
	struct lazy_frame f = {.type = LAZY_CLEAN, .pid = m->pid};
	size_t at = 0;
	bool more = true;
	int r = 0;

	while (more && !r) {
		struct lazy_chunk c;

		more = left_take_clean(s, m, &at, &c);
		if (more)
			lazy_chunk_encode(s->pages + f.npages++ * LAZY_CHUNK_BYTES, &c);
		if (!f.npages || (more && f.npages < LAZY_CHUNKS_MAX))
			continue;
		f.payload = f.npages * LAZY_CHUNK_BYTES;
		f.digest = lazy_digest(s->pages, f.payload);
		r = append(&s->out, &f, s->pages);
		f.npages = 0;
	}
	return r;
}

static int tell_clean(struct server *s)
{
	const struct lazy_frame told = {.type = LAZY_TOLD};
	int r = 0;

	if (!tells(s))
		return 0;
	vec_foreach (m, &s->memories)
		r = r ? r : tell_clean_of(s, m);
	if (!r)
		r = append(&s->out, &told, NULL);
	return r ? r : flush(s);
}

static int begin_pushing(struct server *s)
{
	int r = left_sort(s);

	if (!r)
		r = tell_clean(s);
	s->pushing = true;
	return r ? r : push_start(s);
}

static int on_complete(struct server *s, const uint8_t *payload)
{
	const struct lazy_frame bye = {.type = LAZY_BYE};
	const struct msg_postcopy ours = s->sv->result;

	lazy_stats_decode(&s->sv->result, payload);
	s->sv->result.asked_again = ours.asked_again;
	s->sv->result.asked_clean = ours.asked_clean;
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

static bool takes_more(const struct server *s)
{
	return s->out.b.n - s->out.done <= OUT_MAX;
}

/* Whole ones of what has come. */
static int take_frames(struct server *s)
{
	size_t at = 0;
	int r = 0;

	while (!r && takes_more(s) && s->n_in - at >= LAZY_HDR_BYTES) {
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

/* Only once all whole frames that there are were taken, so there is room. */
static int receive(struct server *s)
{
	ssize_t n = recv(s->urgent, s->in + s->n_in, 2 * IN_BYTES - s->n_in, MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	s->n_in += (size_t)n;
	near_cpu_follow(&s->near, s->urgent, PATIENCE);
	return take_frames(s);
}

static int on_readiness(struct server *s, short events)
{
	int r = is_pending(&s->out) ? flush(s) : 0;

	if (!r)
		r = take_frames(s);
	if (!r && events & ~POLLOUT && takes_more(s))
		r = receive(s);
	return r;
}

/* ---- connections ---- */

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

static int begin(struct server *s, struct cr_err *err)
{
	const struct lazy_frame start = {.type = LAZY_START, .npages = tells(s)};

	set_urgent_options(s->urgent);
	for (size_t i = 0; i < LAZY_BULK_MAX && s->pushers[i]; i++)
		if (set_bulk_options(s->pushers[i]->fd, err))
			return -err->code;
	token_bucket_set(&s->bucket, s->sv->max_bandwidth, now_us());
	int r = append(&s->out, &start, NULL);
	if (!r)
		r = flush(s);
	return r ? cr_err_set(err, CR_ERR_IO, -r, "starting to serve pages: %s", strerror(-r)) : 0;
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
		struct pollfd p[] = {
		    {.fd = s->urgent,
		     .events = (short)((takes_more(s) ? POLLIN : 0) |
				       (is_pending(&s->out) ? POLLOUT : 0))},
		    {.fd = s->sv->lifeline, .events = POLLIN},
		};
		int r = 0, n = poll(p, ARRAY_SIZE(p), 200);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0 && p[0].revents)
			r = on_readiness(s, p[0].revents);
		if (r)
			return r;
		tell_progress(s);
	}
	return 0;
}

static int take_files(struct server *s, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < s->sv->n_files && !r; i++) {
		const struct serve_file *f = &s->sv->files[i];
		struct memory *m = f->id & SERVE_KNOWN ? NULL : vec_push(&s->memories);

		if (f->id & SERVE_KNOWN)
			continue;
		if (!m)
			return cr_err_oom(err);
		*m = (struct memory){.sv = s->sv, .pid = f->id, .mem = f->fd};
		for (size_t k = 0; k < s->sv->n_files && !r; k++)
			if (s->sv->files[k].id == (f->id | SERVE_KNOWN))
				r = serve_known_open(&m->known, s->sv->files[k].fd, err);
	}
	return r;
}

static int take_memories(struct server *s, struct cr_err *err)
{
	for (size_t i = 0; i < s->sv->n_pids; i++) {
		struct memory *m = vec_push(&s->memories);

		if (!m)
			return cr_err_oom(err);
		*m = (struct memory){
		    .sv = s->sv, .pid = s->sv->pids[i], .mem = s->sv->read ? -1 : s->sv->mems[i]};
	}
	return take_files(s, err);
}

static void server_free(struct server **sp)
{
	struct server *s = *sp;

	if (!s)
		return;
	push_stop(s);
	close_fdp(&s->urgent);
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

static int take_links(struct server *s, struct serve_links *links, struct cr_err *err)
{
	for (size_t i = 0; i < links->n_bulk; i++) {
		struct pusher *p = calloc(1, sizeof(*p));

		if (!p)
			return cr_err_oom(err);
		p->s = s;
		p->fd = take_fd(&links->bulk[i]);
		s->pushers[i] = p;
	}
	s->urgent = take_fd(&links->urgent);
	return 0;
}

static int server_new(struct server **ret, struct serve *sv, struct serve_links *links,
		      struct cr_err *err)
{
	_cleanup_(server_free) struct server *s = calloc(1, sizeof(*s));

	if (!s)
		return cr_err_oom(err);
	s->sv = sv;
	s->urgent = -1;
	init_lock(&s->lock);
	s->in = malloc(2 * IN_BYTES);
	int r = s->in ? take_memories(s, err) : cr_err_oom(err);
	left_allow(s, sv->has, sv->n_has);
	if (!r)
		r = take_links(s, links, err);
	if (!r)
		*ret = take_ptr(s);
	return r;
}

void serve_links_close(struct serve_links *links)
{
	close_fdp(&links->urgent);
	for (size_t i = 0; i < links->n_bulk; i++)
		close_fdp(&links->bulk[i]);
	links->n_bulk = 0;
}

static int serve(struct server *s, struct cr_err *err)
{
	near_cpu_init(&s->near);
	int r = begin(s, err);
	if (!r) {
		r = serve_connected(s);
		if (r)
			cr_err_set(err, CR_ERR_PEER, -r, "%s: %s",
				   r == -EPROTO ? "nonsense from the destination"
						: "the connection broke",
				   strerror(-r));
	}
	near_cpu_leave(&s->near);
	return r;
}

int serve_on(struct serve *sv, struct serve_links *links, struct cr_err *err)
{
	_cleanup_(server_free) struct server *s = NULL;
	int r = server_new(&s, sv, links, err);

	serve_links_close(links);
	return r ? r : serve(s, err);
}
