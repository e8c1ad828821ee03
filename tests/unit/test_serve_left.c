/* In what order pages are pushed. */
#include "source/serve_state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#define CHUNK (512 * CR_PAGE_SIZE)

static struct memory *memory_with(struct server *s, pid_t pid, uint64_t start)
{
	struct memory *m = vec_push(&s->memories);
	struct lazy_chunk c = {.start = start};

	assert_non_null(m);
	*m = (struct memory){.pid = pid, .mem = -1};
	memset(c.bits, 0xff, sizeof(c.bits));
	assert_int_equal(left_add(s, m, &c), 0);
	assert_int_equal(left_sort(s), 0);
	return m;
}

static void takes(struct server *s, uint64_t want_va, uint32_t want_n)
{
	struct memory *m;
	uint64_t va;
	uint32_t n = left_next(s, &m, &va);

	assert_int_equal(n, want_n);
	if (n)
		assert_int_equal(va, want_va);
}

static void test_order(void **state)
{
	const struct serve_range recent[] = {
	    {7, CHUNK + 300 * CR_PAGE_SIZE, CHUNK + 302 * CR_PAGE_SIZE},
	    {8, CHUNK, CHUNK + CR_PAGE_SIZE}, /* a process that has nothing left */
	    {7, CHUNK + 200 * CR_PAGE_SIZE, CHUNK + 201 * CR_PAGE_SIZE},
	};
	struct serve sv = {.recent = recent, .n_recent = 3};
	struct server s = {.sv = &sv};
	struct memory *m = memory_with(&s, 7, CHUNK);

	(void)state;
	left_take(&s, m, CHUNK + 100 * CR_PAGE_SIZE);
	left_asked(&s, m, CHUNK + 100 * CR_PAGE_SIZE, 1);
	takes(&s, CHUNK + 92 * CR_PAGE_SIZE, 8); /* around it, but for itself */
	takes(&s, CHUNK + 101 * CR_PAGE_SIZE, 63);
	takes(&s, CHUNK + 300 * CR_PAGE_SIZE, 2); /* written last */
	takes(&s, CHUNK + 200 * CR_PAGE_SIZE, 1);
	takes(&s, CHUNK, 64); /* by address */
	takes(&s, CHUNK + 64 * CR_PAGE_SIZE, 28);
	while (s.left) {
		struct memory *some;
		uint64_t va;

		assert_true(left_next(&s, &some, &va) > 0);
	}
	takes(&s, 0, 0);
	left_done(&s);
}

static void test_ahead(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct memory *m = memory_with(&s, 7, CHUNK);
	uint64_t va = CHUNK;

	(void)state;
	assert_int_equal(left_asked(&s, m, va, 1), 0);
	for (uint32_t want = 4; want <= AHEAD_PAGES_MAX; want *= 2) {
		uint32_t ahead = left_asked(&s, m, va + CR_PAGE_SIZE, 1);

		assert_int_equal(ahead, want);
		va += (1 + ahead) * CR_PAGE_SIZE;
	}
	/* elsewhere */
	assert_int_equal(left_asked(&s, m, CHUNK + 400 * CR_PAGE_SIZE, 1), 0);
	assert_int_equal(left_asked(&s, m, CHUNK + 20 * CR_PAGE_SIZE, 1), 0);
	left_done(&s);
}

/* Whole ones follow a huge page that was asked for, and nothing is sent with it. */
static void test_huge(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct memory *m = vec_push(&s.memories);

	(void)state;
	assert_non_null(m);
	*m = (struct memory){.pid = 7, .mem = -1};
	for (uint64_t i = 1; i <= 3; i++) {
		struct lazy_chunk c = {.start = i * CHUNK};

		memset(c.bits, 0xff, sizeof(c.bits));
		assert_int_equal(left_add(&s, m, &c), 0);
	}
	assert_int_equal(left_sort(&s), 0);
	for (uint64_t va = 2 * CHUNK; va < 3 * CHUNK; va += CR_PAGE_SIZE)
		left_take(&s, m, va);
	assert_int_equal(left_asked(&s, m, 2 * CHUNK, 512), 0);
	for (uint64_t va = 3 * CHUNK; va < 4 * CHUNK; va += PUSH_PAGES * CR_PAGE_SIZE)
		takes(&s, va, PUSH_PAGES);
	takes(&s, CHUNK, PUSH_PAGES);
	left_done(&s);
}

static void test_told(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct memory *m = memory_with(&s, 7, CHUNK);

	(void)state;
	left_take(&s, m, CHUNK);
	assert_int_equal(s.left, 511);
	assert_true(left_was_told(m, CHUNK)); /* whatever was sent since */
	assert_false(left_was_told(m, 2 * CHUNK));
	assert_null(left_memory_of(&s, 8));
	left_done(&s);
}

/* What the destination may have as it is comes up once, chunk by chunk, and stays left. */
static void test_sweep(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct lazy_chunk c;
	pid_t pid;
	char digests;

	(void)state;
	memory_with(&s, 7, CHUNK);
	memory_with(&s, LAZY_OBJECT + 3, 0);
	s.memories.v[1].known.map = (void *)&digests;
	assert_true(left_sweep(&s, &pid, &c));
	assert_int_equal(pid, LAZY_OBJECT + 3);
	assert_int_equal(c.start, 0);
	assert_int_equal(c.bits[7], UINT64_MAX);
	assert_false(left_sweep(&s, &pid, &c));
	assert_int_equal(s.left, 1024);
	s.memories.v[1].known.map = NULL;
	left_done(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_order), cmocka_unit_test(test_ahead), cmocka_unit_test(test_huge),
	    cmocka_unit_test(test_sweep), cmocka_unit_test(test_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
