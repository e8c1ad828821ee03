/* PAGEMAP_SCAN against memory of our own: every page once, whatever the number of extents. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kernel/pagemap.h"
#include "kernel/uffd.h"

enum { PAGES = 40000 };

struct seen {
	uint64_t last, pages, start, end;
	bool overlap;
};

static int on_extent(const struct page_extent *e, void *arg, struct cr_err *err)
{
	struct seen *s = arg;
	uint64_t from = e->start > s->start ? e->start : s->start;
	uint64_t to = e->end < s->end ? e->end : s->end;

	(void)err;
	if (e->start < s->last)
		s->overlap = true;
	s->last = e->end;
	if (from < to)
		s->pages += (to - from) / 4096;
	return 0;
}

static void walk(int fd, const struct pagemap_query *q, struct seen *s)
{
	struct cr_err err = {0};

	s->last = s->pages = 0;
	s->overlap = false;
	assert_int_equal(pagemap_walk(fd, q, on_extent, s, &err), 0);
	assert_false(s->overlap);
}

/* More extents than fit into one call, with and without protecting, and over all of the memory. */
static void test_every_page_once(void **state)
{
	struct cr_err err = {0};
	int uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());

	(void)state;
	if (uffd < 0 || uffd_enable_wp_async(uffd, &err)) {
		close(uffd);
		skip();
	}
	char *p =
	    mmap(NULL, PAGES * 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	madvise(p, PAGES * 4096ul, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < PAGES; i++)
		p[i * 4096] = 1;
	uint64_t start = (uint64_t)p, end = start + PAGES * 4096ul;
	struct seen s = {.start = start, .end = end};
	assert_int_equal(uffd_register(uffd, start, end), 0);
	int fd = pagemap_open(getpid(), &err);
	assert_true(fd >= 0);
	struct pagemap_query written = {.start = 4096,
					.end = PAGEMAP_TOP,
					.mask = PAGE_CAT_WRITTEN,
					.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED,
					.ret = PAGE_CAT_ALL,
					.protect = true};
	walk(fd, &written, &s);
	assert_int_equal(s.pages, PAGES);
	for (size_t i = 0; i < PAGES; i += 2)
		p[i * 4096] = 2;
	struct pagemap_query all = {.start = start,
				    .end = end,
				    .ret = PAGE_CAT_ALL,
				    .anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};
	walk(fd, &all, &s);
	assert_int_equal(s.pages, PAGES);
	all.split = start + PAGES / 2 * 4096ul;
	walk(fd, &all, &s);
	assert_int_equal(s.pages, PAGES);
	struct pagemap_query fast = {
	    .start = 4096, .end = PAGEMAP_TOP, .mask = PAGE_CAT_WRITTEN, .ret = PAGE_CAT_WRITTEN};
	walk(fd, &fast, &s);
	assert_int_equal(s.pages, PAGES / 2);
	/* by two threads: in halves; all by the other, which has no room for so many; past the end
	 */
	const uint64_t splits[] = {start + PAGES / 2 * 4096ul, start + 4096,
				   start + PAGES * 4096ul};
	for (size_t i = 0; i < sizeof(splits) / sizeof(*splits); i++) {
		fast.split = splits[i];
		walk(fd, &fast, &s);
		assert_int_equal(s.pages, PAGES / 2);
	}
	walk(fd, &written, &s);
	assert_int_equal(s.pages, PAGES / 2);
	walk(fd, &written, &s);
	assert_int_equal(s.pages, 0);
	munmap(p, PAGES * 4096ul);
	close(fd);
	close(uffd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_every_page_once),
	};

	return cmocka_run_group_tests_name("pagemap", tests, NULL, NULL);
}
