/* What only the task itself can tell: asked by the parasite at a stop. Few calls, since every
 * thread pays for them in the downtime. */
#include "resource/attrs_internal.h"

#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

#ifndef PR_GET_MDWE
#define PR_GET_MDWE 66 /* 6.3 */
#endif

/* arch_prctl(2), Documentation/arch/x86/xstate.rst, 5.16: what may be used of the state that has to
 * be asked for. */
#define ARCH_GET_XCOMP_PERM 0x1022
#define XCOMP_TILE_DATA (1ull << 18)

enum {
	TIMERS_PER_BATCH = 40,
	SAFE_CALLS = 37, /* so many may be queued before those that tell by value: a slot has 48 */
};

enum {
	RET_NNP,
	RET_SLACK,
	RET_SECCOMP,
	RET_DUMPABLE,
	RET_THP,
	RET_SECUREBITS,
	RET_MDWE,
	RET_XCOMP
};

struct kernel_stack { /* stack_t, sigaltstack(2) */
	uint64_t sp;
	int32_t flags;
	uint64_t size;
};
_Static_assert(sizeof(struct kernel_stack) == sizeof(stack_t), "as the kernel lays it out");

struct query_out {
	struct kernel_stack altstack;
	uint64_t clear_tid_va;
	char comm[16];
	int32_t pdeathsig;
	/* the leader's */
	int32_t subreaper;
	uint64_t pending; /* of the leader and of the process, after the timers: all is blocked */
	uint64_t xcomp_perm;
	struct itimerval itimers[3];
	struct timespec monotonic, boottime;
	struct sigaction_rec actions[TREE_NSIG];
	struct itimerspec timers[TIMERS_PER_BATCH];
};

#define AT(member) (va + offsetof(struct query_out, member))

static void queue_thread(struct rtask *rt, uint64_t va)
{
	rqueue(rt, "sigaltstack", SYS_sigaltstack, 0, AT(altstack));
	/* 3.5, needs CONFIG_CHECKPOINT_RESTORE: PR_GET_TID_ADDRESS(2const) */
	rqueue(rt, "PR_GET_TID_ADDRESS", SYS_prctl, PR_GET_TID_ADDRESS, AT(clear_tid_va));
	rqueue(rt, "PR_GET_PDEATHSIG", SYS_prctl, PR_GET_PDEATHSIG, AT(pdeathsig));
	rqueue(rt, "PR_GET_NAME", SYS_prctl, PR_GET_NAME, AT(comm));
}

static size_t timers_in_batch(const struct process *p)
{
	return p->n_timers < TIMERS_PER_BATCH ? p->n_timers : TIMERS_PER_BATCH;
}

/* Returns how many calls it queued; results are in scratch memory, so they may be of several
 * batches. */
static unsigned int queue_process(struct rtask *rt, const struct process *p, uint64_t va,
				  bool timers)
{
	unsigned int n = 0;

	for (int signo = 1; signo <= TREE_NSIG; signo++) {
		if (!attrs_action_asked(p, signo))
			continue;
		rqueue(rt, "rt_sigaction", SYS_rt_sigaction, signo, 0, AT(actions[signo - 1]), 8);
		n++;
	}
	rqueue(rt, "PR_GET_CHILD_SUBREAPER", SYS_prctl, PR_GET_CHILD_SUBREAPER, AT(subreaper));
	if (!timers)
		return n + 1;
	for (int which = 0; which < 3; which++)
		rqueue(rt, "getitimer", SYS_getitimer, which, AT(itimers[which]));
	for (size_t i = 0; i < timers_in_batch(p); i++)
		rqueue(rt, "timer_gettime", SYS_timer_gettime, p->timers[i].id, AT(timers[i]));
	rqueue(rt, "rt_sigpending", SYS_rt_sigpending, AT(pending), 8);
	/* after the timers: time left and clock then add up to when they go off or a bit later,
	 * never earlier */
	rqueue(rt, "clock_gettime", SYS_clock_gettime, CLOCK_MONOTONIC, AT(monotonic));
	rqueue(rt, "clock_gettime", SYS_clock_gettime, CLOCK_BOOTTIME, AT(boottime));
	return n + 7 + (unsigned int)timers_in_batch(p);
}

