/* Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).
 *
 * The list of POSIX timers comes from /proc/PID/timers (3.10, CONFIG_CHECKPOINT_RESTORE
 * until 6.13), their values from inside. They are created ahead and armed at the switch-over: those
 * on a clock that goes on across the move at the absolute time at which they were to go off, the
 * others with what was left. */
#include "resource/attrs_internal.h"

#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include "kernel/procfs.h"

#ifndef PR_TIMER_CREATE_RESTORE_IDS
#define PR_TIMER_CREATE_RESTORE_IDS 77 /* 6.16 */
#define PR_TIMER_CREATE_RESTORE_IDS_OFF 0
#define PR_TIMER_CREATE_RESTORE_IDS_ON 1
#define PR_TIMER_CREATE_RESTORE_IDS_GET 2
#endif

enum {
	/* clock ids of tasks are ~pid << 3 | per-thread << 2 | kind, include/linux/posix-timers.h
	 */
	CPUCLOCK_KIND_MASK = 3,
	CPUCLOCK_THREAD = 4,
	CLOCKFD_KIND = 3,
	SEARCH_MAX_ID = 10000,
	SEARCH_BATCH = 32, /* calls; fits into a slot whatever else is queued */
};

#define NS_PER_S 1000000000ull

/* ---- capture ---- */

/* Why a timer on this clock cannot be created again, or NULL. The kernel shows a timer's own cpu
 * clocks, CLOCK_PROCESS_CPUTIME_ID and CLOCK_THREAD_CPUTIME_ID, as clocks of pid 0. */
static const char *clock_trouble(const struct process *p, int clockid)
{
	/* the kernel's own arithmetic, include/linux/posix-timers.h */
	pid_t pid = ~(clockid >> 3); // cppcheck-suppress shiftNegativeLHS
	bool of_thread = clockid & CPUCLOCK_THREAD;

	if (clockid >= 0)
		return NULL;
	if ((clockid & CPUCLOCK_KIND_MASK) == CLOCKFD_KIND)
		return "on the clock of a device";
	if (!pid && of_thread && p->n_threads > 1)
		return "on the cpu clock of a thread, and the kernel does not say of which";
	if (!pid || (of_thread ? !!process_find_thread(p, pid) : pid == p->pid))
		return NULL;
	return "on the cpu clock of another process";
}

/* The kernel lists them in any order. */
static int by_id(const void *a, const void *b)
{
	const struct posix_timer_rec *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

int attrs_timers_capture(struct capture *c, struct process *p, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	struct proc_timers list = {0};
	int r = 0;

	p->timers = NULL;
	p->n_timers = 0;
	ssize_t len = proc_read(p->pid, "timers", &text, err);
	if (len <= 0)
		return (int)len;
	r = proc_timers_parse(text, &list, err);
	if (!r && list.list.n) {
		p->timers = arena_array(c->tree->arena, struct posix_timer_rec, list.list.n);
		if (!p->timers)
			r = cr_err_oom(err);
	}
	for (size_t i = 0; !r && i < list.list.n; i++) {
		const struct proc_timer *in = &list.list.v[i];
		const char *why = clock_trouble(p, in->clockid);
		char what[64];

		p->timers[p->n_timers++] = (struct posix_timer_rec){.id = in->id,
								    .clockid = in->clockid,
								    .notify = in->notify,
								    .signo = in->signo,
								    .notify_tid = in->notify_tid,
								    .sigval = in->sigval};
		snprintf(what, sizeof(what), "POSIX timer %d", in->id);
		if (why)
			refuse(c->refused, p->pid, what, "%s; not supported", why);
	}
	vec_done(&list.list);
	if (p->n_timers)
		qsort(p->timers, p->n_timers, sizeof(*p->timers), by_id);
	return r;
}

bool attrs_timer_counts_cpu(const struct posix_timer_rec *tm)
{
	return tm->clockid < 0 || tm->clockid == CLOCK_PROCESS_CPUTIME_ID ||
	       tm->clockid == CLOCK_THREAD_CPUTIME_ID;
}

bool attrs_timer_same(const struct posix_timer_rec *a, const struct posix_timer_rec *b)
{
	return a->id == b->id && a->clockid == b->clockid && a->notify == b->notify &&
	       a->signo == b->signo && a->sigval == b->sigval && a->notify_tid == b->notify_tid;
}

/* ---- rebuild ---- */

struct kernel_sigevent { /* struct sigevent, 64 bytes; sigevent(7) */
	uint64_t value;
	int32_t signo, notify, tid, pad[11];
};
_Static_assert(sizeof(struct kernel_sigevent) == 64, "SIGEV_MAX_SIZE");

/* Queue one timer_create; *ret_id: where the id is found after the run (and was put before). */
static struct rcall *queue_create(struct rtask *rt, const char *what,
				  const struct posix_timer_rec *tm, int32_t **ret_id,
				  struct cr_err *err)
{
	struct {
		struct kernel_sigevent ev;
		int32_t id;
	} arg = {.ev = {.value = tm->sigval,
			.signo = tm->signo,
			.notify = tm->notify,
			.tid = tm->notify_tid},
		 .id = tm->id};
	uint64_t va;
	uint8_t *p = attrs_scratch_copy(rt, &arg, sizeof(arg), &va, err);

	if (!p)
		return NULL;
	*ret_id = (int32_t *)(p + sizeof(arg.ev));
	return rqueue(rt, what, SYS_timer_create, tm->clockid, va, va + sizeof(arg.ev));
}

static int search_failed(const struct posix_timer_rec *tm, int got, struct cr_err *err)
{
	if (got < 0)
		return cr_err_set(err, CR_ERR_KERNEL, -got, "timer_create: %s", strerror(-got));
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
			  "POSIX timer %d cannot get its id back: this kernel is at %d and has no "
			  "PR_TIMER_CREATE_RESTORE_IDS (6.16)",
			  tm->id, got);
}

