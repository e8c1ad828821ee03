/* The source's half of moving connections: sockets of stopped tasks are taken out of the network
 * one by one, by a filter on each that drops what comes in. It dies with the socket, so that
 * nothing is left behind; the filter itself says whose it is, so that whoever cleans up after a
 * process that got lost need not be told.
 *
 * Listeners let handshakes come to their end that have begun; what has come about waits in their
 * queues, of which nothing can be read without taking it out. That is done after the decision
 * (net_lock_accept). */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "base/clock.h"
#include "base/log.h"
#include "resource/sock_filter.h"
#include "resource/tcp_repair.h"
#include "resource/udp_queue.h"
#include "resource/unix_private.h"

struct locked {
	int fd; /* ours */
	enum file_kind kind;
	int reuseaddr;
	struct tcp_heard heard;
};

struct net_lock {
	VEC(struct locked) list;
};

struct net_lock *net_lock_new(void)
{
	return calloc(1, sizeof(struct net_lock));
}

void net_lock_free(struct net_lock *l)
{
	if (!l)
		return;
	vec_foreach (k, &l->list)
		close(k->fd);
	vec_done(&l->list);
	free(l);
}

static int get_int(int fd, int level, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, name, &v, &len) ? 0 : v;
}

/* ---- take ---- */

static int lock_one(struct net_lock *l, int pidfd, int number, enum file_kind kind,
		    struct cr_err *err)
{
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);

	if (fd < 0)
		return cr_err_sys(err, "pidfd_getfd of fd %d", number);
	struct locked *k = vec_push(&l->list);
	if (!k)
		return cr_err_oom(err);
	*k = (struct locked){.kind = kind, .reuseaddr = get_int(fd, SOL_SOCKET, SO_REUSEADDR)};
	k->fd = take_fd(&fd);
	if (kind == FILE_UNIX_LISTEN) /* nothing comes: the tasks are stopped */
		return 0;
	return sock_lock(k->fd, kind == FILE_TCP_LISTEN ? SOCK_LOCK_NEW : SOCK_LOCK_ALL, err);
}

static bool is_locked_kind(const struct tree *t, uint32_t file, bool all)
{
	enum file_kind kind = t->files[file].kind;

	if (kind == FILE_UNIX_LISTEN)
		return unix_has_waiting(t, file);
	return kind == FILE_TCP_CONN || kind == FILE_UDP || (all && kind == FILE_TCP_LISTEN);
}

/* Each description once, by the first process that has it. *where: of each file, its place in
 * l->list. */
static int lock_all(struct net_lock *l, const struct tree *t, bool all, uint32_t *where,
		    struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];
		_cleanup_fd_ int pidfd = -1;

		for (size_t k = 0; k < p->n_fds; k++) {
			uint32_t file = p->fds[k].file;
			enum file_kind kind = t->files[file].kind;

			if (where[file] != UINT32_MAX || !is_locked_kind(t, file, all))
				continue;
			if (pidfd < 0)
				pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
			if (pidfd < 0)
				return cr_err_sys(err, "pidfd_open of %d", p->pid);
			where[file] = (uint32_t)l->list.n;
			int r = lock_one(l, pidfd, p->fds[k].fd, kind, err);
			if (r)
				return cr_err_ctx(err, "fd %d of %d", p->fds[k].fd, p->pid);
		}
	}
	return 0;
}

static uint64_t tasks_clock(int64_t offset_ns)
{
	return clock_ns(CLOCK_MONOTONIC) + (uint64_t)offset_ns;
}

static int dump_one(struct locked *k, struct tree *t, struct file *f, struct cr_err *err)
{
	char text[128];

	f->tcp = arena_array(t->arena, struct tcp_conn, 1);
	if (!f->tcp)
		return cr_err_oom(err);
	int r = tcp_heard(k->fd, &k->heard, err);
	if (!r)
		r = tcp_dump(k->fd, t->arena, tasks_clock(t->task_monotonic_offset_ns), f->tcp,
			     err);
	return r ? cr_err_ctx(err, "TCP connection to %s",
			      sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text)))
		 : 0;
}

