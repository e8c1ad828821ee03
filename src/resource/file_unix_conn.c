/* Unix sockets that do not listen: pairs and connections whose both ends are in the tree, ends
 * whose peer has closed, sockets that are not connected.
 *
 * What SO_PEERCRED reads is who made the pair, who connected, who called listen(2): so those calls
 * are made in the shell of that process, under its effective ids, where the tree has it. A
 * connection that was made through a name gets a listener of that name for a moment: getsockname(2)
 * of the accepted end shows it.
 *
 * What waits to be read is looked at with MSG_PEEK and SO_PEEK_OFF, socket(7) (3.4; stream sockets
 * of the unix domain 4.14), so nothing is taken out; it is put in again through the other end. The
 * other end of one whose peer is gone is kept until all is prepared, then closed. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include "resource/unix_diag.h"

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE 0x89e0 /* 4.12: O_PATH descriptor of what a socket is bound to */
#endif
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* 5.14 */
#endif

enum { NAME_OFF = offsetof(struct sockaddr_un, sun_path), HEAD = 4, QUEUE_MAX = 64 * 1024 * 1024 };
enum { SHUT_FOR_READING = 1, SHUT_FOR_WRITING = 2 };

static bool match(const struct fd_probe *p)
{
	return p->so_domain == AF_UNIX && !p->so_listening &&
	       (p->so_type == SOCK_STREAM || p->so_type == SOCK_SEQPACKET ||
		p->so_type == SOCK_DGRAM);
}

static const char *type_name(const struct file *f)
{
	return f->sock_type == SOCK_STREAM      ? "stream"
	       : f->sock_type == SOCK_SEQPACKET ? "seqpacket"
						: "datagram";
}

static bool has_name(const struct file *f)
{
	return f->sockaddr_len > NAME_OFF;
}

/* ---- what waits to be read ---- */

struct peeked {
	uint8_t *v; /* malloc */
	size_t n, cap;
	bool has_fds;
	bool marked, mark; /* every packet comes with a control message; the last look had one */
};

static bool make_room(struct peeked *q, size_t bytes)
{
	if (q->cap - q->n >= bytes)
		return true;
	size_t cap = 2 * q->cap + bytes;
	uint8_t *v = realloc(q->v, cap);

	if (!v)
		return false;
	q->v = v;
	q->cap = cap;
	return true;
}

/* One look behind what was seen so far. Returns what recvmsg(2) returned: of a stream as much as
 * came in one go, else one packet. */
static ssize_t peek(int fd, struct peeked *q, size_t room, int flags)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(253 * sizeof(int)) + 256]; /* SCM_MAX_FD */
	} control;
	struct iovec iov = {.iov_base = q->v + q->n, .iov_len = room};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(fd, &m, flags | MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	q->mark = n >= 0 && m.msg_controllen;
	for (struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		q->has_fds = true; /* and now we have duplicates of them */
		for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
			int dup;

			memcpy(&dup, (char *)c + at, sizeof(dup));
			close(dup);
		}
	}
	return n;
}

static int peek_stream(int fd, struct peeked *q, struct cr_err *err)
{
	int waiting = 0;

	if (ioctl(fd, SIOCINQ, &waiting))
		return cr_err_sys(err, "SIOCINQ");
	while (!q->has_fds && q->n < (size_t)waiting) {
		size_t room = (size_t)waiting - q->n;

		if (!make_room(q, room))
			return cr_err_oom(err);
		ssize_t n = peek(fd, q, room, 0);
		if (n <= 0)
			return cr_err_sys(err, "looking at what waits in a unix socket");
		q->n += (size_t)n;
	}
	return 0;
}

/* MSG_TRUNC tells how much of the packet there is from the offset on; what did not fit is seen
 * next, as the offset grows by what did. (An empty packet that the task has looked at itself is
 * passed over by the kernel.) */
