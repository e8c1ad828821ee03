/* How long a task waits for its memory, right after it was moved.
 *
 * --mib N (default 64), --pattern random|order|rewrite (default random), --work-us N (of computing
 * on each page, order; default 20), --shared (the memory is shared anonymous memory), --bus (pages
 * may be lost: DIR/lost says how many gave SIGBUS; all others must be right)
 *
 * random: once the host has changed, pages are touched at random; each touch of a page that
 * mincore(2) says is not there is timed. order: all pages are looked at in turn, over and over,
 * with some work for each; the first pass after the host has changed is timed, and those before it.
 * DIR/passed appears after three passes. DIR/report is answered by DIR/touched, JSON, once that is
 * over. At the end every page is checked.
 */
#include "workload.h"
#include <pthread.h>
#include <setjmp.h>
#include <sys/prctl.h>

enum { SAMPLES_MAX = 200000, PASSES_MAX = 4096, LOOK_US = 20 };

static uint8_t *memory;
static size_t n_pages;
static bool in_order, rewrites;
static uint64_t work_ns;
static _Atomic bool stopping, over;

static uint32_t waits_ns[SAMPLES_MAX];
static size_t n_waits;
static uint64_t passes_us[PASSES_MAX], pass_us;
static size_t n_passes;

static bool host_changed(const char *host)
{
	struct utsname u;

	return !uname(&u) && strcmp(u.nodename, host);
}

static uint64_t look_at(size_t i)
{
	const uint64_t *w = (const uint64_t *)(memory + i * WL_PAGE);

	wl_check(*(const volatile uint64_t *)w == i, "page %zu says that it is page %lu", i, w[0]);
	return w[1];
}

static void work(uint64_t until)
{
	while (wl_ns(CLOCK_MONOTONIC) < until)
		;
}

/* 0: given up, because the host changed or the end has come. */
static uint64_t pass(const char *host)
{
	const uint64_t t0 = wl_ns(CLOCK_MONOTONIC);

	for (size_t i = 0; i < n_pages; i++) {
		const uint64_t t = wl_ns(CLOCK_MONOTONIC);

		look_at(i);
		/* work takes its time, whether or not the page was waited for */
		work(wl_ns(CLOCK_MONOTONIC) - t > work_ns / 2 ? wl_ns(CLOCK_MONOTONIC) + work_ns
							      : t + work_ns);
		if (i % 16 == 0 && (stopping || (host && host_changed(host))))
			return 0;
	}
	return (wl_ns(CLOCK_MONOTONIC) - t0) / 1000;
}

static void touch_in_order(const char *host)
{
	while (!stopping && !host_changed(host)) {
		const uint64_t us = pass(host);

		if (us && n_passes < PASSES_MAX)
			passes_us[n_passes++] = us;
		if (n_passes == 3)
			wl_write("passed", "");
	}
	pass_us = pass(NULL);
}

static void touch_at_random(const char *host)
{
	uint64_t rnd = wl_mix(getpid());

	while (!stopping && !host_changed(host))
		wl_sleep_us(LOOK_US);
	for (size_t i = 0; i < n_pages && !stopping; i++) {
		const size_t page = wl_rand(&rnd) % n_pages;
		unsigned char there = 1;

		mincore(memory + page * WL_PAGE, WL_PAGE, &there);
		if (there & 1)
			continue;
		const uint64_t t = wl_ns(CLOCK_MONOTONIC);
		look_at(page);
		const uint64_t ns = wl_ns(CLOCK_MONOTONIC) - t;
		if (n_waits < SAMPLES_MAX)
			waits_ns[n_waits++] = ns < UINT32_MAX ? ns : UINT32_MAX;
	}
}

static void rewrite(const char *host)
{
	while (!stopping && !host_changed(host))
		for (size_t i = 0; i < n_pages; i++) {
			volatile uint64_t *w = (uint64_t *)(memory + i * WL_PAGE);
			const uint64_t same = w[1];

			if (i % 64 == 0 && host_changed(host))
				return;
			w[1] = same;
		}
}

