/* TCP sockets whose connection is over, by itself or because the move closes it.
 *
 * One that the move closes comes back as one that its peer has reset: the task reads ECONNRESET,
 * then end of file, epoll says EPOLLIN|EPOLLERR|EPOLLHUP, and it closes the socket as it would
 * after any failure. One that was over before has what waits to be read, and then its end or its
 * error, as before. Each is made of a real connection over loopback, whose other end is closed;
 * with SO_LINGER 0 for a reset. Its options and its name are not moved: it has no use for any. */
#include "resource/file_kind.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include "resource/tcp_private.h"

enum {
	RESET_BACKLOG = 16,
	RESET_WAIT_MS = 2000,
	CLOSED_SAID_MAX = 16,
	ADDR_TEXT = 128,
	FRAME_BYTES = 64 * 1024, /* of a queue's memory, beside twice what is in it */
};

static int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

static bool closed_match(const struct fd_probe *p)
{
	return tcp_is_socket(p);
}

/* ---- capture ---- */

/* SO_ERROR would tell which error waits, and take it away. Whoever was refused has received nothing
 * but that: of any connection that came about there are two segments at least. */
static enum tcp_end end_of(int fd)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	struct tcp_info ti = {0};
	socklen_t len = sizeof(ti);

	if (poll(&pfd, 1, 0) < 0 || !(pfd.revents & POLLERR))
		return TCP_END_CLEAN;
	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) && ti.tcpi_segs_in == 1
		   ? TCP_END_REFUSED
		   : TCP_END_RESET;
}

/* Nothing comes any more, but what came before can be read. */
int tcp_ended_capture(struct files_ctx *x, int fd, struct file *f, struct cr_err *err)
{
	int n = 0, off = -1;
	socklen_t len = sizeof(off);

	f->tcp_end = end_of(fd);
	if (ioctl(fd, SIOCINQ, &n) || n <= 0)
		return 0;
	uint8_t *buf = arena_array(x->c->tree->arena, uint8_t, (size_t)n);
	if (!buf)
		return cr_err_oom(err);
	/* with SO_PEEK_OFF it would begin elsewhere, and move on, socket(7) */
	if (!getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, &len) && off >= 0 &&
	    set_int(fd, SOL_SOCKET, SO_PEEK_OFF, -1))
		return cr_err_sys(err, "SO_PEEK_OFF");
	ssize_t got = recv(fd, buf, (size_t)n, MSG_PEEK | MSG_DONTWAIT);
	int saved = errno;
	if (off >= 0 && set_int(fd, SOL_SOCKET, SO_PEEK_OFF, off))
		return cr_err_sys(err, "SO_PEEK_OFF");
	errno = saved;
	if (got < 0 && x->c->exact)
		return cr_err_sys(err, "reading what a connection has left");
	f->data = buf;
	f->data_len = f->size = got > 0 ? (size_t)got : 0; /* a task that runs may have read it */
	return 0;
}

int tcp_closed_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       struct cr_err *err)
{
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);
	char text[ADDR_TEXT] = "somewhere"; /* not connected yet */

	tcp_capture_common(p, f, FILE_TCP_CLOSED);
	if (p->tcp_state == TCP_CLOSE) /* has ended already: nothing is lost */
		return tcp_ended_capture(x, p->local, f, err);
	if (x->c->exact && x->c->tcp != TCP_MODE_REFUSE)
		return 0; /* nobody reads warnings now */
	if (p->facts)
		sockaddr_text(&p->facts->peer, sizeof(p->facts->peer), text, sizeof(text));
	else if (p->diag)
		sockaddr_text(&p->diag->peer, sizeof(p->diag->peer), text, sizeof(text));
	else if (!getpeername(p->local, (struct sockaddr *)&sa, &len))
		sockaddr_text(&sa, len, text, sizeof(text));
	if (x->c->tcp == TCP_MODE_REFUSE)
		files_refuse(x, p->pid, p->fd,
			     "TCP connection to %s: not supported; close it first", text);
	/* a list of thousands helps nobody */
	else if (x->n_closed++ < CLOSED_SAID_MAX && ++x->n_closed_said)
		files_warn(x, p->pid, p->fd, "connection to %s is closed by the move", text);
	return 0;
}

