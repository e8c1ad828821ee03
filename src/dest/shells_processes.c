#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dest/shells_private.h"
#include "kernel/task.h"
#include "model/layout.h"

enum { SHELL_PTRACE_OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL };
#define TASK_TOP 0x7ffffffff000ull

/* ---- making processes ---- */

/* A fork of this process, in which nothing but the executor goes on. Never returns there. pid 0:
 * any. */
static pid_t fork_root(struct shells *s, struct shell_thread *th, pid_t pid)
{
	struct clone_args ca = {
	    /* every handled signal back to default: no handler of ours may run there */
	    .flags = CLONE_CLEAR_SIGHAND,
	    .exit_signal = SIGCHLD,
	    .set_tid = pid ? (uint64_t)(uintptr_t)&pid : 0,
	    .set_tid_size = pid ? 1 : 0,
	};
	extern const ptrdiff_t __rseq_offset;
	uint64_t entry = rarea_entry_va(&s->area), slot = th->rt.slot_va;
	uint64_t stack = rtask_stack_va(&th->rt);
	sigset_t all, old;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	pid_t r = (pid_t)syscall(SYS_clone3, &ca, sizeof(ca));
	if (r) {
		int saved = errno;

		sigprocmask(SIG_SETMASK, &old, NULL);
		errno = saved;
		return r;
	}
	/* The area that libc registered goes away with our address space: rseq(2), flag UNREGISTER.
	 */
	uint8_t *tp = __builtin_thread_pointer();
	syscall(SYS_rseq, tp + __rseq_offset, 32, 1, 0x53053053);
	dup3(s->self_pidfd, s->pidfd_slot, 0);
	syscall(SYS_close_range, 0, s->pidfd_slot - 1, 0);
	syscall(SYS_close_range, s->pidfd_slot + 1, ~0u, 0);
	__asm__ volatile("mov %0, %%rdi\n\t"
			 "mov %1, %%rsp\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call *%2\n\t"
			 :
			 : "r"(slot), "r"(stack), "r"(entry)
			 : "memory", "rdi");
	__builtin_unreachable();
}

int shell_seize(struct shell_thread *th, struct cr_err *err)
{
	/* its filters come before it is parked for the last time; without the privilege it has none
	 */
	int r = task_seize(th->tid, SHELL_PTRACE_OPTIONS | PTRACE_O_SUSPEND_SECCOMP, err);

	if (r == -EPERM)
		r = task_seize(th->tid, SHELL_PTRACE_OPTIONS, err);

	th->seized = th->rt.traced = !r;
	return r;
}

/* Nothing is left in a root's address space but the executor. */
static int strip_root(struct shells *s, struct shell *sh, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);

	rqueue(rt, "munmap", SYS_munmap, 0, s->hole_start);
	rqueue(rt, "munmap", SYS_munmap, s->hole_end, TASK_TOP - s->hole_end);
	/* what the agent had: the tasks' own values are set later from these defaults */
	rqueue(rt, "prctl(PR_SET_DUMPABLE)", SYS_prctl, PR_SET_DUMPABLE, 1);
	return rtask_run(rt, err);
}

static int taken(pid_t pid, struct cr_err *err)
{
	int code = errno;

	err->pid = pid;
	if (code == EEXIST)
		return cr_err_set(err, CR_ERR_INPUT, EEXIST, "pid %d is taken at the destination",
				  pid);
	return cr_err_set(err, CR_ERR_KERNEL, code, "making the process with pid %d: %s", pid,
			  strerror(code));
}

/* A ghost: the parent of roots until their birth is over. When it ends they belong to the host's
 * init, as they would if they had been started and left alone. pid 0: any. */
static int make_ghost(struct shells *s, pid_t pid, struct cgroup *cg, struct shell **ret,
		      struct cr_err *err)
{
	struct shell *sh;
	int r = shell_new(s, pid, 0, &sh, err);

	if (r)
		return r;
	pid_t got = fork_root(s, sh->threads[0], pid);
	if (got < 0) {
		r = taken(pid, err);
		shell_free(s, sh);
		return r;
	}
	sh->ghost = true;
	sh->pid = sh->threads[0]->tid = sh->threads[0]->rt.tid = got;
	r = shell_seize(sh->threads[0], err);
	if (!r) /* children are born where their parents are */
		r = cgroup_move_pid(cg, got, err);
	if (!r)
		r = strip_root(s, sh, err);
	if (r) {
		shell_kill(sh);
		shell_free(s, sh);
	} else {
		*ret = sh;
	}
	return r;
}

