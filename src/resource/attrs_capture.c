/* Attributes as seen from outside: /proc and system calls on the pid.
 *
 * Two modes. Ahead, everything is read of every thread, and what a process must have in common
 * (credentials, seccomp, personality) is compared between its threads. Exact, in the downtime, a
 * thread costs a handful of system calls and no file of /proc; a process costs four small files. */
#include "resource/attrs_internal.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "kernel/procfs.h"
#include "kernel/taskview.h"

enum { ROBUST_HEAD_BYTES = 24 }; /* get_robust_list(2) says nothing else */

#ifndef PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG
#define PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211 /* 6.4 */
#endif

struct sud_config { /* struct ptrace_sud_config of linux/ptrace.h, 6.4 */
	uint64_t mode, selector, offset, len;
};

/* The file's text after "Key:" and blanks in a status file, up to the end of the line. */
static bool status_line(const char *text, const char *key, char *ret, size_t room)
{
	size_t len = strlen(key);

	for (const char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
		if (strncmp(p, key, len) || p[len] != ':')
			continue;
		p += len + 1;
		p += strspn(p, " \t");
		snprintf(ret, room, "%.*s", (int)strcspn(p, "\n"), p);
		return true;
	}
	return false;
}

/* The name as status shows it: newline and backslash escaped. */
static bool status_comm(const char *text, char comm[16])
{
	char line[64];
	size_t n = 0;

	if (!status_line(text, "Name", line, sizeof(line)))
		return false;
	memset(comm, 0, 16);
	for (const char *p = line; *p && n < 15; p++) {
		if (*p == '\\' && (p[1] == 'n' || p[1] == '\\'))
			comm[n++] = *++p == 'n' ? '\n' : '\\';
		else
			comm[n++] = *p;
	}
	return true;
}

static int read_status(pid_t pid, pid_t tid, char **ret_text, struct proc_status *ret,
		       struct cr_err *err)
{
	char rel[48];

	snprintf(rel, sizeof(rel), pid == tid ? "status" : "task/%d/status", tid);
	ssize_t n = proc_read(pid, rel, ret_text, err);
	return n < 0 ? (int)n : proc_status_parse(*ret_text, ret, err);
}

static uint64_t user_ns_of(pid_t pid)
{
	struct stat st;
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
	return stat(path, &st) ? 0 : st.st_ino;
}

/* A small file that may be missing on this kernel: NULL then. */
static char *read_optional(pid_t pid, const char *rel)
{
	struct cr_err ignored = {0};
	char *text = NULL;

	if (proc_read(pid, rel, &text, &ignored) < 0)
		return NULL;
	return text;
}

static void host_init(struct attrs_host *h, bool exact)
{
	h->n_online = attrs_online_cpus();
	h->fair_slice_ns = attrs_sched_default_slice();
	if (!exact) {
		h->label = read_optional(getpid(), "attr/current");
		h->user_ns = user_ns_of(getpid());
	}
}

static void host_done(struct attrs_host *h)
{
	free(h->label);
}

/* ---- what cannot move ---- */

static void refuse_thread(struct refusals *r, const struct process *p, pid_t tid, const char *what,
			  const char *why)
{
	char text[120];

	if (tid == p->pid)
		snprintf(text, sizeof(text), "%s (%s)", what, p->threads[0].comm);
	else
		snprintf(text, sizeof(text), "%s of thread %d (%s)", what, tid, p->threads[0].comm);
	refuse(r, p->pid, text, "%s", why);
}

/* Our own threads trace the tasks during a capture at a stop. */
static bool is_tracer_ours(pid_t tracer)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/self/task/%d", tracer);
	return !access(path, F_OK);
}

static void refuse_by_status(struct capture *c, const struct process *p, pid_t tid,
			     const char *text, const struct proc_status *st)
{
	char line[64];

	if (st->tracer && !c->exact && !is_tracer_ours(st->tracer)) {
		snprintf(line, sizeof(line), "traced by %d (a debugger?); detach it first",
			 st->tracer);
		refuse_thread(c->refused, p, tid, "ptrace", line);
	}
	if (status_line(text, "x86_Thread_features", line, sizeof(line)) && line[0])
		refuse_thread(c->refused, p, tid, "shadow stack",
			      "x86 thread features (shstk) are not moved yet");
	if (status_line(text, "Speculation_Store_Bypass", line, sizeof(line)) &&
	    !strncmp(line, "thread", 6) && strstr(line, "mitigated"))
		refuse_warn(c->refused, p->pid, "speculation control",
			    "the store bypass mitigation set by prctl(2) is not set again");
}

