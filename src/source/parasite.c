#include "source/parasite.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "kernel/task.h"
#include "remote/sigframe.h"

struct parasite_thread *parasite_find(struct parasite *p, pid_t tid)
{
	for (size_t i = 0; i < p->n_threads; i++)
		if (p->threads[i].tid == tid)
			return &p->threads[i];
	return NULL;
}

static int inject(struct parasite *p, uint64_t insn, const char *what, long nr,
		  const uint64_t args[6], long *ret, struct cr_err *err)
{
	struct parasite_thread *th = &p->threads[0];
	int r = task_inject_syscall(th->tid, &th->gp, insn, nr, args, ret, err);

	if (!r && *ret < 0 && *ret > -4096) {
		err->pid = p->pid;
		return cr_err_set(err, CR_ERR_KERNEL, (int)-*ret, "%s inside %d: %s%s", what,
				  p->pid, strerror((int)-*ret),
				  *ret == -EMFILE ? " (raise its RLIMIT_NOFILE by one)" : "");
	}
	return r;
}

/* memfd_create(2) wants a name in the task's memory: the vdso starts with the bytes of an ELF
 * header, a short string as good as any. */
static int map_area(struct parasite *p, uint64_t insn, uint64_t name_va, struct cr_err *err)
{
	const unsigned int n_slots = (unsigned int)p->n_threads;
	const uint64_t bytes = ALIGN_UP(rarea_bytes(n_slots), CR_PAGE_SIZE);
	long fd, va;

	const uint64_t memfd_args[6] = {name_va, MFD_CLOEXEC};
	int r = inject(p, insn, "memfd_create", SYS_memfd_create, memfd_args, &fd, err);
	if (r)
		return r;
	int ours = (int)syscall(SYS_pidfd_getfd, p->pidfd, (int)fd, 0);
	r = ours < 0 ? cr_err_sys(err, "fetching the executor's memory from %d", p->pid)
		     : rarea_init(&p->area, ours, n_slots, 0, err);
	const uint64_t mmap_args[6] = {0,          bytes,        PROT_READ | PROT_WRITE | PROT_EXEC,
				       MAP_SHARED, (uint64_t)fd, 0};
	if (!r)
		r = inject(p, insn, "mmap", SYS_mmap, mmap_args, &va, err);
	const uint64_t close_args[6] = {(uint64_t)fd};
	struct cr_err ignored = {0};
	long ret;
	int e = inject(p, insn, "close", SYS_close, close_args, &ret, r ? &ignored : err);
	if (r || e)
		return r ? r : e;
	p->area.remote = (uint64_t)va;
	p->mapped = true;
	return 0;
}

static int read_memory(pid_t tid, uint64_t va, void *buf, size_t bytes)
{
	struct iovec local = {buf, bytes}, remote = {(void *)va, bytes};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)bytes ? 0 : -EFAULT;
}

/* A thread stopped inside a restartable sequence has to go on at its abort handler, rseq(2), 4.18.
 * The kernel does that when the thread returns to user mode; as that is into the executor now, it
 * would only forget the sequence. */
static int abort_rseq(struct parasite_thread *th, struct cr_err *err)
{
	struct {
		uint32_t version, flags;
		uint64_t start_ip, post_commit_offset, abort_ip;
	} cs = {0};
	uint64_t va, cs_va = 0;
	uint32_t len, sig, flags;
	int r = task_get_rseq(th->tid, &va, &len, &sig, &flags, err);

	if (r || !va)
		return r;
	/* struct rseq: the descriptor's address comes after two 32-bit cpu numbers */
	if (read_memory(th->tid, va + 8, &cs_va, sizeof(cs_va)) || !cs_va ||
	    read_memory(th->tid, cs_va, &cs, sizeof(cs)))
		return 0;
	if (th->gp.rip - cs.start_ip < cs.post_commit_offset)
		th->gp.rip = cs.abort_ip;
	return 0;
}

static int save_thread(struct parasite_thread *th, struct cr_err *err)
{
	int r = task_get_gp(th->tid, &th->gp, err);

	if (!r)
		r = abort_rseq(th, err);

	if (!r)
		r = task_get_sigmask(th->tid, &th->sigmask, err);
	return r;
}

/* The way back that the task takes by itself if we die: all that it was, in a signal frame. */
static int build_rescue(struct parasite_thread *th, struct cr_err *err)
{
	uint8_t xstate[TASK_XSTATE_MAX];
	struct thread_state st = {
	    .gp = th->gp, .xstate = xstate, .xstate_len = sizeof(xstate), .sigmask = th->sigmask};
	uint64_t va, sp;
	uint8_t *buf = rtask_rescue_area(&th->rt, &va);
	int r = task_get_xstate(th->tid, xstate, &st.xstate_len, err);

	regs_mend_restart(&st.gp, true);
	if (!r)
		r = sigframe_build(buf, SLOT_RESCUE_BYTES, va, &st, &sp, err);
	if (!r)
		rtask_arm_rescue(&th->rt, sp);
	return r;
}