static int peek_packets(int fd, struct peeked *q, struct cr_err *err)
{
	size_t start = 0, left = 0; /* of the packet at q->v + start: still to come */

	while (!q->has_fds) {
		size_t room = left ? left : 4096;

		if (q->n > QUEUE_MAX || !make_room(q, HEAD + room))
			return cr_err_oom(err);
		if (!left) {
			start = q->n;
			q->n += HEAD;
		}
		ssize_t n = peek(fd, q, room, MSG_TRUNC);
		if (!left && (n < 0 ? errno == EAGAIN : !n && q->marked && !q->mark)) {
			q->n = start;
			return 0;
		}
		if (n < 0)
			return cr_err_sys(err, "looking at what waits in a unix socket");
		size_t got = (size_t)n < room ? (size_t)n : room;
		q->n += got;
		left = (size_t)n - got;
		size_t bytes = q->n - start - HEAD;
		for (int i = 0; i < HEAD; i++)
			q->v[start + i] = (uint8_t)(bytes >> (8 * i));
	}
	return 0;
}

static int set_int(int fd, int name, int value, int *ret_before, struct cr_err *err)
{
	socklen_t len = sizeof(*ret_before);

	return (ret_before && getsockopt(fd, SOL_SOCKET, name, ret_before, &len)) ||
		       setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value))
		   ? cr_err_sys(err, "socket option %d", name)
		   : 0;
}

/* The end of a seqpacket socket reads like an empty packet, but for the credentials that come with
 * packets if they are asked for. The options are the task's own: they are put back. */
static int peek_all(int fd, const struct file *f, struct peeked *q, struct cr_err *err)
{
	int offset = -1, passcred = 0;
	int r = set_int(fd, SO_PEEK_OFF, 0, &offset, err);

	if (r)
		return r;
	if (f->sock_type == SOCK_SEQPACKET && f->sock_shutdown & SHUT_FOR_READING) {
		r = set_int(fd, SO_PASSCRED, 1, &passcred, err);
		q->marked = !r;
	}
	if (!r)
		r = f->sock_type == SOCK_STREAM ? peek_stream(fd, q, err)
						: peek_packets(fd, q, err);
	struct cr_err e = {0};
	int back = q->marked ? set_int(fd, SO_PASSCRED, passcred, NULL, &e) : 0;
	if (!back)
		back = set_int(fd, SO_PEEK_OFF, offset, NULL, &e);
	if (!r && back)
		*err = e;
	return r ? r : back;
}

static int capture_queue(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err)
{
	struct peeked q = {0};
	int r = peek_all(p->local, f, &q, err);

	if (!r && q.has_fds)
		files_refuse(x, p->pid, p->fd,
			     "unix %s socket: descriptors wait in it to be received: not supported",
			     type_name(f));
	if (!r && q.n) {
		f->data = arena_memdup(x->c->tree->arena, q.v, q.n);
		f->data_len = q.n;
		if (!f->data)
			r = cr_err_oom(err);
	}
	free(q.v);
	return r;
}

/* ---- capture ---- */

static int capture_peer_creds(const struct fd_probe *p, struct file *f, struct cr_err *err)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	if (getsockopt(p->local, SOL_SOCKET, SO_PEERCRED, &uc, &len))
		return cr_err_sys(err, "SO_PEERCRED");
	f->cred_pid = uc.pid;
	f->cred_uid = uc.uid;
	f->cred_gid = uc.gid;
	return 0;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct fd_watch w = {
	    .dev = p->st.st_dev, .ino = p->st.st_ino, .file = (uint32_t)x->c->tree->n_files};
	struct sockaddr_un un = {0};
	socklen_t len = sizeof(un);
	struct unix_diag_info diag;

	if (getsockname(p->local, (struct sockaddr *)&un, &len))
		return cr_err_sys(err, "getsockname");
	int r = unix_diag_get(p->st.st_ino, &diag, err);
	if (r)
		return r;
	f->kind = FILE_UNIX_CONN;
	f->sock_family = AF_UNIX;
	f->sock_type = p->so_type;
	f->sockaddr_len = len > sizeof(un) ? sizeof(un) : len;
	f->sockaddr = arena_memdup(x->c->tree->arena, &un, f->sockaddr_len);
	if (!f->sockaddr)
		return cr_err_oom(err);
	f->peer = UINT32_MAX;
	f->connected = diag.has_peer;
	f->peer_ino = diag.peer_ino;
	f->sock_shutdown = diag.shutdown;
	if (has_name(f) && (!f->connected || f->sock_type == SOCK_DGRAM)) {
		files_refuse(x, p->pid, p->fd,
			     "unix %s socket with a name that does not listen: not supported",
			     type_name(f));
		f->kind = 0;
		return 0;
	}
	if (f->connected && !f->peer_ino && f->sock_type != SOCK_DGRAM &&
	    f->sock_shutdown != (SHUT_FOR_READING | SHUT_FOR_WRITING))
		files_warn(
		    x, p->pid, p->fd,
		    "unix %s socket: a connection that was not accepted yet is closed by the "
		    "move",
		    type_name(f));
	if (f->connected && f->sock_type != SOCK_DGRAM)
		r = capture_peer_creds(p, f, err);
	if (!r)
		r = sockopts_capture(x, p, f, err);
	if (!r && x->c->exact && f->connected)
		r = capture_queue(x, p, f, err);
	return r ? r : files_watch(x, &w, err);
}

