#include "dest/uffd_shell.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include "base/log.h"
#include "kernel/thp.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1 /* 5.11 */
#endif

enum { LEAST_BYTES = 64 * 4096 }; /* registering costs as much as it saves for some 20 pages */

int uffd_shell_open(struct shell *sh, int flags, uint64_t features, struct cr_err *err)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	struct rtask *rt = shell_leader(sh);
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, sh->pid, 0);

	if (pidfd < 0)
		return cr_err_sys(err, "opening a pidfd of shell %d", sh->pid);
	long theirs = rcall_now(rt, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
	if (theirs < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-theirs, "userfaultfd in shell %d: %s",
				  sh->pid, strerror((int)-theirs));
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)theirs, 0);
	int code = errno;
	/* also on failure: it would be a descriptor that the source's task does not have */
	rqueue(rt, "close", SYS_close, theirs);
	int r = rtask_run(rt, err);
	if (r)
		return r;
	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, code,
				  "fetching a userfaultfd of shell %d: %s", sh->pid,
				  strerror(code));
	if (ioctl(fd, UFFDIO_API, &api))
		return cr_err_sys(err, "userfaultfd of shell %d: features %#llx", sh->pid,
				  (unsigned long long)features);
	return take_fd(&fd);
}

static bool takes_copies(const struct vma *v, bool always_huge)
{
	if (v->kind != VMA_ANON || v->page_bytes || v->end - v->start < LEAST_BYTES ||
	    v->flags & VMA_F_HUGEPAGE)
		return false;
	return v->flags & VMA_F_NOHUGEPAGE || !always_huge;
}

static size_t register_for_copies(int fd, const struct shell *sh)
{
	bool always_huge = thp_always();
	size_t n = 0;

	for (size_t i = 0; i < sh->n_vmas; i++) {
		const struct vma *v = &sh->vmas[i];
		struct uffdio_register reg = {
		    .range = {v->start, v->end - v->start},
		    .mode = UFFDIO_REGISTER_MODE_WP,
		};

		n += takes_copies(v, always_huge) && !ioctl(fd, UFFDIO_REGISTER, &reg);
	}
	return n;
}

int uffd_shell_for_copies(struct shell *sh)
{
	struct cr_err err = {0};
	_cleanup_fd_ int fd = uffd_shell_open(sh, UFFD_USER_MODE_ONLY, 0, &err);

	if (fd < 0)
		log_debug("placing without userfaultfd: %s", err.msg);
	return fd >= 0 && register_for_copies(fd, sh) ? take_fd(&fd) : -1;
}
