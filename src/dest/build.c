#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include "base/clock.h"
#include "dest/dest.h"
#include "dest/uffd_shell.h"
#include "kernel/sysv_ipc.h"
#include "kernel/vdso.h"
#include "memory/capture.h"

enum {
	OBJECT_TARGETS = 0x8000
}; /* target numbers on the page streams: processes below, objects from here */

void dest_check(const struct tree *t, struct refusals *notes)
{
	uint8_t digest[16];
	uint64_t start, end;
	struct cr_err err = {0};

	shells_check(t, notes);
	memory_check(t, notes);
	sysv_ipc_check(t, notes);
	files_check(t, notes);
	attrs_check(t, notes);
	net_check(t, notes);
	dest_check_ways(t, notes);
	if (vdso_describe(getpid(), &start, &end, digest, &err))
		refuse(notes, 0, "vdso", "%s", err.msg);
	else if (memcmp(digest, t->vdso_digest, sizeof(digest)))
		refuse(notes, 0, "vdso",
		       "the destination's kernel (another build than %s) has another "
		       "vdso, into which the tasks may have kept addresses: not supported",
		       t->kernel_release);
}

/* ---- targets of the page streams ---- */

static int add_objects(struct dest *d, const struct tree *t, size_t first, struct cr_err *err)
{
	int r = 0;

	for (size_t i = first; i < t->n_objects && !r; i++)
		r = ps_target_object(d->ps, OBJECT_TARGETS + (uint32_t)i, d->objects.list.v[i].fd,
				     err);
	return r;
}

/* Before a process is reaped: its number might become another's. */
static int drop_gone(struct dest *d, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	vec_foreach (shp, &d->shells->list)
		if (!r && !tree_find_process(t, (*shp)->pid) && (*shp)->target != NO_TARGET)
			r = ps_target_del(d->ps, (*shp)->target, err);
	return r;
}

int dest_targets(const struct dest *d, struct msg_target **ret, size_t *n, struct cr_err *err)
{
	struct msg_target *v = calloc(d->tree->n_procs + d->tree->n_objects + 1, sizeof(*v));

	*n = 0;
	if (!v)
		return cr_err_oom(err);
	vec_foreach (shp, &d->shells->list)
		if ((*shp)->target != NO_TARGET)
			v[(*n)++] = (struct msg_target){.pid = (*shp)->pid,
							.object = UINT32_MAX,
							.target = (*shp)->target,
							.copy_of = (*shp)->copy_of};
	for (size_t i = 0; i < d->tree->n_objects; i++)
		v[(*n)++] = (struct msg_target){.object = (uint32_t)i,
						.target = OBJECT_TARGETS + (uint32_t)i};
	*ret = v;
	return 0;
}

/* ---- one process ---- */

struct work { /* what is to be done with a process, against what is built */
	const struct tree *t;
	const struct process *p, *old;
	struct shell *sh;
	/* fresh: nothing is mapped; mm_fields: prctl(2) PR_SET_MM_MAP is due */
	bool fresh, layout, mm_fields, files, threads, attrs, root, late, launch, lacks, seccomp,
	    tty, locks, sets, exe;
};

static bool any_thread(const struct process *p,
		       bool (*fn)(const struct process *, const struct thread *))
{
	for (size_t i = 0; i < p->n_threads; i++)
		if (fn(p, &p->threads[i]))
			return true;
	return false;
}

void dest_hurry_shells(struct dest *d, int priority)
{
	for (size_t i = 0; i < d->tree->n_procs; i++) {
		const struct process *p = &d->tree->procs[i];
		struct shell *sh = shells_find(d->shells, p->pid);

		if (sh && !sh->zombie && !p->zombie)
			shell_hurry(sh, priority);
	}
}

static bool needs_launch(const struct process *p)
{
	for (size_t i = 0; i < p->n_threads; i++)
		if (attrs_needs_launch(p, &p->threads[i], i == 0))
			return true;
	return false;
}

/* Will pages be missing when the tasks run? */
static bool may_lack(const struct dest *d)
{
	return d->opts.mode != MSG_MODE_PRECOPY ||
	       d->opts.no_convergence == MSG_NO_CONVERGENCE_POSTCOPY;
}

