/* Which pages may stay behind at the source and be fetched later: the same rules at both ends, so
 * that they agree. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "model/tree.h"

/* Less is compared and sent faster than it is asked for. */
enum { LAZY_OBJECT_MIN_BYTES = 1 << 20 };

/* May pages of it be missing while its tasks run? Locked memory may not: its owner wants no page
 * fault. What is wiped at a fork may not either: the fork would not wipe what is not there yet.
 * Huge pages stay behind as a whole or not at all, and only where one is reserved for each. */
static inline bool vma_is_lazy(const struct vma *v)
{
	return v->kind == VMA_ANON && (!v->page_bytes || v->huge_stays) &&
	       !(v->flags & (VMA_F_LOCKED | VMA_F_WIPEONFORK));
}
enum { LAZY_HUGE_PAGES = 512 /* of 4 KiB, in one */ };
#define LAZY_HUGE_BYTES (LAZY_HUGE_PAGES * CR_PAGE_SIZE)

/* May all of an object be missing while its tasks run? Shared anonymous memory to which nothing but
 * its mappings leads, by which whoever touches it can be made to wait; also of huge pages, of 2
 * MiB. */
bool object_is_lazy(const struct tree *t, uint32_t object);

/* Pages that are always sent: those that the kernel writes or reads where no fault can be served
 * (rseq areas; what the exit of a thread touches: its robust list, and the mutexes on it), and,
 * where registers are known, those that the threads need first; of a huge page all. Ascending, each
 * once; the caller frees *ret. -ENOMEM. */
int lazy_eager_pages(const struct process *p, uint64_t **ret, size_t *n);
bool lazy_is_eager(const uint64_t *pages, size_t n, uint64_t va);
