/* Mappings that are one for the program, although they have been several, or will be one again: a
 * part of them is closed by mprotect(2), or they were mapped piece by piece before. mremap(2) takes
 * one mapping: where the kernel cannot join the pieces again it fails with EFAULT.
 *
 * If DIR/switch appears they are joined, and it is removed; otherwise at the end. */
#include "workload.h"

enum { PART = 8, PARTS = 3, PAGES = PART * PARTS, FILLER_PAGES = 6144 };

enum kind {
	CLOSED,     /* one mapping, its middle closed at the start and opened at the end */
	OPENED,     /* the same, opened when it is switched */
	OPENED_RO,  /* and then closed for writing, as a whole */
	PIECES,     /* two with a hole between, mapped anew as one when it is switched */
	NEIGHBOURS, /* three side by side, of one kind in the end only */
	FILE_PAGES, /* as OPENED, of a file, with pages of its own */
	KINDS
};
static const char *const names[KINDS] = {"closed", "opened",     "opened, read only",
					 "pieces", "neighbours", "file"};

static uint8_t *areas[KINDS];
static bool joined[KINDS];
static uint8_t *filler;

static uint8_t *part(int kind, int i)
{
	return areas[kind] + (size_t)i * PART * WL_PAGE;
}

static void fill(int kind, uint64_t gen)
{
	for (int p = 0; p < PAGES; p++)
		if (p / PART != 1)
			wl_page_fill(areas[kind] + p * WL_PAGE, (uint64_t)(kind * PAGES + p), gen);
}

static void check(int kind, const uint8_t *at, uint64_t gen)
{
	for (int p = 0; p < PAGES; p++)
		wl_page_check(at + p * WL_PAGE, (uint64_t)(kind * PAGES + p),
			      p / PART == 1 ? 0 : gen, names[kind]);
}

static void protect(int kind, int i, size_t n, int prot)
{
	wl_must(!mprotect(part(kind, i), n * PART * WL_PAGE, prot), "mprotect");
}

static void map_at(void *at, size_t parts, int fd)
{
	int flags = MAP_PRIVATE | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);

	wl_must(mmap(at, parts * PART * WL_PAGE, PROT_READ | PROT_WRITE, flags, fd, 0) == at,
		"mmap");
}

static int make_file(void)
{
	char path[256];
	int fd = open(wl_path(path, "file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	wl_must(fd >= 0 && !ftruncate(fd, PAGES * WL_PAGE), "file");
	return fd;
}

static void set_up(void)
{
	for (int k = 0; k < KINDS; k++) {
		/* far from each other: neighbours would join */
		areas[k] = (uint8_t *)(0x200000000000 + (uint64_t)k * 0x10000000);
		if (k == FILE_PAGES) {
			int fd = make_file();
			map_at(areas[k], PARTS, fd);
			close(fd);
		} else if (k == PIECES) {
			map_at(part(k, 0), 1, -1);
			map_at(part(k, 2), 1, -1);
		} else {
			map_at(areas[k], PARTS, -1);
		}
		if (k == NEIGHBOURS) /* flags that keep them apart, also in the kernel's eyes */
			wl_must(!madvise(part(k, 1), PART * WL_PAGE, MADV_DONTFORK), "madvise");
		fill(k, 1);
		if (k != PIECES && k != NEIGHBOURS)
			protect(k, 1, 1, PROT_NONE);
	}
	size_t bytes = (size_t)FILLER_PAGES * WL_PAGE;
	filler = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	wl_must(filler != MAP_FAILED, "mmap");
	uint64_t seed = 1;
	for (size_t i = 0; i < bytes / 8; i++)
		((uint64_t *)filler)[i] = wl_rand(&seed);
}

static uint64_t generation(int k)
{
	return joined[k] && (k == PIECES || k == NEIGHBOURS) ? 2 : 1;
}

static void join(int k)
{
	joined[k] = true;
	if (k == PIECES || k == NEIGHBOURS) {
		map_at(areas[k], PARTS, -1); /* over what was there */
		fill(k, 2);
		return;
	}
	protect(k, 1, 1, PROT_READ | PROT_WRITE);
	if (k == OPENED_RO)
		protect(k, 0, PARTS, PROT_READ);
}

static void on_switch(void)
{
	char path[256];

	for (int k = 0; k < KINDS; k++)
		if (k != CLOSED)
			join(k);
	wl_must(!unlink(wl_path(path, "switch")), "unlink");
}

static void check_whole(int k)
{
	size_t bytes = PAGES * WL_PAGE;

	if (!joined[k])
		join(k);
	uint8_t *at = mremap(areas[k], bytes, bytes + WL_PAGE, MREMAP_MAYMOVE);
	wl_check(at != MAP_FAILED, "%s: mremap of all of it: %s", names[k], strerror(errno));
	check(k, at, generation(k));
}

int main(int argc, char **argv)
{
	char path[256];

	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		if (!access(wl_path(path, "switch"), F_OK))
			on_switch();
		usleep(500);
	}
	for (int k = 0; k < KINDS; k++)
		check_whole(k);
	wl_done();
}
