/* What cr-migrate asks about the migrations of this host: which there are, how one stands; and what
 * the user decides about one. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include "agent/agent.h"
#include "dest/lazy.h"

/* cr-migrate waits 10 s for all of it */
enum { STATUS_MAX = 64, LOCK_TIMEOUT_MS = 4000, ASK_TIMEOUT_MS = 2000 };

/* ---- status ---- */

struct listing {
	const struct agent_config *cfg;
	struct msg_status v[STATUS_MAX];
	struct journal kept[STATUS_MAX];
	size_t n;
};

static void add_losses(const struct lazy_stats *st, struct msg_status *s)
{
	struct msg_loss *v = calloc(LAZY_LOSSES, sizeof(*v));

	s->losses = v;
	for (uint32_t i = 0; v && i < st->n_losses && i < LAZY_LOSSES; i++)
		v[s->n_losses++] = (struct msg_loss){st->losses[i].pid, st->losses[i].start,
						     st->losses[i].end, st->losses[i].pages};
}

/* How far the fetching of pages is, or what has become of it. */
static void add_postcopy(const struct listing *l, const struct journal *k, struct msg_status *s)
{
	char path[512];
	struct lazy_stats st;
	uint64_t *h;

	lazy_stats_path(path, sizeof(path), l->cfg->state_dir, k->id);
	if (!k->lazy || (k->state != JOURNAL_COMMIT && k->state != JOURNAL_DONE) ||
	    !lazy_stats_read(path, &st))
		return;
	if (st.lost)
		add_losses(&st, s);
	s->postcopying = true;
	s->pages_left = st.left;
	lazy_stats_fill(&st, &s->postcopy);
	s->histogram = h = calloc(MSG_HISTOGRAM, sizeof(*h));
	for (unsigned int i = 0; h && i < LAZY_BUCKETS; i++) {
		uint64_t us = lazy_bucket_us(i);
		unsigned int log = us ? 64 - (unsigned int)__builtin_clzll(us) : 0;

		h[log < MSG_HISTOGRAM ? log : MSG_HISTOGRAM - 1] += st.buckets[i];
	}
}

static int list_one(struct journal *j, void *arg)
{
	struct listing *l = arg;

	if (l->n == STATUS_MAX)
		return 0;
	struct journal *k = &l->kept[l->n];
	*k = journal_take(j);
	struct msg_status *s = &l->v[l->n++];
	pid_t *pids = calloc(k->pids.n + 1, sizeof(*pids));
	*s = (struct msg_status){.role = k->role,
				 .state = journal_state_name(k->state),
				 .peer = k->peer,
				 .since_sec = (uint64_t)k->since_sec,
				 .pids = pids};
	if (k->lazy && k->state == JOURNAL_COMMIT)
		s->state = strcmp(k->role, "source") ? "fetching pages" : "serving pages";
	add_postcopy(l, k, s);
	if (!mig_id_parse(k->id, &s->id))
		l->n--;
	for (size_t i = 0; pids && i < k->pids.n; i++)
		pids[s->n_pids++] = k->pids.v[i].pid;
	return 0;
}

bool answer_status(const struct agent_config *cfg, struct link *link)
{
	struct listing *l = calloc(1, sizeof(*l));
	struct msg m = msg_of(MSG_STATUS_LIST);
	struct cr_err err = {0};

	if (!l)
		return false;
	l->cfg = cfg;
	int r = journal_each(cfg->state_dir, list_one, l, journal_warn, &err);
	m.status_list = (struct msg_status_list){l->v, l->n};
	r = r ? conn_send_error(link, &err) : link_send(link, &m, &err);
	for (size_t i = 0; i < l->n; i++) {
		free((void *)l->v[i].pids);
		free((void *)l->v[i].histogram);
		free((void *)l->v[i].losses);
		journal_done(&l->kept[i]);
	}
	free(l);
	return !r;
}

struct pick { /* the journal that is meant */
	const struct mig_id *id;
	struct journal found;
	unsigned int n;
};

static int pick_one(struct journal *j, void *arg)
{
	struct pick *p = arg;
	struct mig_id id;

	if (mig_id_is_zero(p->id) && j->state == JOURNAL_DONE)
		return 0; /* kept to tell others, not open */
	if (!mig_id_is_zero(p->id) && (!mig_id_parse(j->id, &id) || !mig_id_equal(&id, p->id)))
		return 0;
	if (p->n++ == 0)
		p->found = journal_take(j);
	return 0;
}

/* ---- resolve ---- */

/* Nobody works on it from here on but us. */
static int claim(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	const char *dir = cfg->state_dir;
	struct journal_holder h = {0};

	if (journal_is_held(dir, j->id, j->role, &h)) {
		if (!strcmp(h.what, HOLDER_WORKS))
			return cr_err_set(
			    err, CR_ERR_INPUT, EBUSY,
			    "the migration is still being worked on; end its cr-migrate first");
		/* its tasks are held by their cgroup, and survive it */
		if (h.pid && !strcmp(h.what, HOLDER_WAITS) && j->state == JOURNAL_PREPARED)
			kill(h.pid, SIGTERM);
	}
	int r = journal_lock(dir, j->id, j->role, HOLDER_SETTLES, LOCK_TIMEOUT_MS, err);
	if (r < 0)
		return r;
	struct journal now;
	r = journal_read(dir, j->id, j->role, &now, err);
	if (r)
		return cr_err_ctx(err, "it was settled in this moment");
	journal_done(j);
	*j = now;
	return 0;
}

