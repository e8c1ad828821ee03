/* What the capture and the preflight refuse, by name. */
#include "tests/unit/attrs_kid.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/resource.h>
#include <time.h>

static struct kid kid;

#define need_root()                                                                                \
	do {                                                                                       \
		if (geteuid())                                                                     \
			skip();                                                                    \
	} while (0)

static void expect_capture(const struct kid_spec *spec, bool exact, const char *what)
{
	struct refusals refused = {0};

	kid_start(&kid, spec);
	struct tree *t = kid_capture_outside(&kid, exact, &refused);

	if (what && !has_refusal(&refused, what)) {
		print_refusals(&refused);
		fail_msg("\"%s\" was not refused", what);
	}
	if (!what && refused.list.n) {
		print_refusals(&refused);
		fail_msg("refused without need");
	}
	refusals_done(&refused);
	tree_free(t);
	kid_stop(&kid);
}

static void test_plain_is_not_refused(void **state)
{
	const struct kid_spec spec = {.n = 3};

	(void)state;
	expect_capture(&spec, false, NULL);
	expect_capture(&spec, true, NULL);
}

/* A filter that may ask somebody outside. */
static void take_filter(int i)
{
	struct sock_filter notify[] = {
	    {BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
	    {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 100000},
	    {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF},
	    {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
	};
	struct sock_fprog prog = {4, notify};

	if (i != 1)
		return;
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
}

static void test_seccomp_that_notifies(void **state)
{
	const struct kid_spec spec = {.thread = take_filter, .n = 2};

	(void)state;
	/* only a stopped thread can be asked, and that takes CAP_SYS_ADMIN */
	expect_capture(&spec, false, geteuid() ? "seccomp" : NULL);
	if (!geteuid())
		expect_capture(&spec, true, "seccomp filter of thread");
}

static struct sock_filter allow_and_log[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_LOG}};
static struct sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};

static void take_two_filters(void)
{
	struct sock_fprog prog = {1, allow_and_log}, second = {1, allow};

	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &prog));
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &second));
}

static void take_a_third(int i)
{
	struct sock_fprog prog = {1, allow_and_log};

	if (i == 1)
		must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog));
}

/* The oldest first, each once, with its flags. */
static void test_seccomp_filters(void **state)
{
	const struct kid_spec spec = {.process = take_two_filters, .thread = take_a_third, .n = 2};
	struct refusals refused = {0};

	(void)state;
	need_root();
	kid_start(&kid, &spec);
	struct tree *t = kid_capture_outside(&kid, true, &refused);
	const struct thread *a = &t->procs[0].threads[0], *b = &t->procs[0].threads[1];

	assert_int_equal(refused.list.n, 0);
	assert_int_equal(t->n_seccomp, 3); /* one with the flag, one without */
	assert_int_equal(a->n_seccomp_filters, 2);
	assert_int_equal(b->n_seccomp_filters, 3);
	assert_memory_equal(a->seccomp_filters, b->seccomp_filters, 2 * sizeof(uint32_t));
	assert_memory_equal(t->seccomp[a->seccomp_filters[0]].insns, allow_and_log, 8);
	assert_int_equal(t->seccomp[a->seccomp_filters[0]].flags, SECCOMP_FILTER_FLAG_LOG);
	assert_memory_equal(t->seccomp[a->seccomp_filters[1]].insns, allow, 8);
	assert_int_equal(t->seccomp[b->seccomp_filters[2]].flags, 0);
	refusals_done(&refused);
	tree_free(t);
	kid_stop(&kid);
}

/* All addresses may make system calls: on, and without effect. */
static void take_dispatch(int i)
{
	if (i == 1)
		must(prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH, 5.11 */, 1, 0x1000, 0x7ffffffee000,
			   0));
}

static void test_syscall_user_dispatch(void **state)
{
	const struct kid_spec spec = {.thread = take_dispatch, .n = 2};

	(void)state;
	expect_capture(&spec, true, "syscall user dispatch of thread");
}

static void take_deadline(int i)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t prio;
		uint64_t runtime, deadline, period;
	} a = {48, 6, 0, 0, 0, 1000000, 100000000, 100000000};

	(void)i;
	must(syscall(SYS_sched_setattr, 0, &a, 0));
}

