/* What the destination has of shared memory that stays behind: a digest of each page that was sent,
 * and, where that is known, which pages may have been written since. As a file without a name,
 * which can be handed to whoever serves. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "memory/sentmap.h"
#include "memory/shared_tracker.h"

struct serve_known { /* all zero: nothing is known */
	uint8_t *map;
	size_t bytes;
};

/* target: as which it was sent. written: all others are as they were sent; NULL: that is not known.
 * *ret: the file. */
int serve_known_make(const struct sentmap *m, uint32_t target, uint64_t pages,
		     const struct shared_pages *written, int *ret, struct cr_err *err) must_check;
int serve_known_open(struct serve_known *k, int fd, struct cr_err *err) must_check;
void serve_known_done(struct serve_known *k);
/* Is that what was sent as the page at offset? */
bool serve_known_same(const struct serve_known *k, uint64_t offset, const void *page);
/* Is it known which pages were written? */
bool serve_known_tells(const struct serve_known *k);
/* Of the 512 pages from offset on, a multiple of 2 MiB, those that are known to be as they were
 * sent. */
void serve_known_clean(const struct serve_known *k, uint64_t offset, uint64_t ret[8]);
