/* Attributes: taken from one child, put into another, and compared. */
#include "tests/unit/attrs_kid.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include "base/clock.h"
#include "resource/attrs_internal.h"

enum { ORDINARY_UID = 1000, N_THREADS = 3 };
#define SEC_NS 1000000000ull

static struct kid src, dst;
/* at the same addresses in both children */
static uint8_t altstacks[N_THREADS][64 * 1024];
static int clear_tids[N_THREADS];
static struct {
	void *head[3];
} robust[N_THREADS];
static struct rseq rseq_areas[N_THREADS] __attribute__((aligned(32)));

/* ---- the child to capture from ---- */

static void handler(int signo, siginfo_t *si, void *ctx)
{
	(void)signo, (void)si, (void)ctx;
}

static void set_signals(void)
{
	struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};

	sa.sa_sigaction = handler;
	sigaddset(&sa.sa_mask, SIGUSR2);
	must(sigaction(SIGUSR1, &sa, NULL));
	must(sigaction(SIGRTMIN + 3, &sa, NULL));
	must(sigaction(SIGTRAP, &sa, NULL));
	signal(SIGPIPE, SIG_IGN);
	sa = (struct sigaction){.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT | SA_NOCLDSTOP};
	must(sigaction(SIGCHLD, &sa, NULL));
}

static void lower(int res, rlim_t cur, rlim_t max)
{
	struct rlimit have;

	must(getrlimit(res, &have));
	have.rlim_max = max < have.rlim_max ? max : have.rlim_max;
	have.rlim_cur = cur < have.rlim_max ? cur : have.rlim_max;
	must(setrlimit(res, &have));
}

static void set_process(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);

	kid_reset_signals();
	set_signals();
	must(write(fd, "300", 3));
	close(fd);
	fd = open("/proc/self/coredump_filter", O_WRONLY);
	must(write(fd, "0x0", 3));
	close(fd);
	lower(RLIMIT_CORE, 0, 1 << 20);
	lower(RLIMIT_NOFILE, 64, 700); /* tight */
	lower(RLIMIT_STACK, 4 << 20, RLIM_INFINITY);
	lower(RLIMIT_AS, 1ull << 45, 1ull << 46); /* tight */
	must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	must(personality(ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC));
}

static void set_thread(int i)
{
	char name[16];
	stack_t st = {.ss_sp = altstacks[i], .ss_size = sizeof(altstacks[i]) - 4096 * (size_t)i};

	snprintf(name, sizeof(name), "kid \\%d", i);
	must(prctl(PR_SET_NAME, name));
	must(syscall(SYS_sigaltstack, &st, NULL));
	must(syscall(SYS_set_tid_address, &clear_tids[i]));
	must(syscall(SYS_set_robust_list, &robust[i], sizeof(robust[i])));
	must(prctl(PR_SET_TIMERSLACK, 100000 + i));
	must(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (i + 1)));
	must(prctl(PR_SET_PDEATHSIG, SIGUSR1 + i));
}

static void add_timer(int clock, int notify, int signo, pid_t tid, uint64_t value_ns,
		      uint64_t interval_ns)
{
	struct sigevent ev = {.sigev_notify = notify, .sigev_signo = signo};
	struct itimerspec its = {
	    .it_value = {(time_t)(value_ns / SEC_NS), (long)(value_ns % SEC_NS)},
	    .it_interval = {(time_t)(interval_ns / SEC_NS), (long)(interval_ns % SEC_NS)}};
	int id;

	ev.sigev_value.sival_ptr = &src;
	ev._sigev_un._tid = tid;
	must(syscall(SYS_timer_create, clock, &ev, &id));
	must(syscall(SYS_timer_settime, id, 0, &its, NULL));
}

