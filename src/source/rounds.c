#include "source/source.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "memory/donor.h"
#include "model/layout.h"
#include "model/lazy.h"
#include "wire/tree_codec.h"

enum {
	/* a round that shrank what was left by less than this fraction shows that it will not get
	   less */
	SHRINK_NUM = 4,
	SHRINK_DEN = 5,
	/* what a switch-over costs besides the pages, until one has been measured */
	BASE_DOWNTIME_US = 1500,
};

/* ---- telling the destination ---- */

static int answer_clock(struct source *s, struct cr_err *err)
{
	struct msg m = msg_of(MSG_CLOCK_REPLY);

	m.clock_reply.monotonic_ns = clock_ns(CLOCK_MONOTONIC);
	m.clock_reply.boottime_ns = clock_ns(CLOCK_BOOTTIME);
	return link_send(s->peer, &m, err);
}

/* The destination asks for our clock while it works on the tree. */
static int wait_tree_ok(struct source *s, int timeout_ms, struct msg *reply, struct cr_err *err)
{
	for (;;) {
		int r = link_recv(s->peer, timeout_ms, reply, err);

		if (r)
			return r;
		if (reply->type == MSG_TREE_OK)
			return 0;
		if (reply->type == MSG_CLOCK) {
			msg_free(reply);
			r = answer_clock(s, err);
			if (r)
				return r;
			continue;
		}
		if (reply->type == MSG_ERROR) {
			*err = reply->error;
			r = err->code ? -err->code : -EPROTO;
		} else {
			r = cr_err_set(err, CR_ERR_PEER, EPROTO,
				       "the destination answered %s to a tree",
				       msg_type_name(reply->type));
		}
		msg_free(reply);
		return r;
	}
}

/* A page that a thread of the donor's shell has its rseq area in is not what was sent: the kernel
 * writes there, rseq(2). */
static size_t add_rseq(uint64_t *v, size_t n, const struct tree *t, pid_t pid)
{
	const struct process *p = t ? tree_find_process(t, pid) : NULL;

	for (size_t i = 0; p && i < p->n_threads; i++) {
		const struct thread *th = &p->threads[i];

		if (!th->rseq_va)
			continue;
		v[n++] = th->rseq_va;
		v[n++] = th->rseq_va + th->rseq_len - 1;
	}
	return n;
}

static size_t count_threads(const struct tree *t, pid_t pid)
{
	const struct process *p = t ? tree_find_process(t, pid) : NULL;

	return p ? p->n_threads : 0;
}

/* t: the tree that the destination was told. */
static int begin_as_copy(struct source *s, const struct tree *t, const struct msg_target *tg,
			 struct cr_err *err)
{
	struct source_proc *sp = source_find(s, tg->pid);
	struct source_proc *donor = source_find(s, tg->copy_of);

	if (!tree_find_process(t, tg->pid) || !tree_find_process(t, tg->copy_of))
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "the destination says that %d begins as a copy of %d", tg->pid,
				  tg->copy_of);
	/* one that ended before it was tracked: none of its pages were sent, or will be */
	if (!sp || !sp->has_tracker || !donor || !donor->has_tracker)
		return 0;
	size_t most = count_threads(t, tg->copy_of) + count_threads(s->tree, tg->copy_of);
	_cleanup_free_ uint64_t *va = calloc(2 * most + 1, sizeof(*va));
	if (!va)
		return cr_err_oom(err);
	size_t n = add_rseq(va, 0, t, tg->copy_of);
	n = add_rseq(va, n, s->tree, tg->copy_of);
	return donor_begin(&sp->tracker, &donor->tracker, va, n, err);
}

/* What the image has of a process with that pid may be of another, which has ended, and its tracker
 * takes it for empty. Of those that are there from the start it is asked for instead. */
static int begin_in_image(struct source *s, const struct source_proc *sp, struct cr_err *err)
{
	if (!s->image || !(s->learned || s->kept.there))
		return 0;
	int r = reader_barrier(s->reader, err); /* its pages are no more under way */
	return r ? r : source_image_clear(s, sp->pid, err);
}

/* Every round looks at all pages of an object, and of what may stay behind it is asked later which
 * pages are as they were sent: digests of all that was sent are kept, 1/256 of its size. Of private
 * memory, where few pages are looked at twice, none is to have taken the room for them. */