static void plan(struct dest *d, struct work *w, const struct tree *t, const struct process *p,
		 bool files_changed, bool final)
{
	struct shell *sh = shells_find(d->shells, p->pid);

	*w = (struct work){.t = t, .p = p, .sh = sh};
	w->old = d->tree ? tree_find_process(d->tree, p->pid) : NULL;
	w->fresh = sh->n_vmas == 0;
	w->mm_fields = !w->fresh && (sh->copy_of || (w->old && w->old->mm.brk != p->mm.brk));
	/* the trap resets an action that ignores or handles the signal, as all are blocked in a
	 * shell */
	sh->no_breakpoint = attrs_sigtrap_fragile(p);
	if (!sh->built)
		w->old = NULL;
	w->layout = w->fresh || w->mm_fields || layout_differs(sh, p);
	w->files = !sh->built || files_changed;
	w->attrs = !w->old || attrs_process_differs(w->old, p);
	w->threads = !w->old || w->old->n_threads != p->n_threads;
	for (size_t i = 0; i < p->n_threads && !w->threads; i++) {
		const struct thread *o = process_find_thread(w->old, p->threads[i].tid);

		w->threads = !o || attrs_thread_differs(o, &p->threads[i]);
	}
	w->root = final && fileset_needs_late(p);
	w->late = final && any_thread(p, attrs_needs_late);
	w->launch = final && needs_launch(p);
	w->lacks = final && may_lack(d);
	w->seccomp = final && attrs_seccomp_needed(p);
	w->locks = final && p->n_locks;
	w->sets = final && t->n_sets;
	w->exe = final && p->mm.exe_object;
	w->tty = final && p->ctty && p->sid == p->pid;
}

/* A huge page would be filled with zeros where pages are to be fetched. Once a userfaultfd sees to
 * them the kernel makes none there, and the task has its own setting back. */
static int may_lack_pages(struct dest *d, const struct work *w, bool final, struct cr_err *err)
{
	struct rtask *rt = shell_leader(w->sh);
	int r = 0;

	if (!may_lack(d) || (!final && !w->fresh && !w->attrs && !w->threads))
		return 0;
	if (final && d->lazy)
		r = lazy_register(d->lazy, w->sh, w->p, err);
	rqueue(rt, "PR_SET_THP_DISABLE", SYS_prctl, PR_SET_THP_DISABLE,
	       final ? w->p->mm.thp_disable : 1);
	return r ? r : rtask_run(rt, err);
}

static bool needs_executor(const struct work *w)
{
	return w->fresh || w->layout || w->files || w->attrs || w->threads || w->root || w->late ||
	       w->launch || w->lacks || w->seccomp || w->tty || w->locks || w->sets || w->exe;
}

/* Its pages come for the first time: placed through a userfaultfd, without faults. Not beyond the
 * next change of anything: dest_write_pages(). */
static int copy_pages(struct dest *d, struct shell *sh, struct cr_err *err)
{
	_cleanup_fd_ int uffd = uffd_shell_for_copies(sh);

	if (uffd < 0)
		return 0;
	d->copying = true;
	return ps_target_uffd(d->ps, sh->target, uffd, err);
}

int dest_write_pages(struct dest *d, struct cr_err *err)
{
	if (!d->copying)
		return 0;
	d->copying = false;
	return ps_close_uffds(d->ps, err);
}

static int build_memory(struct dest *d, const struct tree *t, const struct work *w,
			struct cr_err *err)
{
	int r = shells_check_hole(d->shells, w->p, err);

	if (!r && w->fresh)
		r = layout_init(d->shells, w->sh, t, w->p, err);
	if (!r && w->layout)
		r = layout_sync(w->sh, t, w->p, &d->objects, err);
	else if (!r)
		r = layout_adopt(w->sh, w->p, err);
	if (!r && w->mm_fields)
		r = layout_set_mm_fields(w->sh, w->p, err);
	if (r || w->sh->target != NO_TARGET)
		return r;
	w->sh->target = d->next_target++;
	r = ps_target_process(d->ps, w->sh->target, w->p->pid, d->shells->hole_start,
			      d->shells->hole_end, err);
	return r ? r : copy_pages(d, w->sh, err);
}

typedef int (*thread_fn)(struct dest *d, const struct work *w, struct shell_thread *st,
			 const struct thread *th, bool leader, struct cr_err *err);

/* Queue something for every thread, then run all batches side by side. */
static int for_threads(struct dest *d, const struct work *w, thread_fn fn, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < w->sh->n_threads && !r; i++) {
		struct shell_thread *st = w->sh->threads[i];
		const struct thread *th = process_find_thread(w->p, st->tid);

		rtask_scratch_reset(&st->rt);
		r = th ? fn(d, w, st, th, i == 0, err)
		       : cr_err_set(err, CR_ERR_BUG, ESRCH, "thread %d is not in the tree",
				    st->tid);
		rtask_start(&st->rt);
	}
	for (size_t i = 0; i < w->sh->n_threads; i++) {
		struct cr_err e = {0};

		if (rtask_wait(&w->sh->threads[i]->rt, &e) && !r) {
			*err = e;
			r = -e.code;
		}
	}
	return r;
}

