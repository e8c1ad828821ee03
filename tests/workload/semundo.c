/* System V semaphores with SEM_UNDO: what processes have done to a set is undone when they are
 * killed at the end, also by threads that share it with the first of their process; a mutex that
 * parent and child take turns at, and a child that is killed while it holds one; values, and who
 * changed each last, as they were.
 *   --foreign: a thread has a list of its own, which cannot move */
#include "workload.h"
#include <pthread.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/sem.h>

enum { PAIR, THREADED, BOTTOM, TOP, HELD, PLAIN, SEMS };
enum { DOER, HOLDER, LOCKER, CHILDREN };
static const unsigned short begin[SEMS] = {5, 0, 0, 32767, 1, 17};

struct shared {
	_Atomic uint64_t count, inside;
	_Atomic int ready;
};

static struct {
	struct shared *shared;
	int set, mutex;
	pid_t child[CHILDREN];
} f;

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

static void change(int set, unsigned short sem, short by, short flags)
{
	struct sembuf op = {sem, by, flags};

	while (semop(set, &op, 1))
		wl_check(errno == EINTR, "semop: %s", strerror(errno));
}

static void *change_threaded(void *arg)
{
	change(f.set, THREADED, 7, SEM_UNDO);
	f.shared->ready++;
	for (;;)
		pause();
	return arg;
}

static void wait_for_end(void)
{
	for (;;)
		pause();
}

static void doer(void)
{
	pthread_t t;

	change(f.set, PAIR, -2, SEM_UNDO);
	change(f.set, TOP, -32767, SEM_UNDO);
	wl_must(!pthread_create(&t, NULL, change_threaded, NULL), "pthread_create");
	wait_for_end();
}

static void holder(void)
{
	change(f.set, PAIR, 4, SEM_UNDO);
	change(f.set, BOTTOM, 32767, SEM_UNDO);
	change(f.set, HELD, -1, SEM_UNDO);
	f.shared->ready++;
	wait_for_end();
}

static void lock_once(void)
{
	uint64_t inside;

	change(f.mutex, 0, -1, SEM_UNDO);
	inside = ++f.shared->inside;
	wl_same("inside", 1, inside);
	f.shared->count++;
	f.shared->inside--;
	change(f.mutex, 0, 1, SEM_UNDO);
}

static void locker(void)
{
	f.shared->ready++;
	for (;;)
		lock_once();
}

static void check_values(const unsigned short want[SEMS])
{
	unsigned short values[SEMS] = {0};

	wl_must(!semctl(f.set, 0, GETALL, (union semun){.array = values}), "GETALL");
	for (int i = 0; i < SEMS; i++)
		wl_check(want[i] == values[i], "semaphore %d is %u, not %u", i, values[i], want[i]);
}

static void check_as_done(void)
{
	static const unsigned short now[SEMS] = {7, 7, 32767, 0, 0, 17};
	const pid_t by[SEMS] = {f.child[HOLDER], f.child[DOER],   f.child[HOLDER],
				f.child[DOER],   f.child[HOLDER], getpid()};

	check_values(now);
	for (int i = 0; i < SEMS; i++)
		wl_same("who changed it", by[i], semctl(f.set, i, GETPID));
}

static void start(int which, void (*fn)(void))
{
	int ready = f.shared->ready;

	f.child[which] = fork();
	wl_must(f.child[which] >= 0, "fork");
	if (!f.child[which]) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn();
	}
	while (f.shared->ready == ready)
		wl_sleep_us(100);
}

static void end(int which)
{
	wl_must(!kill(f.child[which], SIGKILL) &&
		    waitpid(f.child[which], NULL, 0) == f.child[which],
		"killing a child");
}

static void set_up(void)
{
	f.shared = mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(f.shared != MAP_FAILED, "mmap");
	f.set = semget(IPC_PRIVATE, SEMS, 0600);
	f.mutex = semget(IPC_PRIVATE, 1, 0600);
	wl_must(f.set >= 0 && f.mutex >= 0, "semget");
	wl_must(!semctl(f.set, 0, SETALL, (union semun){.array = (unsigned short *)begin}),
		"SETALL");
	wl_must(!semctl(f.mutex, 0, SETVAL, (union semun){.val = 1}), "SETVAL");
	start(DOER, doer);
	start(HOLDER, holder);
	start(LOCKER, locker);
}

static void finish(void)
{
	static const unsigned short without_doer[SEMS] = {9, 0, 32767, 32767, 0, 17};

	end(DOER);
	check_values(without_doer);
	end(HOLDER);
	check_values(begin);
	end(LOCKER);
	/* held or not just then, nobody holds it now */
	struct sembuf op = {0, -1, IPC_NOWAIT};
	wl_check(!semop(f.mutex, &op, 1), "the mutex of a child that was killed: %s",
		 strerror(errno));
	wl_must(!semctl(f.set, 0, IPC_RMID) && !semctl(f.mutex, 0, IPC_RMID), "IPC_RMID");
}

static void *foreign(void *arg)
{
	wl_must(!unshare(CLONE_SYSVSEM), "unshare");
	change(f.set, PLAIN, -1, SEM_UNDO);
	f.shared->ready++;
	wait_for_end();
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t t;

	wl_init(argc, argv);
	set_up();
	if (wl_flag("foreign")) {
		int ready = f.shared->ready;

		wl_must(!pthread_create(&t, NULL, foreign, NULL), "pthread_create");
		while (f.shared->ready == ready)
			wl_sleep_us(100);
	}
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		lock_once();
		if (!wl_flag("foreign"))
			check_as_done();
		usleep(300);
	}
	if (wl_flag("foreign"))
		wl_must(!semctl(f.set, 0, IPC_RMID) && !semctl(f.mutex, 0, IPC_RMID), "IPC_RMID");
	else
		finish();
	wl_done();
}
