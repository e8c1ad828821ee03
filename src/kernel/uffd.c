#include "kernel/uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/background.h"

/* 6.7 and older: names that the distribution's headers may lack. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
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

int uffd_register(int fd, uint64_t start, uint64_t end)
{
	struct uffdio_register reg = {
	    .range = {start, end - start},
	    .mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

static int write_protect(int fd, uint64_t start, uint64_t end, uint64_t mode)
{
	struct uffdio_writeprotect wp = {.range = {start, end - start}, .mode = mode};
	bool is_long = end - start > BACKGROUND_LONG_BYTES;

	if (is_long)
		background_pause();
	int r = ioctl(fd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
	if (is_long)
		background_resume();
	return r;
}

int uffd_unprotect(int fd, uint64_t start, uint64_t end)
{
	return write_protect(fd, start, end, 0);
}

int uffd_protect(int fd, uint64_t start, uint64_t end)
{
	return write_protect(fd, start, end, UFFDIO_WRITEPROTECT_MODE_WP);
}

/* ---- missing pages ---- */

uint64_t uffd_missing_features(void)
{
	return UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
	       UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_POISON;
}

int uffd_serve_missing(int fd, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct uffdio_register reg = {
	    .range = {start, end - start},
	    .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		return cr_err_sys(err, "userfaultfd on %#llx-%#llx", (unsigned long long)start,
				  (unsigned long long)end);
	return 0;
}

int uffd_serve_shared(int fd, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct uffdio_register reg = {
	    .range = {start, end - start},
	    .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		return cr_err_sys(err, "userfaultfd on %#llx-%#llx", (unsigned long long)start,
				  (unsigned long long)end);
	return 0;
}

int uffd_guard(const void *map, uint64_t bytes, struct cr_err *err)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS};
	struct uffdio_register reg = {
	    .range = {(uintptr_t)map, bytes},
	    .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	_cleanup_fd_ int fd = (int)syscall(SYS_userfaultfd, uffd_create_flags());

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		return cr_err_sys(err, "userfaultfd on shared memory");
	return take_fd(&fd);
}

/* What an ioctl did before it failed counts. */
static int64_t outcome(int r, int64_t done)
{
	if (!r || (errno == EAGAIN && done > 0))
		return done;
	return -errno;
}

int64_t uffd_put(int fd, uint64_t va, const void *from, uint64_t bytes)
{
	if (!from) {
		struct uffdio_zeropage z = {.range = {va, bytes}};
		int r = ioctl(fd, UFFDIO_ZEROPAGE, &z);

		return outcome(r, z.zeropage);
	}
	struct uffdio_copy c = {.dst = va, .src = (uintptr_t)from, .len = bytes};
	int r = ioctl(fd, UFFDIO_COPY, &c);

	return outcome(r, c.copy);
}

int64_t uffd_continue(int fd, uint64_t va, uint64_t bytes, bool quiet)
{
	struct uffdio_continue c = {.range = {va, bytes},
				    .mode = quiet ? UFFDIO_CONTINUE_MODE_DONTWAKE : 0};
	int r = ioctl(fd, UFFDIO_CONTINUE, &c);

	return outcome(r, c.mapped);
}

int64_t uffd_poison(int fd, uint64_t va, uint64_t bytes)
{
	struct uffdio_poison p = {.range = {va, bytes}};
	int r = ioctl(fd, UFFDIO_POISON, &p);

	return outcome(r, p.updated);
}

void uffd_wake(int fd, uint64_t va, uint64_t bytes)
{
	struct uffdio_range w = {va, bytes};

	/* fails for nonsense only */
	if (ioctl(fd, UFFDIO_WAKE, &w))
		return;
}

bool uffd_is_dead(int fd)
{
	/* never mapped, proc_sys_vm(5) mmap_min_addr: ENOENT as long as there is an address space
	 */
	return uffd_put(fd, 0x1000, NULL, 4096) == -ESRCH;
}
