#include "dest/shells.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "kernel/task.h"

enum { SHELL_PTRACE_OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL };
#define TASK_TOP 0x7ffffffff000ull
/* The hole is looked for between these: above what programs are linked at, below what mmap hands
 * out. */
#define HOLE_LOWEST 0x100000000ull
#define HOLE_STEP 0x40000000ull
#define HOLE_HIGHEST 0x500000000000ull

enum { SPARE_SLOTS = 4096, THREADS_MAX = 32768, FDS_MAX = 1 << 20 };

/* ---- the hole ---- */

static bool overlaps(uint64_t a, uint64_t b, uint64_t start, uint64_t end)
{
	return start < b && a < end;
}

static bool tree_uses(const struct tree *t, uint64_t a, uint64_t b)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct mm *mm = &t->procs[i].mm;

		for (size_t k = 0; k < mm->n_vmas; k++)
			if (overlaps(a, b, mm->vmas[k].start, mm->vmas[k].end))
				return true;
	}
	return false;
}

static int find_hole(struct shells *s, const struct tree *t, size_t bytes, struct cr_err *err)
{
	for (uint64_t a = HOLE_LOWEST; a < HOLE_HIGHEST; a += HOLE_STEP) {
		if (tree_uses(t, a - CR_PAGE_SIZE, a + bytes + CR_PAGE_SIZE))
			continue;
		void *p = mmap((void *)a, bytes, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (p == MAP_FAILED)
			continue; /* we have something there ourselves */
		munmap(p, bytes);
		s->hole_start = a;
		s->hole_end = a + bytes;
		return 0;
	}
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOMEM,
			  "no %zu bytes of address space that no task uses", bytes);
}

static size_t count_threads(const struct tree *t)
{
	size_t n = 0;

	for (size_t i = 0; i < t->n_procs; i++)
		n += t->procs[i].n_threads + t->procs[i].zombie;
	return n;
}

/* One for each thread, and one for each ghost (at most one a process). Those to spare cost address
 * space alone: memory that nobody touches is not there. */
static unsigned int count_slots(const struct tree *t)
{
	return (unsigned int)(count_threads(t) + t->n_procs) + SPARE_SLOTS;
}

static int highest_fd(const struct tree *t)
{
	int max = 100;

	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++)
			if (t->procs[i].fds[k].fd > max)
				max = t->procs[i].fds[k].fd;
	return max;
}

/* What the tree says sizes memory and descriptor tables here: what is out of all proportion is not
 * tried. */
static const char *too_large(const struct tree *t)
{
	if (count_threads(t) > THREADS_MAX)
		return "more than 32,768 threads and processes: not supported";
	if (highest_fd(t) >= FDS_MAX)
		return "descriptor numbers of 1,048,576 and more: not supported";
	return NULL;
}

int shells_check_hole(const struct shells *s, const struct process *p, struct cr_err *err)
{
	const struct mm *mm = &p->mm;

	for (size_t i = 0; i < mm->n_vmas; i++)
		if (overlaps(s->hole_start, s->hole_end, mm->vmas[i].start, mm->vmas[i].end))
			return cr_err_set(
			    err, CR_ERR_PEER, EADDRINUSE,
			    "process %d has a mapping at %#llx, where the restorer is", p->pid,
			    (unsigned long long)mm->vmas[i].start);
	return 0;
}

