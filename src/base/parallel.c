#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

enum { STEP = 32 };

struct job {
	size_t n;
	parallel_fn *fn;
	void *arg;
	atomic_size_t next;
	atomic_int result;
};

struct worker {
	struct job *job;
	unsigned int number;
	pthread_t thread;
	bool started;
	struct cr_err err;
	int result;
};

static void work(struct worker *w)
{
	struct job *j = w->job;
	size_t first;

	while (!w->result && !atomic_load(&j->result) &&
	       (first = atomic_fetch_add(&j->next, STEP)) < j->n)
		for (size_t i = first; i < j->n && i < first + STEP && !w->result; i++)
			w->result = j->fn(i, w->number, j->arg, &w->err);
	if (w->result)
		atomic_store(&j->result, w->result);
}

static void *work_in_thread(void *arg)
{
	work(arg);
	return NULL;
}

/* It would not get the policy where that says SCHED_RESET_ON_FORK, sched(7); and to give it to
 * itself it would have to wait for its turn first. */
int parallel_thread(pthread_t *ret, void *(*fn)(void *), void *arg)
{
	struct sched_param param;
	int policy = sched_getscheduler(0);
	int r = pthread_create(ret, NULL, fn, arg);

	/* without the privilege it is only slower */
	if (!r && policy >= 0 && policy & SCHED_RESET_ON_FORK && !sched_getparam(0, &param))
		(void)!pthread_setschedparam(*ret, policy & ~SCHED_RESET_ON_FORK, &param);
	return r;
}

static unsigned int how_many(size_t n)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (n < PARALLEL_MIN || cpus < 2)
		return 1;
	return cpus < PARALLEL_THREADS_MAX ? (unsigned int)cpus : PARALLEL_THREADS_MAX;
}

int parallel_for(size_t n, parallel_fn *fn, void *arg, struct cr_err *err)
{
	struct job j = {.n = n, .fn = fn, .arg = arg};
	struct worker w[PARALLEL_THREADS_MAX] = {0};
	unsigned int count = how_many(n);
	int r = 0;

	for (unsigned int i = 0; i < count; i++) {
		w[i].job = &j;
		w[i].number = i;
		/* fewer do it as well */
		w[i].started = i && !parallel_thread(&w[i].thread, work_in_thread, &w[i]);
	}
	work(&w[0]);
	for (unsigned int i = 0; i < count; i++) {
		if (w[i].started)
			pthread_join(w[i].thread, NULL);
		if (w[i].result && !r) {
			r = w[i].result;
			*err = w[i].err;
		}
	}
	return r;
}