static void init_sent(struct source *s, struct source_object *o, const struct tree *t, uint32_t i)
{
	bool may = (s->rq->opts.mode == MSG_MODE_HYBRID ||
		    s->rq->opts.no_convergence == MSG_NO_CONVERGENCE_POSTCOPY) &&
		   !s->image && source_object_may_be_lazy(s, t, i);

	sentmap_init(&o->sent, may ? &s->lazy_digests : &s->object_digests);
	o->sent.digests_at_once = true;
	o->witness = WITNESS_NONE;
}

static int take_targets(struct source *s, const struct tree *t, const struct msg_tree_ok *ok,
			struct cr_err *err)
{
	s->lazy_objects = ok->lazy_objects;
	s->lazy_huge = ok->lazy_huge;
	s->lazy_memfds = ok->lazy_memfds;
	s->lazy_huge_objects = ok->lazy_huge_objects;
	s->lazy_unlinked = ok->lazy_unlinked;
	s->lazy_clean = ok->lazy_clean;
	s->lazy_holes = ok->lazy_holes;
	for (size_t i = 0; i < ok->n_targets; i++) {
		const struct msg_target *tg = &ok->targets[i];
		struct source_proc *sp = tg->pid > 0 ? source_find(s, tg->pid) : NULL;

		int r = sp && sp->has_tracker && !sp->has_target ? begin_in_image(s, sp, err) : 0;
		if (r)
			return r;
		if (sp)
			sp->has_shell = true;
		if (sp && sp->has_tracker) {
			sp->tracker.target = tg->target;
			sp->has_target = true;
		}
		r = tg->copy_of ? begin_as_copy(s, t, tg, err) : 0;
		if (r)
			return r;
		if (tg->pid > 0 || tg->object == UINT32_MAX)
			continue;
		while (s->objects.n <= tg->object && tg->object < s->object_fds.list.n) {
			struct source_object *o = vec_push(&s->objects);

			if (!o)
				return cr_err_oom(err);
			init_sent(s, o, t, (uint32_t)s->objects.n - 1);
		}
		if (tg->object < s->objects.n)
			s->objects.v[tg->object].target = tg->target;
	}
	if (ok->hole_end) {
		s->hole_start = ok->hole_start;
		s->hole_end = ok->hole_end;
	}
	s->more_shells = ok->more;
	return 0;
}

int source_tell_tree(struct source *s, enum msg_stage stage, const struct tree *t,
		     struct cr_err *err)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	struct msg m = msg_of(MSG_TREE);
	int r = tree_encode(t, &bytes, &m.tree.tree_len, err);

	if (r)
		return r;
	m.tree.stage = stage;
	m.tree.in_turns = s->in_turns;
	m.tree.tree = bytes;
	return link_send(s->peer, &m, err);
}

int source_hear_tree(struct source *s, const struct tree *t, struct cr_err *err)
{
	struct msg reply;
	int r = wait_tree_ok(s, source_patience_ms(s, source_work_ms(t)), &reply, err);

	if (r)
		return cr_err_ctx(err, "destination");
	msg_notes_refuse(&reply.tree_ok.refusals, &s->notes);
	msg_notes_warn(&reply.tree_ok.warnings, &s->notes);
	r = take_targets(s, t, &reply.tree_ok, err);
	msg_free(&reply);
	return r;
}

int source_send_tree(struct source *s, enum msg_stage stage, const struct tree *t,
		     struct cr_err *err)
{
	int r = source_tell_tree(s, stage, t, err);

	return r ? r : source_hear_tree(s, t, err);
}

/* ---- sending memory ---- */

/* Devices write without leaving a mark. A pipe's O_DIRECT is another thing: packets, pipe(2). */
bool source_has_direct_io(const struct tree *t)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].flags & O_DIRECT && t->files[i].kind != FILE_PIPE)
			return true;
	return false;
}

static int send_process(struct source *s, const struct tree *t, const struct process *p, bool final,
			struct cr_err *err)
{
	struct source_proc *sp = source_find(s, p->pid);
	/* at the last round of pre-copy they are what the destination's shells have by now */
	int r = s->lazy || !final ? source_note_eager(sp, p, err) : 0;

	sp->tracker.lazy = s->lazy;
	sp->tracker.lazy_huge = s->lazy_huge;
	/* for good: what came in then may not be known */
	sp->tracker.always_full |= source_has_direct_io(t);
	sp->tracker.keeps = s->image;
	if (!r)
		r = tracker_round(&sp->tracker, &p->mm, s->reader, final, err);
	if (r == -ESRCH && !final) { /* it died: the next look at the tree will tell */
		reader_drop(s->reader);
		r = 0;
	}
	return !r && !final ? source_check_abort(s, err) : r;
}

