/* The file locks of the stopped tasks: given up for the destination, and taken back. */
#include "source/source.h"

#include "base/fault.h"
#include "resource/resource.h"

static struct rtask *executor_of(struct source *s, pid_t pid)
{
	struct source_proc *sp = source_find(s, pid);
	struct parasite_thread *th = sp && sp->infected ? parasite_find(&sp->parasite, pid) : NULL;

	return th ? &th->rt : NULL;
}

int source_release_locks(struct source *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	if (s->image || s->rq->opts.leave_running) /* these tasks keep them */
		return 0;
	for (size_t i = 0; i < t->n_procs && !r; i++) {
		const struct process *p = &t->procs[i];
		struct rtask *rt = p->n_locks ? executor_of(s, p->pid) : NULL;

		if (!p->n_locks)
			continue;
		if (!rt)
			return cr_err_set(err, CR_ERR_BUG, ESRCH, "process %d is not infected",
					  p->pid);
		s->locks_released = true;
		r = locks_release(rt, p, err);
		fault_point("source-unlocked");
	}
	return r ? cr_err_ctx(err, "giving up file locks") : 0;
}

int source_retake_locks(struct source *s, const struct tree *t, struct cr_err *err)
{
	int result = 0;

	if (!s->locks_released)
		return 0;
	s->locks_released = false;
	source_tell_abort(s); /* it may have them */
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];
		struct rtask *rt = p->n_locks ? executor_of(s, p->pid) : NULL;
		struct cr_err why = {0};
		int r = rt ? locks_retake(rt, p, &why) : 0;

		if (r == -EAGAIN) { /* it waits for that by itself, once we are gone */
			source_find(s, p->pid)->infected = false;
			source_event(s, "warning", why.msg);
		} else if (r && !result) {
			result = r;
			*err = why;
		}
	}
	return result;
}
