/* The source's side of one migration, in a process of its own.
 *
 *   source.c    the flow: check, arm, rounds, switch over; undo on every way out
 *   observe.c   captures of the tree: who is in it, what they have
 *   arm.c       the short stop that starts the tracking
 *   stop.c      the switch-over's stop: seize, infect, ask inside, cure
 *   rounds.c    pre-copy rounds, and when to switch over
 *   throttle.c  tasks that write too fast are slowed down
 *   objects.c   shared memory
 *   objects_behind.c  … that stays behind: what of it is as it was sent
 *   residual.c  what is left behind, to be fetched by the destination
 *   held.c      mutexes that may not be left behind
 *   handover.c  the two-phase commit
 *   behind.c    what stayed behind is served
 *   image.c     what is different if the other side is an image
 *   again.c     a pre-dump that goes on from where the one before stopped tracking
 *   hook.c      commands that the user has run at stages
 *   serve.c     pages out of the stopped tasks, until the destination has all
 *   carry.c     files that come along
 *   carry_track.c  what was written of those that are shared memory
 *   netmove.c   addresses that move along, connections that go on
 *
 * All of it runs in one thread: ptrace(2) wants that. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/journal.h"
#include "base/vec.h"
#include "kernel/background.h"
#include "memory/capture.h"
#include "memory/shared_tracker.h"
#include "memory/tracker.h"
#include "memory/witness.h"
#include "model/refusal.h"
#include "model/tree.h"
#include "source/carry.h"
#include "source/parasite.h"
#include "source/seize.h"
#include "source/serve_child.h"
#include "wire/link.h"
#include "wire/page_tx.h"

struct source_env {                       /* of the agent */
	const char *host;                 /* what this host is called */
	const char *state_dir;            /* journals */
	const struct taskview *view;      /* NULL: not to be had */
	const struct vmaview *vmas;       /* likewise */
	const struct reqview *requests;   /* likewise */
	const struct orphanview *orphans; /* likewise */
	const struct sock_alike *socks;   /* likewise */
	const struct pendview *pending;   /* likewise */
	const struct reuseview *reuse;    /* likewise */
	const struct shmview *shared;     /* likewise */
	int life_fd; /* readable once the daemon is gone: then this migration is to end, undone */
};

struct source_proc { /* a process as long as the migration knows it */
	pid_t pid;
	uint64_t starttime;
	int pidfd;
	bool armed; /* tracked since the stop that created its userfaultfd */
	bool has_tracker;
	bool has_shell;  /* the destination has made one for it */
	bool has_target; /* and its pages have a place there */
	struct tracker tracker;
	bool stopped; /* by a signal, at the last capture */
	uint64_t brk; /* as the task itself last told */
	struct parasite_entry entry;
	struct parasite parasite;
	bool infected;
	bool told; /* the last capture knows all of its threads from the kernel */
};

struct source_object { /* a shared memory object's pages */
	struct sentmap sent;
	uint32_t target;
	uint64_t size; /* bytes, as the destination had it when pages were sent last */
	bool behind;   /* it is not sent any more, but stays here; told: the destination knows */
	bool told;
	bool holes; /* … without its holes, and that is … */
	struct addr_ranges left;
	/* memory/shared_tracker.h: the look when its pages were sent last; the one for which that
	 * is still to be done */
	struct shared_look before, now;
	struct witness witness;
	bool looked;      /* now is one */
	bool followed;    /* of the round before: nothing was unseen since the one before that */
	uint64_t written; /* pages that the last round had to send */
	int watch;        /* of source.openings; 0: none yet, negative: none to be had */
	bool opened;      /* since the last look */
	bool marked;     /* there are marks by which use of descriptors shows (kernel/filemark.h) */
	bool unmarkable; /* there can be none */
	/* of what stays behind: pages that were found to be others than were sent, at `before` */
	struct shared_pages differs;
};

struct source_image { /* a migration into an image */
	const char *name;
	bool pre_dump;      /* rounds only: the tasks run on */
	bool leave_stopped; /* once the image is sealed, the tasks stay, stopped by SIGSTOP */
};