int attrs_query_queue(struct rtask *rt, struct attrs_query *q, const struct process *p,
		      const struct thread *th, enum attrs_ask what, struct cr_err *err)
{
	const bool first = what != ATTRS_ASK_THREAD;
	unsigned int n = 4;
	uint64_t va;

	(void)th;
	*q = (struct attrs_query){0};
	q->out = attrs_scratch(
	    rt, first ? sizeof(struct query_out) : offsetof(struct query_out, subreaper), &va, err);
	if (!q->out)
		return -err->code;
	queue_thread(rt, va);
	if (first)
		n += queue_process(rt, p, va, what == ATTRS_ASK_PROCESS);
	if (n > SAFE_CALLS) {
		int r = rtask_run(rt, err);
		if (r)
			return r;
	}
	q->ret[RET_NNP] = rqueue(rt, "PR_GET_NO_NEW_PRIVS", SYS_prctl, PR_GET_NO_NEW_PRIVS);
	q->ret[RET_SLACK] = rqueue(rt, NULL, SYS_prctl, PR_GET_TIMERSLACK);
	/* strict mode forbids to ask, but it is suspended */
	q->ret[RET_SECCOMP] = rqueue(rt, "PR_GET_SECCOMP", SYS_prctl, PR_GET_SECCOMP);
	if (!first)
		return 0;
	q->ret[RET_DUMPABLE] = rqueue(rt, "PR_GET_DUMPABLE", SYS_prctl, PR_GET_DUMPABLE);
	q->ret[RET_THP] = rqueue(rt, "PR_GET_THP_DISABLE", SYS_prctl, PR_GET_THP_DISABLE);
	q->ret[RET_SECUREBITS] = rqueue(rt, "PR_GET_SECUREBITS", SYS_prctl, PR_GET_SECUREBITS);
	q->ret[RET_MDWE] = rqueue(rt, NULL, SYS_prctl, PR_GET_MDWE);
	q->ret[RET_XCOMP] = rqueue(rt, NULL, SYS_arch_prctl, ARCH_GET_XCOMP_PERM, AT(xcomp_perm));
	return 0;
}

/* ---- results ---- */

static uint64_t ns_of(const struct timespec *ts)
{
	return (uint64_t)ts->tv_sec * 1000000000ull + (uint64_t)ts->tv_nsec;
}

static uint64_t us_of(const struct timeval *tv)
{
	return (uint64_t)tv->tv_sec * 1000000ull + (uint64_t)tv->tv_usec;
}

/* Time left is counted from the tree's clock reading, whenever this process was asked. */
static uint64_t since_tree_clock(const struct tree *t, const struct timespec *monotonic)
{
	uint64_t now = ns_of(monotonic);

	return now > t->clock_monotonic_ns ? now - t->clock_monotonic_ns : 0;
}

static void take_timer(struct posix_timer_rec *tm, const struct itimerspec *its, uint64_t later_ns)
{
	tm->interval_ns = ns_of(&its->it_interval);
	tm->value_ns = ns_of(&its->it_value);
	if (tm->value_ns && !attrs_timer_counts_cpu(tm))
		tm->value_ns += later_ns;
}

static void take_itimers(struct process *p, const struct query_out *out, uint64_t later_ns)
{
	for (int which = 0; which < 3; which++) {
		p->itimers[which].interval_us = us_of(&out->itimers[which].it_interval);
		p->itimers[which].value_us = us_of(&out->itimers[which].it_value);
	}
	struct itimer_rec *real = &p->itimers[ITIMER_REAL];
	if (real->value_us)
		real->value_us += (later_ns + 999) / 1000;
	/* It has expired, and the kernel arms it again when the SIGALRM is taken: the same comes of
	 * one that is due at once, whose signal is one with that which is pending. With no SIGALRM
	 * pending it stays as dead as it is: the signal was ignored or thrown away. */
	else if (real->interval_us && out->pending & SIGBIT(SIGALRM))
		real->value_us = 1;
}

/* Were signals queued between the look at them and the look at the timers? Then a timer that has
 * expired by now would be missing among both. */
