/* CPU time that others leave: asked for and given back, of a session's leader for its session. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernel/background.h"

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
	background_enter(&b);
	expect(&wrong, "in the background", getpriority(PRIO_PROCESS, 0), before + 10);
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
	background_enter(&b);
	expect(&wrong, "its session, in the background", session_nice(),
	       shared == -100 ? -100 : 10);
	background_leave(&b);
	expect(&wrong, "its session, first again", session_nice(), shared == -100 ? -100 : -10);
	shared = session_nice();
	/* nothing of a processor in what it takes for a long time */
	background_enter(&b);
	background_check(&b);
	expect(&wrong, "not starving yet", getpriority(PRIO_PROCESS, 0), before + 10);
	b.since_us -= 60ull * 1000 * 1000;
	background_check(&b);
	expect(&wrong, "starving", getpriority(PRIO_PROCESS, 0), before);
	expect(&wrong, "its session, starving", session_nice(), shared);
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
	background_enter(&b);
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

static void test_session_of_another(void **state)
{
	(void)state;
	in_child(others_session);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_leader),
					   cmocka_unit_test(test_session_of_another)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
