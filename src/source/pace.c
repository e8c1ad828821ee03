#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "source/pace.h"

enum {
	WORK_US = 20 * 1000,     /* from a look to the next */
	REST_MIN_US = 10 * 1000, /* less tells nothing of how they fare without us */
	LOOK_PART = 50,          /* looking takes no more than this part of the time */
	REST_MOST = 3,           /* for one part of work */
};

/* What they may lose, all in all: what waits beside them (caches, packets) comes on top. */
static const double LOSS = 0.08;
/* Less than this part of a processor is wanted: they do not care. */
static const double WANTED_LEAST = 0.05;
/* Weight of what was seen last. */
static const double FRESH = 0.3;

uint64_t pace_rest_us(double beside, double alone, uint64_t work_us)
{
	double lost = beside - alone;

	if (lost <= LOSS)
		return 0;
	double rest = lost / LOSS - 1;
	return (uint64_t)((double)work_us * (rest < REST_MOST ? rest : REST_MOST));
}

/* schedstat: ns on a processor, ns of waiting for one, turns (proc(5) does not have it; Linux
 * Documentation/scheduler/sched-stats.rst). */
static bool look_at(const struct pace_thread *t, uint64_t *ran_ns, uint64_t *waited_ns)
{
	char path[64], text[96];
	_cleanup_fd_ int fd = -1;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", t->pid, t->tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	char *end;
	*ran_ns = strtoull(text, &end, 10);
	*waited_ns = strtoull(end, NULL, 10);
	return true;
}

/* The part of the time they wanted a processor in which they waited for it, since the last look. */
static double look(struct pace *p)
{
	uint64_t t0 = now_us(), ran = 0, waited = 0;

	vec_foreach (t, &p->threads) {
		uint64_t ran_ns = 0, waited_ns = 0;
		bool there = look_at(t, &ran_ns, &waited_ns);

		if (there && t->there) {
			ran += ran_ns - t->ran_ns;
			waited += waited_ns - t->waited_ns;
		}
		t->there = there;
		t->ran_ns = ran_ns;
		t->waited_ns = waited_ns;
	}
	uint64_t now = now_us();
	double passed_ns = 1000.0 * (double)(t0 - p->since_us);
	p->look_us = now - t0;
	p->since_us = now;
	double wanted = (double)(ran + waited);
	return wanted > passed_ns * WANTED_LEAST ? (double)waited / wanted : 0;
}

void pace_begin(struct pace *p, const struct tree *t)
{
	*p = (struct pace){.on = true};
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *q = &t->procs[i];

		for (size_t k = 0; k < q->n_threads && !q->zombie; k++) {
			struct pace_thread *th = vec_push(&p->threads);

			if (!th) {
				pace_end(p);
				return;
			}
			*th = (struct pace_thread){.pid = q->pid, .tid = q->threads[k].tid};
		}
	}
	(void)look(p);
}

static void rest(struct pace *p)
{
	uint64_t us = p->owed_us < PACE_REST_MAX_US ? p->owed_us : PACE_REST_MAX_US;
	struct timespec ts = {.tv_nsec = (long)us * 1000};

	(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	double seen = look(p);
	p->alone = p->seen_rest ? p->alone + FRESH * (seen - p->alone) : seen;
	p->seen_rest = true;
	p->owed_us = 0;
	p->rested_us += us;
}

void pace_step(struct pace *p)
{
	uint64_t work_us = p->on ? now_us() - p->since_us : 0;

	if (work_us < WORK_US || work_us < p->look_us * LOOK_PART)
		return;
	double seen = look(p);
	p->beside += FRESH * (seen - p->beside);
	p->owed_us += pace_rest_us(p->beside, p->alone, work_us);
	if (p->owed_us >= REST_MIN_US)
		rest(p);
}

void pace_end(struct pace *p)
{
	vec_done(&p->threads);
	*p = (struct pace){.rested_us = p->rested_us};
}
