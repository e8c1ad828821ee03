/* Scheduling of threads: policy, priority, nice, time slice, affinity, timer slack, io priority.
 * All of it can be set from outside. */
#include "resource/attrs_internal.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "kernel/procfs.h"

enum {
	POLICY_DEADLINE = 6,
	POLICY_EXT = 7,
	FLAG_RESET_ON_FORK = 1,
	UCLAMP_DEFAULT_MAX = 1024,
	IOPRIO_PROCESS = 1,
	IOPRIO_CLASS_SHIFT = 13,
	IOPRIO_RT = 1,
	CPU_MASK_BYTES = 1024, /* 8192 cpus, the most that x86-64 can be configured for */
};

struct sched_attr_v1 { /* struct sched_attr, sched_setattr(2); with utilization clamps since 5.3 */
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

static bool is_realtime(int policy)
{
	return policy == SCHED_FIFO || policy == SCHED_RR;
}

static bool is_fair(int policy)
{
	return policy == SCHED_OTHER || policy == SCHED_BATCH;
}

static int getattr(pid_t tid, struct sched_attr_v1 *a)
{
	*a = (struct sched_attr_v1){.size = sizeof(*a)};
	return (int)syscall(SYS_sched_getattr, tid, a, sizeof(*a), 0);
}

/* Since 6.12 sched_runtime of a fair task is its time slice, also where none was asked for. Init
 * never asks; where it cannot be had, every slice counts as asked for, which only fixes it. */
uint64_t attrs_sched_default_slice(void)
{
	struct sched_attr_v1 a;

	return !getattr(1, &a) && is_fair((int)a.policy) ? a.runtime : 0;
}

/* A cpu list as in /sys/devices/system/cpu/online: "0-3,5". */
unsigned int attrs_online_cpus(void)
{
	_cleanup_fd_ int fd = open("/sys/devices/system/cpu/online", O_RDONLY | O_CLOEXEC);
	char text[4096], *p = text;
	unsigned int n = 0;

	ssize_t len = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (len <= 0)
		return 0;
	text[len] = '\0';
	while (*p >= '0' && *p <= '9') {
		unsigned long from = strtoul(p, &p, 10), to = from;

		if (*p == '-')
			to = strtoul(p + 1, &p, 10);
		n += to >= from ? (unsigned int)(to - from + 1) : 0;
		if (*p == ',')
			p++;
	}
	return n;
}

/* ---- capture ---- */

static unsigned int count_cpus(const uint8_t *mask, size_t bytes)
{
	unsigned int n = 0;

	for (size_t i = 0; i < bytes; i++)
		n += (unsigned int)__builtin_popcount(mask[i]);
	return n;
}

/* A thread that may run on every cpu was not restricted: it may do so at the destination too,
 * whatever that host's cpus are. */
static int capture_affinity(struct capture *c, const struct attrs_host *h, struct thread *th,
			    struct cr_err *err)
{
	uint8_t mask[CPU_MASK_BYTES];
	long n = syscall(SYS_sched_getaffinity, th->tid, sizeof(mask), mask);

	if (n < 0)
		return cr_err_sys(err, "sched_getaffinity of %d", th->tid);
	th->affinity = NULL;
	th->affinity_len = 0;
	if (count_cpus(mask, (size_t)n) == h->n_online)
		return 0;
	while (n > 8 && !mask[n - 1])
		n--;
	n = ALIGN_UP(n, 8);
	th->affinity = arena_memdup(c->tree->arena, mask, (size_t)n);
	th->affinity_len = (size_t)n;
	return th->affinity ? 0 : cr_err_oom(err);
}

static int capture_nice(const struct sched_attr_v1 *a, struct thread *th, struct cr_err *err)
{
	th->nice = a->nice;
	if (!is_realtime((int)a->policy))
		return 0;
	/* hidden behind the real-time priority; the raw call returns 20 - nice */
	long v = syscall(SYS_getpriority, PRIO_PROCESS, th->tid);
	if (v < 0)
		return cr_err_sys(err, "getpriority of %d", th->tid);
	th->nice = 20 - (int)v;
	return 0;
}

int attrs_sched_capture(struct capture *c, const struct attrs_host *h, struct thread *th,
			struct cr_err *err)
{
	struct sched_attr_v1 a;