static int queue_attrs(struct dest *d, const struct work *w, struct shell_thread *st,
		       const struct thread *th, bool leader, struct cr_err *err)
{
	const struct thread *old = w->old ? process_find_thread(w->old, th->tid) : NULL;
	int r = leader ? attrs_rebuild_process_queue(&st->rt, w->old, w->p, err) : 0;

	(void)d;
	return r ? r : attrs_rebuild_thread_queue(&st->rt, w->p, old, th, err);
}

static int queue_late(struct dest *d, const struct work *w, struct shell_thread *st,
		      const struct thread *th, bool leader, struct cr_err *err)
{
	(void)d;
	return attrs_late_queue(&st->rt, w->p, th, leader, err);
}

static int install_seccomp(const struct work *w, struct cr_err *err)
{
	_cleanup_free_ struct rtask **rts = calloc(w->p->n_threads + 1, sizeof(*rts));
	int r = rts ? shell_seize_threads(w->sh, err) : cr_err_oom(err);

	for (size_t i = 0; i < w->p->n_threads && !r; i++) {
		for (size_t k = 0; k < w->sh->n_threads; k++)
			if (w->sh->threads[k]->tid == w->p->threads[i].tid)
				rts[i] = &w->sh->threads[k]->rt;
		if (!rts[i])
			r = cr_err_set(err, CR_ERR_BUG, ESRCH, "thread %d has no shell",
				       w->p->threads[i].tid);
	}
	return r ? r : attrs_seccomp_install(rts, w->t, w->p, err);
}

static int queue_launch(struct dest *d, const struct work *w, struct shell_thread *st,
			const struct thread *th, bool leader, struct cr_err *err)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC) + (uint64_t)d->clock_offset_ns;

	return attrs_launch_queue(&st->rt, w->t, w->p, th, leader, now, err);
}

static int build_tasks(struct dest *d, const struct work *w, struct cr_err *err)
{
	int r = 0;

	if (w->threads)
		r = shells_sync_threads(d->shells, w->sh, w->p, err);
	if (!r && (w->threads || w->attrs))
		r = for_threads(d, w, queue_attrs, err);
	if (!r && (w->threads || w->attrs))
		r = attrs_timers_rebuild(shell_leader(w->sh), w->old, w->p, err);
	for (size_t i = 0; i < w->sh->n_threads && !r && (w->threads || w->attrs); i++) {
		struct shell_thread *st = w->sh->threads[i];
		const struct thread *th = process_find_thread(w->p, st->tid);

		r = attrs_rebuild_outside(st->tid, w->p, th, i == 0, err);
		st->rseq_va = th->rseq_va;
		st->rseq_len = th->rseq_len;
		st->rseq_sig = th->rseq_sig;
	}
	return r;
}

static int set_foreground(struct dest *d, const struct work *w, struct cr_err *err)
{
	const struct tty *y = tree_find_tty(w->t, w->p->ctty - 1);

	if (!y || !y->pgrp || y->sid != w->p->sid)
		return 0;
	return shell_set_foreground(d->shells, w->sh, y, err);
}

/* ---- all of them ---- */

