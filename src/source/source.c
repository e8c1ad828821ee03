#include "source/source.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "kernel/netcap.h"
#include "resource/resource.h"

enum {
	CONNECT_TIMEOUT_MS = 5000,
	ABORT_TIMEOUT_MS = 5000,
	ANSWER_TIMEOUT_MS = 30000,
	STOP_TIMEOUT_MS = 5000,   /* the same while the tasks stand still */
	DISK_TIMEOUT_MS = 120000, /* more than that for a receiver that writes to disk */
	WORK_MS_PER_TASK = 5,
	LOOK_ATTEMPTS = 10,
	PASSING_ATTEMPTS = 40,           /* 0.8 s in all */
	DIGEST_BYTES = 12 * 1024 * 1024, /* for telling unchanged pages: 3 GiB of rewritten pages */
	OBJECT_DIGEST_BYTES = 512 * 1024 * 1024, /* likewise, of 128 GiB of shared memory */
};

void source_init(struct source *s, const struct source_env *env, const struct msg_migrate *rq,
		 struct link *client)
{
	*s = (struct source){.env = env,
			     .openings = -1,
			     .digest_budget = DIGEST_BYTES,
			     .object_digests = OBJECT_DIGEST_BYTES,
			     .lazy_digests = SIZE_MAX / 2};
	source_take_request(s, rq, client);
}

void source_take_request(struct source *s, const struct msg_migrate *rq, struct link *client)
{
	s->rq = rq;
	s->client = client;
	s->started_us = now_us();
	mig_id_format(&rq->id, s->journal.id);
	for (size_t i = 0; i < sizeof(rq->token.b); i++)
		snprintf(s->journal.token + 2 * i, 3, "%02x", rq->token.b[i]);
	snprintf(s->journal.role, sizeof(s->journal.role), "source");
	snprintf(s->journal.peer, sizeof(s->journal.peer), "%s", rq->peer_address);
	s->journal.since_sec = (int64_t)(clock_ns(CLOCK_REALTIME) / 1000000000ull);
}

void source_done(struct source *s)
{
	vec_done(&s->recent);
	serve_child_stop(&s->page_server);
	vec_foreach (spp, &s->procs) {
		if ((*spp)->has_tracker)
			tracker_done(&(*spp)->tracker);
		close_fdp(&(*spp)->pidfd);
		free(*spp);
	}
	vec_done(&s->procs);
	source_objects_done(s);
	object_fds_done(&s->object_fds);
	vec_done(&s->huge_forked.list);
	source_carry_done(s);
	reader_free(s->reader);
	page_tx_free(s->tx);
	link_free(s->peer);
	net_lock_free(s->net_lock);
	netcap_free(s->packets);
	free(s->heard);
	free(s->waiting);
	tree_free(s->tree);
	tree_free(s->checked);
	vec_foreach (t, &s->newcomers)
		tree_free(*t);
	vec_done(&s->newcomers);
	refusals_done(&s->notes);
	journal_done(&s->journal);
}

void source_event(struct source *s, const char *name, const char *text)
{
	struct msg m = msg_of(MSG_EVENT);
	struct cr_err ignored = {0};

	m.event = (struct msg_event){.name = name, .text = text};
	if (link_send(s->client, &m, &ignored))
		s->aborted = true;
}

int source_check_abort(struct source *s, struct cr_err *err)
{
	struct msg m;
	struct cr_err e = {0};

	struct pollfd life = {.fd = s->env->life_fd, .events = POLLIN};

	if (s->aborted)
		return cr_err_set(err, CR_ERR_PEER, ECANCELED, "aborted");
	if (poll(&life, 1, 0) > 0) {
		s->aborted = true;
		return cr_err_set(err, CR_ERR_PEER, ECANCELED, "this host's agent was ended");
	}
	int r = link_recv(s->client, 0, &m, &e);
	if (r == -ETIMEDOUT)
		return 0;
	s->aborted = true;
	if (r)
		return cr_err_set(err, CR_ERR_PEER, ECANCELED, "cr-migrate went away (%s)", e.msg);
	bool asked = m.type == MSG_ABORT;
	msg_free(&m);
	return cr_err_set(err, CR_ERR_INPUT, ECANCELED,
			  asked ? "aborted by the user" : "unexpected message from cr-migrate");
}

static bool stopped_undecided(const struct source *s)
{
	return s->seizure && !s->committed;
}

