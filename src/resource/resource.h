/* Kinds of resources: each is one file with its capture and its rebuild.
 *
 * Capture runs at the source, several times: *ahead* while the tasks run (nothing is stopped; what
 * only the task itself can tell is copied from the previous capture) and once *exact*, at the stop.
 * Rebuild runs at the destination with the tree of the previous capture (`old`, NULL the first
 * time) and the new one, and does only what differs.
 *
 * What a task must do itself is queued on its rtask; the caller runs all tasks' batches in
 * parallel. The rules: a *_queue function only queues (and may use scratch memory), a *_collect
 * function reads results; neither runs a batch. Other functions may run batches. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "model/refusal.h"
#include "model/tree.h"
#include "remote/batch.h"

/* A process of the tree as the source sees it. */
struct capture_proc {
	struct process *p;          /* being filled; pid, ids, threads' tids are set already */
	const struct process *prev; /* the same process in the previous capture, or NULL */
	int pidfd;                  /* owned by the caller */
	/* what the kernel says of its threads, all of them; NULL: only they themselves can tell */
	struct task_facts_list *facts;
};

/* What becomes of connected TCP sockets. */
enum tcp_mode {
	TCP_MODE_AUTO,        /* those that can go on do; the others as with CLOSE */
	TCP_MODE_ESTABLISHED, /* they go on; what cannot is refused by name */
	TCP_MODE_CLOSE,       /* the move closes them, the tasks see a reset */
	TCP_MODE_REFUSE,      /* refused by name */
};

struct taskview;
struct sock_alike;
struct pendview;
struct reuseview;
struct capture {
	struct tree *tree;        /* being filled; allocate from tree->arena */
	const struct tree *prev;  /* the previous capture, or NULL */
	struct refusals *refused; /* what cannot move; never NULL */
	bool exact;               /* the tasks are stopped: everything must be as of now */
	enum tcp_mode tcp;
	const struct taskview *view; /* NULL: no BPF */
	bool to_image;               /* what is known after the decision alone cannot come along */
	const struct vmaview *vmas;  /* tells whether madvise(2) has set anything; may be NULL */
	const struct sock_alike *socks; /* tells of many connections at once; may be NULL */
	const struct pendview *pending; /* tells what waits in sockets; may be NULL */
	const struct reuseview *reuse;  /* tells who chooses among sockets; may be NULL */
	uint64_t flags_cost;        /* so far, of finding that out without; see memory/capture.c */
	struct capture_proc *procs; /* one per tree->procs[] entry, same index */
};

/* ---- attributes of processes and threads (resource/attrs*.c) ----
 *
 * At the source: attrs_capture, then per thread attrs_query_queue, run, attrs_query_collect (or,
 *where nothing is stopped, attrs_copy_inside). At the destination, in this order:
 *	attrs_rebuild_process_queue	leader, before or after threads exist; repeatable
 *	attrs_rebuild_thread_queue	every thread, in itself; repeatable
 *	attrs_rebuild_outside		every thread, by the agent; repeatable
 *	attrs_timers_rebuild		leader, once all threads exist; repeatable
 *	attrs_late_queue		every thread, once, irrevocable
 *	attrs_launch_queue		every thread, once, all signals still blocked
 * Registers, xstate, sigmask and rseq_* are read by the engine at the stop. */

/* From outside (/proc, syscalls on the pid): works on running and on stopped tasks. Fills
 * everything of struct process / struct thread that is not memory, fds, cwd/root/umask, or told by
 * attrs_query_*. exact: the tasks are ptrace-stopped by the calling thread. Only then are pending
 * signals read, and of each thread only what may have changed is read again: what must not differ
 * between threads (credentials, seccomp, personality) is compared ahead. A task that is gone is an
 * error (-ESRCH) when exact, and skipped otherwise. */
int attrs_capture(struct capture *c, struct cr_err *err) must_check;

