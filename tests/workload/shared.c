/* Shared anonymous memory that several processes change and check at random, whatever else they do
 * to their mappings of it meanwhile: discard, remove, move, double and protect pages, hand them to
 * system calls, fork, and end.
 *
 * --one-in N: N - 1 of N pieces of 16 pages are holes; seldom, one in 64 steps, a page is touched
 * there.
 * --seldom N: what changes their mappings, or is a fork, only happens once where it would N times.
 *
 * --mib N of the memory (default 16), --workers N besides the first process (default 3), --steady:
 * these do not end and are not followed by others, --pause-us N between two steps (default 20),
 * --bus: a page may be lost (SIGBUS): DIR/lost says how many were seen. The memory is anonymous;
 * --of memfd or --of zero: of a memfd, or of /dev/zero, closed again; --of open-memfd: it stays
 * open. --of huge, huge-memfd, open-huge-memfd: the same, of huge pages. --of removed,
 * open-removed: which ends within a page, of a file in /dev/shm that is removed. Once there is
 * DIR/advise, huge pages are asked for, and DIR/advised tells it. */
#include "workload.h"
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/wait.h>

static const char tail[] = "where the file ends";

enum { PIECE = 16, HUGE_PAGES = 512, WORKERS_MAX = 32, LIFE_STEPS = 2000, TOUCHERS = 3 };

struct page_note { /* what a page holds; who has `taken` it may look at it and change it */
	_Atomic uint32_t taken;
	uint32_t gen;
	bool lost;
};

static struct {
	_Atomic bool stop;
	_Atomic uint32_t steps, lost;
} * ctl;
static struct page_note *notes; /* shared as well; small */
static uint8_t *memory;
static size_t pages;
static bool has_tail; /* behind them */
static bool is_huge;
static uint64_t seed;
static int file; /* of a page for each of the memory */
static pid_t workers[WORKERS_MAX];
static sigjmp_buf on_bus;
static volatile bool may_be_lost;
static long seldom, one_in;

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

static void check(size_t p, const uint8_t *where)
{
	wl_page_check(where, p, notes[p].gen, "shared page");
}

static void write_page(size_t p)
{
	notes[p].gen++;
	wl_page_fill(at(p), p, notes[p].gen);
}

/* ---- what is done to a page besides ---- */

/* The least around a page that the kernel discards, protects or moves. */
static size_t least(void)
{
	return is_huge ? HUGE_PAGES : 1;
}

static uint8_t *around(size_t p)
{
	return at(p - p % least());
}

static void drop(size_t p)
{
	wl_must(!madvise(around(p), least() * WL_PAGE, MADV_DONTNEED), "MADV_DONTNEED");
}

static void discard(size_t p)
{
	drop(p);
	check(p, at(p));
}

static void remove_page(size_t p)
{
	wl_must(!madvise(at(p), WL_PAGE, MADV_REMOVE), "MADV_REMOVE");
	notes[p].gen = 0;
	if (wl_rand(&seed) % 2)
		check(p, at(p));
	if (wl_rand(&seed) % 2)
		write_page(p);
}

/* A huge page as a whole, if nobody is at any of it: it is gone then, and another comes. */
static void remove_huge(size_t p)
{
	const size_t first = p - p % HUGE_PAGES, end = first + HUGE_PAGES;
	size_t taken = first;

	while (taken < end && (taken == p || take(taken)))
		taken++;
	if (taken == end) {
		wl_must(!madvise(at(first), HUGE_PAGES * WL_PAGE, MADV_REMOVE), "MADV_REMOVE");
		for (size_t i = first; i < end; i++) {
			notes[i].gen = 0;
			if (i % 3)
				write_page(i);
		}
	}
	for (size_t i = first; i < taken; i++)
		if (i != p)
			release(i);
	check(p, at(p));
}

/* The piece around it moves away and back. */
static void move(size_t p)
{
	const size_t piece = is_huge ? HUGE_PAGES : PIECE, bytes = piece * WL_PAGE;
	const size_t first = p - p % piece;
	uint8_t *room = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *other = (uint8_t *)(((uintptr_t)room + bytes - 1) / bytes * bytes);

	wl_must(room != MAP_FAILED, "mmap");
	uint8_t *q = mremap(at(first), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, other);
	wl_must(q != MAP_FAILED, "mremap");
	check(p, q + (p - first) * WL_PAGE);
	q = mremap(q, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at(first));
	wl_must(q == at(first), "mremap back");
	wl_must(!munmap(room, 2 * bytes), "munmap");
	check(p, at(p));
}

static void double_it(size_t p)
{
	uint8_t *q = mremap(at(p), 0, 2 * WL_PAGE, MREMAP_MAYMOVE);

	wl_must(q != MAP_FAILED, "mremap of nothing");
	check(p, q);
	wl_must(!munmap(q, 2 * WL_PAGE), "munmap");
}