/* Have a shell clone: a child process (flags 0) or a thread. */
int shell_clone(struct shell *parent, struct shell_thread *child, uint64_t flags,
		uint32_t exit_signal, struct cr_err *err)
{
	struct rtask *rt = shell_leader(parent);
	uint64_t args_va, tid_va;
	struct clone_args *ca = rtask_scratch(rt, sizeof(*ca), &args_va);
	pid_t *tid = rtask_scratch(rt, sizeof(*tid), &tid_va);

	if (!ca || !tid)
		return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no scratch memory for clone3");
	*tid = child->tid;
	*ca = (struct clone_args){
	    .flags = flags,
	    .exit_signal = exit_signal,
	    .stack = rtask_stack_va(&child->rt) - SLOT_STACK_BYTES,
	    .stack_size = SLOT_STACK_BYTES,
	    .set_tid = tid_va,
	    .set_tid_size = 1,
	};
	struct rcall *c = rqueue(rt, NULL, BLOB_OP_CLONE, args_va, sizeof(*ca), child->rt.slot_va);
	int r = rtask_run(rt, err);
	rtask_scratch_reset(rt);
	if (!r && c->ret < 0) {
		errno = (int)-c->ret;
		return taken(child->tid, err);
	}
	return r;
}

/* What a child of a shell that is built already has inherited. */
static int forget_rseq(const struct shell *parent, struct shell *child, struct cr_err *err)
{
	const struct shell_thread *th = parent->threads[0];
	struct rtask *rt = shell_leader(child);

	if (!th->rseq_va)
		return 0;
	rqueue(rt, "rseq(UNREGISTER)", SYS_rseq, th->rseq_va, th->rseq_len, 1, th->rseq_sig);
	return rtask_run(rt, err);
}

/* fork(2): what a child does not inherit of its parent's mappings, madvise(2), mlock(2). */
static int copy_layout(const struct shell *parent, struct shell *child, struct cr_err *err)
{
	child->vmas = calloc(parent->n_vmas ? parent->n_vmas : 1, sizeof(*child->vmas));
	if (!child->vmas)
		return cr_err_oom(err);
	for (size_t i = 0; i < parent->n_vmas; i++) {
		struct vma v = parent->vmas[i];

		if (v.flags & VMA_F_DONTFORK)
			continue;
		v.flags &= ~(uint32_t)VMA_F_LOCKED;
		child->vmas[child->n_vmas++] = v;
	}
	child->guards = calloc(parent->n_guards ? parent->n_guards : 1, sizeof(*child->guards));
	if (!child->guards)
		return cr_err_oom(err);
	if (parent->n_guards)
		memcpy(child->guards, parent->guards, parent->n_guards * sizeof(*child->guards));
	child->n_guards = parent->n_guards;
	child->copy_of = parent->pid;
	return 0;
}

static int make_child(struct shells *s, struct shell *parent, const struct process *p,
		      struct shell **ret, struct cr_err *err)
{
	struct shell *sh;
	int r = shell_new(s, p->pid, parent->pid, &sh, err);

	if (r)
		return r;
	sh->pidfd_slot = parent->pidfd_slot; /* descriptors are inherited */
	r = shell_clone(parent, sh->threads[0], CLONE_CLEAR_SIGHAND,
			p->exit_signal ? p->exit_signal : SIGCHLD, err);
	if (!r)
		r = shell_seize(sh->threads[0], err);
	if (!r)
		r = forget_rseq(parent, sh, err);
	if (r) {
		shell_free(s, sh);
		return r;
	}
	*ret = sh;
	return 0;
}

static int remote_setsid(struct shell *sh, struct cr_err *err)
{
	rqueue(shell_leader(sh), "setsid", SYS_setsid);
	return rtask_run(shell_leader(sh), err);
}

/* The pid that has to lead a root's session, if it is none of the tree's. 0: the root leads. */
static pid_t foreign_session(const struct tree *t, const struct process *p)
{
	return p->sid > 0 && !tree_find_process(t, p->sid) ? p->sid : 0;
}

