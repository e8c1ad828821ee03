/* What waits to be read from a unix socket, with all that comes with it: descriptors, credentials,
 * who sent it.
 *
 * It is looked at with MSG_PEEK and SO_PEEK_OFF, socket(7) (3.4; stream sockets of the unix domain
 * 4.14), so nothing is taken out. SO_PASSCRED is on meanwhile: with it every packet comes with a
 * control message, which tells an empty one from the end, and reads of a stream stop where the
 * writer changes. The options are the task's own: they are put back.
 *
 * Of a stream, one look glues bytes without descriptors to those with, and stops after these. */
#include "resource/unix_private.h"

#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#ifndef SCM_PIDFD
#define SCM_PIDFD 0x04 /* 6.5 */
#endif

enum { QUEUE_MAX = 64 * 1024 * 1024, PACKET_ROOM = 64 * 1024, NOBODY = 65534 /* overflowuid */ };

struct look { /* what one recvmsg(2) told */
	ssize_t n;
	bool control;
	struct ucred cred;
	int fds[253]; /* SCM_MAX_FD */
	size_t n_fds;
	struct sockaddr_un from;
	socklen_t from_len;
};

static void forget_fds(struct look *l)
{
	for (size_t i = 0; i < l->n_fds; i++)
		close(l->fds[i]);
	l->n_fds = 0;
}

static void take_control(struct look *l, struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t bytes = c->cmsg_len - CMSG_LEN(0);

		l->control = true;
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS && bytes >= sizeof(l->cred))
			memcpy(&l->cred, CMSG_DATA(c), sizeof(l->cred));
		for (size_t at = 0; c->cmsg_type == SCM_RIGHTS && at + sizeof(int) <= bytes;
		     at += sizeof(int))
			memcpy(&l->fds[l->n_fds++], CMSG_DATA(c) + at, sizeof(int));
		if (c->cmsg_type == SCM_PIDFD && bytes >= sizeof(int)) {
			int pidfd;

			memcpy(&pidfd, CMSG_DATA(c), sizeof(pidfd));
			close(pidfd);
		}
	}
}

static void look(int fd, void *buf, size_t room, int flags, struct look *l)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(253 * sizeof(int)) + 256];
	} control;
	struct iovec iov = {.iov_base = buf, .iov_len = room};
	struct msghdr m = {.msg_name = &l->from,
			   .msg_namelen = sizeof(l->from),
			   .msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};

	l->control = false;
	l->n_fds = 0;
	l->cred = (struct ucred){0, NOBODY, NOBODY};
	l->n = recvmsg(fd, &m, flags | MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (l->n < 0)
		return;
	l->from_len = m.msg_namelen;
	take_control(l, &m);
}

static int seek(int fd, size_t to, struct cr_err *err)
{
	int off = (int)to;

	return setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off))
		   ? cr_err_sys(err, "SO_PEEK_OFF")
		   : 0;
}

/* l's descriptors go into q. */
static int add(struct unix_peeked *q, struct arena *a, struct look *l, const uint8_t *data,
	       size_t len, struct cr_err *err)
{
	struct unix_message *m = vec_push(&q->v);

	if (!m)
		return cr_err_oom(err);
	*m = (struct unix_message){.data = data,
				   .len = len,
				   .has_cred = l->cred.pid || l->cred.uid != NOBODY,
				   .cred_pid = l->cred.pid,
				   .cred_uid = l->cred.uid,
				   .cred_gid = l->cred.gid};
	if (!m->has_cred)
		m->cred_uid = m->cred_gid = 0;
	m->files = arena_array(a, uint32_t, l->n_fds);
	if (!m->files)
		return cr_err_oom(err);
	memset(m->files, 0xff, l->n_fds * sizeof(*m->files));
	while (m->n_files < l->n_fds) {
		int *slot = vec_push(&q->fds);

		if (!slot)
			return cr_err_oom(err);
		*slot = l->fds[m->n_files++];
	}
	l->n_fds = 0;
	if (l->from_len > UNIX_NAME_OFF) {
		m->from = arena_memdup(a, &l->from, l->from_len);
		m->from_len = l->from_len;
	}
	return l->from_len > UNIX_NAME_OFF && !m->from ? cr_err_oom(err) : 0;
}

/* ---- streams ---- */

/* Of n bytes at off, the last part of which came with descriptors: where that part begins. Into
 * memory that lacks the last byte the kernel copies what came before that part, and no more. */
static int find_rights(int fd, size_t off, size_t n, size_t *ret, struct cr_err *err)
{
	size_t bytes = ALIGN_UP(n, CR_PAGE_SIZE) + CR_PAGE_SIZE;
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct look l = {0};
	int r = 0;

	if (p == MAP_FAILED)
		return cr_err_oom(err);
	if (mprotect(p + bytes - CR_PAGE_SIZE, CR_PAGE_SIZE, PROT_NONE))
		r = cr_err_sys(err, "mprotect");
	if (!r)
		r = seek(fd, off, err);
	if (!r) {
		look(fd, p + bytes - CR_PAGE_SIZE - (n - 1), n, 0, &l);
		if (l.n < 0 && errno != EFAULT)
			r = cr_err_sys(err, "looking at what waits in a unix socket");
	}
	*ret = l.n < 0 ? 0 : (size_t)l.n;
	forget_fds(&l);
	munmap(p, bytes);
	return r;
}

