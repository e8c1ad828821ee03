/* How fast the first round goes: where the tasks wait longer for a processor while it works than
 * while it rests, it rests more. Nobody waits for it, and they are at work. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/vec.h"
#include "model/tree.h"

struct pace_thread {
	pid_t pid, tid;
	uint64_t ran_ns, waited_ns;
	bool there;
};

struct pace {
	bool on, seen_rest;
	VEC(struct pace_thread) threads;
	uint64_t since_us, look_us; /* when the last look ended, and how long it took */
	double beside, alone; /* the part of what they want that they wait: at work, at rest */
	uint64_t owed_us;     /* of rest */
	uint64_t rested_us;
};

/* The threads of t are those that are looked at. Without memory for that, or where the kernel does
 * not say how long they wait, there is no rest. */
void pace_begin(struct pace *p, const struct tree *t);
/* For the thread that works to call every millisecond or so; returns after the rest that is due, at
 * most PACE_REST_MAX_US. */
void pace_step(struct pace *p);
void pace_end(struct pace *p);

enum { PACE_REST_MAX_US = 100 * 1000 };

/* Exposed for tests. The rest that is due for work_us of work, in microseconds. */
uint64_t pace_rest_us(double beside, double alone, uint64_t work_us);
