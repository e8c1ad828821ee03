#include "source/parasite.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "base/fault.h"
#include "base/log.h"
#include "kernel/task.h"
#include "remote/detour.h"
#include "remote/sigframe.h"

struct parasite_thread *parasite_find(struct parasite *p, pid_t tid)
{
	for (size_t i = 0; i < p->n_threads; i++)
		if (p->threads[i].tid == tid)
			return &p->threads[i];
	return NULL;
}

static uint64_t inject_va(const struct parasite *p)
{
	return p->detour ? detour_syscall_va(p->entry.detour_va) : p->entry.insn_va;
}

static int inject(struct parasite *p, const char *what, long nr, const uint64_t args[6], long *ret,
		  struct cr_err *err)
{
	struct parasite_thread *th = &p->threads[0];
	int r = task_inject_syscall(th->tid, &th->gp, inject_va(p), nr, args, ret, err);

	fault_point("source-inject");
	if (!r && *ret < 0 && *ret > -4096) {
		err->pid = p->pid;
		return cr_err_set(err, CR_ERR_KERNEL, (int)-*ret, "%s inside %d: %s%s", what,
				  p->pid, strerror((int)-*ret),
				  *ret == -EMFILE ? " (raise its RLIMIT_NOFILE by one)" : "");
	}
	return r;
}

static uint64_t area_bytes(const struct parasite *p)
{
	return ALIGN_UP(rarea_bytes((unsigned int)p->n_threads), CR_PAGE_SIZE);
}

static int map_in_task(struct parasite *p, uint64_t flags, uint64_t fd, struct cr_err *err)
{
	const uint64_t args[6] = {0,
				  area_bytes(p),
				  PROT_READ | PROT_WRITE | PROT_EXEC,
				  MAP_SHARED | MAP_POPULATE | flags,
				  fd,
				  0};
	long va;
	int r = inject(p, "mmap", SYS_mmap, args, &va, err);

	if (r)
		return r;
	p->area.remote = (uint64_t)va;
	p->mapped = true;
	return 0;
}

static int unmap_in_task(struct parasite *p, struct cr_err *err)
{
	const uint64_t args[6] = {p->area.remote, area_bytes(p)};
	long ret;
	int r = inject(p, "munmap", SYS_munmap, args, &ret, err);

	p->mapped = r != 0;
	return r;
}

/* One injected call: memory that is shared with nobody yet, into which /proc/PID/map_files leads
 * (proc(5), CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE). 1: not for us, nothing is mapped. */
static int map_anonymous(struct parasite *p, struct cr_err *err)
{
	char path[80];
	int r = map_in_task(p, MAP_ANONYMOUS, (uint64_t)-1, err);

	if (r)
		return r;
	const uint64_t va = p->area.remote;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", p->pid, (unsigned long long)va,
		 (unsigned long long)(va + area_bytes(p)));
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		r = unmap_in_task(p, err);
		return r ? r : 1;
	}
	r = rarea_init(&p->area, fd, (unsigned int)p->n_threads, 0, err);
	p->area.remote = va;
	return r;
}

/* memfd_create(2) wants a name in the task's memory: the vdso starts with the bytes of an ELF
 * header, a short string as good as any. */
static int map_memfd(struct parasite *p, struct cr_err *err)
{
	const unsigned int n_slots = (unsigned int)p->n_threads;
	long fd;

	const uint64_t memfd_args[6] = {p->entry.string_va, MFD_CLOEXEC};
	int r = inject(p, "memfd_create", SYS_memfd_create, memfd_args, &fd, err);
	if (r)
		return r;
	int ours = (int)syscall(SYS_pidfd_getfd, p->pidfd, (int)fd, 0);
	r = ours < 0 ? cr_err_sys(err, "fetching the executor's memory from %d", p->pid)
		     : rarea_init(&p->area, ours, n_slots, 0, err);
	if (!r)
		r = map_in_task(p, 0, (uint64_t)fd, err);
	const uint64_t close_args[6] = {(uint64_t)fd};
	struct cr_err ignored = {0};
	long ret;
	int e = inject(p, "close", SYS_close, close_args, &ret, r ? &ignored : err);
	return r ? r : e;
}

static int map_area(struct parasite *p, struct cr_err *err)
{
	int r = map_anonymous(p, err);

	return r == 1 ? map_memfd(p, err) : r;
}

static int read_memory(pid_t tid, uint64_t va, void *buf, size_t bytes)
{
	struct iovec local = {buf, bytes}, remote = {(void *)va, bytes};

	return process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)bytes ? 0 : -EFAULT;
}

/* A thread stopped inside a restartable sequence has to go on at its abort handler, rseq(2), 4.18.
 * The kernel does that when the thread returns to user mode; as that is into the executor now, it
 * would only forget the sequence. */
