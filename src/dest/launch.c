#include <string.h>
#include <sys/ptrace.h>
#include "base/clock.h"
#include "base/fault.h"
#include "dest/dest.h"
#include "kernel/procfs.h"
#include "kernel/sysv_shm.h"
#include "kernel/task.h"
#include "remote/park.h"
#include "resource/carried.h"

int dest_journal(struct dest *d, enum journal_state state, struct cr_err *err)
{
	d->journal.state = state;
	d->journal.pids.n = 0;
	for (size_t i = 0; d->tree && i < d->tree->n_procs; i++) {
		struct journal_pid *p = vec_push(&d->journal.pids);

		if (!p)
			return cr_err_oom(err);
		p->pid = d->tree->procs[i].pid;
	}
	return journal_write(d->env->state_dir, &d->journal, err);
}

static int thread_state(const struct thread *th, struct thread_state *st, struct cr_err *err)
{
	if (th->gpregs_len != sizeof(st->gp) || !th->xstate_len)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "thread %d came without registers",
				  th->tid);
	*st = (struct thread_state){
	    .xstate = th->xstate,
	    .xstate_len = th->xstate_len,
	    .sigmask = th->sigmask,
	    .altstack_sp = th->altstack_sp,
	    .altstack_size = th->altstack_size,
	    .altstack_flags = th->altstack_flags,
	};
	memcpy(&st->gp, th->gpregs, sizeof(st->gp));
	regs_mend_restart(&st->gp, false);
	return 0;
}

static int leave_thread(struct dest *d, const struct process *p, struct shell_thread *t,
			bool rewrite, struct cr_err *err)
{
	const struct thread *th = process_find_thread(p, t->tid);
	struct thread_state st;
	enum leave_how how =
	    d->opts.launch == MSG_LAUNCH_SIGRETURN ? LEAVE_SIGRETURN : LEAVE_REGSETS;

	if (!th)
		return cr_err_set(err, CR_ERR_BUG, ESRCH, "thread %d is not in the tree", t->tid);
	int r = thread_state(th, &st, err);
	if (!r && t->hurried)
		r = attrs_rebuild_outside(t->tid, p, th, false, err);
	if (r)
		return r;
	t->hurried = false;
	return rewrite ? leave_rewrite(&t->rt, &st, err) : leave_prepare(&t->rt, how, &st, err);
}

static bool by_frames(const struct dest *d)
{
	return d->opts.launch == MSG_LAUNCH_SIGRETURN;
}

int dest_leave_early(struct dest *d, struct cr_err *err)
{
	int r = 0;

	vec_foreach (shp, &d->shells->list) {
		struct shell *sh = *shp;
		const struct process *p = tree_find_process(d->tree, sh->pid);

		for (size_t i = 1; i < sh->n_threads && !r && !sh->zombie && !by_frames(d); i++) {
			r = leave_thread(d, p, sh->threads[i], false, err);
			sh->threads[i]->left = !r;
		}
	}
	return r;
}

/* The executor goes from each address space, and every thread gets what it had. */
static int leave_shell(struct dest *d, struct shell *sh, struct cr_err *err)
{
	const struct process *p = tree_find_process(d->tree, sh->pid);
	bool frames = by_frames(d);
	int r = 0;

	if (!frames) /* its registers are written afterwards */
		r = park_unmap(&sh->threads[0]->rt, 0, err);
	for (size_t i = 0; i < sh->n_threads && !r; i++)
		if (!sh->threads[i]->left)
			r = leave_thread(d, p, sh->threads[i], false, err);
	if (!r && frames) { /* the frames lay in the executor's memory: it goes after them */
		r = park_unmap(&sh->threads[0]->rt, 0, err);
		if (!r)
			r = leave_thread(d, p, sh->threads[0], true, err);
	}
	return r;
}

/* From here on the end of this process ends nothing: they stay, frozen, until somebody settles it.
 */
static int hold(struct dest *d, struct cr_err *err)
{
	int r = cgroup_freeze_start(d->cgroup, err);

	vec_foreach (shp, &d->shells->list)
		for (size_t i = 0; i < (*shp)->n_threads && !r; i++)
			if ((*shp)->threads[i]->seized &&
			    ptrace(PTRACE_SETOPTIONS, (*shp)->threads[i]->tid, 0,
				   PTRACE_O_TRACESYSGOOD))
				r = cr_err_sys(err, "holding task %d", (*shp)->threads[i]->tid);
	return r;
}

struct renaming {
	struct journal *j;
	struct cr_err *err;
};

static int note_rename(const char *from, const char *to, void *arg)
{
	struct renaming *n = arg;

	return journal_add_rename(n->j, from, to, n->err);
}

static int renames_of_now(struct dest *d, struct cr_err *err)
{
	for (size_t i = 0; i < d->journal.renames.n; i++) {
		free(d->journal.renames.v[i].from);
		free(d->journal.renames.v[i].to);
	}
	d->journal.renames.n = 0;
	return fileset_renames(d->files, d->tree, note_rename,
			       &(struct renaming){&d->journal, err});
}