static int by_ino(const void *va, const void *vb, void *files)
{
	const struct file *a = (struct file *)files + *(const uint32_t *)va;
	const struct file *b = (struct file *)files + *(const uint32_t *)vb;

	return a->ino < b->ino ? -1 : a->ino > b->ino;
}

/* The end of that inode among the tree's; n if it has none. */
static size_t find_end(const struct file *files, const uint32_t *ends, size_t n, uint64_t ino)
{
	size_t lo = 0, hi = n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (files[ends[mid]].ino < ino)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < n && files[ends[lo]].ino == ino ? lo : n;
}

static void link_end(struct files_ctx *x, uint32_t me, const uint32_t *ends, size_t n)
{
	struct file *files = x->c->tree->files, *f = &files[me];
	size_t k = find_end(files, ends, n, f->peer_ino);
	struct file outside = {.dev = f->dev, .ino = f->peer_ino};

	if (k < n && files[ends[k]].peer_ino == f->ino &&
	    files[ends[k]].sock_type == f->sock_type) {
		f->peer = ends[k];
		if (has_name(f) && has_name(&files[ends[k]]) && me < ends[k])
			files_refuse(x, files_holder_pid(x, me), files_holder(x, me)->fd,
				     "unix %s connection of which both ends have names: not "
				     "supported",
				     type_name(f));
		return;
	}
	/* ahead, a process may have been forked, or a socket closed, since the tree was listed */
	f->peer_ino = 0;
	if (x->c->exact || (k == n && !files_pipe_end_inside(x, &outside, true)))
		files_refuse(
		    x, files_holder_pid(x, me), files_holder(x, me)->fd,
		    "unix %s socket: its peer is outside the tree: not supported; close it "
		    "first, or move that process as well",
		    type_name(f));
}

static int link_all(struct files_ctx *x, struct cr_err *err)
{
	const struct tree *t = x->c->tree;
	_cleanup_free_ uint32_t *ends = calloc(t->n_files + 1, sizeof(*ends));
	size_t n = 0;

	if (!ends)
		return cr_err_oom(err);
	for (uint32_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_UNIX_CONN)
			ends[n++] = i;
	qsort_r(ends, n, sizeof(*ends), by_ino, t->files);
	for (size_t i = 0; i < n; i++)
		if (t->files[ends[i]].peer_ino)
			link_end(x, ends[i], ends, n);
	return 0;
}

/* ---- rebuild: calls in the shell of a process ---- */

struct place { /* where a call is made */
	struct rtask *rt;
	pid_t pid;
	int slot;
};

/* False: that process is not there, or none is: the agent does it. */
static bool enter(const struct fileset *fs, pid_t pid, struct place *ret)
{
	ret->pid = pid;
	return fs->tasks.enter && !fs->tasks.enter(fs->tasks.arg, pid, &ret->rt, &ret->slot);
}

static int fetch(const struct place *in, int ours, struct cr_err *err)
{
	long fd = rcall_now(in->rt, SYS_pidfd_getfd, in->slot, ours, 0);

	return fd >= 0 ? (int)fd
		       : cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "pidfd_getfd in task %d: %s",
				    in->pid, strerror((int)-fd));
}

static int leave(const struct place *in, const int *numbers, size_t n, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++)
		rqueue(in->rt, "close", SYS_close, numbers[i]);
	int r = rtask_run(in->rt, err);
	rtask_scratch_reset(in->rt);
	return r;
}

