/* x86-64 for the blob: raw system calls, clone3 into the executor, the way out by rt_sigreturn. */
#pragma once
#include "pie/slot.h"

enum { ARCH_FUTEX_WAIT = 0, ARCH_FUTEX_WAKE = 1 };

extern const char arch_sigreturn_insn[], arch_syscall_insn[];

static inline long arch_syscall(long nr, unsigned long a, unsigned long b, unsigned long c,
				unsigned long d, unsigned long e, unsigned long f)
{
	long ret;
	register unsigned long r10 __asm__("r10") = d;
	register unsigned long r8 __asm__("r8") = e;
	register unsigned long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* seconds 0: no limit. */
static inline long arch_futex(unsigned int *word, int op, unsigned int val, long seconds)
{
	long timeout[2] = {seconds, 0};

	return arch_syscall(202 /* futex */, (unsigned long)word, op, val,
			    seconds ? (unsigned long)timeout : 0, 0, 0);
}

static inline int arch_process_is_gone(unsigned int pid)
{
	return arch_syscall(62 /* kill */, pid, 0, 0, 0, 0, 0) == -3 /* ESRCH */;
}

void arch_sigreturn(unsigned long sp);
long arch_clone3(unsigned long args, unsigned long size, struct blob_slot *child);
