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
#include "base/parallel.h"
#include "resource/net_handshakes.h"
#include "resource/sock_filter.h"
#include "resource/sock_program.h"
#include "resource/tcp_repair.h"
#include "resource/udp_queue.h"
#include "resource/unix_private.h"

struct locked {
	int fd;          /* ours; -1: not yet */
	bool by_program; /* sock_lock_by() */
	enum file_kind kind;
	int reuseaddr;
	struct tcp_heard heard;
	uint64_t cookie; /* of a TCP listener: SO_COOKIE, socket(7) … */
	int family;      /* … and what its connections have */
};

struct net_lock {
	int program; /* -1: each gets a filter of its own */
	const struct reqview *requests;
	struct net_handshakes *handshakes; /* NULL: not asked for */
	VEC(struct locked) list;
};

struct net_lock *net_lock_new(const struct reqview *requests)
{
	struct net_lock *l = calloc(1, sizeof(*l));

	if (l) {
		l->program = -1;
		l->requests = requests;
	}
	return l;
}

void net_lock_free(struct net_lock *l)
{
	if (!l)
		return;
	vec_foreach (k, &l->list)
		close_fdp(&k->fd);
	net_handshakes_free(l->handshakes);
	close_fdp(&l->program);
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

static bool is_locked_kind(const struct tree *t, uint32_t file, bool all)
{
	enum file_kind kind = t->files[file].kind;

	if (kind == FILE_UNIX_LISTEN)
		return unix_has_waiting(t, file);
	return kind == FILE_TCP_CONN || kind == FILE_UDP || (all && kind == FILE_TCP_LISTEN);
}

struct to_lock {
	int number, pidfd;
	uint32_t file;
};

struct taking {
	struct net_lock *l;
	struct tree *t;
	VEC(struct to_lock) list; /* as l->list */
	VEC(int) pidfds;
	struct arena *arenas[PARALLEL_THREADS_MAX];
};

static void taking_done(struct taking *k)
{
	vec_foreach (pidfd, &k->pidfds)
		close(*pidfd);
	vec_done(&k->pidfds);
	vec_done(&k->list);
	/* what was dumped is the tree's */
	for (size_t i = 0; i < PARALLEL_THREADS_MAX; i++)
		arena_join(k->t->arena, k->arenas[i]);
}

static int add(struct taking *k, const struct fd_entry *e, struct cr_err *err)
{
	struct to_lock *what = vec_push(&k->list);
	struct locked *slot = what ? vec_push(&k->l->list) : NULL;

	if (!slot)
		return cr_err_oom(err);
	*slot = (struct locked){.fd = -1, .kind = k->t->files[e->file].kind};
	*what = (struct to_lock){e->fd, k->pidfds.v[k->pidfds.n - 1], e->file};
	return 0;
}

static bool has_queued(const struct tree *t)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_TCP_CONN && t->files[i].waits_at != UINT32_MAX)
			return true;
	return false;
}

/* Each description once, by the first process that has it. */
static int list_all(struct taking *k, bool all, struct cr_err *err)
{
	_cleanup_free_ bool *seen = calloc(k->t->n_files + 1, sizeof(*seen));
	int r = seen ? 0 : cr_err_oom(err);

	all |= has_queued(k->t);
	for (size_t i = 0; i < k->t->n_procs && !r; i++) {
		const struct process *p = &k->t->procs[i];
		int *pidfd = p->zombie ? NULL : vec_push(&k->pidfds);

		if (p->zombie)
			continue;
		if (!pidfd)
			return cr_err_oom(err);
		*pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
		if (*pidfd < 0)
			return cr_err_sys(err, "pidfd_open of %d", p->pid);
		for (size_t n = 0; n < p->n_fds && !r; n++) {
			const struct fd_entry *e = &p->fds[n];

			if (seen[e->file] || !is_locked_kind(k->t, e->file, all))
				continue;
			seen[e->file] = true;
			r = add(k, e, err);
		}
	}
	return r;
}

/* Asked for it, a socket has a cookie; so have its handshakes. */
static void know_listener(struct locked *slot)
{
	socklen_t len = sizeof(slot->cookie);

	if (getsockopt(slot->fd, SOL_SOCKET, SO_COOKIE, &slot->cookie, &len))
		slot->cookie = 0;
	slot->family = get_int(slot->fd, SOL_SOCKET, SO_DOMAIN);
}

static int lock_one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	struct taking *k = arg;
	const struct to_lock *what = &k->list.v[i];
	const struct file *f = &k->t->files[what->file];
	struct locked *slot = &k->l->list.v[i];
	bool has_filter = f->n_filter || f->n_program;

	(void)worker;
	slot->fd = (int)syscall(SYS_pidfd_getfd, what->pidfd, what->number, 0);
	if (slot->fd < 0)
		return cr_err_sys(err, "pidfd_getfd of fd %d", what->number);
	if (slot->kind == FILE_UNIX_LISTEN) /* nothing comes: the tasks are stopped */
		return 0;
	slot->reuseaddr = sockopt_int(f, SOL_SOCKET, SO_REUSEADDR, 0);
	if (slot->kind == FILE_TCP_LISTEN)
		know_listener(slot);
	int r =
	    slot->kind == FILE_TCP_LISTEN
		? sock_lock(slot->fd, SOCK_LOCK_NEW, err)
		: sock_lock_by(slot->fd, has_filter ? -1 : k->l->program, &slot->by_program, err);
	return r ? cr_err_ctx(err, "fd %d", what->number) : 0;
}

