/* Timers that expire around the stop: the signal that they sent is there once, and they go on. */
#include "tests/unit/attrs_kid.h"

#include <sys/time.h>
#include <time.h>

static struct kid src, dst;

static const struct kid_spec plain_spec = {kid_reset_signals, NULL, NULL, 1};
static const struct kid_spec shell_spec = {kid_reset_signals, kid_be_shell_thread, NULL, 1};

static bool is_pending(int signo)
{
	sigset_t set;

	must(sigpending(&set));
	return sigismember(&set, signo);
}

/* Takes one signal inside the kid: 1 if it was there. */
static bool take(struct kid *k, int signo)
{
	struct timespec now = {0};
	uint64_t set = 1ull << (signo - 1), set_va, now_va;
	long r;

	rtask_scratch_reset(&k->rt[0]);
	assert_non_null(rtask_scratch_copy(&k->rt[0], &set, sizeof(set), &set_va));
	assert_non_null(rtask_scratch_copy(&k->rt[0], &now, sizeof(now), &now_va));
	r = rcall_now(&k->rt[0], SYS_rt_sigtimedwait, set_va, 0, now_va, 8);
	assert_true(r == signo || r == -EAGAIN);
	return r == signo;
}

static struct itimerval itimer_of(struct kid *k, int which)
{
	uint64_t va;
	struct itimerval *it;

	rtask_scratch_reset(&k->rt[0]);
	it = rtask_scratch(&k->rt[0], sizeof(*it), &va);
	assert_non_null(it);
	assert_int_equal(rcall_now(&k->rt[0], SYS_getitimer, which, va), 0);
	return *it;
}

static size_t count(const struct siginfo_rec *list, size_t n, int signo)
{
	size_t found = 0;

	for (size_t i = 0; i < n; i++) {
		siginfo_t si;

		memcpy(&si, list[i].info, sizeof(si));
		found += si.si_signo == signo;
	}
	return found;
}

/* ---- expired, and the signal not taken yet ---- */

static void expired_itimer(const pid_t *tids, size_t n)
{
	struct itimerval it = {{1000, 7}, {0, 1}};

	(void)tids, (void)n;
	must(setitimer(ITIMER_REAL, &it, NULL));
	while (!is_pending(SIGALRM))
		;
	must(getitimer(ITIMER_REAL, &it));
	if (it.it_value.tv_sec || it.it_value.tv_usec)
		_exit(98); /* the kernel arms it when the signal is taken: else this is no test */
}

static void test_expired_itimer(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, expired_itimer, 1};
	struct itimerval it;

	(void)state;
	kid_start(&src, &spec);
	struct tree *t = kid_capture(&src);
	kid_start(&dst, &shell_spec);
	rename_tasks(t, &dst);
	rebuild_ahead(&dst, NULL, &t->procs[0]);
	rebuild_last(&dst, t);
	do
		it = itimer_of(&dst, ITIMER_REAL);
	while (it.it_value.tv_sec || it.it_value.tv_usec); /* until it has gone off there */
	assert_int_equal(it.it_interval.tv_sec, 1000);
	assert_int_equal(it.it_interval.tv_usec, 7);
	assert_true(take(&dst, SIGALRM));
	assert_false(take(&dst, SIGALRM));
	it = itimer_of(&dst, ITIMER_REAL);
	assert_in_range(it.it_value.tv_sec, 900, 1000);
	tree_free(t);
	kid_stop(&src);
	kid_stop(&dst);
}

/* The signal was thrown away: the kernel never arms such a timer again, and none is to come now. */
static void dead_itimer(const pid_t *tids, size_t n)
{
	expired_itimer(tids, n);
	signal(SIGALRM, SIG_IGN);
	signal(SIGALRM, SIG_DFL);
	if (is_pending(SIGALRM))
		_exit(98);
}

static void test_dead_itimer(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, dead_itimer, 1};

	(void)state;
	kid_start(&src, &spec);
	struct tree *t = kid_capture(&src);
	assert_int_equal(t->procs[0].itimers[ITIMER_REAL].value_us, 0);
	assert_int_equal(t->procs[0].n_pending, 0);
	tree_free(t);
	kid_stop(&src);
}

/* A CPU time itimer with an interval and no value is one that is not armed. */
static void disarmed_prof(const pid_t *tids, size_t n)
{
	struct itimerval it = {{5, 0}, {0, 0}};

	(void)tids, (void)n;
	must(setitimer(ITIMER_PROF, &it, NULL));
	must(setitimer(ITIMER_VIRTUAL, &it, NULL));
}

static void test_disarmed_prof(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, disarmed_prof, 1};

	(void)state;
	kid_start(&src, &spec);
	struct tree *t = kid_capture(&src);
	assert_int_equal(t->procs[0].itimers[ITIMER_PROF].value_us, 0);
	assert_int_equal(t->procs[0].itimers[ITIMER_VIRTUAL].value_us, 0);
	tree_free(t);
	kid_stop(&src);
}

/* ---- expired between the look at the signals and the look at the timers ---- */