static void refuse_by_process(struct capture *c, const struct attrs_host *h,
			      const struct process *p)
{
	_cleanup_free_ char *label = read_optional(p->pid, "attr/current");
	_cleanup_free_ char *group = read_optional(p->pid, "autogroup");
	const char *nice = group ? strstr(group, " nice ") : NULL;
	uint64_t ns = user_ns_of(p->pid);

	if (ns && ns != h->user_ns)
		refuse(c->refused, p->pid, "user namespace",
		       "in a user namespace of its own; namespaces are not moved yet");
	if (label && strcmp(label, h->label ? h->label : ""))
		refuse(c->refused, p->pid, "security label",
		       "confined as \"%.*s\"; the destination would run it unconfined",
		       (int)strcspn(label, "\n"), label);
	if (nice && atoi(nice + 6))
		refuse_warn(c->refused, p->pid, "autogroup",
			    "the nice value of its autogroup is not moved");
}

/* What a thread may have taken on since the capture ahead, told by ptrace without a file. */
static void refuse_at_stop(struct capture *c, const struct process *p, pid_t tid)
{
	struct sud_config sud = {0};

	if (!ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, sizeof(sud), &sud) && sud.mode)
		refuse_thread(c->refused, p, tid, "syscall user dispatch", "not supported");
}

static void refuse_core_cookie(struct capture *c, const struct process *p, pid_t tid)
{
	uint64_t cookie = 0;

	/* 5.14; -ENODEV without SMT, Documentation/admin-guide/hw-vuln/core-scheduling.rst */
	if (!prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid, PR_SCHED_CORE_SCOPE_THREAD, &cookie) &&
	    cookie)
		refuse_thread(c->refused, p, tid, "core scheduling", "cookies are not moved yet");
}

/* ---- one process ---- */

static int fill_creds(struct tree *t, struct process *p, const struct proc_status *st,
		      struct cr_err *err)
{
	struct creds *cr = &p->creds;

	cr->uid = st->uid[0], cr->euid = st->uid[1], cr->suid = st->uid[2], cr->fsuid = st->uid[3];
	cr->gid = st->gid[0], cr->egid = st->gid[1], cr->sgid = st->gid[2], cr->fsgid = st->gid[3];
	cr->cap_inh = st->cap_inh, cr->cap_prm = st->cap_prm, cr->cap_eff = st->cap_eff;
	cr->cap_bnd = st->cap_bnd, cr->cap_amb = st->cap_amb;
	cr->n_groups = st->groups.n;
	cr->groups = NULL;
	if (!st->groups.n)
		return 0;
	cr->groups = arena_memdup(t->arena, st->groups.v, st->groups.n * sizeof(*cr->groups));
	return cr->groups ? 0 : cr_err_oom(err);
}

int attrs_query_expect(struct process *p, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_(proc_status_done) struct proc_status st = {0};
	int r = read_status(p->pid, p->pid, &text, &st, err);

	if (!r)
		attrs_actions_expect(p, st.sig_ign, st.sig_cgt);
	return r;
}

static bool same_creds(const struct creds *cr, const struct proc_status *st)
{
	return st->uid[0] == cr->uid && st->uid[1] == cr->euid && st->uid[2] == cr->suid &&
	       st->uid[3] == cr->fsuid && st->gid[0] == cr->gid && st->gid[1] == cr->egid &&
	       st->gid[2] == cr->sgid && st->gid[3] == cr->fsgid && st->cap_inh == cr->cap_inh &&
	       st->cap_prm == cr->cap_prm && st->cap_eff == cr->cap_eff &&
	       st->cap_bnd == cr->cap_bnd && st->cap_amb == cr->cap_amb &&
	       st->groups.n == cr->n_groups &&
	       (!cr->n_groups ||
		!memcmp(st->groups.v, cr->groups, cr->n_groups * sizeof(*cr->groups)));
}

