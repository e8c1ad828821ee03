#include "source/source.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include "base/clock.h"
#include "base/heap.h"
#include "memory/digest.h"
#include "resource/carried.h"
#include "base/fault.h"
#include "kernel/sysv_ipc.h"

enum {
	COMMIT_TIMEOUT_MS = 30000,
	SWITCH_PRIORITY = 40,
	HEAP_BYTES = 256 * 1024, /* what a switch-over allocates, about */
	HEAP_BYTES_PER_THREAD = 16 * 1024,
};

int source_journal(struct source *s, enum journal_state state, struct cr_err *err)
{
	s->journal.state = state;
	s->journal.pids.n = 0;
	vec_foreach (spp, &s->procs) {
		struct journal_pid *p = vec_push(&s->journal.pids);

		if (!p)
			return cr_err_oom(err);
		*p = (struct journal_pid){(*spp)->pid, (*spp)->starttime, (*spp)->stopped};
	}
	return journal_write(s->env->state_dir, &s->journal, err);
}

/* What is to go with the source's tasks. */
static int note_segments(struct source *s, const struct tree *t, struct cr_err *err)
{
	s->journal.shms.n = 0;
	for (size_t i = 0; i < t->n_objects; i++) {
		const struct shared_object *so = &t->objects[i];
		struct journal_shm *seg =
		    so->kind == OBJ_SYSV_SHM ? vec_push(&s->journal.shms) : NULL;

		if (so->kind == OBJ_SYSV_SHM && !seg)
			return cr_err_oom(err);
		if (seg)
			*seg = (struct journal_shm){so->ipc_id, so->ipc_cpid, 0};
	}
	for (size_t i = 0; i < t->n_sets; i++) {
		struct journal_shm *set = vec_push(&s->journal.shms);

		if (!set)
			return cr_err_oom(err);
		*set = (struct journal_shm){t->sets[i].id, 0, (int)t->sets[i].kind};
	}
	return 0;
}

/* ---- the last of the memory ---- */

/* A process that was forked since the rounds has no tracker: all its pages go now. */
static int track_newcomers(struct source *s, const struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		struct source_proc *sp = source_find(s, t->procs[i].pid);

		if (t->procs[i].zombie || !sp || sp->has_tracker)
			continue;
		sp->has_tracker = true;
		int r = tracker_init(&sp->tracker, sp->pid, 0, -1, &s->digest_budget, err);
		if (r)
			return r;
		sp->tracker.shares_cow = true;
	}
	return 0;
}

/* Guard pages show in no listing but the scan's. */
static int take_guards(struct source *s, struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		struct source_proc *sp = source_find(s, t->procs[i].pid);
		struct mm *mm = &t->procs[i].mm;

		if (!sp || !sp->has_tracker || !sp->tracker.guards.n)
			continue;
		mm->n_guards = sp->tracker.guards.n;
		mm->guards = arena_memdup(t->arena, sp->tracker.guards.v,
					  mm->n_guards * sizeof(*mm->guards));
		if (!mm->guards)
			return cr_err_oom(err);
	}
	return 0;
}

static int last_look(struct source *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < t->n_procs && !r; i++) {
		struct source_proc *sp = source_find(s, t->procs[i].pid);

		if (!t->procs[i].zombie && sp && sp->has_tracker)
			r = tracker_last_look(&sp->tracker, &t->procs[i].mm, s->reader, err);
	}
	return r;
}

static bool layout_changed(struct source *s, const struct tree *t)
{
	const struct tree *old = s->tree;

	if (old->n_procs != t->n_procs || old->n_objects != t->n_objects)
		return true;
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct source_proc *sp = source_find(s, t->procs[i].pid);

		if (old->procs[i].pid != t->procs[i].pid ||
		    old->procs[i].zombie != t->procs[i].zombie ||
		    old->procs[i].mm.layout_digest != t->procs[i].mm.layout_digest)
			return true;
		/* another process under the same pid, with the same mappings */
		if (!t->procs[i].zombie && sp && !sp->has_target)
			return true;
	}
	for (size_t i = 0; i < t->n_objects; i++)
		if (old->objects[i].size != t->objects[i].size)
			return true;
	return false;
}

/* What is sealed there with the final tree takes no more pages then; what is executed is copied. */
static bool wants_objects_early(const struct tree *t)
{
	bool wants = false;

	for (size_t i = 0; i < t->n_objects; i++)
		wants |= t->objects[i].seals != 0;
	for (size_t i = 0; i < t->n_procs; i++)
		wants |= !t->procs[i].zombie && t->procs[i].mm.exe_object;
	return wants;
}