/* From inside, at a stop: comm, sigaltstack, clear_tid address, pdeathsig, no_new_privs, timer
 * slack (every thread); sigactions, itimers, POSIX timers' values, dumpable, subreaper, securebits,
 * clocks (only when first: the leader). Comes after attrs_capture of the same tree, which says
 * which actions and timers there are. queue (with nothing queued before) → caller runs → collect
 * with the same q, before anything else is queued. With more than 25 signal actions and timers the
 * leader's queueing runs a batch by itself, and with more than 40 timers collecting does. Needs 4
 * KiB of scratch. If tree->clock_monotonic_ns is 0, collect sets both clocks of the tree from the
 * task; timers are as of that moment. */
struct attrs_query {
	void *out;            /* in the scratch area */
	struct rcall *ret[8]; /* calls that tell by return value */
	bool signals_stale;   /* set by collect: run attrs_pending_again once all are collected */
};
enum attrs_ask {
	ATTRS_ASK_THREAD,
	ATTRS_ASK_PROCESS, /* the leader */
	/* the leader, before the rounds: timers and clocks are left alone; attrs_query_expect first
	 */
	ATTRS_ASK_AHEAD,
};
int attrs_query_queue(struct rtask *rt, struct attrs_query *q, const struct process *p,
		      const struct thread *th, enum attrs_ask what, struct cr_err *err) must_check;
int attrs_query_collect(struct rtask *rt, struct attrs_query *q, struct tree *t, struct process *p,
			struct thread *th, enum attrs_ask what, struct cr_err *err) must_check;
/* Which signals have actions that only the task can tell, as of now: in place of what attrs_capture
 * said ahead. */
int attrs_query_expect(struct process *p, struct cr_err *err) must_check;
/* The pending signals of p once more, since a timer went off between attrs_capture and the query.
 * The leader, or all threads, run the executor, traced by this thread, and are interrupted for it;
 * the others are stopped. */
int attrs_pending_again(struct tree *t, struct process *p, bool all_run, struct refusals *refused,
			struct cr_err *err) must_check;
/* Where no query is made (ahead): what only the query tells is taken over from the previous
 * capture. prev NULL: defaults. threads_told: of the threads all is known (capture_proc.facts). */
void attrs_copy_inside(struct tree *t, struct process *p, const struct process *prev,
		       bool threads_told);
/* What a thread that was not asked would most likely say, judged by the leader, who was. */
void attrs_guess_inside(const struct process *p, struct thread *th);

/* Destination preflight: scheduling, limits, credentials, clocks, cpu features that cannot be had
 * here. */
void attrs_check(const struct tree *t, struct refusals *refused);

/* True if anything the rebuild functions below would set differs between old and p (old != NULL):
 * then call them again; for a process: _process_queue, _outside of the leader and _timers_rebuild.
 * Not compared: what late, launch and the engine set. */
bool attrs_process_differs(const struct process *old, const struct process *p);
bool attrs_thread_differs(const struct thread *old, const struct thread *th);

/* Rebuild, privileged part; old NULL: a fresh shell (root, all signals default and blocked).
 * Registers rseq if th->rseq_va is set: its memory must be mapped writable, and must be written by
 * the last page pass afterwards. */
int attrs_rebuild_process_queue(struct rtask *rt, const struct process *old,
				const struct process *p, struct cr_err *err) must_check;
int attrs_rebuild_thread_queue(struct rtask *rt, const struct process *p, const struct thread *old,
			       const struct thread *th, struct cr_err *err) must_check;
/* From the agent, for a task in a shell: oom_score_adj, coredump_filter, affinity, scheduling,
 * timer slack, io priority: what can be set from outside. Also whenever the task's scheduling was
 * changed meanwhile. */
int attrs_rebuild_outside(pid_t tid, const struct process *p, const struct thread *th, bool leader,
			  struct cr_err *err) must_check;
/* POSIX timers are created, disarmed, with the ids that they had; on the leader once all threads
 * exist (a timer may signal one of them). Runs batches. */
int attrs_timers_rebuild(struct rtask *rt, const struct process *old, const struct process *p,
			 struct cr_err *err) must_check;

/* Last, and irrevocable: tight limits, credentials, then what a change of credentials resets
 * (dumpable, pdeathsig), no_new_privs. attrs_needs_late: false for a task with the credentials of
 * this agent and defaults; what belongs to the process is told for its first thread. Once any
 * thread of a process needs it, all of them must run it. pdeathsig acts when the parent ends: the
 * parent must be the final one. */
