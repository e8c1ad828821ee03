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
#include "base/log.h"
#include "base/parallel.h"
#include "dest/lazy.h"
#include "kernel/cgroup.h"
#include "kernel/dump_hold.h"

enum {
	PRIORITY = 30, /* the fetcher's: everybody whom it makes wait has the right to be quick */
	END_MS = 20,   /* how soon lost memory is noticed */
	LOOKS_EVERY = 10,  /* of these */
	FIRST_LOOK_MS = 50 /* as part of the downtime */
};

struct holder {
	int group, control;
	const struct lazy_stats *stats;
	struct cgroup *tasks, *tasks_answer; /* one for each thread */
	bool complained;
};

static bool is_task(pid_t pid, void *arg)
{
	const struct holder *h = arg;
	struct cr_err err = {0};
	_cleanup_free_ pid_t *pids = NULL;
	ssize_t n = cgroup_procs(h->tasks_answer, &pids, &err);

	for (ssize_t i = 0; i < n; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

static void *answer_main(void *arg)
{
	const struct holder *h = arg;
	struct pollfd p = {.fd = h->group, .events = POLLIN};
	struct cr_err err = {0};

	for (;;) {
		if (poll(&p, 1, -1) < 0)
			continue;
		/* nobody may wait for one who cannot answer */
		if (dump_hold_answer(h->group, is_task, arg, &err))
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
		_exit(0);
	}
	for (;;) {
		if (poll(&p, 1, END_MS) < 0)
			continue;
		if (p.revents) {
			if (recv(h->control, &c, 1, 0) != 1)
				_exit(0); /* they are all gone */
			look(h);
			looks = true;
			if (send(h->control, &c, 1, MSG_NOSIGNAL) != 1)
				_exit(0);
		}
		/* the userfaultfds stay open for what is lost, as long as a task has it */
		if (__atomic_load_n(&h->stats->guarding, __ATOMIC_ACQUIRE))
			_exit(0);
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

void lazy_dumps_begin(struct lazy *l, const char *cgroup)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		log_warn("no holder of dumps: %s", strerror(errno));
		return;
	}
	l->dump_holder = fork();
	if (l->dump_holder == 0) {
		struct holder h = {.control = pair[1], .stats = l->stats};

		prctl(PR_SET_NAME, "cr-dumps");
		close_all_but((unsigned int)pair[1]);
		hold(&h, cgroup);
	}
	close(pair[1]);
	if (l->dump_holder < 0)
		log_warn("no holder of dumps: %s", strerror(errno));
	if (l->dump_holder < 0)
		close(pair[0]);
	else
		l->dump_control = pair[0];
}

void lazy_dumps_look(struct lazy *l)
{
	const char c = 'l';

	if (l->dump_control >= 0 && send(l->dump_control, &c, 1, MSG_NOSIGNAL) != 1)
		close_fdp(&l->dump_control);
}

void lazy_dumps_looked(struct lazy *l)
{
	struct pollfd p = {.fd = l->dump_control, .events = POLLIN};
	char c;

	if (l->dump_control < 0)
		return;
	if (poll(&p, 1, FIRST_LOOK_MS) != 1)
		log_warn("the holder of dumps does not answer");
	else if (recv(l->dump_control, &c, 1, MSG_DONTWAIT) != 1)
		close_fdp(&l->dump_control);
}

void lazy_dumps_end(struct lazy *l)
{
	close_fdp(&l->dump_control);
	/* not waited for: it may be looking at a directory on a file system that does not answer */
	if (l->dump_holder > 0)
		kill(l->dump_holder, SIGKILL);
	l->dump_holder = 0;
}
