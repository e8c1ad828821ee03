/* A server that forks its workers first: a large memory that all share copy-on-write, of which each
 * process changes a part. Every process knows what each of its pages has to be.
 *
 * --mib N (default 64), --workers N (default 6), --depth N of a chain of forks (default 3), --rate
 * PAGES that the first process writes every 10 ms (default 0), --snapshots: it also forks children
 * all the time that check their memory while it goes on changing its own, and end */
#include "workload.h"
#include <sys/prctl.h>

enum { MAX_PROCS = 64, STRIDE = 64, HOLE_PAGES = 64, LINK_PAGES = 64, TURN_US = 10000 };

static struct {
	_Atomic bool stop;
	_Atomic int up;
	_Atomic uint64_t turns[MAX_PROCS];
} * shared;

static int index_of; /* 0: the first */
static uint8_t *heap, *wiped, *own;
static size_t pages;
static struct page_state { /* of each page: who wrote it last, and how often it has been */
	uint32_t who, gen;
	bool unmapped;
} * state;
static uint64_t seed;

static uint64_t page_id(size_t p)
{
	return p + ((uint64_t)state[p].who << 32);
}

static void write_page(size_t p)
{
	if (state[p].unmapped)
		return;
	state[p].who = (uint32_t)index_of;
	state[p].gen++;
	wl_page_fill(heap + p * WL_PAGE, page_id(p), state[p].gen);
}

static void check_page(size_t p)
{
	if (!state[p].unmapped)
		wl_page_check(heap + p * WL_PAGE, page_id(p), state[p].gen, "page of the heap");
}

static void check_all(void)
{
	for (size_t p = 0; p < pages; p++)
		check_page(p);
	wl_page_check(wiped, 7, index_of ? 0 : 1, "memory wiped on fork");
	if (!index_of)
		wl_page_check(own, 8, 1, "memory that children do not have");
}

static void write_stride(int which)
{
	for (size_t p = (size_t)which; p < pages; p += STRIDE)
		write_page(p);
}

/* ---- one worker ---- */

/* What else a process may do to memory that it shares. */
static void change_layout(void)
{
	size_t at = pages / 2;

	if (index_of == 1) { /* as after a fork: nothing there */
		for (size_t p = 32; p < pages; p += STRIDE) {
			wl_must(!madvise(heap + p * WL_PAGE, WL_PAGE, MADV_DONTNEED), "madvise");
			state[p].gen = 0;
		}
	} else if (index_of == 2) {
		wl_must(!munmap(heap + at * WL_PAGE, HOLE_PAGES * WL_PAGE), "munmap");
		for (size_t p = at; p < at + HOLE_PAGES; p++)
			state[p].unmapped = true;
	} else if (index_of == 3) {
		wl_must(mmap(heap + at * WL_PAGE, HOLE_PAGES * WL_PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
			     0) != MAP_FAILED,
			"mmap");
		for (size_t p = at; p < at + HOLE_PAGES; p++)
			state[p].gen = 0;
		write_page(at + 1);
	} else if (index_of == 4) {
		wl_must(!mprotect(heap, pages / 4 * WL_PAGE, PROT_READ), "mprotect");
	}
}

static bool writable(size_t p)
{
	return index_of != 4 || p >= pages / 4;
}

static void look_around(void)
{
	for (int i = 0; i < 32; i++)
		check_page(wl_rand(&seed) % pages);
}

static void work(void)
{
	char name[16];

	snprintf(name, sizeof(name), "worker-%d", index_of);
	prctl(PR_SET_NAME, name);
	change_layout();
	for (size_t p = (size_t)index_of; p < pages; p += STRIDE)
		if (writable(p))
			write_page(p);
	shared->up++;
	while (!shared->stop) {
		size_t p = (wl_rand(&seed) % (pages / STRIDE)) * STRIDE + (size_t)index_of;

		look_around();
		if (writable(p))
			write_page(p);
		shared->turns[index_of]++;
		wl_sleep_us(TURN_US);
	}
	check_all();
}

static pid_t fork_process(int index)
{
	pid_t parent = getpid(), pid = fork();

	wl_must(pid >= 0, "fork");
	if (pid)
		return pid;
	index_of = index;
	seed += (uint64_t)index << 32;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	return 0;
}

static void reap(pid_t pid)
{
	int st;

	wl_must(waitpid(pid, &st, 0) == pid, "waitpid");
	wl_check(!st, "process %d ended with status 0x%x", pid, st);
}

/* Each link of the chain has pages of its own, which those below share with it. */
static void chain(int index, int depth)
{
	pid_t below;

	for (size_t p = 0; p < LINK_PAGES; p++)
		write_page((size_t)index * LINK_PAGES + p);
	below = depth > 1 ? fork_process(index + 1) : -1;
	if (!below) {
		chain(index + 1, depth - 1);
		_exit(0);
	}
	work();
	if (below > 0)
		reap(below);
}

/* ---- snapshots ---- */

static void snapshot(void)
{
	static pid_t pid;
	int st;

	if (pid && waitpid(pid, &st, WNOHANG) != pid)
		return;
	wl_check(!pid || !st, "snapshot %d ended with status 0x%x", pid, st);
	pid = fork_process(MAX_PROCS);
	if (pid)
		return;
	prctl(PR_SET_NAME, "snapshot");
	for (int i = 0; i < 10; i++) {
		check_all();
		wl_sleep_us(TURN_US);
	}
	_exit(0);
}

/* ---- the first process ---- */

static uint8_t *private_memory(size_t bytes)
{
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

static void set_up(void)
{
	pages = (size_t)wl_opt("mib", 64) * 256;
	shared =
	    mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(shared != MAP_FAILED, "mmap");
	heap = private_memory(pages * WL_PAGE);
	state = (void *)private_memory(pages * sizeof(*state));
	wiped = private_memory(WL_PAGE);
	own = private_memory(WL_PAGE);
	for (size_t p = 0; p < pages; p++)
		write_page(p);
	wl_page_fill(wiped, 7, 1);
	wl_page_fill(own, 8, 1);
	wl_must(!madvise(wiped, WL_PAGE, MADV_WIPEONFORK), "madvise");
	wl_must(!madvise(own, WL_PAGE, MADV_DONTFORK), "madvise");
}

int main(int argc, char **argv)
{
	pid_t pids[MAX_PROCS];
	int n = 0;

	wl_init(argc, argv);
	int workers = (int)wl_opt("workers", 6), depth = (int)wl_opt("depth", 3);
	long rate = wl_opt("rate", 0);
	wl_check(workers + depth < STRIDE / 2, "too many processes");
	set_up();
	for (int i = 1; i <= workers; i++) {
		pids[n] = fork_process(i);
		if (!pids[n++]) {
			work();
			_exit(0);
		}
	}
	if (depth) {
		pids[n] = fork_process(workers + 1);
		if (!pids[n++]) {
			chain(workers + 1, depth);
			_exit(0);
		}
	}
	write_stride(0);
	while (shared->up < workers + depth)
		wl_sleep_us(1000);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		look_around();
		for (long i = 0; i < rate; i++)
			write_page(wl_rand(&seed) % pages);
		if (wl_flag("snapshots"))
			snapshot();
		wl_sleep_us(TURN_US);
	}
	shared->stop = true;
	check_all();
	for (int i = 0; i < n; i++)
		reap(pids[i]);
	wl_done();
}