/* Ids are handed out in turn per process: create and delete until the wanted one is next. */
int attrs_timer_create_by_search(struct rtask *rt, const struct posix_timer_rec *tm,
				 struct cr_err *err)
{
	struct posix_timer_rec probe = {.clockid = CLOCK_MONOTONIC, .notify = SIGEV_NONE};
	struct rcall *c;
	int32_t *id;
	int r;

	if (tm->id < 0 || tm->id > SEARCH_MAX_ID)
		return search_failed(tm, 0, err);
	for (int step = 0; step <= SEARCH_MAX_ID; step++) {
		rtask_scratch_reset(rt);
		c = queue_create(rt, NULL, tm, &id, err);
		if (!c)
			return -err->code;
		r = rtask_run(rt, err);
		if (r)
			return r;
		if (c->ret < 0)
			return search_failed(tm, (int)c->ret, err);
		if (*id == tm->id)
			return 0;
		if (*id > tm->id) {
			(void)rcall_now(rt, SYS_timer_delete, *id);
			return search_failed(tm, *id, err);
		}
		/* far away: as many as fit below it in one go, each deleted right away */
		int left = tm->id - *id - 1;
		rqueue(rt, "timer_delete", SYS_timer_delete, *id);
		for (int i = 1; i <= left && i < SEARCH_BATCH / 2; i++) {
			int32_t *unused;

			if (!queue_create(rt, "timer_create", &probe, &unused, err))
				return -err->code;
			rqueue(rt, "timer_delete", SYS_timer_delete, *id + i);
		}
		r = rtask_run(rt, err);
		if (r)
			return r;
	}
	return search_failed(tm, SEARCH_MAX_ID, err);
}

static bool timer_among(const struct posix_timer_rec *tm, const struct process *p)
{
	for (size_t i = 0; p && i < p->n_timers; i++)
		if (attrs_timer_same(tm, &p->timers[i]))
			return true;
	return false;
}

static int create_with_ids(struct rtask *rt, const struct process *old, const struct process *p,
			   struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < p->n_timers; i++) {
		int32_t *id;

		if (!timer_among(&p->timers[i], old) &&
		    !queue_create(rt, "timer_create", &p->timers[i], &id, err))
			r = -err->code;
	}
	rqueue(rt, "PR_TIMER_CREATE_RESTORE_IDS", SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS,
	       PR_TIMER_CREATE_RESTORE_IDS_OFF);
	return r ? r : rtask_run(rt, err);
}

static int create_by_search(struct rtask *rt, const struct process *old, const struct process *p,
			    struct cr_err *err)
{
	int r = 0;

	/* ids only go up, and the list is in their order */
	for (size_t i = 0; !r && i < p->n_timers; i++)
		if (!timer_among(&p->timers[i], old))
			r = attrs_timer_create_by_search(rt, &p->timers[i], err);
	return r;
}

int attrs_timers_rebuild(struct rtask *rt, const struct process *old, const struct process *p,
			 struct cr_err *err)
{
	bool more = false;
	int r;

	for (size_t i = 0; old && i < old->n_timers; i++)
		if (!timer_among(&old->timers[i], p))
			rqueue(rt, "timer_delete", SYS_timer_delete, old->timers[i].id);
	for (size_t i = 0; i < p->n_timers; i++)
		more |= !timer_among(&p->timers[i], old);
	if (!more)
		return rtask_run(rt, err);
	struct rcall *on = rqueue(rt, NULL, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS,
				  PR_TIMER_CREATE_RESTORE_IDS_ON);
	r = rtask_run(rt, err);
	if (r)
		return r;
	rtask_scratch_reset(rt);
	r = on->ret ? create_by_search(rt, old, p, err) : create_with_ids(rt, old, p, err);
	rtask_scratch_reset(rt);
	return r;
}

