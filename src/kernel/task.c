#include "kernel/task.h"

#include <elf.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/ptrace.h>

enum { STATUS_EVENT_STOP = PTRACE_EVENT_STOP };

bool task_is_event_stop(int status)
{
	return WIFSTOPPED(status) && (status >> 16) == STATUS_EVENT_STOP;
}

int task_wait(pid_t tid, int *ret_status, struct cr_err *err)
{
	int st;
	pid_t r;

	do
		r = waitpid(tid, &st, __WALL);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return cr_err_sys(err, "waiting for task %d", tid);
	if (!WIFSTOPPED(st)) {
		err->pid = tid;
		return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "task %d died (%s %d)", tid,
				  WIFSIGNALED(st) ? "signal" : "exit status",
				  WIFSIGNALED(st) ? WTERMSIG(st) : WEXITSTATUS(st));
	}
	*ret_status = st;
	return 0;
}

int task_seize(pid_t tid, unsigned long options, struct cr_err *err)
{
	if (ptrace(PTRACE_SEIZE, tid, 0, options))
		return cr_err_sys(err, "seizing task %d", tid);
	return 0;
}

int task_resume(pid_t tid, int request, int signo, struct cr_err *err)
{
	if (ptrace(request, tid, 0, signo))
		return cr_err_sys(err, "resuming task %d", tid);
	return 0;
}

static int wait_event_stop(pid_t tid, struct cr_err *err)
{
	for (;;) {
		int st;
		int r = task_wait(tid, &st, err);

		if (r)
			return r;
		if (task_is_event_stop(st))
			return 0;
		/* a signal-delivery stop: hand the signal on; other stops: just go on */
		int sig = (st >> 16) == 0 && WSTOPSIG(st) != (SIGTRAP | 0x80) ? WSTOPSIG(st) : 0;
		r = task_resume(tid, PTRACE_CONT, sig, err);
		if (r)
			return r;
	}
}

int task_interrupt(pid_t tid, struct cr_err *err)
{
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0))
		return cr_err_sys(err, "interrupting task %d", tid);
	return wait_event_stop(tid, err);
}

int task_to_event_stop(pid_t tid, struct cr_err *err)
{
	int st;

	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) || ptrace(PTRACE_CONT, tid, 0, 0))
		return cr_err_sys(err, "moving task %d to its event stop", tid);
	int r = task_wait(tid, &st, err);
	if (r)
		return r;
	if (!task_is_event_stop(st))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "task %d stopped with status %#x, expected its event stop", tid,
				  st);
	return 0;
}

static int regset(pid_t tid, int request, unsigned long type, void *buf, size_t *len,
		  const char *what, struct cr_err *err)
{
	struct iovec iov = {buf, *len};

	if (ptrace(request, tid, type, &iov))
		return cr_err_sys(err, "%s of task %d", what, tid);
	*len = iov.iov_len;
	return 0;
}

int task_get_gp(pid_t tid, struct user_regs_struct *ret, struct cr_err *err)
{
	size_t len = sizeof(*ret);

	return regset(tid, PTRACE_GETREGSET, NT_PRSTATUS, ret, &len, "reading the registers", err);
}

int task_set_gp(pid_t tid, const struct user_regs_struct *gp, struct cr_err *err)
{
	size_t len = sizeof(*gp);

	return regset(tid, PTRACE_SETREGSET, NT_PRSTATUS, (void *)gp, &len, "writing the registers",
		      err);
}

int task_get_xstate(pid_t tid, void *buf, size_t *len, struct cr_err *err)
{
	return regset(tid, PTRACE_GETREGSET, NT_X86_XSTATE, buf, len,
		      "reading the extended registers", err);
}

