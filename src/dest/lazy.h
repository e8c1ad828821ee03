/* Memory that is fetched from the source after the tasks run here (post-copy).
 *
 *   lazy_left.c   before: what stays behind, said in rounds; at the end userfaultfds on all of it
 *   lazy_state.c  what is missing, in memory that survives the fetcher
 *   fetch.c       the fetcher: a process without privileges that serves faults and takes pages
 *                 (what is pushed: from a page-server, which reads it)
 *   lazy_run.c    its supervisor, the migration's process: starts both, and others if they die
 *
 *   lazy_keep.c   the keeper, a process that takes the supervisor's place
 *   lazy_tie.c    if all three are killed in one moment, the tasks end with them
 *   lazy_dump.c   a process that holds back the tasks' core dumps until all is there
 *
 * As long as pages are missing the userfaultfds are open in three processes with one table of
 * descriptors. Each may be killed, and any two of them together: the third starts the others anew.
 * Were all three killed in the same moment, the kernel would give the tasks zeros for what is
 * missing: the tasks are killed by it first. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "base/vec.h"
#include "dest/lazy_state.h"
#include "dest/shells.h"
#include "memory/sentmap.h"
#include "model/tree.h"
#include "wire/msg.h"
#include "wire/ps_child.h"

struct lazy_proc { /* what of a process stays behind */
	pid_t pid;
	struct sentmap left; /* its lazy bits */
	int uffd;            /* on all that is missing, once that is known */
	uint64_t segs, bits; /* how much its space will need */
};

struct lazy_behind { /* shared memory */
	uint32_t index;
	int fd;
	uint64_t bytes;
	uint64_t *left; /* a bit for each page */
	bool huge;      /* of huge pages */
	bool taken_back;
};

struct lazy {
	VEC(struct lazy_proc) procs;
	VEC(struct lazy_behind) objects;
	size_t no_digests; /* budget of the maps: none */
	char stats_path[256];
	bool keeps_stats;    /* the file stays, for as long as the journal beside it */
	uint32_t timeout_ms; /* how long a source that is gone is waited for */
	struct lazy_shared *shared;
	struct lazy_stats *stats;    /* mapped from stats_path */
	struct ps_child page_server; /* reads what is pushed; lives as long as the fetcher */
	pid_t fetcher;               /* 0: none runs */
	pid_t keeper;                /* 0: none */
	int keeper_pidfd;
	struct lazy_dumps dumps; /* until there is `shared` */
	pid_t dump_holder;       /* 0: none that is ours to wait for */
	pid_t dump_gone;         /* one that was; 0: it has been waited for */
	uint64_t dumps_seen_us;  /* when it was looked at last, and what it had counted up to */
	uint32_t dumps_seen_beats;
	unsigned int dumps_silent, dumps_restarts;
	int (*take_over)(void *arg);
	void *take_over_arg;
	unsigned int restarts; /* since a page has arrived */
	uint64_t left_before;  /* pages, at the last of them */
	unsigned int deaths;   /* of page-servers */
	unsigned int looks;    /* at the cgroup: somebody was forked */
};

/* stats_path: a file for the numbers, made here and removed by lazy_free(), unless keeps_stats.
 * cgroup: the directory of the one in which the tasks are, and will be. */
int lazy_new(struct lazy **ret, const char *stats_path, const char *cgroup, uint32_t timeout_ms,
	     struct cr_err *err) must_check;
void lazy_stats_path(char *buf, size_t n, const char *state_dir, const char *id);
/* Also ends the fetcher. takes NULL. */
void lazy_free(struct lazy *l);

/* ---- lazy_left.c ---- */

/* The pages of rs stay behind: what the shell has there of old is discarded. */
int lazy_leave(struct lazy *l, struct shell *sh, const struct msg_reset *rs,
	       struct cr_err *err) must_check;
/* An object stays behind, whatever is there of it, as far as it is not holes; fd stays the
 * caller's. Can this host do that with ordinary pages? */
bool lazy_has_objects(void);
int lazy_leave_object(struct lazy *l, int fd, const struct shared_object *so,
		      const struct msg_reset *rs, struct cr_err *err) must_check;
/* It is sent after all. */
void lazy_take_back_object(struct lazy *l, uint32_t index);
/* The same for pages that were never placed: nothing has to be discarded. */
int lazy_note(struct lazy *l, pid_t pid, uint64_t start, uint64_t end,
	      struct cr_err *err) must_check;
/* With the final tree, when all else is in place: whoever touches what is missing waits. The shell
 * is in the executor, and afterwards touches nothing of the task's memory. */
