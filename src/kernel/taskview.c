#include "kernel/taskview.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include "kernel/bpf_iter.h"
#include "kernel/undoview.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif
enum { PFA_NO_NEW_PRIVS_BIT = 1 /* bit 0 of atomic_flags, include/linux/sched.h */ };

struct taskview {
	int prog;
	int32_t children_at; /* the list's head in struct task_struct */
	int32_t undo_at;     /* that in struct sem_undo_list */
	struct undoview *undo;
};

/* What the program writes for each thread. */
struct record {
	uint64_t tid, level;
	uint64_t altstack_sp, altstack_size, altstack_flags;
	uint64_t clear_tid_va, robust_list_va, timer_slack_ns, pdeathsig, atomic_flags;
	uint64_t rseq_va, rseq_len, rseq_sig;
	uint64_t pending, seccomp;
	uint64_t undo, first_undo;  /* as with children */
	uint64_t task, first_child; /* addresses; a list that is empty points to its own head */
	char comm[16];
};

/* Where it takes that from. */
static const struct source_field {
	const char *member;             /* of struct task_struct */
	size_t to;                      /* in struct record */
	const char *inner_type, *inner; /* a member of that member */
} fields[] = {
    {"sas_ss_sp", offsetof(struct record, altstack_sp)},
    {"sas_ss_size", offsetof(struct record, altstack_size)},
    {"sas_ss_flags", offsetof(struct record, altstack_flags)},
    {"clear_child_tid", offsetof(struct record, clear_tid_va)},
    {"robust_list", offsetof(struct record, robust_list_va)},
    {"timer_slack_ns", offsetof(struct record, timer_slack_ns)},
    {"pdeath_signal", offsetof(struct record, pdeathsig)},
    {"atomic_flags", offsetof(struct record, atomic_flags)},
    {"rseq", offsetof(struct record, rseq_va)},
    {"rseq_len", offsetof(struct record, rseq_len)},
    {"rseq_sig", offsetof(struct record, rseq_sig)},
    {"pending", offsetof(struct record, pending), "sigpending", "signal"},
    {"seccomp", offsetof(struct record, seccomp), "seccomp", "mode"},
    {"children", offsetof(struct record, first_child), "list_head", "next"},
};

/* ---- the program ---- */

#define RECORD_AT(member)                                                                          \
	((int16_t)((int)offsetof(struct record, member) - (int)sizeof(struct record)))

static void emit_store(struct bpf_code *p, int16_t record_at)
{
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_2, record_at, 0);
}

static int emit_field(struct bpf_code *p, const struct btf *btf, const struct source_field *f,
		      struct cr_err *err)
{
	int32_t off, inner = 0;
	size_t size;
	int r = bpf_find_member(btf, "task_struct", f->member, &off, &size, err);

	if (!r && f->inner)
		r = bpf_find_member(btf, f->inner_type, f->inner, &inner, &size, err);
	if (r)
		return r;
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, off + inner, size);
	emit_store(p, (int16_t)((int)f->to - (int)sizeof(struct record)));
	return 0;
}

static int emit_comm(struct bpf_code *p, const struct btf *btf, struct cr_err *err)
{
	int32_t off;
	size_t size;
	int r = bpf_find_member(btf, "task_struct", "comm", &off, &size, err);

	if (r)
		return r;
	if (size != sizeof(((struct record *)0)->comm))
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "names of %zu bytes", size);
	for (int i = 0; i < (int)size; i++) { /* elements of an array are read one by one */
		bpf_emit_load(p, BPF_REG_2, BPF_REG_6, off + i, 1);
		bpf_emit(p, BPF_STX | BPF_MEM | BPF_B, BPF_REG_10, BPF_REG_2, RECORD_AT(comm) + i,
			 0);
	}
	return 0;
}

/* The thread's number in the pid namespace that is `level` below the first. */
static int emit_tid(struct bpf_code *p, const struct btf *btf, int level, struct cr_err *err)
{
	int32_t pid, numbers, nr, depth;
	size_t size, nr_size;
	int upid = btf__find_by_name_kind(btf, "upid", BTF_KIND_STRUCT);
	int r = bpf_find_member(btf, "task_struct", "thread_pid", &pid, &size, err);

	if (!r)
		r = bpf_find_member(btf, "pid", "numbers", &numbers, &size, err);
	if (!r)
		r = bpf_find_member(btf, "upid", "nr", &nr, &nr_size, err);
	if (!r)
		r = bpf_find_member(btf, "pid", "level", &depth, &size, err);
	if (r)
		return r;
	bpf_emit_load(p, BPF_REG_3, BPF_REG_6, pid, 8);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_3, depth, size);
	emit_store(p, RECORD_AT(level));
	bpf_emit_load(p, BPF_REG_2, BPF_REG_3,
		      numbers + nr + level * (int)btf__resolve_size(btf, (uint32_t)upid), nr_size);
	emit_store(p, RECORD_AT(tid));
	return 0;
}

