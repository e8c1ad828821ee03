/* Features that take a traced child or the CPU's own word. x86-64. */
#include "kernel/features_probe.h"

#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include "base/cleanup.h"
#include "kernel/task.h"

/* ---- ptrace ---- */

/* A traced child that waits in its event stop for as long as fn looks at it. */
static int with_tracee(int (*fn)(pid_t tid, struct cr_err *err), void (*child)(void))
{
	struct cr_err err = {0};
	pid_t pid = fork();

	if (pid < 0)
		return errno;
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		child();
		_exit(0);
	}
	int r = task_seize(pid, 0, &err);
	if (r == 0)
		r = task_interrupt(pid, &err);
	if (r == 0 && fn)
		r = fn(pid, &err);
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, __WALL) > 0 || errno == EINTR)
		;
	return -r;
}

static void wait_for_ever(void)
{
	for (;;)
		pause();
}

int probe_ptrace(char *detail, size_t size)
{
	_cleanup_file_ FILE *f = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
	int scope, r = with_tracee(NULL, wait_for_ever);

	if (f && fscanf(f, "%d", &scope) == 1)
		snprintf(detail, size, "Yama ptrace_scope is %d", scope);
	return r;
}

static int ask_rseq(pid_t tid, struct cr_err *err)
{
	uint64_t va;
	uint32_t len, sig, flags;
	int r = task_get_rseq(tid, &va, &len, &sig, &flags, err);

	/* glibc has registered one in every thread since 2.35: none means that the kernel did not
	 * say */
	return r ? r : va ? 0 : -EIO;
}

int probe_rseq(char *detail, size_t size)
{
	(void)detail;
	(void)size;
	return with_tracee(ask_rseq, wait_for_ever);
}

/* ---- hardware breakpoints ---- */

static __attribute__((noinline)) void landing(void)
{
	__asm__ volatile("nop");
}

static void call_landing(void)
{
	for (;;) {
		landing();
		sched_yield();
	}
}

static int break_at_landing(pid_t tid, struct cr_err *err)
{
	struct user_regs_struct gp = {0};
	int status, r = task_set_breakpoint(tid, (uintptr_t)landing, err);

	if (r == 0)
		r = task_resume(tid, PTRACE_CONT, 0, err);
	/* bounded by the alarm of the child */
	if (r == 0)
		r = task_wait(tid, &status, err);
	if (r == 0)
		r = task_get_gp(tid, &gp, err);
	if (r == 0 && (WSTOPSIG(status) != SIGTRAP || gp.rip != (uintptr_t)landing))
		r = -ENOTSUP;
	return r;
}

static void call_landing_for_a_while(void)
{
	alarm(2); /* a breakpoint that never fires: SIGALRM is a stop, too, and not the right one */
	call_landing();
}

int probe_hw_breakpoints(char *detail, size_t size)
{
	(void)detail;
	(void)size;
	return with_tracee(break_at_landing, call_landing_for_a_while);
}

/* ---- extended state ---- */

static uint64_t xcr0(void)
{
	unsigned int a, b, c, d;
	uint32_t lo, hi;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

static int components(uint64_t want, char *detail, size_t size)
{
	uint64_t have = xcr0();

	snprintf(detail, size, "XCR0 is %#llx", (unsigned long long)have);
	return (have & want) == want ? 0 : ENODEV;
}

int probe_avx(char *detail, size_t size)
{
	return components(1 << 1 | 1 << 2, detail, size);
}

int probe_avx512(char *detail, size_t size)
{
	return components(7 << 5, detail, size);
}

int probe_amx(char *detail, size_t size)
{
	enum { ARCH_GET_XCOMP_SUPP = 0x1021 }; /* Documentation/arch/x86/xstate.rst, 5.16 */
	uint64_t supported = 0;
	int r = components(3 << 17, detail, size);

	if (r == 0 && syscall(SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &supported))
		r = errno;
	return r ? r : supported & 1 << 18 ? 0 : ENODEV;
}
