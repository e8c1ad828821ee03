/* Shared memory of several processes of which a known part is written all the time, and all of it
 * is read: by each of them, at random, as fast as it goes.
 *
 * --mib N of the memory (default 64), --workers N besides the first process (default 3), --part N:
 * every Nth page is written, by one process each (default 16), --pause-us N between two steps
 * (default 200), --reads N pages are looked at in each step (default 32). Once they run nothing of
 * their mappings changes, and none of them forks. */
#include "workload.h"
#include <sched.h>
#include <stdatomic.h>

enum { WORKERS_MAX = 32 };

static struct {
	_Atomic bool stop;
	_Atomic uint32_t waiting; /* who still gets ready */
} * ctl;
static uint32_t *gens; /* of each page; small, shared as well */
static uint8_t *memory;
static size_t pages, part, n_workers;
static pid_t workers[WORKERS_MAX];

static uint8_t *at(size_t p)
{
	return memory + p * WL_PAGE;
}

static bool is_written(size_t p)
{
	return p % part == 0;
}

static size_t owner(size_t p)
{
	return p / part % (n_workers + 1);
}

static void write_page(size_t p)
{
	gens[p]++;
	wl_page_fill(at(p), p, gens[p]);
}

static void check(size_t p)
{
	wl_page_check(at(p), p, gens[p], "shared page");
}

static void step(size_t me, uint64_t *seed)
{
	static size_t reads;
	size_t p = wl_rand(seed) % pages / part * part;

	if (!reads)
		reads = (size_t)wl_opt("reads", 32);
	for (size_t i = 0; i < reads; i++) {
		size_t k = wl_rand(seed) % pages;

		if (!is_written(k))
			check(k);
	}
	if (owner(p) != me)
		return;
	check(p);
	write_page(p);
}

static void run(size_t me, bool first)
{
	uint64_t seed = wl_mix((uint64_t)getpid() << 8 ^ me);
	const long pause = wl_opt("pause-us", 200);

	while (first ? !wl_stop() : !ctl->stop) {
		if (first)
			wl_tick();
		step(me, &seed);
		if (pause)
			wl_sleep_us(pause);
	}
}

static void be_worker(size_t me)
{
	uint64_t seed = me;

	step(me, &seed); /* what it needs of its stack, it has */
	wl_sleep_us(1);
	ctl->waiting--;
	run(me, false);
	_exit(0);
}

static void *share(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	n_workers = (size_t)wl_opt("workers", 3);
	part = (size_t)wl_opt("part", 16);
	wl_check(n_workers <= WORKERS_MAX && part, "too many workers, or no part");
	pages = (size_t)wl_opt("mib", 64) << 8;
	ctl = share(sizeof(*ctl));
	gens = share(pages * sizeof(*gens));
	memory = share(pages * WL_PAGE);
	for (size_t p = 0; p < pages; p++)
		write_page(p);
	ctl->waiting = (uint32_t)n_workers;
	for (size_t i = 0; i < n_workers; i++) {
		workers[i] = fork();
		wl_must(workers[i] >= 0, "fork");
		if (!workers[i])
			be_worker(i + 1);
	}
	while (ctl->waiting)
		sched_yield();
	wl_ready();
	run(0, true);
	ctl->stop = true;
	for (size_t i = 0; i < n_workers; i++) {
		int st;

		wl_must(waitpid(workers[i], &st, 0) == workers[i], "waitpid");
		wl_same("a worker's end", 0, st);
	}
	for (size_t p = 0; p < pages; p++)
		check(p);
	wl_done();
}