/* ---- rebuild ---- */

static int reset_listener(struct cr_err *err)
{
	struct sockaddr_in sa = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, RESET_BACKLOG))
		return cr_err_sys(err, "a listener on the loopback interface (is it up?)");
	return take_fd(&fd);
}

static int wait_for(int fd, short events, struct cr_err *err)
{
	struct pollfd pfd = {.fd = fd, .events = events};
	int r = poll(&pfd, 1, RESET_WAIT_MS);

	if (r < 0)
		return cr_err_sys(err, "poll");
	return r ? 0 : cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT, "no answer over loopback");
}

/* The other end of fd. Others can connect to the listener too: theirs are closed. */
static int accept_ours(int listener, int fd, struct cr_err *err)
{
	struct sockaddr_storage us = {0};
	socklen_t len = sizeof(us);
	/* sin_port and sin6_port are at one place */
	const struct sockaddr_in *in = (const void *)&us;

	if (getsockname(fd, (struct sockaddr *)&us, &len))
		return cr_err_sys(err, "getsockname");
	for (;;) {
		struct sockaddr_in peer = {0};
		int r = wait_for(listener, POLLIN, err);

		if (r < 0)
			return r;
		len = sizeof(peer);
		_cleanup_fd_ int other =
		    accept4(listener, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC);
		if (other < 0 && errno != EAGAIN && errno != ECONNABORTED)
			return cr_err_sys(err, "accept4");
		if (other >= 0 && peer.sin_port == in->sin_port)
			return take_fd(&other);
	}
}

/* room: for that much that nobody reads; 0: as it is */
static int connect_loopback(int listener, int family, size_t room, struct cr_err *err)
{
	struct sockaddr_in sa = {0};
	struct sockaddr_in6 sa6 = {.sin6_family = AF_INET6};
	socklen_t len = sizeof(sa);
	_cleanup_fd_ int fd =
	    socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);

	if (fd < 0 || getsockname(listener, (struct sockaddr *)&sa, &len))
		return cr_err_sys(err, "TCP socket");
	inet_pton(AF_INET6, "::ffff:127.0.0.1", &sa6.sin6_addr);
	sa6.sin6_port = sa.sin_port;
	if (family == AF_INET6 && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0))
		return cr_err_sys(err, "IPV6_V6ONLY");
	if (room && set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)(2 * room + FRAME_BYTES)))
		return cr_err_sys(err, "SO_RCVBUFFORCE");
	int r = family == AF_INET6 ? connect(fd, (struct sockaddr *)&sa6, sizeof(sa6))
				   : connect(fd, (struct sockaddr *)&sa, sizeof(sa));
	if (r && errno != EINPROGRESS)
		return cr_err_sys(err, "connecting over loopback");
	r = wait_for(fd, POLLOUT, err);
	return r < 0 ? r : take_fd(&fd);
}

static int leave(int other, int fd, const uint8_t *data, size_t len, struct cr_err *err)
{
	int n = 0, r = 0;

	for (size_t at = 0; at < len && !r;) {
		ssize_t sent = send(other, data + at, len - at, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN)
			r = wait_for(other, POLLOUT, err);
		else if (sent < 0)
			return cr_err_sys(err, "sending over loopback");
		at += sent > 0 ? (size_t)sent : 0;
	}
	/* a reset that came first would take what is on its way with it */
	while (!r && !ioctl(fd, SIOCINQ, &n) && (size_t)n < len) {
		r = set_int(fd, SOL_SOCKET, SO_RCVLOWAT, (int)len) ? cr_err_sys(err, "SO_RCVLOWAT")
								   : wait_for(fd, POLLIN, err);
	}
	if (!r && len && set_int(fd, SOL_SOCKET, SO_RCVLOWAT, 1))
		r = cr_err_sys(err, "SO_RCVLOWAT");
	return r;
}