static int remote_pair(const struct place *in, const struct file *f, int type, int out[2],
		       struct cr_err *err)
{
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, in->pid, 0);
	uint64_t va;

	if (pidfd < 0)
		return cr_err_sys(err, "pidfd of %d", in->pid);
	int r = rtask_run(in->rt, err);
	rtask_scratch_reset(in->rt);
	const int *sv = rtask_scratch(in->rt, 2 * sizeof(int), &va);
	if (!r)
		r = rtask_queue_as(in->rt, f->cred_uid, f->cred_gid, "socketpair", SYS_socketpair,
				   (uint64_t[]){AF_UNIX, (uint64_t)type, 0, va}, err);
	if (!r)
		r = rtask_run(in->rt, err);
	if (r)
		return r;
	int numbers[2] = {sv[0], sv[1]};
	for (int i = 0; i < 2; i++) {
		out[i] = (int)syscall(SYS_pidfd_getfd, pidfd, numbers[i], 0);
		if (out[i] < 0)
			r = cr_err_sys(err, "pidfd_getfd of fd %d of %d", numbers[i], in->pid);
	}
	struct cr_err ignored = {0};
	int e = leave(in, numbers, 2, r ? &ignored : err);
	return r ? r : e;
}

static int pair(const struct fileset *fs, const struct file *f, int out[2], struct cr_err *err)
{
	int type = f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK;
	struct place in;

	if (f->sock_type != SOCK_DGRAM && enter(fs, f->cred_pid, &in))
		return remote_pair(&in, f, type, out, err);
	return socketpair(AF_UNIX, type, 0, out) ? cr_err_sys(err, "socketpair") : 0;
}

static int listen_by(const struct fileset *fs, int fd, const struct file *client,
		     struct cr_err *err)
{
	struct place in;

	if (!client || !enter(fs, client->cred_pid, &in))
		return listen(fd, 1) ? cr_err_sys(err, "listen") : 0;
	int number = fetch(&in, fd, err);
	if (number < 0)
		return number;
	int r = rtask_queue_as(in.rt, client->cred_uid, client->cred_gid, "listen", SYS_listen,
			       (uint64_t[]){(uint64_t)number, 1, 0, 0}, err);
	return r ? r : leave(&in, &number, 1, err);
}

/* at: O_PATH descriptor of what to connect to; -1: by name, which is abstract. */
static int connect_by(const struct fileset *fs, int fd, const struct file *server, int at,
		      struct cr_err *err)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(un);
	int numbers[2] = {-1, at};
	struct place in;
	bool inside = enter(fs, server->cred_pid, &in);
	uint64_t va;

	if (inside) {
		numbers[0] = fetch(&in, fd, err);
		if (numbers[0] >= 0 && at >= 0)
			numbers[1] = fetch(&in, at, err);
		if (numbers[0] < 0 || (at >= 0 && numbers[1] < 0))
			return -err->code;
	}
	if (at >= 0) {
		snprintf(un.sun_path, sizeof(un.sun_path), "/proc/self/fd/%d", numbers[1]);
	} else {
		memcpy(&un, server->sockaddr, server->sockaddr_len);
		len = server->sockaddr_len;
	}
	if (!inside)
		return connect(fd, (const struct sockaddr *)&un, len) ? cr_err_sys(err, "connect")
								      : 0;
	int r = rtask_put(in.rt, &un, sizeof(un), &va, err);
	if (!r)
		r = rtask_queue_as(in.rt, server->cred_uid, server->cred_gid, "connect",
				   SYS_connect, (uint64_t[]){(uint64_t)numbers[0], va, len, 0},
				   err);
	return r ? r : leave(&in, numbers, at >= 0 ? 2 : 1, err);
}

/* ---- rebuild: connections through a name ---- */

static bool is_abstract(const struct file *f)
{
	return !f->sockaddr[NAME_OFF];
}

/* The tree's own listener of an abstract name has it; one by path may be gone, or stand in its
 * final place only later: so that name is bound once more, in a directory that is removed at once.
 */
static int held_listener(const struct fileset *fs, const struct tree *t, const struct file *f)
{
	for (uint32_t i = 0; i < t->n_files && i < fs->n_held; i++)
		if (t->files[i].kind == FILE_UNIX_LISTEN && fs->held[i].fd >= 0 &&
		    t->files[i].sock_type == f->sock_type &&
		    t->files[i].sockaddr_len == f->sockaddr_len &&
		    !memcmp(t->files[i].sockaddr, f->sockaddr, f->sockaddr_len))
			return fs->held[i].fd;
	return -1;
}

