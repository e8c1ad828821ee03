/* Stop a process tree: freeze its cgroup, seize every task, thaw, wait for every stop.
 *
 * A seizure undoes itself: seizure_free() on every way out lets the tasks go as they were (and freezes
 * the cgroup again if it was frozen before). All ptrace calls must come from the thread that took it. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"
#include "model/refusal.h"

struct seized_task {
	pid_t tid;
	bool dead; /* died since */
};
struct seized_proc {
	pid_t pid, ppid;
	uint64_t starttime;  /* clock ticks since boot: identity against pid reuse */
	bool zombie;	     /* not seized; waits to be reaped */
	VEC(struct seized_task) tasks; /* leader first, then ascending; empty for a zombie */
};
struct seizure {
	VEC(struct seized_proc) procs; /* parents before children, then ascending pid */
	/* private to seize.c below */
	struct cgroup *cgroup;
	bool refreeze;
};

struct seize_request {
	pid_t root;		/* 0: everything in the cgroup */
	const char *cgroup;	/* cgroup to freeze: directory below a v1 freezer or v2 mount, given as the
				 * path inside the hierarchy ("/web") or as the whole path; NULL: none */
	bool whole_cgroup;	/* tasks in the cgroup but outside the tree are taken, not refused */
	unsigned int attempts;	/* 0: default (8), waits growing from 1 ms to 200 ms */
};

/* On success every task listed is in PTRACE_EVENT_STOP with PTRACE_O_TRACESYSGOOD set and the cgroup is thawed. warnings: a
 * task of the tree outside the cgroup (it is taken all the same). refused: tasks in the cgroup outside
 * the tree. Errors: CR_ERR_KERNEL naming the task that would not freeze or stop. */
int seizure_take(struct seizure **ret, const struct seize_request *rq, struct refusals *refused,
		 struct cr_err *err) must_check;

/* Which tasks would be seized, without touching them: for the preflight. */
int seizure_preview(struct seizure **ret, const struct seize_request *rq, struct refusals *refused,
		    struct cr_err *err) must_check;

/* Detach all, in the state they are in. NULL is fine. */
void seizure_free(struct seizure *s);
/* The tasks were killed: forget them without detaching. */
void seizure_forget(struct seizure *s);
