/* Resource limits. They are set inside the task: from outside it takes CAP_SYS_RESOURCE.
 *
 * A limit may be in the way of the rebuild itself: a task that is rebuilt opens files and maps
 * memory beside what it had at the source. Such limits are called tight; until the last step they
 * are as wide as can be. Hard limits only go down without CAP_SYS_RESOURCE, so nothing is set
 * twice. */
#include "resource/attrs_internal.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include "kernel/procfs.h"

enum { N_LIMITS = 16, SPARE_FDS = 256, SPARE_SIGNALS = 256, SPARE_CPU_SECONDS = 600 };
_Static_assert((int)RLIM_NLIMITS == N_LIMITS, "struct process has one entry for each limit");

static const char *const limit_names[N_LIMITS] = {
    [RLIMIT_CPU] = "RLIMIT_CPU",           [RLIMIT_FSIZE] = "RLIMIT_FSIZE",
    [RLIMIT_DATA] = "RLIMIT_DATA",         [RLIMIT_STACK] = "RLIMIT_STACK",
    [RLIMIT_CORE] = "RLIMIT_CORE",         [RLIMIT_RSS] = "RLIMIT_RSS",
    [RLIMIT_NPROC] = "RLIMIT_NPROC",       [RLIMIT_NOFILE] = "RLIMIT_NOFILE",
    [RLIMIT_MEMLOCK] = "RLIMIT_MEMLOCK",   [RLIMIT_AS] = "RLIMIT_AS",
    [RLIMIT_LOCKS] = "RLIMIT_LOCKS",       [RLIMIT_SIGPENDING] = "RLIMIT_SIGPENDING",
    [RLIMIT_MSGQUEUE] = "RLIMIT_MSGQUEUE", [RLIMIT_NICE] = "RLIMIT_NICE",
    [RLIMIT_RTPRIO] = "RLIMIT_RTPRIO",     [RLIMIT_RTTIME] = "RLIMIT_RTTIME",
};

int attrs_limits_capture(struct process *p, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	struct proc_rlimit lim[N_LIMITS];
	int res;

	for (res = 0; res < N_LIMITS; res++) {
		if (syscall(SYS_prlimit64, p->pid, res, NULL, &p->rlimits[res]))
			break;
	}
	if (res == N_LIMITS)
		return 0;
	/* a task of another uid, and no CAP_SYS_RESOURCE: the file may still be read */
	ssize_t n = proc_read(p->pid, "limits", &text, err);
	int r = n < 0 ? (int)n : proc_limits_parse(text, lim, err);
	for (res = 0; !r && res < N_LIMITS; res++)
		p->rlimits[res] = (struct rlimit_rec){lim[res].cur, lim[res].max};
	return r;
}

/* ---- rebuild ---- */

static bool has_locked_memory(const struct process *p)
{
	for (size_t i = 0; i < p->mm.n_vmas; i++)
		if (p->mm.vmas[i].flags & VMA_F_LOCKED)
			return true;
	return false;
}

static size_t count_pending(const struct process *p)
{
	size_t n = p->n_pending + p->n_timers;

	for (size_t i = 0; i < p->n_threads; i++)
		n += p->threads[i].n_pending;
	return n;
}

static bool is_tight(const struct process *p, int res)
{
	uint64_t cur = p->rlimits[res].cur, top;

	if (cur == RLIM_INFINITY)
		return false;
	switch (res) {
	case RLIMIT_AS:
	case RLIMIT_DATA:
	case RLIMIT_FSIZE:
		return true;
	case RLIMIT_CPU:
		return cur < SPARE_CPU_SECONDS;
	case RLIMIT_RTTIME:
		return true;
	case RLIMIT_MEMLOCK:
		return has_locked_memory(p);
	case RLIMIT_SIGPENDING:
		return cur < count_pending(p) + SPARE_SIGNALS;
	case RLIMIT_NOFILE:
		top = p->n_fds ? (uint64_t)p->fds[p->n_fds - 1].fd : 0;
		return cur < top + SPARE_FDS;
	default:
		return false;
	}
}

bool attrs_limits_tight(const struct process *p)
{
	for (int res = 0; res < N_LIMITS; res++)
		if (is_tight(p, res))
			return true;
	return false;
}