static bool signals_stale(const struct process *p, uint64_t pending)
{
	uint64_t known = attrs_pending_bits(p->pending, p->n_pending) |
			 attrs_pending_bits(p->threads[0].pending, p->threads[0].n_pending);

	if (pending & ~known)
		return true;
	for (size_t i = 0; i < p->n_timers; i++) {
		const struct posix_timer_rec *tm = &p->timers[i];

		if (tm->value_ns || tm->notify == SIGEV_NONE || attrs_timer_pending(p, tm))
			continue;
		/* what waits for one thread does not show in the leader's */
		if (tm->notify & SIGEV_THREAD_ID || pending & SIGBIT(tm->signo))
			return true;
	}
	return false;
}

/* Timers that had no room in the first batch. Their rtask is idle: the results were collected. */
static int query_more_timers(struct rtask *rt, const struct tree *t, struct process *p, size_t from,
			     struct cr_err *err)
{
	while (from < p->n_timers) {
		size_t left = p->n_timers - from;
		size_t n = left < TIMERS_PER_BATCH ? left : TIMERS_PER_BATCH;
		uint64_t va;

		rtask_scratch_reset(rt);
		struct query_out *out = attrs_scratch(rt, sizeof(*out), &va, err);
		if (!out)
			return -err->code;
		for (size_t i = 0; i < n; i++)
			rqueue(rt, "timer_gettime", SYS_timer_gettime, p->timers[from + i].id,
			       AT(timers[i]));
		rqueue(rt, "clock_gettime", SYS_clock_gettime, CLOCK_MONOTONIC, AT(monotonic));
		int r = rtask_run(rt, err);
		if (r)
			return r;
		for (size_t i = 0; i < n; i++)
			take_timer(&p->timers[from + i], &out->timers[i],
				   since_tree_clock(t, &out->monotonic));
		from += n;
	}
	return 0;
}

static int unsupported(const struct process *p, const char *what, struct cr_err *err)
{
	err->pid = p->pid;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "%d: %s: not supported", p->pid, what);
}

static int collect_process(const struct attrs_query *q, struct process *p, struct cr_err *err)
{
	const struct query_out *out = q->out;

	if (q->ret[RET_THP]->ret > 1)
		return unsupported(p, "PR_SET_THP_DISABLE with exceptions", err);
	if (q->ret[RET_MDWE]->ret > 0)
		return unsupported(p, "PR_SET_MDWE (memory-deny-write-execute)", err);
	/* without the permission its next tile instruction would be a SIGILL */
	if (!q->ret[RET_XCOMP]->ret && out->xcomp_perm & XCOMP_TILE_DATA)
		return unsupported(p, "AMX (it has asked for the use of tile data)", err);
	p->mm.dumpable = (int)q->ret[RET_DUMPABLE]->ret;
	p->mm.thp_disable = q->ret[RET_THP]->ret;
	p->creds.securebits = (uint32_t)q->ret[RET_SECUREBITS]->ret;
	p->child_subreaper = out->subreaper;
	for (int signo = 1; signo <= TREE_NSIG; signo++)
		if (attrs_action_asked(p, signo))
			p->sigactions[signo - 1] = out->actions[signo - 1];
	return 0;
}

static int collect_timers(struct rtask *rt, struct attrs_query *q, struct tree *t,
			  struct process *p, struct cr_err *err)
{
	const struct query_out *out = q->out;

	if (!t->clock_monotonic_ns) {
		t->clock_monotonic_ns = ns_of(&out->monotonic);
		t->clock_boottime_ns = ns_of(&out->boottime);
	}
	uint64_t later_ns = since_tree_clock(t, &out->monotonic);
	take_itimers(p, out, later_ns);
	for (size_t i = 0; i < timers_in_batch(p); i++)
		take_timer(&p->timers[i], &out->timers[i], later_ns);
	uint64_t pending = out->pending; /* out is scratch memory */
	int r = query_more_timers(rt, t, p, timers_in_batch(p), err);
	q->signals_stale = !r && signals_stale(p, pending);
	return r;
}

int attrs_query_collect(struct rtask *rt, struct attrs_query *q, struct tree *t, struct process *p,
			struct thread *th, enum attrs_ask what, struct cr_err *err)
{
	const struct query_out *out = q->out;

