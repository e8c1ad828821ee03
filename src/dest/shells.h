/* Shells: empty processes with the final pids, parents and sessions, in which the executor waits.
 *
 * The flow: shells_new() finds a hole in all address spaces and maps the executor's memory there;
 * shells_fork() makes the processes; layout.c gives them the source's address spaces; dest.c the
 * rest; then all are parked. Every shell is seized with PTRACE_O_EXITKILL: if this process dies,
 * nothing of them stays. After shells_hold() they survive it instead, frozen. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/vec.h"
#include "kernel/cgroup.h"
#include "model/refusal.h"
#include "model/tree.h"
#include "remote/area.h"
#include "remote/park.h"

struct shell_thread {
	pid_t tid;
	struct rtask rt;
	bool seized;
	bool left;    /* it has its final registers */
	bool hurried; /* its scheduling policy is not its own */
	/* registered with rseq(2): a fork inherits it, and must not keep it past its memory */
	uint64_t rseq_va;
	uint32_t rseq_len, rseq_sig;
};

enum { NO_TARGET = UINT32_MAX };

struct shell {
	pid_t pid, ppid;
	bool ghost; /* fathers roots, lends its pid to their session; gone before the launch */
	pid_t ghost_sid;
	bool zombie; /* has exited as the source's had */
	bool parked;
	bool no_breakpoint; /* its SIGTRAP action would not survive the trap */
	int pidfd_slot;     /* descriptor in the shell: a pidfd of this process; -1: none now */
	uint32_t target;    /* of the page streams */
	bool built;         /* threads, files and attributes have been brought to a tree before */
	pid_t copy_of;      /* its memory is that shell's, and the source is still to be told; 0 */
	bool replayed;      /* it has the pages of an image */
	struct shell_thread **threads; /* [0] is the leader; n of them */
	size_t n_threads;
	struct vma *vmas; /* what is mapped, as last applied; owned */
	size_t n_vmas;
	struct addr_range *guards;
	size_t n_guards;
};

struct shells {
	struct rarea area;
	uint64_t hole_start, hole_end;
	VEC(struct shell *) list; /* as in the tree; ghosts apart */
	VEC(struct shell *) ghosts;
	VEC(struct blob_slot *) free_slots;
	struct ttys *ttys; /* the caller's */
	int pidfd_slot;    /* in shells when they are born */
	int self_pidfd;
	enum park_how park_how;
};

int shells_new(struct shells **ret, const struct tree *t, struct cr_err *err) must_check;
/* No mapping of p may lie in the hole: the source looks before it sends, but who trusts it? */
int shells_check_hole(const struct shells *s, const struct process *p,
		      struct cr_err *err) must_check;
/* The signal alone, for tasks that are frozen. NULL is fine. */
void shells_kill(struct shells *s);
/* Kill and reap everything that was made. NULL is fine. */
void shells_free(struct shells *s);
/* The tasks are on their own now: free our side only. */
void shells_forget(struct shells *s);

enum shells_copy {
	COPY_NONE, /* every process begins with an empty memory */
	COPY_NOW,  /* whose parent has pages already begins as a copy of it, as fork(2) makes one */
	COPY_ALWAYS, /* and who would if its parent had any waits for the next call */
};

/* Fork what the tree has and we have not, in cg; end what the tree no longer has. *ret_waiting: how
 * many processes are still to be made. */
int shells_sync_processes(struct shells *s, const struct tree *t, struct cgroup *cg,
			  enum shells_copy copy, size_t *ret_waiting,
			  struct cr_err *err) must_check;
/* Threads likewise, of one process; the shell must not be parked. */
int shells_sync_threads(struct shells *s, struct shell *sh, const struct process *p,
			struct cr_err *err) must_check;
/* Once all processes exist: groups, zombies; then the ghosts end. */
int shells_settle_structure(struct shells *s, const struct tree *t, struct cr_err *err) must_check;
/* Preflight: pids, sessions and groups that cannot be had here. */
void shells_check(const struct tree *t, struct refusals *refused);

struct shell *shells_find(const struct shells *s, pid_t pid);

/* The shell's way to our descriptors: there while it is built, gone when it is parked. */
int shell_take_pidfd(struct shells *s, struct shell *sh, struct cr_err *err) must_check;
int shell_drop_pidfd(struct shell *sh, struct cr_err *err) must_check;

/* All threads, for which seccomp is then suspended. Parking does it as well. */
int shell_seize_threads(struct shell *sh, struct cr_err *err) must_check;
/* The tasks wait: what is left for the shell's leader to do, who unmaps, it does before others have
 * their turn. Without CAP_SYS_NICE it is only slower. Whoever sets hurried, before the launch sets
 * the scheduling that the thread is to have. */
void shell_hurry(struct shell *sh, int priority);

int shell_park(struct shells *s, struct shell *sh, struct cr_err *err) must_check;
int shell_unpark(struct shells *s, struct shell *sh, struct cr_err *err) must_check;

/* p was stopped by a signal: sh is, and its parent in the tree knows of it as it did. sh is parked
 * then, its parent is not. Once both have all their threads, and before what is pending for them is
 * queued. */
int shell_stop(struct shells *s, struct shell *sh, const struct process *p,
	       struct cr_err *err) must_check;

/* Controlling terminals (shell_tty.c). take: p leads a session. check: brings it to what p has,
 * which a shell that is there already may not have. foreground: in the leader, once all groups
 * exist. */
int shell_take_tty(struct shells *s, struct shell *sh, const struct process *p,
		   struct cr_err *err) must_check;
int shell_check_tty(struct shells *s, struct shell *sh, const struct process *p,
		    struct cr_err *err) must_check;
int shell_set_foreground(struct shells *s, struct shell *sh, const struct tty *y,
			 struct cr_err *err) must_check;
/* A signal that the rebuilding has left pending in all of them, which its process has not had. */
int shells_drain_signal(struct shells *s, int signo, struct cr_err *err) must_check;

static inline struct rtask *shell_leader(const struct shell *sh)
{
	return &sh->threads[0]->rt;
}
