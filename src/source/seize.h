/* Stop a process tree: freeze its cgroup, seize every task, thaw, wait for every stop.
 *
 * A seizure undoes itself: seizure_free() on every way out lets the tasks go as they were (and
 * freezes the cgroup again if it was frozen before). All ptrace calls must come from the thread
 * that took it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"
#include "model/refusal.h"

struct seized_task {
	pid_t tid;
	bool dead;           /* died since */
	bool held_running;   /* seizure_hold found it running, in an executor */
	uint64_t stopped_us; /* when it was told to stop, now_us(); private */
};
struct seized_proc {
	pid_t pid, ppid;
	uint64_t starttime;            /* clock ticks since boot: identity against pid reuse */
	int stop_sig;                  /* in a group stop by this signal, signal(7); 0: not */
	bool zombie;                   /* not seized; waits to be reaped */
	VEC(struct seized_task) tasks; /* leader first, then ascending; empty for a zombie */
	unsigned int depth;            /* below the root; private */
};
struct seizure {
	VEC(struct seized_proc) procs; /* parents before children, then ascending pid */
	uint64_t stopped_us;           /* when the first of the tasks was told to stop, now_us() */
	/* private to seize*.c below */
	struct cgroup *cgroup;
	struct cgroup_guard *guard;
	bool taken; /* not by seizure_preview */
	bool refreeze;
	bool held;
};

struct seize_request {
	pid_t root; /* 0: everything in the cgroup */
	/* Cgroup to freeze: a directory below a v1 freezer or v2 mount, given as the path inside
	 * the hierarchy ("/web") or as the whole path; NULL: none. */
	const char *cgroup;
	bool alone;                  /* the process root and none below it */
	const struct taskview *view; /* for a faster look at who has children; may be NULL */
	bool whole_cgroup; /* tasks in the cgroup but outside the tree are taken, not refused */
	unsigned int
	    attempts;       /* 0: default (8); the tasks run 1 ms to 200 ms between two of them */
	bool seized_before; /* by this migration: a task frozen since is not taken for a stopped one
			     */
};

/* On success every task listed is in PTRACE_EVENT_STOP with PTRACE_O_TRACESYSGOOD set and the
 * cgroup is thawed. warnings: a task of the tree outside the cgroup (it is taken all the same).
 * refused: tasks in the cgroup outside the tree; the call then fails. Errors: CR_ERR_KERNEL naming
 * the task that would not freeze or stop; CR_ERR_UNSUPPORTED naming a task that is traced by
 * somebody else, a process whose first thread has exited, a kernel thread, or this process itself;
 * CR_ERR_INPUT when there is no such process or cgroup. After a failure all tasks are as they were.
 * A task in vfork(2) cannot stop before its child has called execve(2): that takes another attempt.
 *
 * If this process is killed: tracing ends with it and the tasks run on; the cgroup is thawed, or
 * frozen again if it was, by a guard process that lives as long as the seizure (only where a cgroup
 * is used). */
int seizure_take(struct seizure **ret, const struct seize_request *rq, struct refusals *refused,
		 struct cr_err *err) must_check;

/* Which tasks would be seized, without touching them: for the preflight. What seizure_take would
 * fail on is listed in refused. The tasks run on meanwhile: of a tree that keeps forking this is
 * one moment's view. */
int seizure_preview(struct seizure **ret, const struct seize_request *rq, struct refusals *refused,
		    struct cr_err *err) must_check;

/* From here on the tasks must not run by accident: if this process dies they enter a group stop (as
 * by SIGSTOP; SIGCONT lets them go on) instead of running. Tasks are in PTRACE_EVENT_STOP, as after
 * seizure_take, or wait in an executor with all signals blocked: these take no calls meanwhile. A
 * SIGCONT that is pending is lost (signal(7): a stop signal discards it). */
int seizure_hold(struct seizure *s, struct cr_err *err) must_check;
/* Takes that back; the tasks do not notice, and are in PTRACE_EVENT_STOP or run as before.
 * seizure_free does it too. */
int seizure_unhold(struct seizure *s, struct cr_err *err) must_check;

/* When they are let go, by seizure_free(), they enter a group stop, as by SIGSTOP, before they run
 * anything. */
int seizure_leave_stopped(struct seizure *s, struct cr_err *err) must_check;

/* Detach all, in the state they are in, and reap those that died, so that their parents can. A task
 * that is running (resumed and not waited for) is stopped first. NULL is fine. */
void seizure_free(struct seizure *s);
/* The same. Returns for how long that task has stood still which did so longest, in us. */
uint64_t seizure_let_go(struct seizure *s);
static inline void seizure_freep(struct seizure **s)
{
	seizure_free(*s);
}
/* The tasks were killed: reap them as their tracer, which lets their parents do so, and forget
 * them. */
void seizure_forget(struct seizure *s);