static void test_deadline(void **state)
{
	const struct kid_spec spec = {.thread = take_deadline};

	(void)state;
	need_root();
	expect_capture(&spec, true, "SCHED_DEADLINE");
}

static void drop_a_cap(int i)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2];

	if (i != 1)
		return;
	must(syscall(SYS_capget, &h, d));
	d[0].effective &= ~(1u << CAP_KILL);
	must(syscall(SYS_capset, &h, d));
}

static void change_gid(int i)
{
	if (i == 1)
		must(syscall(SYS_setresgid, 5, 5, 5));
}

static void test_threads_with_other_credentials(void **state)
{
	const struct kid_spec cap = {.thread = drop_a_cap, .n = 2};
	const struct kid_spec gid = {.thread = change_gid, .n = 2};

	(void)state;
	need_root();
	expect_capture(&cap, false, "credentials of thread");
	expect_capture(&cap, true, "credentials of thread");
	expect_capture(&gid, false, "credentials of thread");
}

static void thread_clock_timer(const pid_t *tids, size_t n)
{
	struct sigevent ev = {.sigev_notify = SIGEV_NONE};
	int id;

	(void)tids, (void)n;
	must(syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &ev, &id));
}

static void parent_clock_timer(const pid_t *tids, size_t n)
{
	struct sigevent ev = {.sigev_notify = SIGEV_NONE};
	int id, clock = (int)(~(unsigned int)getppid() << 3 | 2); /* CPUCLOCK_SCHED */

	(void)tids, (void)n;
	must(syscall(SYS_timer_create, clock, &ev, &id));
}

static void test_cpu_clock_timers(void **state)
{
	const struct kid_spec one = {.last = thread_clock_timer, .n = 1};
	const struct kid_spec two = {.last = thread_clock_timer, .n = 2};
	const struct kid_spec foreign = {.last = parent_clock_timer};

	(void)state;
	expect_capture(&one, true, NULL);
	expect_capture(&two, true, "POSIX timer 0");
	expect_capture(&foreign, true, "POSIX timer 0");
}

static void test_stopped(void **state)
{
	const struct kid_spec spec = {.n = 1};
	struct refusals refused = {0};

	(void)state;
	kid_start(&kid, &spec);
	kill(kid.pid, SIGSTOP);
	assert_int_equal(waitpid(kid.pid, NULL, WUNTRACED), kid.pid);
	struct tree *t = kid_capture_outside(&kid, false, &refused);
	assert_false(has_refusal(&refused, "stopped by a signal"));
	refusals_done(&refused);
	tree_free(t);
	kid_stop(&kid);
}

