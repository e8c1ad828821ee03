#include "source/seize_tasks.h"

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "kernel/procfs.h"
#include "kernel/task.h"

enum { PF_KTHREAD = 0x00200000 }; /* include/linux/sched.h; field 9 of stat */

/* ---- small things ---- */

/* waitpid(2) has no timeout and SIGCHLD belongs to the program's own loop: where a wait must end,
 * look and sleep. Most stops come within the first few of these. */
void backoff_sleep(struct backoff *b)
{
	b->us = b->us ? b->us * 2 : 5;
	if (b->us > 1000)
		b->us = 1000;
	nanosleep(&(struct timespec){.tv_nsec = b->us * 1000}, NULL);
}

unsigned long sleep_precisely(void)
{
	long was = prctl(PR_GET_TIMERSLACK);

	prctl(PR_SET_TIMERSLACK, 1ul);
	return was > 0 ? (unsigned long)was : 0; /* 0: the default */
}

void sleep_as_before(unsigned long slack)
{
	prctl(PR_SET_TIMERSLACK, slack);
}

void task_describe(pid_t pid, pid_t tid, char *buf, size_t size)
{
	struct proc_stat st = {.comm = "?"};
	struct cr_err ignored;

	if (proc_stat_read(pid, tid, &st, &ignored) < 0)
		strcpy(st.comm, "?");
	if (pid == tid)
		snprintf(buf, size, "process %d (%s)", pid, st.comm);
	else
		snprintf(buf, size, "thread %d (%s) of process %d", tid, st.comm, pid);
}

static size_t lower_bound(const struct held_set *s, pid_t tid)
{
	size_t lo = 0, hi = s->list.n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (s->list.v[mid].tid < tid)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct held *held_find(const struct held_set *s, pid_t tid)
{
	size_t i = lower_bound(s, tid);

	return i < s->list.n && s->list.v[i].tid == tid ? &s->list.v[i] : NULL;
}

void held_done(struct held_set *s)
{
	vec_done(&s->list);
}

/* ---- take ---- */

static struct held *insert(struct held_set *s, pid_t pid, pid_t tid, struct cr_err *err)
{
	size_t i = lower_bound(s, tid);

	if (!vec_push(&s->list)) {
		cr_err_oom(err);
		return NULL;
	}
	memmove(&s->list.v[i + 1], &s->list.v[i], (s->list.n - 1 - i) * sizeof(s->list.v[0]));
	s->list.v[i] = (struct held){.tid = tid, .pid = pid, .state = HELD_DEAD};
	return &s->list.v[i];
}

/* A process that exits looks like that for a moment: worth another attempt. */
int seizure_leader_gone(pid_t pid, struct cr_err *err)
{
	char who[128];

	task_describe(pid, pid, who, sizeof(who));
	err->pid = pid;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, EAGAIN,
			  "%s: its first thread has exited while others run: not supported", who);
}

bool seizure_has_thread_alive(pid_t pid)
{
	_cleanup_free_ pid_t *tids = NULL;
	struct cr_err ignored = {0};
	ssize_t n = proc_threads(pid, &tids, &ignored);

	for (ssize_t i = 0; i < n; i++) {
		struct proc_stat st;

		if (proc_stat_read(pid, tids[i], &st, &ignored) == 0 && st.state != 'Z' &&
		    st.state != 'X')
			return true;
	}
	return false;
}

/* A zombie is alone in its process, or a leader that has exited before its threads. */
static int take_zombie(struct held *h, struct cr_err *err)
{
	if (h->tid != h->pid) /* a thread on its way out */
		return 0;
	if (seizure_has_thread_alive(h->pid))
		return seizure_leader_gone(h->pid, err);
	int was = h->state;
	h->state = HELD_ZOMBIE;
	return was != HELD_ZOMBIE;
}

/* PTRACE_SEIZE says EPERM for several reasons: find out which. */
static int refused_seize(struct held *h, struct cr_err *err)
{
	struct proc_status status;
	struct proc_stat st;
	char who[128], tracer[128];

	int r = proc_stat_read(h->pid, h->tid, &st, err);
	if (r < 0)
		return r == -ESRCH ? 0 : r;
	if (st.state == 'Z' || st.state == 'X')
		return take_zombie(h, err);
	r = proc_status_read(h->pid, h->tid, &status, err);
	if (r < 0)
		return r == -ESRCH ? 0 : r;
	proc_status_done(&status);
	task_describe(h->pid, h->tid, who, sizeof(who));
	err->pid = h->pid;
	if (status.tracer) {
		task_describe(status.tracer, status.tracer, tracer, sizeof(tracer));
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
				  "%s is traced by %s: end that first", who, tracer);
	}
	if (st.flags & PF_KTHREAD)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EPERM, "%s is a kernel thread", who);
	return cr_err_set(err, CR_ERR_KERNEL, EPERM,
			  "%s may not be traced: that takes CAP_SYS_PTRACE over it (ptrace(2))",
			  who);
}