int source_patience_ms(const struct source *s, uint64_t work_ms)
{
	uint64_t ms = (stopped_undecided(s) && !s->image ? STOP_TIMEOUT_MS : ANSWER_TIMEOUT_MS) +
		      (s->image ? DISK_TIMEOUT_MS : 0) + work_ms;

	return ms < INT32_MAX ? (int)ms : INT32_MAX;
}

uint64_t source_work_ms(const struct tree *t)
{
	return (t->n_procs + tree_count_threads(t)) * WORK_MS_PER_TASK;
}

/* At the stop, pages have to move: many may take their time, a destination that takes none may not.
 */
static bool pages_stall(struct source *s)
{
	struct page_tx_stats st;
	uint64_t now = now_us();

	page_tx_stats(s->tx, &st);
	/* not asked for a while: something else was being done */
	if (st.wire_bytes != s->moved_bytes || now - s->looked_us > STOP_TIMEOUT_MS * 1000ull / 5)
		s->moved_us = now;
	s->moved_bytes = st.wire_bytes;
	s->looked_us = now;
	s->stalled = now - s->moved_us > (s->image ? DISK_TIMEOUT_MS : STOP_TIMEOUT_MS) * 1000ull;
	return s->stalled;
}

static int poll_abort(void *arg)
{
	struct source *s = arg;
	struct cr_err ignored = {0};

	background_check(&s->background);
	return !s->committed &&
	       (source_check_abort(s, &ignored) || (stopped_undecided(s) && pages_stall(s)));
}

/* ---- the steps ---- */

/* A link that has just come up says for a second or so that there is no route: neighbours that did
 * not answer before are not asked again at once, arp(7). */
static int connect_patiently(struct source *s, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = 100 * 1000 * 1000};
	uint64_t deadline = now_us() + CONNECT_TIMEOUT_MS * 1000ull;

	for (;;) {
		int r = link_connect(&s->peer, s->rq->peer_address, CONNECT_TIMEOUT_MS, err);

		if (r != -EHOSTUNREACH || now_us() > deadline)
			return r;
		r = source_check_abort(s, err);
		if (r)
			return r;
		nanosleep(&pause, NULL);
	}
}

static int connect_peer(struct source *s, struct cr_err *err)
{
	struct msg_hello hello = {
	    .version = MSG_VERSION,
	    .role = MSG_ROLE_PEER,
	    .id = s->rq->id,
	    .token = s->rq->token,
	    .host = s->env->host,
	};
	struct msg reply;
	int r = connect_patiently(s, err);

	if (!r)
		r = link_hello(s->peer, &hello, CONNECT_TIMEOUT_MS, &reply, err);
	if (r)
		return cr_err_ctx(err, "reaching the destination's agent at %s",
				  s->rq->peer_address);
	msg_free(&reply);
	link_set_send_timeout(s->peer, STOP_TIMEOUT_MS);
	if (!s->image)
		return 0;
	r = source_image_begin(s, err);
	if (!r)
		source_check_kept(s);
	return r;
}

static int connect_pages(struct source *s, struct cr_err *err)
{
	static const enum page_tx_compress compress[] = {
	    [MSG_COMPRESS_AUTO] = PAGE_TX_COMPRESS_AUTO,
	    [MSG_COMPRESS_LZ4] = PAGE_TX_COMPRESS_LZ4,
	    [MSG_COMPRESS_NONE] = PAGE_TX_COMPRESS_NONE,
	};
	struct page_tx_opts o = {
	    .address = s->rq->pages_address,
	    .id = s->rq->id.b,
	    .token = s->rq->token.b,
	    .streams = s->rq->opts.streams,
	    .compress = compress[s->rq->opts.compress],
	    .max_bandwidth_bytes_s = s->rq->opts.max_bandwidth,
	    .poll_cb = poll_abort,
	    .poll_arg = s,
	};
	int r = page_tx_open(&s->tx, &o, err);

	return r ? cr_err_ctx(err, "reaching the page-server") : reader_new(&s->reader, s->tx, err);
}

void source_send_notes(struct source *s, enum msg_type type, const struct refusal *list, size_t n)
{
	struct msg m = msg_of(type);
	struct cr_err ignored = {0};

	if (!n || msg_notes_from(list, n, s->env->host, &m.refused, &ignored))
		return;
	if (link_send(s->client, &m, &ignored))
		s->aborted = true;
	free(m.refused.v);
}

