/* Whoever writes to a file in memory other than by a mapping that is there takes its mark away, and
 * whoever maps it changes the time of its last access: each way of doing so. */
#include "kernel/filemark.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/xattr.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/cleanup.h"

enum { PAGE = 4096, PAGES = 64 };

static struct cr_err err;
static bool works;

static int set_up(void **state)
{
	(void)state;
	works = !filemark_check(&err);
	if (!works)
		print_message("%s\n", err.msg);
	return 0;
}

/* ---- files ---- */

static int a_memfd(void)
{
	return memfd_create("marked", MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

static int a_removed_one(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/shm/test_filemark.%d", getpid());
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	unlink(path);
	return fd;
}

static int one_never_named(void)
{
	return open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

static int (*const makers[])(void) = {a_memfd, a_removed_one, one_never_named};

static int again(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* ---- ways to write ---- */

static char page_of_x[PAGE] __attribute__((aligned(PAGE)));
static char *map; /* of all of it */

static int in_child(int (*fn)(int), int fd)
{
	pid_t child = fork();
	int st;

	assert_true(child >= 0);
	if (!child)
		_exit(fn(fd) ? 1 : 0);
	assert_int_equal(waitpid(child, &st, 0), child);
	return st;
}

static int by_write(int fd)
{
	return lseek(fd, 100, SEEK_SET) != 100 || write(fd, "x", 1) != 1;
}

static int by_pwrite(int fd)
{
	return pwrite(fd, page_of_x, PAGE, PAGE) != PAGE;
}

static int by_vector(int fd)
{
	const struct iovec v[2] = {{page_of_x, 10}, {page_of_x, 20}};

	return pwritev(fd, v, 2, 5) != 30;
}

static int by_another_open(int fd)
{
	_cleanup_fd_ int other = again(fd, O_WRONLY);

	return pwrite(other, "x", 1, 0) != 1;
}

static int by_direct_io(int fd)
{
	_cleanup_fd_ int other = again(fd, O_WRONLY | O_DIRECT);

	/* tmpfs has that from 6.6 on */
	return other < 0 ? by_write(fd) : pwrite(other, page_of_x, PAGE, 0) != PAGE;
}

static int as_nobody(int fd)
{
	return setresuid(65534, 65534, 65534) || pwrite(fd, "x", 1, 0) != 1;
}

static int by_somebody_else(int fd)
{
	return in_child(as_nobody, fd);
}

static int by_splice(int fd)
{
	loff_t at = PAGE;
	int p[2];

	if (pipe(p) || write(p[1], page_of_x, PAGE) != PAGE)
		return 1;
	ssize_t n = splice(p[0], NULL, fd, &at, PAGE, SPLICE_F_MOVE);
	close(p[0]);
	close(p[1]);
	return n != PAGE;
}

static int by_sendfile(int fd)
{
	_cleanup_fd_ int from = a_memfd();

	return pwrite(from, page_of_x, PAGE, 0) != PAGE || lseek(fd, 0, SEEK_SET) ||
	       sendfile(fd, from, &(off_t){0}, PAGE) != PAGE;
}

static int by_aio(int fd)
{
	struct iocb cb = {.aio_fildes = (uint32_t)fd,
			  .aio_lio_opcode = IOCB_CMD_PWRITE,
			  .aio_buf = (uintptr_t)page_of_x,
			  .aio_nbytes = PAGE};
	struct iocb *list = &cb;
	aio_context_t ctx = 0;

	if (syscall(SYS_io_setup, 1, &ctx))
		return errno == ENOSYS ? by_write(fd) : 1;
	long n = syscall(SYS_io_submit, ctx, 1, &list);
	syscall(SYS_io_destroy, ctx);
	return n != 1;
}

/* Half of it can be read. */
static int by_a_write_that_fails(int fd)
{
	char *p = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(p + PAGE, PAGE);
	ssize_t n = pwrite(fd, p, 2 * PAGE, 1);
	munmap(p, PAGE);
	return n <= 0 || n >= 2 * PAGE;
}

static int by_a_hole(int fd)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE);
}

static int by_a_small_hole(int fd)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10, 1);
}

static int by_cutting(int fd)
{
	return ftruncate(fd, PAGES * PAGE - 10) || ftruncate(fd, PAGES * PAGE);
}

static int by_open(int fd)
{
	_cleanup_fd_ int other = again(fd, O_RDWR | O_TRUNC);

	return other < 0 || ftruncate(fd, PAGES * PAGE);
}

static int by_removing(int fd)
{
	(void)fd;
	return madvise(map, PAGE, MADV_REMOVE);
}

static int (*const writers[])(int) = {
    by_write,         by_pwrite,       by_vector,   by_another_open, by_direct_io,
    by_somebody_else, by_splice,       by_sendfile, by_aio,          by_a_write_that_fails,
    by_a_hole,        by_a_small_hole, by_cutting,  by_open,         by_removing,
};

/* ---- what is none ---- */

static int by_the_mapping(int fd)
{
	(void)fd;
	memset(map, 7, PAGES * PAGE);
	return 0;
}

static int by_dropping(int fd)
{
	return madvise(map, PAGES * PAGE, MADV_DONTNEED) || by_the_mapping(fd);
}