bool attrs_needs_late(const struct process *p, const struct thread *th);
int attrs_late_queue(struct rtask *rt, const struct process *p, const struct thread *th,
		     bool leader, struct cr_err *err) must_check;

/* Timers and pending signals, at the switch-over, inside the task. False: nothing to set.
 * now_monotonic_ns: CLOCK_MONOTONIC as the task reads it now, for timers that are not armed at an
 * absolute time; 0: unknown, they then go off late by the time since the capture. */
bool attrs_needs_launch(const struct process *p, const struct thread *th, bool leader);
int attrs_launch_queue(struct rtask *rt, const struct tree *t, const struct process *p,
		       const struct thread *th, bool leader, uint64_t now_monotonic_ns,
		       struct cr_err *err) must_check;

/* Seccomp filters of a thread that the calling thread has stopped by ptrace; prev: what was known
 * of it, or NULL. At the destination they are installed, with strict mode, in the threads' rtasks
 * (one per thread of p), after all else but attrs_late_queue, which may take the privilege away.
 * The threads must be traced with PTRACE_O_SUSPEND_SECCOMP: from then on their filters would end
 * them.
 */
int attrs_seccomp_capture(struct tree *t, const struct process *p, struct thread *th,
			  const struct tree *prev_tree, const struct thread *prev,
			  struct refusals *refused, struct cr_err *err) must_check;
bool attrs_seccomp_needed(const struct process *p);
int attrs_seccomp_install(struct rtask *const *rts, const struct tree *t, const struct process *p,
			  struct cr_err *err) must_check;

/* A breakpoint trap resets an ignored or blocked SIGTRAP to default: true if p's action is another,
 * and the park has to do without one. */
bool attrs_sigtrap_fragile(const struct process *p);

/* ---- open files, cwd, root, umask (resource/files*.c, fileset*.c and one file per kind) ---- */

/* Fills tree->files, every process's fds, cwd, root, umask, and tree->boot_id; shared descriptions
 * are told by kcmp(2). Index assignment is deterministic: processes in tree order, descriptors
 * ascending. A memfd that only a descriptor holds is appended to tree->objects, so that array may
 * move. Kinds that cannot move go to c->refused by name, with pid and descriptor number and path;
 * so do processes in other namespaces than the caller's (the time namespace excepted). Ahead, a
 * descriptor that goes away meanwhile is left out; with exact set it is an error. Volatile state
 * (positions, pipe contents, counters, timers) is read in exact captures and may be missing or
 * stale in others. */
int files_capture(struct capture *c, struct cr_err *err) must_check;

/* Destination preflight: paths exist and agree, addresses can be bound, devices are there. */
void files_check(const struct tree *t, struct refusals *refused);

/* True if nothing differs but what fileset_settle sets: then neither fileset_build nor
 * fileset_install is needed. */
bool files_same_shape(const struct tree *old, const struct tree *t);

/* The descriptions that the destination agent holds, one descriptor of ours per tree->files entry.
 * Our descriptors are references like any other: pipes see no end of file, ports stay taken, until
 * fileset_free(), so call it as soon as the tasks run. */
struct fileset;
struct fileset *fileset_new(void); /* NULL when memory is out */
/* Closes all and removes what fileset_build left in the file system (temporary socket names);
 * between fileset_prepare and fileset_launch those stay, for whoever finishes in our place. */
void fileset_free(struct fileset *fs);
/* What was prepared will not be launched by anybody: fileset_free shall remove all. Takes NULL. */
void fileset_undo(struct fileset *fs);
/* The tasks' CLOCK_MONOTONIC and CLOCK_BOOTTIME less ours, for timerfds. Not called: 0. */
void fileset_set_clocks(struct fileset *fs, int64_t monotonic_ns, int64_t boottime_ns);
/* The way into the shells, for what has to be made by the very process: *slot is where the shell
 * holds a pidfd of ours, as for fileset_install. Negative: there is no such shell. Not set: all is
 * made by the agent. Used during fileset_build. */
