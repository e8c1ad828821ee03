/* The pages of an image, put into the shells that were built for its tree. */
#pragma once
#include "dest/dest.h"
#include "image/image.h"

struct replay_stats {
	uint64_t data_pages, zero_pages;
	uint64_t left_pages;   /* not placed: to be fetched */
	uint64_t shared_pages; /* not placed: shared with the process that it was forked from */
};

struct replay_from {
	/* Not NULL: pages that may be missing when the tasks run are not placed, but noted here. */
	struct lazy *lazy;
	/* Not NULL: page files are not here. Reads n pages, at most LAZY_PAGES_MAX, of a process,
	 * or with pid 0 of an object. */
	int (*read)(void *arg, pid_t pid, uint32_t target, uint64_t va, uint32_t n, uint8_t *buf,
		    struct cr_err *err);
	void *arg;
	bool more; /* other processes will be made as copies of those that are there */
};

/* d has built the tree of im, or some of its processes: those that have their pages are left
 * alone. Every page's digest is checked; a page that does not fit fails it, by
 * name, and nothing of it has run. */
int replay_pages(struct dest *d, const struct image *im, const struct replay_from *from,
		 struct replay_stats *ret, struct cr_err *err) must_check;
