/* What the fetcher takes memory for. */
#include "dest/fetch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>
#include "model/lazy.h"

#define HERE 0x10000000ull
#define THERE 0x40000000ull

enum { ORIGIN = 7, HUGE_PAGES = 1500, SMALL_PAGES = 64, MOST_STAGED = 1024 };

struct fixture {
	struct fetch f;
	struct lazy_shared *sh;
	struct lazy_space *space;
	struct lazy_stats stats;
};

static int set_up(void **state)
{
	const uint64_t pages = HUGE_PAGES * (uint64_t)LAZY_HUGE_PAGES;
	const struct lazy_seg seg = {.start = HERE, .pages = pages, .src = THERE, .huge = 1};
	struct fixture *t = calloc(1, sizeof(*t));
	struct cr_err err = {0};
	uint64_t words[8];

	assert_non_null(t);
	memset(words, 0xff, sizeof(words));
	assert_int_equal(lazy_state_new(&t->sh, 2, pages, 0, 0, &err), 0);
	t->space = lazy_space_new(t->sh, -1, ORIGIN);
	assert_non_null(t->space);
	t->space->used = 1;
	assert_int_equal(lazy_space_add(t->sh, t->space, &seg), 0);
	for (uint64_t bit = 0; bit < pages; bit += LAZY_HUGE_PAGES)
		lazy_mark_words(t->sh, t->space, bit, words);
	t->f.sh = t->sh;
	t->f.st = &t->stats;
	pthread_mutex_init(&t->f.lock, NULL);
	*state = t;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *t = *state;

	huge_forget_staged(&t->f);
	vec_done(&t->f.waiters);
	lazy_state_free(t->sh);
	free(t);
	return 0;
}

/* A task that waits takes a signal every now and then, and faults again. */
static void test_waits_once(void **state)
{
	struct fixture *t = *state;

	for (int i = 0; i < 1000; i++)
		assert_int_equal(tasks_wait_for(&t->f, t->space, HERE, ORIGIN, THERE, 1), 0);
	assert_int_equal(t->f.waiters.n, 1);
	assert_int_equal(t->stats.faults, 1000);
	assert_int_equal(
	    tasks_wait_for(&t->f, t->space, HERE + CR_PAGE_SIZE, ORIGIN, THERE + CR_PAGE_SIZE, 1),
	    0);
	assert_int_equal(t->f.waiters.n, 2);
	tasks_arrived(&t->f, t->space, HERE);
	assert_int_equal(t->f.waiters.n, 1);
}

static int push_a_page(struct fixture *t, uint64_t huge, uint8_t *page)
{
	const struct lazy_frame fr = {
	    .type = LAZY_PAGES, .pid = ORIGIN, .npages = 1, .addr = THERE + huge * LAZY_HUGE_BYTES};

	return put_pages(&t->f, &fr, page, FILL_DATA, true);
}

/* A source pushes a page of each huge page, and no other of any. */
static void test_pieces_of_huge_pages(void **state)
{
	static uint8_t page[CR_PAGE_SIZE];
	struct fixture *t = *state;

	for (uint64_t i = 0; i < MOST_STAGED; i++) {
		assert_int_equal(push_a_page(t, i, page), 0);
		assert_null(t->f.lost_why);
	}
	assert_int_equal(push_a_page(t, 0, page), 0); /* one of them */
	assert_null(t->f.lost_why);
	for (uint64_t i = MOST_STAGED; i < HUGE_PAGES; i++) {
		assert_int_equal(push_a_page(t, i, page), 0);
		assert_non_null(
		    t->f.lost_why); /* the connection is given up, and what came of it */
	}
	assert_int_equal(t->f.staged.n, MOST_STAGED);
	huge_forget_staged(&t->f);
	t->f.lost_why = NULL;
	assert_int_equal(push_a_page(t, MOST_STAGED, page), 0);
	assert_int_equal(t->f.staged.n, 1);
}

/* Of shared memory that a task has mapped the object lacks pages, not the task. */
static void test_tells_what_is_missing(void **state)
{
	const struct lazy_seg mapped = {.start = 1ull << 40, .pages = 1024, .object = 1};
	const struct lazy_frame start = {.type = LAZY_START};
	struct fixture *t = *state;
	uint8_t hdr[LAZY_HDR_BYTES], b[LAZY_CHUNK_BYTES];
	uint64_t told = 0;
	struct lazy_frame fr;
	int pair[2];

	assert_int_equal(lazy_space_add(t->sh, t->space, &mapped), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	t->sh->urgent_fd = pair[0];
	assert_int_equal(fetch_on_frame(&t->f, &start, NULL, false), 0);
	do {
		struct cr_err err = {0};

		assert_int_equal(recv(pair[1], hdr, sizeof(hdr), MSG_WAITALL), sizeof(hdr));
		assert_int_equal(lazy_frame_decode(&fr, hdr, &err), 0);
		for (uint32_t i = 0; i < fr.npages; i++) {
			struct lazy_chunk c;

			assert_int_equal(fr.pid, ORIGIN);
			assert_int_equal(recv(pair[1], b, sizeof(b), MSG_WAITALL), sizeof(b));
			assert_int_equal(lazy_chunk_decode(&c, b, &err), 0);
			assert_in_range(c.start, THERE, THERE + (HUGE_PAGES - 1) * LAZY_HUGE_BYTES);
			told++;
		}
	} while (fr.type == LAZY_MISSING);
	assert_int_equal(fr.type, LAZY_MISSING_END);
	assert_int_equal(told, HUGE_PAGES);
	close(pair[1]);
	lazy_close(&t->sh->urgent_fd);
	vec_done(&t->f.out);
}

#define fetch_test(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    fetch_test(test_waits_once),
	    fetch_test(test_pieces_of_huge_pages),
	    fetch_test(test_tells_what_is_missing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
