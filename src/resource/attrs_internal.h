/* What the files of the attributes share. Not for others: their interface is resource/resource.h.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "model/tree.h"
#include "remote/batch.h"
#include "resource/resource.h"

/* Between attrs_capture and the query: "has a handler, address not known yet". */
enum { ATTRS_HANDLER_UNKNOWN = 2 };

/* What is the same for all tasks of a capture: read once. */
struct attrs_host {
	unsigned int n_online;  /* cpus; 0: unknown */
	uint64_t fair_slice_ns; /* what sched_getattr shows for a task that asked for none */
	char *label;            /* of the security module; NULL: none */
	uint64_t user_ns;       /* inode */
};

/* ---- attrs_sched.c ---- */
int attrs_sched_capture(struct capture *c, const struct attrs_host *h, struct thread *th,
			struct cr_err *err) must_check;
/* From outside, where that is allowed (4.6; CAP_SYS_NICE): proc_pid_timerslack_ns(5). */
void attrs_sched_capture_slack(struct thread *th);
uint64_t attrs_sched_default_slice(void);
unsigned int attrs_online_cpus(void);
bool attrs_sched_differs(const struct thread *old, const struct thread *th);
int attrs_sched_apply(pid_t tid, const struct thread *th, struct cr_err *err) must_check;
void attrs_sched_check(const struct tree *t, struct refusals *refused);

/* ---- attrs_signals.c ---- */
#define SIGBIT(signo) (1ull << ((signo)-1))
/* Pending signals of a ptrace-stopped thread (or of its process, if shared). bits: what status says
 * is pending; a signal without a queue entry is found by it. */
/* Once it is known what is pending: is p stopped by a signal? */
void attrs_settle_stop(struct process *p);
int attrs_pending_capture(struct capture *c, pid_t tid, bool shared, uint64_t bits,
			  struct siginfo_rec **ret, size_t *ret_n, struct cr_err *err) must_check;
uint64_t attrs_pending_bits(const struct siginfo_rec *list, size_t n);
/* Is the signal of this timer among those that are pending? */
bool attrs_timer_pending(const struct process *p, const struct posix_timer_rec *tm);
void attrs_actions_expect(struct process *p, uint64_t ignored, uint64_t caught);
bool attrs_action_asked(const struct process *p, int signo);
int attrs_actions_queue(struct rtask *rt, const struct process *old, const struct process *p,
			struct cr_err *err) must_check;
int attrs_pending_queue(struct rtask *rt, const struct process *p, const struct thread *th,
			bool leader, struct cr_err *err) must_check;

/* ---- attrs_timers.c ---- */
/* The list of /proc/PID/timers, without values. */
int attrs_timers_capture(struct capture *c, struct process *p, struct cr_err *err) must_check;
bool attrs_timer_counts_cpu(const struct posix_timer_rec *tm);
bool attrs_timer_same(const struct posix_timer_rec *a, const struct posix_timer_rec *b);
void attrs_timers_check(const struct process *p, struct refusals *refused);
bool attrs_timers_armed(const struct process *p);
int attrs_timers_arm_queue(struct rtask *rt, const struct tree *t, const struct process *p,
			   uint64_t elapsed_ns, struct cr_err *err) must_check;
/* Where the kernel cannot be told an id: create and delete until it comes up. Runs batches. */
int attrs_timer_create_by_search(struct rtask *rt, const struct posix_timer_rec *tm,
				 struct cr_err *err) must_check;

/* ---- attrs_limits.c ---- */
int attrs_limits_capture(struct process *p, struct cr_err *err) must_check;
bool attrs_limits_differ(const struct process *old, const struct process *p);
/* Ahead: what cannot get in the way of the rebuild is set, the rest made as wide as can be. */
int attrs_limits_queue(struct rtask *rt, const struct process *old, const struct process *p,
		       struct cr_err *err) must_check;
bool attrs_limits_tight(const struct process *p);
int attrs_limits_late_queue(struct rtask *rt, const struct process *p,
			    struct cr_err *err) must_check;
void attrs_limits_check(const struct process *p, struct refusals *refused);

/* ---- attrs_creds.c ---- */
struct attrs_caps {
	uint64_t inh, prm, eff;
};
int attrs_capget(pid_t tid, struct attrs_caps *ret);
bool attrs_have_cap(int cap); /* effective in the calling thread */
void attrs_creds_check(const struct process *p, struct refusals *refused);
/* True if p's credentials are not those of the calling thread. */
bool attrs_creds_differ(const struct creds *cr);
int attrs_creds_queue(struct rtask *rt, const struct creds *cr, struct cr_err *err) must_check;

/* ---- attrs_seccomp.c ---- */
/* The filters that prev was known to have. */
int attrs_seccomp_copy(struct tree *t, struct thread *th, const struct tree *prev_tree,
		       const struct thread *prev, struct cr_err *err) must_check;
/* A process that has seccomp set: can it be had on this host? */
void attrs_seccomp_refuse_here(const struct process *p, struct refusals *refused);
/* Destination preflight. */
void attrs_seccomp_check(const struct process *p, struct refusals *refused);

/* ---- attrs_rebuild.c ---- */
/* Scratch memory for the arguments of the next call; if there is none left, what is queued is run
 * and all scratch memory reused. NULL: *err is filled. */
void *attrs_scratch(struct rtask *rt, size_t bytes, uint64_t *ret_va, struct cr_err *err);
void *attrs_scratch_copy(struct rtask *rt, const void *p, size_t bytes, uint64_t *ret_va,
			 struct cr_err *err);
