#include "dest/dest.h"

#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include "base/clock.h"
#include "base/fault.h"
#include "base/heap.h"
#include "base/log.h"
#include "kernel/sysv_ipc.h"
#include "kernel/tmpfs.h"
#include "memory/capture.h"
#include "memory/digest.h"
#include "model/lazy.h"
#include "resource/carried.h"
#include "wire/tree_codec.h"

enum { SWITCH_PRIORITY = 40, HEAP_BYTES_PER_THREAD = 16 * 1024 };

/* ---- life ---- */

static int make_cgroup(struct dest *d, struct cr_err *err)
{
	static const enum cgroup_version order[] = {CGROUP_V2, CGROUP_V1};
	char name[64];

	snprintf(name, sizeof(name), "cr-%.16s", d->journal.id);
	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		_cleanup_free_ char *path = NULL;
		_cleanup_(cgroup_closep) struct cgroup *own = NULL;

		int r = cgroup_of_pid(getpid(), order[i], &path, err);
		if (!r)
			r = cgroup_open(&own, order[i], path, err);
		if (!r)
			r = cgroup_create_child(&d->cgroup, own, name, err);
		if (!r) {
			snprintf(d->journal.cgroup, sizeof(d->journal.cgroup), "%s",
				 cgroup_fs_path(d->cgroup));
			return 0;
		}
	}
	return cr_err_ctx(err, "making a cgroup that can hold the tasks");
}

int dest_init(struct dest *d, const struct dest_env *env, const struct msg_receive *rq,
	      struct cr_err *err)
{
	struct ps_session_info info;
	struct rlimit nofile;

	*d = (struct dest){
	    .env = env, .id = rq->id, .token = rq->token, .opts = rq->opts, .announce_fd = -1};
	mig_id_format(&rq->id, d->journal.id);
	for (size_t i = 0; i < sizeof(rq->token.b); i++)
		snprintf(d->journal.token + 2 * i, 3, "%02x", rq->token.b[i]);
	snprintf(d->journal.role, sizeof(d->journal.role), "destination");
	d->journal.since_sec = (int64_t)(clock_ns(CLOCK_REALTIME) / 1000000000ull);
	/* shells hold what their processes had open: as much as we may */
	if (!getrlimit(RLIMIT_NOFILE, &nofile)) {
		nofile.rlim_cur = nofile.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &nofile))
			return cr_err_sys(err, "raising the limit of open files");
	}
	d->files = fileset_new();
	d->ttys = ttys_new();
	if (!d->files || !d->ttys)
		return cr_err_oom(err);
	int r = env->page_server ? ps_connect(&d->ps, env->page_server, err) : 0;
	if (!r && env->page_server)
		r = ps_session(d->ps, rq->id.b, rq->token.b, &info, err);
	if (r)
		return cr_err_ctx(err, "page-server on %s", env->host);
	if (env->page_server)
		snprintf(d->pages_address, sizeof(d->pages_address), "%s", info.listen);
	r = make_cgroup(d, err);
	return r ? r : dest_journal(d, JOURNAL_PREPARING, err);
}

static void remove_cgroup(struct dest *d)
{
	struct cr_err err = {0};

	if (d->cgroup && cgroup_remove(d->cgroup, &err))
		log_warn("%s", err.msg);
	cgroup_close(d->cgroup);
	d->cgroup = NULL;
}

static void forget_journal(struct dest *d)
{
	struct cr_err err = {0};

	if (journal_remove(d->env->state_dir, &d->journal, &err))
		log_warn("%s", err.msg);
}

