/* What the destination has of shared memory, as it is handed to whoever serves. */
#include "source/serve_known.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/cleanup.h"
#include "wire/page_digest.h"

enum { TARGET = 3, PAGES = 700 };
#define CHUNK (512 * CR_PAGE_SIZE)

static uint8_t page[CR_PAGE_SIZE];

/* Page 5 was sent as `page`. */
static void make(struct serve_known *ret, const struct shared_pages *written)
{
	size_t budget = 1 << 20;
	struct sentmap sent;
	struct cr_err err = {0};
	int fd;

	sentmap_init(&sent, &budget);
	struct sent_chunk *c = sentmap_chunk(&sent, 5 * CR_PAGE_SIZE, true);
	assert_non_null(c);
	XXH128_hash_t *digests = sentmap_digests(&sent, c);
	assert_non_null(digests);
	memset(page, 'p', sizeof(page));
	chunk_set(c->sent, 5);
	digests[5] = page_hash(page, TARGET, 5 * CR_PAGE_SIZE);
	assert_int_equal(serve_known_make(&sent, TARGET, PAGES, written, &fd, &err), 0);
	sentmap_done(&sent);
	assert_int_equal(serve_known_open(ret, fd, &err), 0);
	close(fd);
	assert_true(serve_known_same(ret, 5 * CR_PAGE_SIZE, page));
	assert_false(serve_known_same(ret, 6 * CR_PAGE_SIZE, page));
	assert_false(serve_known_same(ret, PAGES * CR_PAGE_SIZE, page));
	page[9] = 'q';
	assert_false(serve_known_same(ret, 5 * CR_PAGE_SIZE, page));
}

static bool is_clean(const struct serve_known *k, uint64_t at)
{
	uint64_t bits[8];

	serve_known_clean(k, at / 512 * CHUNK, bits);
	return bits[at % 512 / 64] >> at % 64 & 1;
}

static void test_nothing_is_told(void **state)
{
	struct serve_known k, none = {0};

	(void)state;
	make(&k, NULL);
	assert_false(serve_known_tells(&k) || serve_known_tells(&none));
	for (uint64_t i = 0; i < 2048; i++)
		assert_false(is_clean(&k, i));
	serve_known_done(&k);
}

/* Clean is what was said not to be written, and nothing else. */
static void told(size_t n)
{
	struct shared_pages written;
	struct serve_known k;
	struct cr_err err = {0};

	assert_int_equal(shared_pages_init(&written, n * CR_PAGE_SIZE, &err), 0);
	shared_pages_mark(&written, 5);
	shared_pages_mark(&written, 63);
	shared_pages_mark(&written, 520);
	make(&k, &written);
	assert_true(serve_known_tells(&k));
	for (uint64_t i = 0; i < 2048; i++)
		assert_int_equal(is_clean(&k, i),
				 i < PAGES && i < n && i != 5 && i != 63 && i != 520);
	serve_known_done(&k);
	shared_pages_done(&written);
}

static void test_told(void **state)
{
	(void)state;
	told(PAGES);
	told(PAGES - 1);
	told(640); /* whole words */
	told(1);
	told(PAGES + 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_nothing_is_told),
	    cmocka_unit_test(test_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