bool attrs_limits_differ(const struct process *old, const struct process *p)
{
	for (int res = 0; res < N_LIMITS; res++)
		if (is_tight(old, res) != is_tight(p, res) ||
		    (!is_tight(p, res) &&
		     memcmp(&old->rlimits[res], &p->rlimits[res], sizeof(p->rlimits[res]))))
			return true;
	return false;
}

static int set_limit(struct rtask *rt, const char *what, int res, struct rlimit_rec lim,
		     struct cr_err *err)
{
	uint64_t va;

	if (!attrs_scratch_copy(rt, &lim, sizeof(lim), &va, err))
		return -err->code;
	rqueue(rt, what, SYS_prlimit64, 0, res, va, 0);
	return 0;
}

/* The shell started with our limits; widening is a favour, so nobody asks whether it worked. */
static int widen(struct rtask *rt, const struct process *p, int res, struct cr_err *err)
{
	struct rlimit_rec own, lim;

	if (syscall(SYS_prlimit64, 0, res, NULL, &own))
		return 0;
	lim.max = own.max > p->rlimits[res].max ? own.max : p->rlimits[res].max;
	lim.cur = lim.max;
	return set_limit(rt, NULL, res, lim, err);
}

int attrs_limits_queue(struct rtask *rt, const struct process *old, const struct process *p,
		       struct cr_err *err)
{
	int r = 0;

	for (int res = 0; !r && res < N_LIMITS; res++) {
		bool tight = is_tight(p, res), was_tight = old && is_tight(old, res);

		if (old && tight == was_tight &&
		    (tight ||
		     !memcmp(&old->rlimits[res], &p->rlimits[res], sizeof(p->rlimits[res]))))
			continue;
		if (tight)
			r = widen(rt, p, res, err);
		else
			r = set_limit(rt, limit_names[res], res, p->rlimits[res], err);
	}
	return r;
}

int attrs_limits_late_queue(struct rtask *rt, const struct process *p, struct cr_err *err)
{
	int r = 0;

	for (int res = 0; !r && res < N_LIMITS; res++)
		if (is_tight(p, res))
			r = set_limit(rt, limit_names[res], res, p->rlimits[res], err);
	return r;
}

/* ---- preflight ---- */

/* The most that RLIMIT_NOFILE can be, whoever asks: Documentation/admin-guide/sysctl/fs.rst. */
static uint64_t most_files(void)
{
	_cleanup_fd_ int fd = open("/proc/sys/fs/nr_open", O_RDONLY | O_CLOEXEC);
	char text[32];
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n <= 0)
		return RLIM_INFINITY;
	text[n] = '\0';
	return strtoull(text, NULL, 10);
}

static void print_limit(char text[24], uint64_t v)
{
	if (v == RLIM_INFINITY)
		snprintf(text, 24, "unlimited");
	else
		snprintf(text, 24, "%llu", (unsigned long long)v);
}

void attrs_limits_check(const struct process *p, struct refusals *refused)
{
	char want[24], have[24];
	uint64_t files = most_files();

	for (int res = 0; res < N_LIMITS; res++) {
		struct rlimit_rec own;

		if (syscall(SYS_prlimit64, 0, res, NULL, &own))
			continue;
		print_limit(want, p->rlimits[res].max);
		print_limit(have, own.max);
		if (p->rlimits[res].max > own.max && !attrs_have_cap(CAP_SYS_RESOURCE))
			refuse(refused, p->pid, limit_names[res],
			       "hard limit %s is above this host's %s, and CAP_SYS_RESOURCE to "
			       "raise it "
			       "is missing here; lower it with prlimit(1)",
			       want, have);
		else if (res == RLIMIT_NOFILE && p->rlimits[res].max > files)
			refuse(refused, p->pid, limit_names[res],
			       "hard limit %s is above this host's fs.nr_open %llu", want,
			       (unsigned long long)files);
	}
	if (p->rlimits[RLIMIT_CPU].cur != RLIM_INFINITY)
		refuse_warn(refused, p->pid, "RLIMIT_CPU",
			    "the cpu time used so far does not count at the destination");
}
