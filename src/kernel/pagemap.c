#include "kernel/pagemap.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include "base/parallel.h"
#include "kernel/background.h"

/* The ABI of linux/fs.h since 6.7; older headers lack it. */
struct pm_scan_abi {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_ _IOWR('f', 16, struct pm_scan_abi)
enum { SCAN_WP_MATCHING = 1 };

enum { EXTENTS = 4096, AHEAD_EXTENTS = 16384 };

int pagemap_open(pid_t pid, struct cr_err *err)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? cr_err_sys(err, "opening %s", path) : fd;
}

ssize_t pagemap_scan(int fd, const struct pagemap_query *q, uint64_t *at, struct page_extent *v,
		     size_t n, struct cr_err *err)
{
	struct pm_scan_abi a = {
	    .size = sizeof(a),
	    .flags = q->protect ? SCAN_WP_MATCHING : 0,
	    .start = *at,
	    .end = q->end,
	    .vec = (uint64_t)(uintptr_t)v,
	    .vec_len = n,
	    .category_inverted = q->inverted,
	    .category_mask = q->mask,
	    .category_anyof_mask = q->anyof,
	    .return_mask = q->ret,
	};
	bool is_long = q->end - *at > BACKGROUND_LONG_BYTES;

	if (is_long)
		background_pause();
	int r = ioctl(fd, PAGEMAP_SCAN_, &a);
	int saved = errno;
	if (is_long)
		background_resume();
	errno = saved;
	if (r < 0)
		return cr_err_sys(err, "scanning page tables");
	/* walk_end is only sure where the vector was filled: the kernel collects in a buffer of its
	 * own, and when a walk comes to its end after that buffer was flushed, walk_end still says
	 * where that was (seen on 6.18). Taken at its word, pages would be reported twice. */
	*at = a.walk_end;
	if ((size_t)r < n)
		*at = q->end;
	else if (r > 0 && *at < v[r - 1].end)
		*at = v[r - 1].end;
	return r;
}

static int walk_some(int fd, const struct pagemap_query *q, uint64_t at, pagemap_fn fn, void *arg,
		     struct cr_err *err)
{
	_cleanup_free_ struct page_extent *v = malloc(EXTENTS * sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	while (at < q->end) {
		uint64_t before = at;
		ssize_t n = pagemap_scan(fd, q, &at, v, EXTENTS, err);

		if (n < 0)
			return (int)n;
		for (ssize_t i = 0; i < n; i++) {
			int r = fn(&v[i], arg, err);

			if (r)
				return r;
		}
		if (at <= before)
			return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
					  "a page-table scan does not go on");
	}
	return 0;
}

struct ahead { /* what lies behind the split */
	int fd;
	struct pagemap_query q;
	uint64_t at; /* as far as it came */
	struct page_extent *v;
	ssize_t n;
	struct cr_err err;
};

static void *scan_ahead(void *arg)
{
	struct ahead *a = arg;

	a->n = pagemap_scan(a->fd, &a->q, &a->at, a->v, AHEAD_EXTENTS, &a->err);
	return NULL;
}

static int walk_split(int fd, const struct pagemap_query *q, pagemap_fn fn, void *arg,
		      struct cr_err *err)
{
	struct ahead a = {.fd = fd, .q = *q, .at = q->split};
	struct pagemap_query first = *q;
	_cleanup_free_ struct page_extent *v = malloc(AHEAD_EXTENTS * sizeof(*v));
	pthread_t thread;

	a.v = v;
	background_pause(); /* the thread neither */
	bool alone = !v || parallel_thread(&thread, scan_ahead, &a);
	background_resume();
	if (alone)
		return walk_some(fd, q, q->start, fn, arg, err);
	first.end = q->split;
	int r = walk_some(fd, &first, first.start, fn, arg, err);
	pthread_join(thread, NULL);
	if (!r && a.n < 0) {
		*err = a.err;
		r = (int)a.n;
	}
	for (ssize_t i = 0; i < a.n && !r; i++)
		r = fn(&v[i], arg, err);
	return r ? r : walk_some(fd, q, a.at, fn, arg, err);
}

int pagemap_walk(int fd, const struct pagemap_query *q, pagemap_fn fn, void *arg,
		 struct cr_err *err)
{
	if (!q->protect && q->start < q->split && q->split < q->end)
		return walk_split(fd, q, fn, arg, err);
	return walk_some(fd, q, q->start, fn, arg, err);
}

int pagemap_entries(int fd, uint64_t va, size_t n, uint64_t *ret, struct cr_err *err)
{
	const size_t bytes = n * sizeof(*ret);
	ssize_t got = pread(fd, ret, bytes, (off_t)(va / CR_PAGE_SIZE * sizeof(*ret)));

	if (got == (ssize_t)bytes)
		return 0;
	if (got < 0)
		return cr_err_sys(err, "reading pagemap entries");
	return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "the address space is gone");
}

int pagemap_entry(int fd, uint64_t va, uint64_t *ret, struct cr_err *err)
{
	return pagemap_entries(fd, va, 1, ret, err);
}
