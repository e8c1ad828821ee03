/* The parasite's host survives whatever becomes of the agent: killed at any moment, the threads go
 * on with the registers, the flags and the signal mask that they had.
 *
 * PARASITE_KILLS=N: so many kills (default 48); PARASITE_US=N: at most so long after the start. */
#include "source/parasite.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <cmocka.h>
#include "base/clock.h"
#include "kernel/procfs.h"
#include "kernel/task.h"
#include "kernel/vdso.h"
#include "remote/detour.h"

enum { HOSTS = 12, SPINNERS = 2, THREADS = SPINNERS + 2, PATIENCE_US = 20000000 };

struct host {
	_Atomic uint64_t rounds[THREADS];
	_Atomic int broken; /* line number of what was found wrong */
	pid_t tids[THREADS];
	pid_t pid;
};

/* ---- what is infected ---- */

static struct host *mine;

static void broken(int line)
{
	if (!mine->broken)
		mine->broken = line;
}

/* All registers but rsp hold a pattern, the direction flag is set, and the area below the stack
 * pointer that belongs to the function is in use: a way back that needs a stack would be seen. */
bool spin(uint64_t pattern, uint64_t times);
__asm__(".text\n"
	"spin:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rsi, %rcx; mov %rdi, -8(%rsp); mov %rdi, -64(%rsp); mov %rdi, -128(%rsp)\n"
	"	mov %rdi, %rax; mov %rdi, %rbx; mov %rdi, %rdx; mov %rdi, %rsi; mov %rdi, %rbp\n"
	"	mov %rdi, %r8; mov %rdi, %r9; mov %rdi, %r10; mov %rdi, %r11; mov %rdi, %r12\n"
	"	mov %rdi, %r13; mov %rdi, %r14; mov %rdi, %r15; movq %rdi, %xmm7; std; stc\n"
	"1:	pause; loop 1b\n"
	"	mov $0, %ecx; jnc 2f; inc %ecx\n"
	"2:	xor %rdi, %rax; xor %rdi, %rbx; xor %rdi, %rdx; xor %rdi, %rsi; xor %rdi, %rbp\n"
	"	xor %rdi, %r8; xor %rdi, %r9; xor %rdi, %r10; xor %rdi, %r11; xor %rdi, %r12\n"
	"	xor %rdi, %r13; xor %rdi, %r14; xor %rdi, %r15\n"
	"	or %rbx, %rax; or %rdx, %rax; or %rsi, %rax; or %rbp, %rax; or %r8, %rax\n"
	"	or %r9, %rax; or %r10, %rax; or %r11, %rax; or %r12, %rax; or %r13, %rax\n"
	"	or %r14, %rax; or %r15, %rax\n"
	"	mov -8(%rsp), %rbx; xor %rdi, %rbx; or %rbx, %rax\n"
	"	mov -64(%rsp), %rbx; xor %rdi, %rbx; or %rbx, %rax\n"
	"	mov -128(%rsp), %rbx; xor %rdi, %rbx; or %rbx, %rax\n"
	"	movq %xmm7, %rbx; xor %rdi, %rbx; or %rbx, %rax\n"
	"	dec %rcx; or %rcx, %rax; cld; test %rax, %rax; setz %al; movzbl %al, %eax\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");

static void check_mask(int blocked)
{
	sigset_t set;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	for (int s = 1; s < 32; s++)
		if (sigismember(&set, s) != (s == blocked))
			broken(__LINE__);
}

static void block_only(int signo)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signo);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static void *spinner(void *arg)
{
	uintptr_t i = (uintptr_t)arg;

	block_only(SIGUSR1);
	mine->tids[i] = gettid();
	for (uint64_t n = 1;; n++) {
		if (!spin(0x5a00000000000000 + n, 20000))
			broken(__LINE__);
		check_mask(SIGUSR1);
		mine->rounds[i]++;
	}
	return NULL;
}

static void *sleeper(void *arg)
{
	uintptr_t i = (uintptr_t)arg;

	block_only(SIGUSR2);
	mine->tids[i] = gettid();
	for (;;) {
		const struct timespec ts = {.tv_nsec = 300000};
		uint64_t before = now_us();

		if (!nanosleep(&ts, NULL) && now_us() - before < 300)
			broken(__LINE__);
		check_mask(SIGUSR2);
		mine->rounds[i]++;
	}
	return NULL;
}

