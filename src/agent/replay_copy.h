/* A process of an image whose shell began as a copy of another's, as by fork(2), once that had its
 * pages: which pages it shares still, and which it has that it should not have.
 *
 * Nothing is believed but what /proc/PID/pagemap says of the two shells: a page is shared if both
 * have the same frame, and if the image has the same bytes for both. */
#pragma once
#include "image/pages.h"
#include "model/tree.h"

struct replay_copy;

/* p's pages are those of `pages`, its shell is a copy of that of process `of`, which has all of
 * of_pages. eager: sorted addresses of pages that the kernel may have written to. All are kept. */
int replay_copy_new(struct replay_copy **ret, const struct process *p,
		    const struct image_pages *pages, pid_t of, const struct image_pages *of_pages,
		    const uint64_t *eager, size_t n_eager, struct cr_err *err) must_check;
void replay_copy_free(struct replay_copy *c);

/* Takes out of bits, data pages of chunk k, those that are shared. map: p's page file. */
int replay_copy_shared(struct replay_copy *c, const struct image_chunk *k, const uint8_t *map,
		       uint64_t bits[8], struct cr_err *err) must_check;
/* How many that were. */
uint64_t replay_copy_count(const struct replay_copy *c);

/* Called for each page that the copy has and p has not, with what is there instead; page NULL:
 * zeros. */
typedef int (*replay_stray_fn)(void *arg, uint64_t va, const uint8_t *page, struct cr_err *err);
int replay_copy_strays(struct replay_copy *c, replay_stray_fn fn, void *arg,
		       struct cr_err *err) must_check;

/* Of the page file, all of it; *ret NULL: it has no pages. */
int replay_map(const struct image_pages *p, const uint8_t **ret, struct cr_err *err) must_check;
void replay_unmap(const struct image_pages *p, const uint8_t *map);