void dest_undo(struct dest *d)
{
	struct cr_err err = {0};

	ps_close(d->ps);
	d->ps = NULL;
	/* first the signal, then the thaw: none of them may run */
	shells_kill(d->shells);
	/* only after the signal: what is missing reads as zeros from here on */
	lazy_free(d->lazy);
	d->lazy = NULL;
	if (d->state == DEST_PREPARED && cgroup_thaw(d->cgroup, &err))
		log_warn("%s", err.msg);
	shells_free(d->shells);
	d->shells = NULL;
	fileset_undo(d->files);
	dest_close_ways(d);
	dest_release_files(d); /* before the directories that were made for them go */
	vec_foreach (s, &d->journal.shms)
		sysv_ipc_remove(s->kind, s->id, s->cpid);
	carrying_free(d->carrying);
	d->carrying = NULL;
	carried_undo(&d->journal);
	remove_cgroup(d);
	forget_journal(d);
	d->state = DEST_ABORTED;
}

void dest_release_files(struct dest *d)
{
	fileset_free(d->files);
	d->files = NULL;
}

void dest_release(struct dest *d)
{
	ps_close(d->ps);
	d->ps = NULL;
	shells_forget(d->shells);
	d->shells = NULL;
	dest_release_files(d);
	ttys_free(d->ttys);
	d->ttys = NULL;
	objects_done(&d->objects);
}

void dest_done(struct dest *d)
{
	dest_close_ways(d);
	lazy_free(d->lazy);
	ps_close(d->ps);
	shells_forget(d->shells);
	fileset_free(d->files);
	ttys_free(d->ttys);
	objects_done(&d->objects);
	carrying_free(d->carrying);
	cgroup_close(d->cgroup);
	tree_free(d->tree);
	refusals_done(&d->notes);
	journal_done(&d->journal);
}

/* ---- the conversation ---- */

static void real_time(bool on)
{
	struct sched_param sp = {.sched_priority = on ? SWITCH_PRIORITY : 0};

	/* without the privilege it is only slower */
	if (sched_setscheduler(0, on ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &sp))
		return;
}

/* userfaultfd(2) serves files of a tmpfs alone, and with huge pages what is missing could not be
 * told from what a task has removed (dest/lazy_state.h). */
static bool unlinked_may_be_lazy(const struct dest *d)
{
	bool may = true;

	for (size_t i = 0; i < d->tree->n_objects && i < d->objects.list.n && may; i++)
		if (d->tree->objects[i].in_memory)
			may = tmpfs_has_small(d->objects.list.v[i].fd);
	return may;
}

static int reply_tree_ok(struct dest *d, bool built, bool more, struct cr_err *err)
{
	struct msg m = msg_of(MSG_TREE_OK);
	struct msg_tree_ok *ok = &m.tree_ok;
	int r = msg_notes_from(d->notes.list.v, d->notes.list.n, d->env->host, &ok->refusals, err);

	if (!r)
		r = msg_notes_from(d->notes.warnings.v, d->notes.warnings.n, d->env->host,
				   &ok->warnings, err);
	if (!r && built) {
		ok->hole_start = d->shells->hole_start;
		ok->hole_end = d->shells->hole_end;
		ok->more = more;
		ok->lazy_objects = lazy_has_objects();
		ok->lazy_memfds = ok->lazy_objects;
		ok->lazy_huge_objects = true; /* whatever the kernel makes of ordinary pages */
		ok->lazy_unlinked = ok->lazy_objects && unlinked_may_be_lazy(d);
		ok->lazy_holes = ok->lazy_objects;
		ok->lazy_huge = d->huge == DEST_HUGE_LAZY;
		ok->lazy_clean = true;
		r = dest_targets(d, &ok->targets, &ok->n_targets, err);
	}
	if (!r)
		r = link_send(d->peer, &m, err);
	for (size_t i = 0; built && !r && i < d->shells->list.n; i++)
		d->shells->list.v[i]->copy_of = 0; /* it knows */
	free(ok->refusals.v);
	free(ok->warnings.v);
	free(ok->targets);
	refusals_done(&d->notes);
	return r;
}

static bool has_huge(const struct tree *t)
{
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].mm.n_vmas; k++)
			if (t->procs[i].mm.vmas[k].page_bytes)
				return true;
	return false;
}

