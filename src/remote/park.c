#include "remote/park.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "kernel/task.h"
#include "remote/sigframe.h"

/* Kernel-internal results of an interrupted system call, include/linux/errno.h. */
enum {
	ERESTARTSYS_ = 512,
	ERESTARTNOINTR_ = 513,
	ERESTARTNOHAND_ = 514,
	ERESTART_RESTARTBLOCK_ = 516,
};

void regs_mend_restart(struct user_regs_struct *gp, bool whole)
{
	long ret = (long)gp->rax;

	if ((long)gp->orig_rax < 0)
		return;
	if (ret == -ERESTART_RESTARTBLOCK_) {
		/* The restart block stays behind with the old task. futex(2) waits on an absolute
		 * time or may wake spuriously: simply asked again. The rest say EINTR, as signal(7)
		 * allows. */
		if (gp->orig_rax == SYS_futex) {
			gp->rax = gp->orig_rax;
			gp->rip -= 2;
		} else {
			gp->rax = (unsigned long)-EINTR;
		}
		gp->orig_rax = (unsigned long)-1;
	} else if (whole) {
		if (ret == -ERESTARTSYS_ || ret == -ERESTARTNOINTR_ || ret == -ERESTARTNOHAND_) {
			gp->rax = gp->orig_rax;
			gp->rip -= 2;
		}
		gp->orig_rax = (unsigned long)-1;
	}
}

static int set_breakpoints(struct rtask **tasks, size_t n, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		int r = task_set_breakpoint(tasks[i]->tid, rarea_sigreturn_va(tasks[i]->area), err);

		if (!r)
			continue;
		while (i-- > 0)
			if (task_clear_breakpoint(tasks[i]->tid, &(struct cr_err){0}))
				break; /* it died: the wait will tell */
		return r;
	}
	return 0;
}

static int interrupt_all(struct rtask **tasks, size_t n, struct cr_err *err)
{
	/* all at once, then wait: the stops overlap */
	for (size_t i = 0; i < n; i++)
		if (ptrace(PTRACE_INTERRUPT, tasks[i]->tid, 0, 0))
			return cr_err_sys(err, "interrupting task %d", tasks[i]->tid);
	for (size_t i = 0; i < n; i++) {
		int st;
		int r = task_wait(tasks[i]->tid, &st, err);

		if (!r && !task_is_event_stop(st))
			r = cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				       "task %d stopped with status %#x before its park",
				       tasks[i]->tid, st);
		if (r)
			return r;
	}
	return 0;
}

/* Run to the breakpoint, or step by system calls to the entry of rt_sigreturn. */
static int wait_arrival(struct rtask *t, enum park_how how, struct cr_err *err)
{
	struct user_regs_struct gp;
	uint64_t insn = rarea_sigreturn_va(t->area);

	for (;;) {
		int st;
		int r = task_wait(t->tid, &st, err);

		if (!r)
			r = task_get_gp(t->tid, &gp, err);
		if (r)
			return r;
		if (how == PARK_BREAKPOINT && (st >> 8) == SIGTRAP && gp.rip == insn)
			return 0;
		if (how == PARK_SYSCALL_TRACE && WSTOPSIG(st) == (SIGTRAP | 0x80)) {
			if (gp.rip == insn + 2 && gp.orig_rax == SYS_rt_sigreturn)
				return 0;
		} else if (WSTOPSIG(st) != SIGSTOP && !task_is_event_stop(st)) {
			return cr_err_set(
			    err, CR_ERR_BUG, EPROTO,
			    "task %d stopped with status %#x at %#llx instead of its park", t->tid,
			    st, gp.rip);
		}
		r = task_resume(t->tid, how == PARK_BREAKPOINT ? PTRACE_CONT : PTRACE_SYSCALL, 0,
				err);
		if (r)
			return r;
	}
}

/* A system-call trace stops at the entry of rt_sigreturn: make it none and leave that stop, so that
 * the task stands, as after the breakpoint, in the kernel's signal code. */
static int leave_syscall_entry(struct rtask *t, struct cr_err *err)
{
	struct user_regs_struct gp;
	int r = task_get_gp(t->tid, &gp, err);

	if (r)
		return r;
	gp.orig_rax = (unsigned long)-1; /* skipped: no system call has this number */
	gp.rip = rarea_sigreturn_va(t->area);
	gp.rax = SYS_rt_sigreturn; /* as before the instruction: it can be let go from here */
	r = task_set_gp(t->tid, &gp, err);
	return r ? r : task_to_event_stop(t->tid, err);
}

