/* CPU time that others leave, for work that nobody waits for. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* One thread's; starts as zeros. */
struct background {
	bool on;
	int nice; /* as before */
	uint64_t since_us, cpu_us;
};

/* The calling thread gives way to everybody else: by its nice value (setpriority(2)), and where
 * sessions share the CPU time (autogroup, sched(7), 2.6.38) by that of its session too, without
 * which the first counts inside of the session only. That is done by the leader of a session
 * alone: others share theirs with programs that are none of our business.
 * Never fails: what is not allowed is left as it is. */
void background_enter(struct background *b);
/* For the thread to call every now and then: one that starves takes its turn again. */
void background_check(struct background *b);
/* As before; nothing if it is not in the background (any more). */
void background_leave(struct background *b);
