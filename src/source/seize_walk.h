/* Who belongs to a tree or to a cgroup, at one moment. Inside of seize*.c. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"
#include "kernel/cgroup.h"

struct walk_proc {
	pid_t pid;
	size_t first_tid, n_tids; /* in walk.tids */
};

struct walk {
	VEC(struct walk_proc)
	procs; /* as found: a process found through its parent comes after it */
	VEC(pid_t) tids;
	pid_t *in_cgroup; /* the cgroup's processes, ascending; NULL without a cgroup */
	size_t n_in_cgroup;
	/* set by the caller */
	bool alone;                  /* the root has no children */
	const struct taskview *view; /* may be NULL: every thread's list of children is read */
};

/* The tree below root (0: none) and, if whole, every process of cg and what is below it. cg may be
 * NULL. A process that ends meanwhile is left out. quick: of a process with many threads only the
 * children of the first are looked for, which are mostly all; the last word is a walk without it.
 * *w is emptied first and keeps its memory for the next. */
int walk_tree(struct walk *w, pid_t root, struct cgroup *cg, bool whole, bool quick,
	      struct cr_err *err) must_check;
void walk_done(struct walk *w);

bool walk_has(const struct walk *w, pid_t pid);
bool walk_in_cgroup(const struct walk *w, pid_t pid);
bool walk_same(const struct walk *a, const struct walk *b);
