#include "kernel/uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

/* 6.7 and older: names that the distribution's headers may lack. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#define FEATURE_WP_UNPOPULATED (1 << 13)
#define FEATURE_WP_ASYNC (1 << 15)

int uffd_create_flags(void)
{
	return O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY;
}

int uffd_enable_wp_async(int fd, struct cr_err *err)
{
	struct uffdio_api api = {
	    .api = UFFD_API,
	    .features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM |
			UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};

	if (ioctl(fd, UFFDIO_API, &api))
		return cr_err_sys(err,
				  "userfaultfd without asynchronous write protection (Linux 6.7)");
	return 0;
}

int uffd_track(int fd, uint64_t start, uint64_t end)
{
	struct uffdio_register reg = {
	    .range = {start, end - start},
	    .mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {.range = {start, end - start}, .mode = 0};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		return -errno;
	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}
