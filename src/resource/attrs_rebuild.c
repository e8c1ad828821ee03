/* Attributes at the destination: what is done ahead, last, and at the switch-over. */
#include "resource/attrs_internal.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef SYS_rseq
#define SYS_rseq 334 /* 4.18 */
#endif

enum { RSEQ_UNREGISTER = 1, ROBUST_HEAD_BYTES = 24 };

void *attrs_scratch(struct rtask *rt, size_t bytes, uint64_t *ret_va, struct cr_err *err)
{
	void *p = rtask_scratch(rt, bytes, ret_va);

	if (p)
		return p;
	if (rtask_run(rt, err))
		return NULL;
	rtask_scratch_reset(rt);
	p = rtask_scratch(rt, bytes, ret_va);
	if (!p) {
		err->pid = rtask_tid(rt);
		cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG,
			   "%zu bytes of arguments for one system call are too many", bytes);
	}
	return p;
}

void *attrs_scratch_copy(struct rtask *rt, const void *from, size_t bytes, uint64_t *ret_va,
			 struct cr_err *err)
{
	void *p = attrs_scratch(rt, bytes, ret_va, err);

	return p ? memcpy(p, from, bytes) : NULL;
}

/* ---- ahead: the process ---- */

static bool timers_differ(const struct process *old, const struct process *p)
{
	if (old->n_timers != p->n_timers)
		return true;
	for (size_t i = 0; i < p->n_timers; i++)
		if (!attrs_timer_same(&old->timers[i], &p->timers[i]))
			return true;
	return false;
}

bool attrs_process_differs(const struct process *old, const struct process *p)
{
	return memcmp(old->sigactions, p->sigactions, sizeof(p->sigactions)) ||
	       old->mm.thp_disable != p->mm.thp_disable ||
	       old->child_subreaper != p->child_subreaper ||
	       old->oom_score_adj != p->oom_score_adj || old->personality != p->personality ||
	       old->coredump_bits != p->coredump_bits || attrs_limits_differ(old, p) ||
	       timers_differ(old, p);
}

/* READ_IMPLIES_EXEC would make executable what is still to be mapped: late. */
static void queue_personality(struct rtask *rt, const struct process *p)
{
	rqueue(rt, "personality", SYS_personality, p->personality & ~(uint32_t)READ_IMPLIES_EXEC);
}

int attrs_rebuild_process_queue(struct rtask *rt, const struct process *old,
				const struct process *p, struct cr_err *err)
{
	int r = attrs_limits_queue(rt, old, p, err);

	if (!r)
		r = attrs_actions_queue(rt, old, p, err);
	if (r)
		return r;
	if (!old || old->mm.thp_disable != p->mm.thp_disable)
		rqueue(rt, "PR_SET_THP_DISABLE", SYS_prctl, PR_SET_THP_DISABLE, p->mm.thp_disable);
	if (!old || old->child_subreaper != p->child_subreaper)
		rqueue(rt, "PR_SET_CHILD_SUBREAPER", SYS_prctl, PR_SET_CHILD_SUBREAPER,
		       p->child_subreaper);
	/* of a process with several threads each sets its own */
	if (old && old->personality != p->personality)
		queue_personality(rt, p);
	return 0;
}

/* ---- ahead: threads ---- */

static bool altstack_differs(const struct thread *old, const struct thread *th)
{
	return old->altstack_sp != th->altstack_sp || old->altstack_size != th->altstack_size ||
	       old->altstack_flags != th->altstack_flags;
}

static bool rseq_differs(const struct thread *old, const struct thread *th)
{
	return old->rseq_va != th->rseq_va || old->rseq_len != th->rseq_len ||
	       old->rseq_sig != th->rseq_sig || old->rseq_flags != th->rseq_flags;
}

static bool robust_differs(const struct thread *old, const struct thread *th)
{
	return old->robust_list_va != th->robust_list_va ||
	       old->robust_list_len != th->robust_list_len;
}

bool attrs_thread_differs(const struct thread *old, const struct thread *th)
{
	return strncmp(old->comm, th->comm, sizeof(th->comm)) || altstack_differs(old, th) ||
	       rseq_differs(old, th) || robust_differs(old, th) ||
	       old->clear_tid_va != th->clear_tid_va || attrs_sched_differs(old, th);
}