/* The destination has no shell for it yet, or it has had its turn. */
static bool is_left_out(const struct source *s, const struct source_proc *sp)
{
	return s->in_turns && (!sp->has_target || sp->tracker.rounds);
}

static int send_processes(struct source *s, const struct tree *t, bool final, struct cr_err *err)
{
	_cleanup_free_ bool *done = calloc(t->n_procs + 1, sizeof(*done));
	int r = done ? 0 : cr_err_oom(err);

	/* copies first: what they share with their donors is told from what was sent of those
	 * before */
	for (int copies = 1; copies >= 0; copies--)
		for (size_t i = 0; i < t->n_procs && !r; i++) {
			const struct source_proc *sp = source_find(s, t->procs[i].pid);

			if (t->procs[i].zombie || !sp || !sp->has_tracker || done[i] ||
			    is_left_out(s, sp) || (copies && !sp->tracker.donor))
				continue;
			if (!sp->has_target)
				return cr_err_set(
				    err, CR_ERR_PEER, EPROTO,
				    "the destination has no place for the pages of %d", sp->pid);
			r = send_process(s, t, &t->procs[i], final, err);
			done[i] = true;
		}
	return r;
}

int source_send_memory(struct source *s, const struct tree *t, bool final, struct cr_err *err)
{
	/* the last pages go while the shells take their last steps */
	page_tx_set_same(s->tx, !final);
	int r = send_processes(s, t, final, err);

	if (!r)
		r = source_send_objects(s, t, final, err);
	/* what an image has to forget, before it gets anything that is newer */
	if (!r && s->image)
		r = source_tell_left(s, err);
	return r;
}

uint64_t source_pages_read(const struct source *s)
{
	struct reader_stats st;

	reader_stats(s->reader, &st);
	return st.pages_read;
}

/* ---- rounds ---- */

static int refused(const struct source *s, struct cr_err *err)
{
	const struct refusal *first = s->notes.list.v;

	if (!s->notes.list.n)
		return 0;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "%s of %d: %s", first->what, first->pid,
			  first->why);
}

int source_check_hole(const struct source *s, const struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct mm *mm = &t->procs[i].mm;
		size_t k = layout_lower(mm->vmas, mm->n_vmas, s->hole_start);

		if (k < mm->n_vmas && mm->vmas[k].start < s->hole_end)
			return cr_err_set(
			    err, CR_ERR_UNSUPPORTED, EADDRINUSE,
			    "process %d has mapped something at %#llx, which was free at the "
			    "start and is needed for the restorer; try again",
			    t->procs[i].pid, (unsigned long long)mm->vmas[k].start);
	}
	return 0;
}

/* Processes forked since the stop that armed the others, and seen in two looks: those that only
 * live for a moment are left alone. They get a stop of their own. */
static void arm_newcomers(struct source *s, const struct seizure *who)
{
	vec_foreach (q, &who->procs) {
		struct source_proc *sp = source_find(s, q->pid);
		struct cr_err err = {0};

		if (q->zombie || (sp && sp->has_tracker && sp->starttime == q->starttime))
			continue;
		bool again = s->young_pid == q->pid && s->young_start == q->starttime;
		s->young_pid = q->pid;
		s->young_start = q->starttime;
		/* what fails here, because it ended or changed, comes at the switch-over */
		if (again && source_arm_newcomer(s, q->pid, &err))
			source_event(s, "arm", err.msg);
		return;
	}
}

/* Only processes that were armed: those forked since come at the stop. */
static void keep_armed(struct source *s, struct seizure *who)
{
	size_t n = 0;

	for (size_t i = 0; i < who->procs.n; i++) {
		struct seized_proc q = who->procs.v[i];
		struct source_proc *sp = source_find(s, q.pid);

		if (sp && sp->starttime == q.starttime && (sp->has_tracker || q.zombie))
			who->procs.v[n++] = q;
		else
			vec_done(&q.tasks);
	}
	who->procs.n = n;
}

