/* Puts into a unix socket what waited in it at the source.
 *
 * Between both ends of a pair or connection that is done through the other end. A datagram socket
 * is told under the name of who sent: by the task's own socket of that name, or one that has it for
 * a moment, in a directory that nobody sees.
 *
 * What waited at the source was let in by the buffers there; here it may come in other portions, of
 * which each is accounted for. So for the moment there is room. And neither end asks for
 * credentials meanwhile: a message has those that came with it, or none. */
#include "resource/unix_private.h"

#include <stdio.h>
#include <string.h>

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76 /* 6.5 */
#endif

enum { ROOM_BYTES = 1024 * 1024, RIGHTS_MAX = 253 };

void unix_drain(int fd)
{
	char buf[4096];
	struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};

	for (;;) {
		char control[CMSG_SPACE(sizeof(struct ucred))];
		struct msghdr m = {.msg_iov = &iov,
				   .msg_iovlen = 1,
				   .msg_control = control,
				   .msg_controllen = sizeof(control)};

		/* without credentials the end of a seqpacket socket reads like an empty packet */
		ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 || (!n && !m.msg_controllen))
			return;
	}
}

/* ---- one message ---- */

struct parcel {
	struct msghdr m;
	struct iovec iov;
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(RIGHTS_MAX * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
};

static void put_control(struct parcel *p, int type, const void *data, size_t bytes)
{
	struct cmsghdr *c = (void *)(p->control.bytes + p->m.msg_controllen);

	*c = (struct cmsghdr){CMSG_LEN(bytes), SOL_SOCKET, type};
	memcpy(CMSG_DATA(c), data, bytes);
	p->m.msg_control = &p->control;
	p->m.msg_controllen += CMSG_SPACE(bytes);
}

static int wrap(const struct fileset *fs, const struct unix_message *msg, struct parcel *p,
		struct cr_err *err)
{
	const struct ucred uc = {msg->cred_pid, msg->cred_uid, msg->cred_gid};
	int fds[RIGHTS_MAX];

	memset(p, 0, sizeof(*p));
	p->m.msg_iov = &p->iov;
	p->m.msg_iovlen = 1;
	if (msg->n_files > RIGHTS_MAX)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%zu descriptors in one message",
				  msg->n_files);
	for (size_t i = 0; i < msg->n_files; i++) {
		if (msg->files[i] >= fs->n_held || fs->held[msg->files[i]].fd < 0)
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "descriptors that wait to be received make no sense");
		fds[i] = fs->held[msg->files[i]].fd;
	}
	if (msg->has_cred)
		put_control(p, SCM_CREDENTIALS, &uc, sizeof(uc));
	if (msg->n_files)
		put_control(p, SCM_RIGHTS, fds, msg->n_files * sizeof(*fds));
	return 0;
}

/* to: NULL, where fd is connected. */
static int send_message(const struct fileset *fs, int fd, int type, const struct unix_message *msg,
			struct sockaddr_un *to, socklen_t to_len, struct cr_err *err)
{
	_cleanup_free_ struct parcel *p = malloc(sizeof(*p));
	int r = p ? wrap(fs, msg, p, err) : cr_err_oom(err);
	size_t at = 0;

	if (r)
		return r;
	p->m.msg_name = to;
	p->m.msg_namelen = to ? to_len : 0;
	do {
		p->iov = (struct iovec){(void *)(msg->data + at), msg->len - at};
		ssize_t n = sendmsg(fd, &p->m, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 || (type != SOCK_STREAM && (size_t)n != msg->len))
			return cr_err_sys(err, "filling a unix socket");
		at += (size_t)n;
		if (msg->n_files) { /* once: they came with the first byte */
			struct unix_message rest = *msg;

			rest.n_files = 0;
			r = wrap(fs, &rest, p, err);
			if (r)
				return r;
		}
	} while (at < msg->len);
	return 0;
}

/* ---- sockets as they have to be meanwhile ---- */

struct eased { /* as it was */
	int fd, sndbuf, lock, passcred, passpidfd;
};

static int get_int(int fd, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, SOL_SOCKET, name, &v, &len) ? 0 : v;
}

static int set_int(int fd, int name, int value)
{
	return setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value));
}

static int ease(int fd, size_t bytes, struct eased *was, struct cr_err *err)
{
	*was = (struct eased){fd, get_int(fd, SO_SNDBUF), get_int(fd, SO_BUF_LOCK),
			      get_int(fd, SO_PASSCRED), get_int(fd, SO_PASSPIDFD)};
	if (set_int(fd, SO_SNDBUFFORCE, (int)(2 * bytes + ROOM_BYTES)) ||
	    (was->passcred && set_int(fd, SO_PASSCRED, 0)) ||
	    (was->passpidfd && set_int(fd, SO_PASSPIDFD, 0)))
		return cr_err_sys(err, "options of a unix socket");
	return 0;
}

