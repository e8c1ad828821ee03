/* CPU time that others leave: asked for and given back, of a session's leader for its session. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernel/background.h"
#include "kernel/sched_attr.h"

/* -100: nothing is shared by sessions here */
static int session_nice(void)
{
	FILE *f = fopen("/proc/self/autogroup", "r");
	int nice;

	if (!f)
		return -100;
	if (fscanf(f, "/autogroup-%*u nice %d", &nice) != 1)
		nice = -100;
	fclose(f);
	return nice;
}

static void expect(int *wrong, const char *what, int got, int want)
{
	if (got == want)
		return;
	fprintf(stderr, "%s: %d, not %d\n", what, got, want);
	(*wrong)++;
}

static void in_child(int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid)
		_exit(fn());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static int leader(void)
{
	struct background b = {0};
	int wrong = 0, before, shared;

	setsid();
	before = getpriority(PRIO_PROCESS, 0);
	shared = session_nice();
	background_enter(&b, BACKGROUND_LESS);
	expect(&wrong, "in the background", getpriority(PRIO_PROCESS, 0), before + 10);
	expect(&wrong, "its policy", sched_getscheduler(0), SCHED_OTHER);
	expect(&wrong, "its session", session_nice(), shared == -100 ? -100 : 10);
	background_leave(&b);
	expect(&wrong, "back", getpriority(PRIO_PROCESS, 0), before);
	expect(&wrong, "its session, back", session_nice(), shared);
	background_leave(&b);
	background_check(&b);
	expect(&wrong, "left twice", getpriority(PRIO_PROCESS, 0), before);
	/* before all others but while in the background */
	background_never();
	expect(&wrong, "its session, first", session_nice(), shared == -100 ? -100 : -10);
	background_enter(&b, BACKGROUND_LESS);
	expect(&wrong, "its session, in the background", session_nice(),
	       shared == -100 ? -100 : 10);
	background_leave(&b);
	expect(&wrong, "its session, first again", session_nice(), shared == -100 ? -100 : -10);
	return wrong;
}

/* In ns; 0: this kernel has no such thing. */
static unsigned long long turn(void)
{
	struct sched_attr_v0 a = {0};

	if (syscall(SYS_sched_getattr, 0, &a, sizeof(a), 0))
		return 0;
	return a.runtime_ns;
}

static int idle_leader(void)
{
	struct background b = {0};
	int wrong = 0, before, shared;

	setsid();
	background_never();
	before = getpriority(PRIO_PROCESS, 0);
	shared = session_nice();
	unsigned long long usual = turn();
	background_yield();
	background_enter(&b, BACKGROUND_IDLE);
	expect(&wrong, "policy", sched_getscheduler(0), SCHED_IDLE);
	expect(&wrong, "session, idle", session_nice(), shared == -100 ? -100 : 19);
	background_yield();
	/* while others wait for a lock of ours */
	background_pause();
	expect(&wrong, "policy, paused", sched_getscheduler(0), SCHED_OTHER);
	expect(&wrong, "nice, paused", getpriority(PRIO_PROCESS, 0), before);
	expect(&wrong, "session, paused", session_nice(), shared);
	background_resume();
	expect(&wrong, "policy, again", sched_getscheduler(0), SCHED_IDLE);
	expect(&wrong, "session, again", session_nice(), shared == -100 ? -100 : 19);
	background_leave(&b);
	background_pause();
	background_resume();
	expect(&wrong, "policy, back", sched_getscheduler(0), SCHED_OTHER);
	expect(&wrong, "nice, back", getpriority(PRIO_PROCESS, 0), before);
	expect(&wrong, "session, back", session_nice(), shared);
	expect(&wrong, "turn, back", turn() == usual, true);
	/* nothing of a processor in what it takes for long: up a step, and another */
	background_enter(&b, BACKGROUND_IDLE);
	background_check(&b);
	expect(&wrong, "not starving yet", sched_getscheduler(0), SCHED_IDLE);
	b.since_us -= 2 * 1000 * 1000;
	background_check(&b);
	expect(&wrong, "policy, starving", sched_getscheduler(0), SCHED_OTHER);
	expect(&wrong, "nice, starving", getpriority(PRIO_PROCESS, 0), before + 10);
	expect(&wrong, "session, starving", session_nice(), shared == -100 ? -100 : 10);
	expect(&wrong, "turn, starving", turn() == usual, true);
	b.since_us -= 2 * 1000 * 1000;
	background_check(&b);
	expect(&wrong, "nice, two seconds later", getpriority(PRIO_PROCESS, 0), before + 10);
	b.since_us -= 60ull * 1000 * 1000;
	background_check(&b);
	expect(&wrong, "nice, still starving", getpriority(PRIO_PROCESS, 0), before);
	expect(&wrong, "session, still starving", session_nice(), shared);
	expect(&wrong, "nothing to leave", b.depth, BACKGROUND_NONE);
	return wrong;
}

static int short_turns(void)
{
	int wrong = 0, before = getpriority(PRIO_PROCESS, 0);
	unsigned long long usual = turn();

	background_short_turns();
	expect(&wrong, "nice", getpriority(PRIO_PROCESS, 0), before);
	expect(&wrong, "policy", sched_getscheduler(0), SCHED_OTHER);
	if (usual) /* kernels before 6.12 tell none */
		expect(&wrong, "turn", (int)turn(), 100 * 1000);
	return wrong;
}

/* A thread that has gone ahead of others, or behind them, by itself. */
static int own_policy(void)
{
	const struct sched_param none = {0};
	struct background b = {0};
	int wrong = 0;

	setsid();
	if (sched_setscheduler(0, SCHED_BATCH, &none))
		return 1;
	background_enter(&b, BACKGROUND_IDLE);
	expect(&wrong, "policy", sched_getscheduler(0), SCHED_BATCH);
	background_leave(&b);
	expect(&wrong, "policy afterwards", sched_getscheduler(0), SCHED_BATCH);
	return wrong;
}

static int others_session(void)
{
	struct background b = {0};
	int wrong = 0, before, shared;

	setsid();
	shared = session_nice();
	pid_t pid = fork();
	if (pid) {
		int status;

		return pid < 0 || waitpid(pid, &status, 0) != pid || status;
	}
	before = getpriority(PRIO_PROCESS, 0);
	background_enter(&b, BACKGROUND_LESS);
	expect(&wrong, "in the background", getpriority(PRIO_PROCESS, 0), before + 10);
	expect(&wrong, "somebody else's session", session_nice(), shared);
	background_leave(&b);
	expect(&wrong, "back", getpriority(PRIO_PROCESS, 0), before);
	return wrong;
}

static void test_leader(void **state)
{
	(void)state;
	in_child(leader);
}

static void test_idle(void **state)
{
	(void)state;
	if (geteuid())
		skip(); /* nobody else may come back */
	in_child(idle_leader);
}

static void test_short_turns(void **state)
{
	(void)state;
	in_child(short_turns);
}

static void test_own_policy(void **state)
{
	(void)state;
	in_child(own_policy);
}

static void test_session_of_another(void **state)
{
	(void)state;
	in_child(others_session);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_leader), cmocka_unit_test(test_idle),
	    cmocka_unit_test(test_short_turns), cmocka_unit_test(test_own_policy),
	    cmocka_unit_test(test_session_of_another)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
