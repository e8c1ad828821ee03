/* Private memory of huge pages. What a parent had before fork(2), parent and child share
 * copy-on-write: each writes to a page of its own and sees in the other's what was there before.
 * A mapping that only the parent has lies between ordinary ones; pages of it are discarded, read or
 * not before they are written to again, and one is mapped anew, time and again. Some are never
 * touched.
 *   --sharing: what is shared copy-on-write has to stay so; nothing is mapped anew, as what cannot
 * be tracked because of that is sent whole
 *   --read-only: the parent's mapping cannot be written */
#include "workload.h"

#include <sys/mman.h>
#include <sys/wait.h>

enum { HUGE = 2 << 20, SMALL = HUGE / WL_PAGE, MAPPINGS = 5 };
/* of the memory that both have */
enum { CHILDS, PARENTS, UNTOUCHED, SHARED, PAGES };
/* of the parent's; from IDLE on nobody writes to them */
enum { WRITTEN, DISCARDED, DISCARDED_READ, MAPPED_ANEW, IDLE, OWN_PAGES = IDLE + 9 };

struct shared {
	_Atomic uint64_t turns; /* the child's */
	_Atomic bool stop;
};

static struct {
	struct shared *shared;
	uint64_t *both, *own, *unreserved;
} f;

static uint64_t word(size_t page, uint64_t turn)
{
	return wl_mix(page << 40 | turn);
}

static void put(uint64_t *at, size_t page, uint64_t turn)
{
	at += page * HUGE / 8;
	for (size_t i = 0; i < SMALL; i++)
		at[i * WL_PAGE / 8] = word(page * SMALL + i, turn);
}

static void check(const char *what, const uint64_t *at, size_t page, uint64_t turn)
{
	at += page * HUGE / 8;
	for (size_t i = 0; i < SMALL; i++)
		wl_check(at[i * WL_PAGE / 8] == word(page * SMALL + i, turn),
			 "%s: huge page %zu, page %zu", what, page, i);
}

static void check_zeros(const char *what, const uint64_t *at, size_t page)
{
	at += page * HUGE / 8;
	for (size_t i = 0; i < SMALL; i++)
		wl_check(!at[i * WL_PAGE / 8], "%s: huge page %zu, page %zu", what, page, i);
}

static void *map(void *at, size_t pages, int flags)
{
	void *p = mmap(at, pages * HUGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | flags, -1, 0);

	wl_must(p != MAP_FAILED, "mmap of huge pages");
	return p;
}

