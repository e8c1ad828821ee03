/* Work side by side: all of it is done once, the first error ends it, and each worker has its own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "base/parallel.h"

enum { MANY = 10000, FEW = 10 };

struct sum {
	unsigned char done[MANY];
	struct arena *arenas[PARALLEL_THREADS_MAX];
	char *texts[MANY];
	size_t fails_at;
};

static int one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	struct sum *s = arg;

	if (i == s->fails_at)
		return cr_err_set(err, CR_ERR_KERNEL, EIO, "number %zu", i);
	s->done[i]++;
	if (!s->arenas[worker])
		s->arenas[worker] = arena_new();
	s->texts[i] = arena_strdup(s->arenas[worker], i % 2 ? "odd" : "even");
	return 0;
}

static void check(struct sum *s, size_t n)
{
	struct arena *all = arena_new();

	for (size_t i = 0; i < PARALLEL_THREADS_MAX; i++)
		arena_join(all, s->arenas[i]);
	assert_non_null(arena_strdup(all, "more"));
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(s->done[i], 1);
		assert_string_equal(s->texts[i], i % 2 ? "odd" : "even");
	}
	arena_free(all);
}

static void does_all(void **state)
{
	static const size_t sizes[] = {0, 1, FEW, PARALLEL_MIN, MANY};

	(void)state;
	for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
		struct sum *s = calloc(1, sizeof(*s));
		struct cr_err err = {0};

		s->fails_at = SIZE_MAX;
		assert_int_equal(parallel_for(sizes[k], one, s, &err), 0);
		check(s, sizes[k]);
		for (size_t i = sizes[k]; i < MANY; i++)
			assert_int_equal(s->done[i], 0);
		free(s);
	}
}

static void stops_at_an_error(void **state)
{
	static const size_t sizes[] = {FEW, MANY};

	(void)state;
	for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
		struct sum *s = calloc(1, sizeof(*s));
		struct cr_err err = {0};

		s->fails_at = sizes[k] / 2;
		assert_int_equal(parallel_for(sizes[k], one, s, &err), -EIO);
		assert_non_null(strstr(err.msg, "number"));
		for (size_t i = 0; i < MANY; i++)
			assert_true(s->done[i] <= 1);
		check(s, 0);
		free(s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(does_all),
	    cmocka_unit_test(stops_at_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
