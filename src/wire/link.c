/* Frames over a socket: see link.h. The descriptors are non-blocking and every wait is a poll with
 * a deadline, so that no peer can hold its partner up for longer than it agreed to. */
#include "wire/link.h"

#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "wire/addr.h"

enum {
	HEADER_BYTES = 4,
	BUFFER_BYTES = 64 * 1024, /* kept between frames; more is returned once a frame is read */
	SEND_TIMEOUT_MS = 10000,
	BACKLOG = 64,
	/* tcp(7): a dead peer is noticed after idle + count * interval, or the user timeout */
	KEEPALIVE_IDLE_S = 1,
	KEEPALIVE_INTERVAL_S = 1,
	KEEPALIVE_COUNT = 5,
	TCP_TIMEOUT_MS = 5000,
};

struct link {
	int in, out;
	size_t limit; /* of a frame that comes in */
	uint8_t *buf;
	size_t have, cap; /* bytes in buf, room in it */
	int send_timeout_ms;
	int broken; /* errno after which nothing can be received any more */
};

/* ---- waiting ---- */

static uint64_t now_ms(void)
{
	return now_us() / 1000;
}

/* 0 when fd is ready, -ETIMEDOUT (without a message) when the deadline has passed. */
static int wait_fd(int fd, short events, int timeout_ms, uint64_t deadline)
{
	for (;;) {
		struct pollfd p = {.fd = fd, .events = events};
		uint64_t now = now_ms();
		int left = timeout_ms < 0 ? -1 : now >= deadline ? 0 : (int)(deadline - now);
		int n = poll(&p, 1, left);

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -ETIMEDOUT;
	}
}

static uint64_t deadline_of(int timeout_ms)
{
	return timeout_ms < 0 ? UINT64_MAX : now_ms() + (uint64_t)timeout_ms;
}

/* ---- making and ending ---- */

static int set_nonblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/* Sockets of other families do not know these options: that is fine. */
static void tune_tcp(int fd)
{
	static const struct {
		int level, name, value;
	} opts[] = {
	    {IPPROTO_TCP, TCP_NODELAY, 1},
	    {SOL_SOCKET, SO_KEEPALIVE, 1},
	    {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S},
	    {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S},
	    {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT},
	    {IPPROTO_TCP, TCP_USER_TIMEOUT, TCP_TIMEOUT_MS},
	};
	int saved = errno;

	for (size_t i = 0; i < ARRAY_SIZE(opts); i++)
		(void)!setsockopt(fd, opts[i].level, opts[i].name, &opts[i].value, sizeof(int));
	errno = saved;
}

int link_new(struct link **ret, int in, int out, struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = calloc(1, sizeof(*l));

	if (!l) {
		close_fdp(&in);
		if (out != in)
			close_fdp(&out);
		return cr_err_oom(err);
	}
	l->in = in;
	l->out = out;
	l->limit = MSG_BYTES;
	l->send_timeout_ms = SEND_TIMEOUT_MS;
	if (set_nonblock(in) < 0 || set_nonblock(out) < 0)
		return cr_err_sys(err, "cannot make a link non-blocking");
	tune_tcp(in);
	*ret = take_ptr(l);
	return 0;
}

void link_free(struct link *l)
{
	if (!l)
		return;
	if (l->out != l->in)
		close_fdp(&l->out);
	close_fdp(&l->in);
	free(l->buf);
	free(l);
}

void link_accept_trees(struct link *l)
{
	l->limit = MSG_TREE_BYTES;
}

void link_set_limit(struct link *l, size_t bytes)
{
	l->limit = bytes;
}

int link_fd(const struct link *l)
{
	return l->in;
}

/* ---- connecting ---- */

static int connect_unix(int fd, const struct addr *a, int timeout_ms)
{
	/* Blocks while the backlog is full, at most this long: the send timeout counts, socket(7).
	 */
	struct timeval tv = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};

	if (timeout_ms >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
		return -errno;
	if (connect(fd, &a->sa, a->len) == 0)
		return 0;
	return errno == EAGAIN ? -ETIMEDOUT : -errno;
}

static int connect_tcp(int fd, const struct addr *a, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);
	int error;
	socklen_t len = sizeof(error);

	if (set_nonblock(fd) < 0)
		return -errno;
	if (connect(fd, &a->sa, a->len) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return -errno;
	int r = wait_fd(fd, POLLOUT, timeout_ms, deadline);
	if (r < 0)
		return r;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		return -errno;
	return -error;
}