static int is_news(const char *from, const char *to, void *arg)
{
	const struct journal *j = arg;

	(void)to;
	for (size_t i = 0; i < j->renames.n; i++)
		if (!strcmp(j->renames.v[i].from, from))
			return 0;
	return 1;
}

int dest_journal_segments(struct dest *d, const struct tree *t, struct cr_err *err)
{
	size_t had = d->journal.shms.n;

	for (size_t i = 0; i < t->n_objects; i++) {
		bool known = t->objects[i].kind != OBJ_SYSV_SHM;

		vec_foreach (s, &d->journal.shms)
			known |= !s->kind && s->id == t->objects[i].ipc_id;
		struct journal_shm *s = known ? NULL : vec_push(&d->journal.shms);
		if (!known && !s)
			return cr_err_oom(err);
		if (s)
			*s = (struct journal_shm){t->objects[i].ipc_id, getpid(), 0};
	}
	return d->journal.shms.n == had ? 0 : dest_journal(d, JOURNAL_PREPARING, err);
}

/* Those that were removed at the source go with their last attachment here too. */
static void remove_segments(const struct tree *t)
{
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].kind == OBJ_SYSV_SHM && t->objects[i].ipc_removed)
			sysv_shm_remove(t->objects[i].ipc_id, getpid());
}

int dest_journal_built(struct dest *d, struct cr_err *err)
{
	if (!fileset_renames(d->files, d->tree, is_news, &d->journal))
		return 0;
	int r = renames_of_now(d, err);
	return r ? r : dest_journal(d, JOURNAL_PREPARING, err);
}

static int tie_all(struct dest *d, struct cr_err *err)
{
	_cleanup_free_ pid_t *pids = calloc(d->tree->n_procs + 1, sizeof(*pids));
	size_t n = 0;

	if (!pids)
		return cr_err_oom(err);
	for (size_t i = 0; i < d->tree->n_procs; i++)
		if (!d->tree->procs[i].zombie)
			pids[n++] = d->tree->procs[i].pid;
	return lazy_tie(d->lazy->shared, pids, n, err);
}

int dest_prepare(struct dest *d, struct cr_err *err)
{
	int r = 0;

	if (d->lazy)
		lazy_dumps_look(d->lazy);
	vec_foreach (shp, &d->shells->list)
		if (!r && !(*shp)->zombie)
			r = leave_shell(d, *shp, err);
	if (!r)
		r = fileset_prepare(d->files, d->tree, err);
	remove_segments(d->tree);
	dest_sweep_files(d);
	if (!r)
		r = renames_of_now(d, err);
	if (!r && d->lazy) {
		d->journal.lazy = true;
		r = lazy_start(d->lazy, d->tree, err);
		if (!r && d->env->take_over)
			r = lazy_keep(d->lazy, d->env->take_over, d->env->take_over_arg, err);
		if (!r)
			r = tie_all(d, err);
		lazy_dumps_looked(d->lazy);
	}
	if (!r)
		r = hold(d, err);
	fault_point("dest-held");
	if (!r)
		r = dest_journal(d, JOURNAL_PREPARED, err);
	if (!r)
		d->state = DEST_PREPARED;
	return r;
}

/* May be asked again after a failure: those that have gone are gone. */
static int detach(struct shell *sh, struct cr_err *err)
{
	for (size_t i = 0; i < sh->n_threads; i++) {
		struct shell_thread *th = sh->threads[i];

		if (th->seized && ptrace(PTRACE_DETACH, th->tid, 0, 0))
			return cr_err_sys(err, "letting task %d go", th->tid);
		th->seized = false;
	}
	return 0;
}

int dest_let_go(struct dest *d, struct cr_err *err)
{
	int r = 0;

	vec_foreach (shp, &d->shells->list)
		if (!r && !(*shp)->zombie)
			r = detach(*shp, err);
	return r;
}

int dest_launch(struct dest *d, struct cr_err *err)
{
	/* first: whoever finds the journal at commit takes the tasks to have run */
	lazy_commit(d->lazy);
	int r = dest_journal(d, JOURNAL_COMMIT, err);

	d->state = DEST_COMMITTED;
	fault_point("dest-commit");
	if (!r)
		dest_build_closed(d);
	if (!r)
		r = net_take_addresses(d->tree, &d->announce_fd, err);
	if (!r)
		dest_open_switched_ways(d);
	if (!r && d->files)
		r = fileset_launch(d->files, d->tree, err);
	if (!r && d->files) {
		dest_tell_waiting(d);
		dest_release_files(d);
	}
	ttys_free(d->ttys); /* our part of them would keep a terminal's end from being seen */
	d->ttys = NULL;
	fault_point("dest-launched");
	/* in this order each wakes once: let go before, it would wake to find itself frozen */
	if (!r)
		r = cgroup_thaw(d->cgroup, err);
	if (!r)
		r = dest_let_go(d, err);
	if (!r)
		d->state = DEST_RUNNING;
	dest_launch_closed(d); /* the tasks do not wait for them */
	if (!r)
		carried_keep(&d->journal);
	return r;
}