struct fileset_tasks {
	int (*enter)(void *arg, pid_t pid, struct rtask **rt, int *slot);
	void *arg;
};
/* For connections: stays the caller's, and until fileset_launch(). */
struct net_ways;
void fileset_set_ways(struct fileset *fs, const struct net_ways *ways);
void fileset_set_tasks(struct fileset *fs, const struct fileset_tasks *tasks);
/* Open what t lists. Called again with a later tree, it opens only what is new and closes what is
 * gone; then every process needs fileset_install again (which likewise does only what differs).
 * object_fds[i]: descriptor for tree->objects[i], stays the caller's. The shells exist already,
 * with their final pids (a description may be of a file below /proc/PID). */
int fileset_build(struct fileset *fs, const struct tree *t, const int *object_fds,
		  struct cr_err *err) must_check;
/* Install process p's descriptors, cwd, umask and epoll targets. The shell's table then holds
 * exactly p->fds plus *agent_pidfd_slot. Runs batches. Processes in tree order. *agent_pidfd_slot:
 * descriptor number in the shell under which it holds a pidfd of this process
 * (pidfd_getfd(2), 5.6); if p->fds needs that number, the pidfd is moved and the new number stored.
 * The shell still has CAP_SYS_PTRACE: before attrs_late_queue(). The first call for a shell closes
 * all that it inherited; numbers reach up to the highest in p->fds, so RLIMIT_NOFILE must allow
 * them. */
int fileset_install(struct fileset *fs, struct rtask *rt, const struct tree *t,
		    const struct process *p, int *agent_pidfd_slot, struct cr_err *err) must_check;
/* After the last fileset_install of a tree: unix connections that nobody has accepted wait at their
 * listeners, connected by the processes that have them. */
int fileset_queue_clients(struct fileset *fs, const struct tree *t, struct cr_err *err) must_check;
/* The root directory, where it is not ours: irrevocable, as the shell finds no path of ours after
 * it. On the leader, after the last fileset_install and before attrs_late_queue. */
bool fileset_needs_late(const struct process *p);
int fileset_late_queue(struct rtask *rt, const struct process *p, struct cr_err *err) must_check;
/* Volatile state of the final capture: positions, pipe contents, eventfd counters, timerfds, status
 * flags. Runs in the agent on its own descriptors, tasks are not involved. After build and install.
 */
int fileset_settle(struct fileset *fs, const struct tree *t, struct cr_err *err) must_check;
/* When all is prepared and nothing has run: TCP sockets start to listen. Before, they only reserve
 * their ports. After it the tasks' sockets need nothing more of this process. */
int fileset_prepare(struct fileset *fs, const struct tree *t, struct cr_err *err) must_check;
/* What fileset_launch() will rename, for a journal: whoever finishes in our place does the same.
 * Stops at the first non-zero result of fn and returns it. */
int fileset_renames(const struct fileset *fs, const struct tree *t,
		    int (*fn)(const char *from, const char *to, void *arg), void *arg);
/* At the point of no return, before the tasks run: unix sockets take over their paths. */
int fileset_launch(struct fileset *fs, const struct tree *t, struct cr_err *err) must_check;

/* After that, before the tasks run: connections that nobody had accepted at the source wait here to
 * be accepted. What fails is logged. */
void fileset_tell_waiting(struct fileset *fs, const struct tree *t, const struct waiting *list);

/* ---- terminals (resource/tty*.c) ---- */

/* Device number of the slave of a pseudoterminal: its number. */
bool tty_number(uint64_t rdev, uint32_t *ret);

/* At the destination: both sides of each terminal, before the processes whose controlling terminal
 * it is to be. */
struct ttys;
struct ttys *ttys_new(void); /* NULL when memory is out */
void ttys_free(struct ttys *y);
/* Makes what t has anew and closes what it has no more. *ret_resized: the size of one that was
 * there has changed, and its processes have got a SIGWINCH. */
int ttys_sync(struct ttys *y, const struct tree *t, bool *ret_resized,
	      struct cr_err *err) must_check;
/* A descriptor of our own of the slave; -1: there is none. */
int ttys_slave(const struct ttys *y, uint32_t number);
/* The caller keeps it for as long as the fileset is built and settled. */
void fileset_set_ttys(struct fileset *fs, struct ttys *y);

/* At the source: what waits in terminals goes into t, whose tasks are stopped. If that failed or is
 * undone it is put back, by whoever has t. */
