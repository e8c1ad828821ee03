/* Keep stopped tasks from running should we die: a SIGSTOP in every thread.
 *
 * A stopped task has it pending. When a tracer dies, its tracees go on; each then finds the SIGSTOP
 * before it returns to user code and enters a group stop. To take it back while we live, the task
 * is let into its signal-delivery stop with all other signals blocked, the SIGSTOP dropped there,
 * and the task trapped again before it leaves the kernel's signal code: neither an interrupted
 * system call nor another pending signal notices.
 *
 * A task that runs (the executor, waiting) takes the SIGSTOP at once and enters its signal-delivery
 * stop, of which our death makes the group stop. To take that back the signal is dropped. */
#include "source/seize.h"

#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "kernel/task.h"
#include "source/seize_tasks.h"

enum { UNHOLD_US = 5000000 };

static bool is_running(pid_t tid)
{
	struct __ptrace_peeksiginfo_args args = {.nr = 1};
	siginfo_t si;

	return ptrace(PTRACE_PEEKSIGINFO, tid, &args, &si) < 0 && errno == ESRCH;
}

int seizure_hold(struct seizure *s, struct cr_err *err)
{
	s->held = true; /* also when it fails half way: unhold then takes back what there is */
	vec_foreach (p, &s->procs) {
		vec_foreach (t, &p->tasks) {
			if (t->dead)
				continue;
			t->held_running = is_running(t->tid);
			if (!syscall(SYS_tgkill, p->pid, t->tid, SIGSTOP))
				continue;
			t->held_running = false;
			if (errno != ESRCH)
				return cr_err_sys(err, "holding task %d", t->tid);
			t->dead = true;
		}
	}
	return 0;
}

int seizure_leave_stopped(struct seizure *s, struct cr_err *err)
{
	int r = seizure_hold(s, err);

	s->held = false; /* nobody takes it back */
	return r;
}

/* Wait for the next stop; 1 and *status, or 0 when it died. */
static int next_stop(struct seized_task *t, uint64_t deadline_us, int *status, struct cr_err *err)
{
	struct backoff backoff = {0};

	for (;;) {
		pid_t r = waitpid(t->tid, status, __WALL | WNOHANG);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 || (r == t->tid && !WIFSTOPPED(*status))) {
			t->dead = true;
			return 0;
		}
		if (r == t->tid)
			return 1;
		if (now_us() >= deadline_us)
			return cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT, "task %d does not stop",
					  t->tid);
		backoff_sleep(&backoff);
	}
}

/* A step that fails with ESRCH: the task was killed. */
static int step(struct seized_task *t, long result, struct cr_err *err)
{
	if (!result)
		return 1;
	if (errno != ESRCH)
		return cr_err_sys(err, "releasing the hold of task %d", t->tid);
	/* reaped by seizure_free or seizure_forget, which look at every task */
	t->dead = true;
	return 0;
}

/* Has it our SIGSTOP pending? Hold may have failed before it came to this one. */
static int has_stop_pending(struct seized_task *t, struct cr_err *err)
{
	struct __ptrace_peeksiginfo_args args = {.nr = 1};
	siginfo_t si;

	for (;; args.off++) {
		long n = ptrace(PTRACE_PEEKSIGINFO, t->tid, &args, &si);

		if (n < 0)
			return step(t, n, err);
		if (n == 0)
			return 0;
		if (si.si_signo == SIGSTOP)
			return 1;
	}
}

static bool is_our_stop(int status)
{
	return !(status >> 16) && WSTOPSIG(status) == SIGSTOP;
}

static int not_our_stop(const struct seized_task *t, int status, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
			  "task %d stopped with status %#x, expected its SIGSTOP", t->tid, status);
}

/* 1: done, 0: it died. */
static int unhold_running(struct seized_task *t, uint64_t deadline_us, struct cr_err *err)
{
	int status;
	int r = next_stop(t, deadline_us, &status, err);

	t->held_running = false;
	if (r > 0 && !is_our_stop(status))
		return not_our_stop(t, status, err);
	return r > 0 ? step(t, ptrace(PTRACE_CONT, t->tid, 0, 0), err) : r;
}

static int unhold_one(struct seized_task *t, uint64_t deadline_us, struct cr_err *err)
{
	uint64_t mask, all = ~0ull; /* SIGSTOP and SIGKILL stay unblocked in any mask */
	int status;

	if (t->held_running)
		return unhold_running(t, deadline_us, err);
	int r = has_stop_pending(t, err);
	if (r <= 0)
		return r;
	r = step(t, ptrace(PTRACE_GETSIGMASK, t->tid, sizeof(mask), &mask), err);
	if (r > 0)
		r = step(t, ptrace(PTRACE_SETSIGMASK, t->tid, sizeof(all), &all), err);
	if (r > 0)
		r = step(t, ptrace(PTRACE_CONT, t->tid, 0, 0), err);
	if (r > 0)
		r = next_stop(t, deadline_us, &status, err);
	if (r > 0)
		r = step(t, ptrace(PTRACE_SETSIGMASK, t->tid, sizeof(mask), &mask), err);
	if (r > 0 && !is_our_stop(status))
		return not_our_stop(t, status, err);
	/* the trap first: then the task cannot get past it */
	if (r > 0)
		r = step(t, ptrace(PTRACE_INTERRUPT, t->tid, 0, 0), err);
	if (r > 0)
		r = step(t, ptrace(PTRACE_CONT, t->tid, 0, 0), err);
	if (r > 0)
		r = next_stop(t, deadline_us, &status, err);
	if (r > 0 && !task_is_event_stop(status))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "task %d stopped with status %#x, expected its event stop",
				  t->tid, status);
	return r;
}

int seizure_unhold(struct seizure *s, struct cr_err *err)
{
	uint64_t deadline = now_us() + UNHOLD_US;
	unsigned long slack = sleep_precisely();
	int result = 0;

	vec_foreach (p, &s->procs) {
		vec_foreach (t, &p->tasks) {
			struct cr_err one;
			int r = t->dead ? 0 : unhold_one(t, deadline, &one);

			if (r < 0 && !result) { /* the others all the same */
				result = r;
				*err = one;
			}
		}
	}
	sleep_as_before(slack);
	s->held = false;
	return result;
}
