#include "source/seize.h"

#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include "base/clock.h"
#include "kernel/cgroup.h"
#include "kernel/cgroup_guard.h"
#include "kernel/procfs.h"
#include "source/seize_private.h"
#include "source/seize_tasks.h"
#include "source/seize_walk.h"

enum {
	MAX_WALKS = 100,     /* per attempt: a tree that outruns these is a fork bomb */
	LET_GO_US = 2000000, /* for tasks that are not stopped when they are to be let go */
	REAP_US = 5000000,
};

/* How long attempt n may wait for the freeze, and then for the stops. */
static unsigned int budget_ms(unsigned int n)
{
	return n < 4 ? 50u << n : 400;
}

/* How long the tasks run on before the next attempt. */
static unsigned int pause_ms(unsigned int n)
{
	return n < 8 ? 1u << n : 200;
}

/* One attempt at a request. */
struct attempt {
	const struct seize_request *rq;
	struct seizure *s;
	struct refusals *refused;
	struct held_set held;
	struct walk walk;
	unsigned int n_walks;
	bool frozen;        /* by us, now */
	uint64_t frozen_us; /* since when, now_us(); 0: nothing was */
};

/* ---- the cgroup ---- */

static int freeze(struct attempt *a, unsigned int timeout_ms, struct cr_err *err)
{
	struct seizure *s = a->s;
	/* the guard first: dying in between would leave the tasks frozen */
	int r = cgroup_guard_set(s->guard, s->refreeze ? CGROUP_FREEZE : CGROUP_THAW, true, err);

	a->frozen_us = now_us();
	if (r == 0)
		r = cgroup_freeze(s->cgroup, timeout_ms, err);
	a->frozen = r == 0;
	return r;
}

static int thaw(struct attempt *a, struct cr_err *err)
{
	struct seizure *s = a->s;

	if (!a->frozen)
		return 0;
	int r = cgroup_thaw(s->cgroup, err);
	if (r == 0)
		a->frozen = false;
	if (r == 0)
		r = cgroup_guard_set(s->guard, s->refreeze ? CGROUP_FREEZE : CGROUP_LEAVE, false,
				     err);
	return r;
}

/* ---- who ---- */

/* To seize a task in a group stop while v1 has it frozen would hang (cgroup_guard.h), and its state
 * shows as that of any frozen one: only where it waits tells. What this misses the guard ends.
 * 1: it waits like that, and is taken after the thaw, when it does not run either. In a cgroup that
 * was frozen before it is refused: there those of the first seizure were let go into the freeze,
 * and wait in the same place. */
static int waits_stopped(const struct attempt *a, pid_t pid, struct cr_err *err)
{
	static const char *const stops[] = {"do_signal_stop", "get_signal", "ptrace_stop",
					    "do_jobctl_trap"};
	_cleanup_free_ char *wchan = NULL;
	char who[128];
	bool found = false;

	if (!a->frozen || cgroup_version(a->s->cgroup) != CGROUP_V1 ||
	    (a->s->refreeze && a->rq->seized_before))
		return 0;
	ssize_t n = proc_read(pid, "wchan", &wchan, err);
	if (n < 0)
		return n == -ESRCH ? 0 : (int)n;
	for (size_t i = 0; i < ARRAY_SIZE(stops); i++)
		found |= !strcmp(wchan, stops[i]);
	if (!found || !a->s->refreeze)
		return found;
	task_describe(pid, pid, who, sizeof(who));
	err->pid = pid;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
			  "%s is stopped (by a signal or a debugger) in a cgroup that is frozen: "
			  "continue it first (kill -CONT %d), or thaw the cgroup",
			  who, pid);
}

