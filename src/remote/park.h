/* Park tasks at the blob's rt_sigreturn, and let them leave from there. Used by the parasite's cure
 * and by the restorer's last step alike: set, wake, wait.
 *
 * A parked task is in a ptrace stop inside the kernel's signal code, one instruction before
 * rt_sigreturn (or at its system-call entry, where breakpoints are not to be had). Nothing of ours
 * is left armed in it. It leaves in one of two ways: regsets   - registers, extended state and mask
 * are written by ptrace; the executor's memory is unmapped first; the task is detached by whoever
 * owns the seizure sigreturn - the frame in the slot holds everything; the task steps over
 * rt_sigreturn */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>
#include "base/err.h"
#include "remote/area.h"

enum park_how { PARK_BREAKPOINT, PARK_SYSCALL_TRACE };
enum leave_how { LEAVE_REGSETS, LEAVE_SIGRETURN };

/* What a thread is to be when it leaves. */
struct thread_state {
	struct user_regs_struct gp;
	const void *xstate; /* NT_X86_XSTATE as GETREGSET gave it; NULL: leave as it is */
	size_t xstate_len;
	uint64_t sigmask;
	uint64_t altstack_sp, altstack_size;
	int32_t altstack_flags;
};

/* All tasks run the executor, idle, seized by this thread and not stopped. *how is what was asked
 * for and becomes what was done: PARK_BREAKPOINT falls back to tracing when a register cannot be
 * had. On failure some tasks may be parked and others not; all are dead weight then: kill or
 * abandon. */
int park_at_sigreturn(struct rtask **tasks, size_t n, enum park_how *how,
		      struct cr_err *err) must_check;

/* Back from the park into the executor's loop; the tasks run again. */
int park_undo(struct rtask **tasks, size_t n, struct cr_err *err) must_check;

/* Remove the executor's memory from the address space of the parked task t (one of each address
 * space, after all that was to be run there has run). insn_va: a `syscall` instruction elsewhere
 * (remote/detour.h); 0: that of the executor, after which t has no code to go on with. Leaves every
 * signal blocked in t: leave_*() comes after. */
int park_unmap(struct rtask *t, uint64_t insn_va, struct cr_err *err) must_check;

/* The state is written; the task stays stopped and needs only to be detached. LEAVE_SIGRETURN needs
 * the executor's memory mapped while it steps: park_unmap() comes after, and is followed by
 * leave_rewrite() for the task that did the unmapping. */
int leave_prepare(struct rtask *t, enum leave_how how, const struct thread_state *st,
		  struct cr_err *err) must_check;
int leave_rewrite(struct rtask *t, const struct thread_state *st, struct cr_err *err) must_check;

/* Mend a stopped thread's registers for an interrupted system call that is to be restarted where
 * the kernel does not know about it: in a sigframe (whole == true), or in another task (whole ==
 * false: only what depends on the old task's restart block). signal(7), "Interruption of system
 * calls". */
void regs_mend_restart(struct user_regs_struct *gp, bool whole);
