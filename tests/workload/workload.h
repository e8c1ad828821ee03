/* What every workload shares: the contract with the tests, in one header.
 *
 *   WORKLOAD [options] --dir DIR
 *
 * DIR is seen by all hosts. The workload writes there
 *   pid       its pid as its host sees it
 *   progress  a symbolic link whose target text is "TICKS HOST PID REALTIME_MS MOVES": replaced
 *             atomically every 20 ms without holding a descriptor, and read back before each
 *             replacement, so that two living copies notice each other
 *   ready     everything is set up
 *   result    "OK", or "FAIL: what, expected, got" as soon as anything is wrong
 * and ends (0 or 1) with a last full check once DIR/stop exists.
 *
 * wl_tick() belongs to one thread of one process; wl_fail() may be called by any. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define WL_PAGE 4096ul
#define WL_UNUSED __attribute__((unused))
enum { WL_PUBLISH_NS = 20000000, WL_CLOCK_AHEAD_NS = 1000000, WL_CLOCK_NOISE_NS = 50000 };

static struct {
	char dir[160];
	char host[65];  /* where we run, by uname(2) */
	char last[256]; /* what `progress` must still say */
	uint64_t ticks; /* calls of wl_tick() */
	uint64_t moves; /* times that the host changed */
	uint64_t mono_ns, boot_ns, published_ns;
	int64_t mono_off_ns, boot_off_ns; /* clock minus CLOCK_REALTIME */
	int argc;
	char **argv;
	uint64_t args; /* what they and the environment say: pages that nobody touches for long */
} wl;

/* ---- options: "--name value" and "--name" ---- */

static inline const char *wl_opt_str(const char *name, const char *dflt)
{
	for (int i = 1; i + 1 < wl.argc; i++)
		if (!strncmp(wl.argv[i], "--", 2) && !strcmp(wl.argv[i] + 2, name))
			return wl.argv[i + 1];
	return dflt;
}

static inline long wl_opt(const char *name, long dflt)
{
	const char *s = wl_opt_str(name, NULL);

	return s ? strtol(s, NULL, 0) : dflt;
}

static inline bool wl_flag(const char *name)
{
	for (int i = 1; i < wl.argc; i++)
		if (!strncmp(wl.argv[i], "--", 2) && !strcmp(wl.argv[i] + 2, name))
			return true;
	return false;
}

/* ---- results ---- */

static inline const char *wl_path(char buf[256], const char *name)
{
	snprintf(buf, 256, "%s/%s", wl.dir, name);
	return buf;
}

/* DIR/name with that text, all at once; the first writer wins. */
static inline void wl_write(const char *name, const char *text)
{
	char tmp[300], path[256];
	int fd;

	snprintf(tmp, sizeof(tmp), "%s/.%s.%d", wl.dir, name, (int)syscall(SYS_gettid));
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		dprintf(2, "cannot write %s: %s\n", tmp, strerror(errno));
		_exit(1);
	}
	close(fd);
	link(tmp, wl_path(path, name));
	unlink(tmp);
}

