/* The holder of dumps: a process that makes tasks wait that dump core while pages are missing
 * (kernel/dump_hold.h), until all have arrived and the userfaultfds are closed.
 *
 * It is in nobody's way: it has none of the descriptors that the fetcher, its supervisor and the
 * keeper share, and these need it for nothing. It ends when all of them have, or when it is told
 * to; so do the waits, as the kernel lets all go on who wait for a group that is closed. If it is
 * killed no other takes its place: dumps lack from then on what has not arrived.
 *
 * One thread answers, and does nothing else: whoever opens a file beside a task's core waits for
 * it. The other looks from time to time where the tasks are, and who has been forked. */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/parallel.h"
#include "dest/lazy.h"
#include "kernel/cgroup.h"
#include "kernel/dump_hold.h"

enum {
	PRIORITY = 30, /* the fetcher's: everybody whom it makes wait has the right to be quick */
	END_MS = 20,   /* how soon lost memory is noticed */
	LOOKS_EVERY = 10,   /* of these */
	FIRST_LOOK_MS = 50, /* as part of the downtime */
	BEAT_MS = 200,
	WATCH_MS = 500,
	SILENT_MOST = 3, /* looks in a row */
	RESTARTS_MAX = 3,
};

struct holder {
	int group, control;
	struct lazy_stats *stats;
	struct cgroup *tasks, *tasks_answer; /* one for each thread */
	bool complained;
};

static ssize_t list_tasks(void *arg, pid_t **ret)
{
	const struct holder *h = arg;
	struct cr_err err = {0};

	return cgroup_procs(h->tasks_answer, ret, &err);
}

static void *answer_main(void *arg)
{
	const struct holder *h = arg;
	struct pollfd p = {.fd = h->group, .events = POLLIN};
	struct cr_err err = {0};

	for (;;) {
		__atomic_add_fetch(&h->stats->dump_beats, 1, __ATOMIC_RELEASE);
		if (poll(&p, 1, BEAT_MS) <= 0)
			continue;
		/* nobody may wait for one who cannot answer */
		if (dump_hold_answer(h->group, list_tasks, arg, &err))
			_exit(1);
	}
}

static void look(struct holder *h)
{
	struct cr_err err = {0};
	_cleanup_free_ pid_t *pids = NULL;
	ssize_t n = cgroup_procs(h->tasks, &pids, &err);
	int r = n < 0 ? (int)n : dump_hold_watch(h->group, pids, (size_t)n, &err);

	if (r && !h->complained)
		log_warn("core dumps may lack what has not arrived: %s", err.msg);
	h->complained |= r != 0;
}

static void end(const struct holder *h)
{
	h->stats->dump_over = 1;
	_exit(0);
}

/* What it needs are the ways to where tasks of any user are. */
static int drop_privileges(void)
{
	const cap_value_t keep[] = {CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH};
	cap_t caps = cap_init();
	int r = !caps || cap_set_flag(caps, CAP_PERMITTED, 2, keep, CAP_SET) ||
		cap_set_flag(caps, CAP_EFFECTIVE, 2, keep, CAP_SET) || cap_set_proc(caps) ||
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);

	cap_free(caps);
	return r ? -1 : 0;
}

static int set_up(struct holder *h, const char *cgroup, struct cr_err *err)
{
	const struct sched_param sp = {.sched_priority = PRIORITY};
	struct rlimit files;
	pthread_t answers;

	/* one for each that waits */
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (sched_setscheduler(0, SCHED_FIFO, &sp))
		log_debug("holder of dumps: %s", strerror(errno));
	h->group = dump_hold_open(err);
	int r = h->group < 0 ? h->group : cgroup_open(&h->tasks, CGROUP_ANY, cgroup, err);
	if (!r)
		r = cgroup_open(&h->tasks_answer, CGROUP_ANY, cgroup, err);
	if (!r && drop_privileges())
		r = cr_err_sys(err, "giving up privileges");
	if (r)
		return r;
	errno = parallel_thread(&answers, answer_main, h);
	return errno ? cr_err_sys(err, "a thread") : 0;
}

static void hold(struct holder *h, const char *cgroup)
{
	struct pollfd p = {.fd = h->control, .events = POLLIN};
	struct cr_err err = {0};
	unsigned int ticks = 0;
	bool looks = false;
	char c;

	if (set_up(h, cgroup, &err)) {
		log_info("a core dump lacks what has not arrived by then: %s", err.msg);
		end(h);
	}
	for (;;) {
		if (poll(&p, 1, END_MS) < 0)
			continue;
		if (p.revents) {
			if (recv(h->control, &c, 1, 0) != 1)
				end(h); /* they are all gone */
			/* from here on others may have to wait for us: it is noticed if we stop */
			__atomic_add_fetch(&h->stats->dump_beats, 1, __ATOMIC_RELEASE);
			look(h);
			looks = true;
			if (send(h->control, &c, 1, MSG_NOSIGNAL) != 1)
				end(h);
		}
		/* the userfaultfds stay open for what is lost, as long as a task has it */
		if (__atomic_load_n(&h->stats->guarding, __ATOMIC_ACQUIRE))
			end(h);
		if (looks && ++ticks % LOOKS_EVERY == 0)
			look(h);
	}
}