int ttys_drain(struct tree *t, struct cr_err *err) must_check;
int ttys_put_back(const struct tree *t, struct cr_err *err) must_check;

/* At the source, before the decision: has an event come since the final capture? -EAGAIN. */
int inotify_verify(const struct tree *t, struct cr_err *err) must_check;

/* System V semaphore sets and message queues (resource/sysv_ipc.c): those that the tree uses. */
int sysv_ipc_capture(struct capture *c, struct cr_err *err) must_check;
/* Destination preflight. */
void sysv_ipc_check(const struct tree *t, struct refusals *refused);
/* At the final stop: made; then, once it is journalled, filled, by the processes that used it. */
struct fileset_tasks;
int sysv_ipc_make(const struct sysv_set *s, struct cr_err *err) must_check;
int sysv_ipc_fill(const struct sysv_set *s, const struct fileset_tasks *tasks,
		  struct cr_err *err) must_check;

/* ---- file locks (resource/locks.c) ---- */

/* In the executor of p, as what it was captured as holding. take: at the destination, once its
 * descriptors are there; -EAGAIN: somebody else has one. release: at the source, which the
 * executor's scratch memory is kept for from then on; the task takes them again by itself should
 * this process die. retake: -EAGAIN after 2 s; then the task can be left to do that. */
int locks_take(struct rtask *rt, const struct process *p, struct cr_err *err) must_check;
int locks_release(struct rtask *rt, const struct process *p, struct cr_err *err) must_check;
int locks_retake(struct rtask *rt, const struct process *p, struct cr_err *err) must_check;

/* ---- what fileset_launch needs of the network, and who does it elsewhere (resource/net_*.c) ----
 */

/* Destination preflight: can these addresses be taken over? */
void net_check(const struct tree *t, struct refusals *refused);
/* True if fileset_launch has more to do than what fileset_renames tells. */
bool net_needs_launch(const struct tree *t);
/* The addresses of t come to this host, and neighbours hear of it. announce_fd: as for
 * netdev_announce(). */
int net_take_addresses(const struct tree *t, int *announce_fd, struct cr_err *err) must_check;
/* In place of a process that got lost between fileset_prepare and the end of fileset_launch: the
 * connections of the tasks, which are frozen, talk to their peers. What fails is logged: the tasks
 * run in any case. */
int net_finish_launch(const struct tree *t, struct cr_err *err) must_check;
/* Its other end is this host: what it says, the socket there says. */
bool net_is_inside(const struct tree *t, const struct file *f);

/* The source's sockets out of the network while their state is taken. */
struct net_lock;
struct reqview;
/* requests: to find handshakes by that have begun; NULL: they are lost. NULL when memory is out. */
struct net_lock *net_lock_new(const struct reqview *requests);
/* Nothing reaches the connections and UDP sockets of the tasks, which are stopped, and, if asked
 * for, no handshake begins at their listeners; their state, and what waits in them, is added to t.
 * After a failure: net_lock_undo(). */
int net_lock_take(struct net_lock *l, struct tree *t, bool all, struct cr_err *err) must_check;
/* Nothing has come in since? */
int net_lock_verify(const struct net_lock *l, struct cr_err *err) must_check;
/* After the decision, once no packet comes for them any more: connections that nobody has accepted
 * are taken out of the listeners' queues and dumped, into t's arena; with them those of which the
 * handshake has been answered, but not come to its end. */
int net_lock_accept(struct net_lock *l, const struct tree *t, struct waiting *ret,
		    struct cr_err *err) must_check;
/* As they were. */
int net_lock_undo(struct net_lock *l, struct cr_err *err) must_check;
/* Closes our references: that of a task that has ended is then silent. Takes NULL. */
void net_lock_free(struct net_lock *l);
/* The same for a process that got lost with a lock taken: the sockets of pid, which was
 * held: that comes before any lock. */
int net_unlock_process(pid_t pid, struct cr_err *err) must_check;
/* net_lock_accept() in the place of a process that got lost: from the sockets of pid, added to *w.
 * clock_offset_ns: the tasks' CLOCK_MONOTONIC less ours. */
int net_accept_process(pid_t pid, struct arena *a, int64_t clock_offset_ns, struct waiting *w,
		       struct cr_err *err) must_check;
