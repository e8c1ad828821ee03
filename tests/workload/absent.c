/* What a task may do to memory whose pages have not arrived yet, right after it was moved.
 *
 * Every step has a region of its own that nobody has touched since the move, and a model of what it
 * must hold afterwards. DIR/absent says of how many steps pages were in fact missing at the time
 * (mincore(2)): a test can see that it has tested something. */
#include "workload.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/uio.h>

enum { PAGES = 64, STEPS_MAX = 32, GEN = 3, THREADS = 4 };

static size_t n_steps, n_absent;
static uint8_t *regions[STEPS_MAX];
static int spare_pipe[2];
static pid_t helper; /* forked before the move: looks into our memory from outside */
static int to_helper[2], from_helper[2];

static uint64_t id_of(size_t step, size_t page)
{
	return step * 1000 + page;
}

static void check_pages(const uint8_t *p, size_t step, size_t first, size_t n, const char *what)
{
	for (size_t i = 0; i < n; i++)
		wl_page_check(p + i * WL_PAGE, id_of(step, first + i), GEN, what);
}

static void check_zero(const uint8_t *p, size_t n, const char *what)
{
	for (size_t i = 0; i < n * WL_PAGE; i++)
		wl_check(!p[i], "%s: byte %zu is 0x%x, expected 0", what, i, p[i]);
}

/* A region for a step; counts whether anything of it is missing. */
static uint8_t *begin(size_t *step)
{
	unsigned char there[PAGES];
	uint8_t *p = regions[n_steps];
	bool absent = false;

	wl_must(!mincore(p, PAGES * WL_PAGE, there), "mincore");
	for (size_t i = 0; i < PAGES; i++)
		absent |= !(there[i] & 1);
	n_absent += absent;
	*step = n_steps++;
	wl_check(n_steps <= STEPS_MAX, "too many steps");
	return p;
}

/* ---- system calls ---- */

static void step_read(void)
{
	size_t s;
	uint8_t *p = begin(&s), old[WL_PAGE];

	wl_page_fill(old, id_of(s, 1), GEN);
	memset(old + 2000, 'x', 100);
	for (int i = 0; i < 100; i++)
		wl_must(write(spare_pipe[1], "x", 1) == 1, "write");
	wl_same("read into a missing page", 100, read(spare_pipe[0], p + WL_PAGE + 2000, 100));
	wl_check(!memcmp(p + WL_PAGE, old, WL_PAGE), "read(2) damaged the page around it");
	check_pages(p, s, 0, 1, "before what was read");
	check_pages(p + 2 * WL_PAGE, s, 2, PAGES - 2, "behind what was read");
}

static void step_write(void)
{
	size_t s;
	uint8_t *p = begin(&s), got[2 * WL_PAGE];

	wl_same("write out of missing pages", 2 * WL_PAGE,
		write(spare_pipe[1], p + 4 * WL_PAGE, 2 * WL_PAGE));
	wl_same("read", 2 * WL_PAGE, read(spare_pipe[0], got, sizeof(got)));
	check_pages(got, s, 4, 2, "what write(2) sent");
}

static void step_vm_readv(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	struct {
		uint8_t *p;
		size_t step;
	} rq = {p, s};
	char verdict;

	wl_must(write(to_helper[1], &rq, sizeof(rq)) == sizeof(rq), "asking the helper");
	wl_must(read(from_helper[0], &verdict, 1) == 1, "hearing the helper");
	wl_check(verdict == 'y', "process_vm_readv(2) from outside: %c", verdict);
	check_pages(p, s, 0, PAGES, "after process_vm_readv");
}

static void help(pid_t of)
{
	static uint8_t buf[PAGES * WL_PAGE];
	struct {
		uint8_t *p;
		size_t step;
	} rq;

	while (read(to_helper[0], &rq, sizeof(rq)) == sizeof(rq)) {
		struct iovec local = {buf, sizeof(buf)}, remote = {rq.p, sizeof(buf)};
		ssize_t n = process_vm_readv(of, &local, 1, &remote, 1, 0);

		if (n == (ssize_t)sizeof(buf))
			check_pages(buf, rq.step, 0, PAGES, "process_vm_readv");
		wl_must(write(from_helper[1], n == (ssize_t)sizeof(buf) ? "y" : "n", 1) == 1,
			"answering");
	}
	_exit(0);
}