/* Those that the look before has seen as well. */
static void keep_older(struct seizure *who, const struct seizure *before)
{
	size_t n = 0;

	for (size_t i = 0; i < who->procs.n; i++) {
		struct seized_proc q = who->procs.v[i];
		bool older = false;

		vec_foreach (b, &before->procs)
			older |= b->pid == q.pid && b->starttime == q.starttime;
		if (older)
			who->procs.v[n++] = q;
		else
			vec_done(&q.tasks);
	}
	who->procs.n = n;
}

/* The tree as it runs. Processes come and go: what changed under our eyes is looked at again, then
 * without those that have just come. They are seen to when all stand still. */
static int look(struct source *s, struct tree **ret, struct cr_err *err)
{
	struct seizure *before = NULL;
	int r = -EAGAIN;

	for (int i = 0; s->notes.passing ? i < PASSING_ATTEMPTS
					 : i < LOOK_ATTEMPTS && (r == -EAGAIN || r == -ESRCH);
	     i++) {
		const struct timespec pause = {.tv_nsec = i * 1000000l};

		nanosleep(&pause, NULL);
		struct seize_request rq;
		struct seizure *who = NULL;

		tree_free(*ret);
		*ret = NULL;
		refusals_done(&s->notes);
		cr_err_clear(err);
		source_request(s, &rq);
		r = seizure_preview(&who, &rq, &s->notes, err);
		if (!r && before)
			keep_older(who, before);
		if (!r)
			r = source_capture(s, who, false, ret, err);
		seizure_forget(before);
		before = who;
	}
	seizure_forget(before);
	return r;
}

/* What was found that cannot move ends the migration as refused, whole list and all. */
static int refuse_notes(struct source *s, struct cr_err *err)
{
	if (!s->notes.list.n)
		return 0;
	source_send_notes(s, MSG_REFUSED, s->notes.list.v, s->notes.list.n);
	s->done.outcome = MSG_OUTCOME_REFUSED;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "%zu thing%s cannot be moved",
			  s->notes.list.n, s->notes.list.n == 1 ? "" : "s");
}

/* The destination's refusals come in the same list. A tree in which things are missing that this
 * side refuses may be none that can be sent: then this side's have to do. */
static int check_there(struct source *s, struct tree *t, struct cr_err *err)
{
	struct cr_err ignored = {0};
	int r = source_carry_look(s, t, false, err);

	if (r)
		return r;
	if (!s->notes.list.n)
		return source_send_tree(s, MSG_STAGE_CHECK, t, err);
	if (source_send_tree(s, MSG_STAGE_CHECK, t, &ignored))
		log_debug("asking the destination all the same: %s", ignored.msg);
	return 0;
}

/* Both sides look at everything before anything is touched. */
static int check(struct source *s, struct cr_err *err)
{
	struct tree *t = NULL;

	int r = look(s, &t, err);
	if (!r)
		r = source_check_addresses(s, err);
	if (!r)
		r = check_there(s, t, err);
	if (r) {
		tree_free(t);
		return r;
	}
	source_warn_unowned(s, t);
	s->checked = t;
	source_send_notes(s, MSG_WARNING, s->notes.warnings.v, s->notes.warnings.n);
	return refuse_notes(s, err);
}

/* The only stop before the switch-over: a tracker for every process. One that has executed another
 * program since it was looked at is not what it was: then all of them are looked at again. */
static int arm(struct source *s, struct cr_err *err)
{
	source_event(s, "arm",
		     s->kept.there ? "tracked since the last one; stopping only what is new"
				   : "one short stop to start tracking writes");
	int r = source_arm(s, s->checked, err);

	for (int i = 1; i < LOOK_ATTEMPTS && r == -ESTALE && !s->kept.there; i++) {
		tree_free(s->checked);
		s->checked = NULL;
		source_forget_all(s);
		cr_err_clear(err);
		r = check(s, err);
		if (!r)
			r = source_arm(s, s->checked, err);
	}
	if (r)
		return r;
	tree_free(s->tree);
	s->tree = take_ptr(s->checked);
	return 0;
}