/* The destination may run the tasks, for all that this host knows: it has to say that it does not,
 * and that it never will. */
static int ask_before_abort(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	struct msg m = {0};
	int r = settle_ask_peer(cfg, j, MSG_QUERY, MSG_STATE, ASK_TIMEOUT_MS, &m, err);

	if (settle_peer_forgot(r, err))
		return 0;
	if (r)
		return cr_err_ctx(
		    err,
		    "the destination was told to run the tasks, and cannot be asked whether it "
		    "does; use `resolve --abort` or `--take-over` there first");
	enum msg_peer_state s = m.state.state;
	msg_free(&m);
	if (s == MSG_STATE_UNKNOWN || s == MSG_STATE_ABORTED)
		return 0;
	if (s == MSG_STATE_RUNNING || s == MSG_STATE_COMMITTED)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "the destination runs the tasks: --commit ends those here");
	r = settle_ask_peer(cfg, j, MSG_ABORT, MSG_ABORTED, ASK_TIMEOUT_MS, NULL, err);
	return r ? cr_err_ctx(err, "the destination may run the tasks, and does not give them up")
		 : 0;
}

static int may_resolve_source(const struct agent_config *cfg, struct journal *j,
			      enum msg_action action, struct cr_err *err)
{
	if (action == MSG_ACTION_TAKE_OVER)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "--take-over is for the destination: %s is the source",
				  cfg->host);
	if (action == MSG_ACTION_COMMIT)
		return j->state == JOURNAL_COMMIT
			   ? 0
			   : cr_err_set(
				 err, CR_ERR_INPUT, EINVAL,
				 "the destination was never told to run the tasks: use --abort");
	return j->state == JOURNAL_COMMIT ? ask_before_abort(cfg, j, err) : 0;
}

bool answer_resolve(const struct agent_config *cfg, struct link *link, const struct msg_resolve *rq)
{
	struct pick p = {.id = &rq->id};
	struct msg m = msg_of(MSG_RESOLVED);
	struct cr_err err = {0};
	char text[300];
	int r = journal_each(cfg->state_dir, pick_one, &p, journal_warn, &err);

	if (!r && p.n != 1)
		r = cr_err_set(&err, CR_ERR_INPUT, ENOENT,
			       p.n ? "several migrations are open: name the one that is meant"
				   : "no such migration is open on this host");
	if (!r)
		r = claim(cfg, &p.found, &err);
	if (!r && !strcmp(p.found.role, "source"))
		r = may_resolve_source(cfg, &p.found, rq->action, &err);
	if (!r)
		r = rq->action == MSG_ACTION_ABORT
			? settle_abort(cfg, &p.found, text, sizeof(text), &err)
			: settle_commit(cfg, &p.found, text, sizeof(text), &err);
	journal_done(&p.found);
	if (r)
		return !conn_send_error(link, &err);
	m.resolved.text = text;
	return !link_send(link, &m, &err);
}

/* ---- query ---- */

enum msg_peer_state peer_state_of(enum journal_state s)
{
	static const enum msg_peer_state map[] = {
	    [JOURNAL_NONE] = MSG_STATE_UNKNOWN,      [JOURNAL_PREPARING] = MSG_STATE_PREPARING,
	    [JOURNAL_PREPARED] = MSG_STATE_PREPARED, [JOURNAL_COMMIT] = MSG_STATE_COMMITTED,
	    [JOURNAL_DONE] = MSG_STATE_RUNNING,      [JOURNAL_ABORTED] = MSG_STATE_ABORTED,
	};

	return map[s];
}

/* It lost what was missing, and only sees to it that it stays lost. */
static bool has_lost_the_source(const struct agent_config *cfg, const struct journal *j)
{
	char path[512];
	struct lazy_stats st;

	lazy_stats_path(path, sizeof(path), cfg->state_dir, j->id);
	return j->lazy && j->state == JOURNAL_COMMIT && lazy_stats_read(path, &st) && st.lost &&
	       !st.left;
}

bool answer_query(const struct agent_config *cfg, struct link *link, const struct msg_query *q)
{
	struct pick p = {.id = &q->id};
	struct msg m = msg_of(MSG_STATE);
	struct cr_err err = {0};

	if (journal_each(cfg->state_dir, pick_one, &p, journal_warn, &err))
		return !conn_send_error(link, &err);
	m.state.state = p.n ? peer_state_of(p.found.state) : MSG_STATE_UNKNOWN;
	if (p.n && has_lost_the_source(cfg, &p.found))
		m.state.state = MSG_STATE_RUNNING;
	journal_done(&p.found);
	return !link_send(link, &m, &err);
}