static inline void wl_keep_maps(void)
{
	char buf[4096], path[256];
	int in = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	int out =
	    open(wl_path(path, "evidence.maps"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	for (ssize_t n; in >= 0 && out >= 0 && (n = read(in, buf, sizeof(buf))) > 0;)
		if (write(out, buf, n) < 0)
			break;
}

/* Something is not as it must be: say so, keep the evidence, end. */
__attribute__((noreturn, format(printf, 1, 2))) WL_UNUSED static void wl_fail(const char *fmt, ...)
{
	char what[700], text[1000];
	struct utsname u = {0};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	uname(&u);
	snprintf(text, sizeof(text), "FAIL: %s [on %s, pid %d, tid %d, %lu moves seen, tick %lu]\n",
		 what, u.nodename, getpid(), (int)syscall(SYS_gettid), wl.moves, wl.ticks);
	dprintf(2, "%s", text);
	wl_write("result", text);
	wl_keep_maps();
	_exit(1);
}

#define wl_check(cond, ...)                                                                        \
	do {                                                                                       \
		if (!(cond))                                                                       \
			wl_fail(__VA_ARGS__);                                                      \
	} while (0)
/* A call of the workload's own that must work; errno is said. */
#define wl_must(cond, what) wl_check((cond), "%s: %s", (what), strerror(errno))
#define wl_same(what, expected, got)                                                               \
	wl_check((long)(expected) == (long)(got), "%s: expected %ld (0x%lx), got %ld (0x%lx)",     \
		 (what), (long)(expected), (long)(expected), (long)(got), (long)(got))

extern char **environ;

static inline uint64_t wl_args(void)
{
	char **const lists[] = {wl.argv, environ};
	uint64_t sum = 0;

	for (int i = 0; i < 2; i++)
		for (char **p = lists[i]; p && *p; p++)
			for (const char *c = *p; *c; c++)
				sum = sum * 31 + (unsigned char)*c;
	return sum;
}

WL_UNUSED __attribute__((noreturn)) static void wl_done(void)
{
	wl_check(wl_args() == wl.args, "arguments or environment have changed: %s ...",
		 wl.argv[0] ? wl.argv[0] : "none");
	wl_write("result", "OK\n");
	exit(0);
}

/* ---- fatal signals become a result too ----
 * No libc and no thread-local storage here: a wrong FS base is one of the things to be told. */

static inline long wl_raw(long nr, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}

static inline char *wl_hex(char *p, const char *label, uint64_t v)
{
	while (*label)
		*p++ = *label++;
	for (int i = 60; i >= 0; i -= 4)
		*p++ = "0123456789abcdef"[(v >> i) & 15];
	return p;
}

static char wl_crash_path[256];

__attribute__((optimize("no-stack-protector"))) static void wl_crash(int sig, siginfo_t *si,
								     void *ctx)
{
	const greg_t *r = ((ucontext_t *)ctx)->uc_mcontext.gregs;
	struct utsname u = {0};
	char text[700], *p = text;
	int fd;

	wl_raw(SYS_uname, (long)&u, 0, 0, 0);
	p = wl_hex(p, "FAIL: fatal signal 0x", sig);
	p = wl_hex(p, " code 0x", (uint32_t)si->si_code);
	p = wl_hex(p, " address 0x", (uint64_t)si->si_addr);
	p = wl_hex(p, " rip 0x", r[REG_RIP]);
	p = wl_hex(p, " rsp 0x", r[REG_RSP]);
	p = wl_hex(p, " rax 0x", r[REG_RAX]);
	p = wl_hex(p, " tid 0x", wl_raw(SYS_gettid, 0, 0, 0, 0));
	for (const char *h = " on "; *h; h++)
		*p++ = *h;
	for (const char *h = u.nodename; *h; h++)
		*p++ = *h;
	*p++ = '\n';
	wl_raw(SYS_write, 2, (long)text, p - text, 0);
	fd = wl_raw(SYS_open, (long)wl_crash_path, O_WRONLY | O_CREAT | O_EXCL, 0644, 0);
	if (fd >= 0)
		wl_raw(SYS_write, fd, (long)text, p - text, 0);
	wl_raw(SYS_exit_group, 1, 0, 0, 0);
}

static inline void wl_catch_crashes(void)
{
	static char stack[16384];
	const stack_t ss = {.ss_sp = stack, .ss_size = sizeof(stack)};
	const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTRAP};
	struct sigaction sa = {.sa_sigaction = wl_crash, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	wl_path(wl_crash_path, "result");
	sigaltstack(&ss, NULL);
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		sigaction(fatal[i], &sa, NULL);
}

/* ---- time ---- */

static inline uint64_t wl_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static inline struct timespec wl_timespec(uint64_t ns)
{
	return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static inline void wl_sleep_us(long us)
{
	const struct timespec ts = wl_timespec(us * 1000ull);

	nanosleep(&ts, NULL); /* EINTR is fine: relative sleeps may end early across a move */
}

/* id minus CLOCK_REALTIME, to a few microseconds: the best of some tries. */
static inline int64_t wl_clock_offset(clockid_t id)
{
	uint64_t best = UINT64_MAX, a, r, b;
	int64_t off = 0;

	for (int i = 0; i < 20 && best > 2000; i++) {
		a = wl_ns(id);
		r = wl_ns(CLOCK_REALTIME);
		b = wl_ns(id);
		if (b - a < best) {
			best = b - a;
			off = (int64_t)(a + (b - a) / 2 - r);
		}
	}
	return off;
}

static inline bool wl_asked(const char *name)
{
	char path[256];

	return !access(wl_path(path, name), F_OK);
}

/* Never back at any time; across a move at most 1 ms ahead of the time that really passed, and not
 * behind it either, unless the file `stored` says that it has been in an image, where time stands
 * still. */
static inline void wl_check_clock(clockid_t id, const char *name, bool moved, uint64_t *last,
				  int64_t *off)
{
	const uint64_t now = wl_ns(id);
	const int64_t o = wl_clock_offset(id), d = o - *off;

	wl_check(now >= *last, "%s went back: from %lu to %lu ns", name, *last, now);
	*last = now;
	*off = o;
	if (!moved)
		return;
	dprintf(2, "moved to %s: %s is %ld ns ahead\n", wl.host, name, (long)d);
	wl_check((d >= -WL_CLOCK_NOISE_NS || wl_asked("stored")) &&
		     d <= WL_CLOCK_AHEAD_NS + WL_CLOCK_NOISE_NS,
		 "%s after the move: expected 0 to 1 ms ahead, got %ld ns", name, (long)d);
}

/* ---- life ---- */

static inline bool wl_stop(void)
{
	return wl_asked("stop");
}

static inline void wl_publish(void)
{
	char next[256], seen[256], tmp[300], path[256];
	ssize_t n;

	wl_path(path, "progress");
	snprintf(tmp, sizeof(tmp), "%s/.progress.%d", wl.dir, getpid());
	n = readlink(path, seen, sizeof(seen) - 1);
	seen[n < 0 ? 0 : n] = 0;
	/* again: it ran elsewhere meanwhile, which is over, and goes on from before that */
	wl_check(!strcmp(seen, wl.last) || wl_asked("again"),
		 "someone else published progress: expected '%s', got '%s'", wl.last, seen);
	snprintf(next, sizeof(next), "%lu %s %d %lu %lu", wl.ticks, wl.host, getpid(),
		 wl_ns(CLOCK_REALTIME) / 1000000, wl.moves);
	wl_check(!symlink(next, tmp), "another copy publishes progress at the same time (%s): %s",
		 tmp, strerror(errno));
	wl_must(!rename(tmp, path), "rename progress");
	strcpy(wl.last, next);
}

/* Call often: checks the clocks, notices a move, shows progress. True right after a move. */
WL_UNUSED static bool wl_tick(void)
{
	const uint64_t now = wl_ns(CLOCK_MONOTONIC);
	struct utsname u;
	bool moved;

	wl.ticks++;
	wl_check(now >= wl.mono_ns, "CLOCK_MONOTONIC went back: from %lu to %lu ns", wl.mono_ns,
		 now);
	wl.mono_ns = now;
	if (now - wl.published_ns < WL_PUBLISH_NS)
		return false;
	uname(&u);
	moved = strcmp(u.nodename, wl.host) != 0;
	if (moved) {
		wl.moves++;
		strcpy(wl.host, u.nodename);
	}
	wl_check_clock(CLOCK_MONOTONIC, "CLOCK_MONOTONIC", moved, &wl.mono_ns, &wl.mono_off_ns);
	wl_check_clock(CLOCK_BOOTTIME, "CLOCK_BOOTTIME", moved, &wl.boot_ns, &wl.boot_off_ns);
	wl_publish();
	wl.published_ns = now;
	return moved;
}

WL_UNUSED static void wl_init(int argc, char **argv)
{
	struct utsname u;

	wl.argc = argc;
	wl.argv = argv;
	wl.args = wl_args();
	snprintf(wl.dir, sizeof(wl.dir), "%s", wl_opt_str("dir", ""));
	if (wl.dir[0] != '/') {
		fprintf(stderr, "usage: %s [options] --dir DIR (an absolute path)\n", argv[0]);
		exit(2);
	}
	wl_catch_crashes();
	uname(&u);
	strcpy(wl.host, u.nodename);
	wl.mono_off_ns = wl_clock_offset(CLOCK_MONOTONIC);
	wl.boot_off_ns = wl_clock_offset(CLOCK_BOOTTIME);
}

/* Call when all is set up. */
WL_UNUSED static void wl_ready(void)
{
	char pid[32];

	snprintf(pid, sizeof(pid), "%d\n", getpid());
	wl_write("pid", pid);
	wl_publish();
	wl_write("ready", "");
}

/* ---- memory contents that describe themselves ---- */

static inline uint64_t wl_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull; /* splitmix64 */
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* The page with that id in its generation gen; generation 0 is all zeros. */
static inline void wl_page_fill(void *page, uint64_t id, uint64_t gen)
{
	uint64_t *w = page, v = wl_mix(id ^ (gen << 40));

	for (size_t i = 0; i < WL_PAGE / 8; i++)
		w[i] = gen ? v + i : 0;
	if (gen) {
		w[0] = id;
		w[1] = gen;
	}
}

static inline void wl_page_check(const void *page, uint64_t id, uint64_t gen, const char *what)
{
	const uint64_t *w = page, v = wl_mix(id ^ (gen << 40));

	for (size_t i = 0; i < WL_PAGE / 8; i++) {
		const uint64_t want = !gen ? 0 : i == 0 ? id : i == 1 ? gen : v + i;

		if (w[i] == want)
			continue;
		char path[256];
		int fd = open(wl_path(path, "evidence.page"), O_WRONLY | O_CREAT | O_TRUNC, 0644);

		if (fd >= 0)
			(void)!write(fd, page, WL_PAGE);
		wl_fail("%s: page id %lu at %p, generation %lu, word %zu: expected 0x%lx, got "
			"0x%lx (page says id "
			"%lu generation %lu)",
			what, id, page, gen, i, want, w[i], w[0], w[1]);
	}
}

/* A small generator: each user keeps its own state. */
static inline uint64_t wl_rand(uint64_t *state)
{
	return wl_mix((*state)++);
}