static int peek_part(int fd, struct arena *a, struct unix_peeked *q, uint8_t *buf, size_t off,
		     size_t room, size_t *ret, struct cr_err *err)
{
	struct look l = {0}, none = {0};
	size_t plain = 0;
	int r = seek(fd, off, err);

	if (r)
		return r;
	look(fd, buf + off, room, 0, &l);
	if (l.n <= 0)
		return cr_err_sys(err, "looking at what waits in a unix socket");
	if (l.n_fds)
		r = find_rights(fd, off, (size_t)l.n, &plain, err);
	none.cred = l.cred;
	if (!r && plain)
		r = add(q, a, &none, buf + off, plain, err);
	if (!r)
		r = add(q, a, &l, buf + off + plain, (size_t)l.n - plain, err);
	*ret = (size_t)l.n;
	forget_fds(&l);
	return r;
}

static int peek_stream(int fd, struct arena *a, struct unix_peeked *q, int waiting,
		       struct cr_err *err)
{
	int r = 0;
	uint8_t urgent;

	q->urgent = recv(fd, &urgent, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) == 1;
	uint8_t *buf = arena_alloc(a, (size_t)waiting);
	if (!buf)
		return cr_err_oom(err);
	for (size_t off = 0, n = 0; off < (size_t)waiting && !r && !q->urgent; off += n)
		r = peek_part(fd, a, q, buf, off, (size_t)waiting - off, &n, err);
	return r;
}

/* ---- packets ---- */

/* MSG_TRUNC tells how long it is. (An empty packet that was looked at before is passed over by the
 * kernel.) 1: there is none. */
static int peek_packet(int fd, struct arena *a, struct unix_peeked *q, uint8_t **buf, size_t *room,
		       size_t off, size_t *ret, struct cr_err *err)
{
	struct look l = {0};

	look(fd, *buf, *room, MSG_TRUNC, &l);
	if (l.n < 0 && errno == EAGAIN)
		return 1;
	if (l.n < 0)
		return cr_err_sys(err, "looking at what waits in a unix socket");
	if (!l.n && !l.control)
		return 1; /* the end */
	if ((size_t)l.n > *room) {
		uint8_t *more = realloc(*buf, (size_t)l.n);
		int r = more ? seek(fd, off, err) : cr_err_oom(err);

		forget_fds(&l);
		*buf = more ? more : *buf;
		*room = more ? (size_t)l.n : *room;
		return r ? r : peek_packet(fd, a, q, buf, room, off, ret, err);
	}
	const uint8_t *data = l.n ? arena_memdup(a, *buf, (size_t)l.n) : NULL;
	int r = l.n && !data ? cr_err_oom(err) : add(q, a, &l, data, (size_t)l.n, err);
	forget_fds(&l);
	*ret = (size_t)l.n;
	return r;
}

static int peek_packets(int fd, struct arena *a, struct unix_peeked *q, struct cr_err *err)
{
	size_t room = PACKET_ROOM, n = 0;
	uint8_t *buf = malloc(room);
	int r = buf ? 0 : cr_err_oom(err);

	for (size_t off = 0; !r; off += n) {
		r = off > QUEUE_MAX ? cr_err_oom(err)
				    : peek_packet(fd, a, q, &buf, &room, off, &n, err);
	}
	free(buf);
	return r == 1 ? 0 : r;
}

/* ---- all ---- */

static int set_int(int fd, int name, int value, int *ret_before, struct cr_err *err)
{
	socklen_t len = sizeof(*ret_before);

	return (ret_before && getsockopt(fd, SOL_SOCKET, name, ret_before, &len)) ||
		       setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value))
		   ? cr_err_sys(err, "socket option %d", name)
		   : 0;
}

int unix_peek(int fd, int type, struct arena *a, struct unix_peeked *ret, struct cr_err *err)
{
	int offset = -1, passcred = 0, waiting = 0;

	if (type == SOCK_STREAM && ioctl(fd, SIOCINQ, &waiting))
		return cr_err_sys(err, "SIOCINQ");
	if (type == SOCK_STREAM && !waiting)
		return 0;
	int r = set_int(fd, SO_PEEK_OFF, 0, &offset, err);

	if (r)
		return r;
	r = set_int(fd, SO_PASSCRED, 1, &passcred, err);
	if (!r)
		r = type == SOCK_STREAM ? peek_stream(fd, a, ret, waiting, err)
					: peek_packets(fd, a, ret, err);
	struct cr_err e = {0};
	int back = set_int(fd, SO_PASSCRED, passcred, NULL, &e);
	if (!back)
		back = set_int(fd, SO_PEEK_OFF, offset, NULL, &e);
	if (!r && back)
		*err = e;
	return r ? r : back;
}

void unix_peeked_done(struct unix_peeked *q)
{
	vec_foreach (fd, &q->fds)
		if (*fd >= 0)
			close(*fd);
	vec_done(&q->fds);
	vec_done(&q->v);
}
