/* The stop before the rounds: a userfaultfd in every address space, and what only the tasks
 * themselves can tell.
 *
 * As short as can be: what shows from outside was read beside the running tasks, and whatever
 * changes from then on shows in a later round, or at the switch-over, which believes nothing of
 * this. Processes stop one at a time, if no cgroup has to be frozen for it; but all threads of
 * each: a fork meanwhile would inherit the userfaultfd. Of a process with many threads only the
 * first is asked, as every question needs its wake-up; the others' answers are guessed. */
#include "source/source.h"

#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include "base/fault.h"
#include "base/parallel.h"
#include "kernel/procfs.h"
#include "kernel/task.h"
#include "kernel/uffd.h"
#include "resource/resource.h"

enum { ASK_ALL_THREADS = 8 }; /* up to so many are cheaper asked than found out later */

struct arming { /* of one process */
	struct process *p;
	struct source_proc *sp;
	size_t n; /* threads that are asked */
	struct attrs_query q[ASK_ALL_THREADS];
	struct rcall *brk, *uffd;
};

/* Told by ptrace, of stopped threads only: where the kernel writes whenever a thread runs. */
static int read_rseq(struct process *p, const struct seized_proc *q, struct cr_err *err)
{
	int r = 0;

	vec_foreach (task, &q->tasks) {
		struct thread *th = process_find_thread(p, task->tid);

		if (th && !task->dead && !r)
			r = task_get_rseq(task->tid, &th->rseq_va, &th->rseq_len, &th->rseq_sig,
					  &th->rseq_flags, err);
	}
	return r;
}

/* Likewise, of those that had a filter when they were looked at: what cannot move is refused before
 * the rounds. What has come since shows at the switch-over. */
static int read_seccomp(struct source *s, struct tree *t, struct process *p,
			const struct seized_proc *q, struct cr_err *err)
{
	int r = 0;

	vec_foreach (task, &q->tasks) {
		struct thread *th = process_find_thread(p, task->tid);

		if (th && !task->dead && !r && th->seccomp_mode)
			r = attrs_seccomp_capture(t, p, th, NULL, NULL, &s->notes, err);
	}
	return r;
}

static int infect(struct arming *a, const struct seized_proc *q, struct cr_err *err)
{
	pid_t tids[ASK_ALL_THREADS];
	bool all = q->tasks.n <= ASK_ALL_THREADS && !a->sp->told;

	vec_foreach (task, &q->tasks) {
		/* one that is not in the tree yet is asked once it is, or at the switch-over */
		bool known = process_find_thread(a->p, task->tid) && !task->dead;

		if (known && (task->tid == q->pid || all))
			tids[a->n++] = task->tid;
	}
	if (!a->n || tids[0] != q->pid)
		return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "process %d died", q->pid);
	int r =
	    parasite_infect(&a->sp->parasite, q->pid, a->sp->pidfd, tids, a->n, &a->sp->entry, err);
	a->sp->infected = !r;
	return r;
}

static int ask(struct arming *a, struct cr_err *err)
{
	int r = attrs_query_expect(a->p, err);

	for (size_t i = 0; i < a->n && !r; i++) {
		struct parasite_thread *pt = &a->sp->parasite.threads[i];

		r = parasite_start(&a->sp->parasite, pt, err);
		if (r)
			break;
		r = attrs_query_queue(&pt->rt, &a->q[i], a->p, process_find_thread(a->p, pt->tid),
				      i ? ATTRS_ASK_THREAD : ATTRS_ASK_AHEAD, err);
		if (!i) {
			a->brk = rqueue(&pt->rt, NULL, SYS_brk, 0);
			a->uffd = rqueue(&pt->rt, NULL, SYS_userfaultfd, uffd_create_flags());
		}
		rtask_start(&pt->rt);
	}
	return r;
}

/* Still what the look at it beside its run saw? After an execve(2) the stack is another. */
static int check_program(const struct process *p, struct cr_err *err)
{
	struct proc_stat st;
	int r = proc_stat_read(p->pid, p->pid, &st, err);

	if (r)
		return r;
	if (st.start_stack == p->mm.start_stack && st.start_code == p->mm.start_code)
		return 0;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ESTALE,
			  "process %d executed another program just then; try again", p->pid);
}

