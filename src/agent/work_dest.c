/* A migration's destination: waits for the source's agent, serves it, and waits again if the link
 * breaks once something has been promised. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <time.h>
#include "agent/agent.h"
#include "base/heap.h"
#include "agent/pass.h"
#include "base/log.h"
#include "dest/dest.h"

enum { FIRST_TIMEOUT_MS = 30000, REQUEST_TIMEOUT_MS = 5000 };

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

/* The next connection of the source's agent, which must know the token. NULL: nobody came, or those
 * who we wait for are gone. */
static struct link *next_peer(struct dest *d, int listener, struct link *client, int life_fd)
{
	bool promised = d->state >= DEST_PREPARED;

	for (;;) {
		struct pollfd p[3] = {{.fd = listener, .events = POLLIN},
				      {.fd = promised ? -1 : link_fd(client), .events = POLLIN},
				      {.fd = promised ? -1 : life_fd, .events = POLLIN}};
		int watch = d->lazy ? lazy_dumps_watch(d->lazy, d->journal.cgroup) : -1;
		int n = poll(p, 3, promised ? watch : FIRST_TIMEOUT_MS);

		if ((n < 0 && errno == EINTR) || (n == 0 && promised))
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
		hello.hello = (struct msg_hello){.version = MSG_VERSION,
						 .role = MSG_ROLE_AGENT,
						 .id = d->id,
						 .host = d->env->host};
		if (!link_send(l, &hello, &err))
			return l;
		link_free(l);
	}
}

/* Whether `cr-migrate resolve` may end us. */
static void note(int lock, const char *what)
{
	struct cr_err err = {0};

	if (journal_lock_note(lock, what, &err))
		log_warn("%s", err.msg);
}

static void serve(struct dest *d, int lock, int listener, struct link *client, int life_fd)
{
	while (d->state < DEST_RUNNING) {
		struct cr_err err = {0};

		note(lock, d->state >= DEST_PREPARED ? HOLDER_WAITS : HOLDER_WORKS);
		struct link *peer = next_peer(d, listener, client, life_fd);
		if (!peer)
			break;
		note(lock, HOLDER_WORKS);
		int r = dest_serve(d, peer, life_fd, &err);
		link_free(peer);
		if (r)
			log_info("migration %s: %s", d->journal.id, err.msg);
		if (d->state < DEST_PREPARED)
			break;
	}
}

/* Running: what we hold of it goes at once, ends of pipes and ports above all. The journal stays
 * for a while: the source may not have got our answer, and ask again. */
static void finish(struct dest *d)
{
	struct cr_err err = {0};

	d->journal.since_sec = (int64_t)time(NULL);
	if (dest_journal(d, JOURNAL_DONE, &err)) {
		log_warn("%s", err.msg);
	} else {
		journal_forget_kept(d->env->state_dir, &d->journal);
		if (d->lazy)
			d->lazy->keeps_stats = true;
	}
	log_info("migration %s: running here", d->journal.id);
}

/* ---- pages that are fetched ---- */

/* The source's agent, after the commit: a connection for pages, or one that asks. */
static void take_peer(struct dest *d, struct link *l)
{
	struct msg m = {0}, reply = msg_of(MSG_OK);
	struct cr_err err = {0};
	int r = link_recv(l, REQUEST_TIMEOUT_MS, &m, &err);
	int fd = -1;

	if (!r && m.type == MSG_COMMIT)
		reply = msg_of(MSG_RUNNING);
	else if (!r && m.type == MSG_QUERY) {
		reply = msg_of(MSG_STATE);
		reply.state.state = MSG_STATE_COMMITTED; /* RUNNING: without the source */
		reply.state.text = "fetching pages from the source";
	} else if (!r && m.type == MSG_LAZY) {
		fd = fcntl(link_fd(l), F_DUPFD_CLOEXEC, 3);
		r = fd < 0 ? cr_err_sys(&err, "dup") : 0;
	} else if (!r) {
		r = cr_err_set(&err, CR_ERR_PEER, EPROTO, "unexpected %s", msg_type_name(m.type));
	}
	r = r ? conn_send_error(l, &err) : link_send(l, &reply, &err);
	if (!r && fd >= 0)
		lazy_connection(d->lazy, take_fd(&fd), m.lazy.kind);
	close_fdp(&fd);
	msg_free(&m);
}

static void accept_peer(struct dest *d, int listener)
{
	struct cr_err err = {0};
	_cleanup_(link_freep) struct link *l = pass_accept(listener, &d->token, &err);
	struct msg hello = msg_of(MSG_HELLO);

	hello.hello = (struct msg_hello){
	    .version = MSG_VERSION, .role = MSG_ROLE_AGENT, .id = d->id, .host = d->env->host};
	if (!l || link_send(l, &hello, &err))
		log_warn("%s", err.msg);
	else
		take_peer(d, l);
}

