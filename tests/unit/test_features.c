#include "kernel/features.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "kernel/procfs.h"

/* Whatever it finds on this machine: each has its name once and says what its absence costs. */
static void every_feature_is_explained(void **state)
{
	struct features f;

	(void)state;
	features_probe(&f);
	assert_true(f.n > 0 && f.n <= FEATURES_MAX);
	for (size_t i = 0; i < f.n; i++) {
		const struct feature *x = &f.list[i];
		size_t len = strlen(x->without);

		assert_ptr_equal(features_find(&f, x->name), x);
		assert_true(len > 10 && x->without[len - 1] == '.');
		assert_true(strlen(x->detail) < sizeof(x->detail));
	}
	assert_null(features_find(&f, "no such feature"));
	/* its own children can be traced by anybody */
	assert_true(features_find(&f, "ptrace")->present);
}

static void enough_is_all_that_is_required(void **state)
{
	struct features f = {.n = 2};

	(void)state;
	f.list[0] = (struct feature){.name = "a", .present = true, .required = true};
	f.list[1] = (struct feature){.name = "b", .present = false, .required = false};
	assert_true(features_enough(&f));
	f.list[1].required = true;
	assert_false(features_enough(&f));
}

static void leaves_nothing_behind(void **state)
{
	struct cr_err err = {0};
	struct features f;
	pid_t *kids;
	int *fds;

	(void)state;
	ssize_t before = proc_fds(getpid(), &fds, &err);
	free(fds);
	features_probe(&f);
	assert_int_equal(proc_fds(getpid(), &fds, &err), before);
	free(fds);
	assert_int_equal(proc_children(getpid(), &kids, &err), 0);
	free(kids);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_feature_is_explained),
	    cmocka_unit_test(enough_is_all_that_is_required),
	    cmocka_unit_test(leaves_nothing_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
