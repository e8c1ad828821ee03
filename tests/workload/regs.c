/* Registers across a move: general, flags, FS and GS base, and every xsave component that the CPU
 * has (x87, SSE, AVX, AVX-512, PKRU, AMX). They are loaded with patterns, held for some
 * milliseconds in a loop that touches none of them (or that makes system calls), and compared.
 *
 * --rseq: instead hold restartable sequences; one that was under way at the move must have been
 * aborted.
 * --syscalls: hold the registers across system calls only. */
#include "workload.h"
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <asm/prctl.h>

enum { GPRS = 14, XSAVE_BYTES = 16384 }; /* all general registers but rsp and rcx */
#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
static const int amx_tiledata = 18;

struct regs {
	uint64_t gpr[GPRS]; /* rax rbx rdx rsi rdi rbp r8..r15 */
	uint64_t flags;
};
struct regs_job {         /* offsets are used by the assembly below */
	struct regs in;   /* 0 */
	struct regs out;  /* 120 */
	uint64_t spins;   /* 240 */
	uint64_t mask;    /* 248 */
	void *xin, *xout; /* 256, 264 */
};

/* The loops change rcx (and, with system calls, rax and r11) and nothing else: `loop` keeps the
 * flags. */
void regs_hold(struct regs_job *job);
void regs_hold_syscalls(struct regs_job *job);
#define HOLD(name, body)                                                                           \
	".globl " name "\n" name ":\n"                                                             \
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi\n"           \
	"	mov 248(%rdi), %eax; mov 252(%rdi), %edx; mov 256(%rdi), %rcx; xrstor64 (%rcx)\n"        \
	"	mov 240(%rdi), %rcx\n"                                                                   \
	"	mov 8(%rdi), %rbx; mov 16(%rdi), %rdx; mov 24(%rdi), %rsi; mov 40(%rdi), %rbp\n"         \
	"	mov 48(%rdi), %r8; mov 56(%rdi), %r9; mov 64(%rdi), %r10; mov 72(%rdi), %r11\n"          \
	"	mov 80(%rdi), %r12; mov 88(%rdi), %r13; mov 96(%rdi), %r14; mov 104(%rdi), %r15\n"       \
	"	pushq 112(%rdi); mov 0(%rdi), %rax; mov 32(%rdi), %rdi; popfq\n" body              \
	"	pushfq; cld; xchg %rdi, 8(%rsp)\n" /* rdi: the job, 8(%rsp): rdi's pattern */      \
	"	mov %rax, 120(%rdi); mov %rbx, 128(%rdi); mov %rdx, 136(%rdi); mov %rsi, "               \
	"144(%rdi)\n"                                                                              \
	"	mov %rbp, 160(%rdi); mov %r8, 168(%rdi); mov %r9, 176(%rdi); mov %r10, "                 \
	"184(%rdi)\n"                                                                              \
	"	mov %r11, 192(%rdi); mov %r12, 200(%rdi); mov %r13, 208(%rdi); mov %r14, "               \
	"216(%rdi)\n"                                                                              \
	"	mov %r15, 224(%rdi); popq 232(%rdi); popq 152(%rdi)\n"                                   \
	"	mov 248(%rdi), %eax; mov 252(%rdi), %edx; mov 264(%rdi), %rcx; xsave64 (%rcx)\n"         \
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
__asm__(".text\n" HOLD("regs_hold", "1: pause; loop 1b\n")
	    HOLD("regs_hold_syscalls",
		 "1: push %rcx; mov $110, %eax; syscall; pop %rcx; loop 1b\n")); /* getppid */

/* ---- xsave templates ---- */

struct component {
	int bit;
	uint32_t offset, size;
};
static struct component comps[16];
static int n_comps;
static uint64_t xmask;

static uint64_t xgetbv0(void)
{
	uint32_t lo, hi;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return lo | (uint64_t)hi << 32;
}

static void find_components(void)
{
	const int known[] = {2, 5, 6, 7, 9, 17, 18}; /* AVX, AVX-512's three, PKRU, AMX's two */
	const uint64_t xcr0 = xgetbv0();

	xmask = xcr0 & 3;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		uint32_t a, b, c, d;

		if (!(xcr0 & 1ull << known[i]))
			continue;
		if (known[i] >= 17 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, amx_tiledata))
			continue;
		__cpuid_count(13, known[i], a, b, c, d);
		wl_check(b + a <= XSAVE_BYTES, "xsave area of %u bytes is larger than expected",
			 b + a);
		comps[n_comps++] = (struct component){.bit = known[i], .offset = b, .size = a};
		xmask |= 1ull << known[i];
	}
	dprintf(2, "xsave components: 0x%lx of 0x%lx\n", xmask, xcr0);
}

static void fill_tilecfg(uint8_t *p)
{
	memset(p, 0, 64);
	p[0] = 1; /* palette 1: eight tiles of 16 rows of 64 bytes */
	for (int t = 0; t < 8; t++) {
		p[16 + 2 * t] = 64;
		p[48 + t] = 16;
	}
}

