/* Shared memory of huge pages: anonymous, a System V segment, a memfd, written in turns by a parent
 * and its child through mappings of their own; a part of each is never touched. */
#include "workload.h"

#include <linux/memfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { KINDS = 3, HUGE = 2 << 20, PAGES = 4, UNTOUCHED = 2 };

struct shared {
	_Atomic uint64_t turns[2];
	_Atomic bool stop;
};

static struct {
	struct shared *shared;
	uint64_t *at[KINDS];
	int memfd, id;
} f;

static uint64_t word(int kind, size_t page, uint64_t turn)
{
	return wl_mix((uint64_t)kind << 50 | page << 40 | turn);
}

/* Each side has every other page of 4 KiB, but for one huge page. */
static void each(int side, void (*fn)(int kind, uint64_t *at, size_t page, uint64_t turn),
		 uint64_t turn)
{
	for (int k = 0; k < KINDS; k++)
		for (size_t p = (size_t)side; p < PAGES * HUGE / WL_PAGE; p += 2)
			if (p / (HUGE / WL_PAGE) != UNTOUCHED)
				fn(k, f.at[k] + p * WL_PAGE / 8, p, turn);
}

static void check(int kind, uint64_t *at, size_t page, uint64_t turn)
{
	wl_check(*at == word(kind, page, turn), "page %zu of memory %d", page, kind);
}

static void put(int kind, uint64_t *at, size_t page, uint64_t turn)
{
	*at = word(kind, page, turn);
}

static void turn(int side)
{
	uint64_t n = f.shared->turns[side];

	each(side, check, n);
	each(side, put, n + 1);
	f.shared->turns[side] = n + 1;
}

static void check_look(void)
{
	struct shmid_ds ds;
	struct stat st;
	uint64_t w;

	wl_must(!shmctl(f.id, IPC_STAT, &ds), "IPC_STAT");
	wl_same("size", PAGES * HUGE - 100, ds.shm_segsz);
	wl_must(!fstat(f.memfd, &st), "fstat");
	wl_same("size of its pages", HUGE, st.st_blksize);
	wl_same("size", PAGES * HUGE, st.st_size);
	wl_same("seals", F_SEAL_SHRINK, fcntl(f.memfd, F_GET_SEALS));
	wl_same("read", 8, pread(f.memfd, &w, 8, 0));
	wl_same("through the descriptor", f.at[2][0], w);
	for (int k = 0; k < KINDS; k++)
		wl_same("untouched", 0, f.at[k][UNTOUCHED * HUGE / 8]);
}

static int count_mappings(void)
{
	char line[512];
	int found = 0;
	FILE *s = fopen("/proc/self/smaps", "re");

	wl_must(s, "smaps");
	while (fgets(line, sizeof(line), s))
		found += !strcmp(line, "KernelPageSize:     2048 kB\n");
	fclose(s);
	return found;
}

/* Every mapping consists of huge pages. What is read of a file of proc(5) does not fit together
 * where a move has come in between: then it is read again. */
static void check_mappings(void)
{
	int found = count_mappings();

	if (found != KINDS)
		found = count_mappings();
	wl_same("mappings of huge pages", KINDS, found);
}

static void *map(int flags, int fd)
{
	void *p = mmap(NULL, PAGES * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

static void set_up(void)
{
	f.shared = mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(f.shared != MAP_FAILED, "mmap");
	f.at[0] = map(MAP_ANONYMOUS | MAP_HUGETLB, -1);
	f.id = shmget(IPC_PRIVATE, PAGES * HUGE - 100, IPC_CREAT | SHM_HUGETLB | 0600);
	wl_must(f.id >= 0, "shmget");
	f.at[1] = shmat(f.id, NULL, 0);
	wl_must(f.at[1] != (void *)-1, "shmat");
	f.memfd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_ALLOW_SEALING);
	wl_must(f.memfd >= 0 && !ftruncate(f.memfd, PAGES * HUGE) &&
		    !fcntl(f.memfd, F_ADD_SEALS, F_SEAL_SHRINK),
		"memfd_create");
	f.at[2] = map(0, f.memfd);
	each(0, put, 0);
	each(1, put, 0);
}

int main(int argc, char **argv)
{
	int status;
	pid_t child;

	wl_init(argc, argv);
	set_up();
	child = fork();
	wl_must(child >= 0, "fork");
	while (!child) {
		if (f.shared->stop)
			_exit(0);
		turn(1);
		wl_sleep_us(2000);
	}
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		turn(0);
		check_look();
		check_mappings();
		wl_sleep_us(1000);
	}
	f.shared->stop = true;
	wl_same("child", child, waitpid(child, &status, 0));
	wl_same("its exit", 0, status);
	each(0, check, f.shared->turns[0]);
	each(1, check, f.shared->turns[1]);
	wl_must(!shmctl(f.id, IPC_RMID, NULL), "IPC_RMID");
	wl_done();
}