static int queue_altstack(struct rtask *rt, const struct thread *th, struct cr_err *err)
{
	stack_t st = {.ss_sp = (void *)th->altstack_sp,
		      .ss_flags = th->altstack_size ? th->altstack_flags & ~SS_DISABLE : SS_DISABLE,
		      .ss_size = th->altstack_size};
	uint64_t va;

	if (!attrs_scratch_copy(rt, &st, sizeof(st), &va, err))
		return -err->code;
	rqueue(rt, "sigaltstack", SYS_sigaltstack, va, 0);
	return 0;
}

static void queue_rseq(struct rtask *rt, const struct thread *old, const struct thread *th)
{
	if (old && old->rseq_va)
		rqueue(rt, "rseq (unregister)", SYS_rseq, old->rseq_va, old->rseq_len,
		       RSEQ_UNREGISTER, old->rseq_sig);
	if (th->rseq_va)
		rqueue(rt, "rseq", SYS_rseq, th->rseq_va, th->rseq_len, th->rseq_flags,
		       th->rseq_sig);
}

static int queue_name(struct rtask *rt, const struct thread *th, struct cr_err *err)
{
	uint64_t va;

	/* /proc/PID/comm only takes it from a thread of the same process */
	if (!attrs_scratch_copy(rt, th->comm, sizeof(th->comm), &va, err))
		return -err->code;
	rqueue(rt, "PR_SET_NAME", SYS_prctl, PR_SET_NAME, va);
	return 0;
}

int attrs_rebuild_thread_queue(struct rtask *rt, const struct process *p, const struct thread *old,
			       const struct thread *th, struct cr_err *err)
{
	int r = 0;

	if (!old || strncmp(old->comm, th->comm, sizeof(th->comm)))
		r = queue_name(rt, th, err);
	if (!r && (!old || altstack_differs(old, th)))
		r = queue_altstack(rt, th, err);
	if (r)
		return r;
	if (!old || old->clear_tid_va != th->clear_tid_va)
		rqueue(rt, "set_tid_address", SYS_set_tid_address, th->clear_tid_va);
	if (!old || robust_differs(old, th))
		rqueue(rt, "set_robust_list", SYS_set_robust_list, th->robust_list_va,
		       th->robust_list_len ? th->robust_list_len : ROBUST_HEAD_BYTES);
	if (!old || rseq_differs(old, th))
		queue_rseq(rt, old, th);
	/* READ_IMPLIES_EXEC would make executable what is still to be mapped: late. Cheap, so
	 * always */
	rqueue(rt, "personality", SYS_personality, p->personality & ~(uint32_t)READ_IMPLIES_EXEC);
	return 0;
}

static int write_proc(pid_t pid, const char *name, const char *text, struct cr_err *err)
{
	ssize_t len = (ssize_t)strlen(text);
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)len) != len) {
		err->pid = pid;
		return cr_err_sys(err, "setting %s to %s", path, text);
	}
	return 0;
}

static int set_by_proc(const struct process *p, struct cr_err *err)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", p->oom_score_adj);
	int r = write_proc(p->pid, "oom_score_adj", text, err);
	if (r)
		return r;
	snprintf(text, sizeof(text), "%#x", p->coredump_bits ^ 0x33);
	r = write_proc(p->pid, "coredump_filter", text, err);
	/* a kernel that dumps no cores has none */
	return r == -ENOENT && !p->coredump_bits ? 0 : r;
}

int attrs_rebuild_outside(pid_t tid, const struct process *p, const struct thread *th, bool leader,
			  struct cr_err *err)
{
	int r = attrs_sched_apply(tid, th, err);

	return r || !leader ? r : set_by_proc(p, err);
}

/* ---- last ---- */

/* PR_SET_DUMPABLE(2const): 2 cannot be set, 0 protects as much. */
static int settable_dumpable(int dumpable)
{
	return dumpable == 1;
}

/* What belongs to the process is looked at for its first thread only: comparing credentials takes
 * dozens of system calls. */
bool attrs_needs_late(const struct process *p, const struct thread *th)
{
	if (th->pdeathsig || th->no_new_privs != (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1))
		return true;
	if (th != &p->threads[0])
		return false;
	return p->personality & READ_IMPLIES_EXEC ||
	       settable_dumpable(p->mm.dumpable) != settable_dumpable(prctl(PR_GET_DUMPABLE)) ||
	       attrs_limits_tight(p) || attrs_creds_differ(&p->creds);
}

