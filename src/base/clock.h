/* Time, as numbers. */
#pragma once
#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Monotonic microseconds, for durations. */
static inline uint64_t now_us(void)
{
	return clock_ns(CLOCK_MONOTONIC) / 1000;
}
