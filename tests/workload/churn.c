/* An address space that changes all the time: maps, unmaps, moves, discards, protects and forks at
 * random, with a model beside it that knows what every page must hold and what must be mapped.
 *
 * --threads N (default 2), --seed N, --ops N per second and thread (default 2000), --no-fork
 *
 * Each thread has an arena of addresses to itself, small enough that mappings touch and merge. */
#include "maps.h"
#include <pthread.h>

enum { ARENA_PAGES = 16384, SLOTS = 48, MAX_PAGES = 640, MAX_THREADS = 16 };
static const uint64_t arenas_base = 0x100000000000;

struct slot {             /* one mapping; pages == 0: free */
	size_t at, pages; /* in pages from the arena's start */
	uint64_t first;   /* id of the first page */
	int prot;
	bool shared;
	bool patched; /* made of several calls of mmap */
	uint32_t gen[MAX_PAGES];
};
struct worker {
	pthread_t thread;
	int index;
	uint8_t *base;
	uint64_t rnd, next_id, ops, left_alone, moves_seen;
	struct slot slots[SLOTS];
	uint8_t spare[WL_PAGE];
};

static struct worker *workers;
static _Atomic bool stopping;
static pthread_mutex_t maps_lock = PTHREAD_MUTEX_INITIALIZER;
static struct maps_look look;

static size_t below(struct worker *w, size_t n)
{
	return wl_rand(&w->rnd) % n;
}

/* ---- the model ---- */

static uint8_t *page_at(const struct worker *w, const struct slot *s, size_t k)
{
	return w->base + (s->at + k) * WL_PAGE;
}

static void verify_page(const struct worker *w, const struct slot *s, size_t k)
{
	if (s->prot & PROT_READ)
		wl_page_check(page_at(w, s, k), s->first + k, s->gen[k],
			      s->shared ? "churn, shared" : "churn, private");
}

static void verify_slot(const struct worker *w, const struct slot *s)
{
	for (size_t k = 0; k < s->pages; k++)
		verify_page(w, s, k);
}

static bool is_free(const struct worker *w, size_t at, size_t pages)
{
	if (at + pages > ARENA_PAGES)
		return false;
	for (const struct slot *s = w->slots; s < w->slots + SLOTS; s++)
		if (s->pages && at < s->at + s->pages && s->at < at + pages)
			return false;
	return true;
}

/* A free place: often right behind or before another mapping. */
static bool find_place(struct worker *w, size_t pages, size_t *ret)
{
	for (int tries = 0; tries < 20; tries++) {
		const struct slot *near = &w->slots[below(w, SLOTS)];
		size_t at = below(w, ARENA_PAGES);

		if (near->pages && below(w, 3) == 0)
			at = near->at + near->pages;
		else if (near->pages && near->at >= pages && below(w, 2) == 0)
			at = near->at - pages;
		if (is_free(w, at, pages)) {
			*ret = at;
			return true;
		}
	}
	return false;
}

static struct slot *used_slot(struct worker *w)
{
	struct slot *s = &w->slots[below(w, SLOTS)];

	return s->pages ? s : NULL;
}

static size_t some_pages(struct worker *w)
{
	return below(w, 25) ? 1 + below(w, 48) : 512 + below(w, MAX_PAGES - 512);
}

/* ---- what can happen ---- */

static void do_map(struct worker *w)
{
	const size_t pages = some_pages(w);
	struct slot *s = w->slots;
	size_t at;

	while (s < w->slots + SLOTS && s->pages)
		s++;
	if (s == w->slots + SLOTS || !find_place(w, pages, &at))
		return;
	s->shared = below(w, 5) == 0;
	s->patched = false;
	void *want = w->base + at * WL_PAGE;
	void *p = mmap(want, pages * WL_PAGE, PROT_READ | PROT_WRITE,
		       MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | (s->shared ? MAP_SHARED : MAP_PRIVATE),
		       -1, 0);
	wl_check(p == want, "mmap of %zu pages at %p, which must be free: got %p (%s)", pages, want,
		 p, strerror(errno));
	if (pages >= 512)
		madvise(p, pages * WL_PAGE, MADV_HUGEPAGE);
	s->at = at;
	s->pages = pages;
	s->prot = PROT_READ | PROT_WRITE;
	s->first = w->next_id;
	w->next_id += pages + MAX_PAGES;
	memset(s->gen, 0, sizeof(s->gen));
}

