/* In what order pages are pushed. */
#include "source/serve_state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#define CHUNK (512 * CR_PAGE_SIZE)

static const struct serve_range has[] = {
    {7, CHUNK, 4 * CHUNK}, {7, 6 * CHUNK, 7 * CHUNK}, {LAZY_OBJECT + 3, 0, CHUNK}};

static struct memory *add_memory(struct server *s, pid_t pid)
{
	struct memory *m = vec_push(&s->memories);

	assert_non_null(m);
	*m = (struct memory){.pid = pid, .mem = -1};
	left_allow(s, has, ARRAY_SIZE(has));
	return m;
}

static struct memory *memory_with(struct server *s, pid_t pid, uint64_t start)
{
	struct memory *m = add_memory(s, pid);
	struct lazy_chunk c = {.start = start};

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

static void add_three_huge(struct server *s, struct memory *m)
{
	for (uint64_t i = 1; i <= 3; i++) {
		struct lazy_chunk c = {.start = i * CHUNK};

		memset(c.bits, 0xff, sizeof(c.bits));
		assert_int_equal(left_add(s, m, &c), 0);
	}
	assert_int_equal(left_sort(s), 0);
}

/* Whole ones follow a huge page that was asked for, and nothing is sent with it. */
static void test_huge(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct memory *m = add_memory(&s, 7);

	(void)state;
	add_three_huge(&s, m);
	for (uint64_t va = 2 * CHUNK; va < 3 * CHUNK; va += CR_PAGE_SIZE)
		left_take(&s, m, va);
	assert_int_equal(left_asked(&s, m, 2 * CHUNK, 512), 0);
	for (uint64_t va = 3 * CHUNK; va < 4 * CHUNK; va += PUSH_PAGES * CR_PAGE_SIZE)
		takes(&s, va, PUSH_PAGES);
	takes(&s, CHUNK, PUSH_PAGES);
	left_done(&s);
}

/* One that was begun comes to its end first: whoever gets it can use it only whole. */
static void test_huge_whole(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct memory *m = add_memory(&s, 7);

	(void)state;
	add_three_huge(&s, m);
	assert_int_equal(left_asked(&s, m, CHUNK, 512), 0);
	left_asked(&s, m, CHUNK + 100 * CR_PAGE_SIZE, 1); /* nothing of it was pushed yet */
	takes(&s, CHUNK + 92 * CR_PAGE_SIZE, PUSH_PAGES);
	takes(&s, CHUNK + 156 * CR_PAGE_SIZE, 8);
	takes(&s, 2 * CHUNK, PUSH_PAGES);
	for (int i = 0; i < 2 * HOT_MAX; i++)
		left_asked(&s, m, 3 * CHUNK + 100 * CR_PAGE_SIZE, 1);
	for (uint64_t va = 2 * CHUNK; va < 3 * CHUNK - PUSH_PAGES * CR_PAGE_SIZE;
	     va += PUSH_PAGES * CR_PAGE_SIZE)
		takes(&s, va + PUSH_PAGES * CR_PAGE_SIZE, PUSH_PAGES);
	takes(&s, 3 * CHUNK + 92 * CR_PAGE_SIZE, PUSH_PAGES);
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

static int says(struct server *s, struct memory *m, uint64_t start)
{
	const struct lazy_chunk c = {.start = start, .bits = {1}};

	return left_add(s, m, &c);
}

/* Only what there is can be missing, and all of that. The rest is passed over, if it is little. */
static void test_bounds(void **state)
{
	struct serve sv = {0};
	struct server s = {.sv = &sv};
	struct memory *m = add_memory(&s, 7);

	(void)state;
	assert_int_equal(says(&s, m, 0), 0);
	assert_int_equal(says(&s, m, 4 * CHUNK), 0);
	assert_int_equal(says(&s, m, 5 * CHUNK), 0);
	assert_int_equal(says(&s, m, 7 * CHUNK), 0);
	assert_int_equal(says(&s, m, 8 * CHUNK), -EPROTO);
	assert_int_equal(m->chunks.n, 0);
	assert_int_equal(says(&s, m, 6 * CHUNK), 0);
	for (uint64_t i = 3; i >= 1; i--)
		assert_int_equal(says(&s, m, i * CHUNK), 0);
	assert_int_equal(says(&s, m, CHUNK), -EPROTO); /* more than there is */
	assert_int_equal(m->chunks.n, 4);
	assert_int_equal(left_sort(&s), 0);
	assert_int_equal(s.left, 4);
	assert_true(left_was_told(m, 6 * CHUNK));
	left_done(&s);

	struct server twice = {.sv = &sv};
	m = add_memory(&twice, 7);
	assert_int_equal(says(&twice, m, CHUNK), 0);
	assert_int_equal(says(&twice, m, CHUNK), 0);
	assert_int_equal(left_sort(&twice), -EPROTO);
	left_done(&twice);

	struct server none = {.sv = &sv}; /* of which nobody has said what there is */
	m = add_memory(&none, 8);
	assert_int_equal(says(&none, m, CHUNK), -EPROTO);
	left_done(&none);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_order),      cmocka_unit_test(test_ahead),
	    cmocka_unit_test(test_huge),       cmocka_unit_test(test_sweep),
	    cmocka_unit_test(test_told),       cmocka_unit_test(test_bounds),
	    cmocka_unit_test(test_huge_whole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