/* ---- arming ---- */

bool attrs_timers_armed(const struct process *p)
{
	for (size_t i = 0; i < ARRAY_SIZE(p->itimers); i++)
		if (p->itimers[i].value_us)
			return true;
	for (size_t i = 0; i < p->n_timers; i++)
		if (p->timers[i].value_ns)
			return true;
	return false;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

static struct timeval to_timeval(uint64_t us)
{
	return (struct timeval){(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};
}

/* What is left of a relative timer; one that is due goes off at once. */
static uint64_t left_of(uint64_t value, uint64_t elapsed)
{
	return value > elapsed ? value - elapsed : 1;
}

/* The clock's reading at the time as of which the timers are; 0: not to be had. */
static uint64_t base_of(const struct tree *t, int clockid)
{
	switch (clockid) {
	case CLOCK_MONOTONIC:
		return t->clock_monotonic_ns;
	case CLOCK_BOOTTIME:
	case CLOCK_BOOTTIME_ALARM:
		return t->clock_boottime_ns;
	default:
		return 0;
	}
}

static int arm_timer(struct rtask *rt, const struct tree *t, const struct posix_timer_rec *tm,
		     uint64_t elapsed_ns, struct cr_err *err)
{
	uint64_t base = base_of(t, tm->clockid), va;
	struct itimerspec its = {.it_interval = to_timespec(tm->interval_ns)};

	/* At an absolute time the kernel keeps the phase of a periodic timer, and counts as
	 * overruns what should have gone off meanwhile. */
	if (base)
		its.it_value = to_timespec(base + tm->value_ns);
	else if (attrs_timer_counts_cpu(tm))
		its.it_value = to_timespec(tm->value_ns);
	else
		its.it_value = to_timespec(left_of(tm->value_ns, elapsed_ns));
	if (!attrs_scratch_copy(rt, &its, sizeof(its), &va, err))
		return -err->code;
	rqueue(rt, "timer_settime", SYS_timer_settime, tm->id, base ? TIMER_ABSTIME : 0, va, 0);
	return 0;
}

int attrs_timers_arm_queue(struct rtask *rt, const struct tree *t, const struct process *p,
			   uint64_t elapsed_ns, struct cr_err *err)
{
	int r = 0;

	for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
		const struct itimer_rec *tm = &p->itimers[which];
		uint64_t left = tm->value_us, va;

		if (!tm->value_us)
			continue;
		/* getitimer rounded down, and a timer must not go off early: one more */
		if (which == ITIMER_REAL)
			left = left_of(tm->value_us + 1, elapsed_ns / 1000);
		struct itimerval it = {to_timeval(tm->interval_us), to_timeval(left)};
		if (!attrs_scratch_copy(rt, &it, sizeof(it), &va, err))
			return -err->code;
		rqueue(rt, "setitimer", SYS_setitimer, which, va, 0);
	}
	for (size_t i = 0; !r && i < p->n_timers; i++)
		if (p->timers[i].value_ns)
			r = arm_timer(rt, t, &p->timers[i], elapsed_ns, err);
	return r;
}

/* ---- preflight ---- */

static bool can_restore_ids(void)
{
	return prctl(PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0) >= 0;
}

/* Whether this kernel has the clock for timers, and lets us use it (alarm clocks: CAP_WAKE_ALARM
 * and a clock device). The raw call: glibc starts a thread for some. */
static int try_clock(int clockid)
{
	struct kernel_sigevent ev = {.notify = SIGEV_NONE};
	int32_t id = 0;

	if (clockid < 0)
		return 0;
	if (syscall(SYS_timer_create, clockid, &ev, &id))
		return errno;
	syscall(SYS_timer_delete, id);
	return 0;
}

void attrs_timers_check(const struct process *p, struct refusals *refused)
{
	bool ids = !p->n_timers || can_restore_ids();

	for (size_t i = 0; i < p->n_timers; i++) {
		const struct posix_timer_rec *tm = &p->timers[i];
		char what[64];

		snprintf(what, sizeof(what), "POSIX timer %d", tm->id);
		if (!ids && tm->id > SEARCH_MAX_ID) {
			refuse(refused, p->pid, what,
			       "its id is above %d, and this kernel cannot be told ids of timers "
			       "(Linux 6.16 can)",
			       SEARCH_MAX_ID);
			continue;
		}
		int code = try_clock(tm->clockid);
		if (code)
			refuse(refused, p->pid, what, "clock %d cannot be had on this host: %s",
			       tm->clockid, strerror(code));
	}
}
