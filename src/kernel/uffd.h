/* userfaultfd(2) as a tracker of writes: asynchronous write protection, Linux 6.7.
 * Documentation/admin-guide/mm/userfaultfd.rst. */
#pragma once
#include <stdint.h>
#include "base/err.h"

/* Flags for userfaultfd(2) in the task: no privilege needed, and the kernel's own writes are
 * tracked all the same. */
int uffd_create_flags(void);
/* The handshake on a descriptor created by another task: WP_ASYNC and what belongs to it. */
int uffd_enable_wp_async(int fd, struct cr_err *err) must_check;
/* Track [start, end), inside one mapping or several, and let all in it read as written: registering
 * may merge mappings, and the merge drops what both knew. Returns 0, or a negative errno without
 * *err for ranges that cannot be tracked (EINVAL, EPERM, EBUSY) or are gone (ENOENT, ENOMEM). */
int uffd_track(int fd, uint64_t start, uint64_t end) must_check;
