/* Unix sockets that do not listen: pairs and connections whose both ends are in the tree, ends
 * whose peer has closed, connections that nobody has accepted yet, datagram sockets with and
 * without a name, sockets that are not connected.
 *
 * Names are in unix_name.c, how ends come about in unix_connect.c, what waits in them is looked at
 * by unix_pending.c and unix_peek.c and put in again by unix_fill.c; what comes after that is in
 * unix_prepare.c. */
#include "resource/unix_private.h"

#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

enum { LOOKS = 8 };

static bool match(const struct fd_probe *p)
{
	return p->so_domain == AF_UNIX && !p->so_listening &&
	       (p->so_type == SOCK_STREAM || p->so_type == SOCK_SEQPACKET ||
		p->so_type == SOCK_DGRAM);
}

/* ---- capture ---- */

static int capture_peer_creds(const struct fd_probe *p, struct file *f, struct cr_err *err)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	if (getsockopt(p->local, SOL_SOCKET, SO_PEERCRED, &uc, &len))
		return cr_err_sys(err, "SO_PEERCRED");
	if (uc.uid == UINT32_MAX) /* of a datagram socket that was connected by connect(2) */
		return 0;
	f->cred_pid = uc.pid;
	f->cred_uid = uc.uid;
	f->cred_gid = uc.gid;
	return 0;
}

/* To whom a datagram socket is connected, also if that is gone. */
static int capture_peer_name(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			     struct cr_err *err)
{
	struct sockaddr_un un = {0};
	socklen_t len = sizeof(un);

	if (getpeername(p->local, (struct sockaddr *)&un, &len) || len <= UNIX_NAME_OFF)
		return 0;
	f->peeraddr_len = len > sizeof(un) ? sizeof(un) : len;
	f->peeraddr = arena_memdup(x->c->tree->arena, &un, f->peeraddr_len);
	return f->peeraddr ? 0 : cr_err_oom(err);
}

static int capture_name(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			struct cr_err *err)
{
	int r = unix_capture_name(x, p->local, f, err);

	if (!r && unix_has_name(f) && !unix_is_abstract(f))
		r = unix_capture_path(x, p->local, f, err);
	/* of a connection it depends on who the other end is */
	f->bound = unix_has_name(f) && (!f->connected || f->sock_type == SOCK_DGRAM);
	return r;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct fd_watch w = {
	    .dev = p->st.st_dev, .ino = p->st.st_ino, .file = (uint32_t)x->c->tree->n_files};
	struct unix_diag_info diag;
	int r = unix_diag_get(p->st.st_ino, &diag, err);

	if (r)
		return r;
	f->kind = FILE_UNIX_CONN;
	f->sock_family = AF_UNIX;
	f->sock_type = p->so_type;
	f->peer = f->waits_at = UINT32_MAX;
	f->connected = diag.has_peer;
	f->peer_ino = diag.peer_ino;
	f->sock_shutdown = diag.shutdown;
	x->much_waits |= diag.queued > 0;
	r = capture_name(x, p, f, err);
	if (!r && f->connected)
		r = capture_peer_creds(p, f, err);
	if (!r && f->connected && f->sock_type == SOCK_DGRAM)
		r = capture_peer_name(x, p, f, err);
	if (!r)
		r = sockopts_capture(x, p, f, err);
	if (!r)
		r = unix_capture_pending(x, p, f, err);
	return r ? r : files_watch(x, &w, err);
}

/* ---- capture: who is whose peer ---- */

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

static void refuse_end(struct files_ctx *x, uint32_t me, const char *why)
{
	const struct file *f = &x->c->tree->files[me];
	char name[160];

	files_refuse(
	    x, files_holder_pid(x, me), files_holder(x, me)->fd, "unix %s socket%s%s: %s",
	    unix_type_name(f), f->peeraddr_len ? " connected to " : "",
	    f->peeraddr_len ? sockaddr_text(f->peeraddr, f->peeraddr_len, name, sizeof(name)) : "",
	    why);
}

static bool is_listeners_name(const struct tree *t, const struct file *f)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_UNIX_LISTEN && t->files[i].sock_type == f->sock_type &&
		    t->files[i].sockaddr_len == f->sockaddr_len &&
		    !memcmp(t->files[i].sockaddr, f->sockaddr, f->sockaddr_len))
			return true;
	return false;
}

/* Of a connection whose both ends have names, the accepted one has its listener's. */
static void tell_who_bound(struct files_ctx *x, uint32_t me, uint32_t peer)
{
	struct file *f = &x->c->tree->files[me], *o = &x->c->tree->files[peer];

	if (!unix_has_name(f) || !unix_has_name(o) || me > peer)
		return;
	bool served = is_listeners_name(x->c->tree, f);
	if (served == is_listeners_name(x->c->tree, o))
		refuse_end(x, me,
			   "a connection of which both ends have names, and no listener is "
			   "left to tell which was accepted: not supported");
	f->bound = !served;
	o->bound = served;
}

/* Its peer goes with the last that has it; so may have this end. */
static bool has_ended(struct files_ctx *x, uint32_t me)
{
	struct cr_err ignored = {0};
	_cleanup_fd_ int fd = files_getfd(x, me, &ignored);
	struct pollfd pfd = {.fd = fd};
	struct stat st;

	return fd < 0 || fstat(fd, &st) || st.st_ino != x->c->tree->files[me].ino ||
	       (poll(&pfd, 1, 0) == 1 && pfd.revents & POLLHUP);
}

/* What may be otherwise in a moment is looked at again, what is refused in any case not for long.
 */
static int looks_at_most(const struct files_ctx *x)
{
	return x->c->refused->list.n ? 1 : LOOKS;
}

