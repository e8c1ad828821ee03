#include "source/seize_private.h"

#include <stdio.h>
#include <string.h>
#include "kernel/cgroup.h"
#include "kernel/procfs.h"
#include "source/seize_tasks.h"
#include "source/seize_walk.h"

enum { DEFAULT_ATTEMPTS = 8 };

/* ---- the request ---- */

int seizure_open(struct seizure **ret, struct seize_request *rq,
		 const struct seize_request *as_asked, struct cr_err *err)
{
	_cleanup_(seizure_freep) struct seizure *s = calloc(1, sizeof(*s));

	*rq = *as_asked;
	rq->whole_cgroup |= !rq->root;
	if (!rq->attempts)
		rq->attempts = DEFAULT_ATTEMPTS;
	if (!s)
		return cr_err_oom(err);
	if (rq->root <= 0 && !(rq->cgroup && rq->root == 0))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "no process and no cgroup to seize");
	if (rq->cgroup) {
		int r = cgroup_open(&s->cgroup, CGROUP_ANY, rq->cgroup, err);

		if (r < 0)
			return r;
	}
	*ret = take_ptr(s);
	return 0;
}

int seizure_check_cgroup(struct seizure *s, struct cr_err *err)
{
	struct cgroup_state st;
	char name[256];
	bool below;
	int r = cgroup_get_state(s->cgroup, &st, err);

	if (r < 0)
		return r;
	if (st.ancestor_frozen)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
				  "a cgroup above %s is frozen: thaw that first",
				  cgroup_path(s->cgroup));
	r = cgroup_frozen_below(s->cgroup, &below, name, sizeof(name), err);
	if (r < 0)
		return r;
	if (below)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
				  "cgroup %s below %s is frozen by itself: thaw it first", name,
				  cgroup_path(s->cgroup));
	s->refreeze = st.self_frozen;
	return 0;
}

/* ---- in the tree, in the cgroup ---- */

int seizure_refuse_others(const struct walk *w, const struct seize_request *rq, struct cgroup *cg,
			  struct refusals *refused, struct cr_err *err)
{
	unsigned int n = 0;
	pid_t first = 0;
	char who[128];

	if (rq->whole_cgroup || !rq->root)
		return 0;
	for (size_t i = 0; i < w->n_in_cgroup; i++) {
		pid_t pid = w->in_cgroup[i];
		struct proc_stat st;

		if (walk_has(w, pid) || proc_stat_read(pid, 0, &st, err) < 0 || st.state == 'Z' ||
		    st.state == 'X')
			continue;
		first = n++ ? first : pid;
		if (!refused)
			continue;
		task_describe(pid, pid, who, sizeof(who));
		refuse(refused, pid, who,
		       "is in cgroup %s but not below process %d: move it elsewhere, or move the "
		       "whole cgroup",
		       cgroup_path(cg), rq->root);
	}
	if (!n)
		return 0;
	task_describe(first, first, who, sizeof(who));
	err->pid = first;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
			  "%s is in cgroup %s but not below process %d (%u such)", who,
			  cgroup_path(cg), rq->root, n);
}

bool seizure_warn_outside(const struct walk *w, struct cgroup *cg, struct refusals *refused)
{
	bool outside = false;

	if (!cg)
		return false;
	for (size_t i = 0; i < w->procs.n; i++) {
		const struct walk_proc *p = &w->procs.v[i];
		struct proc_stat st;
		struct cr_err ignored;
		char who[128];

		if (walk_in_cgroup(w, p->pid) || proc_stat_read(p->pid, 0, &st, &ignored) < 0 ||
		    st.state == 'Z' || st.state == 'X')
			continue;
		outside = true;
		task_describe(p->pid, p->pid, who, sizeof(who));
		refuse_warn(refused, p->pid, who, "is not in cgroup %s: taken all the same",
			    cgroup_path(cg));
	}
	return outside;
}

/* ---- the list of processes ---- */

static int process_compare(const void *a, const void *b)
{
	const struct seized_proc *x = a, *y = b;

	return x->depth != y->depth ? (x->depth > y->depth) - (x->depth < y->depth)
				    : (x->pid > y->pid) - (x->pid < y->pid);
}

static struct seized_proc *find_proc(struct seizure *s, pid_t pid)
{
	vec_foreach (p, &s->procs) {
		if (p->pid == pid)
			return p;
	}
	return NULL;
}

void seizure_sort(struct seizure *s)
{
	vec_foreach (p, &s->procs) {
		/* bounded: a parent that changes while we look could close a circle */
		for (struct seized_proc *up = find_proc(s, p->ppid); up && p->depth < s->procs.n;
		     up = find_proc(s, up->ppid))
			p->depth++;
	}
	if (s->procs.n)
		qsort(s->procs.v, s->procs.n, sizeof(s->procs.v[0]), process_compare);
}

int seizure_add_task(struct seized_proc *p, pid_t tid, struct cr_err *err)
{
	struct seized_task *t = vec_push(&p->tasks);

	if (!t)
		return cr_err_oom(err);
	t->tid = tid;
	return 0;
}

/* 0 also when it has gone: then it is not in the list. */
int seizure_add_process(struct seizure *s, pid_t pid, bool zombie, struct seized_proc **ret,
			struct cr_err *err)
{
	struct proc_stat st;
	int r = proc_stat_read(pid, 0, &st, err);

	*ret = NULL;
	if (r < 0)
		return r == -ESRCH ? 0 : r;
	struct seized_proc *p = vec_push(&s->procs);
	if (!p)
		return cr_err_oom(err);
	p->pid = pid;
	p->ppid = st.ppid;
	p->starttime = st.starttime;
	p->zombie = zombie;
	*ret = p;
	return 0;
}

int seizure_check_found(const struct seizure *s, const struct seize_request *rq, struct cr_err *err)
{
	const struct seized_proc *root = NULL;

	for (size_t i = 0; rq->root && i < s->procs.n; i++) {
		if (s->procs.v[i].pid == rq->root)
			root = &s->procs.v[i];
	}
	if (rq->root && !root)
		return cr_err_set(err, CR_ERR_INPUT, ESRCH, "there is no process %d", rq->root);
	if (rq->root && root->zombie)
		return cr_err_set(err, CR_ERR_INPUT, ESRCH, "process %d has exited", rq->root);
	if (!s->procs.n)
		return cr_err_set(err, CR_ERR_INPUT, ESRCH, "cgroup %s has no tasks",
				  cgroup_path(s->cgroup));
	return 0;
}
