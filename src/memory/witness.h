/* Tells whether pages of shared memory have been taken out of it (MADV_REMOVE, fallocate(2),
 * ftruncate(2)): they read as zeros from then on, and no page table has a mark of it.
 *
 * A mapping of our own shows them. The kernel clears the entries of a page in all page tables
 * before it takes it out, and nobody but us makes a new one in ours: faults there map one page
 * each, as it is registered with a userfaultfd. So a page whose entry is still there is the one
 * that was there when the entry was made. Others have to be looked at. */
#pragma once
#include <stdint.h>
#include "base/err.h"
#include "kernel/pagemap.h"

struct witness {
	uint8_t *map; /* NULL: none */
	uint64_t bytes;
	int uffd, pagemap;
};

#define WITNESS_NONE ((struct witness){.uffd = -1, .pagemap = -1})

/* fd: open for reading and writing; the mapping counts among those by which it can be written. Not
 * inherited by children. */
int witness_begin(struct witness *w, int fd, uint64_t bytes, struct cr_err *err) must_check;
void witness_done(struct witness *w);
/* Makes entries for those pages of [start, end), offsets of whole pages, that are there. To be done
 * before they are read: what is taken out after that shows. Where it fails, they show as well. */
void witness_see(const struct witness *w, uint64_t start, uint64_t end);
/* fn for each run of pages without an entry: extents of offsets. */
int witness_missing(const struct witness *w, pagemap_fn fn, void *arg,
		    struct cr_err *err) must_check;