int net_lock_take(struct net_lock *l, struct tree *t, bool all, struct cr_err *err)
{
	_cleanup_free_ uint32_t *where = malloc((t->n_files + 1) * sizeof(*where));

	if (!where)
		return cr_err_oom(err);
	memset(where, 0xff, t->n_files * sizeof(*where));
	int r = lock_all(l, t, all, where, err);
	for (uint32_t i = 0; i < t->n_files && !r; i++)
		if (t->files[i].kind == FILE_TCP_CONN && where[i] != UINT32_MAX)
			r = dump_one(&l->list.v[where[i]], t, &t->files[i], err);
		else if (t->files[i].kind == FILE_UDP && where[i] != UINT32_MAX)
			r = udp_dump(l->list.v[where[i]].fd, t->arena, &t->files[i], err);
	return r;
}

int net_lock_verify(const struct net_lock *l, struct cr_err *err)
{
	vec_foreach (k, &l->list) {
		struct tcp_heard now;
		int r = k->kind == FILE_TCP_CONN ? tcp_heard(k->fd, &now, err) : 0;

		if (r)
			return r;
		if (k->kind == FILE_TCP_CONN &&
		    (now.received != k->heard.received || now.acked != k->heard.acked ||
		     now.state != k->heard.state))
			return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
					  "a packet came in while its socket was being locked; "
					  "try again");
	}
	return 0;
}

int net_lock_undo(struct net_lock *l, struct cr_err *err)
{
	int result = 0;

	vec_foreach (k, &l->list) {
		struct cr_err why = {0};
		int r = k->kind == FILE_TCP_CONN      ? tcp_release(k->fd, k->reuseaddr, &why)
			: k->kind == FILE_UNIX_LISTEN ? 0
						      : sock_unlock(k->fd, &why);

		if (r && !result) { /* the others all the same */
			result = r;
			*err = why;
		}
		close(k->fd);
	}
	l->list.n = 0;
	return result;
}

/* ---- what waits to be accepted, after the decision ---- */

static int take_waiting(int fd, struct arena *a, int64_t clock_offset_ns, struct file *f,
			struct cr_err *err)
{
	struct sockaddr_storage us = {0}, peer = {0};
	socklen_t len = sizeof(us), peer_len = sizeof(peer);

	*f = (struct file){.kind = FILE_TCP_CONN, .object = UINT32_MAX, .peer = UINT32_MAX};
	f->tcp = arena_array(a, struct tcp_conn, 1);
	if (!f->tcp)
		return cr_err_oom(err);
	int r = sock_lock(fd, SOCK_LOCK_ALL, err);
	if (!r && (getsockname(fd, (struct sockaddr *)&us, &len) ||
		   getpeername(fd, (struct sockaddr *)&peer, &peer_len)))
		return -ENOTCONN; /* reset by its peer: nothing to take along */
	if (!r)
		r = tcp_dump(fd, a, tasks_clock(clock_offset_ns), f->tcp, err);
	if (r)
		return r;
	f->sock_family = us.ss_family;
	f->sock_type = SOCK_STREAM;
	f->sock_protocol = IPPROTO_TCP;
	f->sockaddr = arena_memdup(a, &us, len);
	f->peeraddr = arena_memdup(a, &peer, peer_len);
	f->sockaddr_len = len;
	f->peeraddr_len = peer_len;
	return f->sockaddr && f->peeraddr ? 0 : cr_err_oom(err);
}