/* A system call that is to be restarted: the token that it carries arrives once. */
static void *reader(void *arg)
{
	uintptr_t i = (uintptr_t)arg;
	int fds[2];
	char c;

	block_only(SIGHUP);
	mine->tids[i] = gettid();
	if (pipe(fds))
		broken(__LINE__);
	for (unsigned int n = 0;; n++) {
		c = (char)n;
		if (write(fds[1], &c, 1) != 1 || read(fds[0], &c, 1) != 1 || c != (char)n)
			broken(__LINE__);
		check_mask(SIGHUP);
		mine->rounds[i]++;
	}
	return NULL;
}

/* first: which of them is the main thread, the one that runs injected calls. */
static _Noreturn void be_host(struct host *h, uintptr_t first)
{
	static void *(*const fns[THREADS])(void *) = {spinner, sleeper, reader, spinner};
	pthread_t unused;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	mine = h;
	for (uintptr_t i = 0; i < THREADS; i++)
		if (i != first && pthread_create(&unused, NULL, fns[i], (void *)i))
			_exit(9);
	fns[first]((void *)first);
	_exit(9);
}

/* ---- the agent ---- */

static int find_entry(pid_t pid, struct parasite_entry *e, struct cr_err *err)
{
	uint8_t digest[16];
	uint64_t end;
	int r = vdso_describe(pid, &e->string_va, &end, digest, err);

	if (!r)
		r = vdso_syscall_insn(pid, e->string_va, end, &e->insn_va, err);
	return r ? r : detour_find(pid, e->string_va, end, &e->detour_va, err);
}

/* The main thread comes first, as in a seizure. */
static void list_tids(const struct host *h, pid_t tids[THREADS])
{
	size_t n = 1;

	tids[0] = h->pid;
	for (size_t i = 0; i < THREADS; i++)
		if (h->tids[i] != h->pid)
			tids[n++] = h->tids[i];
}

static int stop_and_go(const struct host *h, const struct parasite_entry *e, int pidfd,
		       enum park_how how, struct cr_err *err)
{
	struct parasite p;
	pid_t tids[THREADS];
	int r = 0;

	list_tids(h, tids);
	for (size_t i = 0; i < THREADS && !r; i++)
		r = task_seize(tids[i], PTRACE_O_TRACESYSGOOD, err);
	for (size_t i = 0; i < THREADS && !r; i++)
		r = task_interrupt(tids[i], err);
	if (!r)
		r = parasite_infect(&p, h->pid, pidfd, tids, THREADS, e, err);
	for (size_t i = 0; i < THREADS && !r; i++)
		r = parasite_start(&p, &p.threads[i], err);
	if (!r && rcall_now(&p.threads[0].rt, SYS_getpid) != h->pid)
		r = cr_err_set(err, CR_ERR_BUG, EINVAL, "a wrong pid");
	if (!r)
		r = parasite_cure(&p, how, LEAVE_REGSETS, err);
	for (size_t i = 0; i < THREADS && !r; i++)
		if (ptrace(PTRACE_DETACH, tids[i], 0, 0))
			r = cr_err_sys(err, "detaching");
	return r;
}

enum { FOR_EVER = 0, ONCE = 1, ONCE_WITHOUT_MAP_FILES = 2 };

/* /proc/PID/map_files leads nowhere then, proc(5). */
static void lose_map_files(void)
{
	const cap_value_t caps[] = {CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE};
	cap_t c = cap_get_proc();

	if (cap_set_flag(c, CAP_EFFECTIVE, 2, caps, CAP_CLEAR) || cap_set_proc(c))
		_exit(6);
	cap_free(c);
}

/* Until it is killed. What goes wrong for a reason of its own is said by the exit status. */
static _Noreturn void be_agent(const struct host *h, int go, int times)
{
	struct parasite_entry e;
	struct cr_err err = {0};
	int pidfd = (int)syscall(SYS_pidfd_open, h->pid, 0);
	int r = find_entry(h->pid, &e, &err);

	if (times == ONCE_WITHOUT_MAP_FILES)
		lose_map_files();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (write(go, "+", 1) != 1)
		_exit(8);
	do
		r = r ? r : stop_and_go(h, &e, pidfd, PARK_SYSCALL_TRACE, &err);
	while (!r && times == FOR_EVER);
	if (r)
		fprintf(stderr, "%s\n", err.msg);
	_exit(r ? 7 : 0);
}

/* ---- */

static struct host *hosts;

static void start_host(struct host *h, uintptr_t first)
{
	memset(h, 0, sizeof(*h));
	h->pid = fork();
	if (!h->pid) {
		h->pid = getpid();
		be_host(h, first);
	}
	assert_true(h->pid > 0);
	uint64_t deadline = now_us() + PATIENCE_US;
	for (size_t i = 0; i < THREADS; i++)
		while (!h->rounds[i])
			assert_true(now_us() < deadline);
}

