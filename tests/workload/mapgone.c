/* Files that were removed while they are mapped: one that a parent and its child write through
 * their mappings, and that the parent reads through a descriptor as well; one that is mapped
 * privately, with a page of its own over the file's; a part of one, for reading; shared memory
 * whose name is gone; code, as of a library that was upgraded. */
#include "workload.h"
#include <sys/mman.h>
#include <sys/prctl.h>

enum { PAGES = 64, PRIVATE = 9 };

struct shared {
	_Atomic uint64_t turns[2];
	_Atomic bool stop;
};

static struct {
	int fd;
	struct shared *shared;
	uint64_t *words, *shm; /* page p of words: turn of its writer at every page */
	uint64_t *own;
	const uint64_t *part;
	int (*code)(void);
	pid_t child;
} f;

static uint64_t word(size_t page, uint64_t turn)
{
	return page * 1000003 + turn;
}

static uint64_t *page_of(uint64_t *base, size_t page)
{
	return base + page * WL_PAGE / sizeof(*base);
}

static int removed(const char *path, size_t bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0700);

	wl_must(fd >= 0 && !unlink(path) && !ftruncate(fd, (off_t)bytes), path);
	return fd;
}

static int removed_here(const char *name, size_t bytes)
{
	char path[256];

	return removed(wl_path(path, name), bytes);
}

static void *map(int fd, size_t bytes, int prot, int flags, off_t offset)
{
	void *p = mmap(NULL, bytes, prot, flags, fd, offset);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

/* Each side has every other page, from the second on. */
static void turn(int side)
{
	uint64_t n = f.shared->turns[side];

	for (size_t p = 1 + (size_t)side; p < PAGES; p += 2) {
		wl_same("a page of the shared file", word(p, n), *page_of(f.words, p));
		wl_same("a page of the shared memory", word(p, n), *page_of(f.shm, p));
		*page_of(f.words, p) = *page_of(f.shm, p) = word(p, n + 1);
	}
	f.shared->turns[side] = n + 1;
}

static void child_main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!f.shared->stop) {
		turn(1);
		usleep(500);
	}
	_exit(0);
}

static void set_up(void)
{
	/* mov $42, %eax; ret */
	static const uint8_t code[] = {0xb8, 42, 0, 0, 0, 0xc3};
	size_t bytes = PAGES * WL_PAGE;
	char path[64];
	uint64_t v;
	int fd;

	f.fd = removed_here("shared", bytes);
	f.words = map(f.fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	f.shared = (void *)f.words;
	snprintf(path, sizeof(path), "/dev/shm/mapgone-%d", getpid());
	fd = removed(path, bytes);
	f.shm = map(fd, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	close(fd);
	for (size_t p = 1; p < PAGES; p++)
		*page_of(f.words, p) = *page_of(f.shm, p) = word(p, 0);
	fd = removed_here("private", bytes);
	for (size_t p = 0; p < PAGES; p++) {
		v = word(p, 77);
		wl_same("pwrite", 8, pwrite(fd, &v, 8, (off_t)(p * WL_PAGE)));
	}
	f.own = map(fd, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	*page_of(f.own, PRIVATE) = 4711;
	f.part = map(fd, 2 * WL_PAGE, PROT_READ, MAP_SHARED, 7 * WL_PAGE);
	close(fd);
	fd = removed_here("code", WL_PAGE);
	wl_same("code", sizeof(code), pwrite(fd, code, sizeof(code), 0));
	f.code = (int (*)(void))map(fd, WL_PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, 0);
	close(fd);
	f.child = fork();
	wl_must(f.child >= 0, "fork");
	if (!f.child)
		child_main();
}

static void check(uint64_t own)
{
	uint64_t v, before = f.shared->turns[1];

	wl_same("pread", 8, pread(f.fd, &v, 8, WL_PAGE));
	wl_same("through a descriptor", word(1, f.shared->turns[0]), v);
	/* the child may be writing */
	wl_same("pread", 8, pread(f.fd, &v, 8, 2 * WL_PAGE));
	wl_check(v >= word(2, before) && v <= word(2, f.shared->turns[1] + 1),
		 "what the child writes: %lu after turn %lu", v, before);
	for (size_t p = 0; p < PAGES; p++)
		wl_same("a page of the private mapping", p == PRIVATE ? own : word(p, 77),
			*page_of(f.own, p));
	wl_same("part of a file", word(7, 77), f.part[0]);
	wl_same("part of a file", word(8, 77), f.part[WL_PAGE / 8]);
	wl_same("code", 42, f.code());
}

int main(int argc, char **argv)
{
	uint64_t own = 4711;
	int status;

	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		turn(0);
		check(own);
		*page_of(f.own, PRIVATE) = ++own;
		usleep(500);
	}
	f.shared->stop = true;
	wl_same("child", f.child, waitpid(f.child, &status, 0));
	wl_same("its exit", 0, status);
	turn(0);
	turn(1);
	check(own);
	wl_done();
}
