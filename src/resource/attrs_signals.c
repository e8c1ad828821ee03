/* Signals: actions of a process, what is pending for it and for its threads. Masks and alternate
 * stacks are elsewhere (the engine, attrs_query.c). */
#include "resource/attrs_internal.h"

#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>
#include "base/clock.h"
#include "kernel/procfs.h"
#include "kernel/task.h"

_Static_assert(sizeof(struct siginfo_rec) == sizeof(siginfo_t), "as the kernel hands it out");
_Static_assert(sizeof(struct sigaction_rec) == 32, "the kernel's struct sigaction on x86-64");

/* ---- pending signals ---- */

struct peek_args { /* struct ptrace_peeksiginfo_args, ptrace(2), 3.10 */
	uint64_t off;
	uint32_t flags;
	int32_t nr;
};

typedef VEC(struct siginfo_rec) siginfo_vec;

/* Reads the queue; *seen: signals that have an entry. */
static int peek_queue(pid_t tid, bool shared, siginfo_vec *out, uint64_t *seen, struct cr_err *err)
{
	siginfo_t buf[16];
	struct peek_args args = {.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
				 .nr = ARRAY_SIZE(buf)};

	for (;;) {
		long n = ptrace(PTRACE_PEEKSIGINFO, tid, &args, buf);

		if (n < 0) {
			err->pid = tid;
			return cr_err_sys(err, "reading the pending signals of %d", tid);
		}
		for (long i = 0; i < n; i++) {
			struct siginfo_rec *rec = vec_push(out);

			if (!rec)
				return cr_err_oom(err);
			memcpy(rec, &buf[i], sizeof(*rec));
			*seen |= SIGBIT(buf[i].si_signo);
		}
		args.off += (uint64_t)n;
		if (n < (long)ARRAY_SIZE(buf))
			return 0;
	}
}

/* When the kernel had no memory or the limit was reached, a signal is a bit in the set and nothing
 * else.
 */
static int add_bare(uint64_t bits, siginfo_vec *out, struct cr_err *err)
{
	for (int signo = 1; signo <= TREE_NSIG; signo++) {
		siginfo_t si = {.si_signo = signo, .si_code = SI_USER};
		struct siginfo_rec *rec;

		if (!(bits & SIGBIT(signo)))
			continue;
		rec = vec_push(out);
		if (!rec)
			return cr_err_oom(err);
		memcpy(rec, &si, sizeof(*rec));
	}
	return 0;
}

int attrs_pending_capture(struct capture *c, pid_t tid, bool shared, uint64_t bits,
			  struct siginfo_rec **ret, size_t *ret_n, struct cr_err *err)
{
	siginfo_vec list = {0};
	uint64_t seen = 0;

	int r = peek_queue(tid, shared, &list, &seen, err);
	if (!r)
		r = add_bare(bits & ~seen & ~SIGBIT(SIGKILL), &list, err);
	seen |= bits;
	*ret = NULL;
	*ret_n = list.n;
	if (!r && list.n) {
		*ret = arena_memdup(c->tree->arena, list.v, list.n * sizeof(*list.v));
		if (!*ret)
			r = cr_err_oom(err);
	}
	vec_done(&list);
	return r;
}

uint64_t attrs_pending_bits(const struct siginfo_rec *list, size_t n)
{
	uint64_t bits = 0;

	for (size_t i = 0; i < n; i++) {
		int32_t signo;

		memcpy(&signo, list[i].info, sizeof(signo));
		bits |= SIGBIT(signo);
	}
	return bits;
}

static bool timer_among(const struct siginfo_rec *list, size_t n, int32_t id)
{
	for (size_t i = 0; i < n; i++) {
		siginfo_t si;

		memcpy(&si, list[i].info, sizeof(si));
		if (si.si_code == SI_TIMER && si.si_timerid == id)
			return true;
	}
	return false;
}

bool attrs_timer_pending(const struct process *p, const struct posix_timer_rec *tm)
{
	const struct thread *th =
	    tm->notify & SIGEV_THREAD_ID ? process_find_thread(p, tm->notify_tid) : NULL;

	return th ? timer_among(th->pending, th->n_pending, tm->id)
		  : timer_among(p->pending, p->n_pending, tm->id);
}

/* A timer that went off after it was asked: its signal has been found, so it is not due again. */
static void settle_fired(const struct tree *t, struct process *p)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC) + (uint64_t)t->task_monotonic_offset_ns;
	uint64_t elapsed = now > t->clock_monotonic_ns ? now - t->clock_monotonic_ns : 0;

	for (size_t i = 0; i < p->n_timers; i++) {
		struct posix_timer_rec *tm = &p->timers[i];

		if (!tm->value_ns || tm->value_ns > elapsed || attrs_timer_counts_cpu(tm) ||
		    !attrs_timer_pending(p, tm))
			continue;
		tm->value_ns = tm->interval_ns ? tm->value_ns + tm->interval_ns : 0;
	}
}

static bool timer_notifies(const struct process *p, pid_t tid)
{
	for (size_t i = 0; i < p->n_timers; i++)
		if (p->timers[i].notify & SIGEV_THREAD_ID && p->timers[i].notify_tid == tid)
			return true;
	return false;
}

void attrs_settle_stop(struct process *p)
{
	uint64_t bits = attrs_pending_bits(p->pending, p->n_pending);

	for (size_t i = 0; i < p->n_threads; i++)
		bits |= attrs_pending_bits(p->threads[i].pending, p->threads[i].n_pending);
	/* Sent since the task was seized: it ends the stop at once, and waits to be handled. Any
	 * stop after that would have removed it, signal(7). */
	if (bits & SIGBIT(SIGCONT))
		p->stop_sig = 0;
	if (bits & SIGBIT(SIGSTOP)) { /* sent since then, or a moment before: a stop to come */
		p->stop_sig = SIGSTOP;
		p->stop_told = false;
	}
}

