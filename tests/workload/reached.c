/* Memory in a file, which several processes change and check at random: by their mappings, and by
 * whatever else leads to it, a descriptor, a name, or another process.
 *
 * --of memfd, removed or shm: a memfd, or a file in /dev/shm, removed or not (default memfd).
 * --mib N (default 8), --workers N besides the first process (default 3; the first of them has no
 * mapping of it), --pause-us N between two steps (default 20), --seldom N: only one step of N is
 * not by a mapping (default 4), --way N: only that one of them is. At the end nothing of what a
 * migration has put to the file may be left. */
#include "workload.h"
#include <sched.h>
#include <stdatomic.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/xattr.h>

enum { WORKERS_MAX = 16, HOLE = 64 };

struct page_note { /* what a page holds; who has `taken` it may look at it and change it */
	_Atomic uint32_t taken;
	uint32_t gen;
	uint32_t zero_from, zero_to; /* bytes of it that were cut out since */
};

static struct {
	_Atomic bool stop;
	_Atomic uint32_t steps;
	pid_t first; /* the process that all can reach */
} * ctl;
static struct page_note *notes;
static uint8_t *memory;
static size_t pages;
static int file, other, pipe_fds[2], scratch; /* other: opened once more */
static uint64_t seed;
static char shm_path[64];
static pid_t workers[WORKERS_MAX];

static uint8_t *at(size_t p)
{
	return memory + p * WL_PAGE;
}

static bool take(size_t p)
{
	uint32_t none = 0;

	return atomic_compare_exchange_strong(&notes[p].taken, &none, 1);
}

static void release(size_t p)
{
	atomic_store(&notes[p].taken, 0);
}

/* As it must be, or for its next generation. */
static const uint8_t *content(size_t p, uint32_t gen)
{
	static uint8_t buf[WL_PAGE] __attribute__((aligned(WL_PAGE)));

	memset(buf, 0, sizeof(buf));
	if (gen)
		wl_page_fill(buf, p, gen);
	return buf;
}

static void check(size_t p, const uint8_t *where, const char *how)
{
	const struct page_note *n = &notes[p];
	uint8_t *want = (uint8_t *)content(p, n->gen);

	memset(want + n->zero_from, 0, n->zero_to - n->zero_from);
	for (size_t i = 0; i < WL_PAGE; i++)
		wl_check(want[i] == where[i],
			 "page %zu, generation %u, zeros %u-%u, %s, byte %zu: expected 0x%x, got "
			 "0x%x",
			 p, n->gen, n->zero_from, n->zero_to, how, i, want[i], where[i]);
}

static const uint8_t *next(size_t p)
{
	notes[p].zero_from = notes[p].zero_to = 0;
	return content(p, ++notes[p].gen);
}

static void zeros(size_t p, uint32_t from, uint32_t to)
{
	if (to - from == WL_PAGE)
		notes[p].gen = from = to = 0;
	notes[p].zero_from = from;
	notes[p].zero_to = to;
}

/* ---- ways ---- */

static off_t offset(size_t p)
{
	return (off_t)(p * WL_PAGE);
}

static void by_mapping(size_t p)
{
	memcpy(at(p), next(p), WL_PAGE);
}

static void by_pwrite(size_t p)
{
	wl_same("pwrite", WL_PAGE, pwrite(file, next(p), WL_PAGE, offset(p)));
}

/* In two pieces, of a description that others move as well. */
static void by_writev(size_t p)
{
	const uint8_t *c = next(p);
	const struct iovec v[2] = {{(void *)c, 100}, {(void *)(c + 100), WL_PAGE - 100}};

	wl_same("pwritev", WL_PAGE, pwritev(other, v, 2, offset(p)));
}

static void by_open(size_t p)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	wl_must(fd >= 0, path);
	wl_same("lseek", offset(p), lseek(fd, offset(p), SEEK_SET));
	wl_same("write", WL_PAGE, write(fd, next(p), WL_PAGE));
	close(fd);
}

