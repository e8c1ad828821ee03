/* A process that forks all the time: short-lived children have what it shares mapped, a System V
 * segment and POSIX shared memory with and without a name, and each counts in all of them. */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/shm.h>

enum { CHILDREN = 8, KINDS = 3 };

static struct {
	_Atomic uint64_t *count[KINDS];
	uint64_t forked;
	char name[64];
} f;

static void *map_shm(const char *name, bool keep)
{
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

	wl_must(fd >= 0 && !ftruncate(fd, WL_PAGE), "shm_open");
	void *p = mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	wl_must(p != MAP_FAILED, "mmap");
	wl_must(keep || !shm_unlink(name), "shm_unlink");
	close(fd);
	return p;
}

static void set_up(void)
{
	int id = shmget(IPC_PRIVATE, WL_PAGE, IPC_CREAT | 0600);

	wl_must(id >= 0, "shmget");
	f.count[0] = shmat(id, NULL, 0);
	wl_must(f.count[0] != (void *)-1 && !shmctl(id, IPC_RMID, NULL), "shmat");
	snprintf(f.name, sizeof(f.name), "/cr-forks.%d.gone", getpid());
	f.count[1] = map_shm(f.name, false);
	snprintf(f.name, sizeof(f.name), "/cr-forks.%d", getpid());
	f.count[2] = map_shm(f.name, true);
}

static void one_more(void)
{
	pid_t pid = fork();

	wl_must(pid >= 0, "fork");
	f.forked++;
	if (pid)
		return;
	for (int i = 0; i < KINDS; i++)
		++*f.count[i];
	usleep(2000);
	_exit(0);
}

static void reap(void)
{
	int status;

	wl_must(wait(&status) > 0, "wait");
	wl_same("a child", 0, status);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	set_up();
	for (int i = 0; i < CHILDREN; i++)
		one_more();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		reap();
		one_more();
	}
	for (int i = 0; i < CHILDREN; i++)
		reap();
	for (int i = 0; i < KINDS; i++)
		wl_same("children that counted", f.forked, *f.count[i]);
	wl_must(!shm_unlink(f.name), "shm_unlink");
	wl_done();
}