/* One walk; holds what is new. Returns how many that were; 0 is the last word. */
static ssize_t walk_and_take(struct attempt *a, bool quick, struct cr_err *err)
{
	ssize_t fresh = quick; /* so that another one follows */
	int r = walk_tree(&a->walk, a->rq->root, a->s->cgroup, a->rq->whole_cgroup, quick, err);

	if (r < 0)
		return r;
	a->n_walks++;
	for (size_t k = 0; r >= 0 && k < a->walk.procs.n; k++) {
		const struct walk_proc *p = &a->walk.procs.v[k];

		if (!held_find(&a->held, p->pid))
			r = waits_stopped(a, p->pid, err);
		if (r > 0) /* once nothing is frozen */
			continue;
		for (size_t i = 0; r >= 0 && i < p->n_tids; i++) {
			r = held_take(&a->held, p->pid, a->walk.tids.v[p->first_tid + i],
				      a->n_walks, err);
			fresh += r;
		}
	}
	/* also after a failure: whoever lets them go waits for their stops */
	struct cr_err late = {0};
	int e = held_interrupt(&a->held, a->frozen ? a->frozen_us : 0, r < 0 ? &late : err);
	return r < 0 ? r : e ? e : fresh;
}

static int too_fast(const struct attempt *a, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
			  "the tasks fork faster than they can be seized (%zu held after %u walks)",
			  a->held.list.n, a->n_walks);
}

/* Hardly anything new appears while they are frozen, so that one walk finds all of the tree. But a
 * cgroup of v2 has been seen to call itself frozen (6.18) while a thread was in fork(2), whose
 * child was not there yet. So the last word is take_running()'s here, too. */
static int take_frozen(struct attempt *a, struct cr_err *err)
{
	ssize_t fresh = walk_and_take(a, false, err);

	return fresh < 0 ? (int)fresh : 0;
}

/* Of one process, whose threads we have in hand as far as we know: are those all? Then another walk
 * would find nobody new either. */
static bool has_all_threads(const struct attempt *a)
{
	struct proc_stat st;
	struct cr_err ignored = {0};
	uint64_t n = 0;

	if (!a->rq->alone || !a->n_walks || proc_stat_read(a->rq->root, 0, &st, &ignored))
		return false;
	vec_foreach (h, &a->held.list)
		n += h->pid == a->rq->root && h->state == HELD_STOPPED && h->seen == a->n_walks;
	return n && n == st.num_threads;
}

/* Until a walk over stopped tasks finds nobody new: then nobody is left who could fork. */
static int take_running(struct attempt *a, uint64_t budget_us, struct cr_err *err)
{
	for (;;) {
		size_t gone = 0;
		ssize_t fresh = walk_and_take(a, !a->n_walks, err);

		if (fresh < 0)
			return (int)fresh;
		int r = held_wait(&a->held, budget_us, &gone, err);
		if (r < 0)
			return r;
		if (!gone && (!fresh || has_all_threads(a)))
			return 0;
		if (a->n_walks >= MAX_WALKS)
			return too_fast(a, err);
	}
}

/* ---- the result ---- */

static void note_times(struct attempt *a)
{
	a->s->stopped_us = now_us();
	vec_foreach (p, &a->s->procs) {
		vec_foreach (t, &p->tasks) {
			t->stopped_us = held_find(&a->held, t->tid)->stopped_us;
			if (t->stopped_us < a->s->stopped_us)
				a->s->stopped_us = t->stopped_us;
		}
	}
}

/* From the last walk and what is held of it. A task that is held but was not found any more (its
 * pid was reused before it was seized, or it left the tree by its parent's death) is let go. */