static void due(struct kid *k, const char *what, long nr, uint64_t a, uint64_t b, const void *value,
		size_t bytes)
{
	uint64_t va;

	rtask_scratch_reset(&k->rt[0]);
	assert_non_null(rtask_scratch_copy(&k->rt[0], value, bytes, &va));
	if (rcall_now(&k->rt[0], nr, a, nr == SYS_setitimer ? va : b, nr == SYS_setitimer ? 0 : va,
		      0))
		fail_msg("%s", what);
}

static bool shows_pending(const struct kid *k, size_t thread, int signo)
{
	struct proc_status st;
	struct cr_err err = {0};

	assert_ok(proc_status_read(k->pid, k->tids[thread], &st, &err), &err);
	uint64_t bits = st.sig_pnd | st.shd_pnd;
	proc_status_done(&st);
	return bits >> (signo - 1) & 1;
}

static void two_timers(const pid_t *tids, size_t n)
{
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
	int id;

	(void)n;
	ev.sigev_value.sival_int = 4711;
	must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id));
	ev.sigev_notify = SIGEV_THREAD_ID;
	ev._sigev_un._tid = tids[1];
	must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id));
	ev.sigev_notify = SIGEV_SIGNAL; /* a periodic one that has long been pending */
	must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id));
	must(syscall(SYS_timer_settime, id, 0, &(struct itimerspec){{1000, 0}, {0, 1}}, NULL));
	while (!is_pending(SIGRTMIN + 2))
		;
}

static void test_expires_under_way(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, two_timers, 2};
	const struct itimerval alarm = {.it_value.tv_usec = 1};
	const struct itimerspec soon = {.it_value.tv_nsec = 1};
	struct refusals refused = {0};
	struct cr_err err = {0};

	(void)state;
	kid_start(&src, &spec);
	struct tree *t = kid_capture_outside(&src, true, &refused);
	struct process *p = &t->procs[0];
	assert_int_equal(p->n_pending, 1);
	due(&src, "setitimer", SYS_setitimer, ITIMER_REAL, 0, &alarm, sizeof(alarm));
	due(&src, "timer_settime", SYS_timer_settime, 0, 0, &soon, sizeof(soon));
	due(&src, "timer_settime", SYS_timer_settime, 1, 0, &soon, sizeof(soon));
	while (!shows_pending(&src, 0, SIGALRM) || !shows_pending(&src, 1, SIGRTMIN + 2))
		;
	for (size_t i = 0; i < src.n; i++)
		assert_ok(task_seize(src.tids[i], PTRACE_O_TRACESYSGOOD, &err), &err);
	assert_true(kid_query(&src, t));
	assert_ok(attrs_pending_again(t, p, true, &refused, &err), &err);
	assert_int_equal(count(p->pending, p->n_pending, SIGALRM), 1);
	assert_int_equal(count(p->pending, p->n_pending, SIGRTMIN + 2), 2);
	assert_int_equal(count(p->threads[1].pending, p->threads[1].n_pending, SIGRTMIN + 2), 1);
	assert_int_equal(p->itimers[ITIMER_REAL].value_us, 0);
	assert_int_equal(p->timers[0].value_ns, 0);
	assert_int_equal(p->timers[1].value_ns, 0);
	assert_in_range(p->timers[2].value_ns, 900ull * 1000000000, 1000ull * 1000000000);
	refusals_done(&refused);
	tree_free(t);
	kid_stop(&src);
}

/* The other way round: found pending, though it was still to go off when it was asked. */
static void test_expires_after_query(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, two_timers, 2};
	struct refusals refused = {0};
	struct cr_err err = {0};

	(void)state;
	kid_start(&src, &spec);
	struct tree *t = kid_capture(&src);
	struct process *p = &t->procs[0];
	const uint64_t period = p->timers[2].interval_ns;
	p->timers[2].value_ns = 1;
	for (size_t i = 0; i < src.n; i++)
		assert_ok(task_seize(src.tids[i], PTRACE_O_TRACESYSGOOD, &err), &err);
	assert_ok(attrs_pending_again(t, p, true, &refused, &err), &err);
	assert_int_equal(p->n_pending, 1);
	assert_int_equal(p->timers[2].value_ns, period + 1);
	p->timers[2].interval_ns = 0;
	p->timers[2].value_ns = 1;
	assert_ok(attrs_pending_again(t, p, true, &refused, &err), &err);
	assert_int_equal(p->timers[2].value_ns, 0);
	refusals_done(&refused);
	tree_free(t);
	kid_stop(&src);
}

/* Nothing of it: one look is enough. */
static void test_quiet(void **state)
{
	struct refusals refused = {0};

	(void)state;
	kid_start(&src, &plain_spec);
	struct tree *t = kid_capture_outside(&src, true, &refused);
	assert_false(kid_query(&src, t));
	refusals_done(&refused);
	tree_free(t);
	kid_stop(&src);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    kid_test(test_expired_itimer),      kid_test(test_dead_itimer),
	    kid_test(test_disarmed_prof),       kid_test(test_expires_under_way),
	    kid_test(test_expires_after_query), kid_test(test_quiet),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
