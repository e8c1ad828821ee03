#include "kernel/cgroup_guard.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "kernel/cgroup_ops.h"

struct cgroup_guard {
	pid_t pid;
	int order; /* write end; its end of file is our death */
	/* the child's: */
	const struct cgroup_ops *ops;
	int orders, freeze_file;
	_Alignas(16) char stack[16384];
};

/* An order is one byte: what to do in the end, and whether the cgroup is frozen meanwhile. */
enum { ORDER_FROZEN = 0x80 };

static void close_all_but(int a, int b)
{
	unsigned int lo = (unsigned int)(a < b ? a : b), hi = (unsigned int)(a < b ? b : a);

	if (lo)
		close_range(0, lo - 1, 0);
	if (hi - lo > 1)
		close_range(lo + 1, hi - 1, 0);
	close_range(hi + 1, ~0u, 0);
}

/* Waits for the next order and stores it; false: there will be none. */
static bool next_order(int orders, unsigned char *order, int freeze_file, const char *thaw_text)
{
	struct pollfd p = {.fd = orders, .events = POLLIN};
	int r = poll(&p, 1, *order & ORDER_FROZEN ? CGROUP_GUARD_MS : -1);

	if (r < 0)
		return errno == EINTR;
	if (r == 0) {
		*order &= (unsigned char)~ORDER_FROZEN;
		return write(freeze_file, thaw_text, strlen(thaw_text)) > 0 || errno != ENODEV;
	}
	return read(orders, order, 1) == 1;
}

/* In the child. It shares our memory (a copy would cost page faults in the middle of a downtime)
 * and the thread-local storage of the thread that made it: only system calls that do not fail, for
 * errno's sake. */
static int guard(void *arg)
{
	struct cgroup_guard *g = arg;
	unsigned char order = CGROUP_LEAVE;
	const char *text = NULL;

	prctl(PR_SET_NAME, "cr-guard");
	/* hold nothing of the parent's open, least of all its connections */
	close_all_but(g->orders, g->freeze_file);
	while (next_order(g->orders, &order, g->freeze_file, g->ops->thaw_text))
		;
	if ((order & ~ORDER_FROZEN) == CGROUP_THAW)
		text = g->ops->thaw_text;
	if ((order & ~ORDER_FROZEN) == CGROUP_FREEZE)
		text = g->ops->freeze_text;
	_exit(text && write(g->freeze_file, text, strlen(text)) < 0);
}

/* With all signals blocked: it must outlive a ^C that ends us, and run no handler of ours. No exit
 * signal: it is nobody's business but ours. */
static int spawn(struct cgroup_guard *g, const struct cgroup *cg, struct cr_err *err)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	g->pid = clone(guard, g->stack + sizeof(g->stack), CLONE_VM, g);
	int code = errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = code;
	return g->pid < 0 ? cr_err_sys(err, "starting the guard of cgroup %s", cg->path) : 0;
}

int cgroup_guard_start(struct cgroup_guard **ret, const struct cgroup *cg, struct cr_err *err)
{
	_cleanup_free_ struct cgroup_guard *g = calloc(1, sizeof(*g));
	_cleanup_fd_ int file = openat(cg->dir, cg->ops->freeze_file, O_WRONLY | O_CLOEXEC);
	int fds[2];

	if (!g)
		return cr_err_oom(err);
	if (file < 0)
		return cr_err_sys(err, "%s/%s", cg->fs_path, cg->ops->freeze_file);
	if (pipe2(fds, O_CLOEXEC))
		return cr_err_sys(err, "making a pipe");
	/* ours are closed when we return: the child has its own by then */
	_cleanup_fd_ int orders = fds[0];
	_cleanup_fd_ int order = fds[1];
	g->ops = cg->ops;
	g->orders = orders;
	g->freeze_file = file;
	int r = spawn(g, cg, err);
	if (r < 0)
		return r;
	g->order = take_fd(&order);
	*ret = take_ptr(g);
	return 0;
}

int cgroup_guard_set(struct cgroup_guard *g, enum cgroup_last_act act, bool frozen,
		     struct cr_err *err)
{
	unsigned char c = (unsigned char)(act | (frozen ? ORDER_FROZEN : 0));
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
	if (cgroup_guard_set(g, CGROUP_LEAVE, false, &ignored) < 0)
		kill(g->pid, SIGKILL);
	close(g->order);
	while (waitpid(g->pid, NULL, __WALL) < 0 && errno == EINTR)
		;
	free(g);
}