static int build(struct attempt *a, struct cr_err *err)
{
	vec_foreach (w, &a->walk.procs) {
		const struct held *leader = held_find(&a->held, w->pid);
		struct seized_proc *p;
		int r;

		if (!leader || leader->state == HELD_DEAD) {
			for (size_t i = 0; i < w->n_tids; i++) {
				const struct held *h =
				    held_find(&a->held, a->walk.tids.v[w->first_tid + i]);
				if (h && h->state == HELD_STOPPED)
					return seizure_leader_gone(w->pid, err);
			}
			continue;
		}
		r = seizure_add_process(a->s, w->pid, leader->state == HELD_ZOMBIE, &p, err);
		if (r == 0 && p && !p->zombie)
			r = seizure_add_task(p, w->pid, err);
		if (p)
			p->stop_sig = leader->stop_sig;
		for (size_t i = 0; r == 0 && p && !p->zombie && i < w->n_tids; i++) {
			const struct held *h =
			    held_find(&a->held, a->walk.tids.v[w->first_tid + i]);

			if (h && h->tid != w->pid && h->state == HELD_STOPPED)
				r = seizure_add_task(p, h->tid, err);
		}
		if (r < 0)
			return r;
	}
	uint64_t deadline = now_us() + LET_GO_US;
	vec_foreach (h, &a->held.list) {
		if (h->seen != a->n_walks && h->state == HELD_STOPPED &&
		    task_let_go(h->tid, deadline))
			h->state = HELD_DEAD;
	}
	note_times(a);
	seizure_sort(a->s);
	return 0;
}

/* ---- take ---- */

/* A process in the cgroup that is not of the tree may be one that was until its parent died, on its
 * own way out: such a one is gone by the next attempts (but not if it was frozen before: then
 * nothing moves). */
static int refuse_strangers(struct attempt *a, unsigned int n, struct cr_err *err)
{
	bool final = n >= 2 || n + 1 >= a->rq->attempts || a->s->refreeze;
	int r =
	    seizure_refuse_others(&a->walk, a->rq, a->s->cgroup, final ? a->refused : NULL, err);

	if (r < 0 && !final)
		err->code = EAGAIN;
	return r < 0 ? -err->code : 0;
}

static int try_take(struct attempt *a, unsigned int n, struct cr_err *err)
{
	uint64_t budget_us = budget_ms(n) * 1000ull;
	size_t gone = 0;
	int r = 0;

	if (a->s->cgroup) {
		r = freeze(a, budget_ms(n), err);
		if (r == 0)
			r = take_frozen(a, err);
		if (r == 0)
			r = refuse_strangers(a, n, err);
		if (r == 0)
			seizure_warn_outside(&a->walk, a->s->cgroup, a->refused);
		/* v1 reports no stop before the thaw; and nobody of them can run: all are
		 * interrupted */
		if (r == 0)
			r = thaw(a, err);
	}
	if (r == 0 && a->s->cgroup)
		r = held_wait(&a->held, budget_us, &gone, err);
	if (r == 0)
		r = take_running(a, budget_us, err);
	if (r == 0)
		r = held_finish_stops(&a->held, budget_us, err);
	return r == 0 ? build(a, err) : r;
}

/* Everything as it was before the attempt; before another one the cgroup stays thawed, for that it
 * may get out of what held it up. */
static void undo(struct attempt *a, bool again, struct cr_err *err)
{
	struct seizure *s = a->s;
	struct cr_err other;
	pid_t stuck = 0;
	size_t gone;

	vec_foreach (p, &s->procs)
		vec_done(&p->tasks);
	s->procs.n = 0;
	if (thaw(a, &other) < 0)
		cr_err_ctx(err, "and the cgroup could not be thawed (%s)", other.msg);
	if (s->refreeze && !again) {
		/* from their stops straight into the freeze, as far as they get there */
		if (held_wait(&a->held, budget_ms(0) * 1000ull, &gone, &other) < 0)
			gone = 0;
		if (cgroup_freeze_start(s->cgroup, &other) < 0)
			cr_err_ctx(err, "and the cgroup could not be frozen again (%s)", other.msg);
	}
	if (held_release(&a->held, now_us() + LET_GO_US, &stuck))
		cr_err_ctx(err,
			   "task %d could not be let go: it stays traced until this process ends",
			   stuck);
}

static int take_once(struct seizure *s, const struct seize_request *rq, unsigned int n, bool last,
		     struct refusals *refused, struct cr_err *err)
{
	struct attempt a = {
	    .rq = rq, .s = s, .refused = refused, .walk.alone = rq->alone, .walk.view = rq->view};
	int r = try_take(&a, n, err);

	if (r == 0)
		r = seizure_check_found(s, rq, err);
	if (r < 0)
		undo(&a, r == -EAGAIN && !last, err);
	held_done(&a.held);
	walk_done(&a.walk);
	return r;
}