static void by_name(size_t p)
{
	int fd = *shm_path ? open(shm_path, O_RDWR | O_CLOEXEC) : dup(file);

	wl_must(fd >= 0, shm_path);
	uint8_t *q = mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset(p));
	wl_must(q != MAP_FAILED, "mmap");
	close(fd);
	check(p, q, "mapped once more");
	memcpy(q, next(p), WL_PAGE);
	wl_must(!munmap(q, WL_PAGE), "munmap");
}

static void by_splice(size_t p)
{
	loff_t to = offset(p);

	wl_same("write to a pipe", WL_PAGE, write(pipe_fds[1], next(p), WL_PAGE));
	for (size_t n = 0; n < WL_PAGE;) {
		ssize_t r = splice(pipe_fds[0], NULL, file, &to, WL_PAGE - n, SPLICE_F_MOVE);

		wl_must(r > 0, "splice");
		n += (size_t)r;
	}
}

static void by_sendfile(size_t p)
{
	off_t from = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	int fd = open(path, O_WRONLY | O_CLOEXEC); /* its position is nobody else's */
	wl_must(fd >= 0, path);
	wl_same("pwrite", WL_PAGE, pwrite(scratch, next(p), WL_PAGE, 0));
	wl_same("lseek", offset(p), lseek(fd, offset(p), SEEK_SET));
	wl_same("sendfile", WL_PAGE, sendfile(fd, scratch, &from, WL_PAGE));
	close(fd);
}

static void by_a_hole(size_t p)
{
	wl_must(!fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset(p), WL_PAGE),
		"punching a hole");
	zeros(p, 0, WL_PAGE);
}

static void by_a_small_hole(size_t p)
{
	const uint32_t from = (uint32_t)(wl_rand(&seed) % (WL_PAGE - HOLE));

	if (notes[p].zero_to)
		by_mapping(p);
	wl_must(
	    !fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset(p) + from, HOLE),
	    "punching a small hole");
	zeros(p, from, from + HOLE);
}

/* Half of the last page is cut off, and zeros come back. */
static void by_cutting(size_t p)
{
	const size_t last = pages - 1;

	if (p != last && !take(last))
		return;
	by_mapping(last);
	wl_must(!ftruncate(file, offset(pages) - (off_t)WL_PAGE / 2) &&
		    !ftruncate(file, offset(pages)),
		"ftruncate");
	zeros(last, WL_PAGE / 2, WL_PAGE);
	if (p != last)
		release(last);
}

static void by_removing(size_t p)
{
	wl_must(!madvise(at(p), WL_PAGE, MADV_REMOVE), "MADV_REMOVE");
	zeros(p, 0, WL_PAGE);
}

/* Into another process's mapping of it. */
static void by_another_process(size_t p)
{
	const struct iovec from = {(void *)next(p), WL_PAGE}, to = {at(p), WL_PAGE};

	if (process_vm_writev(ctl->first, &from, 1, &to, 1, 0) != (ssize_t)WL_PAGE) {
		wl_check(errno == EPERM || errno == ESRCH, "process_vm_writev: %s",
			 strerror(errno));
		memcpy(at(p), from.iov_base, WL_PAGE);
	}
}

static void in_a_child(size_t p, void (*how)(size_t))
{
	pid_t child = fork();
	int st;

	wl_must(child >= 0, "fork");
	if (!child) {
		how(p);
		_exit(0);
	}
	while (waitpid(child, &st, 0) < 0)
		wl_check(errno == EINTR, "waitpid: %s", strerror(errno));
	wl_same("the child's end", 0, st);
}

static void by_a_child_that_maps(size_t p)
{
	in_a_child(p, by_name);
}

static void by_a_child_that_writes(size_t p)
{
	in_a_child(p, by_pwrite);
}

static void by_reading(size_t p)
{
	uint8_t buf[WL_PAGE];

	wl_same("pread", WL_PAGE, pread(file, buf, WL_PAGE, offset(p)));
	check(p, buf, "read");
}

static void (*const ways[])(size_t) = {
    by_pwrite,
    by_writev,
    by_open,
    by_name,
    by_splice,
    by_sendfile,
    by_a_hole,
    by_a_small_hole,
    by_cutting,
    by_removing,
    by_another_process,
    by_a_child_that_maps,
    by_a_child_that_writes,
    by_reading,
};

/* ---- steps ---- */