static void set_timers(const pid_t *tids)
{
	struct itimerval real = {{5, 7}, {1000, 0}}, prof = {{0, 0}, {700, 0}};

	must(setitimer(ITIMER_REAL, &real, NULL));
	must(setitimer(ITIMER_PROF, &prof, NULL));
	add_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 0, 100 * SEC_NS, 3 * SEC_NS + 1);
	add_timer(CLOCK_REALTIME, SIGEV_NONE, 0, 0, 0, 0);
	add_timer(CLOCK_REALTIME, SIGEV_NONE, 0, 0, 300 * SEC_NS, 0);
	must(syscall(SYS_timer_delete, 1)); /* a gap in the ids */
	add_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL | SIGEV_THREAD_ID, SIGUSR2, tids[1], 200 * SEC_NS,
		  0);
	add_timer(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGPROF, 0, 400 * SEC_NS, SEC_NS);
	add_timer(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGALRM, 0, 500 * SEC_NS, 0);
}

static void set_pending(const pid_t *tids)
{
	for (int i = 0; i < 20; i++)
		must(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 40 + i}));
	must(kill(getpid(), SIGUSR1));
	must(kill(getpid(), SIGPIPE)); /* ignored, but blocked: stays */
	must(syscall(SYS_tgkill, getpid(), tids[0], SIGUSR2));
	must(syscall(SYS_tgkill, getpid(), tids[1], SIGRTMIN + 9));
	must(syscall(SYS_tgkill, getpid(), tids[1], SIGHUP));
}

/* A timer that has gone off into a blocked signal: SI_TIMER is pending. */
static void set_pending_timer(void)
{
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 11};
	struct itimerspec its = {.it_value = {0, 1}};
	sigset_t set;
	int id;

	must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id));
	must(syscall(SYS_timer_settime, id, 0, &its, NULL));
	do
		must(sigpending(&set));
	while (!sigismember(&set, SIGRTMIN + 11));
}

static void set_last(const pid_t *tids, size_t n)
{
	(void)n;
	set_timers(tids);
	set_pending(tids);
	set_pending_timer();
	must(prctl(PR_SET_DUMPABLE, 0));
}

static void bind_to(pid_t tid, unsigned long cpus)
{
	must(syscall(SYS_sched_setaffinity, tid, sizeof(cpus), &cpus));
}

static void capset_self(uint64_t inh, uint64_t prm, uint64_t eff)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {
	    {(uint32_t)eff, (uint32_t)prm, (uint32_t)inh},
	    {(uint32_t)(eff >> 32), (uint32_t)(prm >> 32), (uint32_t)(inh >> 32)}};

	must(syscall(SYS_capset, &h, d));
}

/* Root with scheduling of all kinds, few capabilities, and an ambient one. */
static void root_process(void)
{
	const uint64_t keep =
	    1ull << CAP_SYS_NICE | 1ull << CAP_NET_ADMIN | 1ull << CAP_SETPCAP | 1ull << CAP_KILL;

	set_process();
	must(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
	capset_self(1ull << CAP_NET_ADMIN, keep, keep);
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0));
	must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |
					  SECBIT_NOROOT | SECBIT_NO_CAP_AMBIENT_RAISE));
	capset_self(1ull << CAP_NET_ADMIN, keep, keep & ~(1ull << CAP_KILL));
}

static void root_thread(int i)
{
	struct sched_param prio = {.sched_priority = 7};

	set_thread(i);
	if (i == 0) {
		must(setpriority(PRIO_PROCESS, 0, -3));
		must(sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &prio));
	} else if (i == 1) {
		must(setpriority(PRIO_PROCESS, 0, 6));
		must(sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}));
		bind_to(0, 1);
	} else {
		must(setpriority(PRIO_PROCESS, 0, 9));
		must(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}));
	}
}

static void ordinary_process(void)
{
	gid_t groups[] = {1000, 27, 4};

	set_process();
	if (geteuid())
		return;
	must(setgroups(3, groups));
	must(setresgid(1000, 1001, 1000));
	must(setresuid(ORDINARY_UID, ORDINARY_UID, 1002));
}

