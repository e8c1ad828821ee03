/* The first round's pace: rests come where the tasks wait for its sake, and only there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/clock.h"
#include "source/pace.h"

static void stay_on_one_cpu(void)
{
	cpu_set_t all, one;
	int cpu = 0;

	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
}

static bool sleeps(pid_t pid)
{
	char path[64], state = '?';

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *f = fopen(path, "r");
	assert_non_null(f);
	int n = fscanf(f, "%*d (%*[^)]) %c", &state);
	fclose(f);
	return n == 1 && state == 'S';
}

static pid_t start(bool busy)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	while (pid && !busy && !sleeps(pid))
		sched_yield();
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		if (!busy)
			pause();
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Works beside pid for as long as it takes to a rest, most_us at most. Returns the rest. */
static uint64_t work_beside(pid_t pid, uint64_t most_us)
{
	struct thread th = {.tid = pid};
	struct process q = {.pid = pid, .threads = &th, .n_threads = 1};
	struct tree t = {.procs = &q, .n_procs = 1};
	struct pace p;
	uint64_t end_us = now_us() + most_us;

	pace_begin(&p, &t);
	while (now_us() < end_us && !p.rested_us)
		pace_step(&p);
	pace_end(&p);
	pace_step(&p); /* over: nothing happens */
	return p.rested_us;
}

static void rests_beside_one_that_works(void **state)
{
	(void)state;
	pid_t pid = start(true);

	assert_true(work_beside(pid, 20 * 1000 * 1000) > 0);
	end(pid);
}

static void does_not_beside_one_that_sleeps(void **state)
{
	(void)state;
	pid_t pid = start(false);

	assert_int_equal(work_beside(pid, 300 * 1000), 0);
	end(pid);
}

static void one_that_ended_wants_nothing(void **state)
{
	(void)state;
	pid_t pid = start(false);

	end(pid);
	assert_int_equal(work_beside(pid, 100 * 1000), 0);
}

static void as_much_rest_as_they_lose(void **state)
{
	(void)state;
	assert_int_equal(pace_rest_us(0, 0, 1000), 0);
	assert_int_equal(pace_rest_us(0.08, 0, 1000), 0);
	/* a sixth part of it all would be lost: half of the time is rest */
	assert_in_range(pace_rest_us(0.16, 0, 1000), 990, 1010);
	/* what they wait without us is not our fault */
	assert_int_equal(pace_rest_us(0.5, 0.45, 1000), 0);
	assert_int_equal(pace_rest_us(0.3, 0.5, 1000), 0);
	/* it goes on all the same */
	assert_int_equal(pace_rest_us(1, 0, 1000), 3000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(rests_beside_one_that_works),
	    cmocka_unit_test(does_not_beside_one_that_sleeps),
	    cmocka_unit_test(one_that_ended_wants_nothing),
	    cmocka_unit_test(as_much_rest_as_they_lose),
	};

	stay_on_one_cpu();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
