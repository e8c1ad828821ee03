#include "source/source.h"

#include <string.h>
#include <sys/syscall.h>
#include "base/clock.h"
#include "remote/sigframe.h"
#include "resource/resource.h"

#define XFEATURES_AMX_DATA (1ull << 18)

/* What ptrace told of a stopped thread before it was infected. */
static int take_thread(struct tree *t, struct thread *th, const struct parasite_thread *pt,
		       struct cr_err *err)
{
	th->sigmask = pt->sigmask;
	th->rseq_va = pt->rseq_va;
	th->rseq_len = pt->rseq_len;
	th->rseq_sig = pt->rseq_sig;
	th->rseq_flags = pt->rseq_flags;
	th->gpregs = arena_memdup(t->arena, &pt->gp, sizeof(pt->gp));
	th->gpregs_len = sizeof(pt->gp);
	th->xstate = arena_memdup(t->arena, pt->xstate, pt->xstate_len);
	th->xstate_len = pt->xstate_len;
	if (!th->gpregs || !th->xstate)
		return cr_err_oom(err);
	if (xstate_features(pt->xstate) & XFEATURES_AMX_DATA)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
				  "task %d holds AMX tile data: not supported yet", th->tid);
	return 0;
}

static int infect_proc(struct source *s, const struct seized_proc *q, struct cr_err *err)
{
	struct source_proc *sp = source_find(s, q->pid);
	_cleanup_free_ pid_t *tids = calloc(q->tasks.n + 1, sizeof(*tids));
	size_t n = 0;

	if (!sp)
		return cr_err_set(err, CR_ERR_BUG, ESRCH, "process %d is not known", q->pid);
	if (!tids)
		return cr_err_oom(err);
	vec_foreach (task, &q->tasks) /* of the others the kernel has told */
		if (!task->dead && (!n || !sp->told))
			tids[n++] = task->tid;
	int r = parasite_infect(&sp->parasite, q->pid, sp->pidfd, tids, n, &sp->entry, err);
	sp->infected = !r;
	return r;
}

/* ---- asking inside ---- */

struct ask {
	struct process *p;
	struct thread *th;
	struct parasite *pa;
	struct parasite_thread *pt; /* NULL: it stays as it stopped, the kernel told of it */
	struct attrs_query q;
	struct rcall *brk; /* of the leader */
};

static enum attrs_ask what_of(const struct ask *a)
{
	return a->brk ? ATTRS_ASK_PROCESS : ATTRS_ASK_THREAD;
}

/* A thread finds its questions when it enters the executor: no further wake-up. The leader's may
 * not fit into one batch, so it runs before they are queued. */
static int ask(struct ask *a, struct cr_err *err)
{
	struct rtask *rt = &a->pt->rt;
	bool leader = a->th == &a->p->threads[0];
	int r = leader ? parasite_start(a->pa, a->pt, err) : 0;

	if (!r)
		r = attrs_query_queue(rt, &a->q, a->p, a->th,
				      leader ? ATTRS_ASK_PROCESS : ATTRS_ASK_THREAD, err);
	if (!r && leader) /* brk(0) tells the exact end of the heap, brk(2) */
		a->brk = rqueue(rt, NULL, SYS_brk, 0);
	rtask_start(rt);
	return r || leader ? r : parasite_start(a->pa, a->pt, err);
}

static int hear(struct source *s, struct tree *t, struct ask *a, struct cr_err *err)
{
	int r = rtask_wait(&a->pt->rt, err);

	if (r)
		return r;
	if (a->brk && a->brk->ret > 0)
		source_find(s, a->p->pid)->brk = a->p->mm.brk = (uint64_t)a->brk->ret;
	return attrs_query_collect(&a->pt->rt, &a->q, t, a->p, a->th, what_of(a), err);
}

/* The kernel has told what a thread would have to be asked: its registers are all that is missing.
 */
static int read_stopped(struct tree *t, struct thread *th, struct cr_err *err)
{
	struct parasite_thread pt = {.tid = th->tid,
				     .rseq_va = th->rseq_va,
				     .rseq_len = th->rseq_len,
				     .rseq_sig = th->rseq_sig,
				     .rseq_flags = th->rseq_flags};
	int r = parasite_save(&pt, true, err);

	if (!r)
		r = take_thread(t, th, &pt, err);
	free(pt.xstate);
	return r;
}