int lazy_register(struct lazy *l, struct shell *sh, const struct process *p,
		  struct cr_err *err) must_check;

/* Then, once: spaces out of all that was noted. */
int lazy_make_spaces(struct lazy *l, const struct tree *t, struct cr_err *err) must_check;

/* ---- lazy_run.c ---- */

/* Before PREPARED: everything that is needed to serve faults, running. */
int lazy_start(struct lazy *l, const struct tree *t, struct cr_err *err) must_check;
/* The tasks are about to run: from here on the fetcher outlives us. */
void lazy_commit(struct lazy *l);
/* A connection of the source, which becomes ours. */
void lazy_connection(struct lazy *l, int fd, enum msg_lazy_kind kind);
/* For poll(2): readable when the fetcher has ended. */
static inline int lazy_fd(const struct lazy *l)
{
	return l->shared->fetcher_pidfd;
}
/* The fetcher has ended. 0: another one took over; 1: nothing is missing any more. */
int lazy_fetcher_ended(struct lazy *l, struct cr_err *err) must_check;
/* In a process that took over: a fetcher of its own. */
int lazy_resume(struct lazy *l, struct cr_err *err) must_check;

/* ---- lazy_keep.c ---- */

/* Once the fetcher runs: start the keeper. Should this process end after lazy_commit(), take_over
 * is called in the keeper, and what it returns is its exit status; no fetcher runs then. */
int lazy_keep(struct lazy *l, int (*take_over)(void *arg), void *arg,
	      struct cr_err *err) must_check;
/* For poll(2): readable when the keeper has ended. */
static inline int lazy_keeper_fd(const struct lazy *l)
{
	return l->keeper_pidfd;
}
int lazy_keeper_ended(struct lazy *l, struct cr_err *err) must_check;
void lazy_end_keeper(struct lazy *l);

/* ---- lazy_tie.c ---- */

enum { LAZY_LOOKS = 8, LAZY_LOOK_MS = 5 };

int lazy_tie_begin(struct lazy_shared *sh, struct cr_err *err) must_check;
/* These get SIGKILL if all who fetch are gone while something is missing. */
int lazy_tie(struct lazy_shared *sh, const pid_t *pids, size_t n, struct cr_err *err) must_check;
/* Nothing is missing any more. May be called by any of the three. */
void lazy_untie(struct lazy_shared *sh);
/* The last that is done with it. Ends the tasks if something is missing. */
void lazy_tie_end(struct lazy_shared *sh);
/* By the supervisor, when lazy_notice_fd() is readable, and again LAZY_LOOK_MS later for as long as
 * it returns true: children of the tasks, which come up in their cgroup soon after the fetcher has
 * heard of the fork. */
bool lazy_tie_more(struct lazy *l, const char *cgroup);
static inline int lazy_notice_fd(const struct lazy *l)
{
	return l->shared->control;
}

/* ---- lazy_dump.c ---- */

/* Starts the holder of dumps. Where it cannot do its work it says so in the log, and ends. */
void lazy_dumps_begin(struct lazy *l, const char *cgroup);
/* All tasks are where they will go on: have it look where their cores would be made. Returns at
 * once; lazy_dumps_looked() waits until it has, but not for long. */
void lazy_dumps_look(struct lazy *l);
void lazy_dumps_looked(struct lazy *l);
/* By the supervisor, all the time once that was done: should the holder not answer for two seconds,
 * in which everybody waits who opens a file beside a task's core, it is ended, and another one
 * takes its place, as for one that was killed. Returns within how many milliseconds it has to be
 * called again; -1: never. */
int lazy_dumps_watch(struct lazy *l, const char *cgroup);
/* After the userfaultfds: as long as one is open, what a dump finds missing in shared memory is
 * missing in it, there or not. */
void lazy_dumps_end(struct lazy *l);

/* ---- fetch.c ---- */

struct fetch_args {
	struct lazy_shared *shared;
	struct lazy_stats *stats;
	int control;
	int wake; /* the other end of control: who writes there wakes the thread that reads */
	uint32_t timeout_ms;
	bool takes_over; /* from one that died */
};
/* The fetcher's whole life; returns its exit status: 0 when nothing is missing any more. */
int fetch_run(const struct fetch_args *a);
struct fetch_hand { /* over control */
	int32_t fd;
	int32_t kind; /* enum msg_lazy_kind */
};
/* Of another process: from the file. */
bool lazy_stats_read(const char *path, struct lazy_stats *ret);
void lazy_stats_fill(const struct lazy_stats *st, struct msg_postcopy *ret);