static void protect(size_t p)
{
	wl_must(!mprotect(around(p), least() * WL_PAGE, PROT_READ), "mprotect");
	check(p, at(p));
	wl_must(!mprotect(around(p), least() * WL_PAGE, PROT_READ | PROT_WRITE), "mprotect");
}

static void *look(void *arg)
{
	check(*(const size_t *)arg, at(*(const size_t *)arg));
	return NULL;
}

static void by_threads(size_t p)
{
	pthread_t t[TOUCHERS];

	drop(p);
	for (int i = 0; i < TOUCHERS; i++)
		wl_must(!(errno = pthread_create(&t[i], NULL, look, &p)), "pthread_create");
	for (int i = 0; i < TOUCHERS; i++)
		pthread_join(t[i], NULL);
}

/* Out by write(2), back by read(2), both of which touch it in the kernel. */
static void through_a_file(size_t p)
{
	if (pwrite(file, at(p), WL_PAGE, (off_t)(p * WL_PAGE)) != WL_PAGE) {
		wl_check(may_be_lost && errno == EFAULT, "write(2) of page %zu: %s", p,
			 strerror(errno));
		siglongjmp(on_bus, 1);
	}
	check(p, at(p));
	drop(p);
	wl_same("read(2)", WL_PAGE, pread(file, at(p), WL_PAGE, (off_t)(p * WL_PAGE)));
	check(p, at(p));
}

static void in_a_child(size_t p)
{
	pid_t child = fork();
	int st;

	wl_must(child >= 0, "fork");
	if (!child) {
		if (sigsetjmp(on_bus, 1))
			_exit(9);
		check(p, at(p));
		write_page(p);
		_exit(0);
	}
	while (waitpid(child, &st, 0) < 0)
		wl_check(errno == EINTR, "waitpid: %s", strerror(errno));
	if (may_be_lost && WIFEXITED(st) && WEXITSTATUS(st) == 9)
		siglongjmp(on_bus, 1);
	wl_same("the child's end", 0, st);
	check(p, at(p));
}

/* ---- steps ---- */

static void something_else(size_t p)
{
	static long n;

	if (seldom && n++ % seldom) {
		switch (wl_rand(&seed) % 16) {
		case 0:
			discard(p);
			break;
		case 1:
			remove_page(p);
			break;
		case 2:
			through_a_file(p);
			break;
		default:
			write_page(p);
			break;
		}
		return;
	}
	/* where a page may be lost, nothing that leaves the mapping another if it does not end */
	switch (wl_rand(&seed) % 32 + (may_be_lost ? 10 : 0)) {
	case 0 ... 3:
	case 32 ... 35:
		discard(p);
		break;
	case 4 ... 6:
	case 36 ... 38:
		remove_page(p);
		break;
	case 7:
		move(p);
		break;
	case 8:
		is_huge ? remove_huge(p) : double_it(p);
		break;
	case 9:
		wl_rand(&seed) % 2 ? protect(p) : by_threads(p);
		break;
	case 10:
		through_a_file(p);
		break;
	case 11:
		in_a_child(p);
		break;
	default:
		write_page(p);
		break;
	}
}

static bool is_hole(size_t p)
{
	return p / PIECE % (size_t)one_in;
}

static void step(void)
{
	volatile size_t p = wl_rand(&seed) % pages;

	if (is_hole(p) && wl_rand(&seed) % 64)
		p -= p / PIECE % (size_t)one_in * PIECE;
	if (!take(p))
		return;
	if (!notes[p].lost && sigsetjmp(on_bus, 1)) {
		notes[p].lost = true;
		atomic_fetch_add(&ctl->lost, 1);
	} else if (!notes[p].lost) {
		if (wl_rand(&seed) % 4) /* else what is done to it comes first */
			check(p, at(p));
		something_else(p);
	}
	release(p);
	atomic_fetch_add(&ctl->steps, 1);
}

/* Where a page may be lost: what a process needs to go on is not to stay behind, nor to be lost. */
static void lock_private(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start, end;
	char line[512], prot[5];

	wl_must(f, "maps");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx %4s", &start, &end, prot) == 3 && prot[1] == 'w' &&
		    prot[3] == 'p')
			wl_must(!mlock((void *)start, end - start), "mlock");
	fclose(f);
}

static void bus(int sig)
{
	(void)sig;
	siglongjmp(on_bus, 1);
}

