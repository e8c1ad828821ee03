#include "source/seize_walk.h"

#include "kernel/procfs.h"
#include "kernel/taskview.h"

enum { FEW_THREADS = 4 }; /* listing the children of a thread takes some 3 us */

static int add_proc(struct walk *w, pid_t pid, struct cr_err *err)
{
	if (walk_has(w, pid))
		return 0;
	struct walk_proc *p = vec_push(&w->procs);
	if (!p)
		return cr_err_oom(err);
	p->pid = pid;
	return 0;
}

bool walk_has(const struct walk *w, pid_t pid)
{
	for (size_t i = 0; i < w->procs.n; i++) {
		if (w->procs.v[i].pid == pid)
			return true;
	}
	return false;
}

static int pid_compare(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

bool walk_in_cgroup(const struct walk *w, pid_t pid)
{
	return w->n_in_cgroup &&
	       bsearch(&pid, w->in_cgroup, w->n_in_cgroup, sizeof(pid), pid_compare);
}

/* Moves those to the front whose children have to be looked for; returns how many. Few have any,
 * and the kernel tells of all in one look. What it tells is no older than the list of threads. */
static size_t keep_parents(const struct walk *w, pid_t pid, pid_t *tids, size_t n, bool quick)
{
	struct task_facts_list l = {0};
	struct cr_err ignored = {0};
	size_t k = 0;

	if (n <= FEW_THREADS)
		return n;
	if (!w->view || taskview_read(w->view, pid, &l, &ignored))
		return quick ? 1 : n;
	for (size_t i = 0; i < n; i++) {
		const struct task_facts *f = task_facts_find(&l, tids[i]);

		if (!f || f->has_children)
			tids[k++] = tids[i];
	}
	task_facts_done(&l);
	return k;
}

/* The threads of procs.v[i], and its children at the end of procs. */
static int visit(struct walk *w, size_t i, bool quick, struct cr_err *err)
{
	_cleanup_free_ pid_t *tids = NULL, *children = NULL;
	pid_t pid = w->procs.v[i].pid;
	ssize_t n = proc_threads(pid, &tids, err);

	if (n < 0)
		return n == -ESRCH ? 0 : (int)n;
	w->procs.v[i].first_tid = w->tids.n;
	w->procs.v[i].n_tids = (size_t)n;
	for (ssize_t k = 0; k < n; k++) {
		pid_t *slot = vec_push(&w->tids);

		if (!slot)
			return cr_err_oom(err);
		*slot = tids[k];
	}
	if (w->alone)
		return 0;
	ssize_t n_children = proc_children_of(
	    pid, tids, keep_parents(w, pid, tids, (size_t)n, quick), &children, err);
	if (n_children < 0)
		return n_children == -ESRCH ? 0 : (int)n_children;
	for (ssize_t k = 0; k < n_children; k++) {
		int r = add_proc(w, children[k], err);

		if (r < 0)
			return r;
	}
	return 0;
}

static void drop_vanished(struct walk *w)
{
	size_t n = 0;

	vec_foreach (p, &w->procs) {
		if (p->n_tids)
			w->procs.v[n++] = *p;
	}
	w->procs.n = n;
}

static int list_cgroup(struct walk *w, struct cgroup *cg, struct cr_err *err)
{
	ssize_t n = cgroup_procs(cg, &w->in_cgroup, err);

	if (n < 0)
		return (int)n;
	w->n_in_cgroup = (size_t)n;
	return 0;
}

int walk_tree(struct walk *w, pid_t root, struct cgroup *cg, bool whole, bool quick,
	      struct cr_err *err)
{
	int r = 0;

	w->procs.n = w->tids.n = 0;
	free(take_ptr(w->in_cgroup));
	w->n_in_cgroup = 0;
	if (cg)
		r = list_cgroup(w, cg, err);
	if (r == 0 && root)
		r = add_proc(w, root, err);
	for (size_t i = 0; r == 0 && whole && i < w->n_in_cgroup; i++)
		r = add_proc(w, w->in_cgroup[i], err);
	for (size_t i = 0; r == 0 && i < w->procs.n; i++)
		r = visit(w, i, quick, err);
	drop_vanished(w);
	return r;
}

void walk_done(struct walk *w)
{
	vec_done(&w->procs);
	vec_done(&w->tids);
	free(take_ptr(w->in_cgroup));
}

static bool same_pids(const pid_t *a, const pid_t *b, size_t n)
{
	return !n || !memcmp(a, b, n * sizeof(*a)); /* none: the arrays may be NULL */
}

bool walk_same(const struct walk *a, const struct walk *b)
{
	if (a->procs.n != b->procs.n || a->tids.n != b->tids.n || a->n_in_cgroup != b->n_in_cgroup)
		return false;
	for (size_t i = 0; i < a->procs.n; i++) {
		if (a->procs.v[i].pid != b->procs.v[i].pid ||
		    a->procs.v[i].n_tids != b->procs.v[i].n_tids)
			return false;
	}
	return same_pids(a->tids.v, b->tids.v, a->tids.n) &&
	       same_pids(a->in_cgroup, b->in_cgroup, a->n_in_cgroup);
}
