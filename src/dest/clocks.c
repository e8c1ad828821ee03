#include "base/clock.h"
#include "dest/dest.h"
#include "kernel/timens.h"

enum {
	SAMPLES_MIN = 20,
	SAMPLES_MAX = 2000,
	GOOD_TRIP_NS = 150 * 1000, /* asked again while the best round trip was worse than this … */
	BUDGET_NS = 1000 * 1000 * 1000, /* … but not for ever */
	ANSWER_TIMEOUT_MS = 5000,
};

/* The source's clocks less ours: never too little, and too much by the round trip at most. A clock
 * that jumps ahead by some microseconds is a stall like any other; one that goes back breaks
 * programs. */
static int measure(struct dest *d, struct timens_offsets *ret, struct cr_err *err)
{
	uint64_t best = UINT64_MAX, begin = clock_ns(CLOCK_MONOTONIC);

	for (int i = 0; i < SAMPLES_MAX && (i < SAMPLES_MIN || best > GOOD_TRIP_NS); i++) {
		struct msg m = msg_of(MSG_CLOCK), reply;
		uint64_t t0 = clock_ns(CLOCK_MONOTONIC);
		int r = link_call(d->peer, &m, MSG_CLOCK_REPLY, ANSWER_TIMEOUT_MS, &reply, err);

		if (r)
			return cr_err_ctx(err, "asking for the source's clocks");
		uint64_t mono = clock_ns(CLOCK_MONOTONIC), boot = clock_ns(CLOCK_BOOTTIME);
		uint64_t trip = mono - t0;
		if (trip < best) {
			best = trip;
			ret->monotonic = (int64_t)(reply.clock_reply.monotonic_ns + trip - mono);
			ret->boottime = (int64_t)(reply.clock_reply.boottime_ns + trip - boot);
		}
		msg_free(&reply);
		if (mono - begin > BUDGET_NS)
			break;
	}
	return 0;
}

int dest_set_clocks(struct dest *d, const struct tree *t, struct cr_err *err)
{
	struct timens_offsets diff, own;

	if (d->clocks_set)
		return 0;
	int r = d->from_image ? 0 : measure(d, &diff, err);
	if (!r)
		r = timens_read(0, &own, err);
	if (r)
		return r;
	if (d->from_image) { /* the time in between has not been, for these clocks */
		diff.monotonic = (int64_t)(t->clock_monotonic_ns - clock_ns(CLOCK_MONOTONIC));
		diff.boottime = (int64_t)(t->clock_boottime_ns - clock_ns(CLOCK_BOOTTIME));
	} else { /* the tasks' clocks may differ from their agent's: they may have moved before */
		diff.monotonic += t->task_monotonic_offset_ns;
		diff.boottime += t->task_boottime_offset_ns;
	}
	own.monotonic += diff.monotonic;
	own.boottime += diff.boottime;
	r = timens_enter(&own, err);
	d->clocks_set = !r;
	d->clock_offset_ns = diff.monotonic;
	fileset_set_clocks(d->files, diff.monotonic, diff.boottime);
	return r;
}
