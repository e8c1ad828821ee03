/* The pages of an image, put into the shells that were built for its tree. */
#pragma once
#include "dest/dest.h"
#include "image/image.h"

struct replay_stats {
	uint64_t data_pages, zero_pages;
};

/* d has built the tree of im. Every page's digest is checked; a page that does not fit fails it, by
 * name, and nothing of it has run. */
int replay_pages(struct dest *d, const struct image *im, struct replay_stats *ret,
		 struct cr_err *err) must_check;