static void ordinary_thread(int i)
{
	set_thread(i);
	/* upward from whatever the tests run at: it has no privilege */
	must(setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 3 + i));
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static const struct kid_spec root_spec = {root_process, root_thread, set_last, N_THREADS};
static const struct kid_spec ordinary_spec = {ordinary_process, ordinary_thread, set_last,
					      N_THREADS};

static const struct kid_spec shell_spec = {kid_reset_signals, kid_be_shell_thread, NULL, N_THREADS};

/* ---- comparing ---- */

#define same(member) assert_int_equal(a->member, b->member)

static void assert_same_pending(const struct siginfo_rec *a, size_t na, const struct siginfo_rec *b,
				size_t nb)
{
	assert_int_equal(na, nb);
	if (na)
		assert_memory_equal(a, b, na * sizeof(*a));
}

static void assert_same_thread(const struct thread *a, const struct thread *b)
{
	assert_string_equal(a->comm, b->comm);
	same(sigmask);
	same(altstack_sp);
	same(altstack_size);
	same(altstack_flags);
	same(clear_tid_va);
	same(robust_list_va);
	same(robust_list_len);
	same(sched_policy);
	same(sched_prio);
	same(nice);
	same(sched_runtime);
	same(sched_flags);
	same(affinity_len);
	if (a->affinity_len)
		assert_memory_equal(a->affinity, b->affinity, a->affinity_len);
	same(pdeathsig);
	same(timer_slack_ns);
	same(io_prio);
	same(no_new_privs);
	assert_false(attrs_thread_differs(a, b));
	assert_same_pending(a->pending, a->n_pending, b->pending, b->n_pending);
}

static void assert_same_creds(const struct creds *a, const struct creds *b)
{
	same(uid), same(euid), same(suid), same(fsuid);
	same(gid), same(egid), same(sgid), same(fsgid);
	same(n_groups);
	if (a->n_groups)
		assert_memory_equal(a->groups, b->groups, a->n_groups * sizeof(*a->groups));
	same(cap_inh), same(cap_prm), same(cap_eff), same(cap_bnd), same(cap_amb);
	same(securebits);
}

/* When it goes off: never earlier (but for early_ns), at most a second later. */
static void assert_same_deadline(uint64_t base_a, uint64_t left_a, uint64_t base_b, uint64_t left_b,
				 uint64_t early_ns)
{
	assert_int_equal(!left_a, !left_b);
	if (!left_a)
		return;
	assert_true(base_b + left_b + early_ns >= base_a + left_a);
	assert_true(base_b + left_b < base_a + left_a + SEC_NS);
}

/* CPU time passed in between; getitimer rounds down. */
enum { CPU_SLACK_NS = 100 * 1000 * 1000, ITIMER_SLACK_NS = 1000 };

static void assert_same_timers(const struct tree *ta, const struct tree *tb)
{
	const struct process *a = &ta->procs[0], *b = &tb->procs[0];
	uint64_t ca = ta->clock_monotonic_ns, cb = tb->clock_monotonic_ns;

	for (int i = 0; i < 3; i++) {
		same(itimers[i].interval_us);
		assert_same_deadline(i ? 0 : ca, a->itimers[i].value_us * 1000, i ? 0 : cb,
				     b->itimers[i].value_us * 1000,
				     i ? CPU_SLACK_NS : ITIMER_SLACK_NS);
	}
	same(n_timers);
	for (size_t i = 0; i < a->n_timers; i++) {
		const struct posix_timer_rec *x = &a->timers[i], *y = &b->timers[i];
		bool cpu = attrs_timer_counts_cpu(x);

		assert_true(attrs_timer_same(x, y));
		assert_int_equal(x->interval_ns, y->interval_ns);
		assert_same_deadline(cpu ? 0 : ca, x->value_ns, cpu ? 0 : cb, y->value_ns,
				     cpu ? CPU_SLACK_NS : 0);
	}
}

