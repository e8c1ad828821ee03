/* What may be missing of tasks that are served: also of one that has ended since. */
#include "source/serve_has.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static bool may_be_missing(const struct serve *sv, uint64_t va)
{
	for (size_t i = 0; i < sv->n_has; i++)
		if (sv->has[i].start <= va && va < sv->has[i].end)
			return true;
	return false;
}

static bool of(pid_t pid, uint64_t va)
{
	struct serve sv = {.pids = &pid, .n_pids = 1};
	struct serve_has has = {0};
	struct cr_err err = {0};

	assert_int_equal(serve_has_find(&has, &sv, &err), 0);
	bool may = may_be_missing(&sv, va);
	serve_has_done(&has);
	return may;
}

static void test_one_that_lives(void **state)
{
	int on_the_stack = 0;

	(void)state;
	assert_true(of(getpid(), (uintptr_t)&on_the_stack));
	assert_false(of(getpid(), 4096));
}

/* A zombie shows no mappings; what it had may be missing, and is said to be lost. */
static void test_zombie(void **state)
{
	int on_the_stack = 0;
	siginfo_t si;
	pid_t pid = fork();

	(void)state;
	assert_true(pid >= 0);
	if (!pid)
		_exit(0);
	assert_int_equal(waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT), 0);
	assert_true(of(pid, (uintptr_t)&on_the_stack));
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	/* nor does one that is gone altogether */
	assert_true(of(pid, (uintptr_t)&on_the_stack));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_one_that_lives),
	    cmocka_unit_test(test_zombie),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
