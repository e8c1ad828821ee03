/* Less CPU time for tasks, for a while: the quota of the cgroup that holds them.
 * Documentation/admin-guide/cgroup-v2.rst "cpu.max"; scheduler/sched-bwc.rst (v1, 3.2). */
#pragma once
#include <sys/types.h>
#include "base/err.h"

struct cpu_limit;

/* The quota of the cgroup that holds all of pids. Nothing is changed yet. Errors: UNSUPPORTED if
 * there is no such cgroup, if it holds others as well, or if it cannot be limited.
 *
 * A child of ours watches: should this process end without cpu_limit_free(), it gives the tasks
 * what they had. */
int cpu_limit_new(struct cpu_limit **ret, const pid_t *pids, size_t n,
		  struct cr_err *err) must_check;
/* In thousandths of what they had at most: of their quota, or of all CPUs. At least 1 ms of each
 * period. */
int cpu_limit_set(struct cpu_limit *l, unsigned int thousandths, struct cr_err *err) must_check;
/* What they had before; takes NULL. */
void cpu_limit_free(struct cpu_limit *l);
static inline void cpu_limit_freep(struct cpu_limit **l)
{
	cpu_limit_free(*l);
}