struct source_kept { /* what the image is known to be since the pre-dump before */
	bool there;
	struct mig_id writer;
	uint32_t rounds;
};

struct source {
	const struct source_env *env;
	const struct source_image *image; /* NULL: into another host */
	const struct msg_migrate *rq;
	struct link *client; /* cr-migrate */
	struct link *peer;   /* the destination's agent */
	struct page_tx *tx;
	struct reader *reader;
	struct refusals notes;
	struct tree *tree;       /* as the destination was last told; NULL before */
	struct tree *checked;    /* what the preflight saw, until the tasks have told the rest */
	struct source_kept kept; /* by tracking on after a pre-dump */
	struct source_kept image_is;  /* as the receiver told this time */
	bool learned;                 /* … of the pages that it has */
	VEC(struct tree *) newcomers; /* what processes forked since have told, not yet in tree */
	VEC(struct source_proc *) procs;
	struct object_fds object_fds;
	VEC(struct source_object) objects;
	int openings;                  /* inotify(7), of those that are tracked */
	int marks_work;                /* kernel/filemark.h: 1; 0: not tried yet; -1: they do not */
	VEC(struct source_file) files; /* that the destination has, or that come along */
	pid_t young_pid;               /* a process forked since, as seen in the last look */
	uint64_t young_start;
	size_t digest_budget;
	size_t object_digests;  /* the budget of shared objects */
	size_t lazy_digests;    /* of those that may stay behind */
	bool lazy_objects;      /* the destination can have them do so */
	bool lazy_huge;         /* and private huge pages */
	bool lazy_memfds;       /* and memfds to which no descriptor leads */
	bool lazy_huge_objects; /* and objects of huge pages */
	bool lazy_unlinked;     /* and files of a tmpfs that were removed */
	bool lazy_clean;        /* it can be told what of objects is as it was sent */
	bool lazy_holes;        /* and objects without their holes */
	struct huge_forked huge_forked;
	uint64_t hole_start, hole_end;
	struct seizure *seizure;   /* while the tasks are stopped */
	bool takes_closed;         /* the destination: connections that their program has closed */
	const struct file *closed; /* those that went there, until the final tree is freed */
	size_t n_closed;
	struct net_lock *net_lock; /* while the tasks' sockets are out of the network */
	uint8_t *waiting;          /* connections that nobody had accepted; of waiting_encode() */
	size_t waiting_len;
	struct devaddr *heard; /* the addresses of packets */
	size_t n_heard;
	struct netcap *packets; /* what has come for them since; NULL: nothing is kept */
	struct journal journal;
	bool aborted;          /* the user said so, or cr-migrate went away */
	bool asked_to_prepare; /* the destination may have promised to wait for our word */
	bool abort_told;       /* the destination knows that nothing comes of it */
	bool ttys_drained;     /* what waited in terminals is in the final tree only */
	bool locks_released;   /* the tasks have given up their file locks */
	bool held;             /* stopped for good if this process dies */
	bool committed;        /* the point of no return is behind us */
	bool lazy;             /* pages are left behind */
	bool in_turns;    /* the first round: the destination may make some processes after others'
			     pages have come */
	bool more_shells; /* the destination waits for pages before it makes the others */
	/* what of them was written, the latest round first; not all, perhaps */
	VEC(struct serve_range) recent;
	struct serve_child page_server; /* for them; started ahead */
	/* of the page streams at the stop: what has been sent, when that last grew, when we looked
	 */
	uint64_t moved_bytes, moved_us, looked_us;
	bool stalled;                 /* it did not grow for too long: given up */
	struct background background; /* during the first round */
	uint64_t started_us;
	uint32_t stops;
	uint64_t longest_stop_us;
	uint64_t
	    stood_us; /* how long that task stood still at the last stop which did so longest */
	struct msg_done done;
};

