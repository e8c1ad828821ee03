/* CPU time that others leave, for work that nobody waits for. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum background_depth {
	BACKGROUND_NONE,
	/* By its nice value (setpriority(2)), and where sessions share the CPU time (autogroup,
	 * sched(7), 2.6.38) by that of its session: a tenth of what one other gets. */
	BACKGROUND_LESS,
	/* Nothing but what nobody else wants: SCHED_IDLE (sched(7), 2.6.23), the least for its
	 * session, and turns of 0.1 ms (the runtime of sched_setattr(2) for SCHED_OTHER, 6.12): a
	 * weight alone says how much, but not how long others wait for the end of a turn. */
	BACKGROUND_IDLE,
};

/* One thread's; starts as zeros. */
struct background {
	enum background_depth depth;
	int nice, session; /* as before */
	uint64_t since_us, cpu_us;
};

/* What the caller's session does goes before what others do, where sessions share the CPU time
 * (autogroup, sched(7), 2.6.38) and if the caller leads it. For little work on a host that may have
 * more to do than it can: beside a session of a thousand threads that wake up all the time, one of
 * the same nice value gets next to nothing (measured on 6.18: a thirtieth of a processor). Never
 * fails. */
void background_never(void);
/* The calling thread gives way to everybody else. The nice value of a session is set by its leader
 * alone: others share theirs with programs that are none of our business. Nothing for a thread with
 * a policy of its own (real time, batch).
 * Never fails: what is not allowed is left as it is. */
void background_enter(struct background *b, enum background_depth depth);
/* For the thread to call every now and then: one that starves comes up a step. */
void background_check(struct background *b);
/* As before; nothing if it is not in the background (any more). */
void background_leave(struct background *b);
/* For a thread, and those that it starts, with much to do for others who are not in a hurry: its
 * share of the CPU time stays what it is, in the shortest turns that the kernel has (6.12), so that
 * nobody waits long for the end of one. Nothing for one with a policy of its own. Never fails. */
void background_short_turns(void);
/* For a thread that may be in the background, between any two pieces of work that take as long as a
 * few system calls: who waits for this processor gets it now, and not at the next tick of the clock
 * (a wakeup ends no turn that has just begun). Nothing elsewhere. */
void background_yield(void);
/* Around what takes a lock that others wait for, as long work on the memory of a task does: who
 * holds it and gives way keeps them waiting for all who go first. Threads begun in between do not
 * give way. Nothing for a thread that is not in the background. */
enum { BACKGROUND_LONG_BYTES = 1 << 20 }; /* of memory: tens of microseconds, and more */
void background_pause(void);
void background_resume(void);
