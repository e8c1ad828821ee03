/* What becomes of a cgroup when this process dies in the middle of something: a child of ours waits
 * for our end and then thaws or freezes it. Without it a kill -9 between freeze and thaw would
 * leave the tasks frozen for ever. */
#pragma once
#include "kernel/cgroup.h"

struct cgroup_guard;

enum cgroup_last_act {
	CGROUP_LEAVE = 'l',
	CGROUP_THAW = 't',
	CGROUP_FREEZE = 'f',
};

/* Starts with CGROUP_LEAVE. Costs a fork: do it before time matters. */
int cgroup_guard_start(struct cgroup_guard **ret, const struct cgroup *cg,
		       struct cr_err *err) must_check;
/* What is to be done if we die from now on. */
int cgroup_guard_set(struct cgroup_guard *g, enum cgroup_last_act act,
		     struct cr_err *err) must_check;
void cgroup_guard_stop(struct cgroup_guard *g); /* takes NULL; does nothing to the cgroup */