static void assert_same_process(const struct tree *ta, const struct tree *tb)
{
	const struct process *a = &ta->procs[0], *b = &tb->procs[0];

	for (int i = 0; i < TREE_NSIG; i++) {
		same(sigactions[i].handler);
		same(sigactions[i].flags);
		same(sigactions[i].restorer);
		same(sigactions[i].mask);
	}
	for (int i = 0; i < 16; i++) {
		same(rlimits[i].cur);
		same(rlimits[i].max);
	}
	same(mm.dumpable);
	same(mm.thp_disable);
	same(oom_score_adj);
	same(coredump_bits);
	same(child_subreaper);
	same(personality);
	assert_same_creds(&a->creds, &b->creds);
	assert_same_timers(ta, tb);
	assert_false(attrs_process_differs(a, b));
	same(n_threads);
	for (size_t i = 0; i < a->n_threads; i++)
		assert_same_thread(&a->threads[i], &b->threads[i]);
	assert_same_pending(a->pending, a->n_pending, b->pending, b->n_pending);
}

/* ---- tests ---- */

static void check_here(const struct tree *t)
{
	struct refusals refused = {0};

	attrs_check(t, &refused);
	print_refusals(&refused);
	assert_int_equal(refused.list.n, 0);
	refusals_done(&refused);
}

static void add_rseq(struct tree *t)
{
	for (size_t i = 0; i < N_THREADS; i++) {
		struct thread *th = &t->procs[0].threads[i];

		th->rseq_va = (uint64_t)&rseq_areas[i];
		th->rseq_len = 32;
		th->rseq_sig = 0x1234;
	}
}

static void assert_rseq(struct kid *k, const struct tree *t)
{
	struct cr_err err = {0};

	kid_freeze(k);
	for (size_t i = 0; i < k->n; i++) {
		uint32_t len = 0, sig = 0, flags = 0;
		uint64_t va = 0;

		assert_ok(task_get_rseq(k->tids[i], &va, &len, &sig, &flags, &err), &err);
		assert_int_equal(va, t->procs[0].threads[i].rseq_va);
		assert_int_equal(len, 32);
		assert_int_equal(sig, 0x1234);
	}
	kid_thaw(k);
}

static void round_trip(const struct kid_spec *spec)
{
	kid_start(&src, spec);
	kid_start(&dst, &shell_spec);
	struct tree *image = kid_capture(&src);
	struct process *p = &image->procs[0];

	assert_int_equal(p->n_timers, 6);
	assert_int_equal(p->n_pending, 23);
	assert_int_equal(p->threads[1].n_pending, 2);
	assert_true(attrs_sigtrap_fragile(p));
	rename_tasks(image, &dst);
	add_rseq(image);
	check_here(image);
	assert_true(attrs_needs_late(p, &p->threads[0]));
	assert_true(attrs_needs_launch(p, &p->threads[0], true));
	assert_true(attrs_needs_launch(p, &p->threads[1], false));
	assert_false(attrs_needs_launch(p, &p->threads[2], false));
	rebuild_ahead(&dst, NULL, p);
	rebuild_last(&dst, image);
	struct tree *copy = kid_capture(&dst);
	assert_rseq(&dst, image);
	for (size_t i = 0; i < N_THREADS; i++) { /* the engine's */
		p->threads[i].rseq_va = 0;
		p->threads[i].rseq_len = p->threads[i].rseq_sig = 0;
	}
	assert_same_process(image, copy);
	tree_free(image);
	tree_free(copy);
	kid_stop(&src);
	kid_stop(&dst);
}

static void test_round_trip_root(void **state)
{
	(void)state;
	if (geteuid())
		skip();
	round_trip(&root_spec);
}

static void test_round_trip_ordinary(void **state)
{
	(void)state;
	if (geteuid())
		skip();
	round_trip(&ordinary_spec);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    kid_test(test_round_trip_root),
	    kid_test(test_round_trip_ordinary),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