static void step(void)
{
	static long n, seldom, way = -2;
	const size_t n_ways = sizeof(ways) / sizeof(*ways);

	if (way == -2) {
		seldom = wl_opt("seldom", 4);
		way = wl_opt("way", -1);
		n = (long)(wl_rand(&seed) % 1000);
	}
	size_t p = wl_rand(&seed) % pages;
	if (!take(p))
		return;
	check(p, at(p), "mapped");
	if (n++ % seldom)
		by_mapping(p);
	else
		ways[way >= 0 ? (size_t)way % n_ways : wl_rand(&seed) % n_ways](p);
	check(p, at(p), "mapped, after a change");
	release(p);
	atomic_fetch_add(&ctl->steps, 1);
}

/* One that has a descriptor of it and no mapping, but for a moment. */
static void step_without_mapping(void)
{
	size_t p = wl_rand(&seed) % pages;

	if (!take(p))
		return;
	wl_rand(&seed) % 2 ? by_name(p) : by_pwrite(p);
	release(p);
	wl_sleep_us((long)(wl_rand(&seed) % (100 * (uint64_t)wl_opt("seldom", 4))));
}

static void be_worker(int which)
{
	const long pause = wl_opt("pause-us", 20);

	wl_must(!pipe(pipe_fds), "pipe");
	scratch = memfd_create("scratch", MFD_CLOEXEC);
	wl_must(scratch >= 0, "memfd_create");
	seed = wl_mix((uint64_t)getpid() << 20 ^ (uint64_t)which ^ wl_ns(CLOCK_MONOTONIC));
	if (!which)
		wl_must(!munmap(memory, pages * WL_PAGE), "munmap");
	while (!ctl->stop) {
		which ? step() : step_without_mapping();
		if (pause)
			wl_sleep_us(pause);
	}
	_exit(0);
}

static void *share(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

static void open_file(const char *what)
{
	char path[64];

	if (!strcmp(what, "memfd")) {
		file = memfd_create("reached", MFD_CLOEXEC);
	} else {
		snprintf(shm_path, sizeof(shm_path), "/dev/shm/reached.%d", getpid());
		file = open(shm_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	}
	wl_must(file >= 0 && !ftruncate(file, offset(pages)), what);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	other = open(path, O_RDWR | O_CLOEXEC);
	wl_must(other >= 0, path);
	if (!strcmp(what, "removed")) {
		unlink(shm_path);
		*shm_path = 0;
	}
	memory = mmap(NULL, pages * WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	wl_must(memory != MAP_FAILED, "mmap");
}

static void check_all(void)
{
	for (size_t p = 0; p < pages; p++) {
		check(p, at(p), "mapped, at the end");
		by_reading(p);
	}
	wl_same("extended attributes", 0, flistxattr(file, NULL, 0));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	const int n_workers = (int)wl_opt("workers", 3);
	const long pause = wl_opt("pause-us", 20);

	wl_check(n_workers <= WORKERS_MAX, "too many workers");
	pages = (size_t)wl_opt("mib", 8) << 8;
	ctl = share(sizeof(*ctl));
	notes = share(pages * sizeof(*notes));
	ctl->first = getpid();
	open_file(wl_opt_str("of", "memfd"));
	seed = wl_mix((uint64_t)getpid());
	for (size_t p = 0; p < pages; p++)
		if (p % 16) /* some have never been written */
			by_mapping(p);
	for (int i = 0; i < n_workers; i++) {
		workers[i] = fork();
		wl_must(workers[i] >= 0, "fork");
		if (!workers[i])
			be_worker(i);
	}
	wl_must(!pipe(pipe_fds), "pipe");
	scratch = memfd_create("scratch", MFD_CLOEXEC);
	wl_must(scratch >= 0, "memfd_create");
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		step();
		if (pause)
			wl_sleep_us(pause);
	}
	ctl->stop = true;
	for (int i = 0, st; i < n_workers; i++) {
		wl_same("waitpid", workers[i], waitpid(workers[i], &st, 0));
		wl_same("a worker's end", 0, st);
	}
	check_all();
	if (*shm_path)
		unlink(shm_path);
	wl_done();
}
