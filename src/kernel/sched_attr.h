/* sched_setattr(2), which glibc has since 2.41 only; the kernel's header cannot be had beside
 * <sched.h> before. */
#pragma once
#include <stdint.h>

struct sched_attr_v0 {
	uint32_t size; /* of this: 48 */
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns; /* SCHED_OTHER: length of a turn, 0: the usual (6.12; else ignored) */
	uint64_t deadline_ns, period_ns;
};
_Static_assert(sizeof(struct sched_attr_v0) == 48, "SCHED_ATTR_SIZE_VER0");