int shells_new(struct shells **ret, const struct tree *t, struct cr_err *err)
{
	const char *trouble = too_large(t);

	if (trouble)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG, "%s", trouble);
	struct shells *s = calloc(1, sizeof(*s));
	unsigned int n_slots = count_slots(t);
	if (!s)
		return cr_err_oom(err);
	s->area.memfd = -1;
	s->self_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	s->pidfd_slot = highest_fd(t) + 50;
	int r = s->self_pidfd < 0 ? cr_err_sys(err, "opening a pidfd of ourselves") : 0;
	if (!r)
		r = find_hole(s, t, rarea_bytes(n_slots), err);
	if (!r) {
		int memfd = memfd_create("restorer", MFD_CLOEXEC);

		r = memfd < 0 ? cr_err_sys(err, "creating the executor's memory")
			      : rarea_init(&s->area, memfd, n_slots, s->hole_start, err);
	}
	if (!r && mprotect(s->area.local, CR_PAGE_SIZE, PROT_READ | PROT_EXEC))
		r = cr_err_sys(err, "making the executor executable");
	if (r) {
		shells_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

/* ---- slots ---- */

static int thread_new(struct shells *s, pid_t tid, struct shell_thread **ret, struct cr_err *err)
{
	struct shell_thread *th = calloc(1, sizeof(*th));

	if (!th)
		return cr_err_oom(err);
	th->tid = tid;
	if (s->free_slots.n) {
		struct blob_slot *slot = s->free_slots.v[--s->free_slots.n];

		th->rt.area = &s->area;
		th->rt.slot = slot;
		th->rt.slot_va = (uint64_t)(uintptr_t)slot; /* mapped at one address everywhere */
		rtask_reset(&th->rt, tid);
	} else {
		int r = rtask_init(&th->rt, &s->area, tid, err);

		if (r) {
			free(th);
			return r != -ENOSPC ? r
					    : cr_err_set(err, CR_ERR_UNSUPPORTED, ENOSPC,
							 "more than %d threads and processes have "
							 "been started since "
							 "the migration began; try again",
							 SPARE_SLOTS);
		}
	}
	*ret = th;
	return 0;
}

static void thread_free(struct shells *s, struct shell_thread *th)
{
	struct blob_slot **slot = vec_push(&s->free_slots);

	if (slot)
		*slot = th->rt.slot;
	free(th);
}

static int shell_add_thread(struct shells *s, struct shell *sh, pid_t tid, struct cr_err *err)
{
	struct shell_thread **v = reallocarray(sh->threads, sh->n_threads + 1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	sh->threads = v;
	int r = thread_new(s, tid, &v[sh->n_threads], err);
	if (!r)
		sh->n_threads++;
	return r;
}

static void shell_free(struct shells *s, struct shell *sh)
{
	for (size_t i = 0; i < sh->n_threads; i++)
		thread_free(s, sh->threads[i]);
	free(sh->threads);
	free(sh->vmas);
	free(sh->guards);
	free(sh);
}

static int shell_new(struct shells *s, pid_t pid, pid_t ppid, struct shell **ret,
		     struct cr_err *err)
{
	struct shell *sh = calloc(1, sizeof(*sh));

	if (!sh)
		return cr_err_oom(err);
	sh->pid = pid;
	sh->ppid = ppid;
	sh->pidfd_slot = s->pidfd_slot;
	sh->target = NO_TARGET;
	int r = shell_add_thread(s, sh, pid, err);
	if (r)
		free(sh);
	else
		*ret = sh;
	return r;
}

struct shell *shells_find(const struct shells *s, pid_t pid)
{
	vec_foreach (sh, &s->list)
		if ((*sh)->pid == pid)
			return *sh;
	vec_foreach (sh, &s->ghosts)
		if ((*sh)->pid == pid)
			return *sh;
	return NULL;
}

/* ---- the end of a shell ---- */

static void kill_shell(struct shell *sh)
{
	int st;

	kill(sh->pid, SIGKILL);
	for (size_t i = sh->n_threads; i-- > 0;) /* threads first: the leader's end comes last */
		if (sh->threads[i]->seized || i == 0)
			while (waitpid(sh->threads[i]->tid, &st, __WALL) > 0 && WIFSTOPPED(st))
				kill(sh->pid, SIGKILL);
}

void shells_forget(struct shells *s)
{
	if (!s)
		return;
	vec_foreach (sh, &s->list)
		shell_free(s, *sh);
	vec_foreach (sh, &s->ghosts)
		shell_free(s, *sh);
	vec_done(&s->list);
	vec_done(&s->ghosts);
	vec_done(&s->free_slots);
	rarea_done(&s->area);
	close_fdp(&s->self_pidfd);
	free(s);
}

void shells_kill(struct shells *s)
{
	if (!s)
		return;
	vec_foreach (sh, &s->list)
		kill((*sh)->pid, SIGKILL);
}

void shells_free(struct shells *s)
{
	if (!s)
		return;
	for (size_t i = s->list.n; i-- > 0;) /* children before parents */
		kill_shell(s->list.v[i]);
	for (size_t i = s->ghosts.n; i-- > 0;)
		kill_shell(s->ghosts.v[i]);
	shells_forget(s);
}

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

static int seize_shell(struct shell_thread *th, struct cr_err *err)
{
	int r = task_seize(th->tid, SHELL_PTRACE_OPTIONS, err);

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
	r = seize_shell(sh->threads[0], err);
	if (!r) /* children are born where their parents are */
		r = cgroup_move_pid(cg, got, err);
	if (!r)
		r = strip_root(s, sh, err);
	if (r) {
		kill_shell(sh);
		shell_free(s, sh);
	} else {
		*ret = sh;
	}
	return r;
}

/* Have a shell clone: a child process (flags 0) or a thread. */
static int remote_clone(struct shell *parent, struct shell_thread *child, uint64_t flags,
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

static int make_child(struct shells *s, struct shell *parent, const struct process *p,
		      struct shell **ret, struct cr_err *err)
{
	struct shell *sh;
	int r = shell_new(s, p->pid, parent->pid, &sh, err);

	if (r)
		return r;
	sh->pidfd_slot = parent->pidfd_slot; /* descriptors are inherited */
	r = remote_clone(parent, sh->threads[0], CLONE_CLEAR_SIGHAND,
			 p->exit_signal ? p->exit_signal : SIGCHLD, err);
	if (!r)
		r = seize_shell(sh->threads[0], err);
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

static int make_process(struct shells *s, const struct tree *t, const struct process *p,
			struct cgroup *cg, struct cr_err *err)
{
	struct shell *parent = parent_of(s, t, p), *sh = NULL;
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
	if (p->sid == p->pid || (parent->ghost && p->sid <= 0))
		r = remote_setsid(sh, err);
	return r;
}

/* The exits of zombies have left SIGCHLD pending in their parents, who had not asked for it here.
 */
static int drain_sigchld(struct shell *sh, struct cr_err *err)
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
	*set = 1ull << (SIGCHLD - 1);
	rqueue(rt, NULL, SYS_rt_sigtimedwait, set_va, 0, ts_va, 8);
	r = rtask_run(rt, err);
	rtask_scratch_reset(rt);
	return r;
}

static int end_process(struct shells *s, size_t index, struct cr_err *err)
{
	struct shell *sh = s->list.v[index];
	struct shell *parent = shells_find(s, sh->ppid);

	if (!sh->zombie)
		kill_shell(sh);
	if (parent) {
		int r = shell_unpark(s, parent, err);

		if (r)
			return r;
		rqueue(shell_leader(parent), "wait4", SYS_wait4, sh->pid, 0, __WALL, 0);
		r = rtask_run(shell_leader(parent), err);
		if (!r)
			r = drain_sigchld(parent, err);
		if (r)
			return r;
	}
	shell_free(s, sh);
	memmove(&s->list.v[index], &s->list.v[index + 1],
		(s->list.n - index - 1) * sizeof(*s->list.v));
	s->list.n--;
	return 0;
}

int shells_sync_processes(struct shells *s, const struct tree *t, struct cgroup *cg,
			  struct cr_err *err)
{
	int r = 0;

	for (size_t i = s->list.n; i-- > 0 && !r;) {
		struct shell *sh = s->list.v[i];
		const struct process *p = tree_find_process(t, sh->pid);

		if (!p || p->zombie != sh->zombie)
			r = end_process(s, i, err);
	}
	for (size_t i = 0; i < t->n_procs && !r; i++) {
		const struct process *p = &t->procs[i];

		if (shells_find(s, p->pid))
			continue;
		r = make_process(s, t, p, cg, err);
	}
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

static int set_groups(struct shells *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	/* leaders first: a group has to exist before others join it */
	for (int leaders = 1; leaders >= 0; leaders--) {
		for (size_t i = 0; i < t->n_procs && !r; i++) {
			const struct process *p = &t->procs[i];
			struct shell *sh = shells_find(s, p->pid);

			if (!sh || sh->zombie || p->pgid <= 0 || p->sid == p->pid)
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
			r = drain_sigchld(parent, err);
	}
	while (s->ghosts.n) {
		struct shell *ghost = s->ghosts.v[--s->ghosts.n];

		kill_shell(ghost);
		shell_free(s, ghost);
	}
	return r;
}

/* Why a process's session or group cannot be made again; NULL if it can. */
static const char *group_trouble(const struct tree *t, const struct process *p)
{
	const struct process *parent = tree_find_process(t, p->ppid);

	if (parent && p->sid != p->pid && p->sid != parent->sid)
		return "its session is neither its parent's nor its own: not supported";
	if (p->pgid > 0 && p->pgid != p->sid && !tree_find_process(t, p->pgid))
		return "its process group is led by a process outside the tree: not supported; "
		       "start it in a session of its own (setsid)";
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
	const char *large = too_large(t);

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
		if (!tree_find_process(t, p->ppid) && p->sid == 0)
			refuse_warn(refused, p->pid, "session",
				    "belongs to another pid namespace: "
				    "becomes %d at the destination",
				    p->pid);
	}
}

/* ---- threads ---- */

static int end_thread(struct shells *s, struct shell *sh, size_t i, struct cr_err *err)
{
	struct shell_thread *th = sh->threads[i];

	rqueue(&th->rt, NULL, SYS_exit, 0);
	rtask_start(&th->rt);
	if (th->seized) {
		int st;

		if (waitpid(th->tid, &st, __WALL) < 0)
			return cr_err_sys(err, "waiting for the end of thread %d", th->tid);
	}
	thread_free(s, th);
	memmove(&sh->threads[i], &sh->threads[i + 1], (sh->n_threads - i - 1) * sizeof(th));
	sh->n_threads--;
	return 0;
}

int shells_sync_threads(struct shells *s, struct shell *sh, const struct process *p,
			struct cr_err *err)
{
	const uint64_t flags =
	    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	int r = 0;

	for (size_t i = sh->n_threads; i-- > 1 && !r;)
		if (!process_find_thread(p, sh->threads[i]->tid))
			r = end_thread(s, sh, i, err);
	for (size_t i = 0; i < p->n_threads && !r; i++) {
		size_t k = 0;

		while (k < sh->n_threads && sh->threads[k]->tid != p->threads[i].tid)
			k++;
		if (k < sh->n_threads)
			continue;
		r = shell_add_thread(s, sh, p->threads[i].tid, err);
		if (!r)
			r = remote_clone(sh, sh->threads[sh->n_threads - 1], flags, 0, err);
	}
	return r;
}

/* ---- the way to our descriptors ---- */

int shell_take_pidfd(struct shells *s, struct shell *sh, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);

	if (sh->pidfd_slot >= 0)
		return 0;
	long fd = rcall_now(rt, SYS_pidfd_open, getpid(), 0);
	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "opening a pidfd in shell %d: %s",
				  sh->pid, strerror((int)-fd));
	/* out of the way of the descriptors to come; where the limit forbids it, as it is */
	long high = rcall_now(rt, SYS_dup3, fd, s->pidfd_slot, O_CLOEXEC);
	if (high >= 0)
		rqueue(rt, "close", SYS_close, fd);
	sh->pidfd_slot = high >= 0 ? (int)high : (int)fd;
	return rtask_run(rt, err);
}

int shell_drop_pidfd(struct shell *sh, struct cr_err *err)
{
	if (sh->pidfd_slot < 0)
		return 0;
	rqueue(shell_leader(sh), "close", SYS_close, sh->pidfd_slot);
	sh->pidfd_slot = -1;
	return rtask_run(shell_leader(sh), err);
}

/* ---- parking ---- */

static int collect_threads(struct shell *sh, struct rtask ***ret, struct cr_err *err)
{
	struct rtask **v = calloc(sh->n_threads, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	for (size_t i = 0; i < sh->n_threads; i++)
		v[i] = &sh->threads[i]->rt;
	*ret = v;
	return 0;
}

int shell_park(struct shells *s, struct shell *sh, struct cr_err *err)
{
	_cleanup_free_ struct rtask **v = NULL;
	int r = 0;

	if (sh->parked || sh->zombie)
		return 0;
	for (size_t i = 0; i < sh->n_threads && !r; i++)
		if (!sh->threads[i]->seized)
			r = seize_shell(sh->threads[i], err);
	if (!r)
		r = collect_threads(sh, &v, err);
	enum park_how how = sh->no_breakpoint ? PARK_SYSCALL_TRACE : s->park_how;
	if (!r)
		r = park_at_sigreturn(v, sh->n_threads, &how, err);
	if (!sh->no_breakpoint)
		s->park_how = how; /* no debug registers here: do not ask again */
	sh->parked = !r;
	return r;
}

int shell_unpark(struct shells *s, struct shell *sh, struct cr_err *err)
{
	_cleanup_free_ struct rtask **v = NULL;

	(void)s;
	if (!sh->parked)
		return 0;
	int r = collect_threads(sh, &v, err);
	if (!r)
		r = park_undo(v, sh->n_threads, err);
	sh->parked = false;
	return r;
}