/* The whole migration; sends everything but the last message, which it leaves in s->done. */
void source_run(struct source *s);
void source_init(struct source *s, const struct source_env *env, const struct msg_migrate *rq,
		 struct link *client);
void source_done(struct source *s);
/* Another request, of another client, from the start. */
void source_take_request(struct source *s, const struct msg_migrate *rq, struct link *client);

/* Tell the user; failures to tell are ignored: the link's end is seen where it matters. */
void source_event(struct source *s, const char *name, const char *text);
/* type: MSG_REFUSED or MSG_WARNING. Nothing for an empty list. */
void source_send_notes(struct source *s, enum msg_type type, const struct refusal *list, size_t n);
/* Non-zero (-ECANCELED in *err) once the user or the loss of cr-migrate has ended it. */
int source_check_abort(struct source *s, struct cr_err *err) must_check;

/* 0: the destination has heard it, or there is nobody who has promised anything. */
int source_tell_abort(struct source *s);

/* How long to wait for an answer of the destination: not for long while the tasks stand still and
 * nothing is decided. work_ms: what it may take to do what was asked, besides. */
int source_patience_ms(const struct source *s, uint64_t work_ms);
/* work_ms for what is done to each task of t. */
uint64_t source_work_ms(const struct tree *t);

/* ---- observe.c ---- */

/* As if none had been looked at or armed yet. */
void source_forget_all(struct source *s);
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

struct stop_times { /* start_us: the first task was told to stop */
	uint64_t start_us, frozen_us, captured_us;
};
/* Stop all, and know everything about them: on success the tasks are stopped and infected, *ret is
 * exact. */
int source_stop(struct source *s, const struct seize_request *rq, struct tree **ret,
		struct stop_times *times, struct cr_err *err) must_check;
/* Put what was infected back to where it was; it stays stopped. */
int source_cure(struct source *s, struct cr_err *err) must_check;
/* Cure and let go: as they were. */
int source_resume(struct source *s, struct cr_err *err) must_check;

/* ---- arm.c ---- */

/* A userfaultfd in every address space of t that has none yet, and what only the tasks themselves
 * can tell, into t, which was captured ahead. Processes that end meanwhile are left out. */
int source_arm(struct source *s, struct tree *t, struct cr_err *err) must_check;
/* The same for a process that was forked since, and what it has forked. What they told is kept
 * until the next capture of the whole tree. */
int source_arm_newcomer(struct source *s, pid_t pid, struct cr_err *err) must_check;

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
/* Has a task a file open into which, or from which, devices read and write? */
bool source_has_direct_io(const struct tree *t);
/* So far. */
uint64_t source_pages_read(const struct source *s);
/* The pages of every process and object of t, once. final: the tasks are stopped. */
int source_send_memory(struct source *s, const struct tree *t, bool final,
		       struct cr_err *err) must_check;

/* For residual.c: what changed beside the pages; a round, reported as number n. */
int source_follow_structure(struct source *s, struct cr_err *err) must_check;
/* predicted_us: NULL, or the downtime if the switch-over followed now. */
int source_one_round(struct source *s, uint32_t n, uint64_t *predicted_us,
		     struct cr_err *err) must_check;
/* A round of what belongs to one process each, that nobody hears of. */
int source_quiet_round(struct source *s, uint64_t *ret_written, struct cr_err *err) must_check;

/* Has a task mapped something where the destination has the restorer? Before t is sent. */
int source_check_hole(const struct source *s, const struct tree *t, struct cr_err *err) must_check;

/* ---- objects.c ---- */

/* Can it be told what is written to them? */
bool source_tracks_objects(const struct source *s);
enum source_look {
	SOURCE_LOOK_ROUND,  /* at those whose pages will be sent now */
	SOURCE_LOOK_BEHIND, /* at those that stay behind */
	SOURCE_LOOK_STOP,   /* the tasks are stopped, and nothing was done to their address spaces:
			     * at all of which something is known */
};
/* What is known of those of t, as `now` of each. */
int source_look_at_objects(struct source *s, const struct tree *t, enum source_look which,
			   struct cr_err *err) must_check;