/* What changed beside the pages goes first: pages are placed into the mappings that it makes. */
int source_follow_structure(struct source *s, struct cr_err *err)
{
	struct seize_request rq;
	struct seizure *who = NULL;
	struct tree *t = NULL;
	size_t noted = s->notes.list.n;

	s->notes.passing = false;
	source_request(s, &rq);
	int r = seizure_preview(&who, &rq, &s->notes, err);
	if (r)
		return r;
	arm_newcomers(s, who);
	keep_armed(s, who);
	r = source_capture(s, who, false, &t, err);
	seizure_forget(who);
	/* It changes under our eyes: the next round, or the stop, sees it. What was to be refused
	 * of it may be none: two processes that are just ending have the same tables, none. */
	if (r == -EAGAIN || r == -ESRCH || (!r && s->notes.passing)) {
		s->notes.list.n = noted;
		tree_free(t);
		return 0;
	}
	if (r)
		return r;
	r = source_check_hole(s, t, err);
	if (!r)
		r = refused(s, err);
	if (!r && source_structure_differs(s->tree, t)) {
		r = source_carry_look(s, t, false, err);
		if (!r)
			r = source_carry_ahead(s, err);
		if (!r)
			r = source_send_tree(s, MSG_STAGE_MEND, t, err);
	}
	if (r) {
		tree_free(t);
		return r;
	}
	source_forget_ended(s, t);
	tree_free(s->tree);
	s->tree = t;
	vec_foreach (n, &s->newcomers)
		tree_free(*n);
	s->newcomers.n = 0;
	return 0;
}

struct round_result {
	uint64_t written, sent, wire, us;
};

static uint64_t pages_written(const struct source *s)
{
	uint64_t n = 0;

	vec_foreach (spp, &s->procs)
		if ((*spp)->has_tracker)
			n += (*spp)->tracker.pages_written;
	return n;
}

/* Where it has to be sent at the stop. */
static uint64_t shared_written(const struct source *s)
{
	return s->rq->opts.mode == MSG_MODE_PRECOPY ? source_objects_written(s) : 0;
}

/* The first round, as long as the destination waits for pages of some processes before it makes
 * others as copies of them, as fork(2) did here: they then share what they share here. */
static int send_in_turns(struct source *s, struct cr_err *err)
{
	int r = 0;

	page_tx_set_same(s->tx, true);
	while (s->more_shells && !r) {
		r = send_processes(s, s->tree, false, err);
		if (!r)
			r = reader_barrier(s->reader, err);
		if (!r)
			r = page_tx_flush(s->tx, NULL, err);
		if (!r)
			r = source_send_tree(s, MSG_STAGE_PREPARE, s->tree, err);
		if (!r)
			r = refused(s, err);
	}
	return r;
}

static int one_round(struct source *s, struct round_result *res, struct cr_err *err)
{
	struct page_tx_stats before, after;
	uint64_t t0 = now_us();

	page_tx_stats(s->tx, &before);
	vec_foreach (spp, &s->procs) /* those that ended are in no round */
		(*spp)->tracker.pages_written = 0;
	vec_foreach (o, &s->objects) /* nor those that stay behind */
		o->written = 0;
	int r = s->in_turns ? send_in_turns(s, err) : 0;
	if (!r)
		r = source_send_memory(s, s->tree, false, err);
	s->in_turns = false;
	if (!r)
		r = page_tx_flush(s->tx, NULL, err);
	page_tx_stats(s->tx, &after);
	*res = (struct round_result){
	    .written = pages_written(s) + shared_written(s),
	    .sent = after.data_pages - before.data_pages,
	    .wire = after.wire_bytes - before.wire_bytes,
	    .us = now_us() - t0,
	};
	return r;
}

int source_quiet_round(struct source *s, uint64_t *ret_written, struct cr_err *err)
{
	vec_foreach (spp, &s->procs)
		(*spp)->tracker.pages_written = 0;
	int r = send_processes(s, s->tree, false, err);

	*ret_written = pages_written(s);
	return r ? r : page_tx_flush(s->tx, NULL, err);
}

static uint64_t predict(const struct round_result *res)
{
	/* what was written during this round would have to go at the stop */
	uint64_t per_page = res->sent ? res->us * 1000 / res->sent : 2000;

	if (per_page > 20000)
		per_page = 20000; /* a round of few pages costs its round trip, not its pages */
	return BASE_DOWNTIME_US + res->written * per_page / 1000;
}

static void report_round(struct source *s, uint32_t n, const struct round_result *res)
{
	struct msg m = msg_of(MSG_ROUND);
	struct cr_err ignored = {0};

	m.round = (struct msg_round){
	    .round = n,
	    .pages_written = res->written,
	    .pages_sent = res->sent,
	    .bytes_wire = res->wire,
	    .duration_us = res->us,
	    .rate = res->us ? res->wire * 1000000 / res->us : 0,
	    .predicted_downtime_us = predict(res),
	};
	if (link_send(s->client, &m, &ignored))
		s->aborted = true;
}