int held_take(struct held_set *s, pid_t pid, pid_t tid, unsigned int walk, struct cr_err *err)
{
	struct held *h = held_find(s, tid);

	/* A dead one that is found again is a process that its parent has not reaped, or a new
	 * task. */
	if (h && h->state != HELD_DEAD && h->pid == pid) {
		h->seen = walk;
		return 0;
	}
	if (pid == getpid())
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EINVAL,
				  "process %d is this agent itself: it cannot move itself", pid);
	if (!h)
		h = insert(s, pid, tid, err);
	if (!h)
		return -ENOMEM;
	h->pid = pid;
	h->seen = walk;
	if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD)) {
		if (errno == ESRCH)
			return 0;
		if (errno != EPERM)
			return cr_err_sys(err, "seizing task %d", tid);
		return refused_seize(h, err);
	}
	h->state = HELD_RUNNING;
	h->interrupted = false;
	return 1;
}

int held_interrupt(struct held_set *s, uint64_t since_us, struct cr_err *err)
{
	int r = 0;

	for (int leaders = 0; leaders < 2; leaders++) {
		vec_foreach (h, &s->list) {
			if (h->state != HELD_RUNNING || h->interrupted ||
			    (h->tid == h->pid) != leaders)
				continue;
			h->interrupted = true;
			h->stopped_us = since_us ? since_us : now_us();
			/* ESRCH: it died just now, which the wait will tell */
			if (ptrace(PTRACE_INTERRUPT, h->tid, 0, 0) && errno != ESRCH && !r)
				r = cr_err_sys(err, "interrupting task %d", h->tid);
		}
	}
	return r;
}

/* ---- wait ---- */

/* What waitpid said of a running one. 1: settled. 0: it goes on, wait again. */
static int take_status(struct held *h, int status, struct cr_err *err)
{
	if (!WIFSTOPPED(status)) {
		h->state = HELD_DEAD;
		return 1;
	}
	if (task_is_event_stop(status)) {
		h->state = HELD_STOPPED;
		/* A group stop is reported with the signal in place of SIGTRAP, ptrace(2). It is
		 * the process's, not the tracer's: the task can be made to run as any other, and is
		 * stopped again once it is let go, also by our death. */
		h->stop_sig = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
		return 1;
	}
	/* A signal that came first: hand it on; the interrupt is still pending and stops the task
	 * before it runs the handler. ESRCH: killed meanwhile. */
	if (ptrace(PTRACE_CONT, h->tid, 0, WSTOPSIG(status)) && errno != ESRCH)
		return cr_err_sys(err, "handing a signal on to task %d", h->tid);
	return 0;
}

static int too_late(const struct held *h, struct cr_err *err)
{
	_cleanup_free_ char *wchan = NULL;
	struct proc_stat st = {.state = '?'};
	struct cr_err ignored;
	char who[128], rel[64];

	task_describe(h->pid, h->tid, who, sizeof(who));
	snprintf(rel, sizeof(rel), "task/%d/wchan", h->tid);
	if (proc_stat_read(h->pid, h->tid, &st, &ignored) < 0 ||
	    proc_read(h->pid, rel, &wchan, &ignored) < 0)
		st.state = '?';
	err->pid = h->pid;
	return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "%s would not stop (state %c, in %s)", who,
			  st.state, wchan && strcmp(wchan, "0") ? wchan : "unknown");
}

static char state_of(const struct held *h)
{
	struct proc_stat st;
	struct cr_err ignored;

	return proc_stat_read(h->pid, h->tid, &st, &ignored) < 0 ? '?' : st.state;
}

/* h waits uninterruptibly: if that is for a child in vfork, the child must run. Returns how many of
 * its children were let go. */
static size_t let_children_go(struct held_set *s, const struct held *h)
{
	_cleanup_free_ pid_t *children = NULL;
	struct cr_err ignored;
	size_t gone = 0;

	if (state_of(h) != 'D')
		return 0;
	ssize_t n = proc_children_of(h->pid, &h->tid, 1, &children, &ignored);
	for (ssize_t i = 0; i < n; i++) {
		struct held *child = held_find(s, children[i]);

		if (!child || child->state == HELD_DEAD || child->state == HELD_ZOMBIE)
			continue;
		if (task_let_go(child->tid, 0)) {
			child->state = HELD_DEAD;
			gone++;
		} else { /* in vfork itself? */
			gone += let_children_go(s, child);
		}
	}
	return gone;
}

struct wait {
	struct held_set *set;
	uint64_t budget_us, start_us;
	size_t gone;
};

enum { VFORK_US = 2000 }; /* an uninterruptible wait that is longer may be that */

/* Stops of hundreds of threads take as long as those have processors: each look of ours, at a
 * higher priority, takes one away. So the looks become rarer as the wait gets longer. */
static void pause_wait(uint64_t waited_us)
{
	uint64_t us = waited_us / 16;

	us = us < 5 ? 5 : us > 1000 ? 1000 : us;
	nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
}