/* Of one that was looked at, and is known: its pages that were written since they were protected
 * last, by whomever, and those that may have been taken out. */
int source_object_written(struct source_object *o, bool protect, struct shared_pages *ret,
			  struct cr_err *err) must_check;
int source_send_objects(struct source *s, const struct tree *t, bool final,
			struct cr_err *err) must_check;
enum { SOURCE_MARKED_MIN_BYTES = 1 << 20 }; /* less is compared sooner than marks are put there */
/* Memory in a file, fd, which whoever has it maps by that name: is it noted from here on who opens
 * it, and can marks show its use (kernel/filemark.h)? */
bool source_watches(struct source *s, int fd, int *watch);
bool source_can_mark(struct source *s, const struct tree *t, int fd, const char *name);
/* Pages that the last round had to send. */
uint64_t source_objects_written(const struct source *s);
/* As close to the stop as can be: what comes and goes until then costs a comparison of all. */
int source_last_object_rounds(struct source *s, struct cr_err *err) must_check;
void source_objects_done(struct source *s);

/* ---- objects_behind.c ---- */

/* As close to the stop as can be: are those that stay behind known? */
int source_follow_behind(struct source *s, struct cr_err *err) must_check;
/* One that is sent after all is compared whole. */
void source_forget_behind(struct source_object *o);
/* After the decision: all pages but these are as they were sent. Returns false if that is not
 * known; the caller frees *ret with shared_pages_done(). */
bool source_behind_written(const struct source *s, uint32_t i, struct shared_pages *ret);

/* ---- image.c ---- */

int source_image_begin(struct source *s, struct cr_err *err) must_check;
/* Fill the sent maps with what the image has from earlier rounds. */
int source_image_learn(struct source *s, struct cr_err *err) must_check;
/* It forgets all pages of a process. */
int source_image_clear(struct source *s, pid_t pid, struct cr_err *err) must_check;
/* What was sent is kept as it is, to go on from. */
int source_image_keep(struct source *s, struct cr_err *err) must_check;

/* ---- again.c ---- */

/* After a pre-dump that went well: nothing stays connected, all is tracked on. */
void source_rest(struct source *s);
/* After source_rest(): the next one of the same tree, into the same image. */
void source_again(struct source *s, const struct msg_migrate *rq, struct link *client);
/* If the image is not what was left there, what was tracked is of no use. */
void source_check_kept(struct source *s);
/* None of what it tracks lives any more. */
bool source_all_ended(const struct source *s);

/* ---- hook.c ---- */

/* Has what the user wants done at that stage done, and waits for it. */
int source_hook(struct source *s, enum msg_hook stage, bool undo, struct cr_err *err) must_check;
/* Where it is too late for a failure to change anything. */
void source_hook_late(struct source *s, enum msg_hook stage, bool undo);

/* ---- throttle.c ---- */

/* Rounds while the tasks have less and less CPU time, until the downtime is within its limit. 0
 * also if that could not be had. */
int source_throttle(struct source *s, uint32_t first, struct cr_err *err) must_check;

/* ---- behind.c ---- */

/* Into the journal: where whoever serves in our place finds what is not a task's own. */
int source_note_objects(struct source *s, const struct tree *t, struct cr_err *err) must_check;
/* After COMMIT: until the destination has all. */
int source_serve_destination(struct source *s, struct cr_err *err) must_check;

/* ---- held.c ---- */

/* At the stop, if pages may be missing: what threads hold of robust mutexes, into the tree. */
int source_note_held(struct source *s, struct tree *t, struct cr_err *err) must_check;

/* ---- objects_holes.c ---- */

/* Is hardly any of it holes? */
bool source_object_is_dense(int fd, uint64_t size);
/* Can it stay behind without its holes? */
bool source_object_may_leave_holes(const struct source *s, const struct shared_object *so);
/* Tell the destination what of it is no hole, as far as it does not know. */
int source_tell_between_holes(struct source *s, uint32_t i, struct cr_err *err) must_check;