struct fetching {
	const struct agent_config *cfg;
	struct dest *d;
	int lock, listener;
};

/* Until nothing is missing. */
static void fetch_pages(const struct fetching *fe)
{
	struct lazy *l = fe->d->lazy;
	struct dest *d = fe->d;
	struct cr_err err = {0};
	int r = 0;

	while (!r) {
		bool again = lazy_tie_more(l, d->journal.cgroup);
		int watch = lazy_dumps_watch(l, d->journal.cgroup);
		struct pollfd p[4] = {{.fd = fe->listener, .events = POLLIN},
				      {.fd = lazy_fd(l), .events = POLLIN},
				      {.fd = lazy_keeper_fd(l), .events = POLLIN},
				      {.fd = lazy_notice_fd(l), .events = POLLIN}};

		if (poll(p, 4, again ? LAZY_LOOK_MS : watch) <= 0)
			continue;
		if (p[1].revents)
			r = lazy_fetcher_ended(l, &err);
		else if (p[2].revents)
			r = lazy_keeper_ended(l, &err);
		else if (p[0].revents)
			accept_peer(d, fe->listener);
	}
	const struct lazy_stats *st = l->stats;
	if (r < 0)
		log_error("migration %s: %s", d->journal.id, err.msg);
	log_info("migration %s: %llu pages fetched, %llu lost", d->journal.id,
		 (unsigned long long)st->pages_lazy, (unsigned long long)st->lost);
}

/* In the keeper: the process that did all this before has ended, at any point after the decision.
 * Of what it had, only what concerns the pages is touched: the rest may be gone. The journal is
 * left to the daemon, which finds it when we end. */
static int take_over(void *arg)
{
	const struct fetching *fe = arg;
	struct dest *d = fe->d;
	struct journal j = {0};
	struct cr_err err = {0};

	note(fe->lock, HOLDER_WORKS);
	int r = journal_read(fe->cfg->state_dir, d->journal.id, "destination", &j, &err);
	/* not decided after all: nothing ran, and whoever settles it ends the tasks */
	if (!r && j.state == JOURNAL_PREPARED)
		return 0;
	if (!r && j.state == JOURNAL_COMMIT)
		r = settle_launch(fe->cfg, &j, &err);
	journal_done(&j);
	if (r)
		log_error("migration %s: %s", d->journal.id, err.msg);
	if (d->lazy->shared->phase == LAZY_FINISHED)
		return 0;
	if (lazy_resume(d->lazy, &err))
		log_error("migration %s: %s", d->journal.id, err.msg);
	fetch_pages(fe);
	return 0;
}

/* Empty cgroups are swept away: not this one, for as long as this process lives. */
static void hold_cgroup(const struct dest *d)
{
	int fd = open(d->journal.cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB))
		log_warn("%s: %s", d->journal.cgroup, strerror(errno));
}

void work_dest(const struct agent_config *cfg, struct link *client, const struct msg_receive *rq,
	       int life_fd)
{
	struct dest d;
	struct fetching fe = {.cfg = cfg, .d = &d};
	const struct dest_env env = {.host = cfg->host,
				     .state_dir = cfg->state_dir,
				     .page_server = cfg->page_server,
				     .take_over = take_over,
				     .take_over_arg = &fe};
	struct cr_err err = {0};
	char id[MIG_ID_HEX], path[160];

	mig_id_format(&rq->id, id);
	dest_socket_path(cfg, id, path, sizeof(path));
	int lock = journal_lock(cfg->state_dir, id, "destination", HOLDER_WORKS, 0, &err);
	int listener = lock < 0 ? -1 : pass_listen(path, &err);
	bool begun = listener >= 0;

	fe.lock = lock;
	fe.listener = listener;
	heap_keep();
	/* between its making and our lock on it somebody might take the cgroup for a leftover */
	int unswept[SWEEP_HIERARCHIES];
	sweep_keep_off(unswept);
	int r = begun ? dest_init(&d, &env, rq, &err) : -err.code;
	if (!r)
		hold_cgroup(&d);
	sweep_again(unswept);
	if (!r)
		r = tell_ready(cfg, &d, client, &err);
	if (r) {
		struct msg m = msg_of(MSG_ERROR);

		m.error = err;
		if (link_send(client, &m, &err))
			log_debug("%s", err.msg);
	} else {
		serve(&d, lock, listener, client, life_fd);
	}
	if (begun && d.state == DEST_RUNNING && d.lazy) {
		note(lock, HOLDER_WORKS);
		dest_release(&d);
		fetch_pages(&fe);
		lazy_end_keeper(d.lazy); /* or it would take our end for its cue */
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
	sweep_cgroups();
}