int attrs_late_queue(struct rtask *rt, const struct process *p, const struct thread *th,
		     bool leader, struct cr_err *err)
{
	int r = 0;

	if (leader) /* while it may: a limit may also be above what the final credentials allow */
		r = attrs_limits_late_queue(rt, p, err);
	if (!r && attrs_creds_differ(&p->creds))
		r = attrs_creds_queue(rt, &p->creds, err);
	if (r)
		return r;
	if (p->personality & READ_IMPLIES_EXEC)
		rqueue(rt, "personality", SYS_personality, p->personality);
	/* Both are reset by a change of credentials. Dumpable belongs to the address space and any
	 * thread's change resets it, so every thread sets it: whichever comes last does. */
	rqueue(rt, "PR_SET_DUMPABLE", SYS_prctl, PR_SET_DUMPABLE,
	       settable_dumpable(p->mm.dumpable));
	rqueue(rt, "PR_SET_PDEATHSIG", SYS_prctl, PR_SET_PDEATHSIG, th->pdeathsig);
	if (th->no_new_privs)
		rqueue(rt, "PR_SET_NO_NEW_PRIVS", SYS_prctl, PR_SET_NO_NEW_PRIVS, 1);
	return 0;
}

/* ---- switch-over ---- */

bool attrs_needs_launch(const struct process *p, const struct thread *th, bool leader)
{
	return th->n_pending || (leader && (p->n_pending || attrs_timers_armed(p)));
}

int attrs_launch_queue(struct rtask *rt, const struct tree *t, const struct process *p,
		       const struct thread *th, bool leader, uint64_t now_monotonic_ns,
		       struct cr_err *err)
{
	uint64_t elapsed_ns = 0;

	/* signals first: a timer that is due queues one, and it comes after those that were there
	 */
	int r = attrs_pending_queue(rt, p, th, leader, err);
	if (r || !leader)
		return r;
	if (now_monotonic_ns > t->clock_monotonic_ns && t->clock_monotonic_ns)
		elapsed_ns = now_monotonic_ns - t->clock_monotonic_ns;
	return attrs_timers_arm_queue(rt, t, p, elapsed_ns, err);
}

/* ---- preflight ---- */

static int own_oom_score_adj(void)
{
	_cleanup_fd_ int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
	char text[16] = "";

	return fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 ? atoi(text) : 0;
}

static void check_process(const struct tree *t, const struct process *p, struct refusals *refused)
{
	bool nnp = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;

	attrs_creds_check(p, refused);
	attrs_limits_check(p, refused);
	attrs_timers_check(p, refused);
	attrs_seccomp_check(p, refused);
	if (p->oom_score_adj < own_oom_score_adj() && !attrs_have_cap(CAP_SYS_RESOURCE))
		refuse(
		    refused, p->pid, "oom_score_adj",
		    "%d is below that of the agent on this host, and CAP_SYS_RESOURCE to lower it "
		    "is missing here",
		    p->oom_score_adj);
	if (p->mm.dumpable > 1)
		refuse_warn(refused, p->pid, "dumpable", "%d cannot be set: it becomes 0",
			    p->mm.dumpable);
	for (size_t i = 0; i < p->n_threads; i++) {
		if (nnp && !p->threads[i].no_new_privs)
			refuse(refused, p->pid, "no_new_privs",
			       "is set for the agent on this host and cannot be unset");
		if (p->pid == t->root_pid && p->threads[i].pdeathsig)
			refuse_warn(
			    refused, p->pid, "parent death signal",
			    "its parent stays behind; it is set again, for the parent that it "
			    "has here");
	}
}

static void check_cpu(const struct tree *t, struct refusals *refused)
{
#ifdef __x86_64__
	uint32_t lo, hi, a = 1, c = 0, b, d;

	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	if (!(c & 1u << 27)) /* OSXSAVE */
		return;
	__asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	uint64_t have = lo | (uint64_t)hi << 32;
	if (t->xfeatures & ~have)
		refuse(refused, 0, "cpu",
		       "the tasks use xsave components %#llx that this host's cpu does not have",
		       (unsigned long long)(t->xfeatures & ~have));
#else
	(void)t, (void)refused;
#endif
}

void attrs_check(const struct tree *t, struct refusals *refused)
{
	check_cpu(t, refused);
	attrs_sched_check(t, refused);
	for (size_t i = 0; i < t->n_procs; i++)
		if (!t->procs[i].zombie)
			check_process(t, &t->procs[i], refused);
}
