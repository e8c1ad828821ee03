/* ptrace(2) on one task: stops, registers, injected system calls, debug registers. No policy.
 *
 * Every call must come from the thread that seized the task. -ESRCH: the task died or is not
 * stopped. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>
#include "base/err.h"

enum { TASK_XSTATE_MAX = 16384 };

/* Wait for the next stop of tid; *ret_status as waitpid(2) gives it. Death is -ESRCH. */
int task_wait(pid_t tid, int *ret_status, struct cr_err *err) must_check;
bool task_is_event_stop(int status);

int task_seize(pid_t tid, unsigned long options, struct cr_err *err) must_check;
int task_resume(pid_t tid, int request, int signo, struct cr_err *err) must_check;
/* Interrupt a running task and wait until it is in PTRACE_EVENT_STOP; a signal that arrives first
 * is handed on. */
int task_interrupt(pid_t tid, struct cr_err *err) must_check;
/* From any other ptrace stop into PTRACE_EVENT_STOP without running user code. There the kernel
 * handles the restart of an interrupted system call when the task leaves. */
int task_to_event_stop(pid_t tid, struct cr_err *err) must_check;

int task_get_gp(pid_t tid, struct user_regs_struct *ret, struct cr_err *err) must_check;
int task_set_gp(pid_t tid, const struct user_regs_struct *gp, struct cr_err *err) must_check;
/* *len: room in, bytes out. */
int task_get_xstate(pid_t tid, void *buf, size_t *len, struct cr_err *err) must_check;
/* A buffer that is shorter than the kernel's goes on with zeros: components in their initial state.
 */
int task_set_xstate(pid_t tid, const void *buf, size_t len, struct cr_err *err) must_check;
int task_get_sigmask(pid_t tid, uint64_t *ret, struct cr_err *err) must_check;
int task_set_sigmask(pid_t tid, uint64_t mask, struct cr_err *err) must_check;
/* All zero when none is registered (or the kernel is older than 5.13). */
int task_get_rseq(pid_t tid, uint64_t *va, uint32_t *len, uint32_t *sig, uint32_t *flags,
		  struct cr_err *err) must_check;

/* Run one system call in a stopped task, at the `syscall` instruction at insn_va. base: registers
 * to start from. Leaves the task in its syscall-exit stop, registers changed. *ret: the kernel's
 * result. */
int task_inject_syscall(pid_t tid, const struct user_regs_struct *base, uint64_t insn_va, long nr,
			const uint64_t args[6], long *ret, struct cr_err *err) must_check;

/* Execution breakpoint in debug register 0. -ENOSPC/-EINVAL/-EIO where there are none to be had. */
int task_set_breakpoint(pid_t tid, uint64_t va, struct cr_err *err) must_check;
/* Must be done before the task leaves: an armed register survives a detach and kills the task. */
int task_clear_breakpoint(pid_t tid, struct cr_err *err) must_check;
