/* PAGEMAP_SCAN on /proc/PID/pagemap: which pages are there, which were written since.
 * Documentation/admin-guide/mm/pagemap.rst; Linux 6.7. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

enum page_category {
	PAGE_CAT_WPALLOWED = 1 << 0,
	PAGE_CAT_WRITTEN = 1 << 1,
	PAGE_CAT_FILE = 1 << 2,
	PAGE_CAT_PRESENT = 1 << 3,
	PAGE_CAT_SWAPPED = 1 << 4,
	PAGE_CAT_PFNZERO = 1 << 5,
	PAGE_CAT_HUGE = 1 << 6,
	PAGE_CAT_SOFT_DIRTY = 1 << 7,
	PAGE_CAT_GUARD = 1 << 8, /* 6.15 */
	PAGE_CAT_ALL = (1 << 9) - 1,
};

struct page_extent {
	uint64_t start, end, categories;
};

struct pagemap_query {
	uint64_t start, end;
	uint64_t inverted, mask, anyof, ret; /* enum page_category */
	bool protect; /* write-protect again what matches: only ranges registered by us */
	/* Within (start, end): what lies behind is scanned by a thread of its own at the same
	 * time, its first thousands of extents at least. Not with protect. */
	uint64_t split;
};

/* Less than this is not worth a thread. */
#define PAGEMAP_SPLIT_BYTES (256ull << 20)

/* Where addresses of user memory end: a scan beyond is EFAULT. */
#define PAGEMAP_TOP 0x7ffffffff000ull

int pagemap_open(pid_t pid, struct cr_err *err) must_check;
/* One pass of the kernel: fills at most n extents, returns how many; *at is where to go on, q->end
 * when done. -ESRCH when the address space is gone (exec, exit). */
ssize_t pagemap_scan(int fd, const struct pagemap_query *q, uint64_t *at, struct page_extent *v,
		     size_t n, struct cr_err *err) must_check;

typedef int (*pagemap_fn)(const struct page_extent *e, void *arg, struct cr_err *err);
/* All extents, in address order, fn in the caller's thread; stops at the first error of fn. */
int pagemap_walk(int fd, const struct pagemap_query *q, pagemap_fn fn, void *arg,
		 struct cr_err *err) must_check;

/* The entry of one page, proc_pid_pagemap(5). Without CAP_SYS_ADMIN frames read as 0 (4.2). */
#define PAGEMAP_FRAME ((1ull << 55) - 1)
#define PAGEMAP_PROTECTED (1ull << 57) /* by userfaultfd, 5.15 */
#define PAGEMAP_FILE (1ull << 61)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_PRESENT (1ull << 63)
int pagemap_entry(int fd, uint64_t va, uint64_t *ret, struct cr_err *err) must_check;
/* Those of n pages. */
int pagemap_entries(int fd, uint64_t va, size_t n, uint64_t *ret, struct cr_err *err) must_check;
/* Neither present nor swapped. */
static inline bool pagemap_entry_empty(uint64_t e)
{
	return !(e >> 62);
}
/* A marker that userfaultfd left where a page was, or a guard page: reads as swapped with this
 * type. */
static inline bool pagemap_entry_marker(uint64_t e)
{
	return (e >> 62 & 3) == 1 && (e & 0x1f) == 0x1f;
}