int link_connect(struct link **ret, const char *address, int timeout_ms, struct cr_err *err)
{
	struct addr a;
	int r = addr_parse(address, &a, err);

	if (r < 0)
		return r;
	_cleanup_fd_ int fd = socket(a.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return cr_err_sys(err, "socket");
	r = a.sa.sa_family == AF_UNIX ? connect_unix(fd, &a, timeout_ms)
				      : connect_tcp(fd, &a, timeout_ms);
	if (r < 0)
		return cr_err_set(err, CR_ERR_IO, -r, "cannot connect to %s: %s", address,
				  strerror(-r));
	int taken = take_fd(&fd);
	return link_new(ret, taken, taken, err);
}

/* ---- listening ---- */

/* A socket file that nobody listens on any more is in the way of bind(2); one in use is not
 * touched. */
static int remove_stale(const struct addr *a, const char *address, struct cr_err *err)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "socket");
	if (connect(fd, &a->sa, a->len) == 0 || errno == EAGAIN)
		return cr_err_set(err, CR_ERR_IO, EADDRINUSE, "%s: somebody listens there already",
				  address);
	if (errno == ECONNREFUSED && unlink(a->un.sun_path) < 0 && errno != ENOENT)
		return cr_err_set(err, CR_ERR_IO, errno, "%s: cannot remove the old socket: %s",
				  address, strerror(errno));
	return 0;
}

int link_listen(const char *address, struct cr_err *err)
{
	struct addr a;
	int one = 1, r = addr_parse(address, &a, err);

	if (r < 0)
		return r;
	_cleanup_fd_ int fd = socket(a.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cr_err_sys(err, "socket");
	if (a.sa.sa_family == AF_UNIX) {
		r = remove_stale(&a, address, err);
		if (r < 0)
			return r;
		/* the file that bind(2) makes takes its mode from the socket */
		if (fchmod(fd, 0600) < 0)
			return cr_err_sys(err, "%s: fchmod", address);
	} else if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0) {
		return cr_err_sys(err, "%s: SO_REUSEADDR", address);
	}
	if (bind(fd, &a.sa, a.len) < 0 || listen(fd, BACKLOG) < 0)
		return cr_err_set(err, CR_ERR_IO, errno, "cannot listen on %s: %s", address,
				  strerror(errno));
	return take_fd(&fd);
}

int link_listen_address(int listen_fd, char *buf, struct cr_err *err)
{
	struct addr a = {.len = sizeof(a.un)};

	if (getsockname(listen_fd, &a.sa, &a.len) < 0)
		return cr_err_sys(err, "getsockname");
	addr_format(&a, buf);
	return 0;
}

int link_accept(int listen_fd, struct link **ret, struct cr_err *err)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	/* a connection that broke before it was accepted is none, accept(2) */
	if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
		return cr_err_set(err, CR_ERR_IO, EAGAIN, "nobody is waiting");
	if (fd < 0)
		return cr_err_sys(err, "accept");
	return link_new(ret, fd, fd, err);
}

/* ---- sending ---- */

static ssize_t write_some(int fd, const struct iovec *iov, size_t n)
{
	struct msghdr mh = {.msg_iov = (struct iovec *)iov, .msg_iovlen = n};
	ssize_t r = sendmsg(fd, &mh, MSG_NOSIGNAL);

	if (r < 0 && errno == ENOTSOCK)
		r = writev(fd, iov, (int)n);
	return r;
}

static int write_all(int fd, struct iovec *iov, size_t n, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);

	while (n) {
		ssize_t done = write_some(fd, iov, n);

		if (done < 0 && errno == EAGAIN) {
			int r = wait_fd(fd, POLLOUT, timeout_ms, deadline);
			if (r < 0)
				return r;
			continue;
		}
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		deadline = deadline_of(timeout_ms); /* it moves */
		for (; n && (size_t)done >= iov->iov_len; iov++, n--)
			done -= (ssize_t)iov->iov_len;
		if (n) {
			iov->iov_base = (char *)iov->iov_base + done;
			iov->iov_len -= (size_t)done;
		}
	}
	return 0;
}

void link_set_send_timeout(struct link *l, int timeout_ms)
{
	l->send_timeout_ms = timeout_ms;
}

int link_send(struct link *l, const struct msg *m, struct cr_err *err)
{
	_cleanup_free_ uint8_t *body = NULL;
	size_t len = 0;
	int r = msg_encode(m, &body, &len, err);

	if (r < 0)
		return cr_err_ctx(err, "sending %s", msg_type_name(m->type));
	uint8_t header[HEADER_BYTES] = {(uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16),
					(uint8_t)(len >> 24)};
	struct iovec iov[] = {{header, sizeof(header)}, {body, len}};

	r = write_all(l->out, iov, ARRAY_SIZE(iov), l->send_timeout_ms);
	if (r < 0)
		return cr_err_set(err, CR_ERR_PEER, -r, "sending %s: %s", msg_type_name(m->type),
				  strerror(-r));
	return 0;
}

/* ---- receiving ---- */

static size_t frame_bytes(const struct link *l)
{
	return (size_t)l->buf[0] | (size_t)l->buf[1] << 8 | (size_t)l->buf[2] << 16 |
	       (size_t)l->buf[3] << 24;
}