static void step_futex(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	const struct timespec soon = {.tv_nsec = 1000000};
	long r = syscall(SYS_futex, p + 7 * WL_PAGE, FUTEX_WAIT_PRIVATE, id_of(s, 7), &soon, 0, 0);

	wl_check(r == -1 && errno == ETIMEDOUT, "futex(2) on a missing page: %s", strerror(errno));
	check_pages(p, s, 0, PAGES, "after futex");
}

/* ---- threads and processes ---- */

static struct {
	uint8_t *p;
	size_t step;
	_Atomic int go;
} common;

static void *touch_main(void *arg)
{
	(void)arg;
	while (!common.go)
		;
	check_pages(common.p, common.step, 0, PAGES, "touched by several threads");
	return NULL;
}

static void step_threads(void)
{
	pthread_t t[THREADS];

	common.p = begin(&common.step);
	for (int i = 0; i < THREADS; i++)
		wl_must(!(errno = pthread_create(&t[i], NULL, touch_main, NULL)), "pthread_create");
	common.go = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
}

static void wait_ok(pid_t pid, const char *what)
{
	int st;

	wl_must(pid > 0 && waitpid(pid, &st, 0) == pid, what);
	wl_check(WIFEXITED(st) && !WEXITSTATUS(st), "%s: status 0x%x", what, st);
}

static void step_fork(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	pid_t pid = fork();

	if (!pid) {
		check_pages(p, s, 0, PAGES, "in a child forked meanwhile");
		memset(p, 1, WL_PAGE);
		_exit(0);
	}
	check_pages(p, s, 0, PAGES, "in the parent after fork");
	wait_ok(pid, "fork");
	check_pages(p, s, 0, 1, "what the child wrote is the child's");
}

static void step_fork_and_discard(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	pid_t pid = fork();

	if (!pid) {
		madvise(p, 8 * WL_PAGE, MADV_DONTNEED);
		check_zero(p, 8, "discarded in the child");
		check_pages(p + 8 * WL_PAGE, s, 8, PAGES - 8, "the rest in the child");
		_exit(0);
	}
	wait_ok(pid, "fork and discard");
	check_pages(p, s, 0, PAGES, "discarded in the child alone");
}

static void step_exec(void)
{
	size_t s;

	begin(&s);
	pid_t pid = fork();
	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	wait_ok(pid, "exec with missing pages");
	check_pages(regions[s], s, 0, PAGES, "after a child's exec");
}

static void step_exit(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	wait_ok(pid, "exit with missing pages");
	check_pages(p, s, 0, PAGES, "after a child's exit");
}

static void step_killed(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	pid_t pid = fork();
	int st;

	if (!pid) {
		for (;;)
			check_pages(p, s, 0, PAGES, "in a child that is killed");
	}
	kill(pid, SIGKILL); /* most likely while it waits for a page */
	wl_must(waitpid(pid, &st, 0) == pid && WIFSIGNALED(st), "a child that was killed");
	check_pages(p, s, 0, PAGES, "after a child was killed");
}

/* ---- changes of the address space ---- */

