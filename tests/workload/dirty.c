/* Memory written at a given rate, and the gaps in time that a task feels.
 *
 * --mib N (default 16), --rate MB/s (default 0: idle), --threads N writers (default 1), --shared
 * (anonymous memory that children would share; --of memfd, removed or shm: of a memfd, or of a file
 * in /dev/shm, removed or not, that stay open), --incompressible, --rt (tick at SCHED_FIFO, where
 * allowed), --order (pages in turn, not at random)
 *
 * A thread of its own ticks every 100 us and keeps the largest gaps between two ticks. DIR/gaps is
 * written as JSON at the end and whenever DIR/report appears (which is then removed); DIR/reset
 * forgets the gaps so far (and is removed). The gap in which the host last changed is kept apart,
 * as "move": on a busy machine it need not be the largest. Gaps are measured with CLOCK_REALTIME:
 * the hosts of one machine agree on it, so it is the time that really passed. */
#include "workload.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

enum { TOP_GAPS = 32, TICK_US = 100, BUCKETS = 24 };

/* ---- the tick ---- */

struct gap {
	uint64_t real_ns, mono_ns; /* length by either clock */
	uint64_t end_ns;           /* CLOCK_REALTIME at its end */
};
static struct {
	pthread_mutex_t lock;
	struct gap top[TOP_GAPS];
	struct gap move; /* end_ns 0: none */
	int n;
	uint64_t ticks, since_ns, histogram[BUCKETS]; /* by power of two of microseconds */
} gaps = {.lock = PTHREAD_MUTEX_INITIALIZER};
static _Atomic bool stopping;

static void gap_keep(const struct gap *g)
{
	int min = 0;

	if (gaps.n < TOP_GAPS) {
		gaps.top[gaps.n++] = *g;
		return;
	}
	for (int i = 1; i < TOP_GAPS; i++)
		if (gaps.top[i].real_ns < gaps.top[min].real_ns)
			min = i;
	if (g->real_ns > gaps.top[min].real_ns)
		gaps.top[min] = *g;
}

/* Asked right before the clock is read: a change of host fell into the gap that this reading ends,
 * or, between the last such question and the reading that followed it, into the one before. */
static bool host_changed(char host[65])
{
	struct utsname u;

	if (uname(&u) || !strcmp(u.nodename, host))
		return false;
	strcpy(host, u.nodename);
	return true;
}

static void *tick_main(void *arg)
{
	const struct timespec pause = {.tv_nsec = TICK_US * 1000};
	uint64_t real = wl_ns(CLOCK_REALTIME), mono = wl_ns(CLOCK_MONOTONIC);
	struct gap before = {0};
	char host[65] = "";

	(void)arg;
	host_changed(host);
	prctl(PR_SET_NAME, "dirty-tick");
	prctl(PR_SET_TIMERSLACK, 1);
	if (wl_flag("rt"))
		sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	while (!stopping) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);

		const bool moved = host_changed(host);
		const uint64_t r = wl_ns(CLOCK_REALTIME), m = wl_ns(CLOCK_MONOTONIC);
		const struct gap g = {.real_ns = r - real, .mono_ns = m - mono, .end_ns = r};
		const int bucket = 63 - __builtin_clzll(g.real_ns / 1000 | 1);

		pthread_mutex_lock(&gaps.lock);
		gaps.ticks++;
		gaps.histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
		gap_keep(&g);
		if (moved)
			gaps.move = before.real_ns > g.real_ns ? before : g;
		pthread_mutex_unlock(&gaps.lock);
		before = g;
		real = r;
		mono = m;
	}
	return NULL;
}

static void gaps_reset(void)
{
	pthread_mutex_lock(&gaps.lock);
	gaps.n = 0;
	gaps.move.end_ns = 0;
	gaps.ticks = 0;
	gaps.since_ns = wl_ns(CLOCK_REALTIME);
	memset(gaps.histogram, 0, sizeof(gaps.histogram));
	pthread_mutex_unlock(&gaps.lock);
}

static int by_length(const void *a, const void *b)
{
	const struct gap *x = a, *y = b;

	return x->real_ns < y->real_ns ? 1 : x->real_ns > y->real_ns ? -1 : 0;
}

static void gaps_write(void)
{
	static char text[8192];
	char path[256];
	char *p = text, *end = text + sizeof(text);

	pthread_mutex_lock(&gaps.lock);
	qsort(gaps.top, gaps.n, sizeof(gaps.top[0]), by_length);
	p += snprintf(
	    p, end - p,
	    "{\"host\":\"%s\",\"max_us\":%.1f,\"ticks\":%lu,\"since_realtime_ns\":%lu,\"gaps\":[",
	    wl.host, gaps.n ? gaps.top[0].real_ns / 1e3 : 0.0, gaps.ticks, gaps.since_ns);
	for (int i = 0; i < gaps.n; i++)
		p += snprintf(p, end - p,
			      "%s{\"us\":%.1f,\"monotonic_us\":%.1f,\"end_realtime_ns\":%lu}",
			      i ? "," : "", gaps.top[i].real_ns / 1e3, gaps.top[i].mono_ns / 1e3,
			      gaps.top[i].end_ns);
	p += snprintf(p, end - p, "],\"histogram_us_log2\":[");
	for (int i = 0; i < BUCKETS; i++)
		p += snprintf(p, end - p, "%s%lu", i ? "," : "", gaps.histogram[i]);
	p += snprintf(p, end - p, "]");
	if (gaps.move.end_ns)
		p += snprintf(
		    p, end - p,
		    ",\"move\":{\"us\":%.1f,\"monotonic_us\":%.1f,\"end_realtime_ns\":%lu}",
		    gaps.move.real_ns / 1e3, gaps.move.mono_ns / 1e3, gaps.move.end_ns);
	snprintf(p, end - p, "}\n");
	pthread_mutex_unlock(&gaps.lock);
	unlink(wl_path(path, "gaps"));
	wl_write("gaps", text);
}

