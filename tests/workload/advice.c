/* A large process that changes the flags of whole mappings all the time: madvise(2) and mlock(2),
 * of which /proc/self/maps says nothing. After each move it has to find what it set last.
 *
 * --mib N touched memory beside (320) */
#include "workload.h"

enum { KINDS = 5, PAGES = 4 };

static struct kind {
	const char *flag; /* VmFlags, proc_pid_smaps(5) */
	int set, clear;   /* 0: mlock(2) and munlock(2) */
	uint8_t *at;
	bool on;
} kinds[KINDS] = {
    {"dc", MADV_DONTFORK, MADV_DOFORK, NULL, false},
    {"dd", MADV_DONTDUMP, MADV_DODUMP, NULL, false},
    {"wf", MADV_WIPEONFORK, MADV_KEEPONFORK, NULL, false},
    {"sr", MADV_SEQUENTIAL, MADV_NORMAL, NULL, false},
    {"lo", 0, 0, NULL, false},
};

static void toggle(struct kind *k)
{
	k->on = !k->on;
	if (k->set)
		wl_must(!madvise(k->at, PAGES * WL_PAGE, k->on ? k->set : k->clear), "madvise");
	else
		wl_must(!(k->on ? mlock : munlock)(k->at, PAGES * WL_PAGE), "mlock");
}

static void check(void)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	char line[512], flag[8];
	uint64_t start = 0, from, to;
	size_t seen = 0;

	wl_must(f, "opening smaps");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			start = from;
		if (strncmp(line, "VmFlags:", 8))
			continue;
		for (struct kind *k = kinds; k < kinds + KINDS; k++) {
			if (start != (uintptr_t)k->at)
				continue;
			snprintf(flag, sizeof(flag), " %s ", k->flag);
			wl_check(!!strstr(line, flag) == k->on, "flag %s: %s, but it was %s",
				 k->flag, line, k->on ? "set" : "cleared");
			seen++;
		}
	}
	fclose(f);
	wl_same("mappings that are there as they were", KINDS, seen);
}

int main(int argc, char **argv)
{
	uint64_t moves = 0;

	wl_init(argc, argv);
	size_t bytes = (size_t)wl_opt("mib", 320) << 20;
	uint8_t *large =
	    mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	wl_must(large != MAP_FAILED, "memory");
	for (size_t at = 0; at < bytes; at += WL_PAGE)
		memset(large + at, (int)(at / WL_PAGE % 7 + 1), 64);
	for (struct kind *k = kinds; k < kinds + KINDS; k++) {
		/* apart, so that each stays a mapping of its own */
		uint8_t *area = mmap(NULL, (PAGES + 2) * WL_PAGE, PROT_NONE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		k->at = area + WL_PAGE;
		wl_must(area != MAP_FAILED &&
			    !mprotect(k->at, PAGES * WL_PAGE, PROT_READ | PROT_WRITE),
			"memory");
		memset(k->at, 1, PAGES * WL_PAGE);
	}
	wl_ready();
	for (uint64_t i = 0; !wl_stop(); i++) {
		wl_tick();
		if (wl.moves != moves) {
			moves = wl.moves;
			check();
		}
		toggle(&kinds[i % KINDS]);
		wl_sleep_us(1000);
	}
	check();
	wl_done();
}