/* What System V semaphores are to be set back by at the end of the process. */
static int emit_undo(struct bpf_code *p, const struct btf *btf, struct cr_err *err)
{
	int32_t list, first;
	int r = undo_find_list(btf, &list, &first, err);

	if (r)
		return r;
	bpf_emit_load(p, BPF_REG_3, BPF_REG_6, list, 8);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_3, RECORD_AT(undo), 0);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_3, first, 8); /* of NULL: 0 */
	emit_store(p, RECORD_AT(first_undo));
	return 0;
}

static int emit_all(struct bpf_code *p, const struct btf *btf, int level, struct cr_err *err)
{
	int r = 0;

	bpf_emit_begin(p, 1);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_6, RECORD_AT(task), 0);
	for (size_t i = 0; i < ARRAY_SIZE(fields) && !r; i++)
		r = emit_field(p, btf, &fields[i], err);
	if (!r)
		r = emit_undo(p, btf, err);
	if (!r)
		r = emit_comm(p, btf, err);
	if (!r)
		r = emit_tid(p, btf, level, err);
	bpf_emit_write(p, sizeof(struct record));
	return r;
}

static int load(const struct btf *btf, int level, int *ret, struct cr_err *err)
{
	struct bpf_code p = {.n = 0};
	int r = emit_all(&p, btf, level, err);

	return r ? r : bpf_iter_load(btf, "task", &p, ret, err);
}

/* ---- reading ---- */

static int read_records(int prog, pid_t pid, struct record **ret, size_t *ret_n, struct cr_err *err)
{
	const union bpf_iter_link_info of = {.task = {.pid = (uint32_t)pid}};
	void *v = NULL;
	size_t bytes = 0;
	int r = bpf_iter_read(prog, &of, NULL, 0, &v, &bytes, err);

	*ret = v;
	*ret_n = bytes / sizeof(struct record);
	return r ? cr_err_ctx(err, "threads of %d", pid) : 0;
}

static struct task_facts facts_of(const struct taskview *tv, const struct record *r)
{
	struct task_facts f = {
	    .tid = (pid_t)r->tid,
	    .altstack_sp = r->altstack_sp,
	    .altstack_size = r->altstack_size,
	    /* do_sigaltstack(), kernel/signal.c */
	    .altstack_flags = (int32_t)((r->altstack_size ? 0u : (uint32_t)SS_DISABLE) |
					(r->altstack_flags & SS_AUTODISARM)),
	    .pdeathsig = (int32_t)r->pdeathsig,
	    .clear_tid_va = r->clear_tid_va,
	    .robust_list_va = r->robust_list_va,
	    .timer_slack_ns = r->timer_slack_ns,
	    .rseq_va = r->rseq_va,
	    .rseq_len = (uint32_t)r->rseq_len,
	    .rseq_sig = (uint32_t)r->rseq_sig,
	    .pending = r->pending,
	    .has_children = r->first_child != r->task + (uint64_t)tv->children_at,
	    .no_new_privs = r->atomic_flags & PFA_NO_NEW_PRIVS_BIT,
	    .seccomp_mode = (uint32_t)r->seccomp,
	    /* threads share one that is empty: CLONE_SYSVSEM, clone(2) */
	    .undo_list = r->undo,
	    .sem_undo = r->undo && r->first_undo != r->undo + (uint64_t)tv->undo_at,
	};

	memcpy(f.comm, r->comm, sizeof(f.comm));
	return f;
}

int taskview_read(const struct taskview *tv, pid_t pid, struct task_facts_list *ret,
		  struct cr_err *err)
{
	_cleanup_free_ struct record *v = NULL;
	size_t n;
	int r = read_records(tv->prog, pid, &v, &n, err);

	*ret = (struct task_facts_list){0};
	for (size_t i = 0; i < n && !r; i++) {
		struct task_facts *f = vec_push(&ret->list);

		if (!f)
			r = cr_err_oom(err);
		else
			*f = facts_of(tv, &v[i]);
	}
	if (r)
		task_facts_done(ret);
	return r;
}

void task_facts_done(struct task_facts_list *l)
{
	vec_done(&l->list);
}

const struct task_facts *task_facts_find(struct task_facts_list *l, pid_t tid)
{
	for (size_t i = 0; i < l->list.n; i++) {
		size_t at = (l->cursor + i) % l->list.n;

		if (l->list.v[at].tid != tid)
			continue;
		l->cursor = at + 1;
		return &l->list.v[at];
	}
	return NULL;
}

/* ---- is it true? ---- */

struct trial {
	const struct taskview *tv;
	struct cr_err *err;
	int result;
};