/* 0x33 is what every kernel starts with, core(5). Not there without CONFIG_ELF_CORE. */
static uint32_t coredump_bits(pid_t pid)
{
	_cleanup_free_ char *text = read_optional(pid, "coredump_filter");

	return text ? (uint32_t)strtoul(text, NULL, 16) ^ 0x33 : 0;
}

static int read_number(pid_t pid, const char *rel, int base, long *ret, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	char *end;

	ssize_t n = proc_read(pid, rel, &text, err);
	if (n < 0)
		return (int)n;
	*ret = strtol(text, &end, base);
	if (end == text)
		return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "/proc/%d/%s: not a number: %.40s",
				  pid, rel, text);
	return 0;
}

static int capture_leader(struct capture *c, const struct attrs_host *h, struct process *p,
			  struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_(proc_status_done) struct proc_status st = {0};
	long v;

	int r = read_status(p->pid, p->pid, &text, &st, err);
	if (!r)
		r = fill_creds(c->tree, p, &st, err);
	if (r)
		return r;
	struct thread *th = &p->threads[0];
	status_comm(text, th->comm);
	/* whoever listed it saw it alive: it ends, or the next look at who is there refuses it */
	if (st.state == 'Z' || st.state == 'X') {
		err->pid = p->pid;
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "process %d is exiting", p->pid);
	}
	th->sigmask = st.sig_blk;
	th->no_new_privs = st.no_new_privs;
	th->seccomp_mode = (uint32_t)st.seccomp;
	p->mm.thp_disable = !st.thp_enabled;
	attrs_actions_expect(p, st.sig_ign, st.sig_cgt);
	refuse_by_status(c, p, p->pid, text, &st);
	if (!c->exact)
		refuse_by_process(c, h, p);
	r = read_number(p->pid, "personality", 16, &v, err);
	if (r)
		return r;
	p->personality = (uint32_t)v;
	r = read_number(p->pid, "oom_score_adj", 10, &v, err);
	if (r)
		return r;
	p->oom_score_adj = (int32_t)v;
	p->coredump_bits = coredump_bits(p->pid);
	r = attrs_limits_capture(p, err);
	if (!r)
		r = attrs_timers_capture(c, p, err);
	if (!r && c->exact)
		r = attrs_pending_capture(c, p->pid, true, st.shd_pnd, &p->pending, &p->n_pending,
					  err);
	if (!r && c->exact)
		r = attrs_pending_capture(c, p->pid, false, st.sig_pnd, &th->pending,
					  &th->n_pending, err);
	return r;
}

/* A thread that is not the leader, ahead: what it must share with the leader. */
static int compare_thread(struct capture *c, struct process *p, struct thread *th,
			  struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_(proc_status_done) struct proc_status st = {0};
	char rel[48];
	long v;

	int r = read_status(p->pid, th->tid, &text, &st, err);
	if (r)
		return r;
	status_comm(text, th->comm);
	th->sigmask = st.sig_blk;
	th->no_new_privs = st.no_new_privs;
	th->seccomp_mode = (uint32_t)st.seccomp;
	refuse_by_status(c, p, th->tid, text, &st);
	if (!same_creds(&p->creds, &st))
		refuse_thread(c->refused, p, th->tid, "credentials",
			      "differ from those of the main thread; not supported");
	snprintf(rel, sizeof(rel), "task/%d/personality", th->tid);
	r = read_number(p->pid, rel, 16, &v, err);
	if (!r && (uint32_t)v != p->personality)
		refuse_thread(c->refused, p, th->tid, "personality",
			      "differs from that of the main thread; not supported");
	return r;
}

static int capture_robust_list(struct thread *th, struct cr_err *err)
{
	void *head = NULL;
	size_t len = 0;

	if (syscall(SYS_get_robust_list, th->tid, &head, &len)) {
		err->pid = th->tid;
		return cr_err_sys(err, "get_robust_list of %d", th->tid);
	}
	th->robust_list_va = (uint64_t)head;
	th->robust_list_len = len;
	return 0;
}