static int object_array(const struct dest *d, int **ret, struct cr_err *err)
{
	int *v = calloc(d->objects.list.n + 1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	for (size_t i = 0; i < d->objects.list.n; i++)
		v[i] = d->objects.list.v[i].fd;
	*ret = v;
	return 0;
}

static bool write_sealed(const struct shared_object *so)
{
	return so->kind == OBJ_MEMFD && so->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
}

/* Seals against writing come before the mappings: those of such objects are made once more. Their
 * contents are in place, the source has seen to that. */
static int seal_objects(struct dest *d, const struct tree *t, struct work *w, size_t n,
			struct cr_err *err)
{
	int r = 0;

	for (uint32_t o = 0; o < t->n_objects && !r; o++) {
		if (!write_sealed(&t->objects[o]))
			continue;
		for (size_t i = 0; i < n && !r; i++) {
			r = shell_unpark(d->shells, w[i].sh, err);
			if (!r)
				r = layout_unmap_object(w[i].sh, o, &w[i].layout, err);
		}
	}
	return r ? r : objects_seal(&d->objects, t, err);
}

/* For what of the open files has to be made by the very process. */
static int enter_shell(void *arg, pid_t pid, struct rtask **rt, int *slot)
{
	struct shell *sh = shells_find(arg, pid);

	if (!sh || sh->parked || sh->pidfd_slot < 0)
		return -ESRCH;
	*rt = shell_leader(sh);
	*slot = sh->pidfd_slot;
	return 0;
}

static int enter_for_sets(void *arg, pid_t pid, struct rtask **rt, int *slot)
{
	struct shell *sh = shells_find(arg, pid);

	if (!sh || sh->parked || sh->zombie)
		return -ESRCH;
	*rt = shell_leader(sh);
	*slot = -1;
	rtask_scratch_reset(*rt);
	return 0;
}

/* Of the last tree: before, nobody needs them here. */
static int make_sets(struct dest *d, const struct tree *t, struct cr_err *err)
{
	const struct fileset_tasks tasks = {.enter = enter_for_sets, .arg = d->shells};
	int r = 0;

	for (size_t i = 0; i < t->n_sets && !r; i++) {
		r = sysv_ipc_make(&t->sets[i], err);
		struct journal_shm *s = r ? NULL : vec_push(&d->journal.shms);
		if (!r && !s) {
			sysv_ipc_remove((int)t->sets[i].kind, t->sets[i].id, 0);
			return cr_err_oom(err);
		}
		if (s)
			*s = (struct journal_shm){t->sets[i].id, getpid(), (int)t->sets[i].kind};
	}
	if (!r && t->n_sets)
		r = dest_journal(d, JOURNAL_PREPARING, err);
	for (size_t i = 0; i < t->n_sets && !r; i++)
		r = sysv_ipc_fill(&t->sets[i], &tasks, err);
	return r;
}

/* Those that are stopped, while their parents can still be told that they know. */
static int stop_processes(struct dest *d, const struct work *w, size_t n, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		if (w[i].p->stop_sig)
			r = shell_stop(d->shells, w[i].sh, w[i].p, err);
	for (size_t i = 0; i < n && !r; i++) /* for what is still to be done in them */
		if (w[i].p->stop_sig && needs_executor(&w[i]))
			r = shell_unpark(d->shells, w[i].sh, err);
	return r;
}

/* The contents are in place, as those of sealed objects are. */
static int set_exe(struct dest *d, const struct tree *t, const struct work *w, struct cr_err *err)
{
	uint32_t i = w->p->mm.exe_object - 1;
	int fd;
	int r = object_exe(&d->objects.list.v[i], &t->objects[i], &fd, err);

	return r ? r : layout_set_exe(w->sh, w->p, fd, err);
}

/* Awake, and as the tree says as far as memory goes. */
static int build_memories(struct work *w, size_t n, struct dest *d, const struct tree *t,
			  struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++) {
		if (needs_executor(&w[i]))
			r = shell_unpark(d->shells, w[i].sh, err);
		if (!r && (w[i].files || w[i].layout || w[i].exe))
			r = shell_take_pidfd(d->shells, w[i].sh, err);
	}
	for (size_t i = 0; i < n && !r; i++)
		r = build_memory(d, t, &w[i], err);
	for (size_t i = 0; i < n && !r; i++)
		if (w[i].exe)
			r = set_exe(d, t, &w[i], err);
	return r;
}

static int for_work(struct work *w, size_t n, struct dest *d, const struct tree *t,
		    bool files_changed, bool final, struct cr_err *err)
{
	_cleanup_free_ int *object_fds = NULL;
	int r = object_array(d, &object_fds, err);

	if (!r && final)
		r = seal_objects(d, t, w, n, err);
	if (!r)
		r = build_memories(w, n, d, t, err);
	if (!r && files_changed) {
		fileset_set_tasks(d->files,
				  &(struct fileset_tasks){.enter = enter_shell, .arg = d->shells});
		r = fileset_build(d->files, t, object_fds, err);
	}
	for (size_t i = 0; i < n && !r; i++)
		if (w[i].files)
			r = fileset_install(d->files, shell_leader(w[i].sh), t, w[i].p,
					    &w[i].sh->pidfd_slot, err);
	if (!r && files_changed)
		r = fileset_queue_clients(d->files, t, err);
	if (!r && final)
		r = make_sets(d, t, err);
	for (size_t i = 0; i < n && !r; i++)
		r = build_tasks(d, &w[i], err);
	for (size_t i = 0; i < n && !r; i++)
		r = may_lack_pages(d, &w[i], final, err);
	for (size_t i = 0; i < n && !r; i++)
		if (w[i].tty)
			r = set_foreground(d, &w[i], err);
	for (size_t i = 0; i < n && !r; i++)
		if (!w[i].sh->parked)
			r = shell_drop_pidfd(w[i].sh, err);
	if (!r && final)
		r = fileset_settle(d->files, t, err);
	if (!r && final)
		r = stop_processes(d, w, n, err);
	for (size_t i = 0; i < n && !r && final; i++) {
		if (w[i].root)
			r = fileset_late_queue(shell_leader(w[i].sh), w[i].p, err);
		if (!r && w[i].root)
			r = rtask_run(shell_leader(w[i].sh), err);
		if (!r && w[i].launch)
			r = for_threads(d, &w[i], queue_launch, err);
		if (!r && w[i].locks) /* the source's tasks have given them up */
			r = locks_take(shell_leader(w[i].sh), w[i].p, err);
		if (!r && w[i].seccomp)
			r = install_seccomp(&w[i], err);
		if (!r && w[i].late)
			r = for_threads(d, &w[i], queue_late, err);
	}
	for (size_t i = 0; i < n && !r; i++) /* those whose credentials come last are parked then */
		if (final || !any_thread(w[i].p, attrs_needs_late))
			r = shell_park(d->shells, w[i].sh, err);
	for (size_t i = 0; i < n && !r; i++)
		w[i].sh->built = true;
	return r;
}