static uint64_t tasks_clock(int64_t offset_ns)
{
	return clock_ns(CLOCK_MONOTONIC) + (uint64_t)offset_ns;
}

static int dump_tcp(struct taking *k, struct arena *a, struct locked *slot, struct file *f,
		    struct cr_err *err)
{
	char text[128];

	f->tcp = arena_array(a, struct tcp_conn, 1);
	if (!f->tcp)
		return cr_err_oom(err);
	int r = tcp_dump(slot->fd, a, tasks_clock(k->t->task_monotonic_offset_ns), f->tcp,
			 &slot->heard, err);
	return r ? cr_err_ctx(err, "TCP connection to %s",
			      sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text)))
		 : 0;
}

static int dump_one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	struct taking *k = arg;
	struct file *f = &k->t->files[k->list.v[i].file];
	struct locked *slot = &k->l->list.v[i];
	struct arena **a = &k->arenas[worker];

	if (!*a)
		*a = arena_new();
	if (!*a)
		return cr_err_oom(err);
	if (slot->kind == FILE_TCP_CONN)
		return dump_tcp(k, *a, slot, f, err);
	return slot->kind == FILE_UDP ? udp_dump(slot->fd, *a, f, err) : 0;
}

static bool has_listeners(const struct net_lock *l)
{
	vec_foreach (k, &l->list)
		if (k->kind == FILE_TCP_LISTEN)
			return true;
	return false;
}

/* A table of descriptors that grows while several threads have it waits for a grace period each
 * time, some 10 ms (expand_fdtable() of fs/file.c); while one has it, it does not. */
static void grow_table(const struct taking *k)
{
	enum { OTHERS = 1024 };
	_cleanup_fd_ int far = -1;

	if (k->list.n >= PARALLEL_MIN)
		far = fcntl(k->pidfds.v[0], F_DUPFD_CLOEXEC, (int)k->list.n + OTHERS);
	/* without it, it is only slower */
}

int net_lock_take(struct net_lock *l, struct tree *t, bool all, struct cr_err *err)
{
	struct taking k = {.l = l, .t = t};
	int r = list_all(&k, all, err);

	if (k.list.n >= PARALLEL_MIN)
		l->program = sock_lock_program();
	if (!r)
		grow_table(&k);
	if (!r) /* all of them, before any is dumped */
		r = parallel_for(k.list.n, lock_one, &k, err);
	if (!r && l->requests && has_listeners(l))
		l->handshakes = net_handshakes_begin(l->requests);
	if (!r)
		r = parallel_for(k.list.n, dump_one, &k, err);
	taking_done(&k);
	return r;
}

static int verify_one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	const struct locked *k = &((const struct locked *)arg)[i];
	struct tcp_heard now;
	int r = k->kind == FILE_TCP_CONN ? tcp_heard(k->fd, &now, err) : 0;

	(void)worker;
	if (r || k->kind != FILE_TCP_CONN)
		return r;
	if (now.received != k->heard.received || now.acked != k->heard.acked ||
	    now.state != k->heard.state)
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
				  "a packet came in while its socket was being locked; try again");
	return 0;
}

int net_lock_verify(const struct net_lock *l, struct cr_err *err)
{
	return parallel_for(l->list.n, verify_one, l->list.v, err);
}

int net_lock_undo(struct net_lock *l, struct cr_err *err)
{
	int result = 0;

	vec_foreach (k, &l->list) {
		struct cr_err why = {0};
		int r = k->by_program ? sock_unlock_by(k->fd, &why) : 0;

		if (!r && k->kind == FILE_TCP_CONN)
			r = tcp_release(k->fd, k->reuseaddr, &why);
		else if (!r && k->kind != FILE_UNIX_LISTEN)
			r = sock_unlock(k->fd, &why);
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

struct collecting {
	const struct tree *t; /* NULL: not known any more */
	struct arena *a;
	int64_t clock_offset_ns;
	struct waiting *w;
	size_t cap;
};

static bool goes_along(const struct tree *t, const struct file *f)
{
	return !t || t->switched || tree_moves_address(t, f->sockaddr, f->sockaddr_len) ||
	       net_is_inside(t, f);
}

/* Its peer would ask for it here in vain. */
static void reset(int fd)
{
	const struct linger now = {.l_onoff = 1};

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)))
		log_warn("SO_LINGER: %s", strerror(errno));
}

