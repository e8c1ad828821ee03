#include "wire/page_conn.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

enum { DEAD_PEER_MS = 5000 };

static int conn_failed(const struct page_conn *c, const char *what, int code, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_IO, code, "page stream %u to %s: %s: %s", c->index,
			  c->address, what, strerror(code));
}

static int set_options(struct page_conn *c, struct cr_err *err)
{
	static const struct {
		int level, name, value;
	} options[] = {
	    {SOL_SOCKET, SO_KEEPALIVE, 1},
	    {IPPROTO_TCP, TCP_NODELAY, 1},
	    {IPPROTO_TCP, TCP_KEEPIDLE, 1},
	    {IPPROTO_TCP, TCP_KEEPINTVL, 1},
	    {IPPROTO_TCP, TCP_KEEPCNT, 5},
	    /* also bounds how long a receiver that takes nothing is waited for (tcp(7), 2.6.37) */
	    {IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_PEER_MS},
	};

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		if (setsockopt(c->fd, options[i].level, options[i].name, &options[i].value,
			       sizeof(int)) < 0)
			return conn_failed(c, "socket options", errno, err);
	return 0;
}

int page_conn_connect(struct page_conn *c, const struct addr *addr, struct cr_err *err)
{
	c->fd = socket(addr->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		return conn_failed(c, "socket", errno, err);
	int r = set_options(c, err);
	if (r)
		return r;
	if (connect(c->fd, &addr->sa, addr->len) < 0 && errno != EINPROGRESS)
		return conn_failed(c, "connect", errno, err);
	return 0;
}

int page_conn_connected(struct page_conn *c, struct cr_err *err)
{
	int code = 0;
	socklen_t len = sizeof(code);

	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &code, &len) < 0)
		code = errno;
	return code ? conn_failed(c, "connect", code, err) : 0;
}

void page_conn_begin(struct page_conn *c, const struct page_frame *f, size_t head_bytes)
{
	page_frame_encode(c->head, f);
	c->iov[0] = (struct iovec){.iov_base = c->head, .iov_len = head_bytes};
	c->iov_at = 0;
	c->iov_n = 1;
	c->left = head_bytes;
}

void page_conn_add(struct page_conn *c, const void *p, size_t bytes)
{
	struct iovec *last = &c->iov[c->iov_n - 1];

	c->left += bytes;
	if (c->iov_n > 1 && (const char *)last->iov_base + last->iov_len == p) {
		last->iov_len += bytes;
		return;
	}
	c->iov[c->iov_n++] = (struct iovec){.iov_base = (void *)p, .iov_len = bytes};
}

static void advance(struct page_conn *c, size_t n)
{
	c->left -= n;
	while (n) {
		struct iovec *v = &c->iov[c->iov_at];
		size_t k = n < v->iov_len ? n : v->iov_len;

		v->iov_base = (char *)v->iov_base + k;
		v->iov_len -= k;
		n -= k;
		if (!v->iov_len)
			c->iov_at++;
	}
}

/* A peer that refuses says why and closes: its words are worth more than "broken pipe". */
static int send_failed(struct page_conn *c, int code, struct cr_err *err)
{
	int r;

	do
		r = page_conn_receive(c, err);
	while (r > 0);
	if (r < 0 && err->kind != CR_ERR_IO)
		return r;
	return conn_failed(c, "send", code, err);
}

ssize_t page_conn_send(struct page_conn *c, struct cr_err *err)
{
	size_t total = 0;

	while (c->left) {
		struct msghdr mh = {.msg_iov = c->iov + c->iov_at,
				    .msg_iovlen = c->iov_n - c->iov_at};

		if (mh.msg_iovlen >
		    1024) /* UIO_MAXIOV; a full batch of scattered pages has one more */
			mh.msg_iovlen = 1024;
		ssize_t n = sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0)
			return send_failed(c, errno, err);
		advance(c, (size_t)n);
		total += (size_t)n;
	}
	return (ssize_t)total;
}

static int read_up_to(struct page_conn *c, size_t want, struct cr_err *err)
{
	while (c->in_bytes < want) {
		ssize_t n = recv(c->fd, c->in + c->in_bytes, want - c->in_bytes, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return conn_failed(c, "receive", errno, err);
		if (n == 0)
			return cr_err_set(
			    err, CR_ERR_IO, EPIPE,
			    "page stream %u: the page-server at %s closed the connection", c->index,
			    c->address);
		c->in_bytes += (size_t)n;
	}
	return 1;
}

static int peer_error(const struct page_conn *c, struct cr_err *err)
{
	struct page_error e;
	int r = page_error_decode(&e, c->in + PAGE_HDR_BYTES, c->in_frame.wire_bytes, err);

	if (r)
		return r;
	/* never IO: that would read as a failure of this connection */
	return cr_err_set(err, e.kind == CR_ERR_IO ? CR_ERR_PEER : e.kind, (int)e.code,
			  "page stream %u: page-server at %s: %s", c->index, c->address, e.text);
}

int page_conn_receive(struct page_conn *c, struct cr_err *err)
{
	/* read no more than the frame: the previous one has been used by now */
	int r = read_up_to(c, PAGE_HDR_BYTES, err);

	if (r <= 0)
		return r;
	r = page_frame_decode(&c->in_frame, c->in, c->in_bytes, err);
	if (r)
		return cr_err_ctx(err, "from the page-server at %s", c->address);
	if (c->in_frame.type != PAGE_FRAME_HELLO_OK && c->in_frame.type != PAGE_FRAME_ACK &&
	    c->in_frame.type != PAGE_FRAME_ERROR)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "page stream %u: %s sent a frame that only senders send",
				  c->index, c->address);
	r = read_up_to(c, page_frame_bytes(&c->in_frame), err);
	if (r <= 0)
		return r;
	c->in_bytes = 0;
	return c->in_frame.type == PAGE_FRAME_ERROR ? peer_error(c, err) : 1;
}

void page_conn_done(struct page_conn *c)
{
	close_fdp(&c->fd);
	free(c->packed);
	vec_done(&c->owed);
	c->packed = NULL;
}