static void step_move(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	uint8_t *q = mmap(NULL, 2 * PAGES * WL_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	wl_must(q != MAP_FAILED, "mmap");
	uint8_t *r =
	    mremap(p, PAGES * WL_PAGE, 2 * PAGES * WL_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q);
	wl_must(r == q, "mremap");
	check_zero(r + PAGES * WL_PAGE, PAGES, "what mremap added");
	check_pages(r, s, 0, PAGES, "moved by mremap");
	regions[s] = r;
}

static void step_move_a_part(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	uint8_t *q = mremap(p + 16 * WL_PAGE, 16 * WL_PAGE, 16 * WL_PAGE,
			    MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);

	wl_must(q != MAP_FAILED, "mremap of a part");
	check_zero(p + 16 * WL_PAGE, 16, "what MREMAP_DONTUNMAP left");
	check_pages(q, s, 16, 16, "a part moved by mremap");
	check_pages(p, s, 0, 16, "before the part that moved");
	check_pages(p + 32 * WL_PAGE, s, 32, PAGES - 32, "behind the part that moved");
}

static void step_discard(void)
{
	size_t s;
	uint8_t *p = begin(&s);

	wl_must(!madvise(p + 8 * WL_PAGE, 8 * WL_PAGE, MADV_DONTNEED), "MADV_DONTNEED");
	check_zero(p + 8 * WL_PAGE, 4, "discarded");
	wl_sleep_us(300000); /* what is on its way arrives */
	check_zero(p + 8 * WL_PAGE, 8, "discarded, later");
	check_pages(p, s, 0, 8, "before what was discarded");
	check_pages(p + 16 * WL_PAGE, s, 16, PAGES - 16, "behind what was discarded");
}

static void step_map_over(void)
{
	size_t s;
	uint8_t *p = begin(&s);

	munmap(p + 8 * WL_PAGE, 8 * WL_PAGE);
	wl_must(mmap(p + 8 * WL_PAGE, 16 * WL_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + 8 * WL_PAGE,
		"mmap over it");
	check_zero(p + 8 * WL_PAGE, 16, "mapped anew");
	check_pages(p, s, 0, 8, "before what was mapped anew");
	check_pages(p + 24 * WL_PAGE, s, 24, PAGES - 24, "behind what was mapped anew");
}

static void step_protect(void)
{
	size_t s;
	uint8_t *p = begin(&s);

	wl_must(!mprotect(p, PAGES * WL_PAGE, PROT_NONE) &&
		    !mprotect(p, PAGES * WL_PAGE, PROT_READ),
		"mprotect");
	check_pages(p, s, 0, PAGES, "after mprotect");
}

static void step_lock(void)
{
	size_t s;
	uint8_t *p = begin(&s);

	wl_must(!mlock(p, 4 * WL_PAGE), "mlock");
	check_pages(p, s, 0, PAGES, "after mlock");
	munlock(p, 4 * WL_PAGE);
}

static void step_populate(void)
{
	size_t s;
	uint8_t *p = begin(&s);

	wl_must(!madvise(p, PAGES * WL_PAGE, 23 /* MADV_POPULATE_WRITE, 5.14 */), "populate");
	check_pages(p, s, 0, PAGES, "after MADV_POPULATE_WRITE");
}

/* A core of a process that lacks pages: it ends, by that signal. */
static void step_core(void)
{
	size_t s;
	uint8_t *p = begin(&s);
	pid_t pid = fork();
	int st;

	if (!pid) {
		signal(SIGABRT, SIG_DFL);
		abort();
	}
	wl_must(waitpid(pid, &st, 0) == pid && WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT,
		"a child that dumps core");
	check_pages(p, s, 0, PAGES, "after a child's core dump");
}

static void (*const STEPS[])(void) = {
    step_discard, step_read,     step_write,    step_vm_readv,         step_futex,
    step_threads, step_fork,     step_exec,     step_fork_and_discard, step_exit,
    step_killed,  step_move,     step_map_over, step_move_a_part,      step_protect,
    step_lock,    step_populate, step_core,
};

static void set_up(void)
{
	wl_must(!pipe(spare_pipe) && !pipe(to_helper) && !pipe(from_helper), "pipe");
	for (size_t k = 0; k < sizeof(STEPS) / sizeof(STEPS[0]); k++) {
		/* apart, so that each is a mapping of its own */
		uint8_t *p = mmap(NULL, (PAGES + 16) * WL_PAGE, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		wl_must(p != MAP_FAILED && !mprotect(p, PAGES * WL_PAGE, PROT_READ | PROT_WRITE),
			"memory");
		for (size_t i = 0; i < PAGES; i++)
			wl_page_fill(p + i * WL_PAGE, id_of(k, i), GEN);
		regions[k] = p;
	}
	pid_t of = getpid();
	helper = fork();
	wl_must(helper >= 0, "fork");
	if (!helper) {
		close(to_helper[1]);
		help(of);
	}
	close(to_helper[0]);
}

int main(int argc, char **argv)
{
	char text[64];
	bool done = false;

	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		if (wl_tick() && !done) {
			for (size_t k = 0; k < sizeof(STEPS) / sizeof(STEPS[0]); k++)
				STEPS[k]();
			snprintf(text, sizeof(text), "%zu of %zu\n", n_absent, n_steps);
			wl_write("absent", text);
			done = true;
		}
		wl_sleep_us(20000);
	}
	close(to_helper[1]);
	waitpid(helper, NULL, 0);
	wl_done();
}
