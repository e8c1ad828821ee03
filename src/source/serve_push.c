/* What nobody has asked for yet is pushed by threads of their own, one for each connection, at a
 * normal priority: the thread that answers requests never waits for them. */
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"
#include "memory/zero.h"
#include "source/serve_state.h"

enum { PAUSE_MAX_US = 20000 };

/* ---- pages ---- */

/* How many of n pages could be read. */
static uint32_t read_some(const struct memory *m, uint64_t va, uint32_t n, uint8_t *buf)
{
	if (m->sv->read)
		return m->sv->read(m->sv->arg, m->pid, va, n, buf);
	/* who may read was asked when it was opened, and what has no read permission is read all
	 * the same, proc_pid_mem(5) */
	ssize_t got = pread(m->mem, buf, n * CR_PAGE_SIZE, (off_t)va);
	size_t part = got > 0 ? (size_t)got % CR_PAGE_SIZE : 0;

	if (part && m->pid >= LAZY_OBJECT) { /* where the file ends */
		memset(buf + got, 0, CR_PAGE_SIZE - part);
		got += (ssize_t)(CR_PAGE_SIZE - part);
	}
	return got < 0 ? 0 : (uint32_t)((size_t)got / CR_PAGE_SIZE);
}

static enum lazy_type type_of(const struct memory *m, uint64_t va, const uint8_t *page)
{
	if (page_is_zero(page))
		return LAZY_ZEROS;
	return serve_known_same(&m->known, va, page) ? LAZY_UNCHANGED : LAZY_PAGES;
}

/* Stretches of one type go as frames of their own. */
static int put_stretches(const struct memory *m, uint64_t va, uint32_t n, const uint8_t *buf,
			 serve_put_fn put, void *arg)
{
	enum lazy_type type, next = n ? type_of(m, va, buf) : LAZY_ZEROS;
	int r = 0;

	for (uint32_t at = 0, end; at < n && !r; at = end) {
		type = next;
		for (end = at + 1; end < n; end++) {
			next = type_of(m, va + end * CR_PAGE_SIZE, buf + end * CR_PAGE_SIZE);
			if (next != type)
				break;
		}
		const uint8_t *payload = buf + at * CR_PAGE_SIZE;
		struct lazy_frame f = {.type = type,
				       .pid = m->pid,
				       .npages = end - at,
				       .addr = va + at * CR_PAGE_SIZE};
		if (type == LAZY_PAGES) {
			f.payload = f.npages * (uint32_t)CR_PAGE_SIZE;
			f.digest = lazy_digest(payload, f.payload);
		}
		r = put(arg, &f, payload);
	}
	return r;
}

int serve_read_pages(const struct memory *m, uint64_t va, uint32_t n, uint8_t *buf,
		     serve_put_fn put, void *arg)
{
	int r = 0;

	while (n && !r) {
		uint32_t got = read_some(m, va, n, buf);

		if (got) {
			r = put_stretches(m, va, got, buf, put, arg);
		} else {
			struct lazy_frame f = {
			    .type = LAZY_UNREADABLE, .pid = m->pid, .npages = 1, .addr = va};

			r = put(arg, &f, NULL);
			got = 1;
		}
		va += got * CR_PAGE_SIZE;
		n -= got;
	}
	return r;
}

/* ---- the threads ---- */

