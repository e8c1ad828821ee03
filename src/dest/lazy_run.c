/* The fetcher's supervisor. */
#include "dest/lazy.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <grp.h>
#include "base/clock.h"
#include "base/log.h"

enum {
	NOBODY = 65534,
	RESTARTS_MAX = 200, /* of fetchers, in which no page has arrived */
	DEATHS_MAX = 20,    /* of page-servers */
	FETCH_PRIORITY = 30,
};

static int map_stats(struct lazy *l, struct cr_err *err)
{
	_cleanup_fd_ int fd = open(l->stats_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, sizeof(*l->stats)))
		return cr_err_sys(err, "making %s", l->stats_path);
	void *p = mmap(NULL, sizeof(*l->stats), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return cr_err_sys(err, "mapping %s", l->stats_path);
	l->stats = p;
	return 0;
}

void lazy_stats_path(char *buf, size_t n, const char *state_dir, const char *id)
{
	snprintf(buf, n, "%s/%.32s.lazy", state_dir, id);
}

/* Without one the fetcher does all by itself. Until it executes, it has a copy of our descriptors:
 * of these, too, the last go first (close_range(2), lazy_tie.c). */
static void start_page_server(struct lazy *l)
{
	struct cr_err err = {0};

	if (l->deaths >= DEATHS_MAX)
		return;
	if (ps_child_start(&l->page_server, &err))
		log_warn("%s; fetching pages without a page-server", err.msg);
}

static void end_page_server(struct lazy *l)
{
	if (l->shared)
		l->shared->page_server = -1;
	ps_child_stop(&l->page_server);
}

/* Nothing is lost with one, but the fetcher ends with it, and the connections do: one that cannot
 * live here is not started for ever. */
static void note_death(struct lazy *l)
{
	siginfo_t si = {0};

	if (!l->page_server.pid ||
	    waitid(P_PID, (id_t)l->page_server.pid, &si, WEXITED | WNOHANG | WNOWAIT) || !si.si_pid)
		return;
	if (++l->deaths == DEATHS_MAX)
		log_warn("the page-server died %u times; fetching pages without a page-server",
			 l->deaths);
}

/* The fetcher never waits for it. */
static int hand_page_server(struct lazy *l, struct cr_err *err)
{
	start_page_server(l);
	if (!l->page_server.pid)
		return 0;
	if (fcntl(l->page_server.socket, F_SETFL, O_NONBLOCK))
		return cr_err_sys(err, "socket of the page-server");
	l->shared->page_server = l->page_server.socket;
	return 0;
}

int lazy_new(struct lazy **ret, const char *stats_path, const char *cgroup, uint32_t timeout_ms,
	     struct cr_err *err)
{
	struct lazy *l = calloc(1, sizeof(*l));

	if (!l)
		return cr_err_oom(err);
	l->keeper_pidfd = -1;
	l->dumps = (struct lazy_dumps){-1, -1};
	l->timeout_ms = timeout_ms;
	snprintf(l->stats_path, sizeof(l->stats_path), "%s", stats_path);
	int r = map_stats(l, err);
	if (r) {
		lazy_free(l);
		return r;
	}
	lazy_dumps_begin(l, cgroup);
	start_page_server(l); /* ahead: it takes some milliseconds to be ready */
	*ret = l;
	return 0;
}

static void close_own(struct lazy_shared *sh)
{
	lazy_close(&sh->fetcher_pidfd);
	lazy_close(&sh->control);
	lazy_close(&sh->fetcher_control);
}

static void end_fetcher(struct lazy *l)
{
	if (l->fetcher > 0) {
		kill(l->fetcher, SIGKILL);
		waitpid(l->fetcher, NULL, 0);
	}
	l->fetcher = 0;
	if (l->shared)
		close_own(l->shared);
}

void lazy_free(struct lazy *l)
{
	if (!l)
		return;
	lazy_end_keeper(l); /* first: it would take this for its cue */
	end_fetcher(l);
	end_page_server(l);
	if (l->shared)
		lazy_tie_end(l->shared);
	vec_foreach (p, &l->procs) {
		close_fdp(&p->uffd);
		sentmap_done(&p->left);
	}
	vec_done(&l->procs);
	vec_foreach (o, &l->objects) {
		free(o->left);
		close_fdp(&o->fd);
	}
	vec_done(&l->objects);
	if (l->shared)
		l->dumps = l->shared->dumps;
	lazy_state_free(l->shared);
	l->shared = NULL;
	lazy_dumps_end(l); /* after all userfaultfds */
	if (l->stats)
		munmap(l->stats, sizeof(*l->stats));
	if (!l->keeps_stats)
		unlink(l->stats_path);
	free(l);
}

/* ---- the fetcher's process ---- */

/* It parses what comes from the network, and holds descriptors that are worth something: it needs
 * nothing else. */
static int drop_privileges(void)
{
	cap_t none = cap_init();
	int r = !none || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || setgroups(0, NULL) ||
		setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY) ||
		cap_set_proc(none);

	cap_free(none);
	return r ? -1 : 0;
}

/* CLONE_PARENT_SETTID: whoever takes over from us knows of every fetcher that may run.
 *
 * With our table of descriptors, so that what it is handed by the kernel (the userfaultfd of a new
 * child of a task) survives it, clone(2) CLONE_FILES. */
