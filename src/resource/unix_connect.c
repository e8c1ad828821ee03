/* Both ends of unix connections and pairs, made anew.
 *
 * What SO_PEERCRED reads is who made the pair, who connected, who called listen(2): so those calls
 * are made in the shell of that process, under its effective ids, where the tree has it, else by
 * somebody who comes for that (unix_maker.c). A
 * connection that was made through a name gets a listener of that name for a moment: getsockname(2)
 * of the accepted end shows it. */
#include "resource/unix_private.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* ---- rebuild: calls in the shell of a process ---- */

struct place { /* where a call is made */
	struct rtask *rt;
	pid_t pid;
	int slot;
};

/* False: that process is not there: somebody else of its number does it (unix_maker.c). */
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
	const struct unix_maker who = {f->cred_pid, f->cred_uid, f->cred_gid};
	int type = f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK;
	struct place in;

	if (enter(fs, f->cred_pid, &in))
		return remote_pair(&in, f, type, out, err);
	return unix_call_as(&who, false, "socketpair", SYS_socketpair,
			    (uint64_t[]){AF_UNIX, (uint64_t)type, 0, 0}, out, err);
}

static int listen_by(const struct fileset *fs, int fd, const struct file *client,
		     struct cr_err *err)
{
	struct place in;

	if (!client) /* nobody reads it */
		return listen(fd, 1) ? cr_err_sys(err, "listen") : 0;
	if (!enter(fs, client->cred_pid, &in))
		return unix_call_as(
		    &(struct unix_maker){client->cred_pid, client->cred_uid, client->cred_gid},
		    false, "listen", SYS_listen, (uint64_t[]){(uint64_t)fd, 1, 0, 0}, NULL, err);
	int number = fetch(&in, fd, err);
	if (number < 0)
		return number;
	int r = rtask_queue_as(in.rt, client->cred_uid, client->cred_gid, "listen", SYS_listen,
			       (uint64_t[]){(uint64_t)number, 1, 0, 0}, err);
	return r ? r : leave(&in, &number, 1, err);
}

/* fd connects to what stands at the name server; at: O_PATH descriptor of that, -1: by name, which
 * is abstract. */
static int connect_by(const struct fileset *fs, int fd, const struct unix_maker *who,
		      const struct file *server, int at, struct cr_err *err)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(un);
	int numbers[2] = {-1, at};
	struct place in;
	bool inside = enter(fs, who->pid, &in);
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
		return unix_call_as(who, false, "connect", SYS_connect,
				    (uint64_t[]){(uint64_t)fd, (uintptr_t)&un, len, 0}, NULL, err);
	int r = rtask_put(in.rt, &un, sizeof(un), &va, err);
	if (!r)
		r = rtask_queue_as(in.rt, who->uid, who->gid, "connect", SYS_connect,
				   (uint64_t[]){(uint64_t)numbers[0], va, len, 0}, err);
	return r ? r : leave(&in, numbers, at >= 0 ? 2 : 1, err);
}

/* ---- rebuild: connections through a name ---- */

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
	char link[64];
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	int r = unix_bind_nowhere(fd, (const void *)f->sockaddr, f->sockaddr_len, err);
	*ret_at = r ? -1 : ioctl(fd, SIOCUNIXFILE, 0);
	if (!r && *ret_at < 0)
		r = cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	snprintf(link, sizeof(link), "/proc/self/fd/%d", *ret_at);
	if (!r && chmod(link, 0666)) /* whoever connects needs to write to it, unix(7) */
		r = cr_err_sys(err, "mode of a unix socket");
	return r ? r : take_fd(&fd);
}

static int listener_by_name(const struct file *f, struct cr_err *err)
{
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	if (bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len))
		return cr_err_sys(err, "binding unix socket @%.*s",
				  (int)(f->sockaddr_len - UNIX_NAME_OFF - 1),
				  (const char *)f->sockaddr + UNIX_NAME_OFF + 1);
	return take_fd(&fd);
}

