/* What a tracker of writes can lose: this workload looks at how it is tracked itself (its own
 * pagemap shows which pages are write-protected, smaps which mappings are registered, proc(5)), and
 * does the worst right after each round.
 *
 * - It moves a registered mapping beside another: they merge, both lose their registration, but
 *   pages keep their protection. Then it writes to them.
 * - It hides pages that were sent behind guards for a round, and takes the guards away: the pages
 *   are gone.
 *
 * Without a tracker that it can see it just waits. */
#include "workload.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGES = 256, MOVED = 16, GUARDED = 32 };

static uint8_t *kept, *guarded, *witness; /* kept: MOVED pages of room behind it */
static uint64_t kept_gen, guarded_gen, witness_gen;
static uint64_t merges, rounds_guarded;

/* ---- how we are tracked ---- */

/* Bit 57 of the entry: write-protected through userfaultfd (Documentation/admin-guide/mm). */
static bool is_protected(const uint8_t *page)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	wl_must(fd >= 0, "open pagemap");
	wl_same("bytes of pagemap", sizeof(entry),
		pread(fd, &entry, sizeof(entry), (uintptr_t)page / WL_PAGE * sizeof(entry)));
	close(fd);
	return entry >> 57 & 1;
}

/* "uw" in VmFlags: registered with a userfaultfd, write protection. */
static bool is_registered(const uint8_t *page)
{
	uint64_t start, end;
	char line[512];
	bool in = false, found = false;
	FILE *f = fopen("/proc/self/smaps", "re");

	wl_must(f, "open smaps");
	while (!found && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start <= (uintptr_t)page && (uintptr_t)page < end;
		else if (in && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, " uw");
	}
	fclose(f);
	return found;
}

/* ---- the merge ---- */

static uint8_t *fresh; /* untouched: it merges with any neighbour */

static void check_kept(void)
{
	for (size_t k = 0; k < PAGES; k++)
		wl_page_check(kept + k * WL_PAGE, k, kept_gen, "marks, kept");
}

static void step_merge(void)
{
	uint8_t *behind = kept + PAGES * WL_PAGE;

	if (!is_protected(kept) || !is_registered(fresh))
		return;
	wl_must(mremap(fresh, MOVED * WL_PAGE, MOVED * WL_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       behind) == behind,
		"mremap");
	check_kept();
	kept_gen++;
	for (size_t k = 0; k < PAGES; k++)
		wl_page_fill(kept + k * WL_PAGE, k, kept_gen);
	merges++;
	wl_must(!munmap(behind, MOVED * WL_PAGE), "munmap");
	wl_must(mmap(fresh, MOVED * WL_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == fresh,
		"mmap");
}

/* ---- the guards ---- */

static enum { SHOWN, HIDDEN, BARE, NO_GUARDS } state;

static void check_guarded(void)
{
	static const uint8_t zeros[WL_PAGE];

	for (size_t k = 0; k < GUARDED; k++)
		if (state == BARE)
			wl_check(!memcmp(guarded + k * WL_PAGE, zeros, WL_PAGE),
				 "page %zu: expected zeros after its guard was taken away", k);
		else if (state != HIDDEN)
			wl_page_check(guarded + k * WL_PAGE, k, guarded_gen, "marks, guarded");
}

static void mark_witness(void)
{
	wl_page_fill(witness, PAGES, ++witness_gen);
}

static void step_guards(void)
{
	if (state == NO_GUARDS || !is_protected(state == SHOWN ? guarded : witness))
		return; /* no round since */
	check_guarded();
	if (state == SHOWN) {
		state = HIDDEN;
		if (madvise(guarded, GUARDED * WL_PAGE, MADV_GUARD_INSTALL)) {
			wl_must(errno == EINVAL, "madvise(MADV_GUARD_INSTALL)");
			state = NO_GUARDS;
		}
	} else if (state == HIDDEN) {
		state = BARE;
		wl_must(!madvise(guarded, GUARDED * WL_PAGE, MADV_GUARD_REMOVE),
			"madvise(MADV_GUARD_REMOVE)");
		rounds_guarded++;
	} else {
		state = SHOWN;
		guarded_gen++;
		for (size_t k = 0; k < GUARDED; k++)
			wl_page_fill(guarded + k * WL_PAGE, k, guarded_gen);
	}
	mark_witness();
}

/* ---- */

static uint8_t *map(uintptr_t at, size_t pages)
{
	void *p = mmap((void *)at, pages * WL_PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	wl_must(p == (void *)at, "mmap");
	madvise(p, pages * WL_PAGE, MADV_NOHUGEPAGE);
	return p;
}

int main(int argc, char **argv)
{
	uint64_t moves = 0;

	wl_init(argc, argv);
	kept = map(0x100000000000, PAGES);
	fresh = mmap((void *)0x110000000000, MOVED * WL_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	wl_must(fresh != MAP_FAILED, "mmap");
	guarded = map(0x120000000000, GUARDED);
	witness = map(0x130000000000, 1);
	for (size_t k = 0; k < PAGES; k++)
		wl_page_fill(kept + k * WL_PAGE, k, kept_gen);
	for (size_t k = 0; k < GUARDED; k++)
		wl_page_fill(guarded + k * WL_PAGE, k, guarded_gen);
	mark_witness();
	wl_ready();
	while (!wl_stop()) {
		step_merge();
		step_guards();
		if (moves != wl.moves) {
			moves = wl.moves;
			check_kept();
			check_guarded();
		}
		wl_tick();
		wl_sleep_us(100);
	}
	check_kept();
	check_guarded();
	dprintf(2, "%lu merges, %lu times behind guards\n", merges, rounds_guarded);
	wl_done();
}