static void abort_rseq(struct parasite_thread *th)
{
	struct {
		uint32_t version, flags;
		uint64_t start_ip, post_commit_offset, abort_ip;
	} cs = {0};
	uint64_t cs_va = 0;

	if (!th->rseq_va || (long)th->gp.orig_rax >= 0) /* no sequence may make system calls */
		return;
	/* struct rseq: the descriptor's address comes after two 32-bit cpu numbers */
	if (read_memory(th->tid, th->rseq_va + 8, &cs_va, sizeof(cs_va)) || !cs_va ||
	    read_memory(th->tid, cs_va, &cs, sizeof(cs)))
		return;
	if (th->gp.rip - cs.start_ip < cs.post_commit_offset)
		th->gp.rip = cs.abort_ip;
}

/* No seccomp filter is asked about what it does for us; a detach, or our death, ends that. Without
 * the privilege nothing under a filter gets here, see attrs_seccomp.c. */
static void suspend_seccomp(pid_t tid)
{
	ptrace(PTRACE_SETOPTIONS, tid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP);
}

int parasite_save(struct parasite_thread *th, bool rseq_known, struct cr_err *err)
{
	uint8_t xstate[TASK_XSTATE_MAX];
	size_t len = sizeof(xstate);
	int r = task_get_gp(th->tid, &th->gp, err);

	if (!r && !rseq_known)
		r = task_get_rseq(th->tid, &th->rseq_va, &th->rseq_len, &th->rseq_sig,
				  &th->rseq_flags, err);
	if (!r)
		abort_rseq(th);
	if (!r)
		r = task_get_sigmask(th->tid, &th->sigmask, err);
	if (!r)
		r = task_get_xstate(th->tid, xstate, &len, err);
	if (r)
		return r;
	size_t used = xstate_used_bytes(xstate_features(xstate));
	th->xstate_len = used < len ? used : len;
	th->xstate = malloc(th->xstate_len);
	if (!th->xstate)
		return cr_err_oom(err);
	memcpy(th->xstate, xstate, th->xstate_len);
	return 0;
}

/* The way back that the task takes by itself if we die: all that it was, in a signal frame. */
static int build_rescue(struct parasite_thread *th, struct cr_err *err)
{
	struct thread_state st = {.gp = th->gp,
				  .xstate = th->xstate,
				  .xstate_len = th->xstate_len,
				  .sigmask = th->sigmask};
	uint64_t va, sp;
	uint8_t *buf = rtask_rescue_area(&th->rt, &va);

	regs_mend_restart(&st.gp, true);
	int r = sigframe_build(buf, SLOT_RESCUE_BYTES, va, &st, &sp, err);
	if (!r)
		rtask_arm_rescue(&th->rt, sp);
	return r;
}

/* Into the executor, with every signal blocked: after that leads to the way back. */
int parasite_start(struct parasite *p, struct parasite_thread *th, struct cr_err *err)
{
	struct user_regs_struct gp = th->gp;

	gp.rip = rarea_entry_va(&p->area);
	gp.rdi = th->rt.slot_va;
	gp.rsp = rtask_stack_va(&th->rt) - 8;
	gp.orig_rax = (unsigned long)-1;
	gp.eflags &= ~0x400ul; /* direction flag: the ABI wants it clear */
	int r = task_set_gp(th->tid, &gp, err);
	if (!r)
		r = task_set_sigmask(th->tid, ~0ull, err);
	if (!r)
		r = task_resume(th->tid, PTRACE_CONT, 0, err);
	th->running = !r;
	th->rt.traced = true;
	return r;
}

static int restore_thread(struct parasite_thread *th, struct cr_err *err)
{
	int r = task_set_sigmask(th->tid, th->sigmask, err);

	return r ? r : task_set_gp(th->tid, &th->gp, err);
}

/* The first thread is about to run injected calls: from here on it finds back by itself. Let go
 * right now it would ask for its pid. */
static int lay_detour(struct parasite *p, struct cr_err *err)
{
	struct parasite_thread *th = &p->threads[0];
	struct user_regs_struct gp = th->gp;
	int r = 0;

	if (p->entry.detour_va) {
		regs_mend_restart(&gp, true);
		r = detour_write(p->pid, p->entry.detour_va, &gp, th->sigmask, err);
		p->detour = !r;
		gp.rip = detour_syscall_va(p->entry.detour_va);
		gp.rax = SYS_getpid;
		if (!r)
			r = task_set_gp(th->tid, &gp, err);
	}
	return r ? r : task_set_sigmask(th->tid, ~0ull, err);
}

/* It is out of there, or dead. */
static void wipe_detour(struct parasite *p)
{
	struct cr_err ignored = {0};

	if (p->detour && detour_wipe(p->pid, p->entry.detour_va, &ignored))
		log_debug("%s", ignored.msg);
	p->detour = false;
}

/* infect failed half way: the first thread unmaps, by an injected call, when nobody is in there any
 * more. It leaves through its event stop. */