static void fill_xsave(uint8_t *x, uint64_t seed)
{
	const uint32_t mxcsr = 0x1f80 | (seed & 3) << 13; /* all masked, a rounding mode */
	const uint16_t fcw = 0x037f | (seed & 3) << 10;
	uint64_t rnd = seed;

	memset(x, 0, XSAVE_BYTES);
	for (int i = 32; i < 416; i++) /* st0-7, xmm0-15 */
		x[i] = wl_rand(&rnd);
	for (int r = 0; r < 8; r++) /* 10 bytes each, the rest is reserved */
		memset(x + 32 + 16 * r + 10, 0, 6);
	memcpy(x, &fcw, 2);
	x[4] = 0xff; /* all x87 registers in use */
	memcpy(x + 24, &mxcsr, 4);
	memcpy(x + 512, &xmask, 8); /* XSTATE_BV: nothing in its initial state */
	for (int c = 0; c < n_comps; c++) {
		uint8_t *p = x + comps[c].offset;

		for (uint32_t i = 0; i < comps[c].size; i++)
			p[i] = wl_rand(&rnd) | 1;
		if (comps[c].bit == 9) /* key 0 stays usable */
			memcpy(p, &(uint64_t){(seed & 1) ? 0xaaaaaaa8 : 0x55555550}, 8);
		if (comps[c].bit == 17)
			fill_tilecfg(p);
	}
}

static void check_bytes(const char *what, const uint8_t *want, const uint8_t *got, size_t from,
			size_t n)
{
	for (size_t i = from; i < from + n; i++)
		wl_check(want[i] == got[i],
			 "%s: byte %zu of the xsave area: expected 0x%02x, got 0x%02x", what, i,
			 want[i], got[i]);
}

static void check_xsave(const uint8_t *want, const uint8_t *got)
{
	check_bytes("x87 control and tags", want, got, 0, 6);
	check_bytes("MXCSR", want, got, 24, 4);
	check_bytes("x87 registers", want, got, 32, 128);
	check_bytes("xmm0-15", want, got, 160, 256);
	for (int c = 0; c < n_comps; c++) {
		char what[40];

		snprintf(what, sizeof(what), "xsave component %d", comps[c].bit);
		check_bytes(what, want, got, comps[c].offset,
			    comps[c].bit == 9 ? 4 : comps[c].size);
	}
}

/* ---- one pass ---- */

static void hold_once(struct regs_job *job, uint64_t seed, bool syscalls, uint64_t spins)
{
	static const char *const names[GPRS] = {"rax", "rbx", "rdx", "rsi", "rdi", "rbp", "r8",
						"r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	/* CF PF AF ZF SF DF OF, and the bits that are always set (1, IF). Not ID: neither ptrace
	 * nor sigreturn can set it (arch/x86/kernel/ptrace.c, FLAG_MASK), and it means nothing. */
	const uint64_t settable = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x400 | 0x800;
	uint64_t rnd = seed;

	for (int i = 0; i < GPRS; i++)
		job->in.gpr[i] = wl_rand(&rnd);
	job->in.flags = (wl_rand(&rnd) & settable) | 0x202;
	job->spins = spins;
	job->mask = xmask;
	fill_xsave(job->xin, seed);
	memset(job->xout, 0, XSAVE_BYTES);
	(syscalls ? regs_hold_syscalls : regs_hold)(job);
	for (int i = 0; i < GPRS; i++) {
		if (syscalls && (i == 0 || i == 9)) /* rax and r11 belong to the kernel */
			continue;
		wl_check(job->in.gpr[i] == job->out.gpr[i], "%s: expected 0x%lx, got 0x%lx",
			 names[i], job->in.gpr[i], job->out.gpr[i]);
	}
	/* the syscall loop has no instruction that changes flags either; SYSCALL restores them from
	 * r11 */
	wl_check(job->in.flags == (job->out.flags & (settable | 0x202)),
		 "flags: expected 0x%lx, got 0x%lx", job->in.flags, job->out.flags);
	check_xsave(job->xin, job->xout);
}

static uint64_t calibrate(struct regs_job *job, bool syscalls)
{
	uint64_t t = wl_ns(CLOCK_MONOTONIC);

	hold_once(job, 1, syscalls, 5000);
	t = wl_ns(CLOCK_MONOTONIC) - t;
	return 5000ull * 20000000 / (t ? t : 1); /* 20 ms */
}

/* ---- segment bases and rseq ---- */

static __thread uint64_t tls_pattern = 0x7151a77e4ull;
static uint64_t gs_word[4] = {0x6755, 0xba5e, 0x1, 0x2};
static uint64_t fs_base;

static void check_bases(void)
{
	uint64_t fs, gs, word;

	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs);
	syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
	wl_same("FS base", fs_base, fs);
	wl_same("GS base", (uintptr_t)gs_word, gs);
	__asm__ volatile("mov %%gs:8, %0" : "=r"(word));
	wl_same("word at gs:8", 0xba5e, word);
	wl_same("thread-local variable", 0x7151a77e4ull, tls_pattern);
}

