#include "memory/witness.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kernel/uffd.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

enum { LOOK_PAGES = 512 };

static int set_up(struct witness *w, int fd, struct cr_err *err)
{
	void *map = mmap(NULL, w->bytes, PROT_READ, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		return cr_err_sys(err, "mapping shared memory");
	w->map = map;
	if (madvise(map, w->bytes, MADV_DONTFORK))
		return cr_err_sys(err, "madvise of shared memory");
	w->uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	if (w->uffd < 0)
		return cr_err_sys(err, "userfaultfd");
	int r = uffd_enable_wp_async(w->uffd, err);
	if (!r && uffd_register(w->uffd, (uintptr_t)map, (uintptr_t)map + w->bytes))
		r = cr_err_sys(err, "userfaultfd on shared memory");
	if (r)
		return r;
	w->pagemap = pagemap_open(getpid(), err);
	return w->pagemap < 0 ? w->pagemap : 0;
}

int witness_begin(struct witness *w, int fd, uint64_t bytes, struct cr_err *err)
{
	*w = WITNESS_NONE;
	w->bytes = ALIGN_UP(bytes, CR_PAGE_SIZE);
	int r = set_up(w, fd, err);
	if (r)
		witness_done(w);
	return r;
}

void witness_done(struct witness *w)
{
	if (w->map)
		munmap(w->map, w->bytes);
	close_fdp(&w->uffd);
	close_fdp(&w->pagemap);
	*w = WITNESS_NONE;
}

/* A touch of a hole would fill it. */
static void see_present(const struct witness *w, uint64_t start, uint64_t end)
{
	unsigned char there[LOOK_PAGES];
	size_t n = (end - start) / CR_PAGE_SIZE;

	if (mincore(w->map + start, end - start, there))
		return;
	for (size_t i = 0, k; i < n; i = k + 1) {
		while (i < n && !(there[i] & 1))
			i++;
		for (k = i; k < n && there[k] & 1;)
			k++;
		if (i < k && madvise(w->map + start + i * CR_PAGE_SIZE, (k - i) * CR_PAGE_SIZE,
				     MADV_POPULATE_READ))
			return;
	}
}

void witness_see(const struct witness *w, uint64_t start, uint64_t end)
{
	const uint64_t step = LOOK_PAGES * CR_PAGE_SIZE;

	if (end > w->bytes)
		end = w->bytes;
	for (uint64_t at = start; w->map && at < end; at += step)
		see_present(w, at, end - at < step ? end : at + step);
}

struct passing_on {
	const struct witness *w;
	pagemap_fn fn;
	void *arg;
};

static int as_offsets(const struct page_extent *e, void *arg, struct cr_err *err)
{
	const struct passing_on *p = arg;
	const uint64_t base = (uintptr_t)p->w->map;
	const struct page_extent at = {
	    .start = e->start - base, .end = e->end - base, .categories = e->categories};

	return p->fn(&at, p->arg, err);
}

int witness_missing(const struct witness *w, pagemap_fn fn, void *arg, struct cr_err *err)
{
	const uint64_t base = (uintptr_t)w->map;
	const struct pagemap_query q = {.start = base,
					.end = base + w->bytes,
					.inverted = PAGE_CAT_PRESENT,
					.mask = PAGE_CAT_PRESENT,
					.ret = PAGE_CAT_PRESENT};
	struct passing_on p = {w, fn, arg};

	return pagemap_walk(w->pagemap, &q, as_offsets, &p, err);
}
