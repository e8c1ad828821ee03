/* A userfaultfd of a shell's address space, held by this process alone.
 *
 *	int fd = uffd_shell_open(sh, UFFD_USER_MODE_ONLY, 0, err);	(the shell is not parked)
 *	ioctl(fd, UFFDIO_REGISTER, …);
 *	… UFFDIO_COPY into what is registered; the descriptor can be given to another process …
 *	close(fd);
 *
 * Nothing of it stays in the shell: the descriptor made there is fetched and closed. Closing the
 * last descriptor unregisters everything, and mappings that were told apart by it merge again; what
 * waits for a missing page then gets zeros.
 *
 * Registering: UFFDIO_COPY needs a mapping to be registered, in any mode. In MODE_WP alone, with
 * nothing ever protected, no access faults to it: nobody who touches the memory can be held up. In
 * MODE_MISSING everybody who touches a missing page waits for whoever serves the descriptor, agents
 * and system calls included.
 *
 * While registered, a mapping does not merge with a new neighbour, and pages placed into either
 * keep the two apart for good: whoever changes the layout closes the descriptor first, or registers
 * the neighbour before any page is placed into it. Children that a shell forks are not registered
 * (unless the features ask for events); what mremap(2) moves is not either. */
#pragma once
#include <stdint.h>
#include "dest/shells.h"

/* flags: of userfaultfd(2), besides O_CLOEXEC and O_NONBLOCK, which are always set: 0, for which
 * the shell needs CAP_SYS_PTRACE (it has it until its credentials are set), or UFFD_USER_MODE_ONLY,
 * where faults of system calls are not served. features: of UFFDIO_API; 0 gives
 * UFFDIO_COPY and UFFDIO_REGISTER. Returns the descriptor, or a negative errno with *err: KERNEL
 * where the kernel has or allows none. */
int uffd_shell_open(struct shell *sh, int flags, uint64_t features, struct cr_err *err) must_check;

/* One to place pages through by UFFDIO_COPY: private anonymous memory of some size is registered in
 * MODE_WP, as the layout was last applied. Left out is what a fault would give huge pages for:
 * UFFDIO_COPY places pages of 4 KiB only. Returns -1 where there is none to be had or nothing to
 * gain; placing by writing is then all there is. */
int uffd_shell_for_copies(struct shell *sh);
