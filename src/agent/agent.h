/* cr-agent: the daemon on each host, and verbs for scripts.
 *
 *   main.c       table of verbs
 *   serve.c      the daemon: accepts, forks a process for every connection, looks after what they leave
 *   conn.c       one connection: HELLO, the request
 *   work_source.c, work_dest.c   a migration, in the connection's process
 *   settle.c     journals whose process is gone: undo or finish
 *
 * The daemon itself parses nothing that comes from outside. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "base/journal.h"
#include "wire/link.h"

struct agent_config { /* filled once from the command line, then constant */
	const char *host;
	const char *control;	 /* "unix:PATH" for cr-migrate */
	const char *peer_listen; /* "IP:PORT" for other agents */
	const char *page_server; /* path of its control socket */
	const char *state_dir;
};

int verb_serve(int argc, char **argv);
int verb_check(int argc, char **argv);

/* life_fd: readable (end of file) once the daemon is gone. Both return the process's exit status and
 * take the connection over. */
int conn_control(const struct agent_config *cfg, int fd, int life_fd);
int conn_peer(const struct agent_config *cfg, int fd);

void work_source(const struct agent_config *cfg, struct link *client, const struct msg_migrate *rq,
		 int life_fd);
void work_dest(const struct agent_config *cfg, struct link *client, const struct msg_receive *rq,
	       int life_fd);

/* Hold the lock that tells others that this migration's process lives; for the life of the process. */
int journal_lock(const char *dir, const char *id, const char *role, struct cr_err *err) must_check;
bool journal_is_held(const char *dir, const char *id, const char *role);
/* For journal_each(): a journal that cannot be read. */
void journal_warn(const struct cr_err *why);

enum settled { /* exit status of the process that looks at the journals */
	SETTLED_ALL,
	SETTLED_NOT, /* something is undecided: to be looked at again soon */
	SETTLED_LATER, /* only something to be forgotten in time */
};
/* Look at every journal that nobody holds. */
enum settled settle_all(const struct agent_config *cfg);
/* The user's decision, or the source's, about one. text: what was done. */
int settle_commit(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		  struct cr_err *err) must_check;
int settle_abort(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		 struct cr_err *err) must_check;
/* Path of the socket on which a destination's process takes connections of its peer. */
void dest_socket_path(const struct agent_config *cfg, const char *id, char *buf, size_t n);
