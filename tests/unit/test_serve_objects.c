/* Shared memory that stays behind, found again by whoever serves it in a dead worker's place. */
#include "source/serve_objects.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/cleanup.h"

enum { PAGES = 8 };

static struct journal_object *object_of(struct journal *j, uint32_t index, const uint8_t *at,
					size_t pages)
{
	struct journal_object *o = vec_push(&j->objects);

	assert_non_null(o);
	*o = (struct journal_object){.index = index,
				     .pid = getpid(),
				     .start = (uintptr_t)at,
				     .end = (uintptr_t)at + pages * CR_PAGE_SIZE};
	return o;
}

static uint8_t *memory_of(uint8_t value)
{
	uint8_t *p = mmap(NULL, PAGES * CR_PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	memset(p, value, PAGES * CR_PAGE_SIZE);
	return p;
}

static void has(const struct serve_files *f, size_t i, uint32_t index, uint8_t value)
{
	uint8_t got = 0;

	assert_int_equal(f->list.v[i].id, LAZY_OBJECT + (pid_t)index);
	assert_int_equal(pread(f->list.v[i].fd, &got, 1, CR_PAGE_SIZE), 1);
	assert_int_equal(got, value);
}

/* As it was noted; a part of a mapping; and what are two mappings by now. */
static void test_other_mappings(void **state)
{
	(void)state;
	struct serve_files f = {0};
	struct journal j = {0};
	struct cr_err err = {0};
	uint8_t *same = memory_of(1), *merged = memory_of(2), *split = memory_of(3);

	object_of(&j, 0, same, PAGES);
	object_of(&j, 7, merged + CR_PAGE_SIZE, 2);
	object_of(&j, 9, split, PAGES);
	assert_int_equal(mprotect(split + 4 * CR_PAGE_SIZE, CR_PAGE_SIZE, PROT_READ), 0);
	if (serve_files_open(&f, &j, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(f.list.n, 3);
	has(&f, 0, 0, 1);
	has(&f, 1, 7, 2);
	has(&f, 2, 9, 3);
	serve_files_done(&f);
	munmap(same, PAGES * CR_PAGE_SIZE);
	munmap(merged, PAGES * CR_PAGE_SIZE);
	munmap(split, PAGES * CR_PAGE_SIZE);
	vec_done(&j.objects);
}

static void test_gone(void **state)
{
	(void)state;
	struct serve_files f = {0};
	struct journal j = {0};
	struct cr_err err = {0};
	uint8_t *p = memory_of(1);

	object_of(&j, 0, p, PAGES);
	munmap(p, PAGES * CR_PAGE_SIZE);
	assert_int_equal(serve_files_open(&f, &j, &err), -ENOENT);
	serve_files_done(&f);
	vec_done(&j.objects);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_other_mappings),
	    cmocka_unit_test(test_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