/* Before any is reserved for the tasks: it takes one. */
static void try_huge(struct dest *d, const struct tree *t)
{
	if (d->huge == DEST_HUGE_UNTRIED && has_huge(t))
		d->huge = huge_may_be_discarded() ? DEST_HUGE_LAZY : DEST_HUGE_SENT;
}

static int on_tree(struct dest *d, const struct msg_tree *mt, struct cr_err *err)
{
	const struct dest_build_opts how = {
	    .final = mt->stage == MSG_STAGE_FINAL,
	    .in_turns = mt->stage == MSG_STAGE_PREPARE && mt->in_turns,
	};
	bool final = how.final, more = false;
	struct tree *t;

	int r = tree_decode(mt->tree, mt->tree_len, &t, err);
	if (r)
		return r;
	if (mt->stage == MSG_STAGE_CHECK) {
		dest_check(t, &d->notes);
		tree_free(t);
		return reply_tree_ok(d, false, false, err);
	}
	if (d->state > DEST_BUILT || (final && d->state != DEST_BUILT) || d->final) {
		tree_free(t);
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "a tree in a wrong state");
	}
	r = dest_write_pages(d, err);
	if (!final)
		dest_open_ways(d, t);
	try_huge(d, t);
	if (!r)
		r = dest_journal_segments(d, t, err);
	/* whoever finishes in our place needs it */
	if (!r && final && net_needs_launch(t))
		r = journal_keep(d->env->state_dir, &d->journal, mt->tree, mt->tree_len, err);
	if (!r)
		r = dest_build(d, t, &how, &more, err);
	if (r) {
		tree_free(t);
		return cr_err_ctx(err, "rebuilding at %s", d->env->host);
	}
	r = dest_journal_built(d, err);
	fault_point(final ? "dest-final" : "dest-built");
	if (!r)
		r = reply_tree_ok(d, true, more, err);
	d->final = final;
	return r || !final ? r : dest_leave_early(d, err);
}

/* All of it, or what lies between its holes; never a part of a huge page. */
static bool are_of_object(const struct shared_object *so, const struct msg_reset *rs)
{
	const uint64_t end = ALIGN_UP(so->size, (uint64_t)CR_PAGE_SIZE);
	bool whole = rs->n_ranges == 1 && !rs->ranges[0].start && rs->ranges[0].end == end;
	bool within = !so->page_bytes && !rs->taken_back;

	for (size_t i = 0; i < rs->n_ranges && within; i++)
		within = rs->ranges[i].end <= end;
	return whole || within;
}

static bool is_object(const struct dest *d, const struct msg_reset *rs)
{
	return rs->object < d->objects.list.n && rs->object < d->tree->n_objects &&
	       (rs->taken_back || object_is_lazy(d->tree, rs->object)) &&
	       are_of_object(&d->tree->objects[rs->object], rs);
}

/* Pages that the tasks will fetch once they run here. */
static int on_reset(struct dest *d, const struct msg_reset *rs, struct cr_err *err)
{
	struct msg m = msg_of(MSG_OK);
	bool may = d->state == DEST_BUILT && !d->final;
	struct shell *sh = may && rs->pid ? shells_find(d->shells, rs->pid) : NULL;
	char path[256];
	int r = 0;

	if (rs->pid ? !sh || sh->zombie : !may || !is_object(d, rs))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "pages of a process that is not here");
	if (!d->lazy) {
		lazy_stats_path(path, sizeof(path), d->env->state_dir, d->journal.id);
		r = lazy_new(&d->lazy, path, d->journal.cgroup, d->opts.postcopy_timeout_ms, err);
	}
	if (!r && sh)
		r = lazy_leave(d->lazy, sh, rs, err);
	else if (!r && rs->taken_back)
		lazy_take_back_object(d->lazy, rs->object);
	else if (!r)
		r = lazy_leave_object(d->lazy, d->objects.list.v[rs->object].fd,
				      &d->tree->objects[rs->object], rs, err);
	return r ? r : link_send(d->peer, &m, err);
}

