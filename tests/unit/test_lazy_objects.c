/* Shared memory that is missing, and where it is mapped while tasks change that. */
#include "dest/lazy_state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#define PAGE CR_PAGE_SIZE
#define HERE 0x10000000ull
#define THERE 0x20000000ull

static uint64_t whole[16]; /* a bit for each of 1,024 pages */
static struct lazy_shared *sh;
static struct lazy_space *space;

/* Two objects, of 700 and of 3 pages; 100 pages of the first are mapped, from its page 50 on. */
static int set_up(void **state)
{
	const struct lazy_seg seg = {.start = HERE, .pages = 100, .src = 50 * PAGE, .object = 1};
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(lazy_state_new(&sh, 4, 64, 703, 2, &err), 0);
	memset(whole, 0xff, sizeof(whole));
	assert_int_equal(lazy_object_add(sh, 7, -1, 700, 1, whole), 0);
	assert_int_equal(lazy_object_add(sh, 9, -1, 3, 1, whole), 0);
	space = lazy_space_new(sh, -1, 1);
	assert_non_null(space);
	space->used = 1;
	assert_int_equal(lazy_space_add(sh, space, &seg), 0);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	lazy_state_free(sh);
	return 0;
}

/* UINT64_MAX: nothing of an object. */
static uint64_t page_at(uint64_t va)
{
	uint64_t page;
	const struct lazy_object *o = lazy_object_at(sh, space, va, &page, NULL);

	assert_true(!o || o == &sh->objects[0]);
	return o ? page : UINT64_MAX;
}

static void test_bits(void **state)
{
	const struct lazy_object *a = lazy_object_of(sh, 7), *b = lazy_object_of(sh, 9);
	uint64_t words[8];

	(void)state;
	assert_null(lazy_object_of(sh, 8));
	assert_int_equal(lazy_objects_count(sh), 703);
	assert_true(lazy_object_missing(sh, a, 699) && !lazy_object_missing(sh, a, 700));
	assert_true(lazy_object_clear(sh, a, 699) && !lazy_object_clear(sh, a, 699));
	assert_true(lazy_object_clear(sh, b, 0));
	assert_int_equal(lazy_objects_count(sh), 701);
	assert_true(lazy_object_missing(sh, a, 0));
	assert_true(lazy_object_words(sh, a, 512, words));
	assert_int_equal(words[0], UINT64_MAX);
	assert_int_equal(words[2], (1ull << (699 - 640)) - 1);
	assert_int_equal(words[3], 0);
	assert_false(lazy_objects_any_lost(sh));
	lazy_object_lose(sh, b, 2);
	assert_true(lazy_object_lost(sh, b, 2) && !lazy_object_lost(sh, a, 2));
	lazy_object_found(sh, b, 2);
	assert_false(lazy_objects_any_lost(sh));
}

/* Many at once, of which some are not missing, or not there. */
static void test_words(void **state)
{
	const struct lazy_object *a = lazy_object_of(sh, 7), *b = lazy_object_of(sh, 9);
	const uint64_t some[8] = {0xf0, 0, ~0ull},
		       all[8] = {~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull};

	(void)state;
	assert_true(lazy_object_clear(sh, a, 516));
	assert_int_equal(lazy_object_clear_words(sh, a, 512, some), 3 + 700 - 640);
	assert_true(lazy_object_missing(sh, a, 515) && !lazy_object_missing(sh, a, 517));
	assert_true(lazy_object_missing(sh, a, 520) && !lazy_object_missing(sh, a, 699));
	assert_int_equal(lazy_object_clear_words(sh, a, 512, some), 0);
	assert_int_equal(lazy_object_clear_words(sh, a, 1024, all), 0); /* beyond its end */
	assert_int_equal(lazy_object_clear_words(sh, b, 0, all), 3);
	assert_int_equal(lazy_objects_count(sh), 703 - 1 - 3 - 60 - 3);
	assert_true(lazy_object_missing(sh, a, 0));
}

/* What is a hole is not missing. */
static void test_holes(void **state)
{
	const uint64_t left[11] = {[0] = 1, [1] = 1ull << 63, [10] = ~0ull};
	struct cr_err err = {0};

	(void)state;
	lazy_state_free(sh);
	assert_int_equal(lazy_state_new(&sh, 4, 64, 700, 1, &err), 0);
	assert_int_equal(lazy_object_add(sh, 7, -1, 700, 1, left), 0);
	const struct lazy_object *o = lazy_object_of(sh, 7);
	assert_int_equal(lazy_objects_count(sh), 1 + 1 + (700 - 640));
	assert_true(lazy_object_missing(sh, o, 0) && lazy_object_missing(sh, o, 127));
	assert_false(lazy_object_missing(sh, o, 1) || lazy_object_missing(sh, o, 128));
	assert_int_equal(lazy_object_run(sh, o, 640, 100), 60);
}

