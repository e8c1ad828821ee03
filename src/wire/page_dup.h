/* Which pages are on their way to the receiver, by what they hold: a page that equals one of them
 * is sent as SAME.
 *
 * What may be referred to is what the receiver holds for sure when it reads it: a page of data that
 * was sent since page_dups_forget(), on the same stream or before a flush, and that was not sent
 * again since. Pages of a target go out in ascending order; once one comes that is not above the
 * last, nothing of that target is referred to any more. Whoever changes the receiver's memory by
 * other ways than page streams forgets all.
 *
 * Two pages are taken for equal if their 64-bit hashes are, seeded with the place of the first.
 * Both ends then hash them with the place of the second, 128 bits, and compare the sums: pages that
 * are not equal after all end the migration, and not in a wrong byte.
 *
 * The table has a fixed size (8 MiB). Where it overflows the older page is forgotten, and its like
 * is sent as data once more. */
#pragma once
#include <stdbool.h>
#include "wire/page_digest.h"

struct page_dups;

enum { PAGE_DUP_PLACED = -1 };

struct page_dup {
	uint32_t target;
	uint64_t addr;
	int stream; /* on which it went; PAGE_DUP_PLACED: it was placed before the last flush */
};

/* NULL: no memory. */
struct page_dups *page_dups_new(void);
void page_dups_free(struct page_dups *d);
void page_dups_forget(struct page_dups *d);
/* All that was sent is placed. */
void page_dups_flushed(struct page_dups *d);

/* These pages are sent, as whatever. Called for every page, before page_dups_find(). */
void page_dups_sent(struct page_dups *d, uint32_t target, uint64_t addr, uint32_t npages);

/* What tells most pages apart. Asked for some pages ahead, it also has their places in the table
 * fetched: waiting for those is most of what this costs. */
uint64_t page_dups_sample(const struct page_dups *d, const void *page);
/* Is a page like it there? */
bool page_dups_find(const struct page_dups *d, const void *page, uint64_t sample,
		    struct page_dup *ret);
/* It is sent as data on this stream; `hash` is its page_hash(). */
void page_dups_add(struct page_dups *d, uint64_t sample, const struct page_dup *it,
		   XXH128_hash_t hash);