static void assert_goes_on(struct host *h)
{
	uint64_t deadline = now_us() + PATIENCE_US;
	uint64_t was[THREADS];
	int status;

	for (size_t i = 0; i < THREADS; i++)
		was[i] = h->rounds[i];
	for (size_t i = 0; i < THREADS; i++)
		while (h->rounds[i] < was[i] + 2) {
			if (waitpid(h->pid, &status, WNOHANG) == h->pid)
				fail_msg("the host died: status %#x", status);
			if (now_us() > deadline)
				fail_msg("thread %zu stands still", i);
			nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
		}
	if (h->broken)
		fail_msg("found wrong at line %d", h->broken);
}

static pid_t start_agent(const struct host *h, int times)
{
	int go[2];
	char c;

	assert_int_equal(pipe(go), 0);
	pid_t agent = fork();
	if (!agent)
		be_agent(h, go[1], times);
	close(go[1]);
	if (read(go[0], &c, 1) != 1)
		fail_msg("the agent did not start");
	close(go[0]);
	return agent;
}

static int setup(void **state)
{
	(void)state;
	hosts = mmap(NULL, HOSTS * sizeof(*hosts), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return hosts == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	for (size_t i = 0; i < HOSTS; i++)
		if (hosts[i].pid > 0) {
			kill(hosts[i].pid, SIGKILL);
			waitpid(hosts[i].pid, NULL, 0);
		}
	munmap(hosts, HOSTS * sizeof(*hosts));
	return 0;
}

static long option(const char *name, long otherwise)
{
	const char *s = getenv(name);

	return s ? atol(s) : otherwise;
}

static size_t count_executable(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	struct cr_err err = {0};
	size_t n = 0;

	assert_true(proc_read(pid, "maps", &text, &err) > 0);
	for (const char *at = text; (at = strstr(at, " rwxs ")); at++)
		n++;
	return n;
}

/* Nothing stays: no mapping, and the vdso is as it was. */
static void check_leaves_nothing(int times)
{
	struct parasite_entry e;
	struct cr_err err = {0};
	uint8_t before[16], after[16];
	uint64_t start, end;
	int status;

	for (uintptr_t first = 0; first < 3; first++) {
		struct host *h = &hosts[first];

		start_host(h, first);
		assert_int_equal(find_entry(h->pid, &e, &err), 0);
		if (!e.detour_va)
			print_message("no room in this kernel's vdso\n");
		assert_int_equal(vdso_describe(h->pid, &start, &end, before, &err), 0);
		pid_t agent = start_agent(h, times);
		assert_int_equal(waitpid(agent, &status, 0), agent);
		assert_int_equal(status, 0);
		assert_goes_on(h);
		assert_int_equal(vdso_describe(h->pid, &start, &end, after, &err), 0);
		assert_memory_equal(before, after, sizeof(before));
		assert_int_equal(count_executable(h->pid), 0);
	}
}

static void test_leaves_nothing(void **state)
{
	(void)state;
	check_leaves_nothing(ONCE);
}

static void test_without_map_files(void **state)
{
	(void)state;
	check_leaves_nothing(ONCE_WITHOUT_MAP_FILES);
}

static void test_killed_agent(void **state)
{
	long kills = option("PARASITE_KILLS", 4 * HOSTS), us = option("PARASITE_US", 1500);
	unsigned int seed = (unsigned int)option("PARASITE_SEED", getpid());
	struct parasite_entry e;
	struct cr_err err = {0};
	int status;

	(void)state;
	start_host(&hosts[0], 0);
	assert_int_equal(find_entry(hosts[0].pid, &e, &err), 0);
	if (!e.detour_va)
		skip();
	for (size_t i = 1; i < HOSTS; i++)
		start_host(&hosts[i], i % 3);
	for (long n = 0; n < kills; n += HOSTS) {
		/* those that were in the executor come back after a second: all at once */
		for (size_t i = 0; i < HOSTS; i++) {
			pid_t agent = start_agent(&hosts[i], FOR_EVER);
			uint64_t until = now_us() + (uint64_t)rand_r(&seed) % (uint64_t)us;

			while (now_us() < until)
				;
			kill(agent, SIGKILL);
			assert_int_equal(waitpid(agent, &status, 0), agent);
			assert_int_equal(status, SIGKILL);
		}
		for (size_t i = 0; i < HOSTS; i++)
			assert_goes_on(&hosts[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_leaves_nothing, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_without_map_files, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_killed_agent, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
