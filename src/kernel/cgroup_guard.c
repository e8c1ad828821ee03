#include "kernel/cgroup_guard.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "kernel/cgroup_ops.h"

struct cgroup_guard {
	pid_t pid;
	int order; /* write end: acts; its end of file is our death */
};

/* In the child. Only system calls: the parent may have threads that held locks at the fork. */
static _Noreturn void guard(int orders, int freeze_file, const struct cgroup_ops *ops)
{
	char act = CGROUP_LEAVE;
	ssize_t n;

	unsigned int lo = (unsigned int)(orders < freeze_file ? orders : freeze_file);
	unsigned int hi = (unsigned int)(orders < freeze_file ? freeze_file : orders);

	prctl(PR_SET_NAME, "cr-guard");
	/* hold nothing of the parent's open, least of all its connections */
	if (lo)
		close_range(0, lo - 1, 0);
	if (hi - lo > 1)
		close_range(lo + 1, hi - 1, 0);
	close_range(hi + 1, ~0u, 0);
	do
		n = read(orders, &act, 1);
	while (n > 0 || (n < 0 && errno == EINTR));
	const char *text = act == CGROUP_THAW     ? ops->thaw_text
			   : act == CGROUP_FREEZE ? ops->freeze_text
						  : NULL;
	_exit(text && write(freeze_file, text, strlen(text)) < 0);
}

int cgroup_guard_start(struct cgroup_guard **ret, const struct cgroup *cg, struct cr_err *err)
{
	_cleanup_free_ struct cgroup_guard *g = malloc(sizeof(*g));
	_cleanup_fd_ int file = openat(cg->dir, cg->ops->freeze_file, O_WRONLY | O_CLOEXEC);
	sigset_t all, old;
	int fds[2];

	if (!g)
		return cr_err_oom(err);
	if (file < 0)
		return cr_err_sys(err, "%s/%s", cg->fs_path, cg->ops->freeze_file);
	if (pipe2(fds, O_CLOEXEC))
		return cr_err_sys(err, "making a pipe");
	_cleanup_fd_ int orders = fds[0];
	_cleanup_fd_ int order = fds[1];
	/* it must outlive a ^C that ends us */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	g->pid = fork();
	int code = errno;
	if (g->pid == 0)
		guard(orders, file, cg->ops);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = code;
	if (g->pid < 0)
		return cr_err_sys(err, "starting the guard of cgroup %s", cg->path);
	g->order = take_fd(&order);
	*ret = take_ptr(g);
	return 0;
}

int cgroup_guard_set(struct cgroup_guard *g, enum cgroup_last_act act, struct cr_err *err)
{
	char c = (char)act;
	ssize_t n;

	do
		n = write(g->order, &c, 1);
	while (n < 0 && errno == EINTR);
	return n == 1 ? 0 : cr_err_sys(err, "telling the guard of a cgroup");
}

void cgroup_guard_stop(struct cgroup_guard *g)
{
	struct cr_err ignored;

	if (!g)
		return;
	/* If it cannot be told, it must not act on our closing the pipe. */
	if (cgroup_guard_set(g, CGROUP_LEAVE, &ignored) < 0)
		kill(g->pid, SIGKILL);
	close(g->order);
	while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
		;
	free(g);
}
