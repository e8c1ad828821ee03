#include "source/source.h"

#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include "base/clock.h"
#include "kernel/task.h"
#include "kernel/uffd.h"
#include "resource/resource.h"

#define XFEATURES_AMX_DATA (1ull << 18)
enum { XFEATURES_OFFSET = 512 };

/* What ptrace tells of a stopped thread, before the executor runs in it. */
static int read_thread(struct tree *t, struct thread *th, bool registers, struct cr_err *err)
{
	uint8_t buf[TASK_XSTATE_MAX];
	size_t len = sizeof(buf);
	int r = task_get_rseq(th->tid, &th->rseq_va, &th->rseq_len, &th->rseq_sig, &th->rseq_flags,
			      err);

	if (r || !registers)
		return r;
	r = task_get_xstate(th->tid, buf, &len, err);
	if (r)
		return r;
	th->xstate = arena_memdup(t->arena, buf, len);
	th->xstate_len = len;
	if (!th->xstate)
		return cr_err_oom(err);
	uint64_t used;
	memcpy(&used, buf + XFEATURES_OFFSET, sizeof(used));
	if (used & XFEATURES_AMX_DATA)
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
	vec_foreach (task, &q->tasks)
		if (!task->dead)
			tids[n++] = task->tid;
	int r = parasite_infect(&sp->parasite, q->pid, sp->pidfd, tids, n, sp->syscall_insn,
				sp->vdso_start, err);
	sp->infected = !r;
	return r;
}

/* ---- asking inside ---- */

struct ask {
	struct process *p;
	struct thread *th;
	struct rtask *rt;
	struct attrs_query q;
	struct rcall *brk;
	bool first;
};

static int ask_all(struct source *s, struct tree *t, struct ask *asks, size_t n, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++) {
		struct ask *a = &asks[i];

		rtask_scratch_reset(a->rt);
		r = attrs_query_queue(a->rt, &a->q, a->p, a->th, a->first, err);
		rtask_start(a->rt);
	}
	for (size_t i = 0; i < n && !r; i++) {
		struct ask *a = &asks[i];

		r = rtask_wait(a->rt, err);
		if (!r)
			r = attrs_query_collect(a->rt, &a->q, t, a->p, a->th, a->first, err);
		if (r || !a->first)
			continue;
		/* brk(0) tells the exact end of the heap, brk(2) */
		long brk = rcall_now(a->rt, SYS_brk, 0);
		struct source_proc *sp = source_find(s, a->p->pid);
		if (sp && brk > 0)
			sp->brk = a->p->mm.brk = (uint64_t)brk;
	}
	return r;
}

static int ask_inside(struct source *s, struct tree *t, struct cr_err *err)
{
	size_t n = 0, total = 0;

	for (size_t i = 0; i < t->n_procs; i++)
		total += t->procs[i].n_threads;
	_cleanup_free_ struct ask *asks = calloc(total + 1, sizeof(*asks));
	if (!asks)
		return cr_err_oom(err);
	for (size_t i = 0; i < t->n_procs; i++) {
		struct process *p = &t->procs[i];
		struct source_proc *sp = source_find(s, p->pid);

		for (size_t k = 0; k < p->n_threads; k++) {
			struct parasite_thread *pt =
			    parasite_find(&sp->parasite, p->threads[k].tid);

			if (!pt)
				return cr_err_set(err, CR_ERR_BUG, ESRCH,
						  "thread %d is not infected", p->threads[k].tid);
			asks[n++] = (struct ask){
			    .p = p, .th = &p->threads[k], .rt = &pt->rt, .first = k == 0};
			p->threads[k].sigmask = pt->sigmask;
			p->threads[k].gpregs = arena_memdup(t->arena, &pt->gp, sizeof(pt->gp));
			p->threads[k].gpregs_len = sizeof(pt->gp);
			if (!p->threads[k].gpregs)
				return cr_err_oom(err);
		}
	}
	int r = ask_all(s, t, asks, n, err);
	for (size_t i = 0; i < t->n_procs; i++)
		if (!t->procs[i].zombie)
			source_find(s, t->procs[i].pid)->sigtrap_fragile =
			    r || attrs_sigtrap_fragile(&t->procs[i]);
	return r;
}