	err->pid = th->tid;
	if (getattr(th->tid, &a))
		return cr_err_sys(err, "sched_getattr of %d", th->tid);
	if (a.policy == POLICY_DEADLINE || a.policy == POLICY_EXT)
		refuse(c->refused, th->tid, a.policy == POLICY_EXT ? "SCHED_EXT" : "SCHED_DEADLINE",
		       "this scheduling policy is not moved yet; set another with chrt(1)");
	if (is_fair((int)a.policy) &&
	    (a.util_min || (a.util_max && a.util_max != UCLAMP_DEFAULT_MAX)))
		refuse_warn(c->refused, th->tid, "utilization clamps",
			    "%u..%u (uclampset(1)) are not moved", a.util_min, a.util_max);
	th->sched_policy = (int)a.policy;
	th->sched_prio = (int)a.priority;
	th->sched_flags = (uint32_t)a.flags & FLAG_RESET_ON_FORK;
	th->sched_runtime = is_fair((int)a.policy) && a.runtime != h->fair_slice_ns ? a.runtime : 0;
	int r = capture_nice(&a, th, err);
	if (!r)
		r = capture_affinity(c, h, th, err);
	if (r)
		return r;
	long io = syscall(SYS_ioprio_get, IOPRIO_PROCESS, th->tid);
	if (io < 0)
		return cr_err_sys(err, "ioprio_get of %d", th->tid);
	th->io_prio = (uint32_t)io;
	err->pid = 0;
	return 0;
}

void attrs_sched_capture_slack(struct thread *th)
{
	_cleanup_free_ char *text = NULL;
	struct cr_err ignored = {0};

	if (proc_read(th->tid, "timerslack_ns", &text, &ignored) > 0)
		th->timer_slack_ns = strtoull(text, NULL, 10);
}

/* ---- rebuild ---- */

static bool same_affinity(const struct thread *a, const struct thread *b)
{
	return a->affinity_len == b->affinity_len &&
	       (!a->affinity_len || !memcmp(a->affinity, b->affinity, a->affinity_len));
}

bool attrs_sched_differs(const struct thread *old, const struct thread *th)
{
	return old->sched_policy != th->sched_policy || old->sched_prio != th->sched_prio ||
	       old->nice != th->nice || old->sched_flags != th->sched_flags ||
	       old->sched_runtime != th->sched_runtime || old->io_prio != th->io_prio ||
	       old->timer_slack_ns != th->timer_slack_ns || !same_affinity(old, th);
}

static int apply_affinity(pid_t tid, const struct thread *th, struct cr_err *err)
{
	uint8_t all[CPU_MASK_BYTES];
	const uint8_t *mask = th->affinity;
	size_t len = th->affinity_len;

	if (!len) {
		memset(all, 0xff, sizeof(all));
		mask = all;
		len = sizeof(all);
	}
	if (syscall(SYS_sched_setaffinity, tid, len, mask))
		return cr_err_sys(err, "setting the cpu affinity of %d", tid);
	return 0;
}

static int apply_timer_slack(pid_t tid, uint64_t slack_ns, struct cr_err *err)
{
	char path[48], text[24];

	snprintf(path, sizeof(path), "/proc/%d/timerslack_ns", tid);
	int len = snprintf(text, sizeof(text), "%llu", (unsigned long long)slack_ns);
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)len) != len)
		return cr_err_sys(err, "%s", path);
	return 0;
}

int attrs_sched_apply(pid_t tid, const struct thread *th, struct cr_err *err)
{
	struct sched_attr_v1 a = {
	    .size = sizeof(a),
	    .policy = (uint32_t)th->sched_policy,
	    .flags = th->sched_flags & FLAG_RESET_ON_FORK,
	    .nice = th->nice,
	    .priority = (uint32_t)th->sched_prio,
	    .runtime = th->sched_runtime,
	};

	err->pid = tid;
	/* nice first: sched_setattr only sets it for fair policies */
	if (setpriority(PRIO_PROCESS, (id_t)tid, th->nice))
		return cr_err_sys(err, "setting the nice value of %d to %d", tid, th->nice);
	if (syscall(SYS_sched_setattr, tid, &a, 0))
		return cr_err_sys(err, "setting scheduling policy %d, priority %d of %d",
				  th->sched_policy, th->sched_prio, tid);
	int r = apply_affinity(tid, th, err);
	if (r)
		return r;
	/* after the policy: a change from or to a real-time one resets it (6.13) */
	if (th->timer_slack_ns && !is_realtime(th->sched_policy))
		r = apply_timer_slack(tid, th->timer_slack_ns, err);
	if (r)
		return r;
	if (syscall(SYS_ioprio_set, IOPRIO_PROCESS, tid, th->io_prio))
		return cr_err_sys(err, "setting the io priority of %d to %#x", tid, th->io_prio);
	err->pid = 0;
	return 0;
}