static int send_rest(struct source *s, struct tree *t, struct cr_err *err)
{
	int r = track_newcomers(s, t, err);

	if (!r) /* files before what is mapped of them */
		r = source_carry_last(s, t, err);

	/* pages need their mappings first: only if there are new ones does this cost a round trip
	 */
	if (!r && layout_changed(s, t))
		r = source_send_tree(s, MSG_STAGE_MEND, t, err);
	if (!r)
		r = source_take_back_objects(s, t, err);
	if (!r)
		r = source_send_memory(s, t, true, err);
	if (!r)
		r = take_guards(s, t, err);
	/* there the tasks' memory is closed to us with the final tree */
	if (!r && s->lazy)
		r = last_look(s, t, err);
	if (!r && s->lazy)
		r = page_tx_flush(s->tx, NULL, err);
	if (!r && s->lazy)
		r = source_tell_left(s, err);
	if (!r && wants_objects_early(t))
		r = page_tx_flush(s->tx, NULL, err);
	return r;
}

static int digest_all(struct source *s, const struct tree *t, struct msg_digest *v, size_t *n,
		      struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < t->n_procs + t->n_objects && !r; i++) {
		bool object = i >= t->n_procs;
		struct memory_digest d;

		if (!object && t->procs[i].zombie)
			continue;
		v[*n] =
		    (struct msg_digest){.pid = object ? 0 : t->procs[i].pid, .object = UINT32_MAX};
		if (object) {
			v[*n].object = (uint32_t)(i - t->n_procs);
			r = memory_digest_object(s->object_fds.list.v[v[*n].object],
						 t->objects[v[*n].object].size, &d, err);
		} else {
			r = memory_digest_process(t->procs[i].pid, &t->procs[i], &d, err);
		}
		v[*n].pages = d.pages;
		memcpy(v[*n].digest, &d.sum.lo, 8);
		memcpy(v[*n].digest + 8, &d.sum.hi, 8);
		(*n)++;
	}
	return r;
}

/* --verify full: everything, read again on both sides. */
static int verify_full(struct source *s, const struct tree *t, struct cr_err *err)
{
	struct msg m = msg_of(MSG_VERIFY), reply;
	_cleanup_free_ struct msg_digest *v = calloc(t->n_procs + t->n_objects + 1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	m.verify.v = v;
	int r = digest_all(s, t, v, &m.verify.n, err);
	uint64_t pages = 0;
	for (size_t i = 0; i < m.verify.n; i++)
		pages += v[i].pages;
	if (!r) /* a second for each GiB */
		r = link_call(s->peer, &m, MSG_VERIFY_OK, source_patience_ms(s, pages / 256),
			      &reply, err);
	if (!r)
		msg_free(&reply);
	return r ? cr_err_ctx(err, "comparing the memories") : 0;
}

/* ---- two phases ---- */

static int wait_prepared(struct source *s, int timeout_ms, struct msg *reply, struct cr_err *err)
{
	int r = link_recv(s->peer, timeout_ms, reply, err);

	if (r || reply->type == MSG_PREPARED)
		return r;
	if (reply->type == MSG_ERROR)
		*err = reply->error;
	else
		cr_err_set(err, CR_ERR_PEER, EPROTO, "unexpected %s", msg_type_name(reply->type));
	msg_free(reply);
	return cr_err_ctx(err, "preparing");
}

static int prepare(struct source *s, const struct tree *t, struct cr_err *err)
{
	struct msg m = msg_of(MSG_PREPARE_COMMIT), reply;

	s->asked_to_prepare = true;
	int r = link_send(s->peer, &m, err);
	if (!r) /* meanwhile */
		r = source_hold(s, err);
	fault_point("source-held");
	if (!r)
		r = wait_prepared(s, source_patience_ms(s, source_work_ms(t)), &reply, err);

	if (!r) {
		s->takes_closed = reply.prepared.takes_closed;
		msg_free(&reply);
	}
	return r;
}

/* Does the destination itself say that it does not have the tasks, and never will? So it does if
 * what would fetch their pages died before they ran. */
static bool gave_up_there(struct source *s)
{
	struct msg_hello hello = {.version = MSG_VERSION,
				  .role = MSG_ROLE_PEER,
				  .id = s->rq->id,
				  .token = s->rq->token,
				  .host = s->env->host};
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_QUERY), reply;
	struct cr_err ignored = {0};

	m.query.id = s->rq->id;
	int r = link_connect(&l, s->rq->peer_address, 1000, &ignored);
	if (!r)
		r = link_hello(l, &hello, 2000, &reply, &ignored);
	if (r)
		return false;
	msg_free(&reply);
	if (link_call(l, &m, MSG_STATE, 2000, &reply, &ignored))
		return false;
	bool gave_up = reply.state.state == MSG_STATE_ABORTED;
	msg_free(&reply);
	return gave_up;
}