/* Some processes are still to be made, by parents that stay awake for it. */
static int build_part(struct work *w, size_t n, struct dest *d, const struct tree *t,
		      struct cr_err *err)
{
	int r = build_memories(w, n, d, t, err);

	for (size_t i = 0; i < n && !r; i++)
		r = may_lack_pages(d, &w[i], false, err);
	return r;
}

/* What a process that is still to be made begins with. Where pages have been left behind, a parent
 * may lack some that its child has; a child's own would not be told from those of the copy. */
static enum shells_copy copies(const struct dest *d, bool in_turns)
{
	if (d->lazy || (d->from_image && !in_turns))
		return COPY_NONE;
	return in_turns ? COPY_ALWAYS : COPY_NOW;
}

static int build_shells(struct dest *d, const struct tree *t, bool in_turns, size_t *ret_waiting,
			struct cr_err *err)
{
	size_t had_objects = d->objects.list.n;
	int r = 0;

	if (!d->shells) {
		r = dest_set_clocks(d, t, err);
		if (!r)
			r = shells_new(&d->shells, t, err);
		if (!r) {
			d->shells->ttys = d->ttys;
			fileset_set_ttys(d->files, d->ttys);
		}
		if (!r && d->opts.no_hw_breakpoints)
			d->shells->park_how = PARK_SYSCALL_TRACE;
	}
	for (size_t i = 0; i < t->n_procs && !r; i++) {
		/* a parent that is to fork must be awake */
		struct shell *sh = shells_find(d->shells, t->procs[i].ppid);

		if (!shells_find(d->shells, t->procs[i].pid) && sh && sh->parked)
			r = shell_unpark(d->shells, sh, err);
	}
	bool resized = false;
	if (!r)
		r = ttys_sync(d->ttys, t, &resized, err);
	if (!r && resized)
		r = shells_drain_signal(d->shells, SIGWINCH, err);
	if (!r)
		r = drop_gone(d, t, err);
	if (!r)
		r = shells_sync_processes(d->shells, t, d->cgroup, copies(d, in_turns), ret_waiting,
					  err);
	if (!r)
		r = objects_sync(&d->objects, t, err);
	if (!r && !*ret_waiting)
		r = shells_settle_structure(d->shells, t, err);
	return r ? r : add_objects(d, t, had_objects, err);
}

int dest_build(struct dest *d, struct tree *t, const struct dest_build_opts *how, bool *ret_more,
	       struct cr_err *err)
{
	_cleanup_free_ struct work *work = calloc(t->n_procs + 1, sizeof(*work));
	bool files_changed = d->state != DEST_BUILT || !files_same_shape(d->tree, t);
	size_t n = 0, waiting = 0;

	if (!work)
		return cr_err_oom(err);
	int r = build_shells(d, t, how->in_turns, &waiting, err);
	if (r)
		return r;
	for (size_t i = 0; i < t->n_procs; i++)
		if (!t->procs[i].zombie && shells_find(d->shells, t->procs[i].pid))
			plan(d, &work[n++], t, &t->procs[i], files_changed, how->final);
	r = waiting ? build_part(work, n, d, t, err)
		    : for_work(work, n, d, t, files_changed, how->final, err);
	if (r)
		return r;
	tree_free(d->tree);
	d->tree = t;
	if (!waiting)
		d->state = DEST_BUILT;
	*ret_more = waiting;
	return 0;
}