/* mremap(2): there, and here until it is unmapped; of nothing (an old size of 0): both stay. */
static void test_move(void **state)
{
	uint64_t page, until;

	(void)state;
	assert_int_equal(page_at(HERE - PAGE), UINT64_MAX);
	assert_int_equal(page_at(HERE + 3 * PAGE), 53);
	assert_int_equal(lazy_move(sh, space, HERE + 10 * PAGE, THERE, 5 * PAGE), 0);
	assert_int_equal(page_at(HERE + 10 * PAGE), 60);
	assert_int_equal(page_at(THERE + 4 * PAGE), 64);
	assert_int_equal(lazy_unmap(sh, space, HERE + 10 * PAGE, HERE + 15 * PAGE), 0);
	assert_non_null(lazy_object_at(sh, space, HERE, &page, &until));
	assert_int_equal(until, HERE + 10 * PAGE);
	assert_int_equal(page_at(HERE + 15 * PAGE), 65);
	assert_int_equal(page_at(HERE + 99 * PAGE), 149);
	assert_int_equal(lazy_move(sh, space, HERE + 20 * PAGE, THERE + 100 * PAGE, 0), 0);
	assert_int_equal(page_at(THERE + 102 * PAGE), 72);
	assert_int_equal(page_at(HERE + 20 * PAGE), 70);
	assert_int_equal(page_at(THERE), 60);
	/* two that lie close together: each as far as the other */
	assert_int_equal(lazy_move(sh, space, HERE, THERE + 104 * PAGE, PAGE), 0);
	assert_non_null(lazy_object_at(sh, space, THERE + 100 * PAGE, &page, &until));
	assert_int_equal(until, THERE + 104 * PAGE);
	assert_int_equal(page_at(THERE + 104 * PAGE), 50);
}

/* A mapping may grow without a word; beyond the object there is nothing. */
static void test_grown(void **state)
{
	(void)state;
	assert_int_equal(page_at(HERE + 200 * PAGE), 250);
	assert_int_equal(page_at(HERE + 650 * PAGE), UINT64_MAX);
}

static void test_unmapped(void **state)
{
	(void)state;
	assert_int_equal(lazy_unmap(sh, space, HERE, HERE + 100 * PAGE), 0);
	assert_int_equal(page_at(HERE), UINT64_MAX);
	assert_int_equal(lazy_objects_count(sh), 703);
}

/* What is mapped there is private memory's affair no more, and the other way round. */
static void test_private(void **state)
{
	const uint64_t words[8] = {1};
	const struct lazy_seg seg = {.start = THERE, .pages = 64, .src = THERE};
	uint64_t page;

	(void)state;
	assert_int_equal(lazy_space_add(sh, space, &seg), 0);
	lazy_mark_words(sh, space, 0, words);
	assert_non_null(lazy_find_here(sh, space, THERE, &page));
	assert_null(lazy_find_here(sh, space, HERE, &page));
	assert_int_equal(lazy_forget(sh, space, HERE, HERE + 100 * PAGE), 0);
	assert_int_equal(page_at(HERE), 50);
	assert_int_equal(lazy_unmap(sh, space, THERE, THERE + PAGE), 0);
	assert_non_null(lazy_find_here(sh, space, THERE, &page));
	struct lazy_space *child = lazy_fork(sh, space, -2);
	assert_non_null(child);
	assert_non_null(lazy_object_at(sh, child, HERE, &page, NULL));
	assert_int_equal(page, 50);
	child->used = 0; /* its descriptor is none */
}

/* Huge pages wait for the last of their 512, and nothing lies behind the end of their mapping. */
static void test_huge(void **state)
{
	const struct lazy_seg seg = {.start = THERE, .pages = 512, .src = 512 * PAGE, .object = 1};
	struct cr_err err = {0};
	uint64_t page;

	(void)state;
	lazy_state_free(sh);
	assert_int_equal(lazy_state_new(&sh, 4, 64, 1024, 1, &err), 0);
	assert_int_equal(lazy_object_add(sh, 7, -1, 1024, 512, whole), 0);
	space = lazy_space_new(sh, -1, 1);
	assert_non_null(space);
	space->used = 1;
	assert_int_equal(lazy_space_add(sh, space, &seg), 0);
	const struct lazy_object *o = lazy_object_of(sh, 7);
	assert_ptr_equal(lazy_huge_object_at(sh, space, THERE + 3 * PAGE, &page), o);
	assert_int_equal(page, 515);
	assert_null(lazy_huge_object_at(sh, space, THERE + 512 * PAGE, &page));
	assert_null(lazy_huge_object_at(sh, space, THERE - PAGE, &page));
	for (uint64_t i = 512; i < 1024; i++) {
		assert_true(lazy_object_waits(sh, o, 700));
		assert_true(lazy_object_clear(sh, o, i == 1023 ? 600 : i == 600 ? 1023 : i));
	}
	assert_false(lazy_object_waits(sh, o, 700));
	assert_true(lazy_object_waits(sh, o, 511));
	assert_int_equal(lazy_object_run(sh, o, 500, 512), 12);
	assert_int_equal(lazy_object_run(sh, o, 500, 4), 4);
	assert_int_equal(lazy_object_run(sh, o, 512, 512), 0);
}

/* Of ordinary pages each is for itself. */
static void test_small(void **state)
{
	const struct lazy_object *o = lazy_object_of(sh, 7);
	uint64_t page;

	(void)state;
	assert_true(lazy_object_clear(sh, o, 3));
	assert_true(!lazy_object_waits(sh, o, 3) && lazy_object_waits(sh, o, 4));
	assert_null(lazy_huge_object_at(sh, space, HERE, &page));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_bits, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_words, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_holes, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_move, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_grown, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_unmapped, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_private, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_huge, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(test_small, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