static int compare_digest(struct dest *d, const struct msg_digest *want, struct cr_err *err)
{
	struct memory_digest got;
	uint8_t bytes[16];
	int r;

	if (want->pid > 0) {
		const struct process *p = tree_find_process(d->tree, want->pid);

		if (!p)
			return cr_err_set(err, CR_ERR_PEER, ESRCH, "no process %d here", want->pid);
		r = memory_digest_process(want->pid, p, &got, err);
	} else {
		if (want->object >= d->objects.list.n || want->object >= d->tree->n_objects)
			return cr_err_set(err, CR_ERR_PEER, ESRCH, "no object %u here",
					  want->object);
		r = memory_digest_object(d->objects.list.v[want->object].fd,
					 d->tree->objects[want->object].size, &got, err);
	}
	if (r)
		return r;
	memcpy(bytes, &got.sum.lo, 8);
	memcpy(bytes + 8, &got.sum.hi, 8);
	if (got.pages == want->pages && !memcmp(bytes, want->digest, 16))
		return 0;
	err->pid = want->pid;
	return cr_err_set(
	    err, CR_ERR_BUG, EBADMSG,
	    "the memory of %s %d differs from the source's (%llu pages here, %llu there)",
	    want->pid > 0 ? "process" : "object", want->pid > 0 ? want->pid : (int)want->object,
	    (unsigned long long)got.pages, (unsigned long long)want->pages);
}

static int on_verify(struct dest *d, const struct msg_digests *v, struct cr_err *err)
{
	struct msg m = msg_of(MSG_VERIFY_OK);

	for (size_t i = 0; i < v->n; i++) {
		int r = d->tree ? compare_digest(d, &v->v[i], err)
				: cr_err_set(err, CR_ERR_PEER, EPROTO, "nothing to verify");
		if (r)
			return r;
	}
	return link_send(d->peer, &m, err);
}

static int on_prepare(struct dest *d, struct cr_err *err)
{
	struct msg m = msg_of(MSG_PREPARED);

	if (d->state != DEST_BUILT)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "nothing to prepare");
	int r = dest_write_pages(d, err);
	if (!r)
		r = dest_prepare(d, err);
	if (r)
		return r;
	fault_point("dest-prepared");
	m.prepared.takes_closed = true;
	return link_send(d->peer, &m, err);
}

static int on_commit(struct dest *d, struct cr_err *err)
{
	struct msg m = msg_of(MSG_RUNNING);
	uint64_t t0 = now_us();

	/* said again after a broken link: it has been done */
	if (d->state != DEST_RUNNING) {
		if (d->state < DEST_PREPARED || d->state == DEST_ABORTED)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "not prepared");
		int r = dest_launch(d, err);
		if (r)
			return r;
	}
	m.running.us = now_us() - t0;
	return link_send(d->peer, &m, err);
}

static enum msg_peer_state state_of(const struct dest *d)
{
	static const enum msg_peer_state map[] = {
	    [DEST_NEW] = MSG_STATE_PREPARING,     [DEST_BUILT] = MSG_STATE_PREPARING,
	    [DEST_PREPARED] = MSG_STATE_PREPARED, [DEST_COMMITTED] = MSG_STATE_COMMITTED,
	    [DEST_RUNNING] = MSG_STATE_RUNNING,   [DEST_ABORTED] = MSG_STATE_ABORTED,
	};

	return map[d->state];
}

static int hurry(struct dest *d, struct cr_err *err)
{
	struct cr_err slower = {0};
	/* the tasks at the source still run, and share the CPUs with us if that is this machine:
	 * what takes a while before we go ahead of them */
	int r = dest_write_pages(d, err);

	if (r)
		return r;
	real_time(true);
	if (d->tree)
		heap_warm(tree_count_threads(d->tree) * HEAP_BYTES_PER_THREAD);
	if (d->state == DEST_BUILT)
		dest_hurry_shells(d, SWITCH_PRIORITY);
	if (ps_hurry(d->ps, SWITCH_PRIORITY, &slower))
		log_debug("%s", slower.msg);
	return 0;
}

