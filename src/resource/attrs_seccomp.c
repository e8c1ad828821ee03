/* Seccomp, seccomp(2): strict mode, and filters with their order and flags.
 *
 * Filters are read by PTRACE_SECCOMP_GET_FILTER (4.4, CONFIG_CHECKPOINT_RESTORE). A thread's
 * filters are a chain that only grows: 0 is the oldest. Both sides run system calls of ours in
 * tasks whose filters may forbid them: as long as the tracer has set PTRACE_O_SUSPEND_SECCOMP (4.3)
 * they are not asked. Both take CAP_SYS_ADMIN, and a caller that is under no filter itself.
 *
 * What the kernel does not tell: whether two threads have the same filters or equal ones. Those
 * that all threads of a process have in common are installed for all at once
 * (SECCOMP_FILTER_FLAG_TSYNC), so that a later TSYNC of the task works as before. */
#include "resource/attrs_internal.h"

#include <linux/bpf_common.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef PTRACE_SECCOMP_GET_METADATA
#define PTRACE_SECCOMP_GET_METADATA 0x420d /* 4.16 */
#endif

struct insns {
	struct sock_filter v[BPF_MAXINSNS];
};

/* ---- capture ---- */

static bool same_filter(const struct seccomp_filter *f, const void *insns, size_t len,
			uint32_t flags)
{
	return f->insns_len == len && f->flags == flags && !memcmp(f->insns, insns, len);
}

/* Its index among the tree's, which has each once. */
static int intern(struct tree *t, const void *insns, size_t len, uint32_t flags, uint32_t *ret,
		  struct cr_err *err)
{
	for (*ret = 0; *ret < t->n_seccomp; (*ret)++)
		if (same_filter(&t->seccomp[*ret], insns, len, flags))
			return 0;
	/* room doubles: at 0, 1, 2, 4, … */
	if (!(t->n_seccomp & (t->n_seccomp - 1))) {
		struct seccomp_filter *more = arena_array(t->arena, struct seccomp_filter,
							  t->n_seccomp ? 2 * t->n_seccomp : 1);

		if (!more)
			return cr_err_oom(err);
		if (t->n_seccomp)
			memcpy(more, t->seccomp, t->n_seccomp * sizeof(*more));
		t->seccomp = more;
	}
	const uint8_t *copy = arena_memdup(t->arena, insns, len);
	if (!copy)
		return cr_err_oom(err);
	t->seccomp[t->n_seccomp++] =
	    (struct seccomp_filter){.insns = copy, .insns_len = len, .flags = flags};
	return 0;
}

/* Length in instructions; -ENOENT: there is none of that number; -EINVAL: none at all. */
static int read_filter(pid_t tid, size_t nr, struct insns *out, uint32_t *ret_flags)
{
	struct {
		uint64_t filter_off, flags;
	} meta = {.filter_off = nr};
	long n = ptrace(PTRACE_SECCOMP_GET_FILTER, tid, nr, out);

	if (n < 0)
		return -errno;
	*ret_flags = 0;
	if (out && ptrace(PTRACE_SECCOMP_GET_METADATA, tid, sizeof(meta), &meta) > 0)
		*ret_flags = meta.flags & SECCOMP_FILTER_FLAG_LOG; /* all that it tells */
	return (int)n;
}

/* Whoever listens stays behind: seccomp_unotify(2). A value from the accumulator might be anything.
 */
