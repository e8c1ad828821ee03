/* Robust mutexes far apart in memory that nobody touches, held by a thread that ends right after a
 * move: whoever locks them then is told that their owner has died.
 *
 * --mib N (default 64): of the memory in which they lie. */
#include "workload.h"
#include <pthread.h>

enum { MUTEXES = 3, PATIENCE_S = 10 };

static pthread_mutex_t *mutexes[MUTEXES];
static int wake[2];

static void set_up(void)
{
	size_t pages = wl_opt("mib", 64) * 256;
	char *memory =
	    mmap(NULL, pages * WL_PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
	pthread_mutexattr_t robust;

	wl_must(memory != MAP_FAILED, "memory");
	for (size_t i = 0; i < pages * WL_PAGE / 8; i++) /* nothing that compresses */
		((uint64_t *)memory)[i] = wl_mix(i);
	wl_must(!pthread_mutexattr_init(&robust) &&
		    !pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST),
		"a robust mutex");
	for (size_t i = 0; i < MUTEXES; i++) {
		mutexes[i] = (void *)(memory + pages / (MUTEXES + 1) * (i + 1) * WL_PAGE);
		wl_must(!(errno = pthread_mutex_init(mutexes[i], &robust)), "pthread_mutex_init");
	}
	wl_must(!pipe(wake), "pipe");
}

static void *owner_main(void *arg)
{
	char c;

	for (size_t i = 0; i < MUTEXES; i++)
		wl_must(!(errno = pthread_mutex_lock(mutexes[i])), "pthread_mutex_lock");
	wl_must(write(*(int *)arg, "", 1) == 1, "telling that all are held");
	while (read(wake[0], &c, 1) < 0 && errno == EINTR)
		;
	return NULL;
}

static void start_owner(pthread_t *owner)
{
	int held[2];
	char c;

	wl_must(!pipe(held), "pipe");
	wl_must(!(errno = pthread_create(owner, NULL, owner_main, &held[1])), "pthread_create");
	wl_must(read(held[0], &c, 1) == 1, "waiting until all are held");
	close(held[0]);
	close(held[1]);
}

static void inherit(pthread_t *owner)
{
	wl_must(write(wake[1], "", 1) == 1, "ending the owner");
	wl_must(!(errno = pthread_join(*owner, NULL)), "pthread_join");
	for (size_t i = 0; i < MUTEXES; i++) {
		struct timespec end;

		clock_gettime(CLOCK_REALTIME, &end);
		end.tv_sec += PATIENCE_S;
		int r = pthread_mutex_timedlock(mutexes[i], &end);

		wl_check(r == EOWNERDEAD, "mutex %zu: its owner has ended, and locking it says: %s",
			 i, strerror(r));
		wl_must(!pthread_mutex_consistent(mutexes[i]) && !pthread_mutex_unlock(mutexes[i]),
			"giving it back");
	}
	start_owner(owner);
}

int main(int argc, char **argv)
{
	pthread_t owner;

	wl_init(argc, argv);
	set_up();
	start_owner(&owner);
	wl_ready();
	while (!wl_stop()) {
		if (wl_tick())
			inherit(&owner);
		wl_sleep_us(1000);
	}
	wl_done();
}