static void undo_infect(struct parasite *p)
{
	struct parasite_thread *first = &p->threads[0];
	struct cr_err ignored = {0};

	for (size_t i = p->n_threads; i-- > 0;) {
		struct parasite_thread *th = &p->threads[i];

		if (th->running && task_interrupt(th->tid, &ignored))
			continue;
		th->running = false;
		if (i > 0 && restore_thread(th, &ignored))
			continue; /* it died: there is nothing to restore */
	}
	if (p->mapped && unmap_in_task(p, &ignored))
		log_debug("%s", ignored.msg);
	if (!task_to_event_stop(first->tid, &ignored) && !restore_thread(first, &ignored))
		wipe_detour(p);
	parasite_done(p);
}

/* Where the vdso was a moment ago: after an execve(2) meanwhile there may be anything. */
static int check_insn(const struct parasite *p, uint64_t insn, struct cr_err *err)
{
	static const uint8_t syscall_insn[2] = {0x0f, 0x05};
	uint8_t bytes[2];

	if (!read_memory(p->pid, insn, bytes, sizeof(bytes)) &&
	    !memcmp(bytes, syscall_insn, sizeof(bytes)))
		return 0;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ESTALE,
			  "process %d has executed another program since the migration began; try "
			  "again",
			  p->pid);
}

int parasite_infect(struct parasite *p, pid_t pid, int pidfd, const pid_t *tids, size_t n,
		    const struct parasite_entry *entry, struct cr_err *err)
{
	*p = (struct parasite){.pid = pid, .pidfd = pidfd, .entry = *entry, .area.memfd = -1};
	p->threads = calloc(n, sizeof(*p->threads));
	if (!p->threads)
		return cr_err_oom(err);
	p->n_threads = n;
	int r = check_insn(p, entry->insn_va, err);
	for (size_t i = 0; i < n && !r; i++) {
		p->threads[i].tid = tids[i];
		r = parasite_save(&p->threads[i], false, err);
		if (!r)
			suspend_seccomp(tids[i]);
	}
	if (r) { /* nothing was changed yet */
		parasite_done(p);
		return r;
	}
	r = lay_detour(p, err);
	if (!r)
		r = map_area(p, err);
	for (size_t i = 0; i < n && !r; i++) {
		r = rtask_init(&p->threads[i].rt, &p->area, tids[i], err);
		if (!r)
			r = build_rescue(&p->threads[i], err);
	}
	if (r) {
		undo_infect(p);
		return cr_err_ctx(err, "getting into process %d", pid);
	}
	return 0;
}

int parasite_cure(struct parasite *p, enum park_how how, enum leave_how leave, struct cr_err *err)
{
	_cleanup_free_ struct rtask **tasks = calloc(p->n_threads, sizeof(*tasks));
	_cleanup_free_ struct thread_state *states = calloc(p->n_threads, sizeof(*states));
	int r = 0;

	if (!tasks || !states)
		return cr_err_oom(err);
	for (size_t i = 0; i < p->n_threads && !r; i++) {
		tasks[i] = &p->threads[i].rt;
		if (!p->threads[i].running) /* something failed before it was */
			r = parasite_start(p, &p->threads[i], err);
		states[i] =
		    (struct thread_state){.gp = p->threads[i].gp, .sigmask = p->threads[i].sigmask};
	}
	if (!r)
		r = park_at_sigreturn(tasks, p->n_threads, &how, err);
	for (size_t i = 0; i < p->n_threads && !r && leave == LEAVE_SIGRETURN; i++) {
		/* the frame carries the extended state, which the executor has not touched */
		states[i].xstate = p->threads[i].xstate;
		states[i].xstate_len = p->threads[i].xstate_len;
		r = leave_prepare(tasks[i], LEAVE_SIGRETURN, &states[i], err);
		states[i].xstate = NULL;
	}
	/* Those that do not unmap first: from then on the end of this process lets them go as they
	 * were. Not after sigreturn, where the frame has done it. */
	for (size_t i = 1; i < p->n_threads && !r && leave != LEAVE_SIGRETURN; i++)
		r = leave_rewrite(tasks[i], &states[i], err);
	if (!r)
		r = park_unmap(tasks[0], inject_va(p), err);
	fault_point("source-cure");
	if (!r)
		r = leave_rewrite(tasks[0], &states[0], err);
	if (!r)
		wipe_detour(p);
	for (size_t i = 0; i < p->n_threads; i++)
		p->threads[i].running = false;
	p->mapped = false;
	parasite_done(p);
	return r ? cr_err_ctx(err, "curing the tasks") : 0;
}

void parasite_done(struct parasite *p)
{
	rarea_done(&p->area);
	for (size_t i = 0; i < p->n_threads; i++)
		free(p->threads[i].xstate);
	free(p->threads);
	p->threads = NULL;
	p->n_threads = 0;
}
