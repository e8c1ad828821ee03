/* How fast the first round goes: nobody waits for it, and the tasks are at work. On a host that is
 * busy without it and has no idle processor beside it, it rests for two thirds of the time. What it
 * would take from others shows in no clock of theirs: a server whose clients wait for a processor
 * runs as long as before, for fewer of them. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* Of all processors' time together: ticks, and those of them in which one was idle. */
struct pace_ticks {
	uint64_t all, idle;
};

struct pace {
	int stat;                /* /proc/stat; -1: off */
	struct pace_ticks since; /* at the last look */
	uint64_t since_us;
	double idle_beside, idle_alone; /* parts of all, us at work and at rest */
	bool known;                     /* how it is without us */
	unsigned int unseen;            /* parts of work since */
	uint64_t rested_us;
};

/* Without /proc/stat there is no rest. */
void pace_begin(struct pace *p);
/* For the thread that works to call every millisecond or so; returns after the rest that is due:
 * PACE_REST_US at most. */
void pace_step(struct pace *p);
void pace_end(struct pace *p);

enum { PACE_WORK_US = 100 * 1000, PACE_REST_US = 2 * PACE_WORK_US, PACE_LOOK_US = 50 * 1000 };

/* Exposed for tests: the rest after a part of work, as what is known of the processors asks for. */
uint64_t pace_rest_us(const struct pace *p);
/* Of the first line of /proc/stat, proc(5). False: it is none. */
bool pace_parse(const char *line, struct pace_ticks *ret);
