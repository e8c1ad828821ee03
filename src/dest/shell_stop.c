/* A process that a signal had stopped (signal(7), job control) is stopped here before it runs: a
 * group stop made under our tracing lasts beyond it. PTRACE_DETACH leads each thread back into it
 * (ptrace(2), PTRACE_SEIZE; 3.4), and so does the end of this process; until then they can be made
 * to run as any others.
 *
 * The parent's SIGCHLD of it is taken away, as it had one at the source; whether wait(2) still has
 * to tell it of the stop is as it was. */
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dest/shells_private.h"
#include "kernel/task.h"

static int resume(pid_t tid, int sig, struct cr_err *err)
{
	return task_resume(tid, PTRACE_CONT, sig, err);
}

/* It takes part in the stop; trapped at once if there is none. *ret_sig is what it says. */
static int join_stop(pid_t tid, int *ret_sig, struct cr_err *err)
{
	int status = 0;
	int r = ptrace(PTRACE_INTERRUPT, tid, 0, 0) ? cr_err_sys(err, "stopping thread %d", tid)
						    : resume(tid, 0, err);

	if (!r)
		r = task_wait(tid, &status, err);
	if (!r && !task_is_event_stop(status))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "task %d stopped with status %#x, expected a group stop", tid,
				  status);
	if (!r)
		*ret_sig = WSTOPSIG(status);
	return r;
}

/* By sig, or by SIGSTOP if that does not stop it here: in a process group that nobody looks after
 * (setpgid(2)) no other does. The signal is put in the place of a SIGSTOP, which nothing blocks. */
static int stop_leader(const struct shell *sh, int sig, struct cr_err *err)
{
	uint64_t mask, none = 0;
	pid_t tid = sh->threads[0]->tid;
	int status = 0, got = 0;

	if (syscall(SYS_tgkill, sh->pid, tid, SIGSTOP))
		return cr_err_sys(err, "stopping process %d", sh->pid);
	int r = resume(tid, 0, err);
	if (!r)
		r = task_wait(tid, &status, err);
	if (!r && (status >> 16 || WSTOPSIG(status) != SIGSTOP))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "task %d stopped with status %#x, expected its SIGSTOP", tid,
				  status);
	if (!r)
		r = task_get_sigmask(tid, &mask, err);
	if (!r) /* one that is blocked would wait instead */
		r = task_set_sigmask(tid, none, err);
	if (!r && ptrace(PTRACE_INTERRUPT, tid, 0, 0))
		r = cr_err_sys(err, "stopping process %d", sh->pid);
	if (!r)
		r = resume(tid, sig, err);
	if (!r)
		r = task_wait(tid, &status, err);
	if (!r && task_is_event_stop(status))
		got = WSTOPSIG(status);
	if (!r)
		r = task_set_sigmask(tid, mask, err);
	if (r || got == sig)
		return r;
	if (got == SIGTRAP && sig != SIGSTOP)
		return stop_leader(sh, SIGSTOP, err);
	return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
			  "process %d is not stopped by signal %d (status %#x)", sh->pid, sig,
			  status);
}

static int stop_all(const struct shell *sh, int sig, struct cr_err *err)
{
	int r = stop_leader(sh, sig, err);

	for (size_t i = 1; i < sh->n_threads && !r; i++) {
		int got = 0;

		r = join_stop(sh->threads[i]->tid, &got, err);
		if (!r && got == SIGTRAP)
			return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
					  "thread %d of process %d is not stopped",
					  sh->threads[i]->tid, sh->pid);
	}
	return r;
}

static int wait_for_stop(struct shell *parent, pid_t pid, struct cr_err *err)
{
	struct rtask *rt = shell_leader(parent);
	int r = shell_unpark(NULL, parent, err);

	if (r)
		return r;
	rqueue(rt, "waitid", SYS_waitid, P_PID, pid, 0, WSTOPPED | WNOHANG, 0);
	return rtask_run(rt, err);
}

int shell_stop(struct shells *s, struct shell *sh, const struct process *p, struct cr_err *err)
{
	struct shell *parent = shells_find(s, sh->ppid);
	/* with a handler, it would be handled */
	bool by_default = !p->sigactions[p->stop_sig - 1].handler;
	int sig = by_default && !p->stop_told ? (int)p->stop_sig : SIGSTOP;
	int r = shell_park(s, sh, err); /* every thread under our tracing, at a place of its own */

	if (!r)
		r = stop_all(sh, sig, err);
	if (!r && parent && !parent->zombie && p->stop_told)
		r = wait_for_stop(parent, sh->pid, err);
	if (!r && parent && !parent->zombie)
		r = shell_drain_sigchld(parent, err);
	return r ? cr_err_ctx(err, "stopping process %d as it was", sh->pid) : 0;
}
