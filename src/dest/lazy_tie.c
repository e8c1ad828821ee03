/* The lives of the tasks are tied to the processes that fetch their pages.
 *
 * Were all of these killed in one moment, the kernel would close the userfaultfds as their table of
 * descriptors goes, and give zeros to whoever touches what is missing. So the table also holds the
 * only writing end of a pipe, and for each task a reading end of its own that asks for SIGKILL,
 * sent to the task, when that pipe breaks (fcntl(2) F_SETOWN_EX, F_SETSIG, O_ASYNC). A pipe breaks
 * without anybody's help; what matters is that it breaks first. KERNEL: an ending process closes
 * its files in ascending order, but each is let go by a task_work of its own, and these run last
 * added first (task_work_run, since 4.5): the writing end has the highest number, and goes before
 * all userfaultfds. A task that has the signal pending never gets back to its program: whatever
 * page it is given, it sees none of it.
 *
 * Ties are loosened as soon as nothing is missing any more, before anything of the table is closed
 * on purpose. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include "base/log.h"
#include "dest/lazy.h"
#include "kernel/cgroup.h"

/* Beyond what is open, and the userfaultfds of children that come. */
enum { HIGH_FD = 16384 };

int lazy_tie_begin(struct lazy_shared *sh, struct cr_err *err)
{
	struct rlimit limit;
	int p[2];

	if (pipe2(p, O_CLOEXEC | O_NONBLOCK))
		return cr_err_sys(err, "pipe");
	sh->tie_read = p[0];
	int high = HIGH_FD;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur <= HIGH_FD)
		high = (int)limit.rlim_cur - 1;
	sh->tie_hold = fcntl(p[1], F_DUPFD_CLOEXEC, high);
	int r = sh->tie_hold < 0 ? cr_err_sys(err, "a descriptor above all others") : 0;
	close(p[1]);
	return r;
}

static struct lazy_tie *tie_of(struct lazy_shared *sh, pid_t pid)
{
	struct lazy_tie *unused = NULL;

	for (size_t i = 0; i < LAZY_TIES; i++) {
		struct lazy_tie *t = &sh->ties[i];

		if (t->fd >= 0 && t->pid == pid)
			return t;
		if (t->fd < 0 && !unused)
			unused = t;
	}
	return unused;
}

static int tie(struct lazy_shared *sh, pid_t pid, struct cr_err *err)
{
	const struct f_owner_ex owner = {.type = F_OWNER_PID, .pid = pid};
	struct lazy_tie *t = tie_of(sh, pid);
	char path[64];

	if (!t)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG,
				  "pages are fetched for more than %d processes", LAZY_TIES);
	if (t->fd >= 0)
		return 0;
	/* a description of its own: it has one owner */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", sh->tie_read);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return cr_err_sys(err, "opening %s", path);
	if (fcntl(fd, F_SETOWN_EX, &owner))
		return errno == ESRCH ? 0 : cr_err_sys(err, "tying process %d", pid);
	if (fcntl(fd, F_SETSIG, SIGKILL) || fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC))
		return cr_err_sys(err, "tying process %d", pid);
	t->pid = pid;
	t->fd = take_fd(&fd);
	return 0;
}

/* First no signal any more, then closed: whoever is killed in between leaves nothing that could
 * harm a task. */
static void loosen(struct lazy_tie *t)
{
	if (t->fd < 0)
		return;
	if (fcntl(t->fd, F_SETFL, O_NONBLOCK))
		log_warn("loosening process %d: %s", t->pid, strerror(errno));
	lazy_close(&t->fd);
}

void lazy_untie(struct lazy_shared *sh)
{
	for (size_t i = 0; i < LAZY_TIES; i++)
		loosen(&sh->ties[i]);
}

int lazy_tie(struct lazy_shared *sh, const pid_t *pids, size_t n, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		r = tie(sh, pids[i], err);
	/* the fetcher may have come to its end meanwhile */
	if (sh->phase == LAZY_FINISHED)
		lazy_untie(sh);
	return r;
}

static bool is_listed(pid_t pid, const pid_t *pids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

/* The tasks' cgroup has those as well that they have forked since. */
static int tie_cgroup(struct lazy_shared *sh, const char *path, struct cr_err *err)
{
	_cleanup_(cgroup_closep) struct cgroup *cg = NULL;
	_cleanup_free_ pid_t *pids = NULL;
	int r = cgroup_open(&cg, CGROUP_ANY, path, err);
	ssize_t n = r ? r : cgroup_procs(cg, &pids, err);

	if (n < 0)
		return (int)n;
	/* who has ended: his pid may be another's soon */
	for (size_t i = 0; i < LAZY_TIES; i++)
		if (sh->ties[i].fd >= 0 && !is_listed(sh->ties[i].pid, pids, (size_t)n))
			loosen(&sh->ties[i]);
	return lazy_tie(sh, pids, (size_t)n, err);
}

bool lazy_tie_more(struct lazy *l, const char *cgroup)
{
	struct fetch_hand h;
	struct cr_err err = {0};

	while (recv(l->shared->control, &h, sizeof(h), MSG_DONTWAIT) == sizeof(h))
		l->looks = LAZY_LOOKS;
	if (!l->looks || l->shared->phase == LAZY_FINISHED)
		return false;
	l->looks--;
	if (tie_cgroup(l->shared, cgroup, &err))
		log_warn("%s", err.msg);
	return l->looks > 0;
}

void lazy_tie_end(struct lazy_shared *sh)
{
	if (sh->phase == LAZY_FINISHED)
		lazy_untie(sh);
	lazy_close(&sh->tie_hold); /* who is still tied ends here */
	lazy_untie(sh);
	lazy_close(&sh->tie_read);
}
