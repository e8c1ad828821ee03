/* Every kind of mapping, checked by content, protection, name and flags before and after a move.
 *
 * --vmas N: also N small mappings in a row (default 0); --quiet: write nothing after the set-up
 * --advise: change the advice of whole mappings up to the move, which no line of maps shows */
#include "maps.h"
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#define MADV_GUARD_REMOVE 103
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

enum { MAX_REGIONS = 40, MAX_PAGES = 1200 };

/* Pages that say which they are: page k lies at p + k * stride pages. */
struct region {
	const char *name;
	uint8_t *p;
	size_t pages, stride;
	int written; /* the loop writes new generations into every written-th page; 0: into none */
	bool unreadable; /* checked only at the end, after being made readable */
	uint32_t gen[MAX_PAGES];
	uint32_t skip_mask; /* page k is left alone if bit k % 32 is set */
};
static struct region regions[MAX_REGIONS];
static int n_regions;
static struct maps_look before, after;

/* ---- regions ---- */

static void *map(void *at, size_t pages, int prot, int flags, int fd, size_t offset_pages)
{
	void *p = mmap(at, pages * WL_PAGE, prot, flags, fd, offset_pages * WL_PAGE);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

static void *map_anon(size_t pages)
{
	return map(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static struct region *add(const char *name, void *p, size_t pages)
{
	struct region *r = &regions[n_regions++];

	wl_check(n_regions < MAX_REGIONS && pages <= MAX_PAGES, "too many regions or pages");
	*r = (struct region){.name = name, .p = p, .pages = pages, .stride = 1, .written = 1};
	return r;
}

static uint8_t *page_at(const struct region *r, size_t k)
{
	return r->p + k * r->stride * WL_PAGE;
}

static uint64_t page_id(const struct region *r, size_t k)
{
	return ((uint64_t)(r - regions) + 1) << 32 | k;
}

static bool skipped(const struct region *r, size_t k)
{
	return r->skip_mask & 1u << (k % 32);
}

static void write_page(struct region *r, size_t k)
{
	wl_page_fill(page_at(r, k), page_id(r, k), ++r->gen[k]);
}

static struct region *fill(struct region *r)
{
	for (size_t k = 0; k < r->pages; k++)
		if (!skipped(r, k))
			write_page(r, k);
	return r;
}

static void check_region(const struct region *r)
{
	for (size_t k = 0; k < r->pages; k++)
		if (!skipped(r, k))
			wl_page_check(page_at(r, k), page_id(r, k), r->gen[k], r->name);
}

/* A descriptor's content, in the pages' own words. */
static void check_fd(const struct region *r, int fd)
{
	uint8_t page[WL_PAGE];

	for (size_t k = 0; k < r->pages; k++) {
		wl_same("pread", WL_PAGE, pread(fd, page, WL_PAGE, k * WL_PAGE));
		wl_page_check(page, page_id(r, k), r->gen[k], r->name);
	}
}

static void fill_fd(struct region *r, int fd)
{
	uint8_t page[WL_PAGE];

	for (size_t k = 0; k < r->pages; k++) {
		wl_page_fill(page, page_id(r, k), ++r->gen[k]);
		wl_same("pwrite", WL_PAGE, pwrite(fd, page, WL_PAGE, k * WL_PAGE));
	}
}

static int new_file(const char *name)
{
	char path[256];
	int fd = open(wl_path(path, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	wl_must(fd >= 0, "open");
	return fd;
}

/* ---- faults that must happen ---- */

static sigjmp_buf fault_jump;
static volatile sig_atomic_t faulting, fault_signal;

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
	if (!faulting)
		wl_crash(sig, si, ctx);
	fault_signal = sig;
	siglongjmp(fault_jump, 1);
}

/* The signal that touching p raises, or 0. */
static int touch(volatile uint8_t *p, bool write)
{
	fault_signal = 0;
	faulting = 1;
	if (!sigsetjmp(fault_jump, 1)) {
		if (write)
			*p = 1;
		else
			(void)*p;
	}
	faulting = 0;
	return fault_signal;
}

static void catch_faults(void)
{
	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

/* ---- anonymous memory ---- */

static struct region *r_shared, *r_none, *r_ronly, *r_guard, *r_eof, *r_grow;
static uint8_t *alias, *code, *droppable;

static void set_up_anon(void)
{
	struct region *r = add("private anonymous", map_anon(256), 256);

	r->skip_mask = 0x88888888; /* never written: stay zero */
	fill(r)->skip_mask = 0;
	r->written = 0;
	for (size_t k = 3; k < 64; k += 4)
		(void)*(volatile uint8_t *)page_at(r, k); /* the zero page */
	for (size_t k = 128; k < 160; k++)
		r->gen[k] = 0;
	wl_must(!madvise(page_at(r, 128), 32 * WL_PAGE, MADV_DONTNEED), "MADV_DONTNEED");

	r_shared =
	    fill(add("shared anonymous",
		     map(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 64));
	alias =
	    mremap(r_shared->p, 0, 64 * WL_PAGE, MREMAP_MAYMOVE); /* old size 0: a second mapping */
	wl_must(alias != MAP_FAILED, "mremap");

	r_none = fill(add("made PROT_NONE", map_anon(16), 16));
	r_none->written = 0;
	r_none->unreadable = true;
	wl_must(!mprotect(r_none->p, 16 * WL_PAGE, PROT_NONE), "mprotect");
	r_ronly = fill(add("made read-only", map_anon(16), 16));
	r_ronly->written = 0;
	wl_must(!mprotect(r_ronly->p, 16 * WL_PAGE, PROT_READ), "mprotect");
	r = fill(add("write-only", map_anon(16), 16));
	wl_must(!mprotect(r->p, 16 * WL_PAGE, PROT_WRITE), "mprotect");

	code = map_anon(1);
	memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
	wl_must(!mprotect(code, WL_PAGE, PROT_READ | PROT_EXEC), "mprotect");

	r = add("sparse, not reserved",
		map(NULL, 1 << 20, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
		64);
	r->stride = (1 << 20) / 64;
	fill(r);
	fill(add(
	    "below 2 GiB",
	    map(NULL, 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0),
	    8));
	droppable = map_anon(4);
	memset(droppable, 0x5a, 4 * WL_PAGE);
	madvise(droppable, 4 * WL_PAGE, MADV_FREE);
}

/* A downward-growing mapping has a hole of its own below it. */
static void set_up_growing(void)
{
	uint8_t *hole =
	    map(NULL, 2048, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED;

	wl_must(!munmap(hole + 512 * WL_PAGE, 1536 * WL_PAGE),
		"munmap"); /* the rest keeps others out */
	r_grow = add("growing down",
		     map(hole + 1536 * WL_PAGE, 8, PROT_READ | PROT_WRITE, flags, -1, 0), 8);
	fill(r_grow);
	/* Close the hole's upper end, so that nothing else is mapped next to it. */
	map(hole + 1544 * WL_PAGE, 504, PROT_NONE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
}

static void advise(const char *name, int advice, size_t pages)
{
	/* Reserve twice as much, so that huge pages can be aligned. */
	uint8_t *p =
	    map(NULL, pages * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	p = (uint8_t *)(((uintptr_t)p + pages * WL_PAGE - 1) & ~(pages * WL_PAGE - 1));
	map(p, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (madvise(p, pages * WL_PAGE, advice)) {
		dprintf(2, "not here: %s: %s\n", name, strerror(errno));
		return;
	}
	fill(add(name, p, pages));
}

static void set_up_advice(void)
{
	advise("huge pages wanted", MADV_HUGEPAGE, 1024);
	advise("huge pages not wanted", MADV_NOHUGEPAGE, 32);
	advise("not for children", MADV_DONTFORK, 16);
	advise("not for core dumps", MADV_DONTDUMP, 16);
	advise("wiped for children", MADV_WIPEONFORK, 16);
	advise("read at random", MADV_RANDOM, 16);
	advise("read in order", MADV_SEQUENTIAL, 16);
	advise("mergeable", MADV_MERGEABLE, 16);
}

/* Each bit of n is the advice of one mapping. */
static void advise_again(uint8_t *const at[3], unsigned int n)
{
	static const int advice[3][2] = {
	    {MADV_DOFORK, MADV_DONTFORK}, {MADV_DODUMP, MADV_DONTDUMP}, {MADV_NORMAL, MADV_RANDOM}};

	for (int i = 0; i < 3; i++)
		wl_must(!madvise(at[i], 16 * WL_PAGE, advice[i][n >> i & 1]), "madvise");
}

/* Pages of no access between them, so that no two ever become one. */
static void set_up_changing(uint8_t *at[3])
{
	for (int i = 0; i < 3; i++) {
		uint8_t *p = map(NULL, 18, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		at[i] = p + WL_PAGE;
		wl_must(!mprotect(at[i], 16 * WL_PAGE, PROT_READ | PROT_WRITE), "mprotect");
		fill(add("with changing advice", at[i], 16));
	}
}

static void set_up_guard(void)
{
	r_guard = fill(add("around guard pages", map_anon(32), 32));
	if (madvise(page_at(r_guard, 8), 4 * WL_PAGE, MADV_GUARD_INSTALL)) {
		dprintf(2, "not here: guard pages: %s\n", strerror(errno));
		return;
	}
	r_guard->skip_mask = 0xf << 8;
}

static void set_up_named(void)
{
	struct region *r = fill(add("named", map_anon(8), 8));

	if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, r->p, 8 * WL_PAGE, "wl name"))
		dprintf(2, "not here: names of anonymous memory: %s\n", strerror(errno));
}

static void set_up_locked(void)
{
	struct region *r = fill(add("locked", map_anon(16), 16));

	if (mlock(r->p, 16 * WL_PAGE))
		dprintf(2, "not here: mlock: %s\n", strerror(errno));
}

/* Every second page may be written: as many VMAs as pages. */
static const uint8_t *set_up_many(size_t n)
{
	uint8_t *p = map(NULL, n, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	for (size_t i = 0; i < n; i += 2) {
		wl_must(!mprotect(p + i * WL_PAGE, WL_PAGE, PROT_READ | PROT_WRITE), "mprotect");
		wl_page_fill(p + i * WL_PAGE, i, 1);
	}
	return p;
}

static void check_many(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		wl_page_check(p + i * WL_PAGE, i, i % 2 ? 0 : 1, "one of many");
}

/* ---- files and memfds ---- */

static struct region *r_file, *r_memfd, *r_bare;
static int fd_file, fd_memfd, fd_sealed, fd_bare;

static void set_up_files(void)
{
	struct region *r = add("private file", NULL, 64);
	int fd = new_file("file.private");
	char path[256];

	fill_fd(r, fd);
	r->p = map(NULL, 64, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	for (size_t k = 0; k < 64; k += 3)
		write_page(r, k);
	r->written = 3;

	/* The same file, read-only, from its middle on; generation 1 throughout. */
	fd = open(wl_path(path, "file.private"), O_RDONLY | O_CLOEXEC);
	const uint8_t *middle = map(NULL, 16, PROT_READ, MAP_PRIVATE, fd, 32);
	wl_page_check(middle, page_id(r, 32), 1, "private file, read-only");
	close(fd);

	r_file = add("shared file", NULL, 64);
	fd_file = new_file("file.shared");
	fill_fd(r_file, fd_file);
	r_file->p = map(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd_file, 0);

	/* One page and a half of content, three pages of mapping: the third is SIGBUS. */
	fd = new_file("file.short");
	r_eof = add("private file with a short end", NULL, 1);
	fill_fd(r_eof, fd);
	wl_must(!ftruncate(fd, WL_PAGE + 100), "ftruncate");
	r_eof->p = map(NULL, 3, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	strcpy((char *)r_eof->p + WL_PAGE + 200, "behind the end");
	close(fd);
}

static void set_up_memfds(void)
{
	struct region *r;
	int fd;

	r_memfd = add("memfd, shared", NULL, 32);
	fd_memfd = memfd_create("wl-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	wl_must(fd_memfd >= 0, "memfd_create");
	fill_fd(r_memfd, fd_memfd);
	r_memfd->p = map(NULL, 32, PROT_READ | PROT_WRITE, MAP_SHARED, fd_memfd, 0);

	r = add("memfd, sealed", NULL, 16);
	fd_sealed = memfd_create("wl-sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	fill_fd(r, fd_sealed);
	wl_must(!fcntl(fd_sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK),
		"F_ADD_SEALS");
	r->p = map(NULL, 16, PROT_READ, MAP_SHARED, fd_sealed, 0);
	r->written = 0;

	r = add("memfd, private", NULL, 16);
	fd = memfd_create("wl-private", MFD_CLOEXEC);
	fill_fd(r, fd);
	r->p = map(NULL, 16, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	for (size_t k = 0; k < 16; k += 2)
		write_page(r, k);
	r->written = 2;
	close(fd);

	r = add("memfd, mapping only", NULL, 16);
	fd = memfd_create("wl-mapped", 0);
	fill_fd(r, fd);
	r->p = map(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);

	r_bare = add("memfd, descriptor only", NULL, 0);
	r_bare->pages = 24;
	fd_bare = memfd_create("wl-bare", MFD_CLOEXEC);
	fill_fd(r_bare, fd_bare);
	lseek(fd_bare, 5 * WL_PAGE, SEEK_SET);
	r_bare->written = 0;
	r_bare->unreadable = true;
}

/* ---- brk and stack ---- */

static struct region *r_brk;

static void set_up_brk(void)
{
	r_brk = add("brk", NULL, 64);
	sbrk((-(uintptr_t)sbrk(0)) & (WL_PAGE - 1));
	r_brk->p = sbrk(64 * WL_PAGE);
	wl_must(r_brk->p != (void *)-1, "sbrk");
	fill(r_brk);
}

__attribute__((noinline)) static uint64_t deep(int levels)
{
	volatile uint8_t frame[WL_PAGE];

	for (size_t i = 0; i < sizeof(frame); i += 512)
		frame[i] = levels + i;
	const uint64_t r = levels ? deep(levels - 1) : 7;

	for (size_t i = 0; i < sizeof(frame); i += 512)
		wl_same("stack frame", (uint8_t)(levels + i), frame[i]);
	return r + frame[0];
}

/* ---- the loop and the end ---- */

static void check_all(void)
{
	for (int i = 0; i < n_regions; i++)
		if (!regions[i].unreadable)
			check_region(&regions[i]);
	wl_check(!memcmp(alias, r_shared->p, 64 * WL_PAGE),
		 "second mapping of shared memory differs");
	wl_same("code page", 42, ((int (*)(void))code)());
	wl_check(!strcmp((char *)r_eof->p + WL_PAGE + 200, "behind the end"),
		 "bytes behind a file's end");
	for (size_t i = 0; i < 4 * WL_PAGE; i++)
		wl_check(droppable[i] == 0x5a || !droppable[i / WL_PAGE * WL_PAGE],
			 "freed page is neither old nor zero");
	if (r_guard->skip_mask)
		wl_same("touching a guard page", SIGSEGV, touch(page_at(r_guard, 9), true));
	wl_same("touching PROT_NONE", SIGSEGV, touch(r_none->p, false));
	wl_same("writing read-only memory", SIGSEGV, touch(r_ronly->p, true));
	wl_same("touching behind a file's last page", SIGBUS, touch(r_eof->p + 2 * WL_PAGE, false));
}

static void write_some(uint64_t *rnd)
{
	for (int i = 0; i < 40; i++) {
		struct region *r = &regions[wl_rand(rnd) % n_regions];
		const size_t k = wl_rand(rnd) % r->pages;

		if (r->written && k % r->written == 0 && !skipped(r, k))
			write_page(r, k);
	}
}

static void check_fds(void)
{
	const int seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK;

	check_fd(r_file, fd_file);
	check_fd(r_memfd, fd_memfd);
	check_fd(r_bare, fd_bare);
	wl_same("offset of a memfd", 5 * WL_PAGE, lseek(fd_bare, 0, SEEK_CUR));
	wl_same("seals", seals, fcntl(fd_sealed, F_GET_SEALS));
	wl_same("seals of another", 0, fcntl(fd_memfd, F_GET_SEALS));
	wl_check(pwrite(fd_sealed, "x", 1, 0) < 0 && errno == EPERM,
		 "could write to a sealed memfd");
	/* Descriptor and mapping are the same memory. */
	wl_same("pwrite", 4, pwrite(fd_memfd, "same", 4, 100));
	wl_check(!memcmp(r_memfd->p + 100, "same", 4), "memfd's mapping and descriptor went apart");
	write_page(r_memfd, 0);
}

static void check_children(void)
{
	int status;
	const pid_t pid = fork();

	wl_must(pid >= 0, "fork");
	if (!pid) {
		for (int i = 0; i < n_regions; i++) {
			const struct region *r = &regions[i];

			if (!strcmp(r->name, "not for children"))
				wl_same("memory not for children", SIGSEGV, touch(r->p, false));
			else if (!strcmp(r->name, "wiped for children"))
				wl_page_check(r->p, 0, 0, r->name);
			else if (!r->unreadable)
				check_region(r);
		}
		_exit(0);
	}
	wl_same("waitpid", pid, waitpid(pid, &status, 0));
	wl_same("a forked child's status", 0, status);
}

/* What only shows when memory is used in new ways. */
static void check_new_uses(void)
{
	uint8_t *end = sbrk(0), *p;

	wl_same("brk", (uintptr_t)r_brk->p + 64 * WL_PAGE, (uintptr_t)end);
	p = sbrk(256 * WL_PAGE);
	wl_same("grown brk", (uintptr_t)end, (uintptr_t)p);
	wl_page_check(p, 0, 0, "grown brk");
	memset(p, 1, 256 * WL_PAGE);
	check_region(r_brk);

	deep(700); /* 2.8 MiB of stack */
	for (int k = 1; k <= 16; k++)
		wl_same("growing a stack-like mapping", 0, touch(r_grow->p - k * WL_PAGE, true));
	check_region(r_grow);

	wl_must(!mprotect(r_none->p, 16 * WL_PAGE, PROT_READ), "mprotect");
	check_region(r_none);
	wl_must(!mprotect(r_ronly->p, 16 * WL_PAGE, PROT_READ | PROT_WRITE), "mprotect");
	fill(r_ronly);
	check_region(r_ronly);
	if (!r_guard->skip_mask)
		return;
	wl_must(!madvise(page_at(r_guard, 8), 4 * WL_PAGE, MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE");
	wl_page_check(page_at(r_guard, 9), 0, 0, "former guard page");
}

static void check_maps(void)
{
	maps_take(&after);
	maps_compare(&before, &after);
}

static bool is_elsewhere(void)
{
	struct utsname u;

	uname(&u);
	return strcmp(u.nodename, wl.host) != 0;
}

/* Is the advice what was given last? Then giving it once more changes nothing. */
static void check_advice(uint8_t *const at[3], unsigned int n)
{
	maps_take(&after);
	advise_again(at, n);
	maps_take(&before);
	maps_compare(&before, &after);
}

int main(int argc, char **argv)
{
	const uint8_t *many = NULL;
	uint8_t *changing[3];
	uint64_t rnd = 1;
	unsigned int rounds = 0;
	bool advising;
	long n_many;

	wl_init(argc, argv);
	catch_faults();
	set_up_anon();
	set_up_advice();
	set_up_changing(changing);
	set_up_guard();
	set_up_named();
	set_up_locked();
	set_up_files();
	set_up_memfds();
	set_up_brk();
	n_many = wl_opt("vmas", 0);
	if (n_many)
		many = set_up_many(n_many);
	/* Both looks have their buffers, and nothing is mapped after the one that needs room below.
	 */
	maps_take(&after);
	maps_take(&before);
	set_up_growing();
	maps_take(&before);
	check_all();
	check_maps();
	wl_ready();
	advising = wl_flag("advise");
	while (!wl_stop()) {
		if (advising && is_elsewhere()) {
			advising = false;
			check_advice(changing, rounds);
		}
		if (wl_tick())
			check_maps();
		if (!wl_flag("quiet"))
			write_some(&rnd);
		if (advising)
			advise_again(changing, ++rounds);
		check_all();
		wl_sleep_us(5000);
	}
	if (advising)
		check_advice(changing, rounds);
	check_maps();
	advise_again(changing, 0);
	if (many)
		check_many(many, n_many);
	check_all();
	check_fds();
	check_children();
	check_new_uses();
	wl_done();
}