static void be_worker(int which)
{
	const bool steady = wl_flag("steady");
	const long pause = wl_opt("pause-us", 20);

	if (may_be_lost) /* a child has nothing locked */
		lock_private();
	seed = wl_mix((uint64_t)getpid() << 20 ^ (uint64_t)which ^ wl_ns(CLOCK_MONOTONIC));
	for (int n = 0; !ctl->stop && (steady || n < LIFE_STEPS); n++) {
		step();
		if (pause)
			wl_sleep_us(pause);
	}
	_exit(0);
}

static void start_worker(int i)
{
	workers[i] = fork();
	wl_must(workers[i] >= 0, "fork");
	if (!workers[i])
		be_worker(i);
}

static void end_worker(int i, int options)
{
	int st;
	pid_t r = waitpid(workers[i], &st, options);

	wl_check(r >= 0 || errno == EINTR, "waitpid: %s", strerror(errno));
	if (r <= 0)
		return;
	wl_same("a worker's end", 0, st);
	workers[i] = 0;
}

static void *share(size_t bytes, int flags)
{
	void *p =
	    mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

static int make(const char *what)
{
	char path[64];

	if (!strcmp(what, "zero"))
		return open("/dev/zero", O_RDWR);
	if (!strstr(what, "removed"))
		return memfd_create("shared", is_huge ? MFD_HUGETLB : 0);
	snprintf(path, sizeof(path), "/dev/shm/cr-shared.%d", getpid());
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	unlink(path);
	return fd;
}

static uint8_t *share_of(const char *what, size_t bytes)
{
	const bool zero = !strcmp(what, "zero"), open_too = !strncmp(what, "open-", 5);

	is_huge = strstr(what, "huge") != NULL;
	if (!*what || !strcmp(what, "huge"))
		return share(bytes, is_huge ? MAP_HUGETLB : 0);
	int fd = make(what);
	has_tail = strstr(what, "removed");
	bytes += has_tail ? sizeof(tail) : 0;
	wl_must(fd >= 0 && (zero || !ftruncate(fd, (off_t)bytes)), what);
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	wl_must(p != MAP_FAILED, "mmap");
	if (has_tail)
		memcpy(p + pages * WL_PAGE, tail, sizeof(tail));
	if (!open_too)
		close(fd);
	return p;
}

static void check_all(void)
{
	wl_check(!has_tail || !memcmp(at(pages), tail, sizeof(tail)), "the end of the file");
	for (volatile size_t p = 0; p < pages; p++) {
		if (notes[p].lost)
			continue;
		if (!sigsetjmp(on_bus, 1)) {
			check(p, at(p));
			continue;
		}
		notes[p].lost = true;
		ctl->lost++;
	}
}

static void advise_if_told(void)
{
	static bool done;
	char path[256];

	if (done || access(wl_path(path, "advise"), F_OK))
		return;
	wl_must(!madvise(memory, pages * WL_PAGE, MADV_HUGEPAGE), "MADV_HUGEPAGE");
	wl_write("advised", "yes\n");
	done = true;
}

int main(int argc, char **argv)
{
	char text[32], path[256];

	wl_init(argc, argv);
	const int n_workers = (int)wl_opt("workers", 3);
	const long pause = wl_opt("pause-us", 20);

	seldom = wl_opt("seldom", 0);
	one_in = wl_opt("one-in", 1);
	wl_check(n_workers <= WORKERS_MAX, "too many workers");
	pages = (size_t)wl_opt("mib", 16) << 8;
	ctl = share(sizeof(*ctl), 0);
	notes = share(pages * sizeof(*notes), 0);
	memory = share_of(wl_opt_str("of", ""), pages * WL_PAGE);
	seed = wl_mix((uint64_t)getpid());
	may_be_lost = wl_flag("bus");
	if (may_be_lost)
		signal(SIGBUS, bus);
	file = open(wl_path(path, "pages"), O_RDWR | O_CREAT | O_TRUNC, 0644);
	wl_must(file >= 0, "open");
	for (size_t p = 0; p < pages; p++)
		if (p % 16 && !is_hole(p)) /* some have never been written */
			write_page(p);
	for (int i = 0; i < n_workers; i++)
		start_worker(i);
	if (may_be_lost)
		lock_private();
	snprintf(text, sizeof(text), "%lx\n", (unsigned long)memory);
	wl_write("memory", text);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		advise_if_told();
		step();
		for (int i = 0; i < n_workers; i++) {
			end_worker(i, WNOHANG);
			if (!workers[i])
				start_worker(i);
		}
		if (pause)
			wl_sleep_us(pause);
	}
	ctl->stop = true;
	for (int i = 0; i < n_workers; i++)
		while (workers[i])
			end_worker(i, 0);
	check_all();
	if (may_be_lost) {
		snprintf(text, sizeof(text), "%u\n", ctl->lost);
		wl_write("lost", text);
	}
	wl_check(may_be_lost || !ctl->lost, "%u pages are lost", ctl->lost);
	wl_done();
}