static int as_before(const struct eased *was, struct cr_err *err)
{
	/* the kernel doubles what is set, socket(7) */
	if (set_int(was->fd, SO_SNDBUFFORCE, was->sndbuf / 2) ||
	    set_int(was->fd, SO_BUF_LOCK, was->lock) ||
	    (was->passcred && set_int(was->fd, SO_PASSCRED, was->passcred)) ||
	    (was->passpidfd && set_int(was->fd, SO_PASSPIDFD, was->passpidfd)))
		return cr_err_sys(err, "options of a unix socket");
	return 0;
}

static size_t bytes_of(const struct file *f)
{
	size_t n = 0;

	for (size_t i = 0; i < f->n_messages; i++)
		n += f->messages[i].len;
	return n;
}

/* ---- through the other end ---- */

int unix_fill_through(const struct fileset *fs, int other, const struct file *f, struct cr_err *err)
{
	struct eased was;
	struct cr_err e = {0};
	int r = ease(other, bytes_of(f), &was, err);

	for (size_t i = 0; i < f->n_messages && !r; i++)
		r = send_message(fs, other, f->sock_type, &f->messages[i], NULL, 0, err);
	int back = as_before(&was, r ? &e : err);
	return r ? r : back;
}

/* ---- datagrams, by who sent them ---- */

static int sender_of(const struct fileset *fs, const struct tree *t, const struct unix_message *msg)
{
	for (uint32_t i = 0; i < t->n_files && i < fs->n_held && msg->from_len; i++)
		if (t->files[i].kind == FILE_UNIX_CONN && t->files[i].sock_type == SOCK_DGRAM &&
		    t->files[i].sockaddr_len == msg->from_len && fs->held[i].fd >= 0 &&
		    !memcmp(t->files[i].sockaddr, msg->from, msg->from_len))
			return fs->held[i].fd;
	return -1;
}

static int make_sender(const struct unix_message *msg, struct cr_err *err)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	const struct sockaddr_un *un = (const void *)msg->from;

	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	if (msg->from_len > sizeof(*un))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "name of a sender");
	if (msg->from_len > UNIX_NAME_OFF && !un->sun_path[0] &&
	    bind(fd, (const struct sockaddr *)un, msg->from_len))
		return cr_err_sys(err, "binding unix socket @%.*s",
				  (int)(msg->from_len - UNIX_NAME_OFF - 1), un->sun_path + 1);
	if (msg->from_len > UNIX_NAME_OFF && un->sun_path[0]) {
		int r = unix_bind_nowhere(fd, un, msg->from_len, err);

		if (r)
			return r;
	}
	return take_fd(&fd);
}

static int deliver(const struct fileset *fs, const struct tree *t, const struct unix_message *msg,
		   struct sockaddr_un *to, socklen_t to_len, struct cr_err *err)
{
	int fd = sender_of(fs, t, msg);
	_cleanup_fd_ int own = fd < 0 ? make_sender(msg, err) : -1;
	struct eased was;
	struct cr_err e = {0};

	fd = fd < 0 ? own : fd;
	if (fd < 0)
		return -err->code;
	int r = ease(fd, msg->len, &was, err);
	if (!r)
		r = send_message(fs, fd, SOCK_DGRAM, msg, to, to_len, err);
	int back = as_before(&was, r ? &e : err);
	return r ? r : back;
}

static int fill_by_name(const struct fileset *fs, const struct tree *t, const struct held *h,
			const struct file *f, struct cr_err *err)
{
	_cleanup_fd_ int at = -1;
	struct sockaddr_un un;
	socklen_t len;
	int r = unix_way_to(h->fd, f, &un, &len, &at, err);

	for (size_t i = 0; i < f->n_messages && !r; i++)
		r = deliver(fs, t, &f->messages[i], &un, len, err);
	return r;
}

/* ---- all ---- */

int unix_fill(struct fileset *fs, const struct tree *t, struct held *h, const struct file *f,
	      struct cr_err *err)
{
	struct eased was;
	struct cr_err e = {0};
	int r = ease(h->fd, 0, &was, err);

	if (!r)
		r = h->peer_fd >= 0 ? unix_fill_through(fs, h->peer_fd, f, err)
				    : fill_by_name(fs, t, h, f, err);
	int back = as_before(&was, r ? &e : err);
	return r ? r : back;
}

bool unix_make_ready(struct held *h, bool on)
{
	struct unix_message m = {.data = (const uint8_t *)"", .len = 1};
	struct cr_err ignored = {0};
	_cleanup_fd_ int at = -1, fd = -1;
	struct sockaddr_un un;
	socklen_t len;
	char c;

	if (!on)
		return recv(h->fd, &c, 1, MSG_DONTWAIT) == 1;
	if (h->peer_fd >= 0)
		return send(h->peer_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
	if (h->id.sock_type != SOCK_DGRAM || unix_way_to(h->fd, &h->id, &un, &len, &at, &ignored))
		return false;
	fd = make_sender(&m, &ignored);
	return fd >= 0 && sendto(fd, "", 1, MSG_DONTWAIT, (struct sockaddr *)&un, len) == 1;
}
