/* The flags of all mappings of a process, as one number that changes when any of them does.
 *
 * An madvise(2) or mlock(2) of a whole mapping changes no line of /proc/PID/maps; smaps shows it,
 * but walks all page tables for that, 15 ms for each GiB. A BPF iterator over mappings (task_vma;
 * Documentation/bpf/bpf_iterators.rst, 5.12, of one task 6.1) takes microseconds. What the bits
 * mean is not asked, smaps tells that: they are only compared. Left out is what userfaultfd sets
 * while we track memory; which bits these are a trial tells, which also shows that the rest can be
 * relied on. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

struct vmaview;

/* -ENOTSUP: not to be had here, or not to be believed; err says why. The result may be used by
 * processes forked since. */
int vmaview_new(struct vmaview **ret, struct cr_err *err) must_check;
void vmaview_free(struct vmaview *vv);
/* Of the main thread's address space. Never 0. */
int vmaview_digest(const struct vmaview *vv, pid_t pid, uint64_t *ret,
		   struct cr_err *err) must_check;