static int broken(struct link *l, int code, struct cr_err *err)
{
	l->broken = code;
	if (code == ECONNRESET)
		return cr_err_set(err, CR_ERR_PEER, code, "the other side closed the connection%s",
				  l->have ? " in the middle of a message" : "");
	if (code == EMSGSIZE)
		return cr_err_set(err, CR_ERR_PEER, code, "a frame of %zu bytes: over the limit",
				  frame_bytes(l));
	return cr_err_set(err, CR_ERR_PEER, code, "the connection broke: %s", strerror(code));
}

static bool header_bad(const struct link *l)
{
	return l->have >= HEADER_BYTES && frame_bytes(l) > l->limit;
}

static bool frame_complete(const struct link *l)
{
	return l->have >= HEADER_BYTES && l->have - HEADER_BYTES >= frame_bytes(l);
}

bool link_pending(const struct link *l)
{
	return l->broken || header_bad(l) || frame_complete(l);
}

/* Room for at least one more byte. Grows as the frame comes in, not by what its header promises. */
static int make_room(struct link *l)
{
	size_t cap = l->cap ? l->cap * 2 : BUFFER_BYTES;

	if (l->have < l->cap)
		return 0;
	if (l->have >= HEADER_BYTES && cap > HEADER_BYTES + frame_bytes(l))
		cap = HEADER_BYTES + frame_bytes(l);
	uint8_t *p = realloc(l->buf, cap);
	if (!p)
		return -ENOMEM;
	l->buf = p;
	l->cap = cap;
	return 0;
}

/* One read. 0, or an errno as a positive number. */
static int fill(struct link *l)
{
	if (make_room(l) < 0)
		return ENOMEM;
	ssize_t n = read(l->in, l->buf + l->have, l->cap - l->have);
	if (n < 0)
		return errno;
	if (n == 0)
		return ECONNRESET;
	l->have += (size_t)n;
	return 0;
}

/* Drops the first frame; gives back what a long one took. */
static void drop_frame(struct link *l)
{
	size_t bytes = HEADER_BYTES + frame_bytes(l);

	memmove(l->buf, l->buf + bytes, l->have - bytes);
	l->have -= bytes;
	if (l->cap > BUFFER_BYTES && l->have <= BUFFER_BYTES) {
		uint8_t *p = realloc(l->buf, BUFFER_BYTES);

		if (p) {
			l->buf = p;
			l->cap = BUFFER_BYTES;
		}
	}
}

int link_recv(struct link *l, int timeout_ms, struct msg *ret, struct cr_err *err)
{
	uint64_t deadline = deadline_of(timeout_ms);

	memset(ret, 0, sizeof(*ret));
	if (l->broken)
		return broken(l, l->broken, err);
	while (!frame_complete(l)) {
		if (header_bad(l))
			return broken(l, EMSGSIZE, err);
		int code = fill(l);
		if (code == EAGAIN) {
			int r = wait_fd(l->in, POLLIN, timeout_ms, deadline);
			if (r == -ETIMEDOUT)
				return cr_err_set(err, CR_ERR_PEER, ETIMEDOUT,
						  "no answer from the other side");
			code = -r;
		}
		if (code && code != EINTR)
			return broken(l, code, err);
	}
	if (header_bad(l)) /* the whole of it is buffered, and it is still too long */
		return broken(l, EMSGSIZE, err);
	int r = msg_decode(l->buf + HEADER_BYTES, frame_bytes(l), ret, err);
	drop_frame(l);
	if (r < 0)
		l->broken = -r;
	return r;
}

/* ---- question and answer ---- */

int link_call(struct link *l, const struct msg *m, enum msg_type want, int timeout_ms,
	      struct msg *reply, struct cr_err *err)
{
	int r = link_send(l, m, err);

	memset(reply, 0, sizeof(*reply));
	if (r < 0)
		return r;
	r = link_recv(l, timeout_ms, reply, err);
	if (r < 0)
		return cr_err_ctx(err, "%s", msg_type_name(m->type));
	if (reply->type == want)
		return 0;
	if (reply->type == MSG_ERROR) {
		*err = reply->error;
		cr_err_ctx(err, "%s", msg_type_name(m->type));
	} else {
		cr_err_set(err, CR_ERR_PEER, EPROTO, "%s was answered by %s",
			   msg_type_name(m->type), msg_type_name(reply->type));
	}
	msg_free(reply);
	return -err->code;
}

int link_hello(struct link *l, const struct msg_hello *mine, int timeout_ms, struct msg *reply,
	       struct cr_err *err)
{
	struct msg m = {.type = MSG_HELLO, .hello = *mine};

	return link_call(l, &m, MSG_HELLO, timeout_ms, reply, err);
}
