/* Tasks under our ptrace: take one, wait for its stop, let it go. Inside of seize*.c.
 *
 * All functions must be called by the thread that seized. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"

enum held_state {
	HELD_RUNNING, /* seized and interrupted; its stop was not seen yet */
	HELD_STOPPED, /* in PTRACE_EVENT_STOP */
	HELD_DEAD,    /* gone, or reaped by us */
	HELD_ZOMBIE,  /* a process that waits for its parent: not seized */
};

struct held {
	pid_t tid, pid; /* thread, process */
	enum held_state state;
	unsigned int seen; /* the last walk that found it */
	bool interrupted;
	uint64_t stopped_us; /* since when it may stand still, now_us() */
	bool again;          /* inside of held_finish_stops */
	int stop_sig;        /* its process is in a group stop, by this signal; 0: it is not */
};

struct held_set {
	VEC(struct held) list; /* ascending tid */
};

struct held *held_find(const struct held_set *s, pid_t tid);

/* Seize; it runs on until held_interrupt(). 1: held now and was not before; 0: it is gone, or was
 * known already; negative: CR_ERR_UNSUPPORTED when it cannot be held, by name. */
int held_take(struct held_set *s, pid_t pid, pid_t tid, unsigned int walk,
	      struct cr_err *err) must_check;

/* All that were not yet, in the end: the stops are then close together. Leaders last, as they are
 * let go last. since_us: they stand still since then, in a frozen cgroup; 0: only from now on. */
int held_interrupt(struct held_set *s, uint64_t since_us, struct cr_err *err) must_check;

/* Wait until none is HELD_RUNNING, budget_us long, four times that for one that only needs a CPU.
 * *gone: how many died or were let go: a parent in vfork(2) stops only after its child has called
 * execve(2), so the child is let go for that, and must be found again by another walk. -EAGAIN: not
 * in time, the message and err->pid name one. */
int held_wait(struct held_set *s, uint64_t deadline_us, size_t *died,
	      struct cr_err *err) must_check;

/* Of processes in a group stop: one more stop of each thread. If the group stop was under way when
 * the interrupts came, those that had not heard of it take their part in it; and one that was
 * seized in it has two stops to report, as PTRACE_SEIZE makes one and the interrupt another. What
 * is left would come in the middle of what they are made to do. */
int held_finish_stops(struct held_set *s, uint64_t budget_us, struct cr_err *err) must_check;

/* Let go of all; those that are running are waited for, to the deadline. Returns how many could not
 * be let go, and one of them in *ret_tid: they stay attached until this thread ends. */
size_t held_release(struct held_set *s, uint64_t deadline_us, pid_t *ret_tid);
void held_done(struct held_set *s);

/* A process whose leader has exited while others of it run: -EAGAIN, as it may be one that exits.
 */
int seizure_leader_gone(pid_t pid, struct cr_err *err) must_check;
bool seizure_has_thread_alive(pid_t pid);

/* One task that is not known to be stopped: interrupt it if it runs, then detach. False: not by
 * then. */
bool task_let_go(pid_t tid, uint64_t deadline_us);
/* Reap one that was killed, as its tracer. False: not by then. */
bool task_reap(pid_t tid, uint64_t deadline_us);

/* Sleep between two looks at a task: 5 us at first, doubling to 1 ms. */
struct backoff {
	long us;
};
void backoff_sleep(struct backoff *b);
/* Lets this thread sleep for microseconds (prctl(PR_SET_TIMERSLACK)); restore with the value
 * returned. */
unsigned long sleep_precisely(void);
void sleep_as_before(unsigned long slack);

/* "task 12 (redis-server)", "task 13 (worker) of process 12" for messages. */
void task_describe(pid_t pid, pid_t tid, char *buf, size_t size);