/* sid 0: one that leads no session of the tree's. */
static int get_ghost(struct shells *s, pid_t sid, struct cgroup *cg, struct shell **ret,
		     struct cr_err *err)
{
	vec_foreach (g, &s->ghosts)
		if ((*g)->ghost_sid == sid) {
			*ret = *g;
			return 0;
		}
	struct shell **slot = vec_push(&s->ghosts);
	if (!slot)
		return cr_err_oom(err);
	int r = make_ghost(s, sid, cg, ret, err);
	if (r) {
		s->ghosts.n--;
		return r;
	}
	*slot = *ret;
	(*ret)->ghost_sid = sid;
	return sid ? remote_setsid(*ret, err) : 0;
}

static struct shell *parent_of(const struct shells *s, const struct tree *t,
			       const struct process *p)
{
	return tree_find_process(t, p->ppid) ? shells_find(s, p->ppid) : NULL;
}

/* A zombie is a shell that exits as the source's process had. Nobody reaps it but its parent. */
static int make_zombie(struct shell *sh, const struct process *p, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);
	int sig = WIFSIGNALED(p->exit_status) ? WTERMSIG(p->exit_status) : 0;
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, sh->pid, 0);

	if (pidfd < 0)
		return cr_err_sys(err, "opening a pidfd of shell %d", sh->pid);
	if (ptrace(PTRACE_INTERRUPT, sh->pid, 0, 0))
		return cr_err_sys(err, "interrupting shell %d", sh->pid);
	int st;
	int r = task_wait(sh->pid, &st, err);
	if (r)
		return r;
	if (ptrace(PTRACE_DETACH, sh->pid, 0, 0)) /* else the tracer would reap it first */
		return cr_err_sys(err, "letting go of shell %d", sh->pid);
	sh->threads[0]->seized = rt->traced = false;
	sh->zombie = true;
	if (sig && sig != SIGKILL) {
		uint64_t va;
		uint64_t *none = rtask_scratch(rt, sizeof(*none), &va);

		if (!none)
			return cr_err_oom(err);
		rqueue(rt, NULL, SYS_kill, sh->pid, sig);
		rqueue(rt, NULL, SYS_rt_sigprocmask, SIG_SETMASK, va, 0, 8);
		rtask_start(rt);
	} else if (sig) {
		kill(sh->pid, SIGKILL);
	} else {
		rqueue(rt, NULL, SYS_exit_group, WEXITSTATUS(p->exit_status));
		rtask_start(rt);
	}
	/* readable once it has exited, pidfd_open(2) */
	struct pollfd pfd = {.fd = pidfd, .events = POLLIN};
	if (poll(&pfd, 1, 10000) != 1)
		return cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT, "process %d does not exit",
				  sh->pid);
	return 0;
}

static bool begins_as_copy(const struct tree *t, const struct process *p,
			   const struct shell *parent)
{
	const struct process *pp = parent ? tree_find_process(t, parent->pid) : NULL;

	return pp && parent->n_vmas && mm_is_forked(p, pp);
}

static int make_process(struct shells *s, const struct tree *t, const struct process *p,
			struct cgroup *cg, enum shells_copy copy, struct cr_err *err)
{
	struct shell *parent = parent_of(s, t, p), *sh = NULL;
	bool as_copy = copy != COPY_NONE && begins_as_copy(t, p, parent);
	struct shell **slot = vec_push(&s->list);
	pid_t ghost_sid = foreign_session(t, p);
	int r = 0;

	if (!slot)
		return cr_err_oom(err);
	*slot = NULL;
	if (!parent)
		r = get_ghost(s, ghost_sid, cg, &parent, err);
	if (!r)
		r = make_child(s, parent, p, &sh, err);
	if (r) {
		s->list.n--;
		return r;
	}
	*slot = sh;
	if (as_copy)
		r = copy_layout(parent, sh, err);
	if (r)
		return r;
	if (p->sid == p->pid || (parent->ghost && p->sid <= 0))
		r = remote_setsid(sh, err);
	return r ? r : shell_take_tty(s, sh, p, err);
}

static int drain_signal(struct shell *sh, int signo, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);
	uint64_t set_va, ts_va;
	int r = shell_unpark(NULL, sh, err);

	if (r)
		return r;
	uint64_t *set = rtask_scratch(rt, sizeof(*set), &set_va);
	struct timespec *ts = rtask_scratch(rt, sizeof(*ts), &ts_va);

	if (!set || !ts)
		return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no scratch memory");
	*set = 1ull << (signo - 1);
	rqueue(rt, NULL, SYS_rt_sigtimedwait, set_va, 0, ts_va, 8);
	r = rtask_run(rt, err);
	rtask_scratch_reset(rt);
	return r;
}