int park_at_sigreturn(struct rtask **tasks, size_t n, enum park_how *how, struct cr_err *err)
{
	int r = interrupt_all(tasks, n, err);

	if (r)
		return r;
	if (*how == PARK_BREAKPOINT && set_breakpoints(tasks, n, err))
		*how = PARK_SYSCALL_TRACE;
	for (size_t i = 0; i < n && !r; i++) {
		uint64_t va = rtask_rescue_sp(tasks[i]); /* a whole frame: even if we die now */

		if (!va)
			rtask_data(tasks[i], &va);
		rtask_queue_sigreturn(tasks[i], va);
		r = task_resume(tasks[i]->tid,
				*how == PARK_BREAKPOINT ? PTRACE_CONT : PTRACE_SYSCALL, 0, err);
	}
	for (size_t i = 0; i < n && !r; i++) {
		r = wait_arrival(tasks[i], *how, err);
		if (!r)
			r = *how == PARK_BREAKPOINT ? task_clear_breakpoint(tasks[i]->tid, err)
						    : leave_syscall_entry(tasks[i], err);
	}
	return r;
}

int park_undo(struct rtask **tasks, size_t n, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		struct rtask *t = tasks[i];
		struct user_regs_struct gp;
		int r = task_get_gp(t->tid, &gp, err);

		if (r)
			return r;
		rtask_unqueue_sigreturn(t);
		gp.rip = rarea_entry_va(t->area);
		gp.rdi = t->slot_va;
		gp.rsp = rtask_stack_va(t) - 8; /* as after a call: the ABI's alignment */
		gp.orig_rax = (unsigned long)-1;
		r = task_set_gp(t->tid, &gp, err);
		if (!r)
			r = task_resume(t->tid, PTRACE_CONT, 0, err);
		if (r)
			return r;
	}
	return 0;
}

int park_unmap(struct rtask *t, uint64_t insn_va, struct cr_err *err)
{
	struct user_regs_struct gp;
	uint64_t args[6] = {t->area->remote, t->area->bytes};
	long ret;
	/* a signal that waits for the task must not come between; the mask is written once more by
	 * whoever writes the registers */
	int r = task_set_sigmask(t->tid, ~0ull, err);

	if (!r)
		r = task_get_gp(t->tid, &gp, err);

	if (!r)
		r = task_inject_syscall(t->tid, &gp, insn_va ? insn_va : rarea_syscall_va(t->area),
					SYS_munmap, args, &ret, err);
	if (!r && ret)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-ret,
				  "unmapping the executor in task %d: %s", t->tid,
				  strerror((int)-ret));
	return r ? r : task_to_event_stop(t->tid, err);
}

/* The registers last: until then the task is where it finds back by itself. */
int leave_rewrite(struct rtask *t, const struct thread_state *st, struct cr_err *err)
{
	int r = task_set_sigmask(t->tid, st->sigmask, err);

	if (!r && st->xstate)
		r = task_set_xstate(t->tid, st->xstate, st->xstate_len, err);
	if (!r)
		r = task_set_gp(t->tid, &st->gp, err);
	return r;
}

static int leave_by_sigreturn(struct rtask *t, const struct thread_state *st, struct cr_err *err)
{
	struct thread_state mended = *st;
	struct user_regs_struct gp;
	uint64_t va, sp;
	uint8_t *buf = rtask_data(t, &va);
	int status;

	regs_mend_restart(&mended.gp, true);
	int r = sigframe_build(buf, RTASK_SCRATCH_BYTES, va, &mended, &sp, err);
	if (!r)
		r = task_get_gp(t->tid, &gp, err);
	if (r)
		return r;
	gp.rip = rarea_sigreturn_va(t->area);
	gp.rax = SYS_rt_sigreturn;
	gp.orig_rax = (unsigned long)-1;
	gp.rsp = sp;
	/* not in the frame: segment bases */
	gp.fs_base = st->gp.fs_base;
	gp.gs_base = st->gp.gs_base;
	r = task_set_gp(t->tid, &gp, err);
	/* over the instruction by its system call's entry and exit: the trap of a single step would
	 * reset the action of SIGTRAP, which is blocked here */
	for (int i = 0; i < 2 && !r; i++) {
		r = task_resume(t->tid, PTRACE_SYSCALL, 0, err);
		if (!r)
			r = task_wait(t->tid, &status, err);
	}
	if (!r)
		r = task_get_gp(t->tid, &gp, err);
	if (!r && (WSTOPSIG(status) != (SIGTRAP | 0x80) || gp.rip != mended.gp.rip))
		r = cr_err_set(err, CR_ERR_BUG, EPROTO,
			       "task %d left rt_sigreturn with status %#x at %#llx, expected %#llx",
			       t->tid, status, gp.rip, mended.gp.rip);
	return r;
}

int leave_prepare(struct rtask *t, enum leave_how how, const struct thread_state *st,
		  struct cr_err *err)
{
	return how == LEAVE_SIGRETURN ? leave_by_sigreturn(t, st, err) : leave_rewrite(t, st, err);
}