static int listener_by_path(const struct file *f, int *ret_at, struct cr_err *err)
{
	char dir[] = "/tmp/.cr-XXXXXX", link[64];
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	if (!mkdtemp(dir))
		return cr_err_sys(err, "%s", dir);
	int r = unix_bind_below(dir, fd, f, err);
	*ret_at = r ? -1 : ioctl(fd, SIOCUNIXFILE, 0);
	if (!r && *ret_at < 0)
		r = cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	snprintf(link, sizeof(link), "/proc/self/fd/%d", *ret_at);
	if (!r && chmod(link, 0666)) /* whoever connects needs to write to it, unix(7) */
		r = cr_err_sys(err, "mode of a unix socket");
	unix_remove_below(dir);
	return r ? r : take_fd(&fd);
}

static int listener_by_name(const struct file *f, struct cr_err *err)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	if (bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len))
		return cr_err_sys(err, "binding unix socket @%.*s",
				  (int)(f->sockaddr_len - NAME_OFF - 1),
				  (const char *)f->sockaddr + NAME_OFF + 1);
	return take_fd(&fd);
}

/* out[0]: the end that accepted, out[1]: the one that connected. client: NULL if it is gone. */
static int by_name(const struct fileset *fs, const struct tree *t, const struct file *server,
		   const struct file *client, int out[2], struct cr_err *err)
{
	_cleanup_fd_ int at = -1, own = -1,
			 c = socket(AF_UNIX, server->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int listener = is_abstract(server) ? held_listener(fs, t, server) : -1;

	if (c < 0)
		return cr_err_sys(err, "unix socket");
	if (listener < 0)
		listener = own = is_abstract(server) ? listener_by_name(server, err)
						     : listener_by_path(server, &at, err);
	if (listener < 0)
		return listener;
	int r = listen_by(fs, listener, client, err);
	if (!r)
		r = connect_by(fs, c, server, at, err);
	if (r)
		return r;
	out[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (out[0] < 0)
		return cr_err_sys(err, "accept");
	out[1] = take_fd(&c);
	return 0;
}

/* ---- rebuild ---- */

/* v[0]: f's end, v[1]: the other. */
static int connect_ends(const struct fileset *fs, const struct tree *t, const struct file *f,
			const struct file *other, int v[2], struct cr_err *err)
{
	int swapped[2] = {-1, -1};

	if (has_name(f))
		return by_name(fs, t, f, other, v, err);
	if (!other || !has_name(other))
		return pair(fs, f, v, err);
	int r = by_name(fs, t, other, f, swapped, err);
	v[0] = swapped[1];
	v[1] = swapped[0];
	return r;
}

/* h may be in use already, with another socket: then it is to be installed anew. */
static int put_end(struct fileset *fs, struct held *h, int fd, int peer, struct cr_err *err)
{
	close_fdp(&h->fd);
	close_fdp(&h->peer_fd);
	h->fd = fd;
	h->peer_fd = fcntl(peer, F_DUPFD_CLOEXEC, 0);
	h->filled = h->async_set = false;
	h->flags_set = O_RDWR | O_NONBLOCK;
	if (h->serial)
		h->serial = ++fs->next_serial;
	return h->peer_fd < 0 ? cr_err_sys(err, "an end of a unix socket") : 0;
}

static int build_connected(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	const struct file *other = f->peer == UINT32_MAX ? NULL : &t->files[f->peer];
	int v[2] = {-1, -1};
	int r = connect_ends(fs, t, f, other, v, err);

	if (!r)
		r = sockopts_apply(v[0], f, err);
	if (!r && other)
		r = sockopts_apply(v[1], other, err);
	if (!r)
		r = put_end(fs, &fs->held[i], v[0], v[1], err);
	if (!r && other) {
		int peer = v[1];

		v[1] = -1;
		v[0] = -1;
		return put_end(fs, &fs->held[f->peer], peer, fs->held[i].fd, err);
	}
	if (!r)
		v[0] = -1;
	close_fdp(&v[0]);
	close_fdp(&v[1]);
	return r;
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	if (f->connected)
		return build_connected(fs, t, i, err);
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	int r = sockopts_apply(fd, f, err);
	if (!r)
		fs->held[i].fd = take_fd(&fd);
	return r;
}

/* With the credentials that the reader would have been told: its peer's, unix(7) SCM_CREDENTIALS.
 */
static ssize_t send_as_peer(int fd, const struct file *f, const uint8_t *p, size_t len)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(struct ucred))];
	} control = {.head = {CMSG_LEN(sizeof(struct ucred)), SOL_SOCKET, SCM_CREDENTIALS}};
	const struct ucred uc = {f->cred_pid, f->cred_uid, f->cred_gid};
	struct iovec iov = {.iov_base = (void *)p, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	memcpy(CMSG_DATA(&control.head), &uc, sizeof(uc));
	if (f->cred_pid && sockopt_int(f, SOL_SOCKET, SO_PASSCRED, 0)) {
		m.msg_control = &control;
		m.msg_controllen = sizeof(control.bytes);
	}
	return sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int send_all(int fd, const struct file *f, const uint8_t *p, size_t len, struct cr_err *err)
{
	do {
		ssize_t n = send_as_peer(fd, f, p, len);

		if (n < 0 || (f->sock_type != SOCK_STREAM && (size_t)n != len))
			return cr_err_sys(err, "filling a unix socket");
		p += n;
		len -= (size_t)n;
	} while (len);
	return 0;
}

static int send_packets(int fd, const struct file *f, struct cr_err *err)
{
	for (size_t at = 0; at < f->data_len;) {
		const uint8_t *p = f->data + at;
		size_t left = f->data_len - at, len = 0;

		for (int i = 0; left >= HEAD && i < HEAD; i++)
			len |= (size_t)p[i] << (8 * i);
		if (left < HEAD || len > left - HEAD)
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "packets of a unix socket make no sense");
		int r = send_all(fd, f, p + HEAD, len, err);
		if (r)
			return r;
		at += HEAD + len;
	}
	return 0;
}