/* 1: the conversation is over. */
static int dispatch(struct dest *d, struct msg *m, struct cr_err *err)
{
	struct msg reply;
	int r;

	switch (m->type) {
	case MSG_TREE:
		return on_tree(d, &m->tree, err);
	case MSG_RESET:
		return on_reset(d, &m->reset, err);
	case MSG_FILES:
		return dest_files_asked(d, &m->files, err);
	case MSG_FILE:
		return dest_file_begin(d, m, err);
	case MSG_FILE_DATA:
		return dest_file_data(d, &m->file_data, err);
	case MSG_FILE_END:
		return dest_file_end(d, err);
	case MSG_VERIFY:
		return on_verify(d, &m->verify, err);
	case MSG_PREPARE_COMMIT:
		return on_prepare(d, err);
	case MSG_COMMIT:
		r = on_commit(d, err);
		if (r || !d->ways)
			return r ? r : 1;
		/* packets follow; whoever settles meanwhile is to see that the tasks run */
		return d->lazy ? 0 : dest_journal(d, JOURNAL_DONE, err);
	case MSG_WAITING:
		return dest_on_waiting(d, &m->waiting, err);
	case MSG_PACKETS: /* an answer that fails is sent when the link ends */
		return d->state == DEST_RUNNING
			   ? dest_on_packets(d, &m->packets)
			   : cr_err_set(err, CR_ERR_PEER, EPROTO, "packets in a wrong state");
	case MSG_ABORT:
		if (d->state >= DEST_COMMITTED)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "committed: cannot be undone");
		dest_undo(d);
		reply = msg_of(MSG_ABORTED);
		r = link_send(d->peer, &reply, err);
		return r ? r : 1;
	case MSG_QUERY:
		reply = msg_of(MSG_STATE);
		reply.state.state = state_of(d);
		return link_send(d->peer, &reply, err);
	case MSG_PING: /* the switch-over is near */
		r = hurry(d, err);
		reply = msg_of(MSG_PONG);
		return r ? r : link_send(d->peer, &reply, err);
	default:
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "unexpected %s",
				  msg_type_name(m->type));
	}
}

/* Wait for the peer's next message, or, as long as nothing is promised, for the daemon's end. */
static int wait_message(struct dest *d, struct link *peer, int life_fd, struct cr_err *err)
{
	struct pollfd p[2] = {{.fd = link_fd(peer), .events = POLLIN},
			      {.fd = d->state < DEST_PREPARED ? life_fd : -1, .events = POLLIN}};

	while (!link_pending(peer)) {
		int n = poll(p, 2, -1);

		if (n < 0 && errno != EINTR)
			return cr_err_sys(err, "poll");
		if (n > 0 && p[1].revents)
			return cr_err_set(err, CR_ERR_IO, ECANCELED, "this host's agent was ended");
		if (n > 0)
			break;
	}
	return 0;
}

int dest_serve(struct dest *d, struct link *peer, int life_fd, struct cr_err *err)
{
	int r = 0;

	d->peer = peer;
	link_accept_trees(peer);
	while (!r) {
		struct msg m;

		r = wait_message(d, peer, life_fd, err);
		if (!r)
			r = link_recv(peer, -1, &m, err);
		if (r && d->state == DEST_RUNNING) {
			r = 1; /* it ended after RUNNING */
			break;
		}
		if (r)
			break;
		r = dispatch(d, &m, err);
		msg_free(&m);
		if (r < 0) {
			/* what went wrong here is told there; before PREPARED the undoing follows
			 */
			struct msg e = msg_of(MSG_ERROR);
			struct cr_err ignored = {0};

			e.error = *err;
			if (link_send(peer, &e, &ignored))
				log_debug("%s", ignored.msg);
		}
	}
	d->peer = NULL;
	real_time(false);
	if (d->state == DEST_RUNNING)
		dest_close_ways(d);
	return r == 1 ? 0 : r;
}
