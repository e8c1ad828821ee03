/* Time namespaces, time_namespaces(7), Linux 5.6: offsets of CLOCK_MONOTONIC and CLOCK_BOOTTIME. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

struct timens_offsets { /* nanoseconds, against the initial namespace */
	int64_t monotonic, boottime;
};

/* Of the namespace of pid (0: of this process). All zero where the kernel has none. */
int timens_read(pid_t pid, struct timens_offsets *ret, struct cr_err *err) must_check;
/* Children of this process will live in a new namespace with these. Not in a process with threads.
 */
int timens_enter(const struct timens_offsets *o, struct cr_err *err) must_check;