/* By what the thread is told itself. Everything has a value that it has not by chance. */
static bool is_as_told(const struct task_facts *f, const stack_t *stack, uint64_t blocked_pending)
{
	char name[16] = "";
	void *clear_tid = NULL, *robust = NULL;
	size_t robust_len;
	int pdeathsig = 0;

	return !prctl(PR_GET_NAME, name) && !prctl(PR_GET_TID_ADDRESS, &clear_tid) &&
	       !prctl(PR_GET_PDEATHSIG, &pdeathsig) &&
	       !syscall(SYS_get_robust_list, 0, &robust, &robust_len) &&
	       !memcmp(f->comm, name, sizeof(name)) && f->clear_tid_va == (uintptr_t)clear_tid &&
	       f->robust_list_va == (uintptr_t)robust && f->pdeathsig == pdeathsig &&
	       f->altstack_sp == (uintptr_t)stack->ss_sp && f->altstack_size == stack->ss_size &&
	       f->altstack_flags == 0 && f->timer_slack_ns == (uint64_t)prctl(PR_GET_TIMERSLACK) &&
	       f->no_new_privs && f->pending == blocked_pending &&
	       f->seccomp_mode == (uint32_t)prctl(PR_GET_SECCOMP) &&
	       (!__rseq_size ||
		(f->rseq_va == (uintptr_t)__builtin_thread_pointer() + (uintptr_t)__rseq_offset &&
		 f->rseq_sig == RSEQ_SIG));
}

static void *try_it(void *arg)
{
	static char memory[16384]; /* nobody ever runs on it */
	const stack_t stack = {.ss_sp = memory, .ss_size = sizeof(memory)};
	struct task_facts_list l = {0};
	struct trial *t = arg;
	sigset_t usr1;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	pthread_kill(pthread_self(), SIGUSR1); /* goes with this thread */
	if (sigaltstack(&stack, NULL) || prctl(PR_SET_NAME, "cr-taskview-try") ||
	    prctl(PR_SET_PDEATHSIG, SIGUSR2) || prctl(PR_SET_TIMERSLACK, 54321) ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
		t->result = cr_err_sys(t->err, "preparing a thread to look at");
		return NULL;
	}
	t->result = taskview_read(t->tv, getpid(), &l, t->err);
	const struct task_facts *f = task_facts_find(&l, (pid_t)syscall(SYS_gettid));
	if (!t->result && (!f || !is_as_told(f, &stack, 1ull << (SIGUSR1 - 1))))
		t->result = cr_err_set(t->err, CR_ERR_KERNEL, ENOTSUP,
				       "BPF says of a thread what is not so");
	task_facts_done(&l);
	return NULL;
}

static int check(const struct taskview *tv, struct cr_err *err)
{
	struct trial t = {.tv = tv, .err = err};
	pthread_t thread;
	int e = pthread_create(&thread, NULL, try_it, &t);

	if (e)
		return cr_err_set(err, CR_ERR_KERNEL, e, "starting a thread: %s", strerror(e));
	pthread_join(thread, NULL);
	return t.result;
}

/* Loaded twice: how deep our pid namespace lies a first look at ourselves tells. */
static int load_at_depth(const struct btf *btf, int *ret, struct cr_err *err)
{
	_cleanup_fd_ int first = -1;
	_cleanup_free_ struct record *v = NULL;
	size_t n = 0;
	int r = load(btf, 0, &first, err);

	if (!r)
		r = read_records(first, getpid(), &v, &n, err);
	if (!r && !n)
		r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "BPF does not see this process");
	if (r)
		return r;
	if (!v[0].level)
		*ret = take_fd(&first);
	return v[0].level ? load(btf, (int)v[0].level, ret, err) : 0;
}

static int load_for_us(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct taskview *tv = arg;
	struct cr_err ignored = {0};
	size_t size;
	int r = load_at_depth(btf, &tv->prog, err);

	if (!r)
		r = bpf_find_member(btf, "task_struct", "children", &tv->children_at, &size, err);
	if (!r)
		r = bpf_find_member(btf, "sem_undo_list", "list_proc", &tv->undo_at, &size, err);
	if (!r && undoview_new(&tv->undo, btf, &ignored))
		tv->undo = NULL;
	return r;
}

int taskview_new(struct taskview **ret, struct cr_err *err)
{
	struct taskview *tv = calloc(1, sizeof(*tv));

	if (!tv)
		return cr_err_oom(err);
	tv->prog = -1;
	int r = bpf_with_types(load_for_us, tv, err);
	if (!r)
		r = check(tv, err);
	if (!r)
		*ret = tv;
	else
		taskview_free(tv);
	return r;
}

void taskview_free(struct taskview *tv)
{
	if (!tv)
		return;
	close_fdp(&tv->prog);
	undoview_free(tv->undo);
	free(tv);
}

const struct undoview *taskview_undo(const struct taskview *tv)
{
	return tv->undo;
}