	th->altstack_sp = out->altstack.sp;
	th->altstack_size = out->altstack.size;
	/* SS_ONSTACK is about the stack pointer, not about the alternate stack */
	th->altstack_flags = out->altstack.flags & ~SS_ONSTACK;
	th->clear_tid_va = out->clear_tid_va;
	th->pdeathsig = out->pdeathsig;
	memcpy(th->comm, out->comm, sizeof(th->comm));
	th->no_new_privs = q->ret[RET_NNP]->ret;
	th->seccomp_mode = (uint32_t)q->ret[RET_SECCOMP]->ret;
	if (th->seccomp_mode == SECCOMP_MODE_FILTER && !th->n_seccomp_filters)
		return unsupported(p, "seccomp filters that this agent may not read", err);
	th->timer_slack_ns = q->ret[RET_SLACK]->ret >= 0 ? (uint64_t)q->ret[RET_SLACK]->ret : 0;
	if (what == ATTRS_ASK_THREAD)
		return 0;
	int r = collect_process(q, p, err);
	return r || what == ATTRS_ASK_AHEAD ? r : collect_timers(rt, q, t, p, err);
}

/* ---- ahead: from the capture before ---- */

static void copy_thread(struct thread *th, const struct thread *prev)
{
	th->altstack_sp = prev->altstack_sp;
	th->altstack_size = prev->altstack_size;
	th->altstack_flags = prev->altstack_flags;
	th->clear_tid_va = prev->clear_tid_va;
	th->pdeathsig = prev->pdeathsig;
	if (!th->timer_slack_ns) /* it may show from outside */
		th->timer_slack_ns = prev->timer_slack_ns;
	th->rseq_va = prev->rseq_va;
	th->rseq_len = prev->rseq_len;
	th->rseq_sig = prev->rseq_sig;
	th->rseq_flags = prev->rseq_flags;
}

/* A C library keeps what belongs to a thread in one descriptor: the word that says that it has
 * ended lies as far from the robust list's head as it does in the leader, and holds the thread's
 * id; or it is the same for all. rseq is not guessed: the kernel would write there. */
void attrs_guess_inside(const struct process *p, struct thread *th)
{
	const struct thread *lead = &p->threads[0];
	pid_t word = 0;

	th->altstack_flags = SS_DISABLE; /* none */
	if (!th->timer_slack_ns)
		th->timer_slack_ns = lead->timer_slack_ns;
	if (!lead->clear_tid_va)
		return;
	uint64_t va = th->robust_list_va + (lead->clear_tid_va - lead->robust_list_va);
	struct iovec local = {&word, sizeof(word)}, remote = {(void *)va, sizeof(word)};

	if (!th->robust_list_va || !lead->robust_list_va ||
	    process_vm_readv(p->pid, &local, 1, &remote, 1, 0) != sizeof(word) || word != th->tid)
		va = lead->clear_tid_va;
	th->clear_tid_va = va;
}

/* An action that is new since then stays default until the task is asked. */
static void copy_actions(struct process *p, const struct process *prev)
{
	for (int i = 0; i < TREE_NSIG; i++) {
		struct sigaction_rec *a = &p->sigactions[i];
		const struct sigaction_rec none = {0}, *was = prev ? &prev->sigactions[i] : &none;
		bool handler = a->handler == ATTRS_HANDLER_UNKNOWN;

		if (handler)
			*a = was->handler > (uint64_t)SIG_IGN ? *was : none;
		else if (a->handler == was->handler)
			*a = *was;
	}
}

void attrs_copy_inside(struct tree *t, struct process *p, const struct process *prev,
		       bool threads_told)
{
	(void)t;
	copy_actions(p, prev);
	if (!prev)
		return;
	p->mm.dumpable = prev->mm.dumpable;
	p->creds.securebits = prev->creds.securebits;
	p->child_subreaper = prev->child_subreaper;
	for (size_t i = 0; i < p->n_threads && !threads_told; i++) {
		const struct thread *was = process_find_thread(prev, p->threads[i].tid);

		if (was)
			copy_thread(&p->threads[i], was);
		else
			attrs_guess_inside(p, &p->threads[i]);
	}
}