static int look_again(struct capture *c, struct process *p, struct thread *th, bool leader,
		      bool runs, struct cr_err *err)
{
	_cleanup_(proc_status_done) struct proc_status st = {0};
	int r = runs ? task_interrupt(th->tid, err) : 0;

	if (!r)
		r = proc_status_read(p->pid, th->tid, &st, err);
	if (!r)
		r = attrs_pending_capture(c, th->tid, false, st.sig_pnd, &th->pending,
					  &th->n_pending, err);
	if (!r && leader)
		r = attrs_pending_capture(c, th->tid, true, st.shd_pnd, &p->pending, &p->n_pending,
					  err);
	return r || !runs ? r : task_resume(th->tid, PTRACE_CONT, 0, err);
}

int attrs_pending_again(struct tree *t, struct process *p, bool all_run, struct refusals *refused,
			struct cr_err *err)
{
	struct capture c = {.tree = t, .refused = refused, .exact = true};
	int r = 0;

	for (size_t i = 0; i < p->n_threads && !r; i++)
		if (i == 0 || timer_notifies(p, p->threads[i].tid))
			r = look_again(&c, p, &p->threads[i], i == 0, i == 0 || all_run, err);
	if (!r)
		settle_fired(t, p);
	if (!r)
		attrs_settle_stop(p);
	return r ? cr_err_ctx(err, "pending signals of %d", p->pid) : 0;
}

/* The kernel lets a task impersonate itself only: si_code >= 0 and SI_TKILL are for the own tid
 * (rt_sigqueueinfo(2)), so every thread queues its own and the leader those of the process. All
 * signals are blocked, and a blocked signal is kept even where its action is to ignore it. */
static int queue_signals(struct rtask *rt, const struct process *p, pid_t tid,
			 const struct siginfo_rec *list, size_t n, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t va;
		int32_t signo;

		memcpy(&signo, list[i].info, sizeof(signo));
		if (signo == SIGKILL || signo == SIGSTOP)
			continue; /* cannot be blocked; see attrs_settle_stop() */
		if (!attrs_scratch_copy(rt, &list[i], sizeof(list[i]), &va, err))
			return -err->code;
		if (tid)
			rqueue(rt, "rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, p->pid, tid, signo,
			       va);
		else
			rqueue(rt, "rt_sigqueueinfo", SYS_rt_sigqueueinfo, p->pid, signo, va);
	}
	return 0;
}

int attrs_pending_queue(struct rtask *rt, const struct process *p, const struct thread *th,
			bool leader, struct cr_err *err)
{
	int r = queue_signals(rt, p, th->tid, th->pending, th->n_pending, err);

	if (!r && leader)
		r = queue_signals(rt, p, 0, p->pending, p->n_pending, err);
	return r;
}

/* ---- actions ---- */

/* What status tells of the actions: enough to know which to ask the task for. */
void attrs_actions_expect(struct process *p, uint64_t ignored, uint64_t caught)
{
	memset(p->sigactions, 0, sizeof(p->sigactions));
	for (int signo = 1; signo <= TREE_NSIG; signo++) {
		if (ignored & SIGBIT(signo))
			p->sigactions[signo - 1].handler = (uint64_t)SIG_IGN;
		else if (caught & SIGBIT(signo))
			p->sigactions[signo - 1].handler = ATTRS_HANDLER_UNKNOWN;
	}
}

/* SIGCHLD always: SA_NOCLDWAIT and SA_NOCLDSTOP matter with the default action too. */
bool attrs_action_asked(const struct process *p, int signo)
{
	return signo == SIGCHLD || p->sigactions[signo - 1].handler;
}

static bool is_zero(const struct sigaction_rec *a)
{
	return !a->handler && !a->flags && !a->restorer && !a->mask;
}

static int queue_action(struct rtask *rt, const struct process *p, int signo, struct cr_err *err)
{
	const struct sigaction_rec *a = &p->sigactions[signo - 1];
	uint64_t va;

	if (a->handler == ATTRS_HANDLER_UNKNOWN)
		return cr_err_set(err, CR_ERR_BUG, EINVAL,
				  "the handler of signal %d of %d was never asked for", signo,
				  p->pid);
	if (!attrs_scratch_copy(rt, a, sizeof(*a), &va, err))
		return -err->code;
	rqueue(rt, "rt_sigaction", SYS_rt_sigaction, signo, va, 0, sizeof(a->mask));
	return 0;
}

int attrs_actions_queue(struct rtask *rt, const struct process *old, const struct process *p,
			struct cr_err *err)
{
	int r = 0;

	for (int signo = 1; !r && signo <= TREE_NSIG; signo++) {
		const struct sigaction_rec *a = &p->sigactions[signo - 1];

		if (signo == SIGKILL || signo == SIGSTOP)
			continue;
		/* a fresh shell ignores what its parent does, and the agent does: with
		 * CLONE_CLEAR_SIGHAND, clone(2), only handlers go */
		if (old && !memcmp(a, &old->sigactions[signo - 1], sizeof(*a)))
			continue;
		r = queue_action(rt, p, signo, err);
	}
	return r;
}

bool attrs_sigtrap_fragile(const struct process *p)
{
	return !is_zero(&p->sigactions[SIGTRAP - 1]);
}