int task_set_xstate(pid_t tid, const void *buf, size_t len, struct cr_err *err)
{
	static _Thread_local size_t whole; /* the kernel takes all or nothing */
	uint8_t full[TASK_XSTATE_MAX];

	if (!whole) {
		size_t room = sizeof(full);
		int r = task_get_xstate(tid, full, &room, err);

		if (r)
			return r;
		whole = room;
	}
	if (len < whole) {
		memcpy(full, buf, len);
		memset(full + len, 0, whole - len);
		buf = full;
		len = whole;
	}
	return regset(tid, PTRACE_SETREGSET, NT_X86_XSTATE, (void *)buf, &len,
		      "writing the extended registers", err);
}

int task_get_sigmask(pid_t tid, uint64_t *ret, struct cr_err *err)
{
	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof(*ret), ret))
		return cr_err_sys(err, "reading the signal mask of task %d", tid);
	return 0;
}

int task_set_sigmask(pid_t tid, uint64_t mask, struct cr_err *err)
{
	if (ptrace(PTRACE_SETSIGMASK, tid, sizeof(mask), &mask))
		return cr_err_sys(err, "writing the signal mask of task %d", tid);
	return 0;
}

int task_get_rseq(pid_t tid, uint64_t *va, uint32_t *len, uint32_t *sig, uint32_t *flags,
		  struct cr_err *err)
{
	struct ptrace_rseq_configuration c = {0};

	*va = 0;
	*len = *sig = *flags = 0;
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(c), &c) < 0) {
		if (errno == EIO || errno == EINVAL)
			return 0;
		return cr_err_sys(err, "reading the rseq registration of task %d", tid);
	}
	*va = c.rseq_abi_pointer;
	*len = c.rseq_abi_size;
	*sig = c.signature;
	*flags = c.flags;
	return 0;
}

int task_inject_syscall(pid_t tid, const struct user_regs_struct *base, uint64_t insn_va, long nr,
			const uint64_t args[6], long *ret, struct cr_err *err)
{
	struct user_regs_struct gp = *base;

	gp.rip = insn_va;
	gp.rax = nr;
	gp.orig_rax = -1; /* no system call to restart: it would rewind rip */
	gp.rdi = args[0];
	gp.rsi = args[1];
	gp.rdx = args[2];
	gp.r10 = args[3];
	gp.r8 = args[4];
	gp.r9 = args[5];
	int r = task_set_gp(tid, &gp, err);
	for (int i = 0; i < 2 && !r; i++) { /* its entry, its exit */
		int st;

		do { /* somebody's SIGCONT traps a task that is seized, blocked or not */
			r = task_resume(tid, PTRACE_SYSCALL, 0, err);
			if (!r)
				r = task_wait(tid, &st, err);
		} while (!r && task_is_event_stop(st));
		if (!r && WSTOPSIG(st) != (SIGTRAP | 0x80))
			r = cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				       "task %d stopped with status %#x inside an injected call",
				       tid, st);
	}
	if (!r)
		r = task_get_gp(tid, &gp, err);
	if (!r)
		*ret = (long)gp.rax;
	return r;
}

static int poke_debugreg(pid_t tid, int n, uint64_t v)
{
	size_t off =
	    offsetof(struct user, u_debugreg) + n * sizeof(((struct user *)0)->u_debugreg[0]);

	return ptrace(PTRACE_POKEUSER, tid, off, v) ? -errno : 0;
}

int task_set_breakpoint(pid_t tid, uint64_t va, struct cr_err *err)
{
	/* DR7: bit 0 enables register 0 for this task; length and type 0 mean execution */
	if (poke_debugreg(tid, 0, va) || poke_debugreg(tid, 7, 1))
		return cr_err_sys(err, "setting a hardware breakpoint in task %d", tid);
	return 0;
}

int task_clear_breakpoint(pid_t tid, struct cr_err *err)
{
	if (poke_debugreg(tid, 7, 0) || poke_debugreg(tid, 0, 0))
		return cr_err_sys(err, "clearing the hardware breakpoint of task %d", tid);
	return 0;
}