static int by_a_child(int fd)
{
	return in_child(by_the_mapping, fd);
}

static int by_reading(int fd)
{
	char c;

	return pread(fd, &c, 1, 0) != 1 || lseek(fd, 0, SEEK_DATA) < 0;
}

static int (*const others[])(int) = {by_the_mapping, by_dropping, by_a_child, by_reading};

/* ---- tests ---- */

static int begin(size_t maker)
{
	int fd = makers[maker]();
	struct filemark m;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, PAGES * PAGE), 0);
	map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(map != MAP_FAILED);
	memset(map, 1, PAGES * PAGE);
	assert_int_equal(filemark_look(fd, &m), 0);
	assert_false(m.kept);
	return fd;
}

static void end(int fd)
{
	munmap(map, PAGES * PAGE);
	close(fd);
}

static bool kept(int fd)
{
	struct filemark m;

	assert_int_equal(filemark_look(fd, &m), 0);
	return m.kept;
}

static void every_write_takes_it_away(void **state)
{
	(void)state;
	if (!works)
		skip();
	for (size_t k = 0; k < ARRAY_SIZE(makers); k++) {
		int fd = begin(k);

		for (size_t i = 0; i < ARRAY_SIZE(writers); i++) {
			assert_true(kept(fd));
			assert_int_equal(writers[i](fd), 0);
			if (kept(fd))
				fail_msg("file %zu, writer %zu", k, i);
		}
		end(fd);
	}
}

static void nothing_else_does(void **state)
{
	(void)state;
	if (!works)
		skip();
	for (size_t k = 0; k < ARRAY_SIZE(makers); k++) {
		int fd = begin(k);

		for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
			assert_int_equal(others[i](fd), 0);
			if (!kept(fd))
				fail_msg("file %zu, other %zu", k, i);
		}
		end(fd);
	}
}

/* Until it may change again: a tick of the clock. */
static void wait_until_accesses_show(int fd)
{
	struct filemark m = {0};

	for (int i = 0; !m.accesses_show; i++) {
		assert_true(i < 1000);
		assert_int_equal(filemark_look(fd, &m), 0);
		clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

static int map_it(int fd)
{
	void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p == MAP_FAILED || munmap(p, PAGE);
}

static int map_it_in_child(int fd)
{
	return in_child(map_it, fd);
}

static void every_mapping_shows(void **state)
{
	static int (*const mappers[])(int) = {map_it, map_it_in_child, map_it, by_reading};

	(void)state;
	if (!works)
		skip();
	for (size_t k = 0; k < ARRAY_SIZE(makers); k++) {
		int fd = begin(k);

		for (size_t i = 0; i < ARRAY_SIZE(mappers); i++) {
			struct filemark was, now;

			wait_until_accesses_show(fd);
			assert_int_equal(filemark_look(fd, &was), 0);
			by_the_mapping(fd);
			assert_int_equal(filemark_look(fd, &now), 0);
			assert_true(was.accesses_show && was.accessed_ns == now.accessed_ns);
			assert_int_equal(mappers[i](fd), 0);
			assert_int_equal(filemark_look(fd, &now), 0);
			if (was.accessed_ns == now.accessed_ns)
				fail_msg("file %zu, mapper %zu", k, i);
		}
		end(fd);
	}
}

static void a_file_that_forgets_accesses_is_told(void **state)
{
	int flags = 0, noatime = 0x80; /* FS_NOATIME_FL, ioctl_iflags(2) */
	struct filemark m;

	(void)state;
	if (!works)
		skip();
	int fd = begin(0);
	wait_until_accesses_show(fd);
	if (!ioctl(fd, _IOR('f', 1, long), &flags)) {
		assert_int_equal(ioctl(fd, _IOW('f', 2, long), &noatime), 0);
		assert_int_equal(filemark_look(fd, &m), 0);
		assert_false(m.accesses_show);
	}
	end(fd);
}

static void it_leaves_nothing_and_takes_nothing(void **state)
{
	const struct vfs_cap_data theirs = {.magic_etc = VFS_CAP_REVISION_2};
	struct filemark m;
	char names[64];

	(void)state;
	if (!works)
		skip();
	int fd = begin(0);
	filemark_remove(fd);
	assert_int_equal(flistxattr(fd, names, sizeof(names)), 0);
	filemark_remove(fd);
	assert_int_equal(fsetxattr(fd, XATTR_NAME_CAPS, &theirs, XATTR_CAPS_SZ_2, 0), 0);
	assert_int_equal(filemark_look(fd, &m), -EBUSY);
	filemark_remove(fd);
	assert_true(flistxattr(fd, names, sizeof(names)) > 0);
	/* nor does it keep anybody from sealing */
	munmap(map, PAGES * PAGE);
	assert_int_equal(fremovexattr(fd, XATTR_NAME_CAPS), 0);
	assert_int_equal(filemark_look(fd, &m), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
	assert_true(kept(fd));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_write_takes_it_away),
	    cmocka_unit_test(nothing_else_does),
	    cmocka_unit_test(every_mapping_shows),
	    cmocka_unit_test(a_file_that_forgets_accesses_is_told),
	    cmocka_unit_test(it_leaves_nothing_and_takes_nothing),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