/* ---- preflight ---- */

/* Tried out in a child, which may change itself as it likes. Returns what fn returned (0..255), or
 * 0 if no child can be had. */
static int probe(int (*fn)(const struct thread *), const struct thread *th)
{
	int st;

	/* no exit signal: whoever this program is, it shall not see a SIGCHLD of ours */
	pid_t pid = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
	if (pid == 0)
		_exit(fn(th));
	if (pid < 0)
		return 0;
	while (waitpid(pid, &st, __WALL) < 0) {
		if (errno != EINTR)
			return 0;
	}
	return WIFEXITED(st) ? WEXITSTATUS(st) : 0;
}

/* A cgroup without real-time bandwidth or a missing capability says no: the errno. */
static int try_policy(const struct thread *th)
{
	struct sched_attr_v1 a = {.size = sizeof(a),
				  .policy = (uint32_t)th->sched_policy,
				  .nice = th->nice,
				  .priority = (uint32_t)th->sched_prio};

	if (setpriority(PRIO_PROCESS, 0, th->nice) || syscall(SYS_sched_setattr, 0, &a, 0))
		return errno;
	return 0;
}

enum { CPUS_ALL, CPUS_SOME, CPUS_NONE };

/* The kernel drops cpus that do not exist or that the cpuset does not have. */
static int try_affinity(const struct thread *th)
{
	uint8_t got[CPU_MASK_BYTES] = {0};

	if (syscall(SYS_sched_setaffinity, 0, th->affinity_len, th->affinity))
		return CPUS_NONE;
	long len = syscall(SYS_sched_getaffinity, 0, sizeof(got), got);
	if (len < 0 || count_cpus(got, (size_t)len) == count_cpus(th->affinity, th->affinity_len))
		return CPUS_ALL;
	return CPUS_SOME;
}

static void check_affinity(const struct thread *th, struct refusals *refused)
{
	int r = probe(try_affinity, th);

	if (r == CPUS_NONE)
		refuse(refused, th->tid, "cpu affinity",
		       "none of the cpus that it is bound to can be had on this host");
	else if (r == CPUS_SOME)
		refuse_warn(refused, th->tid, "cpu affinity",
			    "some of the cpus that it is bound to cannot be had on this host");
}

static bool same_policy(const struct thread *a, const struct thread *b)
{
	return a->sched_policy == b->sched_policy && a->sched_prio == b->sched_prio &&
	       a->nice == b->nice;
}

static void check_thread(const struct thread *th, const struct thread *last,
			 struct refusals *refused)
{
	if (th->affinity_len && !(last && same_affinity(last, th)))
		check_affinity(th, refused);
	if ((th->io_prio >> IOPRIO_CLASS_SHIFT) == IOPRIO_RT && !attrs_have_cap(CAP_SYS_NICE) &&
	    !attrs_have_cap(CAP_SYS_ADMIN))
		refuse(refused, th->tid, "io priority",
		       "real-time class, and CAP_SYS_NICE is missing here");
	if (last && same_policy(last, th))
		return;
	int code = probe(try_policy, th);
	if (code)
		refuse(refused, th->tid, "scheduling policy",
		       "policy %d with priority %d and nice %d cannot be had on this host: %s",
		       th->sched_policy, th->sched_prio, th->nice, strerror(code));
}

void attrs_sched_check(const struct tree *t, struct refusals *refused)
{
	const struct thread *last = NULL;

	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];

		for (size_t j = 0; !p->zombie && j < p->n_threads; j++) {
			check_thread(&p->threads[j], last, refused);
			last = &p->threads[j];
		}
	}
}