/* Those that cannot go on are closed here: silently, as they are in repair mode by then. */
static int accept_all(int listener, struct arena *a, int64_t clock_offset_ns, struct waiting *w,
		      size_t *cap, struct cr_err *err)
{
	for (;;) {
		_cleanup_fd_ int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		struct cr_err why = {0};

		if (fd < 0 && errno == EAGAIN)
			return 0;
		if (fd < 0 && (errno == ECONNABORTED || errno == EINTR))
			continue;
		if (fd < 0)
			return cr_err_sys(err, "accept4");
		if (w->n == *cap) {
			size_t more = *cap ? 2 * *cap : 64;
			struct file *list = arena_array(a, struct file, more);

			if (!list)
				return cr_err_oom(err);
			memcpy(list, w->list, w->n * sizeof(*list));
			w->list = list;
			*cap = more;
		}
		int r = take_waiting(fd, a, clock_offset_ns, &w->list[w->n], &why);
		if (!r)
			w->n++;
		else if (r != -ENOTCONN)
			log_warn("a connection that waited to be accepted: %s", why.msg);
	}
}

/* accept4(2) waits where the program has it so. */
static int accept_from(int listener, struct arena *a, int64_t clock_offset_ns, struct waiting *w,
		       size_t *cap, struct cr_err *err)
{
	int flags = fcntl(listener, F_GETFL);

	if (flags < 0 || fcntl(listener, F_SETFL, flags | O_NONBLOCK))
		return cr_err_sys(err, "F_SETFL");
	return accept_all(listener, a, clock_offset_ns, w, cap, err);
}

int net_lock_accept(struct net_lock *l, const struct tree *t, struct waiting *ret,
		    struct cr_err *err)
{
	size_t cap = 0;
	int r = 0;

	*ret = (struct waiting){0};
	vec_foreach (k, &l->list)
		if (k->kind == FILE_TCP_LISTEN && !r)
			r = accept_from(k->fd, t->arena, t->task_monotonic_offset_ns, ret, &cap,
					err);
		else if (k->kind == FILE_UNIX_LISTEN && !r)
			r = unix_accept_waiting(k->fd, t, ret, &cap, err);
	return r;
}

/* ---- after a process that got lost ---- */

/* Calls fn for each socket of pid, until it fails. */
static int each_socket(pid_t pid, int (*fn)(int fd, void *arg, struct cr_err *err), void *arg,
		       struct cr_err *err)
{
	char path[64];
	struct dirent *e;
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	_cleanup_dir_ DIR *d = opendir(path);
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (!d || pidfd < 0)
		return errno == ENOENT || errno == ESRCH ? 0 : cr_err_sys(err, "%s", path);
	while (!r && (e = readdir(d))) {
		char link[16] = "";

		if (e->d_name[0] == '.' ||
		    readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1) < 0 ||
		    strncmp(link, "socket:", 7))
			continue;
		_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(e->d_name), 0);
		if (fd >= 0)
			r = fn(fd, arg, err);
	}
	return r;
}

/* SO_REUSEADDR as a server's connections have it from their listener: what it was is not known any
 * more. The others come on if one fails. */
static int unlock_socket(int fd, void *arg, struct cr_err *err)
{
	struct cr_err why = {0};
	int *result = arg;

	if (!sock_is_locked(fd) && !tcp_is_in_repair(fd))
		return 0;
	int r = tcp_release(fd, 1, &why);
	if (r && !*result) {
		*result = r;
		*err = why;
	}
	return 0;
}

int net_unlock_process(pid_t pid, struct cr_err *err)
{
	int result = 0, r = each_socket(pid, unlock_socket, &result, err);

	return r ? r : result;
}

struct collecting {
	struct arena *a;
	int64_t clock_offset_ns;
	struct waiting *w;
	size_t cap;
};

static int collect_from(int fd, void *arg, struct cr_err *err)
{
	struct collecting *c = arg;

	if (get_int(fd, SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP ||
	    !get_int(fd, SOL_SOCKET, SO_ACCEPTCONN) || !sock_is_locked(fd))
		return 0;
	return accept_from(fd, c->a, c->clock_offset_ns, c->w, &c->cap, err);
}

int net_accept_process(pid_t pid, struct arena *a, int64_t clock_offset_ns, struct waiting *w,
		       struct cr_err *err)
{
	struct collecting c = {a, clock_offset_ns, w, w->n};

	return each_socket(pid, collect_from, &c, err);
}
