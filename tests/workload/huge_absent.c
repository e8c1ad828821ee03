/* Huge pages that have not arrived yet, right after the move: they are read, written, inherited,
 * moved, discarded, unmapped and used by a system call; of shared ones, parts are removed. Each
 * step has a region of its own that nobody has touched since. DIR/absent says of how many regions
 * pages were in fact missing (mincore(2)).
 *   --shared: they are, each region for itself; else private
 *   --idle: nothing is done with them, all are only looked at in the end
 *   --bus: the same, and each may be lost as a whole (SIGBUS): DIR/lost says how many were. All of
 *     its other memory has been touched once DIR/resident is there, so that none of that is lost */
#include "maps.h"
#include "workload.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { HUGE = 2 << 20, SMALL = HUGE / WL_PAGE, GEN = 5 };
enum { READ, WRITTEN, SYSCALL, MOVED, DISCARDED, UNMAPPED, INHERITED, REMOVED, REGIONS };
enum { PER_REGION = 2, UNTOUCHED = 1 /* huge pages */ };

static uint8_t *regions[REGIONS], *untouched, *room;
static size_t n_absent;
static int n_regions; /* the last is of shared ones alone */
static bool shared;
static int pipe_fds[2];
static sigjmp_buf on_loss;

static void *map(void *at, size_t pages, int flags)
{
	void *p =
	    mmap(at, pages * HUGE, PROT_READ | PROT_WRITE,
		 MAP_ANONYMOUS | MAP_HUGETLB | (shared ? MAP_SHARED : MAP_PRIVATE) | flags, -1, 0);

	wl_must(p != MAP_FAILED, "mmap of huge pages");
	return p;
}

static uint64_t id_of(int region, size_t page)
{
	return (uint64_t)region * PER_REGION * SMALL + page;
}

static void check(const uint8_t *p, int region, size_t first, size_t n, const char *what)
{
	for (size_t i = 0; i < n; i++)
		wl_page_check(p + i * WL_PAGE, id_of(region, first + i), GEN, what);
}

static void check_zeros(const uint8_t *p, size_t bytes, const char *what)
{
	for (size_t i = 0; i < bytes; i++)
		wl_check(!p[i], "%s: byte %zu is 0x%x, expected 0", what, i, p[i]);
}

static void check_zero(const uint8_t *p, const char *what)
{
	check_zeros(p, HUGE, what);
}

static uint8_t *begin(int region)
{
	static unsigned char there[PER_REGION * SMALL];
	bool absent = false;

	wl_must(!mincore(regions[region], PER_REGION * HUGE, there), "mincore");
	for (size_t i = 0; i < PER_REGION * SMALL; i++)
		absent |= !(there[i] & 1);
	n_absent += absent;
	return regions[region];
}

static void use_in_place(void)
{
	uint8_t *p = begin(READ);

	check(p, READ, 0, PER_REGION * SMALL, "read");
	p = begin(WRITTEN);
	wl_page_fill(p + 300 * WL_PAGE, 1, GEN + 1);
	wl_page_check(p + 300 * WL_PAGE, 1, GEN + 1, "what was written");
	check(p, WRITTEN, 0, 300, "before what was written");
	check(p + 301 * WL_PAGE, WRITTEN, 301, PER_REGION * SMALL - 301, "behind it");
	p = begin(SYSCALL);
	wl_must(write(pipe_fds[1], "x", 1) == 1, "write");
	wl_same("read(2)", 1, read(pipe_fds[0], p + HUGE + WL_PAGE, 1));
	wl_check(p[HUGE + WL_PAGE] == 'x', "what was read is 0x%x", p[HUGE + WL_PAGE]);
	check(p, SYSCALL, 0, SMALL + 1, "before what was read");
	check(p + HUGE + 2 * WL_PAGE, SYSCALL, SMALL + 2, SMALL - 2, "behind it");
}

static void change_layout(void)
{
	uint8_t *p = begin(MOVED);

	wl_must(mremap(p, PER_REGION * HUGE, PER_REGION * HUGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       room) == room,
		"mremap");
	check(room, MOVED, 0, PER_REGION * SMALL, "moved");
	p = begin(DISCARDED);
	wl_must(!madvise(p, HUGE, MADV_DONTNEED), "MADV_DONTNEED");
	if (shared)
		check(p, DISCARDED, 0, SMALL, "out of the page table alone");
	else
		check_zero(p, "discarded");
	check(p + HUGE, DISCARDED, SMALL, SMALL, "behind what was discarded");
	p = begin(UNMAPPED);
	wl_must(!munmap(p, HUGE), "munmap");
	map(p, 1, MAP_FIXED_NOREPLACE);
	check_zero(p, "mapped anew");
	check(p + HUGE, UNMAPPED, SMALL, SMALL, "behind what was unmapped");
}