/* ---- the memory ---- */

static uint8_t *memory;
static uint32_t *seqs; /* what each page must say */
static size_t n_pages;
static int n_writers;
static bool incompressible;
static double rate; /* bytes per second of one writer */

static void page_write(size_t i)
{
	uint64_t *w = (uint64_t *)(memory + i * WL_PAGE);
	const uint64_t seq = ++seqs[i];

	if (!incompressible) {
		wl_page_fill(w, i, seq);
		for (size_t k = 128; k < WL_PAGE / 8; k++) /* three quarters of it are easy */
			w[k] = seq;
		return;
	}
	for (uint64_t k = 0; k < WL_PAGE / 8; k++)
		w[k] = wl_mix(i * 0x100000001b3ull + (seq << 32) + k);
}

static void page_verify(size_t i)
{
	const uint64_t *w = (uint64_t *)(memory + i * WL_PAGE), seq = seqs[i],
		       v = wl_mix(i ^ (seq << 40));

	for (uint64_t k = 0; k < WL_PAGE / 8; k++) {
		const uint64_t want = incompressible
					  ? wl_mix(i * 0x100000001b3ull + (seq << 32) + k)
				      : k >= 128 ? seq
				      : k == 0   ? i
				      : k == 1   ? seq
						 : v + k;

		wl_check(w[k] == want,
			 "page %zu in its generation %lu, word %lu: expected 0x%lx, got 0x%lx "
			 "(words 0, 1: "
			 "0x%lx 0x%lx)",
			 i, seq, k, want, w[k], w[0], w[1]);
	}
}

/* Writer t owns the pages that are t modulo the number of writers. */
static size_t pick(int t, uint64_t *rnd)
{
	const size_t own = n_pages / n_writers;

	return (wl_rand(rnd) % own) * n_writers + t;
}

static void *writer_main(void *arg)
{
	const int t = (intptr_t)arg;
	const long nap_us = rate > 0 ? 1000 + (n_writers > 4 ? 9000 : 0) : 100000;
	uint64_t rnd = wl_mix(t), last = wl_ns(CLOCK_MONOTONIC), turn = 0;
	double due = 0;

	prctl(PR_SET_NAME, "dirty-writer");
	while (!stopping) {
		const uint64_t now = wl_ns(CLOCK_MONOTONIC);

		due += (now - last) / 1e9 * rate;
		if (due > rate / 20) /* after a stall do not try to catch up with more than 50 ms */
			due = rate / 20;
		last = now;
		for (; due >= WL_PAGE; due -= WL_PAGE)
			page_write(wl_flag("order")
				       ? (turn++ % (n_pages / n_writers)) * n_writers + t
				       : pick(t, &rnd));
		page_verify(pick(t, &rnd));
		wl_sleep_us(nap_us);
	}
	return NULL;
}

static int file_to_share(const char *what)
{
	char path[64];

	if (!*what)
		return -1;
	if (!strcmp(what, "memfd"))
		return memfd_create("dirty", MFD_CLOEXEC);
	snprintf(path, sizeof(path), "/dev/shm/dirty.%d", getpid());
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (!strcmp(what, "removed"))
		unlink(path);
	return fd;
}

static uint8_t *get_memory(size_t bytes)
{
	const char *what = wl_opt_str("of", "");
	int fd = file_to_share(what);
	int flags = (wl_flag("shared") ? MAP_SHARED : MAP_PRIVATE) | (*what ? 0 : MAP_ANONYMOUS);

	wl_must(!*what || (fd >= 0 && !ftruncate(fd, (off_t)bytes)), what);
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
	wl_must(p != MAP_FAILED, "memory");
	return p;
}

static void set_up_memory(void)
{
	n_pages = wl_opt("mib", 16) * 256;
	n_writers = wl_opt("threads", 1);
	rate = wl_opt("rate", 0) * 1e6 / n_writers;
	incompressible = wl_flag("incompressible");
	wl_check(n_writers > 0 && n_pages >= (size_t)n_writers, "more threads than pages");
	n_pages -= n_pages % n_writers;
	if (wl_flag("idle"))
		rate = 0;
	memory = get_memory(n_pages * WL_PAGE);
	seqs = calloc(n_pages, sizeof(*seqs));
	wl_must(seqs, "memory");
	for (size_t i = 0; i < n_pages; i++)
		page_write(i);
}

static void answer_requests(void)
{
	char path[256];

	if (wl_asked("reset")) {
		gaps_reset();
		unlink(wl_path(path, "reset"));
	}
	if (wl_asked("report")) {
		gaps_write();
		unlink(wl_path(path, "report"));
	}
}

int main(int argc, char **argv)
{
	pthread_attr_t attr;
	pthread_t tick, *writers;

	wl_init(argc, argv);
	set_up_memory();
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	writers = calloc(n_writers, sizeof(*writers));
	for (intptr_t t = 0; t < n_writers; t++)
		wl_must(!(errno = pthread_create(&writers[t], &attr, writer_main, (void *)t)),
			"pthread_create");
	gaps_reset();
	wl_must(!(errno = pthread_create(&tick, &attr, tick_main, NULL)), "pthread_create");
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		answer_requests();
		wl_sleep_us(20000);
	}
	stopping = true;
	pthread_join(tick, NULL);
	for (int t = 0; t < n_writers; t++)
		pthread_join(writers[t], NULL);
	for (size_t i = 0; i < n_pages; i++)
		page_verify(i);
	gaps_write();
	wl_done();
}
