/* Who made a unix socket, where that is none of the tree's processes.
 *
 * SO_PEERCRED reads who made a pair, connected, or called listen(2); a daemon often has sockets
 * from a process that has ended since. So somebody of that number comes here for the one call, and
 * ends: the number stays with the socket. It shares our table of descriptors, and nothing else. If
 * the number is somebody else's here, which the preflight warns of, another one is read. */
#include "resource/unix_private.h"

#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct told { /* by who makes the call */
	int error;
	int fds[2];
};

static _Noreturn void call_and_end(const struct unix_maker *who, long nr, const uint64_t args[4],
				   struct told *told, bool with_fds)
{
	long last = with_fds ? (long)told->fds : (long)args[3];

	if (syscall(SYS_setresgid, -1, who->gid, -1) || syscall(SYS_setresuid, -1, who->uid, -1) ||
	    syscall(nr, args[0], args[1], args[2], last) < 0)
		told->error = errno;
	else
		told->error = 0;
	for (;;)
		syscall(SYS_exit_group, 0);
}

/* pid 0: any. */
static pid_t start(pid_t pid, const struct unix_maker *who, long nr, const uint64_t args[4],
		   struct told *told, bool with_fds)
{
	/* nobody is told of its end, and no handler of ours runs there */
	struct clone_args ca = {.flags = CLONE_FILES | CLONE_CLEAR_SIGHAND,
				.set_tid = pid ? (uint64_t)(uintptr_t)&pid : 0,
				.set_tid_size = pid ? 1 : 0};
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid_t child = (pid_t)syscall(SYS_clone3, &ca, sizeof(ca));
	if (!child)
		call_and_end(who, nr, args, told, with_fds);
	int saved = errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = saved;
	return child;
}

/* EINVAL: there is no such number here. */
static bool is_taken(int error)
{
	return error == EEXIST || error == EINVAL;
}

int unix_call_as(const struct unix_maker *who, bool exactly, const char *what, long nr,
		 const uint64_t args[4], int ret_fds[2], struct cr_err *err)
{
	struct told *told =
	    mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0;

	if (told == MAP_FAILED)
		return cr_err_oom(err);
	*told = (struct told){.error = ECHILD, .fds = {-1, -1}};
	pid_t child = start(who->pid, who, nr, args, told, ret_fds);
	if (child < 0 && who->pid && is_taken(errno) && !exactly)
		child = start(0, who, nr, args, told, ret_fds);
	int r = child < 0 ? cr_err_sys(err, "process %d, for a moment", who->pid) : 0;
	while (!r && waitpid(child, &status, __WALL) < 0)
		if (errno != EINTR)
			r = cr_err_sys(err, "waiting for process %d", child);
	if (!r && told->error)
		r = cr_err_set(err, CR_ERR_KERNEL, told->error, "%s as process %d: %s", what,
			       who->pid, strerror(told->error));
	if (!r && ret_fds)
		memcpy(ret_fds, told->fds, sizeof(told->fds));
	munmap(told, sizeof(*told));
	return r;
}

/* ---- destination preflight ---- */

static bool is_thread(const struct tree *t, pid_t tid)
{
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_threads; k++)
			if (t->procs[i].threads[k].tid == tid)
				return true;
	return false;
}

/* Whether somebody of that number can make a call here: one of the tree's, or one who comes for it.
 */
static bool can_be_had(const struct tree *t, pid_t pid)
{
	const struct process *p = tree_find_process(t, pid);

	if (p)
		return !p->zombie;
	return pid && !is_thread(t, pid) && kill(pid, 0) && errno == ESRCH && kill(-pid, 0) &&
	       errno == ESRCH;
}

void unix_check_maker(const struct file_check *k, const struct file *f)
{
	bool listens = f->kind == FILE_UNIX_LISTEN;

	/* of datagram sockets a pair has it only */
	if ((!listens && (!f->connected || (f->sock_type == SOCK_DGRAM && !f->cred_pid))) ||
	    can_be_had(k->t, f->cred_pid))
		return;
	file_check_warn(k,
			"%sunix %s socket: SO_PEERCRED %stells process %d, which is not in the "
			"tree and cannot be told of here%s: another number will be told, with the "
			"same ids",
			listens ? "listening " : "", unix_type_name(f),
			listens ? "of its clients " : "", f->cred_pid,
			f->cred_pid ? ", where that number is taken" : "");
}