/* ---- residual.c ---- */

/* Which of its pages are sent whatever else stays behind: they change at the destination by
 * themselves. */
int source_note_eager(struct source_proc *sp, const struct process *p,
		      struct cr_err *err) must_check;
/* At the stop: those that may not after all are sent. */
int source_take_back_objects(struct source *s, const struct tree *t, struct cr_err *err) must_check;
/* Tell the destination what was noted since. */
int source_tell_left(struct source *s, struct cr_err *err) must_check;
uint64_t source_pages_left(const struct source *s);
/* Rounds beside the running tasks, numbered from first, until little is new. */
int source_drop_rounds(struct source *s, uint32_t first, struct cr_err *err) must_check;
/* By what it is and by what the destination can; its holes are not looked at. */
bool source_object_may_be_lazy(const struct source *s, const struct tree *t, uint32_t i);
/* The last of them, right before the stop, by when nobody in its path waits for his turn any more:
 * what is written in so short a time is little. */
int source_last_drop_rounds(struct source *s, struct cr_err *err) must_check;

/* ---- netmove.c ---- */

enum tcp_mode source_tcp_mode(const struct source *s);
/* --move-address into t. */
int source_list_addresses(struct source *s, struct tree *t, struct cr_err *err) must_check;
/* Does this host have them, can they go? Refusals to s->notes; notes them in the journal. */
int source_check_addresses(struct source *s, struct cr_err *err) must_check;
/* unowned.c: connections that nobody has a descriptor of, and that lose their address: named ahead,
 * and waited for, not for long, at the switch-over. */
void source_warn_unowned(struct source *s, const struct tree *t);
/* Do they go along? Known once the destination is prepared. */
bool source_takes_closed(const struct source *s, const struct tree *t);
/* Once they run there: ends what is left of those here. */
void source_end_closed(struct source *s);
void source_wait_unowned(struct source *s, const struct tree *t);
/* The tasks do not run on by themselves from here on, whatever becomes of this process. */
int source_hold(struct source *s, struct cr_err *err) must_check;
/* While stopped: connections out of the network, their state into t. -EAGAIN: connections wait to
 * be accepted. */
int source_lock_network(struct source *s, struct tree *t, struct cr_err *err) must_check;
/* Nothing has come in since? */
int source_verify_network(struct source *s, struct cr_err *err) must_check;
int source_unlock_network(struct source *s, struct cr_err *err) must_check;
/* After the decision. */
void source_leave_addresses(struct source *s);
/* After that, once: connections that nobody has accepted. Then tell the destination of them, as
 * often as of the commit. */
int source_collect_waiting(struct source *s, const struct tree *t, struct cr_err *err) must_check;
int source_send_waiting(struct source *s, struct cr_err *err) must_check;
/* What came for the tasks since they were taken out of the network. last: no more comes. */
void source_send_packets(struct source *s, bool last);
/* The same after an undo, for the tasks here. */
void source_replay_packets(struct source *s);

/* ---- ttys.c ---- */

/* While stopped, and held: what waits in terminals into t. */
int source_drain_ttys(struct source *s, struct tree *t, struct cr_err *err) must_check;
/* As they were. */
int source_put_back_ttys(struct source *s, const struct tree *t, struct cr_err *err) must_check;

/* ---- filelocks.c ---- */

/* While stopped, before source_hold: the destination's tasks are to have them. */
int source_release_locks(struct source *s, const struct tree *t, struct cr_err *err) must_check;
/* As they were; tells the destination first that it is not to have them. A task whose lock somebody
 * else got meanwhile stays stopped until it has it again. */
int source_retake_locks(struct source *s, const struct tree *t, struct cr_err *err) must_check;

/* ---- handover.c ---- */

/* While tasks stand still because of us. */
void source_real_time(bool on);

int source_journal(struct source *s, enum journal_state state, struct cr_err *err) must_check;
/* Stop, send the rest, commit. On failure before the commit the tasks run on. */
int source_switch_over(struct source *s, struct cr_err *err) must_check;
