/* userfaultfd(2) as a tracker of writes: asynchronous write protection, Linux 6.7.
 * Documentation/admin-guide/mm/userfaultfd.rst. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

/* Flags for userfaultfd(2) in the task: no privilege needed, and the kernel's own writes are
 * tracked all the same. */
int uffd_create_flags(void);
/* The handshake on a descriptor created by another task: WP_ASYNC and what belongs to it. */
int uffd_enable_wp_async(int fd, struct cr_err *err) must_check;
/* Track all mappings in [start, end), holes and what is tracked already may lie between; a mapping
 * that reaches out of it becomes two. Returns 0, or a negative errno without *err: EINVAL (also:
 * nothing is mapped there), EPERM and EBUSY if one of them cannot be tracked, and nothing is done
 * then. ioctl_userfaultfd(2), UFFDIO_REGISTER. */
int uffd_register(int fd, uint64_t start, uint64_t end) must_check;
/* Let all pages of [start, end) read as written. It stops at a mapping that is not tracked: ENOENT.
 */
int uffd_unprotect(int fd, uint64_t start, uint64_t end) must_check;
/* None of them does, until it is written; also those that are not there. */
int uffd_protect(int fd, uint64_t start, uint64_t end) must_check;

/* ---- missing pages, Linux 4.3; events 4.11; poison 6.6 ---- */

/* Features for UFFDIO_API: events for what changes the address space, and poison. Whoever asks for
 * them needs CAP_SYS_PTRACE for the events of forks. */
uint64_t uffd_missing_features(void);
/* Whoever touches a missing page in [start, end), one mapping, waits. */
int uffd_serve_missing(int fd, uint64_t start, uint64_t end, struct cr_err *err) must_check;
/* Put bytes of from to va, and wake who waits. Returns the bytes done, or a negative errno: -EAGAIN
 * (an event has to be read first), -EEXIST (there is a page already; nobody was woken), -ENOENT
 * (nothing is mapped), -ESRCH (the address space is gone). from NULL: zeros. */
int64_t uffd_put(int fd, uint64_t va, const void *from, uint64_t bytes) must_check;
/* Shared memory: whoever touches a page of [start, end) for which this mapping has no entry yet, be
 * it there or not, waits. Linux 5.14. */
int uffd_serve_shared(int fd, uint64_t start, uint64_t end, struct cr_err *err) must_check;
/* Let the page that is there show in this mapping, and wake who waits (unless quiet). Returns as
 * uffd_put(); -EFAULT: there is none. */
int64_t uffd_continue(int fd, uint64_t va, uint64_t bytes, bool quiet) must_check;
/* A userfaultfd of this process on [map, map + bytes), a mapping of shared memory: who touches a
 * page that is not there gets SIGBUS or EFAULT, and makes none. */
int uffd_guard(const void *map, uint64_t bytes, struct cr_err *err) must_check;
/* Whoever touches it gets SIGBUS. Returns as uffd_put(). */
int64_t uffd_poison(int fd, uint64_t va, uint64_t bytes) must_check;
/* Those who wait look again. */
void uffd_wake(int fd, uint64_t va, uint64_t bytes);
/* Is its address space gone? */
bool uffd_is_dead(int fd);