/* Enough? Either little is left, or it does not get less. */
static bool converged(const struct source *s, uint32_t n, const struct round_result *last,
		      const struct round_result *res)
{
	if (n >= s->rq->opts.max_rounds)
		return true;
	if (n < 2)
		return false;
	bool shrinking = res->written * SHRINK_DEN < last->written * SHRINK_NUM;
	if (res->written < 64)
		return true;
	return !shrinking && (n >= 4 || predict(res) <= s->rq->opts.downtime_limit_us);
}

static unsigned long long mb_per_s(uint64_t pages, uint64_t us)
{
	return us ? pages * CR_PAGE_SIZE / us : 0;
}

/* The limit is what to wait for while it can be had, no promise: nobody shall be surprised. */
static void warn_downtime(struct source *s, const struct round_result *res)
{
	uint64_t predicted = predict(res), limit = s->rq->opts.downtime_limit_us;
	struct refusals notes = {0};

	if (predicted <= limit)
		return;
	refuse_warn(&notes, 0, "downtime",
		    "%llu.%03llu ms are predicted, the limit is %llu.%03llu ms: pre-copy does not "
		    "converge, %llu MB/s are written, %llu MB/s are sent",
		    (unsigned long long)predicted / 1000, (unsigned long long)predicted % 1000,
		    (unsigned long long)limit / 1000, (unsigned long long)limit % 1000,
		    mb_per_s(res->written, res->us), mb_per_s(res->sent, res->us));
	source_send_notes(s, MSG_WARNING, notes.warnings.v, notes.warnings.n);
	refusals_done(&notes);
}

int source_one_round(struct source *s, uint32_t n, uint64_t *predicted_us, struct cr_err *err)
{
	struct round_result res = {0};
	int r = one_round(s, &res, err);

	if (!r)
		report_round(s, n, &res);
	if (!r && predicted_us)
		*predicted_us = predict(&res);
	return r;
}

static int abort_for_rates(const struct round_result *res, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_INPUT, ECANCELED,
			  "pre-copy does not converge: %llu MB/s are written, %llu MB/s are sent "
			  "(--on-no-convergence abort)",
			  mb_per_s(res->written, res->us), mb_per_s(res->sent, res->us));
}

/* What else there is to do once more rounds would not help. */
static int not_converged(struct source *s, uint32_t n, const struct round_result *res,
			 struct cr_err *err)
{
	if (s->rq->opts.mode == MSG_MODE_HYBRID)
		return source_drop_rounds(s, n + 1, err);
	if (predict(res) <= s->rq->opts.downtime_limit_us)
		return 0;
	warn_downtime(s, res);
	switch (s->rq->opts.no_convergence) {
	case MSG_NO_CONVERGENCE_POSTCOPY:
		return source_drop_rounds(s, n + 1, err);
	case MSG_NO_CONVERGENCE_THROTTLE:
		return source_throttle(s, n + 1, err);
	case MSG_NO_CONVERGENCE_ABORT:
		return abort_for_rates(res, err);
	default:
		return 0;
	}
}

/* In hybrid mode a round that does not shrink what is left has shown all that rounds can. */
static bool hybrid_enough(const struct source *s, uint32_t n, const struct round_result *last,
			  const struct round_result *res)
{
	return s->rq->opts.mode == MSG_MODE_HYBRID && n >= 2 &&
	       res->written * SHRINK_DEN >= last->written * SHRINK_NUM;
}

/* The first round is nearly all of the work, and nobody waits for it: it gets what CPU time the
 * tasks leave. Those that follow do not: the later they end, the more has been written. Who dumps
 * waits for the whole. */
static int first_round(struct source *s, struct round_result *res, struct cr_err *err)
{
	background_enter(&s->background, s->image ? BACKGROUND_LESS : BACKGROUND_IDLE);
	int r = one_round(s, res, err);

	background_leave(&s->background);
	return r;
}

int source_rounds(struct source *s, struct cr_err *err)
{
	struct round_result last = {0}, res = {0};

	if (s->rq->opts.mode == MSG_MODE_POSTCOPY)
		return source_drop_rounds(s, 1, err);
	for (uint32_t n = 1;; n++) {
		int r = source_check_abort(s, err);

		if (!r && n > 1)
			r = source_follow_structure(s, err);
		if (!r)
			r = n == 1 ? first_round(s, &res, err) : one_round(s, &res, err);
		if (r)
			return cr_err_ctx(err, "round %u", n);
		report_round(s, n, &res);
		if (converged(s, n, &last, &res) || hybrid_enough(s, n, &last, &res))
			return not_converged(s, n, &res, err);
		last = res;
	}
}