/* The link broke after the decision: it stands. Try to tell the destination again, for as long as
 * this process is let: the tasks here stay stopped until then. */
static int settle_commit(struct source *s, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = 200 * 1000 * 1000};

	for (unsigned int i = 0; i < 150; i++) {
		struct msg_hello hello = {.version = MSG_VERSION,
					  .role = MSG_ROLE_PEER,
					  .id = s->rq->id,
					  .token = s->rq->token,
					  .host = s->env->host};
		struct msg m = msg_of(MSG_COMMIT), reply;

		link_free(s->peer);
		s->peer = NULL;
		int r = link_connect(&s->peer, s->rq->peer_address, 1000, err);
		if (!r)
			r = link_hello(s->peer, &hello, 2000, &reply, err);
		if (!r) {
			msg_free(&reply);
			r = source_send_waiting(s, err);
		}
		if (!r) {
			r = link_call(s->peer, &m, MSG_RUNNING, COMMIT_TIMEOUT_MS, &reply, err);
		}
		if (!r) {
			msg_free(&reply);
			return 0;
		}
		if (s->lazy && gave_up_there(s))
			return -ECANCELED;
		nanosleep(&pause, NULL);
	}
	return cr_err_ctx(err,
			  "the destination cannot be told that it has the tasks; they stay stopped "
			  "here; `cr-migrate resolve` settles it");
}

static void kill_source(struct source *s)
{
	vec_foreach (q, &s->seizure->procs)
		kill(q->pid, SIGKILL);
	vec_foreach (q, &s->seizure->procs)
		for (size_t i = q->tasks.n; i-- > 0;) {
			int st;

			while (waitpid(q->tasks.v[i].tid, &st, __WALL) > 0 && WIFSTOPPED(st))
				;
		}
	seizure_forget(s->seizure);
	s->seizure = NULL;
	vec_foreach (seg, &s->journal.shms)
		sysv_ipc_remove(seg->kind, seg->id, seg->cpid);
	carried_give(&s->journal);
	source_carry_left(s);
	/* the last references: what is in repair mode closes without a word */
	net_lock_free(s->net_lock);
	s->net_lock = NULL;
}

/* COMMIT is told to a link that works; what came for the tasks follows it at once. */
static int tell_commit(struct source *s, struct cr_err *err)
{
	struct msg m = msg_of(MSG_COMMIT), reply;
	int r = source_send_waiting(s, err);

	if (!r)
		r = link_send(s->peer, &m, err);
	if (!r)
		source_send_packets(s, false);
	if (!r)
		r = link_recv(s->peer, COMMIT_TIMEOUT_MS, &reply, err);
	if (!r && reply.type != MSG_RUNNING) {
		r = reply.type == MSG_ERROR ? (*err = reply.error, cr_err_ctx(err, "COMMIT"))
					    : cr_err_set(err, CR_ERR_PEER, EPROTO, "unexpected %s",
							 msg_type_name(reply.type));
		msg_free(&reply);
	} else if (!r) {
		msg_free(&reply);
	}
	return r;
}

static int commit(struct source *s, const struct tree *t, struct cr_err *err)
{

	s->journal.lazy = s->lazy;
	int r = source_note_objects(s, t, err);
	if (!r)
		r = source_journal(s, JOURNAL_COMMIT, err);

	if (r)
		return r;
	fault_point("source-commit");
	s->committed = true; /* the decision: one place, this one */
	/* before any socket that has it is closed: nothing can be answered by a reset then; and
	 * before the destination has it */
	source_leave_addresses(s);
	/* they are lost if this fails, and not the tasks */
	if (source_collect_waiting(s, t, err))
		source_event(s, "warning", err->msg);
	r = tell_commit(s, err);
	if (r)
		r = settle_commit(s, err);
	if (r == -ECANCELED) /* undecided by the destination itself, before anything ran there */
		s->committed = false;
	return r;
}