static int spawn(struct lazy *l, bool takes_over, struct cr_err *err)
{
	int pair[2], r = hand_page_server(l, err);

	if (r)
		return r;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return cr_err_sys(err, "socketpair");
	const struct fetch_args a = {.shared = l->shared,
				     .stats = l->stats,
				     .control = pair[1],
				     .wake = pair[0],
				     .timeout_ms = l->timeout_ms,
				     .takes_over = takes_over};
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_FILES | CLONE_PARENT_SETTID | SIGCHLD, 0,
				   &l->shared->fetcher, 0, 0);
	if (pid == 0) {
		const struct sched_param sp = {.sched_priority = FETCH_PRIORITY};

		signal(SIGPIPE, SIG_IGN);
		prctl(PR_SET_NAME, "cr-fetcher");
		/* while it may: its threads take that over, those for what is pushed give it up */
		if (sched_setscheduler(0, SCHED_FIFO, &sp))
			log_debug("fetcher: %s", strerror(errno));
		if (drop_privileges())
			log_warn("fetcher: cannot drop privileges: %s", strerror(errno));
		_exit(fetch_run(&a));
	}
	if (pid < 0) {
		r = cr_err_sys(err, "starting the fetcher");

		close(pair[0]);
		close(pair[1]);
		return r;
	}
	l->fetcher = pid;
	l->looks = LAZY_LOOKS; /* the one before may not have told of all */
	l->shared->control = pair[0];
	l->shared->fetcher_control = pair[1];
	l->shared->fetcher_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	return l->shared->fetcher_pidfd < 0 ? cr_err_sys(err, "opening a pidfd of the fetcher") : 0;
}

int lazy_start(struct lazy *l, const struct tree *t, struct cr_err *err)
{
	int r = lazy_make_spaces(l, t, err);

	if (!r)
		l->shared->dumps = l->dumps;
	for (size_t i = 0; i < LAZY_SPACES && !r; i++)
		l->stats->pages_lazy += lazy_count(l->shared, &l->shared->spaces[i]);
	if (!r)
		l->stats->pages_lazy += lazy_objects_count(l->shared);
	l->stats->left = l->stats->pages_lazy;
	if (!r)
		r = lazy_tie_begin(l->shared, err);
	return r ? r : spawn(l, false, err);
}

void lazy_commit(struct lazy *l)
{
	if (l)
		l->shared->committed = 1;
}

void lazy_connection(struct lazy *l, int fd, enum msg_lazy_kind kind)
{
	const struct fetch_hand h = {.fd = fd, .kind = (int32_t)kind};

	if (l->shared->control < 0 ||
	    send(l->shared->control, &h, sizeof(h), MSG_NOSIGNAL) != sizeof(h))
		close(fd);
}

static bool is_noted(const struct lazy_shared *sh, int fd)
{
	bool is = fd == sh->urgent_fd;

	for (size_t i = 0; i < LAZY_BULK_MAX; i++)
		is |= fd == sh->bulk_fds[i];
	return is;
}

/* Half a frame may have been read: the source connects anew. So it does where a connection had not
 * been taken yet; one that is noted and in the queue is the same. */
static void close_connections(struct lazy *l)
{
	struct fetch_hand h;

	while (recv(l->shared->fetcher_control, &h, sizeof(h), MSG_DONTWAIT) == sizeof(h))
		if (h.fd >= 0 && !is_noted(l->shared, h.fd))
			close(h.fd);
	lazy_close(&l->shared->urgent_fd);
	for (size_t i = 0; i < LAZY_BULK_MAX; i++)
		lazy_close(&l->shared->bulk_fds[i]);
}

int lazy_fetcher_ended(struct lazy *l, struct cr_err *err)
{
	int st = 0;

	if (l->fetcher > 0 && waitpid(l->fetcher, &st, 0) < 0)
		return cr_err_sys(err, "waiting for the fetcher");
	l->fetcher = 0;
	note_death(l);
	end_page_server(l); /* first: it has the connections, too */
	close_connections(l);
	close_own(l->shared);
	if (WIFEXITED(st) && WEXITSTATUS(st) == 0)
		return 1;
	log_warn("the fetcher ended (status %#x), another one takes over", st);
	if (l->stats->left != l->left_before)
		l->restarts = 0;
	l->left_before = l->stats->left;
	if (++l->restarts > RESTARTS_MAX)
		return cr_err_set(err, CR_ERR_BUG, ELOOP, "the fetcher died %u times", l->restarts);
	return spawn(l, true, err);
}

int lazy_resume(struct lazy *l, struct cr_err *err)
{
	close_connections(l);
	close_own(l->shared);
	return spawn(l, true, err);
}

void lazy_stats_fill(const struct lazy_stats *st, struct msg_postcopy *ret)
{
	*ret = (struct msg_postcopy){
	    .pages_lazy = st->pages_lazy,
	    .faults = st->faults,
	    .p50_us = lazy_percentile(st, 50),
	    .p99_us = lazy_percentile(st, 99),
	    .max_us = st->max_us,
	    .duration_us = (st->ended_us ? st->ended_us : st->seen_us) - st->started_us,
	    .reconnects = st->connects ? st->connects - 1 : 0,
	    .pushed = st->pushed,
	    .lost = st->lost,
	};
}

bool lazy_stats_read(const char *path, struct lazy_stats *ret)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd >= 0 && pread(fd, ret, sizeof(*ret), 0) == (ssize_t)sizeof(*ret);
}
