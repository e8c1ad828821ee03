/* One connection: HELLO, then what the peer wants. Runs in a process of its own. */
#include <stdio.h>
#include <string.h>
#include "agent/agent.h"
#include "agent/pass.h"
#include "base/log.h"

enum { HELLO_TIMEOUT_MS = 5000, STRANGER_BYTES = 4096, REQUEST_TIMEOUT_MS = 30000, STATUS_MAX = 64 };

void dest_socket_path(const struct agent_config *cfg, const char *id, char *buf, size_t n)
{
	snprintf(buf, n, "%s/%.12s.sock", cfg->state_dir, id);
}

static int send_error(struct link *l, const struct cr_err *e)
{
	struct msg m = msg_of(MSG_ERROR);
	struct cr_err ignored = {0};

	m.error = *e;
	return link_send(l, &m, &ignored);
}

static int greet(const struct agent_config *cfg, struct link *l, struct msg *hello, struct cr_err *err)
{
	struct msg mine = msg_of(MSG_HELLO);
	int r = link_recv(l, HELLO_TIMEOUT_MS, hello, err);

	if (r)
		return r;
	if (hello->type != MSG_HELLO)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%s before HELLO", msg_type_name(hello->type));
	if (hello->hello.role == MSG_ROLE_PEER)
		return 0; /* answered by whoever has the migration */
	mine.hello = (struct msg_hello){.version = MSG_VERSION, .role = MSG_ROLE_AGENT,
					.id = hello->hello.id, .host = cfg->host};
	return link_send(l, &mine, err);
}

/* ---- status and resolve ---- */

struct listing {
	const struct agent_config *cfg;
	struct msg_status v[STATUS_MAX];
	struct journal kept[STATUS_MAX];
	size_t n;
};

static int list_one(struct journal *j, void *arg)
{
	struct listing *l = arg;

	if (l->n == STATUS_MAX)
		return 0;
	struct journal *k = &l->kept[l->n];
	*k = *j;
	memset(&j->pids, 0, sizeof(j->pids)); /* moved */
	memset(&j->renames, 0, sizeof(j->renames));
	struct msg_status *s = &l->v[l->n++];
	pid_t *pids = calloc(k->pids.n + 1, sizeof(*pids));
	*s = (struct msg_status){.role = k->role, .state = journal_state_name(k->state), .peer = k->peer,
				 .since_sec = (uint64_t)k->since_sec, .pids = pids};
	if (!mig_id_parse(k->id, &s->id))
		l->n--;
	for (size_t i = 0; pids && i < k->pids.n; i++)
		pids[s->n_pids++] = k->pids.v[i].pid;
	return 0;
}

static int on_status(const struct agent_config *cfg, struct link *link)
{
	struct listing *l = calloc(1, sizeof(*l));
	struct msg m = msg_of(MSG_STATUS_LIST);
	struct cr_err err = {0};

	if (!l)
		return 1;
	l->cfg = cfg;
	int r = journal_each(cfg->state_dir, list_one, l, journal_warn, &err);
	m.status_list = (struct msg_status_list){l->v, l->n};
	r = r ? send_error(link, &err) : link_send(link, &m, &err);
	for (size_t i = 0; i < l->n; i++) {
		free((void *)l->v[i].pids);
		journal_done(&l->kept[i]);
	}
	free(l);
	return r != 0;
}

struct pick { /* the journal that is meant */
	const struct agent_config *cfg;
	const struct mig_id *id;
	struct journal found;
	unsigned int n;
};

static int pick_one(struct journal *j, void *arg)
{
	struct pick *p = arg;
	struct mig_id id;

	if (!mig_id_is_zero(p->id) && (!mig_id_parse(j->id, &id) || !mig_id_equal(&id, p->id)))
		return 0;
	if (p->n++ == 0) {
		p->found = *j;
		memset(&j->pids, 0, sizeof(j->pids));
		memset(&j->renames, 0, sizeof(j->renames));
	}
	return 0;
}

static int on_resolve(const struct agent_config *cfg, struct link *link, const struct msg_resolve *rq)
{
	struct pick p = {.cfg = cfg, .id = &rq->id};
	struct msg m = msg_of(MSG_RESOLVED);
	struct cr_err err = {0};
	char text[300];
	int r = journal_each(cfg->state_dir, pick_one, &p, journal_warn, &err);

	if (!r && p.n != 1)
		r = cr_err_set(&err, CR_ERR_INPUT, ENOENT,
			       p.n ? "several migrations are open: name the one that is meant" :
				     "no such migration is open on this host");
	if (!r && journal_is_held(cfg->state_dir, p.found.id, p.found.role))
		r = cr_err_set(&err, CR_ERR_INPUT, EBUSY,
			       "the migration is still being worked on; end its cr-migrate first");
	if (!r)
		r = rq->action == MSG_ACTION_ABORT ?
			    settle_abort(cfg, &p.found, text, sizeof(text), &err) :
			    settle_commit(cfg, &p.found, text, sizeof(text), &err);
	journal_done(&p.found);
	if (r)
		return send_error(link, &err);
	m.resolved.text = text;
	return link_send(link, &m, &err) != 0;
}

