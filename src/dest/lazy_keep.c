/* The keeper: a second supervisor, which waits for the end of the first.
 *
 * The last close of a userfaultfd gives zeros to all who wait for a page. So three processes share
 * the table of descriptors in which they are: the fetcher, the supervisor, and this one. If the
 * supervisor ends once the tasks may run, the keeper takes its place, with another keeper behind
 * it: only the end of all three at the same moment is the end of it, and of the tasks
 * (lazy_tie.c). */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "base/log.h"
#include "dest/lazy.h"

/* Nothing is gained by the memory of so small a process. proc_pid_oom_score_adj(5). */
static void stay_alive(void)
{
	_cleanup_fd_ int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "-1000", 5) != 5)
		log_debug("keeper: oom_score_adj: %s", strerror(errno));
}

/* Of this process, until it has ended. */
static int own_pidfd(struct lazy *l, struct cr_err *err)
{
	lazy_close(&l->shared->supervisor_pidfd);
	l->shared->supervisor_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	return l->shared->supervisor_pidfd < 0 ? cr_err_sys(err, "pidfd_open") : 0;
}

static void wait_for_end(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	while (poll(&p, 1, -1) < 1)
		;
}

/* What the supervisor had started goes: it is not ours to wait for. */
static void end_fetcher_of_other(struct lazy *l)
{
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, l->shared->fetcher, 0);

	if (pidfd < 0 || syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0))
		return;
	wait_for_end(pidfd);
}

static void keep(struct lazy *l)
{
	struct cr_err err = {0};

	prctl(PR_SET_NAME, "cr-keeper");
	stay_alive();
	wait_for_end(l->shared->supervisor_pidfd);
	/* before that nothing runs, and whoever settles the journal needs the lock */
	if (!l->shared->committed)
		_exit(0);
	log_warn("the supervisor of the fetcher ended, its keeper takes over");
	prctl(PR_SET_NAME, "cr-agent"); /* another one is the keeper now */
	end_fetcher_of_other(l);
	l->fetcher = l->keeper = l->dump_holder = l->dump_gone = l->page_server.pid = 0;
	lazy_close(&l->shared->page_server);
	l->keeper_pidfd = -1;
	l->dumps_silent = 0;
	if (lazy_keep(l, l->take_over, l->take_over_arg, &err))
		log_error("no keeper behind this one: %s", err.msg);
	int st = l->take_over(l->take_over_arg);
	lazy_end_keeper(l);
	lazy_tie_end(l->shared);
	lazy_state_free(l->shared); /* before the holder of dumps notices that we end */
	_exit(st);
}

int lazy_keep(struct lazy *l, int (*take_over)(void *arg), void *arg, struct cr_err *err)
{
	int r = own_pidfd(l, err);

	l->take_over = take_over;
	l->take_over_arg = arg;
	if (r)
		return r;
	l->keeper = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	if (l->keeper == 0)
		keep(l);
	if (l->keeper < 0)
		return cr_err_sys(err, "starting the keeper");
	l->keeper_pidfd = (int)syscall(SYS_pidfd_open, l->keeper, 0);
	return l->keeper_pidfd < 0 ? cr_err_sys(err, "opening a pidfd of the keeper") : 0;
}

int lazy_keeper_ended(struct lazy *l, struct cr_err *err)
{
	lazy_end_keeper(l);
	return lazy_keep(l, l->take_over, l->take_over_arg, err);
}

void lazy_end_keeper(struct lazy *l)
{
	if (l->keeper > 0) {
		kill(l->keeper, SIGKILL);
		waitpid(l->keeper, NULL, 0);
	}
	l->keeper = 0;
	close_fdp(&l->keeper_pidfd);
}
