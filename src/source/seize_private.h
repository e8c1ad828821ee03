/* Shared by seizure_take and seizure_preview. Inside of seize*.c. */
#pragma once
#include "source/seize.h"

struct walk;
struct cgroup;

/* *rq: the request with its defaults filled in; opens the cgroup. */
int seizure_open(struct seizure **ret, struct seize_request *rq,
		 const struct seize_request *as_asked, struct cr_err *err) must_check;
/* Can the cgroup be frozen and thawed? Sets refreeze. */
int seizure_check_cgroup(struct seizure *s, struct cr_err *err) must_check;

/* Processes that are in the cgroup but not in the tree: each refused (refused may be NULL);
 * then an error too. */
int seizure_refuse_others(const struct walk *w, const struct seize_request *rq, struct cgroup *cg,
			  struct refusals *refused, struct cr_err *err) must_check;
/* Processes that are in the tree but not in the cgroup: each a warning. True if there are any. */
bool seizure_warn_outside(const struct walk *w, struct cgroup *cg, struct refusals *refused);

/* *ret is NULL when the process has gone. */
int seizure_add_process(struct seizure *s, pid_t pid, bool zombie, struct seized_proc **ret,
			struct cr_err *err) must_check;
int seizure_add_task(struct seized_proc *p, pid_t tid, struct cr_err *err) must_check;
void seizure_sort(struct seizure *s);
/* An error if what was asked for is not in the list. */
int seizure_check_found(const struct seizure *s, const struct seize_request *rq,
			struct cr_err *err) must_check;