/* A connection that came about, and is over. */
static int make_ended(int listener, int family, const struct file *f, struct cr_err *err)
{
	struct linger at_once = {.l_onoff = 1};
	_cleanup_fd_ int fd = connect_loopback(listener, family, f->data_len, err);

	if (fd < 0)
		return fd;
	_cleanup_fd_ int other = accept_ours(listener, fd, err);
	if (other < 0)
		return other;
	int r = leave(other, fd, f->data, f->data_len, err);
	if (r)
		return r;
	if (f->tcp_end != TCP_END_CLEAN &&
	    setsockopt(other, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)))
		return cr_err_sys(err, "SO_LINGER");
	close_fdp(&other);
	r = wait_for(fd, POLLRDHUP, err);
	if (!r && f->tcp_end == TCP_END_CLEAN && shutdown(fd, SHUT_WR))
		r = cr_err_sys(err, "shutdown");
	return r < 0 ? r : take_fd(&fd);
}

/* Nobody listens at a port that is only bound. */
static int make_refused(int family, struct cr_err *err)
{
	struct sockaddr_in sa = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
	socklen_t len = sizeof(sa);
	struct sockaddr_in6 sa6 = {.sin6_family = AF_INET6};
	_cleanup_fd_ int nobody = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	_cleanup_fd_ int fd =
	    socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);

	if (nobody < 0 || fd < 0 || bind(nobody, (struct sockaddr *)&sa, sizeof(sa)) ||
	    getsockname(nobody, (struct sockaddr *)&sa, &len))
		return cr_err_sys(err, "TCP socket");
	inet_pton(AF_INET6, "::ffff:127.0.0.1", &sa6.sin6_addr);
	sa6.sin6_port = sa.sin_port;
	if (family == AF_INET6 && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0))
		return cr_err_sys(err, "IPV6_V6ONLY");
	int r = family == AF_INET6 ? connect(fd, (struct sockaddr *)&sa6, sizeof(sa6))
				   : connect(fd, (struct sockaddr *)&sa, sizeof(sa));
	if (!r || errno != EINPROGRESS)
		return cr_err_sys(err, "connecting over loopback");
	r = wait_for(fd, POLLOUT, err);
	return r < 0 ? r : take_fd(&fd);
}

static int closed_build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	if (f->sock_family != AF_INET && f->sock_family != AF_INET6)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "TCP socket of family %d",
				  f->sock_family);
	if (fs->reset_listener < 0)
		fs->reset_listener = reset_listener(err);
	if (fs->reset_listener < 0)
		return fs->reset_listener;
	fs->held[i].fd = f->tcp_end == TCP_END_REFUSED
			     ? make_refused(f->sock_family, err)
			     : make_ended(fs->reset_listener, f->sock_family, f, err);
	return fs->held[i].fd < 0 ? cr_err_ctx(err, "a connection that is over") : 0;
}

static void closed_check(const struct file_check *k, const struct file *f)
{
	const struct file reset = {.tcp_end = TCP_END_RESET};
	struct cr_err err = {0};

	for (const struct file *o = k->t->files; o < f; o++)
		if (o->kind == f->kind && o->sock_family == f->sock_family)
			return; /* tried already */
	_cleanup_fd_ int listener = reset_listener(&err);
	_cleanup_fd_ int fd =
	    listener < 0 ? -1 : make_ended(listener, f->sock_family, &reset, &err);

	if (fd < 0)
		file_check_refuse(k, "TCP connection: %.200s", err.msg);
}

const struct file_ops file_ops_tcp_closed = {
    .name = "TCP connection",
    .kind = FILE_TCP_CLOSED,
    .match = closed_match,
    .capture = tcp_closed_capture,
    .check = closed_check,
    .build = closed_build,
};