static int ask_all(struct source *s, struct tree *t, struct ask *asks, size_t n, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		if (asks[i].pt)
			r = ask(&asks[i], err);
	for (size_t i = 0; i < n && !r; i++) /* while those run */
		if (!asks[i].pt)
			r = read_stopped(t, asks[i].th, err);
	for (size_t i = 0; i < n && !r; i++)
		if (asks[i].pt)
			r = hear(s, t, &asks[i], err);
	for (size_t i = 0; i < n && !r; i++)
		if (asks[i].q.signals_stale)
			r = attrs_pending_again(t, asks[i].p, !source_find(s, asks[i].p->pid)->told,
						&s->notes, err);
	return r;
}

static int list_threads(struct source *s, struct tree *t, struct process *p, struct ask *asks,
			size_t *n, struct cr_err *err)
{
	struct source_proc *sp = source_find(s, p->pid);
	int r = 0;

	for (size_t k = 0; k < p->n_threads && !r; k++) {
		struct thread *th = &p->threads[k];
		struct parasite_thread *pt =
		    k && sp->told ? NULL : parasite_find(&sp->parasite, th->tid);

		if (!pt && !(k && sp->told))
			return cr_err_set(err, CR_ERR_BUG, ESRCH, "thread %d is not infected",
					  th->tid);
		asks[(*n)++] = (struct ask){.p = p, .th = th, .pa = &sp->parasite, .pt = pt};
		if (pt)
			r = take_thread(t, th, pt, err);
	}
	return r;
}

static int ask_inside(struct source *s, struct tree *t, struct cr_err *err)
{
	_cleanup_free_ struct ask *asks = calloc(tree_count_threads(t) + 1, sizeof(*asks));
	size_t n = 0;
	int r = asks ? 0 : cr_err_oom(err);

	for (size_t i = 0; i < t->n_procs && !r; i++)
		r = list_threads(s, t, &t->procs[i], asks, &n, err);
	return r ? r : ask_all(s, t, asks, n, err);
}

static void release(struct source *s)
{
	s->stood_us = seizure_let_go(s->seizure);
	s->seizure = NULL;
}

int source_stop(struct source *s, const struct seize_request *rq, struct tree **ret,
		struct stop_times *times, struct cr_err *err)
{
	struct tree *t = NULL;

	int r = seizure_take(&s->seizure, rq, &s->notes, err);
	if (r)
		return cr_err_ctx(err, "stopping the tasks");
	times->start_us = s->seizure->stopped_us;
	times->frozen_us = now_us();
	r = source_capture(s, s->seizure, true, &t, err);
	if (!r) /* what is put into the tasks changes their mappings */
		r = source_look_at_objects(s, t, SOURCE_LOOK_STOP, err);
	vec_foreach (q, &s->seizure->procs)
		if (!r && !q->zombie)
			r = infect_proc(s, q, err);
	if (!r)
		r = ask_inside(s, t, err);
	for (size_t i = 0; i < t->n_procs && !r; i++)
		source_find(s, t->procs[i].pid)->stopped = t->procs[i].stop_sig != 0;
	times->captured_us = now_us();
	if (r) {
		struct cr_err undo = {0};

		tree_free(t);
		if (source_resume(s, &undo) && !s->seizure)
			cr_err_ctx(err, "%s; then", undo.msg);
		return r;
	}
	*ret = t;
	return 0;
}

int source_cure(struct source *s, struct cr_err *err)
{
	int r = 0;

	vec_foreach (spp, &s->procs) {
		struct source_proc *sp = *spp;
		struct cr_err e = {0};

		if (!sp->infected)
			continue;
		sp->infected = false;
		/* The source always leaves by registers: the kernel then restarts what it
		 * interrupted. And never over a breakpoint: were this process killed while it is
		 * set, the trap would end the task. */
		if (parasite_cure(&sp->parasite, PARK_SYSCALL_TRACE, LEAVE_REGSETS, &e) && !r) {
			*err = e;
			r = -e.code;
		}
	}
	return r;
}

int source_resume(struct source *s, struct cr_err *err)
{
	if (!s->seizure)
		return 0;
	int r = source_cure(s, err);
	if (!r && s->committed && s->image && s->image->leave_stopped)
		r = seizure_leave_stopped(s->seizure, err);
	release(s);
	return r;
}