static void drain(int fd)
{
	char buf[4096];

	while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
}

/* What waited at the source was let in by the buffers there; here it may come in other portions, of
 * which each is accounted for. So for the moment there is room. */
static int fill(const struct held *h, const struct file *f, struct cr_err *err)
{
	int bytes = 0, lock = 0, room = (int)(2 * f->data_len + 1024 * 1024);
	socklen_t len = sizeof(bytes), lock_len = sizeof(lock);

	if (getsockopt(h->peer_fd, SOL_SOCKET, SO_SNDBUF, &bytes, &len) ||
	    getsockopt(h->peer_fd, SOL_SOCKET, SO_BUF_LOCK, &lock, &lock_len) ||
	    setsockopt(h->peer_fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)))
		return cr_err_sys(err, "buffer of a unix socket");
	int r = f->sock_type == SOCK_STREAM ? send_all(h->peer_fd, f, f->data, f->data_len, err)
					    : send_packets(h->peer_fd, f, err);
	bytes /= 2; /* the kernel doubles what is set, socket(7) */
	if ((setsockopt(h->peer_fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) ||
	     setsockopt(h->peer_fd, SOL_SOCKET, SO_BUF_LOCK, &lock, sizeof(lock))) &&
	    !r)
		r = cr_err_sys(err, "buffer of a unix socket");
	return r;
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];

	if (!f->connected)
		return 0;
	if (h->filled)
		drain(h->fd);
	h->filled = f->data_len > 0;
	return h->filled ? fill(h, f, err) : 0;
}

/* After the last filling: what is shut down takes nothing more. */
static int prepare(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];

	if (f->peer != UINT32_MAX && f->sock_shutdown & SHUT_FOR_READING &&
	    shutdown(h->fd, SHUT_RD))
		return cr_err_sys(err, "shutdown of a unix socket");
	if (f->peer != UINT32_MAX && f->sock_shutdown & SHUT_FOR_WRITING &&
	    shutdown(h->fd, SHUT_WR))
		return cr_err_sys(err, "shutdown of a unix socket");
	close_fdp(&h->peer_fd);
	return 0;
}

static bool make_ready(struct held *h, bool on)
{
	char c = 0;

	if (h->peer_fd < 0)
		return false;
	return (on ? send(h->peer_fd, &c, 1, MSG_DONTWAIT | MSG_NOSIGNAL)
		   : recv(h->fd, &c, 1, MSG_DONTWAIT)) == 1;
}

const struct file_ops file_ops_unix_conn = {
    .name = "unix socket",
    .kind = FILE_UNIX_CONN,
    .match = match,
    .capture = capture,
    .link = link_all,
    .build = build,
    .settle = settle,
    .prepare = prepare,
    .make_ready = make_ready,
};