static int take_attempts(struct seizure *s, const struct seize_request *rq,
			 struct refusals *refused, struct cr_err *err)
{
	int r = 0;

	for (unsigned int n = 0; n < rq->attempts; n++) {
		if (n)
			nanosleep(&(struct timespec){.tv_nsec = pause_ms(n - 1) * 1000000l}, NULL);
		cr_err_clear(err);
		r = take_once(s, rq, n, n + 1 == rq->attempts, refused, err);
		if (r != -EAGAIN)
			return r;
	}
	/* it was given time to end, and did not */
	if (err->kind == CR_ERR_UNSUPPORTED)
		err->code = EBUSY;
	return cr_err_ctx(err, "not after %u attempts", rq->attempts);
}

int seizure_take(struct seizure **ret, const struct seize_request *rq, struct refusals *refused,
		 struct cr_err *err)
{
	_cleanup_(seizure_freep) struct seizure *s = NULL;
	struct seize_request request;
	int r = seizure_open(&s, &request, rq, err);

	if (r == 0 && s->cgroup)
		r = seizure_check_cgroup(s, err);
	if (r == 0 && s->cgroup)
		r = cgroup_guard_start(&s->guard, s->cgroup, err);
	if (r < 0)
		return r;
	unsigned long slack = sleep_precisely();
	r = take_attempts(s, &request, refused, err);
	sleep_as_before(slack);
	if (r < 0)
		return r;
	s->taken = true;
	*ret = take_ptr(s);
	return 0;
}

/* ---- let go ---- */

enum farewell { DETACH, REAP };

/* Threads before leaders: the exit of a leader is reported only after its threads have been reaped.
 */
static uint64_t part_from_all(struct seizure *s, enum farewell how)
{
	uint64_t longest_us = 0;

	if (!s->taken)
		return 0;
	for (int leaders = 0; leaders < 2; leaders++) {
		uint64_t deadline = now_us() + (how == REAP ? REAP_US : LET_GO_US);

		vec_foreach (p, &s->procs) {
			for (size_t i = leaders ? 0 : 1;
			     i < (leaders ? p->tasks.n > 0 : p->tasks.n); i++) {
				const struct seized_task *t = &p->tasks.v[i];

				if (how == DETACH)
					task_let_go(t->tid, deadline);
				else
					task_reap(t->tid, deadline);
				uint64_t us = now_us() - t->stopped_us;
				if (us > longest_us)
					longest_us = us;
			}
		}
	}
	return longest_us;
}

static void dispose(struct seizure *s)
{
	cgroup_guard_stop(s->guard);
	cgroup_close(s->cgroup);
	vec_foreach (p, &s->procs)
		vec_done(&p->tasks);
	vec_done(&s->procs);
	free(s);
}

uint64_t seizure_let_go(struct seizure *s)
{
	struct cr_err ignored;

	if (!s)
		return 0;
	unsigned long slack = sleep_precisely();
	/* what cannot be taken back stops by SIGSTOP: better than two copies running */
	if (s->held && seizure_unhold(s, &ignored) < 0)
		s->held = false;
	/* Freeze while they are still stopped: they then go from one to the other without running.
	 */
	if (s->refreeze && s->procs.n && cgroup_freeze_start(s->cgroup, &ignored) < 0)
		s->refreeze = false;
	uint64_t longest_us = part_from_all(s, DETACH);
	sleep_as_before(slack);
	dispose(s);
	return longest_us;
}

void seizure_free(struct seizure *s)
{
	(void)seizure_let_go(s);
}

void seizure_forget(struct seizure *s)
{
	struct cr_err ignored;

	if (!s)
		return;
	unsigned long slack = sleep_precisely();
	part_from_all(s, REAP);
	sleep_as_before(slack);
	/* as it was found, though empty now; v1 must not freeze what is still dying */
	if (s->refreeze && cgroup_freeze_start(s->cgroup, &ignored) < 0)
		s->refreeze = false;
	dispose(s);
}
