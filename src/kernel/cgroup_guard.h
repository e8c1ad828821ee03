/* What becomes of a cgroup when this process dies or hangs in the middle of something: a child of
 * ours watches, and then thaws or freezes it. Without it a kill -9 between freeze and thaw would
 * leave the tasks frozen for ever. */
#pragma once
#include "kernel/cgroup.h"

struct cgroup_guard;

enum cgroup_last_act {
	CGROUP_LEAVE = 'l',
	CGROUP_THAW = 't',
	CGROUP_FREEZE = 'f',
};

/* Starts with CGROUP_LEAVE. Costs some 50 us: do it before time matters. */
int cgroup_guard_start(struct cgroup_guard **ret, const struct cgroup *cg,
		       struct cr_err *err) must_check;
/* What is to be done if we die from now on. frozen: we have the cgroup frozen meanwhile, and not
 * for long: after CGROUP_GUARD_MS without another order it is thawed. That ends a hang of our own:
 * PTRACE_SEIZE of a task in a group stop waits, unkillably but for SIGKILL, for a move that a
 * v1-frozen task does not make (ptrace_attach() in kernel/ptrace.c, seen on 6.18). */
enum { CGROUP_GUARD_MS = 2000 };
int cgroup_guard_set(struct cgroup_guard *g, enum cgroup_last_act act, bool frozen,
		     struct cr_err *err) must_check;
void cgroup_guard_stop(struct cgroup_guard *g); /* takes NULL; does nothing to the cgroup */