static int begin(struct source *s, struct tree *t, const struct seized_proc *q, struct arming *a,
		 struct cr_err *err)
{
	a->p = tree_find_process(t, q->pid);
	a->sp = source_find(s, q->pid);
	/* another process by now, or one that has come since: the rounds see to it */
	if (!a->p || a->p->zombie || q->zombie || !a->sp || a->sp->starttime != q->starttime ||
	    a->sp->has_tracker) {
		a->p = NULL;
		return 0;
	}
	int r = check_program(a->p, err);

	if (!r && !a->sp->told)
		r = read_rseq(a->p, q, err);

	if (!r)
		r = read_seccomp(s, t, a->p, q, err);
	if (!r)
		r = infect(a, q, err);
	return r ? r : ask(a, err);
}

/* Fetched, and closed in the task. -1: none to be had, all its pages go in every round. */
static int fetch_uffd(struct arming *a, long fd, int *ret, struct cr_err *err)
{
	struct rtask *rt = &a->sp->parasite.threads[0].rt;

	*ret = -1;
	if (fd == -EMFILE || fd == -ENOSYS || fd == -EPERM)
		return 0;
	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "userfaultfd inside %d: %s",
				  a->sp->pid, strerror((int)-fd));
	_cleanup_fd_ int uffd = (int)syscall(SYS_pidfd_getfd, a->sp->pidfd, (int)fd, 0);
	if (uffd < 0)
		return cr_err_sys(err, "fetching the userfaultfd of %d", a->sp->pid);
	rqueue(rt, "close", SYS_close, fd);
	int r = rtask_run(rt, err);
	if (!r)
		r = uffd_enable_wp_async(uffd, err);
	if (!r)
		*ret = take_fd(&uffd);
	return r;
}

static int finish(struct source *s, struct tree *t, struct arming *a, struct cr_err *err)
{
	struct parasite *pa = &a->sp->parasite;
	int r = 0, uffd;

	for (size_t i = 0; i < a->n && !r; i++)
		r = rtask_wait(&pa->threads[i].rt, err);
	if (r)
		return r;
	long brk = a->brk->ret, fd = a->uffd->ret;
	for (size_t i = 0; i < a->n && !r; i++)
		r = attrs_query_collect(&pa->threads[i].rt, &a->q[i], t, a->p,
					process_find_thread(a->p, pa->threads[i].tid),
					i ? ATTRS_ASK_THREAD : ATTRS_ASK_AHEAD, err);
	if (!r && brk > 0) /* brk(0) tells the exact end of the heap, brk(2) */
		a->sp->brk = a->p->mm.brk = (uint64_t)brk;
	if (!r)
		r = fetch_uffd(a, fd, &uffd, err);
	if (r)
		return r;
	a->sp->armed = uffd >= 0;
	a->sp->has_tracker = true;
	r = tracker_init(&a->sp->tracker, a->sp->pid, 0, uffd, &s->digest_budget, err);
	a->sp->tracker.shared = source_tracks_objects(s);
	return r;
}

struct registering {
	struct arming *v;
	size_t n;
	int result;
	struct cr_err err;
};

static void *register_memory(void *arg)
{
	struct registering *g = arg;

	for (size_t i = 0; i < g->n && !g->result; i++)
		if (g->v[i].p)
			g->result = tracker_arm(&g->v[i].sp->tracker, &g->err);
	return NULL;
}

/* Their memory is registered while the executors leave: nobody runs who could map anything, and the
 * two wait for different things. */
static int register_and_cure(struct source *s, struct arming *v, size_t n, struct cr_err *err)
{
	struct registering g = {.v = v, .n = n};
	pthread_t thread;
	bool beside = !parallel_thread(&thread, register_memory, &g);
	int r = source_cure(s, err);

	if (beside)
		pthread_join(thread, NULL);
	else
		register_memory(&g);
	if (!r && g.result) {
		*err = g.err;
		r = g.result;
	}
	return r;
}

