#include "source/serve.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include "base/clock.h"
#include "base/vec.h"
#include "memory/zero.h"
#include "wire/lazy_stream.h"
#include "wire/link.h"
#include "wire/token_bucket.h"

enum {
	CONNECT_MS = 2000,
	ANSWER_MS = 5000,
	PAUSE_MS = 100,
	PUSH_PAGES = 16,  /* at once: as long as this takes, a request waits */
	AHEAD_PAGES = 64, /* pushed behind a page that was asked for */
	HOT_MAX = 64,
	PRIORITY = 6,               /* of requests: before what is pushed, tc-prio(8) */
	NOTSENT_BYTES = 128 * 1024, /* of what is pushed, in our kernel */
	IN_BYTES = LAZY_HDR_BYTES + LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES,
	OUT_MAX = 4 << 20, /* a destination that asks and does not read */
	PROGRESS_US = 1000000,
};

struct memory { /* of one process: what is still to be sent */
	pid_t pid;
	int mem;
	VEC(struct lazy_chunk) left, told; /* ascending once all is said */
	size_t at;                         /* chunks before it are empty */
};

struct hot { /* where to push first */
	size_t memory;
	uint64_t va;
	uint32_t pages;
};

struct out {
	VEC(uint8_t) b;
	size_t done;
};

struct server {
	struct serve *sv;
	VEC(struct memory) memories;
	struct hot hot[HOT_MAX];
	size_t n_hot;
	int urgent, bulk;
	struct out to_urgent, to_bulk;
	uint8_t *in;
	size_t n_in;
	bool pushing, complete;
	uint64_t left, told_us;
	struct token_bucket bucket;
	uint8_t pages[LAZY_PAYLOAD_MAX];
};

/* ---- what is left ---- */

static struct memory *memory_of(struct server *s, pid_t pid)
{
	vec_foreach (m, &s->memories)
		if (m->pid == pid)
			return m;
	return NULL;
}

static struct lazy_chunk *chunk_of(struct lazy_chunk *v, size_t n, uint64_t va)
{
	uint64_t start = va - va % (512 * CR_PAGE_SIZE);
	size_t lo = 0, hi = n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (v[mid].start < start)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < n && v[lo].start == start ? &v[lo] : NULL;
}

static unsigned int index_of(uint64_t va)
{
	return (unsigned int)(va / CR_PAGE_SIZE % 512);
}

static bool is_set(const struct lazy_chunk *c, unsigned int i)
{
	return c && c->bits[i / 64] >> (i % 64) & 1;
}

static void take(struct server *s, struct lazy_chunk *c, unsigned int i)
{
	if (!is_set(c, i))
		return;
	c->bits[i / 64] &= ~(1ull << (i % 64));
	s->left--;
}

