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
	int policy;
	struct sched_param param;
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

/* A thread does not get its creator's policy where that says SCHED_RESET_ON_FORK, sched(7). */
static void *work_in_thread(void *arg)
{
	struct worker *w = arg;

	/* without the privilege it is only slower */
	(void)!sched_setscheduler(0, w->job->policy, &w->job->param);
	work(w);
	return NULL;
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

	j.policy = sched_getscheduler(0);
	if (j.policy < 0 || sched_getparam(0, &j.param))
		count = 1;
	for (unsigned int i = 0; i < count; i++) {
		w[i].job = &j;
		w[i].number = i;
		/* fewer do it as well */
		w[i].started = i && !pthread_create(&w[i].thread, NULL, work_in_thread, &w[i]);
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