static int on_query(const struct agent_config *cfg, struct link *link, const struct msg_query *q)
{
	static const enum msg_peer_state map[] = {
		[JOURNAL_NONE] = MSG_STATE_UNKNOWN,	[JOURNAL_PREPARING] = MSG_STATE_PREPARING,
		[JOURNAL_PREPARED] = MSG_STATE_PREPARED, [JOURNAL_COMMIT] = MSG_STATE_COMMITTED,
		[JOURNAL_DONE] = MSG_STATE_RUNNING,	[JOURNAL_ABORTED] = MSG_STATE_ABORTED,
	};
	struct pick p = {.cfg = cfg, .id = &q->id};
	struct msg m = msg_of(MSG_STATE);
	struct cr_err err = {0};

	if (journal_each(cfg->state_dir, pick_one, &p, journal_warn, &err))
		return send_error(link, &err);
	m.state.state = p.n ? map[p.found.state] : MSG_STATE_UNKNOWN;
	journal_done(&p.found);
	return link_send(link, &m, &err) != 0;
}

int conn_control(const struct agent_config *cfg, int fd, int life_fd)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg hello = {0}, m = {0};
	struct cr_err err = {0};
	int r = link_new(&l, fd, fd, &err);

	if (!r)
		r = greet(cfg, l, &hello, &err);
	if (!r)
		r = link_recv(l, REQUEST_TIMEOUT_MS, &m, &err);
	msg_free(&hello);
	if (r) {
		if (l && r != -ECONNRESET)
			r = send_error(l, &err);
		return 0;
	}
	switch (m.type) {
	case MSG_MIGRATE:
		work_source(cfg, l, &m.migrate, life_fd);
		break;
	case MSG_RECEIVE:
		work_dest(cfg, l, &m.receive, life_fd);
		break;
	case MSG_STATUS:
		r = on_status(cfg, l);
		break;
	case MSG_RESOLVE:
		r = on_resolve(cfg, l, &m.resolve);
		break;
	case MSG_QUERY:
		r = on_query(cfg, l, &m.query);
		break;
	default:
		cr_err_set(&err, CR_ERR_PEER, EPROTO, "unexpected %s", msg_type_name(m.type));
		r = send_error(l, &err);
	}
	/* after all that may leave a journal, the daemon looks at them */
	bool look = m.type == MSG_MIGRATE || m.type == MSG_RECEIVE || m.type == MSG_RESOLVE;
	msg_free(&m);
	return look;
}

/* ---- other agents ---- */

/* The process that had it is gone: its journal still knows the token. */
static int orphan(const struct agent_config *cfg, struct link *l, const struct msg_hello *hello,
		  struct cr_err *err)
{
	struct msg mine = msg_of(MSG_HELLO), m = {0};
	struct journal j;
	char id[MIG_ID_HEX], token[80], text[300];

	mig_id_format(&hello->id, id);
	for (size_t i = 0; i < sizeof(hello->token.b); i++)
		snprintf(token + 2 * i, 3, "%02x", hello->token.b[i]);
	int r = journal_read(cfg->state_dir, id, "destination", &j, err);
	if (r)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "no migration %s here", id);
	if (strcmp(token, j.token))
		r = cr_err_set(err, CR_ERR_PEER, EACCES, "wrong token");
	mine.hello = (struct msg_hello){.version = MSG_VERSION, .role = MSG_ROLE_AGENT, .id = hello->id,
					.host = cfg->host};
	if (!r)
		r = link_send(l, &mine, err);
	if (!r)
		r = link_recv(l, REQUEST_TIMEOUT_MS, &m, err);
	if (!r && m.type == MSG_COMMIT) {
		struct msg reply = msg_of(MSG_RUNNING);

		r = settle_commit(cfg, &j, text, sizeof(text), err);
		r = r ? r : link_send(l, &reply, err);
	} else if (!r && m.type == MSG_ABORT) {
		struct msg reply = msg_of(MSG_ABORTED);

		r = settle_abort(cfg, &j, text, sizeof(text), err);
		r = r ? r : link_send(l, &reply, err);
	} else if (!r) {
		r = cr_err_set(err, CR_ERR_PEER, EPROTO, "unexpected %s", msg_type_name(m.type));
	}
	msg_free(&m);
	journal_done(&j);
	return r;
}

int conn_peer(const struct agent_config *cfg, int fd)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg hello = {0};
	struct cr_err err = {0};
	char id[MIG_ID_HEX], path[160];
	int r = link_new(&l, fd, fd, &err);

	if (!r) {
		/* whoever it is: nothing that is said before the token needs more */
		link_set_limit(l, STRANGER_BYTES);
		r = greet(cfg, l, &hello, &err);
	}
	if (!r && hello.hello.role == MSG_ROLE_QUERY) {
		struct msg m = {0};

		r = link_recv(l, REQUEST_TIMEOUT_MS, &m, &err);
		if (!r && m.type == MSG_QUERY)
			r = on_query(cfg, l, &m.query);
		msg_free(&m);
		msg_free(&hello);
		return 0;
	}
	if (!r && hello.hello.role != MSG_ROLE_PEER)
		r = cr_err_set(&err, CR_ERR_PEER, EPROTO, "only agents talk here");
	if (!r) {
		mig_id_format(&hello.hello.id, id);
		dest_socket_path(cfg, id, path, sizeof(path));
		if (pass_send(path, link_fd(l), &hello.hello.token, &err))
			r = orphan(cfg, l, &hello.hello, &err);
	}
	if (r && l && send_error(l, &err))
		log_debug("peer: %s", err.msg);
	msg_free(&hello);
	return 0;
}
