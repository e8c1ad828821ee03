#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "source/pace.h"

enum { UNSEEN_MOST = 10 }; /* parts of work until it is looked again how it is without us */

/* Nobody finds an idle processor. A tick is 10 ms: less cannot be told apart. */
static const double IDLE_LEAST = 0.1;
/* Others are at work. */
static const double BUSY = 0.3;
/* Weight of what was seen last. */
static const double FRESH = 0.5;

bool pace_parse(const char *line, struct pace_ticks *ret)
{
	unsigned long long user, nice, system, idle, iowait, irq, softirq, steal;

	if (sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system,
		   &idle, &iowait, &irq, &softirq, &steal) != 8)
		return false;
	ret->idle = idle + iowait;
	ret->all = user + nice + system + ret->idle + irq + softirq + steal;
	return true;
}

uint64_t pace_rest_us(const struct pace *p)
{
	if (p->idle_beside >= IDLE_LEAST)
		return 0;
	if (!p->known)
		return PACE_LOOK_US;
	if (1 - p->idle_alone >= BUSY)
		return PACE_REST_US;
	return p->unseen >= UNSEEN_MOST ? PACE_LOOK_US : 0;
}

static bool read_ticks(struct pace *p, struct pace_ticks *ret)
{
	char line[256];
	ssize_t n = pread(p->stat, line, sizeof(line) - 1, 0);

	if (n <= 0)
		return false;
	line[n] = '\0';
	return pace_parse(line, ret);
}

/* The idle part since the last look; as before if too little has passed. */
static double look(struct pace *p, double before)
{
	struct pace_ticks now;
	double idle = before;

	if (!read_ticks(p, &now)) {
		pace_end(p);
		return before;
	}
	if (now.all > p->since.all && now.idle >= p->since.idle)
		idle = (double)(now.idle - p->since.idle) / (double)(now.all - p->since.all);
	p->since = now;
	p->since_us = now_us();
	return idle;
}

void pace_begin(struct pace *p)
{
	*p = (struct pace){.stat = open("/proc/stat", O_RDONLY | O_CLOEXEC), .idle_beside = 1};
	if (p->stat >= 0)
		(void)look(p, 0);
}

static void rest(struct pace *p, uint64_t us)
{
	struct timespec ts = {.tv_nsec = (long)us * 1000};

	(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	double idle = look(p, p->idle_alone);
	p->idle_alone += p->known ? FRESH * (idle - p->idle_alone) : idle - p->idle_alone;
	p->known = true;
	p->unseen = 0;
	p->rested_us += us;
}

void pace_step(struct pace *p)
{
	if (p->stat < 0 || now_us() - p->since_us < PACE_WORK_US)
		return;
	p->idle_beside = look(p, p->idle_beside);
	p->unseen++;
	uint64_t us = p->stat < 0 ? 0 : pace_rest_us(p);
	if (us)
		rest(p, us);
}

void pace_end(struct pace *p)
{
	close_fdp(&p->stat);
}
