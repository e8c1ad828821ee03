/* System V shared memory: a segment with a key and one that was removed, each attached by a parent
 * and its child, which both count in it.
 *
 * --mib N: size of the first (default 2) */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/shm.h>

struct shared {
	_Atomic uint64_t turns[2];
	_Atomic bool stop;
};

static struct {
	int id, removed_id;
	key_t key;
	size_t bytes;
	struct shared *shared;
	uint64_t *pages, *removed;
	const uint64_t *read_only;
	pid_t child;
} f;

static uint64_t word(size_t page, uint64_t turn)
{
	return page * 1000003 + turn;
}

/* Each side has every other page, from the second on. */
static void write_pages(int side, uint64_t turn)
{
	for (size_t p = 1 + (size_t)side; p < f.bytes / WL_PAGE; p += 2)
		f.pages[p * WL_PAGE / 8] = word(p, turn);
}

static void check_pages(int side, uint64_t turn)
{
	for (size_t p = 1 + (size_t)side; p < f.bytes / WL_PAGE; p += 2) {
		wl_check(f.pages[p * WL_PAGE / 8] == word(p, turn), "page %zu of the segment: %lu",
			 p, f.pages[p * WL_PAGE / 8]);
		wl_check(f.read_only[p * WL_PAGE / 8] == word(p, turn),
			 "page %zu of the segment as attached for reading", p);
	}
}

static void turn(int side)
{
	uint64_t n = f.shared->turns[side];

	check_pages(side, n);
	wl_check(f.removed[side] == n, "the removed segment: expected %lu, got %lu", n,
		 f.removed[side]);
	write_pages(side, n + 1);
	f.removed[side] = n + 1;
	f.shared->turns[side] = n + 1;
}

static void *attach(int id, int flags)
{
	void *p = shmat(id, NULL, flags);

	wl_must(p != (void *)-1, "shmat");
	return p;
}

static void check_segment(void)
{
	struct shmid_ds ds;

	wl_must(!shmctl(f.id, IPC_STAT, &ds), "IPC_STAT");
	wl_same("key", (unsigned)f.key, (unsigned)ds.shm_perm.__key);
	wl_same("mode", 0640, ds.shm_perm.mode & 0777);
	wl_same("owner", 4321, ds.shm_perm.uid);
	wl_same("size", f.bytes - 100, ds.shm_segsz);
	wl_same("attached", 4, ds.shm_nattch);
	wl_same("id by key", (unsigned)f.id, (unsigned)shmget(f.key, 0, 0));
	wl_must(!shmctl(f.removed_id, IPC_STAT, &ds), "IPC_STAT");
	wl_check(ds.shm_perm.mode & 01000, "the removed segment is not any more");
	wl_same("attached", 2, ds.shm_nattch);
}

static void set_up(void)
{
	struct shmid_ds ds;

	f.key = 0x770000 + getpid();
	f.bytes = (size_t)wl_opt("mib", 2) << 20;
	f.id = shmget(f.key, f.bytes - 100, IPC_CREAT | IPC_EXCL | 0640);
	f.removed_id = shmget(IPC_PRIVATE, WL_PAGE, 0600);
	wl_must(f.id >= 0 && f.removed_id >= 0, "shmget");
	wl_must(!shmctl(f.id, IPC_STAT, &ds), "IPC_STAT");
	ds.shm_perm.uid = 4321;
	wl_must(!shmctl(f.id, IPC_SET, &ds), "IPC_SET");
	f.shared = attach(f.id, 0);
	f.pages = (void *)f.shared;
	f.read_only = attach(f.id, SHM_RDONLY);
	f.removed = attach(f.removed_id, 0);
	wl_must(!shmctl(f.removed_id, IPC_RMID, NULL), "IPC_RMID");
	write_pages(0, 0);
	write_pages(1, 0);
	f.child = fork();
	wl_must(f.child >= 0, "fork");
	while (!f.child) {
		if (f.shared->stop)
			_exit(0);
		turn(1);
		usleep(2000);
	}
}

int main(int argc, char **argv)
{
	int status;

	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		turn(0);
		check_segment();
		usleep(1000);
	}
	f.shared->stop = true;
	wl_same("child", f.child, waitpid(f.child, &status, 0));
	wl_same("its exit", 0, status);
	check_pages(0, f.shared->turns[0]);
	check_pages(1, f.shared->turns[1]);
	wl_must(!shmdt(f.read_only) && !shmctl(f.id, IPC_RMID, NULL), "IPC_RMID");
	wl_done();
}
