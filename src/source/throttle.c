/* Pre-copy that does not converge: the tasks get less and less CPU time until it does
 * (--on-no-convergence throttle). They have all of it back before they are stopped, as a task that
 * waits for its time would be stopped late. */
#include <stdio.h>
#include "kernel/cpu_limit.h"
#include "source/source.h"

enum { ROUNDS_PER_STEP = 2 };

/* Thousandths of what they had. */
static const unsigned int STEPS[] = {500, 250, 120, 60, 30, 15, 8};

static int find_limit(const struct source *s, struct cpu_limit **ret, struct cr_err *err)
{
	_cleanup_free_ pid_t *pids = calloc(s->tree->n_procs + 1, sizeof(*pids));
	size_t n = 0;

	if (!pids)
		return cr_err_oom(err);
	for (size_t i = 0; i < s->tree->n_procs; i++)
		if (!s->tree->procs[i].zombie)
			pids[n++] = s->tree->procs[i].pid;
	return cpu_limit_new(ret, pids, n, err);
}

static void warn(struct source *s, const char *why)
{
	struct refusals notes = {0};

	refuse_warn(&notes, 0, "throttle", "the tasks cannot be slowed down: %s", why);
	source_send_notes(s, MSG_WARNING, notes.warnings.v, notes.warnings.n);
	refusals_done(&notes);
}

static int slow_down(struct source *s, struct cpu_limit *l, unsigned int thousandths,
		     struct cr_err *err)
{
	char text[80];

	snprintf(text, sizeof(text), "the tasks get %u.%u %% of their CPU time", thousandths / 10,
		 thousandths % 10);
	source_event(s, "throttle", text);
	return cpu_limit_set(l, thousandths, err);
}

static int round_of_slow_tasks(struct source *s, uint32_t n, uint64_t *predicted_us,
			       struct cr_err *err)
{
	int r = source_check_abort(s, err);

	if (!r)
		r = source_follow_structure(s, err);
	if (!r)
		r = source_one_round(s, n, predicted_us, err);
	return r ? cr_err_ctx(err, "round %u", n) : 0;
}

int source_throttle(struct source *s, uint32_t first, struct cr_err *err)
{
	_cleanup_(cpu_limit_freep) struct cpu_limit *l = NULL;
	uint64_t predicted = UINT64_MAX;
	struct cr_err why = {0};
	uint32_t n = first;
	int r = find_limit(s, &l, &why);

	if (r) { /* no reason to fail: it is as with --on-no-convergence switch */
		warn(s, why.msg);
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(STEPS) && !r; i++) {
		r = slow_down(s, l, STEPS[i], err);
		for (int k = 0; k < ROUNDS_PER_STEP && !r; k++) {
			r = round_of_slow_tasks(s, n++, &predicted, err);
			if (!r && predicted <= s->rq->opts.downtime_limit_us)
				return 0;
		}
	}
	return r;
}