static int take_waiting(int fd, const struct collecting *c, struct file *f, struct cr_err *err)
{
	struct sockaddr_storage us = {0}, peer = {0};
	struct tcp_heard heard;
	socklen_t len = sizeof(us), peer_len = sizeof(peer);
	struct arena *a = c->a;

	*f = (struct file){.kind = FILE_TCP_CONN,
			   .object = UINT32_MAX,
			   .peer = UINT32_MAX,
			   .waits_at = UINT32_MAX};
	int r = sock_lock(fd, SOCK_LOCK_ALL, err);
	if (!r && (getsockname(fd, (struct sockaddr *)&us, &len) ||
		   getpeername(fd, (struct sockaddr *)&peer, &peer_len)))
		return -ENOTCONN; /* reset by its peer: nothing to take along */
	if (r)
		return r;
	f->sock_family = us.ss_family;
	f->sock_type = SOCK_STREAM;
	f->sock_protocol = IPPROTO_TCP;
	f->sockaddr = arena_memdup(a, &us, len);
	f->peeraddr = arena_memdup(a, &peer, peer_len);
	f->sockaddr_len = len;
	f->peeraddr_len = peer_len;
	f->tcp = arena_array(a, struct tcp_conn, 1);
	if (!f->tcp || !f->sockaddr || !f->peeraddr)
		return cr_err_oom(err);
	if (!goes_along(c->t, f)) {
		reset(fd);
		return -ENOTCONN;
	}
	return tcp_dump(fd, a, tasks_clock(c->clock_offset_ns), f->tcp, &heard, err);
}

/* Those that cannot go on are closed here: silently, as they are in repair mode by then. */
static int accept_all(int listener, struct collecting *c, struct cr_err *err)
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
		struct file *f = waiting_push(c->w, &c->cap, c->a);
		if (!f)
			return cr_err_oom(err);
		int r = take_waiting(fd, c, f, &why);
		c->w->n -= r != 0;
		if (r && r != -ENOTCONN)
			log_warn("a connection that waited to be accepted: %s", why.msg);
	}
}

/* accept4(2) waits where the program has it so. */
static int accept_from(int listener, struct collecting *c, struct cr_err *err)
{
	int flags = fcntl(listener, F_GETFL);

	if (flags < 0 || fcntl(listener, F_SETFL, flags | O_NONBLOCK))
		return cr_err_sys(err, "F_SETFL");
	return accept_all(listener, c, err);
}

/* They are lost if this fails, which is no reason to lose those that wait as well. */
static void add_handshakes(struct net_lock *l, const struct tree *t, struct waiting *w, size_t *cap)
{
	struct cr_err why = {0};

	vec_foreach (k, &l->list)
		if (k->kind == FILE_TCP_LISTEN && k->cookie && l->handshakes &&
		    net_handshakes_add(l->handshakes, k->cookie, k->family,
				       t->task_monotonic_offset_ns, t->arena, w, cap, &why)) {
			log_warn("handshakes that have not come to their end: %s", why.msg);
			return;
		}
}

int net_lock_accept(struct net_lock *l, const struct tree *t, struct waiting *ret,
		    struct cr_err *err)
{
	struct collecting c = {t, t->arena, t->task_monotonic_offset_ns, ret, 0};
	int r = 0;

	*ret = (struct waiting){0};
	vec_foreach (k, &l->list)
		if (k->kind == FILE_TCP_LISTEN && !r)
			r = accept_from(k->fd, &c, err);
		else if (k->kind == FILE_UNIX_LISTEN && !r)
			r = unix_accept_waiting(k->fd, t, ret, &c.cap, err);
	if (!r)
		add_handshakes(l, t, ret, &c.cap);
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
struct unlocking {
	int result;
	struct sock_program_owner owner;
};

static int unlock_socket(int fd, void *arg, struct cr_err *err)
{
	struct cr_err why = {0};
	struct unlocking *u = arg;
	int r = 0;

	if (!sock_may_be_locked(fd) && !tcp_is_in_repair(fd))
		return 0;
	if (sock_filter_is_ebpf(fd) && sock_program_is_ours(&u->owner, fd))
		r = sock_unlock_by(fd, &why);
	if (!r)
		r = tcp_release(fd, 1, &why);
	if (r && !u->result) {
		u->result = r;
		*err = why;
	}
	return 0;
}

int net_unlock_process(pid_t pid, struct cr_err *err)
{
	struct unlocking u = {0};
	int r = each_socket(pid, unlock_socket, &u, err);

	sock_program_owner_done(&u.owner);
	return r ? r : u.result;
}

static int collect_from(int fd, void *arg, struct cr_err *err)
{
	struct collecting *c = arg;

	if (get_int(fd, SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP ||
	    !get_int(fd, SOL_SOCKET, SO_ACCEPTCONN) || !sock_may_be_locked(fd))
		return 0;
	return accept_from(fd, c, err);
}

int net_accept_process(pid_t pid, struct arena *a, int64_t clock_offset_ns, struct waiting *w,
		       struct cr_err *err)
{
	struct collecting c = {NULL, a, clock_offset_ns, w, w->n};

	return each_socket(pid, collect_from, &c, err);
}