static bool may_notify(const struct insns *f, int n)
{
	for (int i = 0; i < n; i++) {
		const struct sock_filter *s = &f->v[i];

		if (BPF_CLASS(s->code) != BPF_RET)
			continue;
		if (BPF_RVAL(s->code) == BPF_A ||
		    (s->k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF)
			return true;
	}
	return false;
}

/* Chains only grow: as many as before with the same last one is the chain of before. */
static bool as_before(struct thread *th, const struct tree *prev_tree, const struct thread *prev,
		      struct insns *buf)
{
	uint32_t flags;

	if (!prev || !prev->n_seccomp_filters ||
	    read_filter(th->tid, prev->n_seccomp_filters, NULL, &flags) != -ENOENT)
		return false;
	int n = read_filter(th->tid, prev->n_seccomp_filters - 1, buf, &flags);
	const struct seccomp_filter *last =
	    &prev_tree->seccomp[prev->seccomp_filters[prev->n_seccomp_filters - 1]];
	return n > 0 && same_filter(last, buf, (size_t)n * sizeof(buf->v[0]), flags);
}

static int take_chain(struct tree *t, struct thread *th, const uint32_t *chain, size_t n,
		      struct cr_err *err)
{
	th->seccomp_filters = arena_memdup(t->arena, chain, n * sizeof(*chain));
	th->n_seccomp_filters = n;
	return th->seccomp_filters ? 0 : cr_err_oom(err);
}

int attrs_seccomp_copy(struct tree *t, struct thread *th, const struct tree *prev_tree,
		       const struct thread *prev, struct cr_err *err)
{
	size_t n = prev->n_seccomp_filters;
	_cleanup_free_ uint32_t *chain = calloc(n + 1, sizeof(*chain));
	int r = 0;

	if (!n)
		return 0;
	if (!chain)
		return cr_err_oom(err);
	for (size_t i = 0; i < n && !r; i++) {
		const struct seccomp_filter *f = &prev_tree->seccomp[prev->seccomp_filters[i]];

		r = intern(t, f->insns, f->insns_len, f->flags, &chain[i], err);
	}
	return r ? r : take_chain(t, th, chain, n, err);
}

int attrs_seccomp_capture(struct tree *t, const struct process *p, struct thread *th,
			  const struct tree *prev_tree, const struct thread *prev,
			  struct refusals *refused, struct cr_err *err)
{
	VEC(uint32_t) chain = {0};
	uint32_t flags;
	char what[64];
	int r = 0, n;

	n = read_filter(th->tid, 0, NULL, &flags);
	if (n == -EINVAL ||
	    n == -EACCES) /* none; not for us to ask: the query tells if there are */
		return 0;
	_cleanup_free_ struct insns *buf = malloc(sizeof(*buf));
	if (!buf)
		return cr_err_oom(err);
	if (as_before(th, prev_tree, prev, buf))
		return attrs_seccomp_copy(t, th, prev_tree, prev, err);
	snprintf(what, sizeof(what), "seccomp filter of thread %d (%.15s)", th->tid,
		 p->threads[0].comm);
	while (!r && (n = read_filter(th->tid, chain.n, buf, &flags)) > 0) {
		uint32_t *index = vec_push(&chain);

		if (may_notify(buf, n))
			refuse(refused, p->pid, what,
			       "may ask a supervisor (SECCOMP_RET_USER_NOTIF): not supported");
		r = index ? intern(t, buf, (size_t)n * sizeof(buf->v[0]), flags, index, err)
			  : cr_err_oom(err);
	}
	if (!r && n != -ENOENT)
		refuse(refused, p->pid, what, "cannot be read (%s): not supported", strerror(-n));
	if (!r)
		r = take_chain(t, th, chain.v, chain.n, err);
	vec_done(&chain);
	return r;
}

/* ---- preflight ---- */

static bool suspend_works(void)
{
	/* as the kernel asks for, ptrace(2) */
	return attrs_have_cap(CAP_SYS_ADMIN) && prctl(PR_GET_SECCOMP) == 0;
}

void attrs_seccomp_refuse_here(const struct process *p, struct refusals *refused)
{
	if (!suspend_works())
		refuse(refused, p->pid, "seccomp",
		       "the agent on this host may not move it: that takes CAP_SYS_ADMIN, and an "
		       "agent that is under no seccomp filter itself");
}

void attrs_seccomp_check(const struct process *p, struct refusals *refused)
{
	bool any = false;

	for (size_t i = 0; i < p->n_threads; i++)
		any |= p->threads[i].seccomp_mode != SECCOMP_MODE_DISABLED;
	if (any)
		attrs_seccomp_refuse_here(p, refused);
	else if (prctl(PR_GET_SECCOMP) > 0)
		refuse(refused, p->pid, "seccomp",
		       "the agent on this host is under a seccomp filter, which the task would "
		       "get too");
}

/* ---- rebuild ---- */

bool attrs_seccomp_needed(const struct process *p)
{
	for (size_t i = 0; i < p->n_threads; i++)
		if (p->threads[i].n_seccomp_filters ||
		    p->threads[i].seccomp_mode == SECCOMP_MODE_STRICT)
			return true;
	return false;
}

/* So many filters are the same in all threads, from the oldest on. */
static size_t common_prefix(const struct process *p)
{
	const struct thread *first = &p->threads[0];
	size_t n = first->n_seccomp_filters;

	for (size_t i = 1; i < p->n_threads; i++) {
		const struct thread *th = &p->threads[i];
		size_t k = 0;

		while (k < n && k < th->n_seccomp_filters &&
		       th->seccomp_filters[k] == first->seccomp_filters[k])
			k++;
		n = k;
	}
	return n;
}

/* Filters in the task's memory while they are installed. */
struct placed {
	uint64_t *prog_va; /* per filter of the tree: its struct sock_fprog; UINT64_MAX: unused */
	uint8_t *image;
	uint64_t va;
	size_t bytes;
};

static void placed_done(struct placed *pl)
{
	free(pl->prog_va);
	free(pl->image);
}

static size_t filter_bytes(const struct seccomp_filter *f)
{
	return sizeof(struct sock_fprog) + f->insns_len; /* both multiples of 8 */
}

/* Room for each that a thread of p has; prog_va counts from the start of it. */
static int plan_place(const struct tree *t, const struct process *p, struct placed *pl,
		      struct cr_err *err)
{
	_cleanup_free_ bool *used = calloc(t->n_seccomp + 1, sizeof(*used));

	pl->prog_va = calloc(t->n_seccomp + 1, sizeof(*pl->prog_va));
	if (!used || !pl->prog_va)
		return cr_err_oom(err);
	for (size_t i = 0; i < p->n_threads; i++)
		for (size_t k = 0; k < p->threads[i].n_seccomp_filters; k++)
			used[p->threads[i].seccomp_filters[k]] = true;
	for (size_t i = 0; i < t->n_seccomp; i++) {
		pl->prog_va[i] = pl->bytes;
		pl->bytes += used[i] ? filter_bytes(&t->seccomp[i]) : 0;
		if (!used[i])
			pl->prog_va[i] = UINT64_MAX;
	}
	pl->image = calloc(1, pl->bytes + 1);
	return pl->image ? 0 : cr_err_oom(err);
}

static int place(struct rtask *leader, const struct tree *t, const struct process *p,
		 struct placed *pl, struct cr_err *err)
{
	int r = plan_place(t, p, pl, err);

	if (r || !pl->bytes)
		return r;
	struct rcall *map = rqueue(leader, "mmap", SYS_mmap, 0, pl->bytes, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	r = rtask_run(leader, err);
	if (r)
		return r;
	pl->va = (uint64_t)map->ret;
	for (size_t i = 0; i < t->n_seccomp; i++) {
		const struct seccomp_filter *f = &t->seccomp[i];
		uint64_t at = pl->prog_va[i];

		if (at == UINT64_MAX)
			continue;
		pl->prog_va[i] += pl->va;
		const struct sock_fprog prog = {
		    .len = (unsigned short)(f->insns_len / sizeof(struct sock_filter)),
		    .filter = (void *)(pl->prog_va[i] + sizeof(prog)),
		};
		memcpy(pl->image + at, &prog, sizeof(prog));
		memcpy(pl->image + at + sizeof(prog), f->insns, f->insns_len);
	}
	struct iovec local = {pl->image, pl->bytes}, remote = {(void *)pl->va, pl->bytes};
	if (process_vm_writev(p->pid, &local, 1, &remote, 1, 0) != (ssize_t)pl->bytes)
		return cr_err_sys(err, "writing seccomp filters into %d", p->pid);
	return 0;
}

/* Those of th from the from-th on. */
static int install(struct rtask *rt, const struct tree *t, const struct thread *th, size_t from,
		   size_t end, uint32_t flags, const struct placed *pl, struct cr_err *err)
{
	for (size_t i = from; i < end; i++) {
		uint32_t f = th->seccomp_filters[i];

		rqueue(rt, "seccomp", SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		       flags | t->seccomp[f].flags, pl->prog_va[f]);
	}
	return rtask_run(rt, err);
}

int attrs_seccomp_install(struct rtask *const *rts, const struct tree *t, const struct process *p,
			  struct cr_err *err)
{
	/* ESRCH if one cannot be had: the thread's id would look like success (5.7) */
	const uint32_t all_threads = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
	_cleanup_(placed_done) struct placed pl = {0};
	size_t common = common_prefix(p);
	int r = place(rts[0], t, p, &pl, err);

	if (!r)
		r = install(rts[0], t, &p->threads[0], 0, common,
			    p->n_threads > 1 ? all_threads : 0, &pl, err);
	for (size_t i = 0; i < p->n_threads && !r; i++)
		r = install(rts[i], t, &p->threads[i], common, p->threads[i].n_seccomp_filters, 0,
			    &pl, err);
	if (!r && pl.bytes) {
		rqueue(rts[0], "munmap", SYS_munmap, pl.va, pl.bytes);
		r = rtask_run(rts[0], err);
	}
	for (size_t i = 0; i < p->n_threads && !r; i++) {
		if (p->threads[i].seccomp_mode != SECCOMP_MODE_STRICT)
			continue;
		rqueue(rts[i], "seccomp", SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0);
		r = rtask_run(rts[i], err);
	}
	return r ? cr_err_ctx(err, "seccomp of %d", p->pid) : 0;
}