static void pause_after(int look)
{
	const struct timespec pause = {.tv_nsec = 1000000l << look};

	nanosleep(&pause, NULL);
}

/* A child that has it may end before it is found; and what it had may live on for as long as it
 * waits for a processor in between: descriptors go first, and then what they lead to. */
static bool may_be_inside(struct files_ctx *x, uint32_t me, uint64_t peer_ino)
{
	const struct file peer = {.dev = x->c->tree->files[me].dev, .ino = peer_ino};

	for (int i = 0; i < looks_at_most(x); i++) {
		if (files_pipe_end_inside(x, &peer, true) || has_ended(x, me))
			return true;
		pause_after(i);
	}
	return false;
}

static void link_end(struct files_ctx *x, uint32_t me, const uint32_t *ends, size_t n)
{
	struct file *files = x->c->tree->files, *f = &files[me];
	size_t k = find_end(files, ends, n, f->peer_ino);
	bool mutual = k < n && files[ends[k]].peer_ino == f->ino;
	uint64_t peer_ino = f->peer_ino;

	if (k < n && files[ends[k]].sock_type == f->sock_type &&
	    (mutual || f->sock_type == SOCK_DGRAM)) {
		f->peer = ends[k];
		if (f->sock_type != SOCK_DGRAM)
			tell_who_bound(x, me, f->peer);
		else if (!unix_has_name(&files[f->peer]) && !mutual)
			refuse_end(x, me,
				   "its peer has no name, and is not connected to it: not "
				   "supported");
		return;
	}
	/* ahead, a process may have been forked, or a socket closed, since the tree was listed; and
	 * the peer may wait to be received somewhere */
	f->peer_ino = 0;
	if (x->c->exact || (k == n && !x->much_waits && !may_be_inside(x, me, peer_ino)))
		refuse_end(x, me,
			   "its peer is outside the tree: not supported; close it first, or "
			   "move that process as well");
}

/* Something that was not read yet. */
static bool has_sent(struct files_ctx *x, uint32_t me)
{
	struct cr_err ignored = {0};
	_cleanup_fd_ int fd = files_getfd(x, me, &ignored);
	int bytes = 0;

	return fd < 0 || ioctl(fd, SIOCOUTQ, &bytes) || bytes;
}

/* Ahead it may have been accepted since, or the other end closed: then that has no inode any more
 * before this end is told of it, and whoever closes it may have lost the processor in between. */
static bool waits_still(const struct files_ctx *x, const struct file *f)
{
	for (int i = 0; i < looks_at_most(x); i++) {
		struct unix_diag_info now = {0};
		struct cr_err ignored = {0};

		if (unix_diag_get(f->ino, &now, &ignored) || now.peer_ino ||
		    now.shutdown == UNIX_SHUT_BOTH)
			return false;
		pause_after(i);
	}
	return true;
}

/* Connected, and nobody has accepted it. */
static void link_waiting(struct files_ctx *x, uint32_t me)
{
	struct file *f = &x->c->tree->files[me];

	if (f->waits_at != UINT32_MAX) {
		if (!x->c->exact)
			f->waits_at = UINT32_MAX;
		else if (x->c->to_image && has_sent(x, me))
			refuse_end(x, me,
				   "what was sent over it waits to be accepted: not supported "
				   "in an image");
		return;
	}
	if (!x->c->exact && !waits_still(x, f))
		return;
	refuse_end(x, me, "waits to be accepted by a process outside the tree: not supported");
}

/* Nothing could send it again. */
static void check_messages(struct files_ctx *x, uint32_t me)
{
	const struct file *f = &x->c->tree->files[me];

	if (f->sock_type == SOCK_DGRAM && f->n_messages && !unix_has_name(f) && !f->cred_pid)
		refuse_end(x, me,
			   "what waits in it came by a name or peer that it has not any "
			   "more: not supported");
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
	for (size_t i = 0; i < n; i++) {
		struct file *f = &t->files[ends[i]];

		if (f->peer_ino)
			link_end(x, ends[i], ends, n);
		else if (f->connected && f->sock_type != SOCK_DGRAM &&
			 f->sock_shutdown != UNIX_SHUT_BOTH)
			link_waiting(x, ends[i]);
		check_messages(x, ends[i]);
	}
	for (size_t i = 0; i < n; i++) {
		struct file *f = &t->files[ends[i]];

		if (f->bound)
			continue;
		f->path = NULL; /* its listener's */
		f->name_ino = f->name_dev = 0;
		f->mode = f->uid = f->gid = 0;
	}
	return 0;
}

/* ---- check ---- */

static void check(const struct file_check *k, const struct file *f)
{
	if (f->bound)
		unix_check_name(k, f);
	unix_check_maker(k, f);
}

/* ---- rebuild ---- */

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];

	if (unix_is_pair(t, i))
		return unix_build_connected(fs, t, i, err);
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	int r = sockopts_apply(fd, f, err);
	if (!r && f->bound)
		r = unix_bind_name(h, fd, f, err);
	if (!r)
		h->fd = take_fd(&fd);
	return r;
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];

	if (h->filled)
		unix_drain(h->fd);
	h->filled = f->n_messages > 0;
	return h->filled ? unix_fill(fs, t, h, f, err) : 0;
}

static int launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	return reserve_launch(&fs->held[i], &t->files[i], err);
}

const struct file_ops file_ops_unix_conn = {
    .name = "unix socket",
    .kind = FILE_UNIX_CONN,
    .match = match,
    .capture = capture,
    .link = link_all,
    .check = check,
    .build = build,
    .settle = settle,
    .prepare = unix_prepare,
    .launch = launch,
    .make_ready = unix_make_ready,
    .drop = reserve_drop,
};
