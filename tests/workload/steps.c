/* Memory that changes only when it is told to, so that two looks at it in between are of the same.
 *
 * --mib N (default 8): of private memory; as much is shared, and a file is mapped privately
 *
 * SIGUSR1: a step: pages are written, discarded, unmapped and mapped at random; then DIR/step says
 * how many there were. Before each step, and at the end (SIGTERM), all memory is compared with what
 * it must be. In between the task waits for a signal and touches nothing. */
#include "workload.h"
#include <sched.h>

enum { CHANGES = 200 };

struct area {
	const char *name;
	uint8_t *at;
	size_t pages;
	uint32_t *gen; /* of each page: 0 as it was at first, else what it was filled with */
	bool shared, file;
};
static struct area areas[3];
static uint64_t rnd = 1;
static uint32_t steps;

static uint64_t word(size_t area, size_t page, uint32_t gen, size_t i)
{
	return gen * 0x9e3779b97f4a7c15ull + (area << 56) + (page << 20) + i;
}

/* What a page of the file is, and what anonymous memory is, before anything is written. */
static uint8_t first_byte(const struct area *a, size_t page, size_t i)
{
	return a->file ? (uint8_t)(page * 7 + i) : 0;
}

static void check_page(size_t n, size_t page)
{
	const struct area *a = &areas[n];
	const uint8_t *p = a->at + page * WL_PAGE;

	for (size_t i = 0; a->gen[page] && i < WL_PAGE; i += 8)
		wl_check(*(const uint64_t *)(p + i) == word(n, page, a->gen[page], i),
			 "%s memory, page %zu, byte %zu: expected %lx, got %lx", a->name, page, i,
			 word(n, page, a->gen[page], i), *(const uint64_t *)(p + i));
	for (size_t i = 0; !a->gen[page] && i < WL_PAGE; i++)
		wl_check(p[i] == first_byte(a, page, i),
			 "%s memory, page %zu, byte %zu, never written: expected %x, got %x",
			 a->name, page, i, first_byte(a, page, i), p[i]);
}

static void check_all(void)
{
	for (size_t n = 0; n < 3; n++)
		for (size_t page = 0; page < areas[n].pages; page++)
			check_page(n, page);
}

static void write_page(size_t n, size_t page)
{
	uint8_t *p = areas[n].at + page * WL_PAGE;

	areas[n].gen[page]++;
	for (size_t i = 0; i < WL_PAGE; i += 8)
		*(uint64_t *)(p + i) = word(n, page, areas[n].gen[page], i);
}

/* Private memory is as it was at first again, or zeros; of shared memory the pages go. */
static void discard(size_t n, size_t page, size_t len)
{
	struct area *a = &areas[n];

	wl_must(!madvise(a->at + page * WL_PAGE, len * WL_PAGE,
			 a->shared ? MADV_REMOVE : MADV_DONTNEED),
		"madvise");
	memset(a->gen + page, 0, len * sizeof(*a->gen));
}

static void map_anew(size_t n, size_t page, size_t len)
{
	struct area *a = &areas[n];

	if (a->shared || a->file)
		return;
	wl_must(mmap(a->at + page * WL_PAGE, len * WL_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		"mmap");
	memset(a->gen + page, 0, len * sizeof(*a->gen));
}

static void step(void)
{
	char text[32], path[256];

	check_all();
	for (int i = 0; i < CHANGES; i++) {
		size_t n = wl_rand(&rnd) % 3, page = wl_rand(&rnd) % areas[n].pages;
		size_t len = 1 + wl_rand(&rnd) % 40, what = wl_rand(&rnd) % 10;

		if (len > areas[n].pages - page)
			len = areas[n].pages - page;
		if (what == 0)
			discard(n, page, len);
		else if (what == 1)
			map_anew(n, page, len);
		else
			for (size_t k = 0; k < len; k++)
				write_page(n, page + k);
	}
	snprintf(text, sizeof(text), "%u\n", ++steps);
	unlink(wl_path(path, "step"));
	wl_write("step", text);
}

static void make_file(char path[256], size_t pages)
{
	uint8_t page[WL_PAGE];
	const struct area of = {.file = true};
	int fd = open(wl_path(path, "mapped"), O_WRONLY | O_CREAT | O_TRUNC, 0644);

	wl_must(fd >= 0, "open");
	for (size_t n = 0; n < pages; n++) {
		for (size_t i = 0; i < WL_PAGE; i++)
			page[i] = first_byte(&of, n, i);
		wl_must(write(fd, page, WL_PAGE) == WL_PAGE, "write");
	}
	close(fd);
}

static void make_areas(size_t pages)
{
	char path[256];

	make_file(path, pages);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	wl_must(fd >= 0, "open");
	areas[0] = (struct area){.name = "private"};
	areas[1] = (struct area){.name = "shared", .shared = true};
	areas[2] = (struct area){.name = "mapped", .file = true};
	for (size_t n = 0; n < 3; n++) {
		struct area *a = &areas[n];

		a->pages = pages;
		a->gen = calloc(pages, sizeof(*a->gen));
		a->at = mmap(NULL, pages * WL_PAGE, PROT_READ | PROT_WRITE,
			     (a->shared ? MAP_SHARED : MAP_PRIVATE) | (a->file ? 0 : MAP_ANONYMOUS),
			     a->file ? fd : -1, 0);
		wl_must(a->at != MAP_FAILED && a->gen, "mmap");
	}
	close(fd);
}

int main(int argc, char **argv)
{
	sigset_t set;

	wl_init(argc, argv);
	/* the kernel writes the number of the CPU into memory, rseq(2) */
	cpu_set_t cpus;
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	make_areas((size_t)wl_opt("mib", 8) * 256);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	step();
	wl_ready();
	for (;;) {
		int sig = sigwaitinfo(&set, NULL);

		if (sig == SIGUSR1)
			step();
		if (sig == SIGTERM)
			break;
	}
	check_all();
	wl_done();
}