/* All that is in s->seizure, side by side. */
static int arm_stopped(struct source *s, struct tree *t, struct cr_err *err)
{
	size_t n = s->seizure->procs.n;
	_cleanup_free_ struct arming *v = calloc(n + 1, sizeof(*v));
	int r = v ? 0 : cr_err_oom(err);

	for (size_t i = 0; i < n && !r; i++)
		r = begin(s, t, &s->seizure->procs.v[i], &v[i], err);
	fault_point("source-arm");
	for (size_t i = 0; i < n && !r; i++)
		if (v[i].p)
			r = finish(s, t, &v[i], err);
	return r ? r : register_and_cure(s, v, n, err);
}

static int stop_and_arm(struct source *s, const struct seize_request *rq, struct tree *t,
			struct cr_err *err)
{
	struct cr_err undo = {0};

	source_real_time(true); /* the tasks wait for us */
	int r = seizure_take(&s->seizure, rq, &s->notes, err);
	if (r) {
		source_real_time(false);
		return cr_err_ctx(err, "stopping the tasks");
	}
	r = arm_stopped(s, t, err);
	int e = source_resume(s, &undo);
	source_real_time(false);
	if (s->stood_us > s->longest_stop_us)
		s->longest_stop_us = s->stood_us;
	if (!r && e) {
		*err = undo;
		r = e;
	}
	return r ? cr_err_ctx(err, "starting to track writes") : 0;
}

/* What was not asked. */
static void guess(struct source *s, struct process *p)
{
	const struct source_proc *sp = source_find(s, p->pid);

	if (sp && sp->told)
		return;
	for (size_t i = 1; i < p->n_threads && p->n_threads > ASK_ALL_THREADS; i++)
		attrs_guess_inside(p, &p->threads[i]);
}

static bool is_tracked(struct source *s, const struct process *p)
{
	const struct source_proc *sp = source_find(s, p->pid);

	return p->zombie || (sp && sp->has_tracker);
}

static bool all_tracked(struct source *s, const struct tree *t)
{
	for (size_t i = 0; i < t->n_procs; i++)
		if (!is_tracked(s, &t->procs[i]))
			return false;
	return true;
}

int source_arm(struct source *s, struct tree *t, struct cr_err *err)
{
	struct seize_request rq;
	int r = 0;

	source_request(s, &rq);
	if (all_tracked(s, t)) /* since the pre-dump before */
		return 0;
	s->stops++;
	if (rq.cgroup)
		r = stop_and_arm(s, &rq, t, err);
	for (size_t i = 0; i < t->n_procs && !r && !rq.cgroup; i++) {
		const struct seize_request one = {.root = t->procs[i].pid, .alone = true};

		if (is_tracked(s, &t->procs[i]))
			continue;
		r = stop_and_arm(s, &one, t, err);
		if (r == -ESRCH && t->procs[i].pid != t->root_pid)
			r = 0; /* it ended: the next look at the tree will tell */
	}
	for (size_t i = 0; i < t->n_procs && !r; i++)
		if (!t->procs[i].zombie)
			guess(s, &t->procs[i]);
	vec_foreach (spp, &s->procs) /* a fork shares its pages with its parent */
		(*spp)->tracker.shares_cow |= s->tree || t->n_procs > 1;
	return r;
}

/* Looked at alone, what it shares with the others of the tree seems to lead outside: whatever is
 * refused here says nothing. The next capture looks at all of them. */
static int arm_alone(struct source *s, pid_t pid, struct tree **ret, struct cr_err *err)
{
	const struct seize_request rq = {.root = pid};
	struct refusals notes = s->notes;
	struct seizure *who = NULL;

	s->notes = (struct refusals){0};
	int r = seizure_preview(&who, &rq, &s->notes, err);
	if (!r)
		r = source_capture(s, who, false, ret, err);
	seizure_forget(who);
	if (!r)
		r = source_arm(s, *ret, err);
	refusals_done(&s->notes);
	s->notes = notes;
	return r;
}

int source_arm_newcomer(struct source *s, pid_t pid, struct cr_err *err)
{
	struct tree *t = NULL;
	int r = arm_alone(s, pid, &t, err);
	struct tree **slot = r ? NULL : vec_push(&s->newcomers);
	if (!slot) {
		tree_free(t);
		return r ? r : cr_err_oom(err);
	}
	*slot = t;
	return 0;
}