static int send_frame(void *arg, const struct lazy_frame *f, const void *payload)
{
	const struct pusher *p = arg;
	uint8_t hdr[LAZY_HDR_BYTES];
	struct iovec iov[2] = {{hdr, sizeof(hdr)}, {(void *)payload, f->payload}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = f->payload ? 2 : 1};
	size_t left = sizeof(hdr) + f->payload;

	lazy_frame_encode(hdr, f);
	while (left) {
		ssize_t n = sendmsg(p->fd, &m, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		left -= (size_t)n;
		for (size_t k = (size_t)n; k && m.msg_iovlen;) {
			size_t some = k < m.msg_iov->iov_len ? k : m.msg_iov->iov_len;

			m.msg_iov->iov_base = (uint8_t *)m.msg_iov->iov_base + some;
			m.msg_iov->iov_len -= some;
			k -= some;
			if (!m.msg_iov->iov_len) {
				m.msg_iov++;
				m.msg_iovlen--;
			}
		}
	}
	return 0;
}

/* Has the other side, which never says anything here, gone? */
static bool is_closed(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* What the destination has already is no use to it before it is told so. */
static int put_clean(void *arg, const struct lazy_frame *f, const void *payload)
{
	struct pusher *p = arg;
	struct server *s = p->s;

	if (f->type != LAZY_UNCHANGED && f->type != LAZY_ZEROS)
		return 0;
	pthread_mutex_lock(&s->lock);
	struct memory *m = left_memory_of(s, f->pid);
	for (uint32_t i = 0; i < f->npages; i++)
		left_take(s, m, f->addr + i * CR_PAGE_SIZE);
	pthread_mutex_unlock(&s->lock);
	return send_frame(p, f, payload);
}

static int sweep_chunk(struct pusher *p, const struct memory *m, const struct lazy_chunk *c)
{
	int r = 0;

	for (unsigned int i = 0, n; i < 512 && !r; i += n ? n : 1) {
		for (n = 0; n < PUSH_PAGES && i + n < 512; n++)
			if (!(c->bits[(i + n) / 64] >> ((i + n) % 64) & 1))
				break;
		if (n)
			r = serve_read_pages(m, c->start + i * CR_PAGE_SIZE, n, p->pages, put_clean,
					     p);
	}
	return r;
}

/* What is not known of shared memory, which pages were written since they were sent, shows when
 * they are read. That is done before anything is pushed, as fast as it goes: until the destination
 * knows, who touches a page that it has asks for it. */
static int sweep(struct pusher *p)
{
	struct server *s = p->s;
	struct lazy_chunk c;
	pid_t pid;
	int r = 0;

	while (!r && !is_closed(p->fd)) {
		pthread_mutex_lock(&s->lock);
		bool more = left_sweep(s, &pid, &c);
		const struct memory *m = more ? left_memory_of(s, pid) : NULL;
		pthread_mutex_unlock(&s->lock);
		if (!more)
			return 0;
		r = sweep_chunk(p, m, &c);
	}
	return r;
}

static void pause_us(uint64_t us)
{
	const struct timespec t = {.tv_nsec = (long)(us < PAUSE_MAX_US ? us : PAUSE_MAX_US) * 1000};

	nanosleep(&t, NULL);
}

static void *push_main(void *arg)
{
	struct pusher *p = arg;
	struct server *s = p->s;

	near_cpu_leave(&s->near);
	int r = sweep(p);
	while (!r && !is_closed(p->fd)) {
		struct memory *m;
		uint64_t va;
		uint32_t n = 0;

		pthread_mutex_lock(&s->lock);
		uint64_t wait = token_bucket_wait_us(&s->bucket, now_us());
		bool more = s->left > 0;
		if (!wait && more) {
			n = left_next(s, &m, &va);
			token_bucket_pay(&s->bucket, n * CR_PAGE_SIZE);
		}
		pthread_mutex_unlock(&s->lock);
		if (wait)
			pause_us(wait);
		else if (n)
			r = serve_read_pages(m, va, n, p->pages, send_frame, p);
		else
			return NULL; /* all has been pushed; the connection stays */
	}
	/* the serving thread sees that at once, and connects anew */
	shutdown(s->urgent, SHUT_RDWR);
	return NULL;
}

int push_start(struct server *s)
{
	for (size_t i = 0; i < LAZY_BULK_MAX; i++) {
		struct pusher *p = s->pushers[i];

		if (!p)
			continue;
		int r = pthread_create(&p->thread, NULL, push_main, p);
		if (r)
			return -r;
		p->runs = true;
	}
	return 0;
}

void push_stop(struct server *s)
{
	for (size_t i = 0; i < LAZY_BULK_MAX; i++) {
		struct pusher *p = s->pushers[i];

		if (!p)
			continue;
		shutdown(p->fd, SHUT_RDWR); /* wakes it, if it is sending */
		if (p->runs)
			pthread_join(p->thread, NULL);
		close_fdp(&p->fd);
		free(p);
		s->pushers[i] = NULL;
	}
}