/* Into the executor, with every signal blocked. */
static int start_thread(struct parasite *p, struct parasite_thread *th, struct cr_err *err)
{
	struct user_regs_struct gp = th->gp;

	gp.rip = rarea_entry_va(&p->area);
	gp.rdi = th->rt.slot_va;
	gp.rsp = rtask_stack_va(&th->rt) - 8;
	gp.orig_rax = (unsigned long)-1;
	gp.eflags &= ~0x400ul; /* direction flag: the ABI wants it clear */
	int r = task_set_gp(th->tid, &gp, err);
	if (!r)
		r = task_resume(th->tid, PTRACE_CONT, 0, err);
	th->running = !r;
	th->rt.traced = true;
	return r;
}

static int restore_thread(struct parasite_thread *th, struct cr_err *err)
{
	int r = task_set_gp(th->tid, &th->gp, err);

	return r ? r : task_set_sigmask(th->tid, th->sigmask, err);
}

/* Stopped threads as they were; the one that ran injected calls leaves through its event stop. */
static void put_back(struct parasite *p)
{
	struct cr_err ignored = {0};

	for (size_t i = 0; i < p->n_threads; i++) {
		struct parasite_thread *th = &p->threads[i];

		if (th->running && task_interrupt(th->tid, &ignored))
			continue;
		th->running = false;
		if (i == 0 && task_to_event_stop(th->tid, &ignored))
			continue;
		if (restore_thread(th, &ignored))
			continue; /* it died: there is nothing to restore */
	}
}

/* infect failed half way: the mapping goes, by an injected call of its own. */
static void undo_infect(struct parasite *p, uint64_t insn)
{
	struct cr_err ignored = {0};

	for (size_t i = 0; i < p->n_threads; i++)
		if (p->threads[i].running && !task_interrupt(p->threads[i].tid, &ignored))
			p->threads[i].running = false;
	if (p->mapped) {
		const uint64_t args[6] = {p->area.remote, ALIGN_UP(p->area.bytes, CR_PAGE_SIZE)};
		long ret;

		p->mapped = inject(p, insn, "munmap", SYS_munmap, args, &ret, &ignored) != 0;
	}
	put_back(p);
	parasite_done(p);
}

int parasite_infect(struct parasite *p, pid_t pid, int pidfd, const pid_t *tids, size_t n,
		    uint64_t insn_va, uint64_t string_va, struct cr_err *err)
{
	const uint64_t all = ~0ull;

	*p = (struct parasite){.pid = pid, .pidfd = pidfd, .area.memfd = -1};
	p->threads = calloc(n, sizeof(*p->threads));
	if (!p->threads)
		return cr_err_oom(err);
	p->n_threads = n;
	int r = 0;
	for (size_t i = 0; i < n && !r; i++) {
		p->threads[i].tid = tids[i];
		r = save_thread(&p->threads[i], err);
	}
	if (r) { /* nothing was changed yet */
		parasite_done(p);
		return r;
	}
	for (size_t i = 0; i < n && !r; i++)
		r = task_set_sigmask(tids[i], all, err);
	if (!r)
		r = map_area(p, insn_va, string_va, err);
	for (size_t i = 0; i < n && !r; i++) {
		r = rtask_init(&p->threads[i].rt, &p->area, tids[i], err);
		if (!r)
			r = build_rescue(&p->threads[i], err);
		if (!r)
			r = start_thread(p, &p->threads[i], err);
	}
	if (r) {
		undo_infect(p, insn_va);
		return cr_err_ctx(err, "getting into process %d", pid);
	}
	return 0;
}

int parasite_cure(struct parasite *p, enum park_how how, enum leave_how leave, struct cr_err *err)
{
	_cleanup_free_ struct rtask **tasks = calloc(p->n_threads, sizeof(*tasks));
	_cleanup_free_ struct thread_state *states = calloc(p->n_threads, sizeof(*states));
	_cleanup_free_ uint8_t *xstate = malloc(TASK_XSTATE_MAX);

	if (!tasks || !states || !xstate)
		return cr_err_oom(err);
	for (size_t i = 0; i < p->n_threads; i++) {
		tasks[i] = &p->threads[i].rt;
		states[i] =
		    (struct thread_state){.gp = p->threads[i].gp, .sigmask = p->threads[i].sigmask};
	}
	int r = park_at_sigreturn(tasks, p->n_threads, &how, err);
	for (size_t i = 0; i < p->n_threads && !r && leave == LEAVE_SIGRETURN; i++) {
		/* the frame carries the extended state, which the executor has not touched */
		size_t len = TASK_XSTATE_MAX;

		r = task_get_xstate(tasks[i]->tid, xstate, &len, err);
		states[i].xstate = xstate;
		states[i].xstate_len = len;
		if (!r)
			r = leave_prepare(tasks[i], LEAVE_SIGRETURN, &states[i], err);
		states[i].xstate = NULL;
	}
	/* Those that do not unmap first: from then on the end of this process lets them go as they
	 * were. Not after sigreturn, where the frame has done it. */
	for (size_t i = 1; i < p->n_threads && !r && leave != LEAVE_SIGRETURN; i++)
		r = leave_rewrite(tasks[i], &states[i], err);
	if (!r)
		r = park_unmap(tasks[0], err);
	if (!r)
		r = leave_rewrite(tasks[0], &states[0], err);
	for (size_t i = 0; i < p->n_threads; i++)
		p->threads[i].running = false;
	p->mapped = false;
	parasite_done(p);
	return r ? cr_err_ctx(err, "curing the tasks") : 0;
}

void parasite_done(struct parasite *p)
{
	rarea_done(&p->area);
	free(p->threads);
	p->threads = NULL;
	p->n_threads = 0;
}