int shells_drain_signal(struct shells *s, int signo, struct cr_err *err)
{
	int r = 0;

	vec_foreach (sh, &s->list)
		if (!r && !(*sh)->zombie)
			r = drain_signal(*sh, signo, err);
	return r;
}

/* The exits of zombies have left SIGCHLD pending in their parents, who had not asked for it here.
 */
int shell_drain_sigchld(struct shell *sh, struct cr_err *err)
{
	return drain_signal(sh, SIGCHLD, err);
}

static int end_process(struct shells *s, size_t index, struct cr_err *err)
{
	struct shell *sh = s->list.v[index];
	struct shell *parent = shells_find(s, sh->ppid);

	if (!sh->zombie)
		shell_kill(sh);
	if (parent) {
		int r = shell_unpark(s, parent, err);

		if (r)
			return r;
		rqueue(shell_leader(parent), "wait4", SYS_wait4, sh->pid, 0, __WALL, 0);
		r = rtask_run(shell_leader(parent), err);
		if (!r)
			r = shell_drain_sigchld(parent, err);
		if (r)
			return r;
	}
	shell_free(s, sh);
	memmove(&s->list.v[index], &s->list.v[index + 1],
		(s->list.n - index - 1) * sizeof(*s->list.v));
	s->list.n--;
	return 0;
}

/* Is p to be made later, once its parent has pages that it can have from there? Not yet if the
 * parent's shell was made by this very call. */
static bool has_to_wait(const struct shells *s, const struct tree *t, const struct process *p)
{
	const struct process *pp = tree_find_process(t, p->ppid);
	const struct shell *parent = pp ? shells_find(s, p->ppid) : NULL;

	return pp && (!parent || ((!parent->n_vmas || parent->copy_of) && mm_is_forked(p, pp)));
}

int shells_sync_processes(struct shells *s, const struct tree *t, struct cgroup *cg,
			  enum shells_copy copy, size_t *ret_waiting, struct cr_err *err)
{
	size_t had = s->list.n;
	int r = 0;

	*ret_waiting = 0;
	for (size_t i = s->list.n; i-- > 0 && !r;) {
		struct shell *sh = s->list.v[i];
		const struct process *p = tree_find_process(t, sh->pid);

		/* one that is to exit waits for all others, in shells_settle_structure() */
		if (!p || (p->zombie != sh->zombie && (sh->zombie || sh->built)))
			r = end_process(s, i, err);
	}
	for (size_t i = 0; i < t->n_procs && !r; i++) {
		const struct process *p = &t->procs[i];

		if (shells_find(s, p->pid))
			continue;
		if (copy == COPY_ALWAYS && has_to_wait(s, t, p))
			(*ret_waiting)++;
		else
			r = make_process(s, t, p, cg, copy, err);
	}
	if (!r && *ret_waiting && s->list.n <= had)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO, "processes wait for each other");
	return r;
}

static int set_group(struct shell *sh, pid_t pgid, struct cr_err *err)
{
	if (getpgid(sh->pid) == pgid)
		return 0;
	int r = shell_unpark(NULL, sh, err);
	if (r)
		return r;
	rqueue(shell_leader(sh), "setpgid", SYS_setpgid, 0, pgid);
	return rtask_run(shell_leader(sh), err);
}

/* The id of a group whose leader is not in the tree: the job of a shell that stayed behind, or has
 * ended. 0: it is in the tree, or leads the session. */
static pid_t foreign_group(const struct tree *t, const struct process *p)
{
	return p->pgid > 0 && p->pgid != p->sid && !tree_find_process(t, p->pgid) ? p->pgid : 0;
}

/* A group comes to be by its leader and lasts as long as anybody is in it (credentials(7)): a child
 * of that pid, for a moment. */
static int found_group(struct shells *s, struct shell *member, pid_t pgid, struct cr_err *err)
{
	const struct process founder = {.pid = pgid, .exit_signal = SIGCHLD};
	struct shell *leader;
	int r = shell_unpark(s, member, err);

	if (!r)
		r = make_child(s, member, &founder, &leader, err);
	if (r)
		return cr_err_ctx(err, "process group %d", pgid);
	rqueue(shell_leader(leader), "setpgid", SYS_setpgid, 0, 0);
	r = rtask_run(shell_leader(leader), err);
	if (!r)
		r = set_group(member, pgid, err);
	shell_kill(leader);
	rqueue(shell_leader(member), "wait4", SYS_wait4, pgid, 0, __WALL, 0);
	int e = r ? 0 : rtask_run(shell_leader(member), err);
	shell_free(s, leader);
	if (!r && !e)
		e = shell_drain_sigchld(member, err);
	return r ? r : e;
}