static void do_write(struct worker *w, struct slot *s)
{
	if (!(s->prot & PROT_WRITE))
		return;
	for (int i = 0; i < 8; i++) {
		const size_t k = below(w, s->pages);

		wl_page_fill(page_at(w, s, k), s->first + k, ++s->gen[k]);
	}
}

static void do_unmap(struct worker *w, struct slot *s)
{
	size_t n = below(w, 2) ? s->pages : 1 + below(w, s->pages);

	if (below(w, 2)) { /* from the end */
		wl_must(!munmap(page_at(w, s, s->pages - n), n * WL_PAGE), "munmap");
	} else {
		wl_must(!munmap(page_at(w, s, 0), n * WL_PAGE), "munmap");
		s->at += n;
		s->first += n;
		memmove(s->gen, s->gen + n, (s->pages - n) * sizeof(s->gen[0]));
	}
	s->pages -= n;
}

/* Is the slot one VMA? What one call of mmap made is, whoever tracks it: mremap has to work. What
 * several made side by side need not be: while memory is being tracked, a new mapping does not
 * merge with its neighbour before the next round, and mremap of several is refused with EFAULT,
 * perhaps after it has moved some (6.17; older kernels never take several). But what is one VMA
 * stays one. */
static bool is_one_vma(const struct worker *w, const struct slot *s)
{
	const uint64_t lo = (uintptr_t)page_at(w, s, 0), hi = (uintptr_t)page_at(w, s, s->pages);
	uint64_t start, end;
	char line[512];
	bool one = false;

	if (!s->patched)
		return true;
	FILE *f = fopen("/proc/self/maps", "re");
	wl_must(f, "open maps");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2)
			one |= start <= lo && hi <= end;
	fclose(f);
	return one;
}

static void must_remap(struct worker *w, const struct slot *s, size_t pages, int flags, size_t at)
{
	void *want = w->base + at * WL_PAGE;
	void *p = mremap(page_at(w, s, 0), s->pages * WL_PAGE, pages * WL_PAGE, flags, want);

	wl_check(p == want, "mremap of %zu pages at %p to %zu: expected %p, got %p (%s)", s->pages,
		 page_at(w, s, 0), pages, want, p, strerror(errno));
}

static bool may_remap(struct worker *w, const struct slot *s)
{
	const bool may = is_one_vma(w, s);

	w->left_alone += !may;
	return may;
}

static void do_move(struct worker *w, struct slot *s)
{
	size_t at;

	if (!find_place(w, s->pages, &at) || !may_remap(w, s))
		return;
	must_remap(w, s, s->pages, MREMAP_MAYMOVE | MREMAP_FIXED, at);
	s->at = at;
}

static void do_resize(struct worker *w, struct slot *s)
{
	const size_t pages = 1 + below(w, s->pages + 16);

	if (pages > MAX_PAGES ||
	    (pages > s->pages && (s->shared || !is_free(w, s->at + s->pages, pages - s->pages))) ||
	    !may_remap(w, s))
		return;
	must_remap(w, s, pages, 0, s->at);
	if (pages > s->pages)
		memset(s->gen + s->pages, 0, (pages - s->pages) * sizeof(s->gen[0]));
	s->pages = pages;
}

