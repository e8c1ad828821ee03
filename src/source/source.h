/* The source's side of one migration, in a process of its own.
 *
 *   source.c    the flow: check, arm, rounds, switch over; undo on every way out
 *   observe.c   captures of the tree: who is in it, what they have
 *   stop.c      a stop: seize, infect, ask inside, cure
 *   rounds.c    pre-copy rounds, and when to switch over
 *   handover.c  the two-phase commit
 *
 * All of it runs in one thread: ptrace(2) wants that. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/journal.h"
#include "base/vec.h"
#include "memory/capture.h"
#include "memory/tracker.h"
#include "model/refusal.h"
#include "model/tree.h"
#include "source/parasite.h"
#include "source/seize.h"
#include "wire/link.h"
#include "wire/page_tx.h"

struct source_env {            /* of the agent */
	const char *host;      /* what this host is called */
	const char *state_dir; /* journals */
	int life_fd; /* readable once the daemon is gone: then this migration is to end, undone */
};

struct source_proc { /* a process as long as the migration knows it */
	pid_t pid;
	uint64_t starttime;
	int pidfd;
	bool armed; /* tracked since the stop that created its userfaultfd */
	bool has_tracker;
	struct tracker tracker;
	uint64_t brk; /* as the task itself last told */
	uint64_t syscall_insn, vdso_start;
	bool sigtrap_fragile;
	struct parasite parasite;
	bool infected;
};

struct source_object { /* a shared memory object's pages */
	struct sentmap sent;
	uint32_t target;
};

struct source {
	const struct source_env *env;
	const struct msg_migrate *rq;
	struct link *client; /* cr-migrate */
	struct link *peer;   /* the destination's agent */
	struct page_tx *tx;
	struct reader *reader;
	struct refusals notes;
	struct tree *tree;    /* as the destination was last told; NULL before */
	struct tree *checked; /* what the preflight saw: the first stop reads only what changed */
	VEC(struct tree *) newcomers; /* what processes forked since have told, not yet in tree */
	VEC(struct source_proc *) procs;
	struct object_fds object_fds;
	VEC(struct source_object) objects;
	pid_t young_pid; /* a process forked since, as seen in the last look */
	uint64_t young_start;
	size_t digest_budget;
	uint64_t hole_start, hole_end;
	struct seizure *seizure; /* while the tasks are stopped */
	struct journal journal;
	bool aborted;          /* the user said so, or cr-migrate went away */
	bool asked_to_prepare; /* the destination may have promised to wait for our word */
	bool held;             /* stopped for good if this process dies */
	bool committed;        /* the point of no return is behind us */
	/* of the page streams at the stop: what has been sent, when that last grew, when we looked
	 */
	uint64_t moved_bytes, moved_us, looked_us;
	bool stalled; /* it did not grow for too long: given up */
	uint64_t started_us;
	uint32_t stops;
	uint64_t longest_stop_us;
	struct msg_done done;
};

/* The whole migration; sends everything but the last message, which it leaves in s->done. */
void source_run(struct source *s);
void source_init(struct source *s, const struct source_env *env, const struct msg_migrate *rq,
		 struct link *client);
void source_done(struct source *s);

/* Tell the user; failures to tell are ignored: the link's end is seen where it matters. */
void source_event(struct source *s, const char *name, const char *text);
/* type: MSG_REFUSED or MSG_WARNING. Nothing for an empty list. */
void source_send_notes(struct source *s, enum msg_type type, const struct refusal *list, size_t n);
/* Non-zero (-ECANCELED in *err) once the user or the loss of cr-migrate has ended it. */
int source_check_abort(struct source *s, struct cr_err *err) must_check;

/* How long to wait for an answer of the destination: not for long while the tasks stand still and
 * nothing is decided. work_ms: what it may take to do what was asked, besides. */
int source_patience_ms(const struct source *s, uint64_t work_ms);
/* work_ms for what is done to each task of t. */
uint64_t source_work_ms(const struct tree *t);

/* ---- observe.c ---- */

/* Processes that are tracked and no longer in t. */
void source_forget_ended(struct source *s, const struct tree *t);
struct source_proc *source_find(struct source *s, pid_t pid);
/* The tree as it is. exact: all are stopped and infected (s->seizure). Nothing is kept in s but the
 * descriptors of processes and objects. */
int source_capture(struct source *s, const struct seizure *who, bool exact, struct tree **ret,
		   struct cr_err *err) must_check;
/* Is there anything in b that the destination would have to build (not merely to settle)? */
bool source_structure_differs(const struct tree *a, const struct tree *b);
void source_request(const struct source *s, struct seize_request *rq);

/* ---- stop.c ---- */

struct stop_times {
	uint64_t start_us, frozen_us, captured_us;
};
/* Stop all, and know everything about them: on success the tasks are stopped and infected, *ret is
 * exact. */
int source_stop(struct source *s, const struct seize_request *rq, struct tree **ret, bool registers,
		struct stop_times *times, struct cr_err *err) must_check;
/* The same for processes that were forked since, to arm them too: rq names their root. What they
 * told is kept until the next capture of the whole tree. */
int source_arm_newcomer(struct source *s, pid_t pid, struct cr_err *err) must_check;
/* A userfaultfd in every address space that has none yet. While stopped and infected. */
int source_arm(struct source *s, struct cr_err *err) must_check;
/* Cure and let go: as they were. */
int source_resume(struct source *s, struct cr_err *err) must_check;

/* ---- rounds.c ---- */

/* Send the tree; takes the answer's targets and warnings. The refusals are added to s->notes. */
/* The two halves of it: other work can be done between them. */
int source_tell_tree(struct source *s, enum msg_stage stage, const struct tree *t,
		     struct cr_err *err) must_check;
int source_hear_tree(struct source *s, const struct tree *t, struct cr_err *err) must_check;
int source_send_tree(struct source *s, enum msg_stage stage, const struct tree *t,
		     struct cr_err *err) must_check;
/* Rounds until the rest is small enough, or does not get smaller. */
int source_rounds(struct source *s, struct cr_err *err) must_check;
/* The pages of every process and object of t, once. final: the tasks are stopped. */
int source_send_memory(struct source *s, const struct tree *t, bool final,
		       struct cr_err *err) must_check;

/* Has a task mapped something where the destination has the restorer? Before t is sent. */
int source_check_hole(const struct source *s, const struct tree *t, struct cr_err *err) must_check;

/* ---- handover.c ---- */

int source_journal(struct source *s, enum journal_state state, struct cr_err *err) must_check;
/* Stop, send the rest, commit. On failure before the commit the tasks run on. */
int source_switch_over(struct source *s, struct cr_err *err) must_check;
