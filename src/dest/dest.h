/* The destination's side of one migration, in a process of its own.
 *
 *   dest.c     the conversation with the source's agent: check, prepare, mend, final, commit, undo
 *   build.c    from a tree to parked shells, and the mending of what changed
 *   shells*.c  processes and threads; layout.c their address spaces
 *   launch.c   registers, the hold, and the point where the tasks run
 *   lazy.h     memory that is fetched after the tasks run
 *   carry.c    files that the source brings along
 *   clocks.c   a time namespace in which the tasks' clocks go on
 *
 * Until PREPARED, the end of this process ends every shell. From PREPARED on the shells survive it,
 * frozen in a cgroup of their own, until somebody settles the migration. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "base/journal.h"
#include "dest/layout.h"
#include "dest/lazy.h"
#include "dest/shells.h"
#include "kernel/cgroup.h"
#include "model/refusal.h"
#include "model/tree.h"
#include "resource/resource.h"
#include "wire/link.h"
#include "wire/ps_control.h"

struct dest_env { /* of the agent */
	const char *host;
	const char *state_dir;
	const char
	    *page_server; /* path of its control socket; NULL: we place the pages ourselves */
	/* In another process, should this one end while pages are fetched: lazy_keep(). May be
	 * NULL. */
	int (*take_over)(void *arg);
	void *take_over_arg;
};

enum dest_state { DEST_NEW, DEST_BUILT, DEST_PREPARED, DEST_COMMITTED, DEST_RUNNING, DEST_ABORTED };

/* Whether private huge pages may stay behind at the source. */
enum dest_huge { DEST_HUGE_UNTRIED, DEST_HUGE_LAZY, DEST_HUGE_SENT };

struct dest {
	const struct dest_env *env;
	struct mig_id id;
	struct mig_token token;
	struct msg_opts opts;
	struct link *peer; /* the source's agent; NULL while it is not connected */
	struct ps_client *ps;
	char pages_address[64];
	struct shells *shells;
	struct objects objects;
	struct fileset *files;  /* until the tasks run: what they close is to be closed then */
	int announce_fd;        /* of netdev_announce() */
	struct net_ways *ways;  /* for packets that came to the source; NULL: none */
	struct waiting waiting; /* connections that no process has, in waiting_arena */
	struct arena *waiting_arena;
	struct net_closed *closed; /* those of them that were closed, as rebuilt */
	struct ttys *ttys;         /* until the launch */
	struct lazy *lazy;         /* what stays behind; NULL: nothing so far */
	enum dest_huge huge;
	struct cgroup *cgroup; /* holds the tasks */
	struct tree *tree;     /* as built */
	struct refusals notes;
	struct journal journal;
	struct carrying *carrying; /* a file that is being written; NULL: none */
	enum dest_state state;
	bool final; /* the last tree is built */
	uint32_t next_target;
	bool copying; /* the page-server has userfaultfds of shells */
	bool clocks_set;
	bool from_image; /* no source to ask for its clocks: they go on from where the tree says */
	int64_t clock_offset_ns; /* the tasks' CLOCK_MONOTONIC less ours */
};

int dest_init(struct dest *d, const struct dest_env *env, const struct msg_receive *rq,
	      struct cr_err *err) must_check;
void dest_done(struct dest *d);

/* Talk on a link that has said HELLO, until the migration ends or the link does. 0: it ended, see
 * d->state; negative: the link broke (or the peer spoke nonsense, or, before PREPARED, life_fd
 * became readable), state as it stands. */
int dest_serve(struct dest *d, struct link *peer, int life_fd, struct cr_err *err) must_check;
/* The tasks run, and pages are missing: all that is held of them but those goes. */
void dest_release(struct dest *d);
/* Every trace goes. Not after PREPARED, unless the source said so. */
void dest_undo(struct dest *d);

/* ---- build.c ---- */
void dest_check(const struct tree *t, struct refusals *notes);
struct dest_build_opts {
	bool final;    /* registers are in the tree */
	bool in_turns; /* not all has to be built: the source sends pages of what is, then the tree
			  once more */
};
/* Build, or bring what is built, to t. Takes t over (on success). *ret_more: not all is built. */
int dest_build(struct dest *d, struct tree *t, const struct dest_build_opts *how, bool *ret_more,
	       struct cr_err *err) must_check;

/* What is left to do in the shells is urgent from here on. */
void dest_hurry_shells(struct dest *d, int priority);

/* No userfaultfd in any shell from here on: before its layout changes, since what is registered
 * merges with nothing new, and before the switch-over, since closing takes time. */
int dest_write_pages(struct dest *d, struct cr_err *err) must_check;

/* Where pages go: one entry for every process and object; the caller frees *ret. */
int dest_targets(const struct dest *d, struct msg_target **ret, size_t *n,
		 struct cr_err *err) must_check;

/* ---- carry.c ---- */

/* Which of those files are missing? Answers. */
int dest_files_asked(struct dest *d, const struct msg_files *q, struct cr_err *err) must_check;
/* One file, or another pass over it. Begin takes over what *m holds; end answers. */
int dest_file_begin(struct dest *d, struct msg *m, struct cr_err *err) must_check;
int dest_file_data(struct dest *d, const struct msg_file_data *x, struct cr_err *err) must_check;
int dest_file_end(struct dest *d, struct cr_err *err) must_check;
/* Those that the final tree has no use for go. */
void dest_sweep_files(struct dest *d);
void carrying_free(struct carrying *c); /* takes NULL */

/* ---- launch.c ---- */
/* After the final build: registers of the threads that nothing more is asked of, while the source
 * sends its last pages. Each process's first thread is left for dest_prepare(): it unmaps the
 * executor, once all pages are placed. */
int dest_leave_early(struct dest *d, struct cr_err *err) must_check;
/* All state written, nothing has run; held so that it survives us. */
int dest_prepare(struct dest *d, struct cr_err *err) must_check;
/* Detach from the frozen tasks. */
int dest_let_go(struct dest *d, struct cr_err *err) must_check;
void dest_release_files(struct dest *d);
int dest_launch(struct dest *d, struct cr_err *err) must_check;
int dest_journal(struct dest *d, enum journal_state state, struct cr_err *err) must_check;
/* Before a build: note the System V segments that it is going to make. */
int dest_journal_segments(struct dest *d, const struct tree *t, struct cr_err *err) must_check;
/* Note what a build has left in the file system, for whoever undoes it in our place. */
int dest_journal_built(struct dest *d, struct cr_err *err) must_check;

/* ---- netmove.c ---- */
/* Ahead: a way in for what comes for the addresses of t. That there is none is no failure here. */
void dest_open_ways(struct dest *d, const struct tree *t);
/* The same, once others have moved addresses here. */
void dest_open_switched_ways(struct dest *d);
/* Preflight: what will be missing without one. */
void dest_check_ways(const struct tree *t, struct refusals *notes);
int dest_on_waiting(struct dest *d, const struct msg_waiting *w, struct cr_err *err) must_check;
/* After the addresses have come. */
void dest_tell_waiting(struct dest *d);
/* Connections that nobody has: before their address is here, and when the tasks run. */
void dest_build_closed(struct dest *d);
void dest_launch_closed(struct dest *d);
/* 1: no more come. */
int dest_on_packets(struct dest *d, const struct msg_packets *p);
void dest_close_ways(struct dest *d);

/* ---- clocks.c ---- */
/* Once, before the first shell: children of this process then live in a time namespace in which the
 * source's clocks go on. */
int dest_set_clocks(struct dest *d, const struct tree *t, struct cr_err *err) must_check;
