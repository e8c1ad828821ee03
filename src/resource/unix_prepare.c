/* Unix sockets at the destination, when all is in them that waits to be read: what would have kept
 * that out, or is changed by it, comes now.
 *
 * The other end of one whose peer is gone was kept until now, and is closed. Datagram sockets are
 * connected: then they take what comes from their peer alone. What is shut down takes nothing. */
#include "resource/unix_private.h"

bool unix_is_pair(const struct tree *t, uint32_t i)
{
	const struct file *f = &t->files[i];

	if (!f->connected || f->waits_at != UINT32_MAX)
		return false;
	if (f->sock_type != SOCK_DGRAM)
		return true;
	return f->cred_pid &&
	       (f->peer == UINT32_MAX ? !f->peeraddr_len : t->files[f->peer].peer == i);
}

/* The peer, by its name; one that is gone is there for a moment. */
static int connect_datagrams(const struct fileset *fs, const struct tree *t, uint32_t i,
			     struct cr_err *err)
{
	const struct file *f = &t->files[i];
	_cleanup_fd_ int at = -1, own = -1;
	struct sockaddr_un un;
	socklen_t len;
	int r;

	if (f->peer < fs->n_held) {
		r = unix_way_to(fs->held[f->peer].fd, &t->files[f->peer], &un, &len, &at, err);
	} else {
		struct file gone = {.sockaddr = f->peeraddr, .sockaddr_len = f->peeraddr_len};
		struct held nowhere = {.fd = -1, .peer_fd = -1};

		own = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (own < 0)
			return cr_err_sys(err, "unix socket");
		r = unix_bind_name(&nowhere, own, &gone, err);
		if (!r)
			r = unix_way_to(own, &gone, &un, &len, &at, err);
	}
	if (!r && connect(fs->held[i].fd, (struct sockaddr *)&un, len))
		r = cr_err_sys(err, "connecting a unix datagram socket");
	return r;
}

/* As it came about at the source: something that the peer has not read when it is closed. */
static int leave_unread(struct held *h, struct cr_err *err)
{
	return send(h->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1
		   ? 0
		   : cr_err_sys(err, "the error of a unix socket whose peer is gone");
}

/* Reading, by which room was made while the socket was filled, moves it. */
static int set_peek_offset(int fd, const struct file *f, struct cr_err *err)
{
	int off = sockopt_int(f, SOL_SOCKET, SO_PEEK_OFF, -1);

	return off >= 0 && setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off))
		   ? cr_err_sys(err, "SO_PEEK_OFF of a unix socket")
		   : 0;
}

static int shut_down(int fd, uint32_t how, struct cr_err *err)
{
	if ((how & UNIX_SHUT_RD && shutdown(fd, SHUT_RD)) ||
	    (how & UNIX_SHUT_WR && shutdown(fd, SHUT_WR)))
		return cr_err_sys(err, "shutdown of a unix socket");
	return 0;
}

int unix_prepare(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	bool datagrams = f->sock_type == SOCK_DGRAM;
	struct held *h = &fs->held[i];
	int r = set_peek_offset(h->fd, f, err);

	if (!r && datagrams && f->connected && !unix_is_pair(t, i))
		r = connect_datagrams(fs, t, i, err);
	if (r)
		return r;
	if (f->peer != UINT32_MAX || datagrams || f->waits_at != UINT32_MAX)
		r = shut_down(h->fd, f->sock_shutdown, err);
	else if (f->sock_error && h->peer_fd >= 0)
		r = leave_unread(h, err);
	close_fdp(&h->peer_fd);
	return r;
}
