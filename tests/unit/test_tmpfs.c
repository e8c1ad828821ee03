/* Files of a tmpfs, and whether that makes huge pages by itself. */
#include "kernel/tmpfs.h"

#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>
#include <cmocka.h>

/* What is said of a file of one that is mounted with these options; -1: it cannot be. */
static int says_of(const char *options)
{
	char dir[] = "/tmp/test-tmpfs.XXXXXX";
	int says = -1;

	assert_non_null(mkdtemp(dir));
	if (!mount("none", dir, "tmpfs", 0, options)) {
		int fd = open(dir, O_TMPFILE | O_RDWR, 0600);

		assert_true(fd >= 0 && tmpfs_has(fd));
		says = tmpfs_has_small(fd);
		close(fd);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return says;
}

static void test_small(void **state)
{
	(void)state;
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		skip();
	assert_int_equal(says_of("size=1m"), 1);
	/* a kernel without huge pages has no such option */
	assert_int_not_equal(says_of("huge=within_size"), 1);
}

/* Its mount shows nowhere. */
static void test_memfd(void **state)
{
	int fd = memfd_create("x", 0);

	(void)state;
	assert_true(tmpfs_has(fd) && !tmpfs_has_small(fd));
	close(fd);
}

static void test_other(void **state)
{
	int fd = open("/proc/self/stat", O_RDONLY);

	(void)state;
	assert_false(tmpfs_has(fd) || tmpfs_has_small(fd));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_other), cmocka_unit_test(test_memfd),
	    cmocka_unit_test(test_small), /* last: it leaves the namespace */
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