/* Ordinary memory right before and behind. */
static uint64_t *map_between(size_t pages)
{
	char *room = mmap(NULL, (pages + 3) * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *at;

	wl_must(room != MAP_FAILED, "mmap");
	at = (char *)(((uintptr_t)room + 2 * HUGE - 1) / HUGE * HUGE);
	map(at, pages, MAP_FIXED);
	wl_must(!mprotect(at - 3 * WL_PAGE, 3 * WL_PAGE, PROT_READ | PROT_WRITE), "mprotect");
	wl_must(!mprotect(at + pages * HUGE, 5 * WL_PAGE, PROT_READ | PROT_WRITE), "mprotect");
	return (uint64_t *)at;
}

/* How many huge pages smaps tells of. */
static long count(const char *key)
{
	char line[512];
	long kb, sum = 0;
	size_t n = strlen(key);
	FILE *s = fopen("/proc/self/smaps", "re");

	wl_must(s, "smaps");
	while (fgets(line, sizeof(line), s))
		if (!strncmp(line, key, n) && sscanf(line + n, "%ld", &kb) == 1)
			sum += kb;
	fclose(s);
	return sum * 1024 / HUGE;
}

static void turn(uint64_t n)
{
	size_t behind = OWN_PAGES * HUGE / 8;

	check("between", f.own, WRITTEN, n);
	put(f.own, WRITTEN, n + 1);
	check("between", f.own, DISCARDED, n);
	check("between", f.own, DISCARDED_READ, n);
	wl_must(!madvise(f.own + DISCARDED * HUGE / 8, 2 * HUGE, MADV_DONTNEED), "MADV_DONTNEED");
	check_zeros("discarded", f.own, DISCARDED_READ);
	wl_sleep_us(5000); /* perhaps it is stopped here */
	check_zeros("discarded", f.own, DISCARDED);
	check_zeros("discarded and read", f.own, DISCARDED_READ);
	put(f.own, DISCARDED, n + 1);
	put(f.own, DISCARDED_READ, n + 1);
	for (size_t i = IDLE; i < OWN_PAGES; i++)
		check("idle", f.own, i, 0);
	check("between", f.own, MAPPED_ANEW, n);
	if (!wl_flag("sharing")) {
		map(f.own + MAPPED_ANEW * HUGE / 8, 1, MAP_FIXED);
		check_zeros("mapped anew", f.own, MAPPED_ANEW);
	}
	put(f.own, MAPPED_ANEW, n + 1);
	wl_same("before it", n, f.own[-WL_PAGE / 8]);
	wl_same("behind it", n, f.own[behind]);
	f.own[-WL_PAGE / 8] = f.own[behind] = n + 1;
	check("not reserved", f.unreserved, 0, n);
	put(f.unreserved, 0, n + 1);
	check("parent's", f.both, PARENTS, n);
	put(f.both, PARENTS, n + 1);
	check("child's as it was", f.both, CHILDS, 0);
	check("what both have", f.both, SHARED, 0);
}

static void set_up(void)
{
	f.shared = mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(f.shared != MAP_FAILED, "mmap");
	f.both = map(NULL, PAGES, 0);
	put(f.both, CHILDS, 0);
	put(f.both, PARENTS, 0);
	put(f.both, SHARED, 0);
}

static void set_up_own(void)
{
	f.own = map_between(OWN_PAGES);
	for (size_t i = 0; i < OWN_PAGES; i++)
		put(f.own, i, 0);
	f.own[-WL_PAGE / 8] = f.own[OWN_PAGES * HUGE / 8] = 0;
	f.unreserved = map(NULL, 2, MAP_NORESERVE);
	put(f.unreserved, 0, 0);
}

static void child_main(void)
{
	put(f.both, CHILDS, 1);
	for (uint64_t n = 1; !f.shared->stop; n++) {
		check("child's", f.both, CHILDS, n);
		put(f.both, CHILDS, n + 1);
		check("parent's as it was", f.both, PARENTS, 0);
		check("what both have", f.both, SHARED, 0);
		f.shared->turns = n;
		wl_sleep_us(2000);
	}
	check_zeros("untouched", f.both, UNTOUCHED);
	_exit(0);
}

static bool are_shared_as_before(long *own, long *shared)
{
	*own = count("Private_Hugetlb:");
	*shared = count("Shared_Hugetlb:");
	/* CHILDS and PARENTS, and those of its own; SHARED */
	return *own == 2 + OWN_PAGES + 1 && *shared == 1;
}

/* What is read of a file of proc(5) does not fit together where a move has come in between: then it
 * is read again. */
static void check_pages(void)
{
	long own, shared;

	wl_check(are_shared_as_before(&own, &shared) || are_shared_as_before(&own, &shared),
		 "%ld huge pages of its own and %ld shared copy-on-write", own, shared);
}

int main(int argc, char **argv)
{
	uint64_t n = 0;
	int status;
	pid_t child;

	wl_init(argc, argv);
	const bool read_only = wl_flag("read-only");
	set_up();
	child = fork();
	wl_must(child >= 0, "fork");
	if (!child)
		child_main();
	set_up_own();
	while (!f.shared->turns)
		wl_sleep_us(1000);
	turn(n++);
	if (read_only)
		wl_must(!mprotect(f.own, OWN_PAGES * HUGE, PROT_READ), "mprotect");
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		if (!read_only)
			turn(n++);
		if (wl_flag("sharing"))
			check_pages();
		wl_sleep_us(4000);
	}
	f.shared->stop = true;
	wl_same("child", child, waitpid(child, &status, 0));
	wl_same("its exit", 0, status);
	check_zeros("untouched", f.both, UNTOUCHED);
	check_zeros("untouched", f.unreserved, 1);
	wl_done();
}