/* out[0]: the end that accepted, out[1]: the one that connected. client: NULL if it is gone. */
static int by_name(const struct fileset *fs, const struct tree *t, const struct file *server,
		   const struct file *client, int out[2], struct cr_err *err)
{
	const struct unix_maker who = {server->cred_pid, server->cred_uid, server->cred_gid};
	_cleanup_fd_ int at = -1, own = -1,
			 c = socket(AF_UNIX, server->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int listener = unix_is_abstract(server) ? held_listener(fs, t, server) : -1;

	if (c < 0)
		return cr_err_sys(err, "unix socket");
	if (listener < 0)
		listener = own = unix_is_abstract(server) ? listener_by_name(server, err)
							  : listener_by_path(server, &at, err);
	if (listener < 0)
		return listener;
	int r = listen_by(fs, listener, client, err);
	if (!r)
		r = connect_by(fs, c, &who, server, at, err);
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

	if (unix_has_name(f) && !f->bound)
		return by_name(fs, t, f, other, v, err);
	if (!other || !unix_has_name(other) || other->bound)
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

/* bind(2) comes after connecting just as well. */
static int finish_end(struct held *h, int fd, const struct file *f, struct cr_err *err)
{
	int r = sockopts_apply(fd, f, err);

	reserve_drop(h);
	return !r && f->bound ? unix_bind_name(h, fd, f, err) : r;
}

int unix_build_connected(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	const struct file *other = f->peer == UINT32_MAX ? NULL : &t->files[f->peer];
	int v[2] = {-1, -1};
	int r = connect_ends(fs, t, f, other, v, err);

	if (!r)
		r = finish_end(&fs->held[i], v[0], f, err);
	if (!r && other)
		r = finish_end(&fs->held[f->peer], v[1], other, err);
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

/* ---- rebuild: connections that wait to be accepted ---- */

struct client {
	uint32_t file, at, nth;
};

static int cmp_client(const void *va, const void *vb)
{
	const struct client *a = va, *b = vb;

	if (a->at != b->at)
		return a->at < b->at ? -1 : 1;
	return (a->nth > b->nth) - (a->nth < b->nth);
}

/* Whoever accepts it will read who connected: the first that has it, to all that is known. */
static struct unix_maker who_has(const struct tree *t, uint32_t file)
{
	for (size_t i = 0; i < t->n_procs; i++)
		if (!t->procs[i].zombie && process_fd_of(&t->procs[i], file) >= 0)
			return (struct unix_maker){t->procs[i].pid, t->procs[i].creds.euid,
						   t->procs[i].creds.egid};
	return (struct unix_maker){0};
}

static int queue_one(struct fileset *fs, const struct tree *t, const struct client *c,
		     struct cr_err *err)
{
	const struct unix_maker who = who_has(t, c->file);
	struct held *h = &fs->held[c->file];
	_cleanup_fd_ int at = -1;

	if (h->listening)
		return 0;
	if (!unix_is_abstract(&t->files[c->at])) {
		at = ioctl(fs->held[c->at].fd, SIOCUNIXFILE, 0);
		if (at < 0)
			return cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	}
	h->listening = true;
	int r = connect_by(fs, h->fd, &who, &t->files[c->at], at, err);
	return r ? cr_err_ctx(err, "a connection that waits to be accepted") : 0;
}

int fileset_queue_clients(struct fileset *fs, const struct tree *t, struct cr_err *err)
{
	_cleanup_free_ struct client *list = calloc(t->n_files + 1, sizeof(*list));
	size_t n = 0;
	int r = 0;

	if (!list)
		return cr_err_oom(err);
	for (uint32_t i = 0; i < t->n_files && i < fs->n_held; i++)
		if (t->files[i].kind == FILE_UNIX_CONN && t->files[i].waits_at < fs->n_held)
			list[n++] = (struct client){i, t->files[i].waits_at, t->files[i].waits_nth};
	qsort(list, n, sizeof(*list), cmp_client);
	for (size_t i = 0; i < n && !r; i++)
		r = queue_one(fs, t, &list[i], err);
	return r;
}