/* What attrs_query_collect would have been told. */
static void take_facts(struct thread *th, const struct task_facts *f)
{
	memcpy(th->comm, f->comm, sizeof(th->comm));
	th->altstack_sp = f->altstack_sp;
	th->altstack_size = f->altstack_size;
	th->altstack_flags = f->altstack_flags;
	th->clear_tid_va = f->clear_tid_va;
	th->pdeathsig = f->pdeathsig;
	th->timer_slack_ns = f->timer_slack_ns;
	th->no_new_privs = f->no_new_privs;
	th->seccomp_mode = f->seccomp_mode;
	th->rseq_va = f->rseq_va;
	th->rseq_len = f->rseq_len;
	th->rseq_sig = f->rseq_sig;
	th->rseq_flags = 0;
	th->robust_list_va = f->robust_list_va;
	th->robust_list_len = ROBUST_HEAD_BYTES;
}

static int capture_thread(struct capture *c, const struct attrs_host *h, struct process *p,
			  struct thread *th, const struct task_facts *f, struct cr_err *err)
{
	struct attrs_caps caps;
	int r = 0;

	if (th != &p->threads[0] && !c->exact)
		r = compare_thread(c, p, th, err);
	if (!r)
		r = attrs_sched_capture(c, h, th, err);
	if (!r && !f)
		r = capture_robust_list(th, err);
	if (r)
		return r;
	if (f)
		take_facts(th, f);
	if (!c->exact) {
		if (!f)
			attrs_sched_capture_slack(th);
		refuse_core_cookie(c, p, th->tid);
		return 0;
	}
	refuse_at_stop(c, p, th->tid);
	if (th == &p->threads[0])
		return 0;
	if (!attrs_capget(th->tid, &caps) &&
	    (caps.inh != p->creds.cap_inh || caps.prm != p->creds.cap_prm ||
	     caps.eff != p->creds.cap_eff))
		refuse_thread(c->refused, p, th->tid, "credentials",
			      "differ from those of the main thread; not supported");
	if (f && !f->pending)
		return 0;
	return attrs_pending_capture(c, th->tid, false, f ? f->pending : 0, &th->pending,
				     &th->n_pending, err);
}

static int capture_process(struct capture *c, const struct attrs_host *h, struct process *p,
			   struct task_facts_list *facts, struct cr_err *err)
{
	int r = capture_leader(c, h, p, err);

	for (size_t i = 0; !r && i < p->n_threads; i++) {
		struct thread *th = &p->threads[i];
		const struct task_facts *f = facts ? task_facts_find(facts, th->tid) : NULL;

		r = capture_thread(c, h, p, th, f, err);
		if (r == -ESRCH && !c->exact && i > 0)
			r = 0; /* ended meanwhile; the next walk will not find it */
	}
	return r;
}

static int capture_seccomp(struct capture *c, const struct capture_proc *cp, struct cr_err *err)
{
	struct process *p = cp->p;
	bool any = false;
	int r = 0;

	for (size_t i = 0; !r && i < p->n_threads; i++) {
		struct thread *th = &p->threads[i];
		const struct thread *prev =
		    cp->prev ? process_find_thread(cp->prev, th->tid) : NULL;

		any |= th->seccomp_mode != 0;
		if (c->exact && cp->facts && !th->seccomp_mode)
			continue;
		if (c->exact)
			r = attrs_seccomp_capture(c->tree, p, th, c->prev, prev, c->refused, err);
		else if (prev)
			r = attrs_seccomp_copy(c->tree, th, c->prev, prev, err);
		if (c->exact && cp->facts && th->seccomp_mode == SECCOMP_MODE_FILTER &&
		    !th->n_seccomp_filters)
			refuse_thread(c->refused, p, th->tid, "seccomp filter",
				      "this agent may not read it");
	}
	if (any && !c->exact)
		attrs_seccomp_refuse_here(p, c->refused);
	return r;
}

int attrs_capture(struct capture *c, struct cr_err *err)
{
	_cleanup_(host_done) struct attrs_host h = {0};
	int r = 0;

	host_init(&h, c->exact);
	for (size_t i = 0; !r && i < c->tree->n_procs; i++) {
		struct process *p = c->procs[i].p;

		if (p->zombie || !p->n_threads)
			continue;
		r = capture_process(c, &h, p, c->procs[i].facts, err);
		if (!r)
			r = capture_seccomp(c, &c->procs[i], err);
		attrs_settle_stop(p);
		if (r == -ESRCH && !c->exact)
			r = 0;
		else if (r)
			cr_err_ctx(err, "attributes of %d", p->pid);
	}
	return r;
}
