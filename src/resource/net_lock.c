/* The source's half of moving connections: sockets of stopped tasks are taken out of the network
 * one by one, by a filter on each that drops what comes in. It dies with the socket, so that
 * nothing is left behind; the filter itself says whose it is, so that whoever cleans up after a
 * process that got lost need not be told. */
#include "resource/file_kind.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "base/clock.h"
#include "resource/tcp_repair.h"

struct locked {
	int fd; /* ours */
	bool listener;
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

static int lock_one(struct net_lock *l, int pidfd, int number, bool listener, struct cr_err *err)
{
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);

	if (fd < 0)
		return cr_err_sys(err, "pidfd_getfd of fd %d", number);
	struct locked *k = vec_push(&l->list);
	if (!k)
		return cr_err_oom(err);
	*k = (struct locked){.listener = listener,
			     .reuseaddr = get_int(fd, SOL_SOCKET, SO_REUSEADDR)};
	k->fd = take_fd(&fd);
	return tcp_lock(k->fd, err);
}

static bool is_listener(const struct file *f)
{
	return f->kind == FILE_TCP_LISTEN;
}

/* Each description once, by the first process that has it. *where: of each file, its place in
 * l->list. */
static int lock_all(struct net_lock *l, const struct tree *t, bool listeners, uint32_t *where,
		    struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];
		_cleanup_fd_ int pidfd = -1;

		for (size_t k = 0; k < p->n_fds; k++) {
			uint32_t file = p->fds[k].file;
			const struct file *f = &t->files[file];

			if ((f->kind != FILE_TCP_CONN && !(listeners && is_listener(f))) ||
			    where[file] != UINT32_MAX)
				continue;
			if (pidfd < 0)
				pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
			if (pidfd < 0)
				return cr_err_sys(err, "pidfd_open of %d", p->pid);
			where[file] = (uint32_t)l->list.n;
			int r = lock_one(l, pidfd, p->fds[k].fd, is_listener(f), err);
			if (r)
				return cr_err_ctx(err, "fd %d of %d", p->fds[k].fd, p->pid);
		}
	}
	return 0;
}

/* A connection in a listener's queue belongs to no task yet: there is no way to hand it on. */
static int check_queues(const struct net_lock *l, struct cr_err *err)
{
	vec_foreach (k, &l->list) {
		struct tcp_info ti = {0};
		socklen_t len = sizeof(ti);

		/* of a listener, tcp_get_info(): what is queued */
		if (k->listener && !getsockopt(k->fd, IPPROTO_TCP, TCP_INFO, &ti, &len) &&
		    ti.tcpi_unacked)
			return cr_err_set(err, CR_ERR_UNSUPPORTED, EAGAIN,
					  "%u connections wait to be accepted and cannot be moved "
					  "before; try again",
					  ti.tcpi_unacked);
	}
	return 0;
}

static int dump_one(struct locked *k, struct tree *t, struct file *f, struct cr_err *err)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC) + (uint64_t)t->task_monotonic_offset_ns;
	char text[128];

	f->tcp = arena_array(t->arena, struct tcp_conn, 1);
	if (!f->tcp)
		return cr_err_oom(err);
	int r = tcp_heard(k->fd, &k->heard, err);
	if (!r)
		r = tcp_dump(k->fd, t->arena, now, f->tcp, err);
	return r ? cr_err_ctx(err, "TCP connection to %s",
			      sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text)))
		 : 0;
}

int net_lock_take(struct net_lock *l, struct tree *t, bool listeners, struct cr_err *err)
{
	_cleanup_free_ uint32_t *where = malloc((t->n_files + 1) * sizeof(*where));

	if (!where)
		return cr_err_oom(err);
	memset(where, 0xff, t->n_files * sizeof(*where));
	int r = lock_all(l, t, listeners, where, err);
	if (!r)
		r = check_queues(l, err);
	for (uint32_t i = 0; i < t->n_files && !r; i++)
		if (t->files[i].kind == FILE_TCP_CONN && where[i] != UINT32_MAX)
			r = dump_one(&l->list.v[where[i]], t, &t->files[i], err);
	return r;
}

int net_lock_verify(const struct net_lock *l, struct cr_err *err)
{
	vec_foreach (k, &l->list) {
		struct tcp_heard now;
		int r = k->listener ? 0 : tcp_heard(k->fd, &now, err);

		if (r)
			return r;
		if (!k->listener && (now.received != k->heard.received ||
				     now.acked != k->heard.acked || now.state != k->heard.state))
			return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
					  "a packet came in while its socket was being locked; "
					  "try again");
	}
	return check_queues(l, err);
}

int net_lock_undo(struct net_lock *l, struct cr_err *err)
{
	int result = 0;

	vec_foreach (k, &l->list) {
		struct cr_err why = {0};
		int r =
		    k->listener ? tcp_unlock(k->fd, &why) : tcp_release(k->fd, k->reuseaddr, &why);

		if (r && !result) { /* the others all the same */
			result = r;
			*err = why;
		}
		close(k->fd);
	}
	l->list.n = 0;
	return result;
}

/* ---- after a process that got lost ---- */

int net_unlock_process(pid_t pid, struct cr_err *err)
{
	char path[64];
	struct dirent *e;
	int result = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	_cleanup_dir_ DIR *d = opendir(path);
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (!d || pidfd < 0)
		return errno == ENOENT || errno == ESRCH ? 0 : cr_err_sys(err, "%s", path);
	while ((e = readdir(d))) {
		char link[16] = "";

		if (e->d_name[0] == '.' ||
		    readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1) < 0 ||
		    strncmp(link, "socket:", 7))
			continue;
		_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(e->d_name), 0);
		if (fd < 0 || (!tcp_is_locked(fd) && !tcp_is_in_repair(fd)))
			continue;
		/* SO_REUSEADDR as a server's connections have it from their listener: what it was
		 * is not known any more */
		struct cr_err why = {0};
		int r = tcp_release(fd, 1, &why);
		if (r && !result) {
			result = r;
			*err = why;
		}
	}
	return result;
}
