/* A place in a task for injected system calls from which the task finds its own way back.
 *
 * ptrace(2) has no system call "on behalf of": the task's registers are changed, it runs the call,
 * and they are written back. If the tracer dies in between, the task goes on with what it has. So
 * the `syscall` instruction used is followed by code that loads all that the task had before, its
 * signal mask included, and jumps to where it was: a task that is let go at any moment just
 * continues. A tracer that lives takes it away right after the call instead.
 *
 * Code and values lie in the unused bytes at the end of the vdso's last page, which is executable
 * in every task and holds nothing there; a debugger's breakpoint gets into it in the same way
 * (vdso(7); the page becomes a copy of the task's own). No stack is needed: goroutines and the like
 * have no room below theirs. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>
#include "base/err.h"

enum { DETOUR_BYTES = 512 };

/* Where there is room for one between start and end, the process's vdso: 0 in *ret if nowhere. Also
 * finds one that was left there. */
int detour_find(pid_t pid, uint64_t start, uint64_t end, uint64_t *ret,
		struct cr_err *err) must_check;
/* Write it: the way back to gp (mended for a restart, regs_mend_restart()) and sigmask. The process
 * must be stopped. */
int detour_write(pid_t pid, uint64_t va, const struct user_regs_struct *gp, uint64_t sigmask,
		 struct cr_err *err) must_check;
/* The address of its `syscall` instruction. */
uint64_t detour_syscall_va(uint64_t va);
/* The bytes are as they were. No task may be in it any more. */
int detour_wipe(pid_t pid, uint64_t va, struct cr_err *err) must_check;