static void test_traced_by_another(void **state)
{
	const struct kid_spec spec = {.n = 1};
	struct refusals refused = {0};
	int ready[2];
	char c;

	(void)state;
	need_root(); /* a sibling may not trace where Yama restricts it */
	kid_start(&kid, &spec);
	assert_int_equal(pipe(ready), 0);
	pid_t tracer = fork();
	if (tracer == 0) {
		must(ptrace(PTRACE_SEIZE, kid.pid, 0, 0));
		must(write(ready[1], "+", 1));
		pause();
		_exit(0);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	struct tree *t = kid_capture_outside(&kid, false, &refused);
	assert_true(has_refusal(&refused, "ptrace"));
	refusals_done(&refused);
	tree_free(t);
	kill(tracer, SIGKILL);
	waitpid(tracer, NULL, 0);
	close(ready[0]);
	close(ready[1]);
	kid_stop(&kid);
}

static void leave_user_ns(void)
{
	must(unshare(CLONE_NEWUSER));
}

static void test_user_namespace(void **state)
{
	const struct kid_spec spec = {.process = leave_user_ns};

	(void)state;
	need_root(); /* where users may not have them, this is not what is tested */
	expect_capture(&spec, false, "user namespace");
}

/* A thread that ends while it is looked at. */
static void test_gone(void **state)
{
	const struct kid_spec spec = {.n = 2};
	struct refusals refused = {0};
	struct cr_err err = {0};

	(void)state;
	kid_start(&kid, &spec);
	struct tree *t = kid_tree(&kid);
	struct capture_proc cp = {.p = &t->procs[0], .pidfd = -1};
	struct capture c = {.tree = t, .refused = &refused, .procs = &cp};
	rcall_now(&kid.rt[1], SYS_exit, 0);
	assert_ok(attrs_capture(&c, &err), &err);
	kid_stop(&kid);
	assert_ok(attrs_capture(&c, &err), &err);
	c.exact = true;
	assert_int_equal(attrs_capture(&c, &err), -ESRCH);
	assert_int_equal(refused.list.n, 0);
	tree_free(t);
}

/* ---- the destination's preflight ---- */

static struct tree *plain_tree(void)
{
	const struct kid_spec spec = {.n = 1};

	kid_start(&kid, &spec);
	struct tree *t = kid_capture(&kid);
	kid_stop(&kid);
	return t;
}

static void preflight(const struct tree *t, const char *what)
{
	struct refusals refused = {0};

	attrs_check(t, &refused);
	if (what ? !has_refusal(&refused, what) : refused.list.n) {
		print_refusals(&refused);
		fail_msg("expected: %s", what ? what : "nothing");
	}
	refusals_done(&refused);
}

static bool can_raise_limits(void)
{
	struct rlimit lim;

	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_max++;
	if (setrlimit(RLIMIT_NOFILE, &lim))
		return false;
	lim.rlim_max--;
	return setrlimit(RLIMIT_NOFILE, &lim) == 0;
}

static void test_check_limits(void **state)
{
	struct tree *t = plain_tree();
	struct process *p = &t->procs[0];

	(void)state;
	preflight(t, NULL);
	p->rlimits[RLIMIT_NOFILE].max = 1ull << 40;
	preflight(t, "RLIMIT_NOFILE"); /* above nr_open, if nothing else */
	p->rlimits[RLIMIT_NOFILE].max = p->rlimits[RLIMIT_NOFILE].cur = 100;
	preflight(t, NULL);
	if (!can_raise_limits()) {
		p->rlimits[RLIMIT_NPROC].max = RLIM_INFINITY;
		preflight(t, "RLIMIT_NPROC");
		p->rlimits[RLIMIT_NPROC].max = 1;
		p->oom_score_adj = -1000;
		preflight(t, "oom_score_adj");
	}
	tree_free(t);
}

static void test_check_scheduling(void **state)
{
	uint8_t none[1024] = {[1023] = 0x80};
	struct tree *t = plain_tree();
	struct thread *th = &t->procs[0].threads[0];

	(void)state;
	th->affinity = none;
	th->affinity_len = sizeof(none);
	preflight(t, "cpu affinity");
	th->affinity_len = 0;
	th->sched_policy = 77;
	preflight(t, "scheduling policy");
	tree_free(t);
}

static void test_check_credentials(void **state)
{
	struct tree *t = plain_tree();
	struct creds *cr = &t->procs[0].creds;

	(void)state;
	need_root();
	cr->cap_prm = ~0ull;
	preflight(t, "permitted capabilities");
	cr->cap_prm = cr->cap_eff = 0;
	cr->uid = 12345;
	preflight(t, NULL);
	cr->n_groups = 60000;
	cr->groups = calloc(cr->n_groups, sizeof(*cr->groups));
	preflight(t, "supplementary groups");
	free(cr->groups);
	tree_free(t);
}

static void test_check_rest(void **state)
{
	struct posix_timer_rec tm = {.clockid = 99};
	struct tree *t = plain_tree();

	(void)state;
	t->procs[0].timers = &tm;
	t->procs[0].n_timers = 1;
	preflight(t, "POSIX timer 0");
	t->procs[0].n_timers = 0;
	t->xfeatures = 1ull << 61;
	preflight(t, "cpu");
	tree_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    kid_test(test_plain_is_not_refused),
	    kid_test(test_seccomp_that_notifies),
	    kid_test(test_seccomp_filters),
	    kid_test(test_syscall_user_dispatch),
	    kid_test(test_deadline),
	    kid_test(test_threads_with_other_credentials),
	    kid_test(test_cpu_clock_timers),
	    kid_test(test_stopped),
	    kid_test(test_traced_by_another),
	    kid_test(test_user_namespace),
	    kid_test(test_gone),
	    kid_test(test_check_limits),
	    kid_test(test_check_scheduling),
	    kid_test(test_check_credentials),
	    kid_test(test_check_rest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
