/* CPU time that others leave, for work that nobody waits for. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* One thread's; starts as zeros. */
struct background {
	bool on;
	int nice, session; /* as before */
	uint64_t since_us, cpu_us;
};

/* What the caller's session does goes before what others do, where sessions share the CPU time
 * (autogroup, sched(7), 2.6.38) and if the caller leads it. For little work on a host that may have
 * more to do than it can: beside a session of a thousand threads that wake up all the time, one of
 * the same nice value gets next to nothing (measured on 6.18: a thirtieth of a processor). Never
 * fails. */
void background_never(void);
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