static void *toucher_main(void *arg)
{
	char start[sizeof(wl.host)]; /* wl.host changes with the host */

	(void)arg;
	prctl(PR_SET_NAME, "touch-toucher");
	strcpy(start, wl.host);
	(in_order ? touch_in_order : rewrites ? rewrite : touch_at_random)(start);
	over = true;
	return NULL;
}

static int by_size32(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static int by_size64(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static double percentile(unsigned int percent)
{
	return n_waits ? waits_ns[(n_waits - 1) * percent / 100] / 1e3 : 0;
}

static void report(void)
{
	char text[512], path[256];

	qsort(waits_ns, n_waits, sizeof(*waits_ns), by_size32);
	qsort(passes_us, n_passes, sizeof(*passes_us), by_size64);
	snprintf(text, sizeof(text),
		 "{\"waits\":%zu,\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,"
		 "\"pass_us\":%lu,\"passes\":%zu,\"pass_before_us\":%lu}\n",
		 n_waits, percentile(50), percentile(90), percentile(99),
		 n_waits ? waits_ns[n_waits - 1] / 1e3 : 0, pass_us, n_passes,
		 n_passes ? passes_us[n_passes / 2] : 0);
	unlink(wl_path(path, "touched"));
	wl_write("touched", text);
}

static void set_up_memory(void)
{
	const char *pattern = wl_opt_str("pattern", "random");

	in_order = !strcmp(pattern, "order");
	rewrites = !strcmp(pattern, "rewrite");
	wl_check(in_order || rewrites || !strcmp(pattern, "random"), "no pattern %s", pattern);
	work_ns = wl_opt("work-us", 20) * 1000;
	n_pages = wl_opt("mib", 64) * 256;
	memory = mmap(NULL, n_pages * WL_PAGE, PROT_READ | PROT_WRITE,
		      MAP_ANONYMOUS | (wl_flag("shared") ? MAP_SHARED : MAP_PRIVATE), -1, 0);
	wl_must(memory != MAP_FAILED, "memory");
	for (size_t i = 0; i < n_pages; i++) {
		uint64_t *w = (uint64_t *)(memory + i * WL_PAGE);

		w[0] = i;
		for (size_t k = 1; k < WL_PAGE / 8; k++) /* nothing that compresses */
			w[k] = wl_mix(i * 0x100000001b3ull + k);
	}
}

static sigjmp_buf lost_page;

static void on_bus(int sig)
{
	(void)sig;
	siglongjmp(lost_page, 1);
}

static void check_page(size_t i)
{
	const uint64_t *w = (uint64_t *)(memory + i * WL_PAGE);

	for (size_t k = 1; k < WL_PAGE / 8; k++)
		wl_check(look_at(i) == w[1] && w[k] == wl_mix(i * 0x100000001b3ull + k),
			 "page %zu, word %zu: got 0x%lx", i, k, w[k]);
}

static void check_all(void)
{
	static volatile size_t i, lost;
	char text[32];

	if (wl_flag("bus"))
		signal(SIGBUS, on_bus);
	for (i = 0; i < n_pages; i++) {
		if (sigsetjmp(lost_page, 1))
			lost++;
		else
			check_page(i);
	}
	snprintf(text, sizeof(text), "%zu\n", lost);
	wl_write("lost", text);
}

int main(int argc, char **argv)
{
	pthread_t toucher;
	char path[256];

	wl_init(argc, argv);
	set_up_memory();
	wl_must(!(errno = pthread_create(&toucher, NULL, toucher_main, NULL)), "pthread_create");
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		if (over && wl_asked("report")) {
			report();
			unlink(wl_path(path, "report"));
		}
		wl_sleep_us(20000);
	}
	stopping = true;
	pthread_join(toucher, NULL);
	check_all();
	wl_done();
}
