#include "kernel/filemark.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/xattr.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include "base/clock.h"

static const char name[] = XATTR_NAME_CAPS;

/* No capability: the kernel leaves out those that it does not know. By this one we know it. */
static const struct vfs_cap_data value = {
    .magic_etc = VFS_CAP_REVISION_2,
    .data = {{0}, {.inheritable = 1u << 31}},
};

bool filemark_is(const char *attribute, const void *there, size_t len)
{
	return !strcmp(attribute, name) && len == XATTR_CAPS_SZ_2 && !memcmp(there, &value, len);
}

/* 1: the mark is there, 0: nothing is. */
static int look(int fd)
{
	uint8_t there[XATTR_CAPS_SZ_3 + 1];
	ssize_t n = fgetxattr(fd, name, there, sizeof(there));

	if (n < 0)
		return errno == ENODATA ? 0 : errno == ERANGE ? -EBUSY : -errno;
	return filemark_is(name, there, (size_t)n) ? 1 : -EBUSY;
}

static int put(int fd)
{
	return fsetxattr(fd, name, &value, XATTR_CAPS_SZ_2, 0) ? -errno : 0;
}

static uint64_t ns_of(struct timespec t)
{
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* ioctl_iflags(2); of tmpfs 6.6, before that it has no such flag. */
static bool forgets_accesses(int fd, const struct statvfs *vfs)
{
	int flags = 0;

	return vfs->f_flag & ST_NOATIME ||
	       (!ioctl(fd, FS_IOC_GETFLAGS, &flags) && flags & FS_NOATIME_FL);
}

/* The clock first: what comes later is no earlier by it, and so another time than an earlier one
 * (times of files are of this clock, or somewhat ahead of it). */
static int look_at_times(int fd, struct filemark *ret)
{
	uint64_t now = clock_ns(CLOCK_REALTIME_COARSE);
	struct statvfs vfs;
	struct stat st;

	if (fstat(fd, &st) || fstatvfs(fd, &vfs))
		return -errno;
	ret->accessed_ns = ns_of(st.st_atim);
	ret->accesses_show =
	    ret->accessed_ns < now && !forgets_accesses(fd, &vfs) &&
	    (!(vfs.f_flag & ST_RELATIME) || ns_of(st.st_mtim) >= ret->accessed_ns ||
	     ns_of(st.st_ctim) >= ret->accessed_ns);
	return 0;
}

int filemark_look(int fd, struct filemark *ret)
{
	int there = look(fd);
	int r = there ? there : put(fd);

	if (r < 0)
		return r;
	ret->kept = there;
	r = look_at_times(fd, ret);
	if (!r && !ret->accesses_show && there) { /* the change is the later one again */
		r = put(fd);
		if (!r)
			r = look_at_times(fd, ret);
	}
	return r;
}

void filemark_remove(int fd)
{
	if (look(fd) == 1 && fremovexattr(fd, name))
		return; /* somebody has just written */
}

/* ---- is it true? ---- */

enum { PAGE = 4096 };

static int disbelieve(const char *what, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "%s", what);
}

static bool is_kept(int fd)
{
	struct filemark m;

	return !filemark_look(fd, &m) && m.kept;
}

static int try_writes(int fd, volatile char *page, struct cr_err *err)
{
	struct filemark m;

	if (filemark_look(fd, &m))
		return disbelieve("a memfd cannot be marked", err);
	page[0] = 1;
	if (!is_kept(fd))
		return disbelieve("the mark of a memfd does not last", err);
	if (pwrite(fd, "x", 1, PAGE) != 1 || is_kept(fd) ||
	    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1, 1) || is_kept(fd) ||
	    ftruncate(fd, 2 * PAGE - 1) || is_kept(fd))
		return disbelieve("writing to a memfd does not show", err);
	return 0;
}

static int try_access(int fd, struct cr_err *err)
{
	const struct timespec long_ago[2] = {{.tv_sec = 1}, {.tv_nsec = UTIME_OMIT}};
	struct filemark was = {0}, now = {0};

	if (futimens(fd, long_ago))
		return cr_err_sys(err, "times of a memfd");
	int r = filemark_look(fd, &was);
	void *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return cr_err_sys(err, "mapping a memfd");
	munmap(p, PAGE);
	if (!r)
		r = filemark_look(fd, &now);
	if (r || !was.accesses_show || was.accessed_ns == now.accessed_ns)
		return disbelieve("mapping a memfd does not show", err);
	return 0;
}

int filemark_check(struct cr_err *err)
{
	_cleanup_fd_ int fd = memfd_create("mark", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)2 * PAGE))
		return cr_err_sys(err, "memfd_create");
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return cr_err_sys(err, "mapping a memfd");
	int r = try_writes(fd, page, err);
	munmap(page, PAGE);
	return r ? r : try_access(fd, err);
}
