/* One connection: HELLO, then what the peer wants. Runs in a process of its own. */
#include <stdio.h>
#include <string.h>
#include "agent/agent.h"
#include "agent/pass.h"
#include "base/log.h"

enum {
	HELLO_TIMEOUT_MS = 5000,
	STRANGER_BYTES = 4096,
	REQUEST_TIMEOUT_MS = 30000,
	LOCK_TIMEOUT_MS = 5000
};

void dest_socket_path(const struct agent_config *cfg, const char *id, char *buf, size_t n)
{
	snprintf(buf, n, "%s/%.12s.sock", cfg->state_dir, id);
}

int conn_send_error(struct link *l, const struct cr_err *e)
{
	struct msg m = msg_of(MSG_ERROR);
	struct cr_err ignored = {0};

	m.error = *e;
	return link_send(l, &m, &ignored);
}

static int greet(const struct agent_config *cfg, struct link *l, struct msg *hello,
		 struct cr_err *err)
{
	struct msg mine = msg_of(MSG_HELLO);
	int r = link_recv(l, HELLO_TIMEOUT_MS, hello, err);

	if (r)
		return r;
	if (hello->type != MSG_HELLO)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%s before HELLO",
				  msg_type_name(hello->type));
	if (hello->hello.role == MSG_ROLE_PEER)
		return 0; /* answered by whoever has the migration */
	mine.hello = (struct msg_hello){.version = MSG_VERSION,
					.role = MSG_ROLE_AGENT,
					.id = hello->hello.id,
					.host = cfg->host};
	return link_send(l, &mine, err);
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
			r = conn_send_error(l, &err);
		return 0;
	}
	switch (m.type) {
	case MSG_MIGRATE:
		work_source(cfg, l, &m.migrate, NULL, life_fd);
		break;
	case MSG_RECEIVE:
		work_dest(cfg, l, &m.receive, life_fd);
		break;
	case MSG_STATUS:
		r = !answer_status(cfg, l);
		break;
	case MSG_RESOLVE:
		r = !answer_resolve(cfg, l, &m.resolve);
		break;
	case MSG_QUERY:
		r = !answer_query(cfg, l, &m.query);
		break;
	default:
		cr_err_set(&err, CR_ERR_PEER, EPROTO, "unexpected %s", msg_type_name(m.type));
		r = conn_send_error(l, &err);
	}
	/* after all that may leave a journal, the daemon looks at them */
	bool look = m.type == MSG_MIGRATE || m.type == MSG_RECEIVE || m.type == MSG_RESOLVE;
	msg_free(&m);
	return look;
}

/* ---- other agents ---- */

/* What the source decided, told to what is left of this migration here. Others may be at it as
 * well. */
static int orphan_decide(const struct agent_config *cfg, struct link *l, struct journal *known,
			 enum msg_type what, struct cr_err *err)
{
	struct msg reply = msg_of(what == MSG_COMMIT ? MSG_RUNNING : MSG_ABORTED);
	char text[300];
	struct journal j;
	int r = journal_lock(cfg->state_dir, known->id, known->role, HOLDER_SETTLES,
			     LOCK_TIMEOUT_MS, err);

	if (r < 0)
		return r;
	r = journal_read(cfg->state_dir, known->id, known->role, &j, err);
	if (r)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "no migration %s here any more",
				  known->id);
	r = what == MSG_COMMIT ? settle_commit(cfg, &j, text, sizeof(text), err)
			       : settle_abort(cfg, &j, text, sizeof(text), err);
	journal_done(&j);
	return r ? r : link_send(l, &reply, err);
}

static int orphan_talk(const struct agent_config *cfg, struct link *l, struct journal *j,
		       struct cr_err *err)
{
	struct msg m, reply;

	for (;;) {
		int r = link_recv(l, REQUEST_TIMEOUT_MS, &m, err);

		if (r)
			return r;
		enum msg_type what = m.type;
		msg_free(&m);
		if (what == MSG_COMMIT || what == MSG_ABORT)
			return orphan_decide(cfg, l, j, what, err);
		if (what != MSG_QUERY)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "unexpected %s",
					  msg_type_name(what));
		reply = msg_of(MSG_STATE);
		reply.state.state = peer_state_of(j->state);
		r = link_send(l, &reply, err);
		if (r)
			return r;
	}
}

/* The process that had it is gone: its journal still knows the token. */
static int orphan(const struct agent_config *cfg, struct link *l, const struct msg_hello *hello,
		  struct cr_err *err)
{
	struct msg mine = msg_of(MSG_HELLO);
	struct mig_token token;
	struct journal j;
	char id[MIG_ID_HEX];

	mig_id_format(&hello->id, id);
	int r = journal_read(cfg->state_dir, id, "destination", &j, err);
	if (r)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "no migration %s here", id);
	if (!journal_token(&j, &token) || !mig_token_equal(&token, &hello->token))
		r = cr_err_set(err, CR_ERR_PEER, EACCES, "wrong token");
	mine.hello = (struct msg_hello){
	    .version = MSG_VERSION, .role = MSG_ROLE_AGENT, .id = hello->id, .host = cfg->host};
	if (!r)
		r = link_send(l, &mine, err);
	if (!r)
		r = orphan_talk(cfg, l, &j, err);
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
			r = !answer_query(cfg, l, &m.query);
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
	if (r && l && conn_send_error(l, &err))
		log_debug("peer: %s", err.msg);
	msg_free(&hello);
	return 0;
}