/* ---- after the commit ---- */

void source_real_time(bool on)
{
	struct sched_param sp = {.sched_priority = on ? SWITCH_PRIORITY : 0};

	/* without the privilege it is only slower */
	if (sched_setscheduler(0, on ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &sp))
		return;
}

/* A task that does not run on as it was is worse than whatever came before: never passed over. */
static int undo_failed(int r, const struct cr_err *undo, struct cr_err *err)
{
	struct cr_err before = *err;

	*err = *undo;
	cr_err_ctx(err, "the tasks could not be let go cleanly");
	return r ? cr_err_ctx(err, "%s; then", before.msg) : -undo->code;
}

static int undo_switch(struct source *s, struct tree *t, int r, struct cr_err *err)
{
	struct cr_err undo = {0};

	source_real_time(false);
	if (source_unlock_network(s, &undo))
		r = undo_failed(r, &undo, err);
	if (s->held && seizure_unhold(s->seizure, &undo))
		r = undo_failed(r, &undo, err);
	s->held = false;
	if (source_put_back_ttys(s, t, &undo))
		r = undo_failed(r, &undo, err);
	if (source_retake_locks(s, t, &undo))
		r = undo_failed(r, &undo, err);
	tree_free(t);
	if (source_resume(s, &undo))
		r = undo_failed(r, &undo, err);
	source_replay_packets(s);
	return r;
}

/* Once the tasks are about to go on here; too late for a failure to change anything. */
static void unlock_network(struct source *s, bool locked)
{
	if (locked)
		source_hook_late(s, MSG_HOOK_NETWORK_UNLOCK, false);
}

/* They stay, in a group stop: each has the SIGSTOP pending as it leaves, before it runs anything.
 */
static int leave_stopped(struct source *s, struct cr_err *err)
{
	struct cr_err undo = {0};

	if (!source_unlock_network(s, &undo) && !seizure_unhold(s->seizure, &undo) &&
	    !source_resume(s, &undo))
		return 0;
	*err = undo;
	return cr_err_ctx(err, "leaving the tasks stopped");
}

/* The destination gets ready too: its priority rises before it is needed. */
static int announce(struct source *s, struct cr_err *err)
{
	struct msg m = msg_of(MSG_PING), reply;
	int r = link_call(s->peer, &m, MSG_PONG, COMMIT_TIMEOUT_MS, &reply, err);

	if (!r)
		msg_free(&reply);
	return r;
}

/* Before the decision: what others have to do for it, or may object to. Its commands are asked to
 * undo what they did if it does not come to it. */
static int last_hooks(struct source *s, struct cr_err *err)
{
	int r = source_hook(s, MSG_HOOK_POST_DUMP, false, err);

	if (!r)
		r = source_check_abort(s, err);
	if (r || s->image || s->rq->opts.rehearse)
		return r;
	r = source_hook(s, MSG_HOOK_NETWORK_SWITCH, false, err);
	if (!r)
		r = source_hook(s, MSG_HOOK_PRE_RESUME, false, err);
	if (r)
		source_hook_late(s, MSG_HOOK_NETWORK_SWITCH, true);
	return r;
}

/* They run at the destination, and only there. */
static int conclude(struct source *s, struct cr_err *err)
{
	kill_source(s);
	if (!s->lazy)
		source_send_packets(s, true);
	fault_point("source-killed");
	int r = source_journal(s, JOURNAL_DONE, err);

	if (!s->image) {
		source_hook_late(s, MSG_HOOK_POST_RESUME, false);
		source_hook_late(s, MSG_HOOK_POST_RESTORE, false);
	}
	return r;
}

/* All that the destination needs to know to make them whole. */
static int rebuild_there(struct source *s, struct tree *t, struct cr_err *err)
{
	int r = source_release_locks(s, t, err);

	if (!r)
		r = source_drain_ttys(s, t, err);
	if (!r) /* as late as can be: what comes in from here on has to be sent again */
		r = source_lock_network(s, t, err);
	if (!r)
		r = source_tell_tree(s, MSG_STAGE_FINAL, t, err);
	if (!r && !s->lazy) /* while the destination works on that */
		r = last_look(s, t, err);
	if (!r)
		r = page_tx_flush(s->tx, NULL, err);
	return r ? r : source_hear_tree(s, t, err);
}