static int wait_one(struct wait *w, struct held *h, struct cr_err *err)
{
	for (;;) {
		int status;
		pid_t r = waitpid(h->tid, &status, __WALL | WNOHANG);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0) { /* ECHILD: an exec by another thread took its place */
			h->state = HELD_DEAD;
			return 0;
		}
		if (r == h->tid) {
			int done = take_status(h, status, err);

			if (done)
				return done < 0 ? done : 0;
			continue;
		}
		uint64_t waited = now_us() - w->start_us;
		if (waited >= w->budget_us && (waited >= 4 * w->budget_us || state_of(h) != 'R'))
			return too_late(h, err);
		if (waited >= VFORK_US)
			w->gone += let_children_go(w->set, h);
		pause_wait(waited);
	}
}

int held_wait(struct held_set *s, uint64_t budget_us, size_t *gone, struct cr_err *err)
{
	struct wait w = {.set = s, .budget_us = budget_us, .start_us = now_us()};
	int r = 0;

	for (size_t i = 0; r == 0 && i < s->list.n; i++) {
		struct held *h = &s->list.v[i];

		if (h->state != HELD_RUNNING)
			continue;
		r = wait_one(&w, h, err);
		w.gone += h->state == HELD_DEAD;
	}
	*gone += w.gone;
	return r;
}

static bool is_process_stopped(const struct held_set *s, pid_t pid)
{
	vec_foreach (h, &s->list)
		if (h->pid == pid && h->state == HELD_STOPPED && h->stop_sig)
			return true;
	return false;
}

int held_finish_stops(struct held_set *s, uint64_t budget_us, struct cr_err *err)
{
	bool any = false;
	size_t gone = 0;

	vec_foreach (h, &s->list)
		any |= h->state == HELD_STOPPED && h->stop_sig;
	if (!any) /* as nearly always: nobody is looked for among thousands */
		return 0;
	vec_foreach (h, &s->list)
		h->again = h->state == HELD_STOPPED && is_process_stopped(s, h->pid);
	for (size_t i = 0; i < s->list.n; i++) {
		struct held *h = &s->list.v[i];

		if (!h->again)
			continue;
		/* trapped before it runs anything, whatever became of the stop */
		if (ptrace(PTRACE_INTERRUPT, h->tid, 0, 0) || ptrace(PTRACE_CONT, h->tid, 0, 0)) {
			if (errno != ESRCH)
				return cr_err_sys(err, "stopping task %d", h->tid);
		}
		h->state = HELD_RUNNING;
	}
	return held_wait(s, budget_us, &gone, err);
}

/* ---- let go ---- */

bool task_let_go(pid_t tid, uint64_t deadline_us)
{
	struct backoff backoff = {0};
	bool interrupted = false;

	if (!ptrace(PTRACE_DETACH, tid, 0, 0) || errno != ESRCH)
		return true;
	/* It runs, or it is dying: its exit must be reaped by us before its parent can. */
	for (;;) {
		int status;
		pid_t r = waitpid(tid, &status, __WALL | WNOHANG);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 || (r == tid && !WIFSTOPPED(status)))
			return true;
		if (r == tid) {
			int sig = status >> 16 || WSTOPSIG(status) == (SIGTRAP | 0x80)
				      ? 0
				      : WSTOPSIG(status);

			if (!ptrace(PTRACE_DETACH, tid, 0, sig))
				return true;
			continue;
		}
		if (!interrupted)
			ptrace(PTRACE_INTERRUPT, tid, 0, 0);
		interrupted = true;
		if (now_us() >= deadline_us)
			return false;
		backoff_sleep(&backoff);
	}
}

bool task_reap(pid_t tid, uint64_t deadline_us)
{
	struct backoff backoff = {0};

	for (;;) {
		int status;
		pid_t r = waitpid(tid, &status, __WALL | WNOHANG);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 || (r == tid && !WIFSTOPPED(status)))
			return true;
		if (now_us() >= deadline_us)
			return false;
		if (r == 0)
			backoff_sleep(&backoff);
	}
}

/* One round of trying. Leaders last: the exit of a leader is reported only after its threads have
 * been reaped. Returns how many are left. */
static size_t release_round(struct held_set *s, pid_t *ret_tid)
{
	size_t left = 0;

	for (int leaders = 0; leaders < 2; leaders++) {
		vec_foreach (h, &s->list) {
			if (h->state == HELD_DEAD || h->state == HELD_ZOMBIE ||
			    (h->tid == h->pid) != leaders)
				continue;
			if (task_let_go(h->tid, 0)) {
				h->state = HELD_DEAD;
			} else {
				*ret_tid = h->tid;
				left++;
			}
		}
	}
	return left;
}

/* In rounds, never waiting for one of them: it may itself be waiting for another (vfork). */
size_t held_release(struct held_set *s, uint64_t deadline_us, pid_t *ret_tid)
{
	struct backoff backoff = {0};

	for (;;) {
		size_t left = release_round(s, ret_tid);

		if (!left || now_us() >= deadline_us)
			return left;
		backoff_sleep(&backoff);
	}
}
