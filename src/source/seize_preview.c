#include "source/seize_private.h"

#include "base/clock.h"
#include "kernel/cgroup.h"
#include "kernel/procfs.h"
#include "source/seize_tasks.h"
#include "source/seize_walk.h"

enum {
	PREVIEW_WALKS = 10,
	PF_KTHREAD = 0x00200000,
	EXIT_US = 200000, /* for a process whose first thread has exited to end altogether */
};

/* Two walks that agree, or the last of a few: the tasks run. */
static int walk_settled(struct walk *w, const struct seizure *s, const struct seize_request *rq,
			struct cr_err *err)
{
	struct walk before = {.view = w->view};
	int r = 0;

	for (int i = 0; i < PREVIEW_WALKS; i++) {
		struct walk swap = before;

		before = *w;
		*w = swap;
		r = walk_tree(w, rq->root, s->cgroup, rq->whole_cgroup, false, err);
		if (r < 0 || (i && walk_same(w, &before)))
			break;
	}
	walk_done(&before);
	return r;
}

/* What would make seizure_take fail on this thread. 1: it is there and alive. */
static int look_at_thread(pid_t pid, pid_t tid, struct refusals *refused, struct cr_err *err)
{
	struct proc_status status;
	char who[128];
	int r = proc_status_read(pid, tid, &status, err);

	if (r < 0)
		return r == -ESRCH ? 0 : r;
	proc_status_done(&status);
	if (status.state == 'Z' || status.state == 'X')
		return 0;
	task_describe(pid, tid, who, sizeof(who));
	if (status.tracer)
		refuse(refused, pid, who, "is traced by process %d: end that first", status.tracer);
	return 1;
}

/* The first thread of a process that exits is often a zombie before the others are. */
static bool ends_soon(pid_t pid)
{
	uint64_t deadline = now_us() + EXIT_US;
	struct backoff backoff = {0};

	while (seizure_has_thread_alive(pid)) {
		if (now_us() > deadline)
			return false;
		backoff_sleep(&backoff);
	}
	return true;
}

static int look_at_process(struct seizure *s, const struct walk *w, const struct walk_proc *wp,
			   struct refusals *refused, struct cr_err *err)
{
	struct proc_stat st;
	struct seized_proc *p;
	char who[128];
	int r = proc_stat_read(wp->pid, 0, &st, err);

	if (r < 0)
		return r == -ESRCH ? 0 : r;
	bool zombie = st.state == 'Z' || st.state == 'X';
	r = seizure_add_process(s, wp->pid, zombie, &p, err);
	if (r < 0 || !p)
		return r;
	task_describe(wp->pid, wp->pid, who, sizeof(who));
	if (wp->pid == getpid())
		refuse(refused, wp->pid, who, "is this agent itself: it cannot move itself");
	if (st.flags & PF_KTHREAD)
		refuse(refused, wp->pid, who, "is a kernel thread");
	size_t alive = 0;
	for (size_t i = 0; i < wp->n_tids; i++) {
		pid_t tid = w->tids.v[wp->first_tid + i];

		r = look_at_thread(wp->pid, tid, refused, err);
		if (r > 0 && !zombie)
			r = seizure_add_task(p, tid, err);
		else
			alive += r > 0;
		if (r < 0)
			return r;
	}
	if (alive && !ends_soon(wp->pid))
		refuse(refused, wp->pid, who,
		       "its first thread has exited while others run: not supported");
	return 0;
}

int seizure_preview(struct seizure **ret, const struct seize_request *rq, struct refusals *refused,
		    struct cr_err *err)
{
	_cleanup_(seizure_freep) struct seizure *s = NULL;
	_cleanup_(walk_done) struct walk w = {0};
	struct seize_request request;
	struct cr_err refusal;
	int r = seizure_open(&s, &request, rq, err);
	w.view = rq->view;

	if (r < 0)
		return r;
	if (s->cgroup && seizure_check_cgroup(s, &refusal) < 0)
		refuse(refused, 0, rq->cgroup, "%s", refusal.msg);
	s->refreeze = false; /* nothing was thawed */
	r = walk_settled(&w, s, &request, err);
	/* each of them is in the list; the error only sums them up */
	if (r == 0 && seizure_refuse_others(&w, &request, s->cgroup, refused, &refusal) == 0)
		seizure_warn_outside(&w, s->cgroup, refused);
	for (size_t i = 0; r == 0 && i < w.procs.n; i++)
		r = look_at_process(s, &w, &w.procs.v[i], refused, err);
	if (r < 0)
		return r;
	seizure_sort(s);
	r = seizure_check_found(s, &request, err);
	if (r == 0)
		*ret = take_ptr(s);
	return r;
}