static int by_start(const void *a, const void *b)
{
	const struct lazy_chunk *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

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

static int flush(struct out *o, int fd)
{
	while (is_pending(o)) {
		ssize_t n =
		    send(fd, o->b.v + o->done, o->b.n - o->done, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		o->done += (size_t)n;
	}
	return 0;
}

/* ---- pages ---- */

/* How many of n pages could be read. */
static uint32_t read_pages(struct server *s, const struct memory *m, uint64_t va, uint32_t n)
{
	struct iovec local = {s->pages, n * CR_PAGE_SIZE}, remote = {(void *)va, n * CR_PAGE_SIZE};
	ssize_t got = process_vm_readv(m->pid, &local, 1, &remote, 1, 0);

	/* what has no read permission, proc_pid_mem(5) reads all the same */
	if (got < (ssize_t)CR_PAGE_SIZE)
		got = pread(m->mem, s->pages, n * CR_PAGE_SIZE, (off_t)va);
	return got < 0 ? 0 : (uint32_t)((size_t)got / CR_PAGE_SIZE);
}

/* Stretches of zeros and of others go as frames of their own. */
static int append_pages(struct server *s, struct out *o, pid_t pid, uint64_t va, uint32_t n)
{
	int r = 0;

	for (uint32_t at = 0, end; at < n && !r; at = end) {
		bool zero = page_is_zero(s->pages + at * CR_PAGE_SIZE);

		for (end = at + 1; end < n; end++)
			if (page_is_zero(s->pages + end * CR_PAGE_SIZE) != zero)
				break;
		const uint8_t *payload = s->pages + at * CR_PAGE_SIZE;
		struct lazy_frame f = {.type = zero ? LAZY_ZEROS : LAZY_PAGES,
				       .pid = pid,
				       .npages = end - at,
				       .addr = va + at * CR_PAGE_SIZE};
		if (!zero) {
			f.payload = f.npages * (uint32_t)CR_PAGE_SIZE;
			f.digest = lazy_digest(payload, f.payload);
		}
		r = append(o, &f, payload);
	}
	return r;
}

static int send_pages(struct server *s, struct out *o, const struct memory *m, uint64_t va,
		      uint32_t n)
{
	int r = 0;

	while (n && !r) {
		uint32_t got = read_pages(s, m, va, n);

		if (got) {
			r = append_pages(s, o, m->pid, va, got);
		} else {
			struct lazy_frame f = {
			    .type = LAZY_UNREADABLE, .pid = m->pid, .npages = 1, .addr = va};

			r = append(o, &f, NULL);
			got = 1;
		}
		va += got * CR_PAGE_SIZE;
		n -= got;
	}
	return r;
}

static void heat(struct server *s, size_t memory, uint64_t va)
{
	if (s->n_hot == HOT_MAX) {
		memmove(s->hot, s->hot + 1, (HOT_MAX - 1) * sizeof(*s->hot));
		s->n_hot--;
	}
	s->hot[s->n_hot++] = (struct hot){memory, va, AHEAD_PAGES};
}

static int answer(struct server *s, const struct lazy_frame *f)
{
	struct memory *m = memory_of(s, f->pid);

	if (!m || s->to_urgent.b.n - s->to_urgent.done > OUT_MAX)
		return -EPROTO;
	/* whether it has been pushed does not matter: that may wait in a queue */
	for (uint32_t i = 0; i < f->npages; i++) {
		uint64_t va = f->addr + i * CR_PAGE_SIZE;

		if (!is_set(chunk_of(m->told.v, m->told.n, va), index_of(va)))
			s->sv->result.asked_again++;
		take(s, chunk_of(m->left.v, m->left.n, va), index_of(va));
	}
	int r = send_pages(s, &s->to_urgent, m, f->addr, f->npages);
	heat(s, (size_t)(m - s->memories.v), f->addr + f->npages * CR_PAGE_SIZE);
	return r ? r : flush(&s->to_urgent, s->urgent);
}

/* ---- what is pushed ---- */

/* Takes up to most pages that are left from va on, in its chunk. */
static uint32_t take_run(struct server *s, struct lazy_chunk *c, uint64_t va, uint32_t most)
{
	unsigned int i = index_of(va);
	uint32_t n = 0;

	while (n < most && i + n < 512 && is_set(c, i + n))
		take(s, c, i + n++);
	return n;
}

/* Behind what was asked for last. */
static uint32_t next_hot(struct server *s, struct memory **m, uint64_t *va)
{
	while (s->n_hot) {
		struct hot *h = &s->hot[s->n_hot - 1];
		struct lazy_chunk *c;
		uint32_t n = 0;

		*m = &s->memories.v[h->memory];
		while (h->pages && !n) {
			c = chunk_of((*m)->left.v, (*m)->left.n, h->va);
			*va = h->va;
			n = take_run(s, c, h->va, h->pages < PUSH_PAGES ? h->pages : PUSH_PAGES);
			h->va += (n ? n : 1) * CR_PAGE_SIZE;
			h->pages -= n ? n : 1;
		}
		if (!h->pages)
			s->n_hot--;
		if (n)
			return n;
	}
	return 0;
}

static uint32_t next_in_order(struct server *s, struct memory **ret, uint64_t *va)
{
	vec_foreach (m, &s->memories)
		for (; m->at < m->left.n; m->at++) {
			struct lazy_chunk *c = &m->left.v[m->at];

			for (unsigned int i = 0; i < 8; i++) {
				if (!c->bits[i])
					continue;
				unsigned int bit =
				    i * 64 + (unsigned int)__builtin_ctzll(c->bits[i]);
				*ret = m;
				*va = c->start + bit * CR_PAGE_SIZE;
				return take_run(s, c, *va, PUSH_PAGES);
			}
		}
	return 0;
}

static int push(struct server *s)
{
	struct memory *m;
	uint64_t va;
	int r = flush(&s->to_bulk, s->bulk);

	if (r || is_pending(&s->to_bulk) || !s->pushing ||
	    token_bucket_wait_us(&s->bucket, now_us()))
		return r;
	uint32_t n = next_hot(s, &m, &va);
	if (!n)
		n = next_in_order(s, &m, &va);
	if (!n)
		return 0;
	r = send_pages(s, &s->to_bulk, m, va, n);
	token_bucket_pay(&s->bucket, n * CR_PAGE_SIZE);
	return r ? r : flush(&s->to_bulk, s->bulk);
}

/* ---- in ---- */

static int take_missing(struct server *s, const struct lazy_frame *f, const uint8_t *payload)
{
	struct memory *m = memory_of(s, f->pid);

	if (!m || s->pushing)
		return -EPROTO;
	for (uint32_t i = 0; i < f->npages; i++) {
		struct lazy_chunk *c = vec_push(&m->left);
		struct cr_err err = {0};

		if (!c)
			return -ENOMEM;
		if (lazy_chunk_decode(c, payload + i * LAZY_CHUNK_BYTES, &err))
			return -EPROTO;
		for (int k = 0; k < 8; k++)
			s->left += (uint64_t)__builtin_popcountll(c->bits[k]);
	}
	return 0;
}

static int begin_pushing(struct server *s)
{
	vec_foreach (m, &s->memories) {
		if (!m->left.n)
			continue;
		qsort(m->left.v, m->left.n, sizeof(*m->left.v), by_start);
		for (size_t i = 0; i < m->left.n; i++) {
			struct lazy_chunk *c = vec_push(&m->told);

			if (!c)
				return -ENOMEM;
			*c = m->left.v[i];
		}
	}
	s->pushing = true;
	return 0;
}

static int on_complete(struct server *s, const uint8_t *payload)
{
	const struct lazy_frame bye = {.type = LAZY_BYE};
	uint64_t asked_again = s->sv->result.asked_again;

	lazy_stats_decode(&s->sv->result, payload);
	s->sv->result.asked_again = asked_again;
	s->complete = true;
	/* should it be lost, its end of the connection does as well */
	int r = append(&s->to_urgent, &bye, NULL);
	return r ? r : flush(&s->to_urgent, s->urgent);
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

static void set_options(const struct server *s)
{
	const int one = 1, priority = PRIORITY, notsent = NOTSENT_BYTES;

	/* all for the sake of latency, none needed; a unix socket has none of them */
	setsockopt(s->urgent, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(s->urgent, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
	setsockopt(s->bulk, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(s->bulk, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent, sizeof(notsent));
}

static void forget_connection(struct server *s)
{
	close_fdp(&s->urgent);
	close_fdp(&s->bulk);
	s->to_urgent.b.n = s->to_urgent.done = s->to_bulk.b.n = s->to_bulk.done = 0;
	s->n_in = s->n_hot = 0;
	s->pushing = false;
	s->left = 0;
	vec_foreach (m, &s->memories) {
		m->left.n = m->told.n = 0;
		m->at = 0;
	}
}

static int connect_both(struct server *s, struct cr_err *err)
{
	const struct lazy_frame start = {.type = LAZY_START};
	int r = open_lazy(s, MSG_LAZY_URGENT, &s->urgent, err);

	if (!r)
		r = open_lazy(s, MSG_LAZY_BULK, &s->bulk, err);
	if (r)
		return r;
	set_options(s);
	token_bucket_set(&s->bucket, s->sv->max_bandwidth, now_us());
	r = append(&s->to_urgent, &start, NULL);
	if (!r)
		r = flush(&s->to_urgent, s->urgent);
	return r ? cr_err_set(err, CR_ERR_IO, -r, "starting to serve pages: %s", strerror(-r)) : 0;
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
	s->sv->progress(s->sv->arg, s->left);
}

static int serve_connected(struct server *s)
{
	while (!s->complete) {
		uint64_t pause = token_bucket_wait_us(&s->bucket, now_us());
		bool more = is_pending(&s->to_bulk) || (s->pushing && s->left && !pause);
		struct pollfd p[2] = {
		    {.fd = s->urgent,
		     .events = (short)(POLLIN | (is_pending(&s->to_urgent) ? POLLOUT : 0))},
		    {.fd = s->bulk, .events = (short)(POLLIN | (more ? POLLOUT : 0))}};
		int r = 0, n = poll(p, 2, pause ? (int)(pause / 1000 + 1) : 200);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (p[0].revents & POLLOUT)
			r = flush(&s->to_urgent, s->urgent);
		if (!r && p[0].revents & ~POLLOUT)
			r = receive(s);
		if (!r && p[1].revents & ~POLLOUT)
			r = -ECONNRESET; /* nothing is ever said on it */
		if (!r && p[1].revents & POLLOUT)
			r = push(s);
		if (r)
			return r;
		tell_progress(s);
	}
	return 0;
}

static int serve_until_complete(struct server *s, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000 * 1000};
	uint64_t deadline = now_us() + s->sv->timeout_ms * 1000ull;

	for (;;) {
		cr_err_clear(err);
		int r = connect_both(s, err);

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
		m->pid = s->sv->pids[i];
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
	vec_foreach (m, &s->memories) {
		close_fdp(&m->mem);
		vec_done(&m->left);
		vec_done(&m->told);
	}
	vec_done(&s->memories);
	vec_done(&s->to_urgent.b);
	vec_done(&s->to_bulk.b);
	free(s->in);
	free(s);
}

int serve_run(struct serve *sv, struct cr_err *err)
{
	_cleanup_(server_free) struct server *s = calloc(1, sizeof(*s));

	if (!s)
		return cr_err_oom(err);
	s->sv = sv;
	s->urgent = s->bulk = -1;
	s->in = malloc(2 * IN_BYTES);
	if (!s->in)
		return cr_err_oom(err);
	int r = open_memories(s, err);
	return r ? r : serve_until_complete(s, err);
}