static int release(struct source *s)
{
	seizure_free(s->seizure);
	s->seizure = NULL;
	return 0;
}

int source_stop(struct source *s, const struct seize_request *rq, struct tree **ret, bool registers,
		struct stop_times *times, struct cr_err *err)
{
	struct tree *t = NULL;

	times->start_us = now_us();
	int r = seizure_take(&s->seizure, rq, &s->notes, err);
	if (r)
		return cr_err_ctx(err, "stopping the tasks");
	times->frozen_us = now_us();
	r = source_capture(s, s->seizure, true, &t, err);
	for (size_t i = 0; i < (t ? t->n_procs : 0) && !r; i++)
		for (size_t k = 0; k < t->procs[i].n_threads && !r; k++)
			r = read_thread(t, &t->procs[i].threads[k], registers, err);
	vec_foreach (q, &s->seizure->procs)
		if (!r && !q->zombie)
			r = infect_proc(s, q, err);
	if (!r)
		r = ask_inside(s, t, err);
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

int source_arm(struct source *s, struct cr_err *err)
{
	bool forked = false;

	vec_foreach (spp, &s->procs) {
		struct source_proc *sp = *spp;

		if (!sp->infected || sp->has_tracker)
			continue;
		struct rtask *rt = &sp->parasite.threads[0].rt;
		long fd = rcall_now(rt, SYS_userfaultfd, uffd_create_flags());
		int uffd = -1;
		if (fd >= 0) {
			uffd = (int)syscall(SYS_pidfd_getfd, sp->pidfd, (int)fd, 0);
			if (uffd < 0)
				return cr_err_sys(err, "fetching the userfaultfd of %d", sp->pid);
			rqueue(rt, "close", SYS_close, fd);
			int r = rtask_run(rt, err);
			if (!r)
				r = uffd_enable_wp_async(uffd, err);
			if (r) {
				close(uffd);
				return r;
			}
		} else if (fd != -EMFILE && fd != -ENOSYS && fd != -EPERM) {
			return cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "userfaultfd inside %d: %s",
					  sp->pid, strerror((int)-fd));
		}
		sp->armed = uffd >= 0;
		sp->has_tracker = true;
		int r = tracker_init(&sp->tracker, sp->pid, 0, uffd, &s->digest_budget, err);
		if (r)
			return r;
		forked |= s->tree != NULL;
	}
	vec_foreach (spp, &s->procs) /* a fork shares its pages with its parent */
		(*spp)->tracker.shares_cow |= forked;
	return 0;
}

int source_resume(struct source *s, struct cr_err *err)
{
	int r = 0;

	if (!s->seizure)
		return 0;
	vec_foreach (spp, &s->procs) {
		struct source_proc *sp = *spp;
		struct cr_err e = {0};
		enum park_how how = s->rq->opts.no_hw_breakpoints || sp->sigtrap_fragile
					? PARK_SYSCALL_TRACE
					: PARK_BREAKPOINT;

		if (!sp->infected)
			continue;
		sp->infected = false;
		/* the source always leaves by registers: the kernel then restarts what it
		 * interrupted */
		if (parasite_cure(&sp->parasite, how, LEAVE_REGSETS, &e) && !r) {
			*err = e;
			r = -e.code;
		}
	}
	release(s);
	return r;
}

int source_arm_newcomer(struct source *s, pid_t pid, struct cr_err *err)
{
	const struct seize_request rq = {.root = pid};
	struct stop_times times;
	struct cr_err undo = {0};
	struct tree *t = NULL;
	int r = source_stop(s, &rq, &t, false, &times, err);

	if (!r)
		r = source_arm(s, err);
	int e = source_resume(s, &undo);
	uint64_t us = now_us() - times.start_us;
	s->stops++;
	if (us > s->longest_stop_us)
		s->longest_stop_us = us;
	if (!r && e) {
		*err = undo;
		r = e;
	}
	struct tree **slot = r ? NULL : vec_push(&s->newcomers);
	if (!slot) {
		tree_free(t);
		return r ? r : cr_err_oom(err);
	}
	*slot = t;
	return 0;
}