static void do_discard(struct worker *w, struct slot *s)
{
	const size_t from = below(w, s->pages), n = 1 + below(w, s->pages - from);
	const int advice =
	    s->shared ? MADV_REMOVE : MADV_DONTNEED; /* the pages become zero in both cases */

	if (s->shared && !(s->prot & PROT_WRITE))
		return;
	wl_must(!madvise(page_at(w, s, from), n * WL_PAGE, advice), "madvise");
	memset(s->gen + from, 0, n * sizeof(s->gen[0]));
}

/* New memory over a part of the old. */
static void do_replace(struct worker *w, struct slot *s)
{
	const size_t from = below(w, s->pages), n = 1 + below(w, s->pages - from);

	if (s->shared)
		return;
	s->patched = true;
	void *p = mmap(page_at(w, s, from), n * WL_PAGE, s->prot,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	wl_must(p == page_at(w, s, from), "mmap over");
	memset(s->gen + from, 0, n * sizeof(s->gen[0]));
}

static void do_protect(struct worker *w, struct slot *s)
{
	const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE};

	s->prot = prots[below(w, 4)];
	wl_must(!mprotect(page_at(w, s, 0), s->pages * WL_PAGE, s->prot), "mprotect");
}

/* A part gets another protection and its own back: split and merged. */
static void do_split(struct worker *w, struct slot *s)
{
	const size_t from = below(w, s->pages), n = 1 + below(w, s->pages - from);
	uint8_t *p = page_at(w, s, from);

	wl_must(!mprotect(p, n * WL_PAGE, PROT_READ), "mprotect");
	if (s->prot & PROT_READ)
		verify_page(w, s, from);
	wl_must(!mprotect(p, n * WL_PAGE, s->prot), "mprotect");
}

/* A page goes through the kernel: written by read(2) on a pipe rather than by the task. */
static void do_kernel_write(struct worker *w, struct slot *s)
{
	const size_t k = below(w, s->pages);
	int p[2];

	if (!(s->prot & PROT_WRITE))
		return;
	wl_must(!pipe2(p, O_CLOEXEC), "pipe2");
	wl_page_fill(w->spare, s->first + k, ++s->gen[k]);
	wl_same("write to a pipe", WL_PAGE, write(p[1], w->spare, WL_PAGE));
	wl_same("read from a pipe", WL_PAGE, read(p[0], page_at(w, s, k), WL_PAGE));
	close(p[0]);
	close(p[1]);
}

/* A child that lives for a moment sees what was there at the fork; what it writes into shared
 * memory is seen here. */
static void do_fork(struct worker *w)
{
	struct slot *s = used_slot(w);
	const bool write_it = s && s->shared && (s->prot & PROT_WRITE);
	int status;
	pid_t pid;

	if (wl_flag("no-fork"))
		return;
	pid = fork();
	wl_must(pid >= 0, "fork");
	if (!pid) {
		for (int i = 0; i < SLOTS; i++)
			verify_slot(w, &w->slots[i]);
		if (write_it)
			wl_page_fill(page_at(w, s, 0), s->first, s->gen[0] + 1);
		wl_sleep_us(below(w, 4) ? 0 : 20000);
		for (int i = 0; i < SLOTS; i++)
			if (!w->slots[i].shared)
				verify_slot(w, &w->slots[i]);
		_exit(0);
	}
	if (!write_it && below(w, 2)) /* unshare a page that the child still looks at */
		for (s = w->slots; s < w->slots + SLOTS; s++)
			if (s->pages && !s->shared)
				do_write(w, s);
	while (waitpid(pid, &status, 0) < 0)
		wl_must(errno == EINTR, "waitpid");
	wl_check(!status, "a forked child's status: expected 0, got 0x%x", status);
	if (write_it)
		s->gen[0]++;
}

