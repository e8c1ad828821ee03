/* A migration's destination: waits for the source's agent, serves it, and waits again if the link
 * breaks once something has been promised. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "agent/agent.h"
#include "agent/pass.h"
#include "base/log.h"
#include "dest/dest.h"

enum { FIRST_TIMEOUT_MS = 30000 };

static int tell_ready(const struct agent_config *cfg, struct dest *d, struct link *client,
		      struct cr_err *err)
{
	struct msg m = msg_of(MSG_RECEIVE_READY);

	m.receive_ready = (struct msg_receive_ready){
		.peer_address = cfg->peer_listen,
		.pages_address = d->pages_address,
		.host = cfg->host,
	};
	return link_send(client, &m, err);
}

/* The next connection of the source's agent, which must know the token. NULL: nobody came, or those who
 * we wait for are gone. */
static struct link *next_peer(struct dest *d, int listener, struct link *client, int life_fd)
{
	bool promised = d->state >= DEST_PREPARED;

	for (;;) {
		struct pollfd p[3] = {{.fd = listener, .events = POLLIN},
				      {.fd = promised ? -1 : link_fd(client), .events = POLLIN},
				      {.fd = promised ? -1 : life_fd, .events = POLLIN}};
		int n = poll(p, 3, promised ? -1 : FIRST_TIMEOUT_MS);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 || p[1].revents || p[2].revents)
			return NULL;
		struct cr_err err = {0};
		struct link *l = pass_accept(listener, &d->token, &err);
		if (!l) {
			log_warn("%s", err.msg);
			continue;
		}
		struct msg hello = msg_of(MSG_HELLO);
		hello.hello = (struct msg_hello){.version = MSG_VERSION, .role = MSG_ROLE_AGENT,
						 .id = d->id, .host = d->env->host};
		if (!link_send(l, &hello, &err))
			return l;
		link_free(l);
	}
}

static void serve(struct dest *d, int listener, struct link *client, int life_fd)
{
	while (d->state < DEST_RUNNING) {
		struct link *peer = next_peer(d, listener, client, life_fd);
		struct cr_err err = {0};

		if (!peer)
			break;
		int r = dest_serve(d, peer, life_fd, &err);
		link_free(peer);
		if (r)
			log_info("migration %s: %s", d->journal.id, err.msg);
		if (d->state < DEST_PREPARED)
			break;
	}
}

/* Running: what we hold of it goes at once, ends of pipes and ports above all. */
static void finish(struct dest *d)
{
	struct cr_err err = {0};

	if (dest_journal(d, JOURNAL_DONE, &err) || journal_remove(d->env->state_dir, &d->journal, &err))
		log_warn("%s", err.msg);
	log_info("migration %s: running here", d->journal.id);
}

void work_dest(const struct agent_config *cfg, struct link *client, const struct msg_receive *rq,
	       int life_fd)
{
	const struct dest_env env = {
		.host = cfg->host, .state_dir = cfg->state_dir, .page_server = cfg->page_server};
	struct dest d;
	struct cr_err err = {0};
	char id[MIG_ID_HEX], path[160];

	mig_id_format(&rq->id, id);
	dest_socket_path(cfg, id, path, sizeof(path));
	int r = journal_lock(cfg->state_dir, id, "destination", &err);
	int listener = r ? -1 : pass_listen(path, &err);
	bool begun = listener >= 0;
	r = begun ? dest_init(&d, &env, rq, &err) : -err.code;
	if (!r)
		r = tell_ready(cfg, &d, client, &err);
	if (r) {
		struct msg m = msg_of(MSG_ERROR);

		m.error = err;
		if (link_send(client, &m, &err))
			log_debug("%s", err.msg);
	} else {
		serve(&d, listener, client, life_fd);
	}
	if (begun && d.state == DEST_RUNNING)
		finish(&d);
	else if (begun && d.state < DEST_PREPARED)
		dest_undo(&d);
	if (listener >= 0)
		close(listener);
	unlink(path);
	if (begun)
		dest_done(&d);
}