/* madvise(2): the kernel removes whole huge pages, and fills parts with zeros. */
static void remove_parts(void)
{
	enum { FIRST = 100, END = SMALL + 50, ALONE = SMALL + 400 };
	uint8_t *p = begin(REMOVED);

	wl_must(!madvise(p + FIRST * WL_PAGE, (END - FIRST) * WL_PAGE, MADV_REMOVE) &&
		    !madvise(p + ALONE * WL_PAGE, WL_PAGE, MADV_REMOVE),
		"MADV_REMOVE");
	wl_sleep_us(300000); /* what is on its way arrives */
	check(p, REMOVED, 0, FIRST, "before what was removed");
	check_zeros(p + FIRST * WL_PAGE, (END - FIRST) * WL_PAGE, "removed");
	check(p + END * WL_PAGE, REMOVED, END, ALONE - END, "behind what was removed");
	check_zeros(p + ALONE * WL_PAGE, WL_PAGE, "removed alone");
	check(p + (ALONE + 1) * WL_PAGE, REMOVED, ALONE + 1, PER_REGION * SMALL - ALONE - 1,
	      "behind that");
	wl_must(!madvise(p, HUGE, MADV_REMOVE), "MADV_REMOVE");
	check_zero(p, "removed as a whole");
}

static void inherit(void)
{
	uint8_t *p = begin(INHERITED);
	int status;
	pid_t child = fork();

	wl_must(child >= 0, "fork");
	if (!child) {
		check(p, INHERITED, 0, PER_REGION * SMALL, "inherited");
		wl_page_fill(p, 1, GEN + 1);
		_exit(0);
	}
	wl_same("child", child, waitpid(child, &status, 0));
	wl_same("its exit", 0, status);
	if (shared)
		wl_page_check(p, 1, GEN + 1, "what a child has written");
	check(p + shared * WL_PAGE, INHERITED, shared, PER_REGION * SMALL - shared,
	      "what a child has inherited");
}

static void bus(int sig)
{
	(void)sig;
	siglongjmp(on_loss, 1);
}

/* What may be lost must not be what it takes to say so: the stack, the heap, the handler's stack.
 */
static void touch_all_else(void)
{
	static struct maps_look look;

	maps_take(&look);
	for (size_t i = 0; i < look.n; i++) {
		const struct maps_entry *e = &look.v[i];

		/* [vvar] has pages that cannot be touched; ht: huge pages */
		if (e->perms[0] != 'r' || e->perms[3] != 'p' || !strncmp(e->name, "[v", 2) ||
		    strstr(e->flags, "ht "))
			continue;
		for (uint64_t va = e->start; va < e->end; va += WL_PAGE)
			(void)*(const volatile uint8_t *)va;
	}
	wl_write("resident", "");
}

static bool is_lost(const volatile uint8_t *p)
{
	if (sigsetjmp(on_loss, 1))
		return true;
	return (void)*p, false;
}

static void check_or_lost(void)
{
	char text[32];
	size_t lost = 0;

	const struct sigaction sa = {.sa_handler = bus, .sa_flags = SA_ONSTACK};

	sigaction(SIGBUS, &sa, NULL);
	for (size_t i = 0; i < (size_t)n_regions * PER_REGION; i++) {
		const uint8_t *p = regions[i / PER_REGION] + i % PER_REGION * HUGE;
		bool was = is_lost(p);

		for (size_t k = 0; was && k < HUGE; k += WL_PAGE)
			wl_check(is_lost(p + k), "of huge page %zu only a part is lost", i);
		if (!was)
			check(p, (int)(i / PER_REGION), i % PER_REGION * SMALL, SMALL, "not lost");
		lost += was;
	}
	snprintf(text, sizeof(text), "%zu\n", lost);
	wl_write("lost", text);
}

static void set_up(void)
{
	n_regions = shared ? REGIONS : REMOVED;
	/* one mapping each: of a part no mapping can be made by mremap(2) in one call */
	for (int r = 0; r < n_regions; r++) {
		regions[r] = map(NULL, PER_REGION, 0);
		for (size_t i = 0; i < PER_REGION * SMALL; i++)
			wl_page_fill(regions[r] + i * WL_PAGE, id_of(r, i), GEN);
	}
	untouched = map(NULL, UNTOUCHED, 0);
	room = mmap(NULL, (PER_REGION + 1) * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	wl_must(room != MAP_FAILED, "mmap");
	room = (uint8_t *)(((uintptr_t)room + HUGE - 1) / HUGE * HUGE);
	wl_must(!pipe(pipe_fds), "pipe");
}

int main(int argc, char **argv)
{
	char text[64];
	bool done = false;

	wl_init(argc, argv);
	const bool may_be_lost = wl_flag("bus"), idle = may_be_lost || wl_flag("idle");
	shared = wl_flag("shared");
	set_up();
	wl_ready();
	while (!wl_stop()) {
		const bool moved = wl_tick();

		if (moved && may_be_lost && !done) {
			touch_all_else();
			done = true;
		}
		if (moved && !done && !idle) {
			/* the child lacks what its parent lacks: there is less of that by then */
			use_in_place();
			change_layout();
			inherit();
			if (shared)
				remove_parts();
			check_zero(untouched, "never touched");
			snprintf(text, sizeof(text), "%zu of %d\n", n_absent, n_regions);
			wl_write("absent", text);
			done = true;
		}
		wl_sleep_us(20000);
	}
	if (may_be_lost)
		check_or_lost();
	for (int r = 0; r < n_regions && idle && !may_be_lost; r++)
		check(regions[r], r, 0, PER_REGION * SMALL, "idle");
	wl_done();
}