static void one_op(struct worker *w)
{
	struct slot *s = used_slot(w);
	const size_t dice = below(w, 1000);

	if (!s || dice < 60)
		return do_map(w);
	if (dice < 64)
		return do_fork(w);
	if (dice < 70)
		return do_kernel_write(w, s);
	if (dice < 100)
		return do_unmap(w, s);
	if (dice < 140)
		return do_move(w, s);
	if (dice < 170)
		return do_resize(w, s);
	if (dice < 220)
		return do_discard(w, s);
	if (dice < 250)
		return do_replace(w, s);
	if (dice < 300)
		return do_protect(w, s);
	if (dice < 330)
		return do_split(w, s);
	if (dice < 430)
		return verify_slot(w, s);
	do_write(w, s);
}

/* ---- what is mapped, page by page, against the model ---- */

static char perm_of(int prot, bool shared)
{
	return (prot & PROT_WRITE ? 3 : prot & PROT_READ ? 2 : 1) + (shared ? 3 : 0);
}

static void check_layout(struct worker *w)
{
	static uint8_t want[ARENA_PAGES], got[ARENA_PAGES]; /* 0: nothing */
	const uint64_t lo = (uintptr_t)w->base, hi = lo + ARENA_PAGES * WL_PAGE;

	pthread_mutex_lock(&maps_lock);
	memset(want, 0, sizeof(want));
	memset(got, 0, sizeof(got));
	for (const struct slot *s = w->slots; s < w->slots + SLOTS; s++)
		memset(want + s->at, perm_of(s->prot, s->shared), s->pages);
	maps_take(&look);
	for (const struct maps_entry *e = look.v; e < look.v + look.n; e++) {
		const int prot =
		    (e->perms[0] == 'r' ? PROT_READ : 0) | (e->perms[1] == 'w' ? PROT_WRITE : 0);

		if (e->start >= lo && e->end <= hi)
			memset(got + (e->start - lo) / WL_PAGE, perm_of(prot, e->perms[3] == 's'),
			       (e->end - e->start) / WL_PAGE);
	}
	for (size_t i = 0; i < ARENA_PAGES; i++)
		wl_check(want[i] == got[i],
			 "layout at %lx: expected %d, got %d (0 nothing, 1 none, 2 r, 3 rw, 4 to 6 "
			 "the same shared)",
			 lo + i * WL_PAGE, want[i], got[i]);
	pthread_mutex_unlock(&maps_lock);
}

static void check_everything(struct worker *w)
{
	check_layout(w);
	for (int i = 0; i < SLOTS; i++)
		verify_slot(w, &w->slots[i]);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	const long nap_us = 20 * 1000000 / wl_opt("ops", 2000);

	while (!stopping) {
		for (int i = 0; i < 20; i++, w->ops++)
			one_op(w);
		if (w->moves_seen != wl.moves) {
			w->moves_seen = wl.moves;
			check_everything(w);
		}
		wl_sleep_us(nap_us);
	}
	check_everything(w);
	for (struct slot *s = w->slots; s < w->slots + SLOTS; s++) {
		if (!s->pages)
			continue;
		wl_must(!mprotect(page_at(w, s, 0), s->pages * WL_PAGE, s->prot |= PROT_READ),
			"mprotect");
		verify_slot(w, s);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t ops = 0, left_alone = 0;

	wl_init(argc, argv);
	const long threads = wl_opt("threads", 2);

	wl_check(threads > 0 && threads <= MAX_THREADS, "between 1 and %d threads", MAX_THREADS);
	workers = calloc(threads, sizeof(*workers));
	for (int i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		w->index = i;
		w->base = (uint8_t *)(arenas_base + i * (1ull << 30));
		w->rnd = wl_mix(wl_opt("seed", 1) * 100 + i);
		w->next_id = (uint64_t)(i + 1) << 40;
		wl_must(!(errno = pthread_create(&w->thread, NULL, worker_main, w)),
			"pthread_create");
	}
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		wl_sleep_us(10000);
	}
	stopping = true;
	for (int i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		ops += workers[i].ops;
		left_alone += workers[i].left_alone;
	}
	dprintf(2, "%lu operations, %lu times several VMAs left where they are\n", ops, left_alone);
	wl_done();
}
