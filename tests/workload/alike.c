/* Processes whose pages hold few different contents, each page one of them.
 *
 * --mib N for each process (16), --procs N (3), --contents N (40), --rate pages of each that become
 * another one of them every 20 ms (0) */
#include "workload.h"

static long contents, rate;
static size_t n_pages;
static uint8_t *mem;
static uint16_t *is; /* which content a page has */
static uint64_t seed;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void choose(size_t page)
{
	is[page] = (uint16_t)(rnd() % (uint64_t)contents);
	wl_page_fill(mem + page * WL_PAGE, is[page], 0);
}

static void check(void)
{
	for (size_t i = 0; i < n_pages; i++)
		wl_page_check(mem + i * WL_PAGE, is[i], 0, "one of many that are alike");
}

static void set_up(uint64_t nr)
{
	seed = 88172645463325252ull + nr * 7919;
	mem = mmap(NULL, n_pages * WL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		   0);
	is = calloc(n_pages, sizeof(*is));
	wl_must(mem != MAP_FAILED && is, "memory");
	for (size_t i = 0; i < n_pages; i++)
		choose(i);
}

static void write_some(void)
{
	for (long i = 0; i < rate; i++)
		choose(rnd() % n_pages);
}

/* Until the parent closes its end. */
static void child_main(uint64_t nr, int ready, int stop)
{
	char c;

	set_up(nr);
	wl_must(write(ready, "r", 1) == 1, "saying ready");
	fcntl(stop, F_SETFL, O_NONBLOCK);
	while (read(stop, &c, 1) < 0) {
		write_some();
		wl_sleep_us(20000);
	}
	check();
	_exit(0);
}

int main(int argc, char **argv)
{
	int ready[2], stop[2], st;
	char c;

	wl_init(argc, argv);
	n_pages = (size_t)wl_opt("mib", 16) * 256;
	contents = wl_opt("contents", 40);
	rate = wl_opt("rate", 0);
	long procs = wl_opt("procs", 3);
	wl_must(!pipe(ready) && !pipe(stop), "pipe");
	for (long i = 1; i < procs; i++) {
		pid_t pid = fork();

		wl_must(pid >= 0, "fork");
		if (!pid) {
			close(stop[1]);
			child_main((uint64_t)i, ready[1], stop[0]);
		}
		wl_must(read(ready[0], &c, 1) == 1, "a child that does not get ready");
	}
	set_up(0);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		write_some();
		wl_sleep_us(20000);
	}
	check();
	close(stop[1]);
	for (long i = 1; i < procs; i++) {
		wl_must(wait(&st) > 0, "wait");
		wl_check(WIFEXITED(st) && !WEXITSTATUS(st), "a child ended with 0x%x", st);
	}
	wl_done();
}
