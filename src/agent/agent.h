/* cr-agent: the daemon on each host, and verbs for scripts.
 *
 *   main.c       table of verbs
 *   serve.c      the daemon: accepts, forks a process for every connection, looks after what they
 * leave conn.c       one connection: HELLO, the request work_source.c, work_dest.c   a migration,
 * in the connection's process resolve.c    STATUS, RESOLVE, QUERY lock.c       who works on a
 * migration settle.c     journals whose process is gone: undo or finish leftovers.c  files and
 * cgroups that nobody needs any more
 *
 * The daemon itself parses nothing that comes from outside. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "base/journal.h"
#include "wire/link.h"

struct agent_config { /* filled once from the command line, then constant */
	const char *host;
	const char *control;     /* "unix:PATH" for cr-migrate */
	const char *peer_listen; /* "IP:PORT" for other agents */
	const char *page_server; /* path of its control socket */
	const char *state_dir;
	struct taskview *view;      /* NULL: not to be had here */
	struct vmaview *vmas;       /* likewise */
	struct reqview *requests;   /* likewise */
	struct orphanview *orphans; /* likewise */
	struct sock_alike *socks;   /* likewise */
	struct pendview *pending;   /* likewise */
	struct reuseview *reuse;    /* likewise */
	struct shmview *shared;     /* likewise */
};

int verb_serve(int argc, char **argv);
int verb_check(int argc, char **argv);
int verb_pre_dump(int argc, char **argv);
int verb_dump(int argc, char **argv);
int verb_restore(int argc, char **argv);
/* For verbs that work without the daemon: the directory for journals is there, and what others left
 * in it is settled. */
int verb_prepare_state(const struct agent_config *cfg, struct cr_err *err) must_check;

/* life_fd: readable (end of file) once the daemon is gone. Both return the process's exit status
 * and take the connection over. */
int conn_control(const struct agent_config *cfg, int fd, int life_fd);
int conn_peer(const struct agent_config *cfg, int fd);

struct source;
struct source_image;
/* image: NULL for a migration into another host. */
void work_source(const struct agent_config *cfg, struct link *client, const struct msg_migrate *rq,
		 const struct source_image *image, int life_fd);
/* Takes the journal's lock, runs it, logs what became of it. */
void work_source_run(const struct agent_config *cfg, struct source *s);
void work_dest(const struct agent_config *cfg, struct link *client, const struct msg_receive *rq,
	       int life_fd);

/* ---- lock.c ---- */

#define HOLDER_WORKS "works"
#define HOLDER_WAITS                                                                               \
	"waits" /* a destination's process that has promised and is connected with nobody */
#define HOLDER_SETTLES "settles"

struct journal_holder {
	pid_t pid; /* 0: not known */
	char what[16];
};

/* Hold the lock that tells others that somebody works on this migration; what: one of the above.
 * Returns a descriptor that holds it until it is closed, or the process ends. -EBUSY: another one
 * has it, and did so for timeout_ms. */
int journal_lock(const char *dir, const char *id, const char *role, const char *what,
		 unsigned int timeout_ms, struct cr_err *err) must_check;
int journal_lock_note(int fd, const char *what, struct cr_err *err) must_check;
/* ret: may be NULL. */
bool journal_is_held(const char *dir, const char *id, const char *role, struct journal_holder *ret);
void journal_lock_path(char *buf, size_t n, const char *dir, const char *id, const char *role);

/* ---- settle.c ---- */

/* For journal_each(): a journal that cannot be read. */
void journal_warn(const struct cr_err *why);

enum settled { /* exit status of the process that looks at the journals */
	       SETTLED_ALL,
	       SETTLED_NOT,   /* something is undecided: to be looked at again soon */
	       SETTLED_LATER, /* only something to be forgotten in time */
};
/* Look at every journal that nobody holds. */
enum settled settle_all(const struct agent_config *cfg);
/* The user's decision, or the source's, about one, whose lock the caller has. text: what was done.
 */
/* The destination's tasks run, if they do not yet: the journal says commit. */
int settle_launch(const struct agent_config *cfg, const struct journal *j,
		  struct cr_err *err) must_check;
int settle_commit(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		  struct cr_err *err) must_check;
int settle_abort(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		 struct cr_err *err) must_check;
/* Say what to the other agent of a source's journal. reply: may be NULL; for msg_free(). */
int settle_ask_peer(const struct agent_config *cfg, const struct journal *j, enum msg_type what,
		    enum msg_type want, int timeout_ms, struct msg *reply,
		    struct cr_err *err) must_check;
/* Did the other agent itself say that it has no such migration? */
bool settle_peer_forgot(int r, const struct cr_err *err);
bool journal_token(const struct journal *j, struct mig_token *ret);

/* ---- leftovers.c ---- */

/* Cgroups that held tasks of migrations and hold none any more. One whose directory somebody has
 * locked, flock(2), is about to get some. */
void sweep_cgroups(void);
/* From keep_off until again nobody does that: whoever makes one can lock it in between. */
enum { SWEEP_HIERARCHIES = 2 };
void sweep_keep_off(int ret[SWEEP_HIERARCHIES]);
void sweep_again(int fds[SWEEP_HIERARCHIES]);
/* Locks of migrations that ended well. */
void sweep_locks(const struct agent_config *cfg);
/* All that is beside a migration's journal, but its lock. */
void tidy_up(const struct agent_config *cfg, const struct journal *j);
/* Directories in which unix sockets waited for their paths. */
void remove_rename_dirs(const struct journal *j);

/* ---- resolve.c: what cr-migrate asks about migrations that are there already. False: the link
 * broke. ---- */
bool answer_status(const struct agent_config *cfg, struct link *l);
bool answer_resolve(const struct agent_config *cfg, struct link *l, const struct msg_resolve *rq);
bool answer_query(const struct agent_config *cfg, struct link *l, const struct msg_query *q);
enum msg_peer_state peer_state_of(enum journal_state s);

/* ---- conn.c ---- */

int conn_send_error(struct link *l, const struct cr_err *e);
/* Path of the socket on which a destination's process takes connections of its peer. */
void dest_socket_path(const struct agent_config *cfg, const char *id, char *buf, size_t n);
