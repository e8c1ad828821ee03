#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include "base/log.h"
#include "pageserver/server.h"

/* A connection of an agent, or the listener. Watched by uv_poll since uv_pipe hands on no
 * descriptors but those of sockets. */
struct control {
	uv_poll_t poll;
	struct server *sv;
	struct control *prev, *next;
	struct session *session;
	int fd;
};

static void on_closed(uv_handle_t *h)
{
	struct control *c = h->data;

	close_fdp(&c->fd);
	free(c);
}

static void control_close(struct control *c)
{
	struct server *sv = c->sv;

	if (uv_is_closing((uv_handle_t *)&c->poll))
		return;
	session_end(sv, c->session);
	c->session = NULL;
	if (c != sv->control_listener) {
		if (c->prev)
			c->prev->next = c->next;
		else
			sv->controls = c->next;
		if (c->next)
			c->next->prev = c->prev;
		sv->ncontrols--;
	}
	uv_close((uv_handle_t *)&c->poll, on_closed);
}

/* Takes fd in any case. */
static int control_new(struct control **ret, struct server *sv, int fd, uv_poll_cb cb,
		       struct cr_err *err)
{
	struct control *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return cr_err_oom(err);
	}
	c->sv = sv;
	c->fd = fd;
	c->poll.data = c;
	int r = uv_poll_init(&sv->loop, &c->poll, fd);
	if (r) {
		close(fd);
		free(c);
		return cr_err_set(err, CR_ERR_KERNEL, -r, "watch a control socket: %s",
				  uv_strerror(r));
	}
	r = uv_poll_start(&c->poll, UV_READABLE | UV_DISCONNECT, cb);
	if (r) {
		uv_close((uv_handle_t *)&c->poll, on_closed);
		return cr_err_set(err, CR_ERR_KERNEL, -r, "watch a control socket: %s",
				  uv_strerror(r));
	}
	*ret = c;
	return 0;
}

/* ---- requests ---- */

/* The first descriptor that came along, or -1; more than one is not of this protocol. */
static int take_descriptor(struct msghdr *mh)
{
	int ret = -1;

	for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
			if (ret < 0)
				ret = fd;
			else
				close(fd);
		}
	}
	return ret;
}

static int handle_request(struct control *c, const struct ps_request *rq, int fd,
			  struct ps_reply *rp, struct cr_err *err)
{
	_cleanup_fd_ int owned = fd;

	if (rq->type == PS_SESSION) {
		rp->info = c->sv->info;
		if (c->session)
			return cr_err_set(err, CR_ERR_INPUT, EEXIST,
					  "this connection has its session already");
		return session_new(&c->session, c->sv, rq, err);
	}
	if (!c->session)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "no session yet");
	if (rq->type == PS_STATS) {
		session_stats(c->session, &rp->stats);
		return 0;
	}
	return session_request(c->sv, c->session, rq, take_fd(&owned), err);
}

static int answer(struct control *c, const void *bytes, size_t n, int fd)
{
	uint8_t out[PS_REPLY_BYTES];
	struct ps_request rq;
	struct ps_reply rp = {0};
	struct cr_err err = {0};
	int r = ps_request_decode(&rq, bytes, n, &err);

	if (n > PS_REQUEST_TYPE_AT) /* also what cannot be understood is answered */
		rp.type = ((const uint8_t *)bytes)[PS_REQUEST_TYPE_AT];
	if (r)
		close_fdp(&fd);
	else
		r = handle_request(c, &rq, fd, &rp, &err);
	if (r)
		rp.err = err;
	ps_reply_encode(out, &rp);
	/* an agent waits for each answer: if there is no room, it is not one of ours */
	return send(c->fd, out, sizeof(out), MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(out) ? 0 : -1;
}

static void on_readable(uv_poll_t *h, int status, int events)
{
	struct control *c = h->data;
	uint8_t bytes[PS_REQUEST_BYTES + 1];
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	struct iovec iov = {.iov_base = bytes, .iov_len = sizeof(bytes)};

	(void)events;
	while (status == 0) {
		struct msghdr mh = {
		    .msg_iov = &iov,
		    .msg_iovlen = 1,
		    .msg_control = ctl.buf,
		    .msg_controllen = sizeof(ctl.buf),
		};
		ssize_t n = recvmsg(c->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			break;
		int fd = take_descriptor(&mh); /* may come with nothing else */
		if (!n)
			close_fdp(&fd);
		if (!n || answer(c, bytes, (size_t)n, fd) < 0)
			break;
	}
	control_close(c);
}

/* ---- the listener ---- */

static bool peer_allowed(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) &&
	       (cred.uid == 0 || cred.uid == geteuid());
}

static void on_connection(uv_poll_t *h, int status, int events)
{
	struct control *listener = h->data, *c;
	struct server *sv = listener->sv;
	struct cr_err err = {0};

	(void)events;
	if (status < 0)
		return;
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	if (sv->ncontrols >= SERVER_CONTROLS_MOST || !peer_allowed(fd)) {
		log_warn("control connection refused");
		close(fd);
		return;
	}
	if (control_new(&c, sv, fd, on_readable, &err)) {
		log_warn("%s", err.msg);
		return;
	}
	c->next = sv->controls;
	if (c->next)
		c->next->prev = c;
	sv->controls = c;
	sv->ncontrols++;
}

/* A socket file that nobody listens on is from a page-server that was killed. */
static int remove_stale(const struct sockaddr_un *sa, struct cr_err *err)
{
	struct stat sb;

	if (lstat(sa->sun_path, &sb) < 0)
		return 0;
	if (!S_ISSOCK(sb.st_mode))
		return cr_err_set(err, CR_ERR_INPUT, EEXIST, "%s is there and is not a socket",
				  sa->sun_path);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return cr_err_sys(err, "socket");
	if (!connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) || errno != ECONNREFUSED)
		return cr_err_set(err, CR_ERR_INPUT, EADDRINUSE, "%s is in use by another process",
				  sa->sun_path);
	if (unlink(sa->sun_path) < 0)
		return cr_err_sys(err, "remove the stale socket %s", sa->sun_path);
	return 0;
}

int control_listen(struct server *sv, const char *path, struct cr_err *err)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};

	if (!*path || strlen(path) >= sizeof(sa.sun_path))
		return cr_err_set(err, CR_ERR_INPUT, ENAMETOOLONG,
				  "control socket %s: bad length of path", path);
	memcpy(sa.sun_path, path, strlen(path));
	int r = remove_stale(&sa, err);
	if (r)
		return r;
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cr_err_sys(err, "control socket");
	mode_t old = umask(0177);
	r = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
	umask(old);
	if (r < 0 || listen(fd, 16) < 0)
		return cr_err_sys(err, "listen on unix:%s", path);
	sv->control_path = path;
	return control_new(&sv->control_listener, sv, take_fd(&fd), on_connection, err);
}

void control_close_all(struct server *sv)
{
	while (sv->controls)
		control_close(sv->controls);
	if (sv->control_listener)
		control_close(sv->control_listener);
	if (sv->control_path)
		unlink(sv->control_path);
}
