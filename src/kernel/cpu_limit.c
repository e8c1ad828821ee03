#include "kernel/cpu_limit.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "base/log.h"
#include "kernel/cgroup_ops.h"

enum { LEAST_US = 1000, PERIOD_US = 100000 };

struct cpu_limit {
	bool v2, changed;
	int quota;    /* the file */
	char was[64]; /* what it said */
	long most_us; /* in each period */
	long period_us;
	pid_t guard;
	int alive; /* the guard sees its end */
};

/* ---- which cgroup ---- */

static bool is_among(const pid_t *pids, size_t n, pid_t pid)
{
	for (size_t i = 0; i < n; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

/* v2 shows 0 for what our pid namespace does not. */
static int check_alone(int dir, const char *path, const pid_t *pids, size_t n, struct cr_err *err)
{
	_cleanup_fd_ int fd = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	_cleanup_file_ FILE *f = fd < 0 ? NULL : fdopen(dup(fd), "r");
	int pid;

	if (!f)
		return cr_err_sys(err, "%s/cgroup.procs", path);
	while (fscanf(f, "%d", &pid) == 1)
		if (!is_among(pids, n, pid))
			return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
					  "cgroup %s holds process %d as well: put the tasks into "
					  "one of their own",
					  path, pid);
	return 0;
}

static int check_no_children(int dir, const char *path, struct cr_err *err)
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_dir_ DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	if (!d)
		return cr_err_sys(err, "%s", path);
	while ((e = readdir(d)))
		if (e->d_type == DT_DIR && e->d_name[0] != '.')
			return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
					  "cgroup %s has others below it (%s)", path, e->d_name);
	return 0;
}

static int open_quota(struct cpu_limit *l, const char *path, const pid_t *pids, size_t n,
		      struct cr_err *err)
{
	const char *name = l->v2 ? "cpu.max" : "cpu.cfs_quota_us";
	_cleanup_fd_ int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		return cr_err_sys(err, "%s", path);
	l->quota = openat(dir, name, O_RDWR | O_CLOEXEC);
	if (l->quota < 0)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, errno,
				  "cgroup %s has no %s: the root, or without the cpu controller",
				  path, name);
	int r = check_alone(dir, path, pids, n, err);
	if (!r)
		r = check_no_children(dir, path, err);
	if (r)
		return r;
	ssize_t len = cgroup_read_at(dir, name, l->was, sizeof(l->was));
	char period[32] = "";
	long quota = -1;

	l->period_us = PERIOD_US;
	if (len > 0 && l->v2) {
		if (sscanf(l->was, "%31s %ld", period, &l->period_us) == 2 && strcmp(period, "max"))
			quota = strtol(period, NULL, 10);
	} else if (len > 0) {
		quota = strtol(l->was, NULL, 10);
		if (cgroup_read_at(dir, "cpu.cfs_period_us", period, sizeof(period)) > 0)
			l->period_us = strtol(period, NULL, 10);
	}
	if (len <= 0 || l->period_us <= 0)
		return cr_err_set(err, CR_ERR_KERNEL, EIO, "%s/%s cannot be read", path, name);
	l->most_us = quota > 0 ? quota : l->period_us * sysconf(_SC_NPROCESSORS_ONLN);
	return 0;
}

/* ---- the guard ---- */

static void write_quota(int fd, const char *text)
{
	if (pwrite(fd, text, strlen(text), 0) < 0)
		log_warn("giving tasks their CPU time back: %s", strerror(errno));
}

/* Waits for the end of the other side of the pipe; a byte says that there is nothing to do. */
static void guard(const struct cpu_limit *l, int from)
{
	char c;
	ssize_t n;

	prctl(PR_SET_NAME, "cr-cpu-guard");
	for (int fd = 0; fd < 3; fd++)
		if (fd != from && fd != l->quota)
			close(fd);
	close_range(3, (unsigned int)(from < l->quota ? from : l->quota) - 1, 0);
	do
		n = read(from, &c, 1);
	while (n < 0 && errno == EINTR);
	if (n == 0 && pwrite(l->quota, l->was, strlen(l->was), 0) < 0)
		_exit(1);
	_exit(0);
}

static int start_guard(struct cpu_limit *l, struct cr_err *err)
{
	sigset_t all, old;
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return cr_err_sys(err, "pipe");
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	l->guard = fork();
	if (l->guard == 0) {
		close(fds[1]);
		guard(l, fds[0]);
	}
	sigprocmask(SIG_SETMASK, &old, NULL);
	close(fds[0]);
	l->alive = fds[1];
	return l->guard < 0 ? cr_err_sys(err, "fork") : 0;
}

/* ---- all of it ---- */

int cpu_limit_new(struct cpu_limit **ret, const pid_t *pids, size_t n, struct cr_err *err)
{
	_cleanup_(cpu_limit_freep) struct cpu_limit *l = calloc(1, sizeof(*l));
	_cleanup_free_ char *dir = NULL;

	if (!l)
		return cr_err_oom(err);
	l->quota = l->alive = -1;
	for (size_t i = 0; i < n; i++) {
		_cleanup_free_ char *its = NULL;
		int r = cgroup_cpu_dir(pids[i], &its, &l->v2, err);

		if (r)
			return r;
		if (dir && strcmp(dir, its) != 0)
			return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
					  "the tasks are in more than one cgroup: %s, %s", dir,
					  its);
		if (!dir)
			dir = take_ptr(its);
	}
	int r = dir ? open_quota(l, dir, pids, n, err)
		    : cr_err_set(err, CR_ERR_INPUT, ESRCH, "no tasks");
	if (!r)
		r = start_guard(l, err);
	if (r)
		return r;
	*ret = take_ptr(l);
	return 0;
}

int cpu_limit_set(struct cpu_limit *l, unsigned int thousandths, struct cr_err *err)
{
	long us = l->most_us * (long)thousandths / 1000;
	char text[64];

	if (us < LEAST_US)
		us = LEAST_US;
	if (l->v2)
		snprintf(text, sizeof(text), "%ld %ld", us, l->period_us);
	else
		snprintf(text, sizeof(text), "%ld", us);
	l->changed = true;
	return pwrite(l->quota, text, strlen(text), 0) < 0
		   ? cr_err_sys(err, "limiting the tasks' CPU time to %s", text)
		   : 0;
}

void cpu_limit_free(struct cpu_limit *l)
{
	if (!l)
		return;
	if (l->changed)
		write_quota(l->quota, l->was);
	if (l->guard > 0) {
		/* else it would do the same again, perhaps after somebody else's change */
		if (write(l->alive, "q", 1) != 1)
			kill(l->guard, SIGKILL);
		waitpid(l->guard, NULL, 0);
	}
	close_fdp(&l->alive);
	close_fdp(&l->quota);
	free(l);
}