static void close_all_but(unsigned int fd)
{
	if (fd > 3)
		close_range(3, fd - 1, 0);
	close_range(fd + 1, ~0u, 0);
}

/* ---- the supervisor's side ---- */

static struct lazy_dumps *dumps_of(struct lazy *l)
{
	return l->shared ? &l->shared->dumps : &l->dumps;
}

void lazy_dumps_begin(struct lazy *l, const char *cgroup)
{
	struct lazy_dumps *d = dumps_of(l);
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		log_warn("no holder of dumps: %s", strerror(errno));
		return;
	}
	l->stats->dump_beats = l->stats->dump_over = 0;
	l->dump_holder = fork();
	if (l->dump_holder == 0) {
		struct holder h = {.control = pair[1], .stats = l->stats};

		prctl(PR_SET_NAME, "cr-dumps");
		close_all_but((unsigned int)pair[1]);
		hold(&h, cgroup);
	}
	close(pair[1]);
	d->control = pair[0];
	if (l->dump_holder > 0)
		d->pidfd = (int)syscall(SYS_pidfd_open, l->dump_holder, 0);
	if (l->dump_holder > 0 && d->pidfd >= 0)
		return;
	log_warn("no holder of dumps: %s", strerror(errno));
	lazy_close(&d->control); /* at which it ends, should there be one */
}

void lazy_dumps_look(struct lazy *l)
{
	struct lazy_dumps *d = dumps_of(l);
	const char c = 'l';

	if (d->control >= 0 && send(d->control, &c, 1, MSG_NOSIGNAL) != 1)
		lazy_close(&d->control);
}

void lazy_dumps_looked(struct lazy *l)
{
	struct lazy_dumps *d = dumps_of(l);
	struct pollfd p = {.fd = d->control, .events = POLLIN};
	char c;

	if (d->control < 0)
		return;
	if (poll(&p, 1, FIRST_LOOK_MS) != 1)
		log_warn("the holder of dumps does not answer");
	else if (recv(d->control, &c, 1, MSG_DONTWAIT) != 1)
		lazy_close(&d->control);
}

static bool has_ended(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) == 1;
}

/* Does it get around to nothing? */
static bool is_silent(struct lazy *l)
{
	uint32_t beats = __atomic_load_n(&l->stats->dump_beats, __ATOMIC_ACQUIRE);
	bool same = beats && beats == l->dumps_seen_beats;

	l->dumps_seen_beats = beats;
	l->dumps_silent = same ? l->dumps_silent + 1 : 0;
	return l->dumps_silent >= SILENT_MOST;
}

static void forget(struct lazy *l)
{
	struct lazy_dumps *d = dumps_of(l);

	l->dump_gone = l->dump_holder;
	l->dump_holder = 0;
	l->dumps_silent = 0;
	lazy_close(&d->pidfd);
	lazy_close(&d->control);
}

int lazy_dumps_watch(struct lazy *l, const char *cgroup)
{
	struct lazy_dumps *d = dumps_of(l);
	uint64_t now = now_us();

	if (l->dump_gone > 0 && waitpid(l->dump_gone, NULL, WNOHANG))
		l->dump_gone = 0;
	if (d->pidfd < 0)
		return l->dump_gone > 0 ? WATCH_MS : -1;
	if (now - l->dumps_seen_us < WATCH_MS * 1000)
		return WATCH_MS - (int)((now - l->dumps_seen_us) / 1000);
	l->dumps_seen_us = now;
	bool ended = has_ended(d->pidfd);
	if (!ended && !is_silent(l))
		return WATCH_MS;
	if (!ended && syscall(SYS_pidfd_send_signal, d->pidfd, SIGKILL, NULL, 0))
		log_warn("ending the holder of dumps: %s", strerror(errno));
	bool over = ended && l->stats->dump_over;
	forget(l);
	if (over)
		return WATCH_MS;
	log_warn("the holder of dumps %s: core dumps of now lack what has not arrived",
		 ended ? "was ended" : "did not answer any more, and is ended");
	if (l->dumps_restarts++ == RESTARTS_MAX) {
		log_warn("no other takes its place");
		return WATCH_MS;
	}
	lazy_dumps_begin(l, cgroup);
	lazy_dumps_look(l);
	return WATCH_MS;
}

void lazy_dumps_end(struct lazy *l)
{
	struct lazy_dumps *d = dumps_of(l);

	lazy_close(&d->control);
	/* not waited for: it may be looking at a directory on a file system that does not answer */
	if (d->pidfd >= 0 && syscall(SYS_pidfd_send_signal, d->pidfd, SIGKILL, NULL, 0))
		log_debug("the holder of dumps: %s", strerror(errno));
	lazy_close(&d->pidfd);
	l->dump_holder = 0;
}