static struct rseq *my_rseq(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* Registered here and now: the kernel says so itself, and keeps cpu_id up to date. */
static void check_rseq(void)
{
	const long n = sysconf(_SC_NPROCESSORS_CONF);
	cpu_set_t old, one;
	long r;

	if (!__rseq_size)
		return;
	r = syscall(SYS_rseq, my_rseq(), 32, 0, RSEQ_SIG);
	wl_check(r < 0 && errno == EBUSY, "rseq registration: expected to be there (EBUSY), got %s",
		 r ? strerror(errno) : "none (could register again)");
	sched_getaffinity(0, sizeof(old), &old);
	for (int c = 0; c < n && c < CPU_SETSIZE; c++) {
		if (!CPU_ISSET(c, &old))
			continue;
		CPU_ZERO(&one);
		CPU_SET(c, &one);
		wl_must(!sched_setaffinity(0, sizeof(one), &one), "sched_setaffinity");
		wl_same("rseq cpu_id", c, ((volatile struct rseq *)my_rseq())->cpu_id);
	}
	sched_setaffinity(0, sizeof(old), &old);
}

/* ---- restartable sequences ---- */

struct rseq_run {
	uint64_t spins, max_gap;
	uint64_t aborted;
};

/* Spins inside a restartable sequence, noting the largest gap between two TSC readings in it. */
static bool rseq_hold(struct rseq_run *run)
{
	struct rseq *rs = my_rseq();
	uint64_t last, gap = 0, n = run->spins;
	bool aborted = false;

	__asm__ volatile(".pushsection __rseq_cs, \"aw\"\n"
			 "	.balign 32\n"
			 "9:	.long 0, 0\n"
			 "	.quad 1f, 3f - 1f, 4f\n"
			 ".popsection\n"
			 "	lea 9b(%%rip), %%rax\n"
			 "	rdtsc; shl $32, %%rdx; or %%rdx, %%rax; mov %%rax, %[last]\n"
			 "	lea 9b(%%rip), %%rax\n"
			 "	mov %%rax, %[cs]\n"
			 "1:	rdtsc; shl $32, %%rdx; or %%rdx, %%rax\n"
			 "	mov %%rax, %%rdx; sub %[last], %%rdx; mov %%rax, %[last]\n"
			 "	cmp %[gap], %%rdx; cmova %%rdx, %[gap]\n"
			 "	dec %[n]; jnz 1b\n"
			 "3:	jmp 5f\n"
			 "	.long 0x53053053\n" /* RSEQ_SIG before the abort address */
			 "4:	movb $1, %[aborted]\n"
			 "5:\n"
			 : [last] "=&r"(last), [gap] "+r"(gap), [n] "+r"(n), [cs] "=m"(rs->rseq_cs),
			   [aborted] "+m"(aborted)
			 :
			 : "rax", "rdx", "cc", "memory");
	run->max_gap = gap;
	run->aborted += aborted;
	return !aborted;
}

static void rseq_loop(void)
{
	struct rseq_run run = {.spins = 20000};
	struct utsname before, after;
	uint64_t done = 0;

	wl_check(__rseq_size, "glibc did not register rseq here");
	while (!wl_stop()) {
		uname(&before);
		const bool whole = rseq_hold(&run);
		uname(&after);
		/* A gap inside the sequence while the host changed: it was moved and went on. */
		wl_check(!whole || !strcmp(before.nodename, after.nodename) || run.max_gap < 250000,
			 "a restartable sequence was moved (%lu TSC ticks) and not aborted",
			 run.max_gap);
		done += whole;
		wl_tick();
	}
	dprintf(2, "rseq: %lu whole, %lu aborted\n", done, run.aborted);
	check_rseq();
	wl_check(done > 0, "no restartable sequence ever ended");
}

int main(int argc, char **argv)
{
	static uint8_t xin[XSAVE_BYTES] __attribute__((aligned(64)));
	static uint8_t xout[XSAVE_BYTES] __attribute__((aligned(64)));
	struct regs_job job = {.xin = xin, .xout = xout};
	uint64_t spins, syscalls, seed = 1;

	wl_init(argc, argv);
	find_components();
	syscall(SYS_arch_prctl, ARCH_GET_FS, &fs_base);
	wl_must(!syscall(SYS_arch_prctl, ARCH_SET_GS, gs_word), "ARCH_SET_GS");
	spins = calibrate(&job, false);
	syscalls = calibrate(&job, true);
	check_bases();
	check_rseq();
	wl_ready();
	if (wl_flag("rseq")) {
		rseq_loop();
		check_bases();
		wl_done();
	}
	while (!wl_stop()) {
		const bool sys = wl_flag("syscalls") || seed % 3 == 0;

		hold_once(&job, seed++, sys, sys ? syscalls : spins);
		check_bases();
		if (wl_tick() || seed % 16 == 0)
			check_rseq();
	}
	check_rseq();
	wl_done();
}