static int found_groups(struct shells *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < t->n_procs && !r; i++) {
		struct shell *sh = shells_find(s, t->procs[i].pid);
		pid_t pgid = foreign_group(t, &t->procs[i]);

		if (!pgid || !sh || sh->zombie || getpgid(sh->pid) == pgid)
			continue;
		/* the first of them founds it */
		r = kill(-pgid, 0) ? found_group(s, sh, pgid, err) : set_group(sh, pgid, err);
	}
	return r;
}

static int set_groups(struct shells *s, const struct tree *t, struct cr_err *err)
{
	int r = found_groups(s, t, err);

	/* leaders first: a group has to exist before others join it */
	for (int leaders = 1; leaders >= 0; leaders--) {
		for (size_t i = 0; i < t->n_procs && !r; i++) {
			const struct process *p = &t->procs[i];
			struct shell *sh = shells_find(s, p->pid);

			if (!sh || sh->zombie || p->pgid <= 0 || p->sid == p->pid ||
			    foreign_group(t, p))
				continue;
			if ((p->pgid == p->pid) == leaders)
				r = set_group(sh, p->pgid, err);
		}
	}
	return r;
}

int shells_settle_structure(struct shells *s, const struct tree *t, struct cr_err *err)
{
	int r = set_groups(s, t, err);

	for (size_t i = 0; i < t->n_procs && !r; i++) {
		struct shell *sh = shells_find(s, t->procs[i].pid);
		struct shell *parent = sh ? shells_find(s, sh->ppid) : NULL;

		if (!sh || !t->procs[i].zombie || sh->zombie)
			continue;
		r = make_zombie(sh, &t->procs[i], err);
		if (!r && parent && !parent->ghost)
			r = shell_drain_sigchld(parent, err);
	}
	while (s->ghosts.n) {
		struct shell *ghost = s->ghosts.v[--s->ghosts.n];

		shell_kill(ghost);
		shell_free(s, ghost);
	}
	for (size_t i = 0; i < t->n_procs && !r && t->n_ttys; i++) {
		struct shell *sh = shells_find(s, t->procs[i].pid);

		if (sh && !sh->zombie && !t->procs[i].zombie)
			r = shell_check_tty(s, sh, &t->procs[i], err);
	}
	return r;
}

/* Why a process's session or group cannot be made again; NULL if it can. */
static const char *group_trouble(const struct tree *t, const struct process *p)
{
	const struct process *parent = tree_find_process(t, p->ppid);

	if (parent && p->sid != p->pid && p->sid != parent->sid)
		return "its session is neither its parent's nor its own: not supported";
	return NULL;
}

static void check_pid(pid_t owner, pid_t pid, const char *what, struct refusals *refused)
{
	char name[64];

	if (kill(pid, 0) && errno == ESRCH && kill(-pid, 0) && errno == ESRCH)
		return;
	snprintf(name, sizeof(name), "%s %d", what, pid);
	refuse(refused, owner, name, "is taken at the destination; end what uses it there");
}

void shells_check(const struct tree *t, struct refusals *refused)
{
	const char *large = shells_too_large(t);

	if (large)
		refuse(refused, 0, "the tree", "%s", large);
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];
		const char *trouble = group_trouble(t, p);

		if (trouble)
			refuse(refused, p->pid, "session or process group", "%s", trouble);
		check_pid(p->pid, p->pid, "pid", refused);
		for (size_t k = 1; k < p->n_threads; k++)
			check_pid(p->pid, p->threads[k].tid, "thread id", refused);
		pid_t sid = foreign_session(t, p);
		if (sid && !tree_find_process(t, p->ppid))
			check_pid(p->pid, sid, "session id", refused);
		pid_t pgid = foreign_group(t, p);
		if (pgid)
			check_pid(p->pid, pgid, "process group id", refused);
		if (!tree_find_process(t, p->ppid) && p->sid == 0)
			refuse_warn(refused, p->pid, "session",
				    "belongs to another pid namespace: "
				    "becomes %d at the destination",
				    p->pid);
	}
}