/* With --leave-running there are two copies, as was asked for. */
static int run_on(struct source *s, struct cr_err *err)
{
	struct cr_err undo = {0};

	if (!source_unlock_network(s, &undo) && !seizure_unhold(s->seizure, &undo) &&
	    !source_resume(s, &undo))
		return 0;
	*err = undo;
	return cr_err_ctx(err, "letting the source run on");
}

/* The last that is done beside the running tasks. */
static int last_looks(struct source *s, struct cr_err *err)
{
	int r = s->lazy ? source_follow_behind(s, err) : 0;

	if (!r)
		r = source_last_object_rounds(s, err);
	return r ? r : announce(s, err);
}

int source_switch_over(struct source *s, struct cr_err *err)
{
	struct msg_phases *ph = &s->done.phases;
	struct stop_times times;
	struct tree *t = NULL;
	bool locked;

	source_event(s, MSG_EVENT_SWITCH_OVER, "stopping the tasks");
	struct seize_request rq;
	source_request(s, &rq);
	heap_warm(HEAP_BYTES + tree_count_threads(s->tree) * HEAP_BYTES_PER_THREAD);
	page_tx_set_bandwidth(s->tx, 0); /* the limit is for what runs beside the tasks */
	int r = last_looks(s, err);
	source_real_time(true);
	if (!r && s->lazy)
		r = source_last_drop_rounds(s, err);
	fault_point("source-stopping");
	if (!r)
		r = source_stop(s, &rq, &t, &times, err);
	if (r) {
		source_real_time(false);
		return r;
	}
	fault_point("source-stopped");
	ph->freeze = times.frozen_us - times.start_us;
	ph->capture = times.captured_us - times.frozen_us;
	if (s->notes.list.n)
		r = cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "%s of %d: %s",
			       s->notes.list.v[0].what, s->notes.list.v[0].pid,
			       s->notes.list.v[0].why);
	if (!r)
		r = source_hook(s, MSG_HOOK_NETWORK_LOCK, false, err);
	locked = !r;
	if (!r)
		r = source_check_hole(s, t, err);
	if (!r)
		r = source_note_held(s, t, err);
	uint64_t looked_into = source_pages_read(s);
	s->done.stop_pages = 0;
	if (!r)
		r = send_rest(s, t, err);
	ph->last_pages = now_us() - times.captured_us;
	uint64_t t1 = now_us();
	if (!r)
		r = rebuild_there(s, t, err);
	ph->rebuild = now_us() - t1;
	s->done.stop_pages += source_pages_read(s) - looked_into;
	t1 = now_us();
	if (!r && s->rq->opts.verify == MSG_VERIFY_FULL)
		r = verify_full(s, t, err);
	ph->last_pages += now_us() - t1;
	t1 = now_us();
	if (!r && !s->rq->opts.leave_running)
		r = note_segments(s, t, err);
	if (!r)
		r = prepare(s, t, err);
	if (!r)
		r = source_verify_network(s, err);
	if (!r)
		r = inotify_verify(t, err);
	ph->launch = now_us() - t1;
	fault_point("source-prepared");
	if (!r && !s->rq->opts.rehearse)
		source_wait_unowned(s, t);
	if (!r)
		r = last_hooks(s, err);
	if (r || s->rq->opts.rehearse) {
		s->done.downtime_us = now_us() - times.start_us;
		unlock_network(s, locked);
		return undo_switch(s, t, r, err);
	}
	t1 = now_us();
	r = commit(s, t, err);
	ph->commit = now_us() - t1;
	s->done.downtime_us = now_us() - times.start_us;
	if (r && !s->committed) {
		if (!s->image)
			source_hook_late(s, MSG_HOOK_NETWORK_SWITCH, true);
		unlock_network(s, locked);
		return undo_switch(s, t, r, err);
	}
	/* neighbours have been told by now where the addresses are */
	source_send_packets(s, !r && s->lazy);
	source_real_time(false);
	if (!r)
		source_end_closed(s);
	tree_free(t);
	if (!r && s->lazy)
		r = source_serve_destination(s, err);
	if (r) /* decided, but not confirmed: stopped, and held, until somebody settles it */
		return r;
	if (s->image && s->image->leave_stopped) {
		unlock_network(s, locked);
		return leave_stopped(s, err);
	}
	if (s->rq->opts.leave_running) {
		unlock_network(s, locked);
		return run_on(s, err);
	}
	return conclude(s, err);
}