int source_tell_abort(struct source *s)
{
	struct msg m = msg_of(MSG_ABORT), reply;
	struct cr_err ignored = {0};

	if (!s->peer || s->abort_told)
		return 0;
	int r = link_call(s->peer, &m, MSG_ABORTED, ABORT_TIMEOUT_MS, &reply, &ignored);
	if (!r)
		msg_free(&reply);
	s->abort_told = !r;
	/* before it was asked to prepare, it undoes by itself when the link ends */
	return s->asked_to_prepare ? r : 0;
}

/* The journal goes when nothing is left to be told to anybody. */
static void close_journal(struct source *s, bool told)
{
	struct cr_err err = {0};
	int r = told ? journal_remove(s->env->state_dir, &s->journal, &err)
		     : source_journal(s, JOURNAL_ABORTED, &err);

	if (r)
		source_event(s, "warning", err.msg);
}

/* Found during the copy or at the switch-over, where the tasks have been let go again by now. */
static int refuse_late(struct source *s, int r, struct cr_err *err)
{
	if (s->done.outcome == MSG_OUTCOME_REFUSED || err->kind != CR_ERR_UNSUPPORTED ||
	    err->code != ENOTSUP)
		return r;
	if (!s->notes.list.n)
		refuse(&s->notes, err->pid, "the tasks", "%s", err->msg);
	return refuse_notes(s, err);
}

static int end_pre_dump(struct source *s, struct cr_err *err)
{
	int r = source_image_keep(s, err);

	return r ? r : source_hook(s, MSG_HOOK_POST_DUMP, false, err);
}

static int run(struct source *s, struct cr_err *err)
{
	int r = source_journal(s, JOURNAL_PREPARING, err);

	if (!r)
		r = connect_peer(s, err);
	if (!r) {
		source_event(s, "check", "looking at the tasks and at the destination");
		r = check(s, err);
	}
	if (!r)
		r = connect_pages(s, err);
	if (!r)
		r = source_hook(s, MSG_HOOK_PRE_DUMP, false, err);
	if (!r)
		r = source_carry_ahead(s, err);
	if (!r)
		r = arm(s, err);
	if (!r) /* some things show only from inside the tasks */
		r = refuse_notes(s, err);
	if (!r && !s->image)
		r = source_hook(s, MSG_HOOK_PRE_RESTORE, false, err);
	if (!r) {
		source_event(s, "prepare",
			     s->image ? "telling the receiver what there is"
				      : "building the shells at the destination");
		s->in_turns =
		    !s->image && s->tree->n_procs > 1 && s->rq->opts.mode != MSG_MODE_POSTCOPY;
		r = source_send_tree(s, MSG_STAGE_PREPARE, s->tree, err);
	}
	if (!r)
		r = refuse_notes(s, err);
	if (!r && s->image && !s->kept.there)
		r = source_image_learn(s, err);
	if (!r) {
		source_event(s, "pre-copy", "copying memory beside the running tasks");
		r = source_rounds(s, err);
	}
	if (!r)
		r = s->image && s->image->pre_dump ? end_pre_dump(s, err)
						   : source_switch_over(s, err);
	if (r && s->stalled)
		r = cr_err_set(err, CR_ERR_PEER, ETIMEDOUT,
			       "the destination took no pages for %d s while "
			       "the tasks were stopped",
			       STOP_TIMEOUT_MS / 1000);
	return r && !s->committed ? refuse_late(s, r, err) : r;
}

static uint64_t memory_bytes(const struct source *s)
{
	struct reader_stats st = {0};

	if (s->reader)
		reader_stats(s->reader, &st);
	return (st.pages_sent + st.pages_same) * CR_PAGE_SIZE;
}

void source_run(struct source *s)
{
	struct cr_err err = {0};

	background_never(); /* but in the first round */
	int r = run(s, &err);
	bool told = s->committed || !source_tell_abort(s);

	if (r && s->committed)
		s->done.outcome = MSG_OUTCOME_IN_DOUBT;
	else if (r && s->done.outcome != MSG_OUTCOME_REFUSED)
		s->done.outcome = MSG_OUTCOME_FAILED;
	else if (!r)
		s->done.outcome = s->committed ? MSG_OUTCOME_MIGRATED : MSG_OUTCOME_REHEARSED;
	if (r)
		s->done.error = err;
	if (!(r && s->committed))
		close_journal(s, told);
	s->done.total_us = now_us() - s->started_us;
	s->done.memory_bytes = memory_bytes(s);
	s->done.stops = s->stops;
	s->done.longest_stop_us = s->longest_stop_us;
}
