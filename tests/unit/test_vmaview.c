/* What BPF says of mappings' flags: it changes with each of them, and not with what tracking sets.
 */
#include "kernel/vmaview.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "kernel/uffd.h"

enum { PAGES = 64, MAPPINGS = 2000 };

static struct vmaview *vv;

static int setup(void **state)
{
	struct cr_err err = {0};

	(void)state;
	if (!vmaview_new(&vv, &err))
		return 0;
	print_message("%s\n", err.msg);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	vmaview_free(vv);
	return 0;
}

static uint64_t digest_of(pid_t pid)
{
	struct cr_err err = {0};
	uint64_t d = 0;

	if (vmaview_digest(vv, pid, &d, &err))
		fail_msg("%s", err.msg);
	assert_true(d);
	return d;
}

static char *mapping(void)
{
	char *area = mmap(NULL, (PAGES + 2) * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(area != MAP_FAILED);
	assert_int_equal(mprotect(area + 4096, PAGES * 4096, PROT_READ | PROT_WRITE), 0);
	return area + 4096;
}

static void every_flag_shows(void **state)
{
	static const int advice[] = {
	    MADV_DONTFORK,   MADV_DOFORK,     MADV_DONTDUMP,   MADV_DODUMP,
	    MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_SEQUENTIAL, MADV_RANDOM,
	    MADV_NORMAL,     MADV_HUGEPAGE,   MADV_NOHUGEPAGE,
	};
	char *p = mapping();

	(void)state;
	if (!vv)
		skip();
	uint64_t was = digest_of(getpid());
	assert_int_equal(digest_of(getpid()), was);
	for (size_t i = 0; i < sizeof(advice) / sizeof(advice[0]); i++) {
		assert_int_equal(madvise(p, PAGES * 4096, advice[i]), 0);
		uint64_t now = digest_of(getpid());
		assert_int_not_equal(now, was);
		was = now;
	}
	assert_int_equal(mlock(p, PAGES * 4096), 0);
	assert_int_not_equal(digest_of(getpid()), was);
	assert_int_equal(munlock(p, PAGES * 4096), 0);
	assert_int_equal(digest_of(getpid()), was);
	memset(p, 1, PAGES * 4096); /* pages are not flags */
	assert_int_equal(digest_of(getpid()), was);
}

static void tracking_does_not_show(void **state)
{
	struct cr_err err = {0};
	char *p = mapping();

	(void)state;
	if (!vv)
		skip();
	uint64_t was = digest_of(getpid());
	int uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	assert_true(uffd >= 0);
	assert_int_equal(uffd_enable_wp_async(uffd, &err), 0);
	assert_int_equal(uffd_register(uffd, (uintptr_t)p, (uintptr_t)p + PAGES * 4096), 0);
	assert_int_equal(digest_of(getpid()), was);
	close(uffd);
	assert_int_equal(digest_of(getpid()), was);
}

/* More than one read of the iterator gives. */
static void of_another_process_with_many(void **state)
{
	static char *maps[MAPPINGS];
	int go[2], done[2];
	char c;

	(void)state;
	if (!vv)
		skip();
	assert_int_equal(pipe(go), 0);
	assert_int_equal(pipe(done), 0);
	for (size_t i = 0; i < MAPPINGS; i++)
		maps[i] = mapping();
	pid_t pid = fork();
	if (!pid) {
		while (read(go[0], &c, 1) == 1 && c != 'q') {
			madvise(maps[c == 'f' ? 0 : MAPPINGS - 1], PAGES * 4096, MADV_DONTDUMP);
			if (write(done[1], &c, 1) != 1)
				break;
		}
		_exit(0);
	}
	uint64_t was = digest_of(pid);
	for (const char *which = "fl"; *which; which++) {
		assert_int_equal(write(go[1], which, 1), 1);
		assert_int_equal(read(done[0], &c, 1), 1);
		uint64_t now = digest_of(pid);
		assert_int_not_equal(now, was);
		was = now;
	}
	assert_int_equal(write(go[1], "q", 1), 1);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_flag_shows),
	    cmocka_unit_test(tracking_does_not_show),
	    cmocka_unit_test(of_another_process_with_many),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
