/* Processes and threads. */
#include "wire/tree_priv.h"

#include <string.h>

/* ---- parts ---- */

_Static_assert(sizeof(struct siginfo_rec) == 128, "an array of them is their bytes in a row");

static int get_pending(struct arena *a, const ProtobufCBinaryData *pb, struct siginfo_rec **ret,
		       size_t *ret_n, struct cr_err *err)
{
	const uint8_t *bytes = NULL;
	size_t len = 0;
	int r = tree_get_bytes(a, pb, &bytes, &len, err);

	if (r < 0)
		return r;
	if (len % sizeof(**ret))
		return tree_bad(err, "pending signals: %zu bytes are not a multiple of 128", len);
	*ret = (struct siginfo_rec *)bytes;
	*ret_n = len / sizeof(**ret);
	return 0;
}

/* clang-format off */
#define CREDS_NUMBERS(X) \
	X(uid) X(euid) X(suid) X(fsuid) X(gid) X(egid) X(sgid) X(fsgid) X(cap_inh) X(cap_prm) \
	X(cap_eff) X(cap_bnd) X(cap_amb) X(securebits)
/* clang-format on */

static Tree__Creds *put_creds(struct arena *a, const struct creds *in)
{
	Tree__Creds *pb = pb_new(a, &tree__creds__descriptor);

	if (!pb)
		return NULL;
	CREDS_NUMBERS(TREE_PUT)
	pb->groups = in->groups;
	pb->n_groups = in->n_groups;
	return pb;
}

static int get_creds(struct arena *a, const Tree__Creds *pb, struct creds *out, struct cr_err *err)
{
	if (!pb)
		return tree_bad(err, "credentials are missing");
	CREDS_NUMBERS(TREE_GET)
	out->n_groups = pb->n_groups;
	out->groups = arena_memdup(a, pb->groups, pb->n_groups * sizeof(*pb->groups));
	return out->groups ? 0 : cr_err_oom(err);
}

/* clang-format off */
#define TIMER_NUMBERS(X) \
	X(id) X(clockid) X(notify) X(signo) X(sigval) X(interval_ns) X(value_ns) X(overrun)
/* clang-format on */

static bool put_timers(struct arena *a, const struct process *in, Tree__Process *out)
{
	out->timers = arena_array(a, Tree__PosixTimer *, in->n_timers);
	for (size_t i = 0; out->timers && i < in->n_timers; i++) {
		Tree__PosixTimer *t = pb_new(a, &tree__posix_timer__descriptor);

		if (!t)
			return false;
#define PUT_TIMER(f) t->f = in->timers[i].f;
		TIMER_NUMBERS(PUT_TIMER)
		t->notify_tid = (uint32_t)in->timers[i].notify_tid;
		out->timers[out->n_timers++] = t;
	}
	return out->timers;
}

static int get_timers(struct arena *a, const Tree__Process *pb, struct process *p,
		      struct cr_err *err)
{
	p->timers = arena_array(a, struct posix_timer_rec, pb->n_timers);
	if (!p->timers)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_timers; i++) {
		struct posix_timer_rec *t = &p->timers[p->n_timers++];

#define GET_TIMER(f) t->f = pb->timers[i]->f;
		TIMER_NUMBERS(GET_TIMER)
		t->notify_tid = (pid_t)pb->timers[i]->notify_tid;
	}
	return 0;
}

/* ---- threads ---- */

/* clang-format off */
#define THREAD_NUMBERS(X) \
	X(sigmask) X(altstack_sp) X(altstack_size) X(altstack_flags) X(clear_tid_va) \
	X(robust_list_va) X(robust_list_len) X(rseq_va) X(rseq_len) X(rseq_sig) X(rseq_flags) \
	X(sched_policy) X(sched_prio) X(nice) X(sched_runtime) X(sched_deadline) \
	X(sched_period) X(sched_flags) X(pdeathsig) X(timer_slack_ns) X(io_prio) \
	X(no_new_privs) X(seccomp_mode)
/* clang-format on */

static Tree__Thread *put_thread(struct arena *a, const struct thread *in)
{
	Tree__Thread *pb = pb_new(a, &tree__thread__descriptor);

	if (!pb)
		return NULL;
	THREAD_NUMBERS(TREE_PUT)
	pb->tid = (uint32_t)in->tid;
	pb->comm = pb_bytes(in->comm, strnlen(in->comm, sizeof(in->comm)));
	pb->gpregs = pb_bytes(in->gpregs, in->gpregs_len);
	pb->xstate = pb_bytes(in->xstate, in->xstate_len);
	pb->pending = pb_bytes(in->pending, in->n_pending * sizeof(*in->pending));
	pb->affinity = pb_bytes(in->affinity, in->affinity_len);
	pb->seccomp_filters = arena_array(a, uint32_t, in->n_seccomp_filters);
	if (!pb->seccomp_filters)
		return NULL;
	for (; pb->n_seccomp_filters < in->n_seccomp_filters; pb->n_seccomp_filters++)
		pb->seccomp_filters[pb->n_seccomp_filters] =
		    tree_put_index(in->seccomp_filters[pb->n_seccomp_filters]);
	return pb;
}

static int get_seccomp(struct arena *a, const Tree__Thread *pb, struct thread *out,
		       struct cr_err *err)
{
	out->seccomp_filters = arena_array(a, uint32_t, pb->n_seccomp_filters);
	if (!out->seccomp_filters)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_seccomp_filters; i++)
		out->seccomp_filters[out->n_seccomp_filters++] =
		    tree_get_index(pb->seccomp_filters[i]);
	return 0;
}

static int get_thread(struct arena *a, const Tree__Thread *pb, struct thread *out,
		      struct cr_err *err)
{
	int r;

	THREAD_NUMBERS(TREE_GET)
	out->tid = (pid_t)pb->tid;
	if (pb->comm.len >= sizeof(out->comm))
		return tree_bad(err, "thread %u: name of %zu bytes", pb->tid, pb->comm.len);
	if (pb->comm.len)
		memcpy(out->comm, pb->comm.data, pb->comm.len);
	if ((r = tree_get_bytes(a, &pb->gpregs, &out->gpregs, &out->gpregs_len, err)) < 0)
		return r;
	if ((r = tree_get_bytes(a, &pb->xstate, &out->xstate, &out->xstate_len, err)) < 0)
		return r;
	if ((r = tree_get_bytes(a, &pb->affinity, &out->affinity, &out->affinity_len, err)) < 0)
		return r;
	if ((r = get_seccomp(a, pb, out, err)) < 0)
		return r;
	return get_pending(a, &pb->pending, &out->pending, &out->n_pending, err);
}

static bool put_threads(struct arena *a, const struct process *in, Tree__Process *pb)
{
	pb->threads = arena_array(a, Tree__Thread *, in->n_threads);
	for (size_t i = 0; pb->threads && i < in->n_threads; i++) {
		pb->threads[i] = put_thread(a, &in->threads[i]);
		if (!pb->threads[i])
			return false;
		pb->n_threads++;
	}
	return pb->threads;
}

static int get_threads(struct arena *a, const Tree__Process *pb, struct process *out,
		       struct cr_err *err)
{
	out->threads = arena_array(a, struct thread, pb->n_threads);
	if (!out->threads)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_threads; i++) {
		int r = get_thread(a, pb->threads[i], &out->threads[i], err);

		if (r < 0)
			return r;
		out->n_threads++;
	}
	return 0;
}

/* ---- descriptors ---- */

static bool put_fds(struct arena *a, const struct process *in, Tree__Process *pb)
{
	int32_t before = -1;

	pb->fd_gap = arena_array(a, uint32_t, in->n_fds);
	pb->fd_file = arena_array(a, uint32_t, in->n_fds);
	pb->fd_cloexec = arena_array(a, protobuf_c_boolean, in->n_fds);
	if (!pb->fd_gap || !pb->fd_file || !pb->fd_cloexec)
		return false;
	for (size_t i = 0; i < in->n_fds; i++) {
		pb->fd_gap[i] = (uint32_t)(in->fds[i].fd - before - 1);
		pb->fd_file[i] = tree_put_index(in->fds[i].file);
		pb->fd_cloexec[i] = in->fds[i].cloexec;
		before = in->fds[i].fd;
	}
	pb->n_fd_gap = pb->n_fd_file = pb->n_fd_cloexec = in->n_fds;
	return true;
}

static int get_fds(struct arena *a, const Tree__Process *pb, struct process *out,
		   struct cr_err *err)
{
	int64_t before = -1;

	if (pb->n_fd_file != pb->n_fd_gap || pb->n_fd_cloexec != pb->n_fd_gap)
		return tree_bad(err, "columns of the descriptors differ in length");
	out->fds = arena_array(a, struct fd_entry, pb->n_fd_gap);
	if (!out->fds)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_fd_gap; i++) {
		before += (int64_t)pb->fd_gap[i] + 1;
		if (before > INT32_MAX)
			return tree_bad(err, "descriptor %zu is out of bounds", i);
		out->fds[out->n_fds++] = (struct fd_entry){.fd = (int32_t)before,
							   .file = tree_get_index(pb->fd_file[i]),
							   .cloexec = pb->fd_cloexec[i]};
	}
	return 0;
}

/* ---- file locks ---- */

static bool put_locks(struct arena *a, const struct process *in, Tree__Process *pb)
{
	size_t n = in->n_locks;

	pb->lock_fd = arena_array(a, int32_t, n);
	pb->lock_kind = arena_array(a, uint32_t, n);
	pb->lock_write = arena_array(a, protobuf_c_boolean, n);
	pb->lock_start = arena_array(a, uint64_t, n);
	pb->lock_end = arena_array(a, uint64_t, n);
	if (!pb->lock_fd || !pb->lock_kind || !pb->lock_write || !pb->lock_start || !pb->lock_end)
		return false;
	for (size_t i = 0; i < n; i++) {
		pb->lock_fd[i] = in->locks[i].fd;
		pb->lock_kind[i] = in->locks[i].kind;
		pb->lock_write[i] = in->locks[i].write;
		pb->lock_start[i] = in->locks[i].start;
		pb->lock_end[i] = in->locks[i].end + 1;
	}
	pb->n_lock_fd = pb->n_lock_kind = pb->n_lock_write = n;
	pb->n_lock_start = pb->n_lock_end = n;
	return true;
}

static int get_locks(struct arena *a, const Tree__Process *pb, struct process *out,
		     struct cr_err *err)
{
	size_t n = pb->n_lock_fd;

	if (pb->n_lock_kind != n || pb->n_lock_write != n || pb->n_lock_start != n ||
	    pb->n_lock_end != n)
		return tree_bad(err, "columns of the file locks differ in length");
	out->locks = arena_array(a, struct file_lock, n);
	if (!out->locks)
		return cr_err_oom(err);
	for (size_t i = 0; i < n; i++)
		out->locks[out->n_locks++] =
		    (struct file_lock){.fd = pb->lock_fd[i],
				       .kind = (enum lock_kind)pb->lock_kind[i],
				       .write = pb->lock_write[i],
				       .start = pb->lock_start[i],
				       .end = pb->lock_end[i] - 1};
	return 0;
}

/* ---- arrays of a fixed length ---- */

/* X(column in .proto, array in struct process, member) */
#define FIXED_COLUMNS(X)                                                                           \
	X(sig_handler, sigactions, handler)                                                        \
	X(sig_flags, sigactions, flags)                                                            \
	X(sig_restorer, sigactions, restorer)                                                      \
	X(sig_mask, sigactions, mask)                                                              \
	X(rlim_cur, rlimits, cur)                                                                  \
	X(rlim_max, rlimits, max)                                                                  \
	X(itimer_interval_us, itimers, interval_us)                                                \
	X(itimer_value_us, itimers, value_us)

static bool put_fixed(struct arena *a, const struct process *in, Tree__Process *pb)
{
#define PUT_COLUMN(column, array, member)                                                          \
	pb->column = arena_array(a, uint64_t, ARRAY_SIZE(in->array));                              \
	if (!pb->column)                                                                           \
		return false;                                                                      \
	for (; pb->n_##column < ARRAY_SIZE(in->array); pb->n_##column++)                           \
		pb->column[pb->n_##column] = in->array[pb->n_##column].member;
	FIXED_COLUMNS(PUT_COLUMN)
	return true;
}

static int get_fixed(const Tree__Process *pb, struct process *out, struct cr_err *err)
{
#define GET_COLUMN(column, array, member)                                                          \
	if (pb->n_##column != ARRAY_SIZE(out->array))                                              \
		return tree_bad(err, "process %u: %zu instead of %zu " #array, pb->pid,            \
				pb->n_##column, ARRAY_SIZE(out->array));                           \
	for (size_t i = 0; i < pb->n_##column; i++)                                                \
		out->array[i].member = pb->column[i];
	FIXED_COLUMNS(GET_COLUMN)
	return 0;
}

/* ---- the whole ---- */

#define PROCESS_NUMBERS(X)                                                                         \
	X(umask)                                                                                   \
	X(cwd_carried)                                                                             \
	X(oom_score_adj)                                                                           \
	X(child_subreaper) X(personality) X(ctty) X(coredump_bits) X(stop_sig) X(stop_told)

static void put_ids(const struct process *in, Tree__Process *pb)
{
	pb->pid = (uint32_t)in->pid;
	pb->ppid = (uint32_t)in->ppid;
	pb->pgid = (uint32_t)in->pgid;
	pb->sid = (uint32_t)in->sid;
	pb->zombie = in->zombie;
	pb->exit_status = in->exit_status;
	pb->exit_signal = in->exit_signal;
}

static void get_ids(const Tree__Process *pb, struct process *out)
{
	out->pid = (pid_t)pb->pid;
	out->ppid = (pid_t)pb->ppid;
	out->pgid = (pid_t)pb->pgid;
	out->sid = (pid_t)pb->sid;
	out->zombie = pb->zombie;
	out->exit_status = pb->exit_status;
	out->exit_signal = pb->exit_signal;
}

Tree__Process *tree_put_process(struct arena *a, const struct process *in)
{
	Tree__Process *pb = pb_new(a, &tree__process__descriptor);

	if (!pb)
		return NULL;
	put_ids(in, pb);
	if (in->zombie)
		return pb;
	PROCESS_NUMBERS(TREE_PUT)
	pb->pending = pb_bytes(in->pending, in->n_pending * sizeof(*in->pending));
	pb->cwd = pb_string(in->cwd);
	pb->root = pb_string(in->root);
	pb->mm = tree_put_mm(a, &in->mm);
	pb->creds = put_creds(a, &in->creds);
	if (!pb->mm || !pb->creds || !put_threads(a, in, pb) || !put_fixed(a, in, pb) ||
	    !put_timers(a, in, pb) || !put_fds(a, in, pb) || !put_locks(a, in, pb))
		return NULL;
	return pb;
}

int tree_get_process(struct arena *a, const Tree__Process *pb, struct process *out,
		     struct cr_err *err)
{
	int r;

	get_ids(pb, out);
	if (pb->zombie)
		return 0;
	PROCESS_NUMBERS(TREE_GET)
	if (!pb->mm)
		return tree_bad(err, "process %u: address space is missing", pb->pid);
	if ((r = get_fixed(pb, out, err)) < 0 || (r = get_threads(a, pb, out, err)) < 0 ||
	    (r = tree_get_mm(a, pb->mm, &out->mm, err)) < 0 ||
	    (r = get_pending(a, &pb->pending, &out->pending, &out->n_pending, err)) < 0 ||
	    (r = get_creds(a, pb->creds, &out->creds, err)) < 0 ||
	    (r = get_timers(a, pb, out, err)) < 0 || (r = get_fds(a, pb, out, err)) < 0 ||
	    (r = get_locks(a, pb, out, err)) < 0 ||
	    (r = tree_get_string(a, pb->cwd, &out->cwd, err)) < 0 ||
	    (r = tree_get_string(a, pb->root, &out->root, err)) < 0)
		return r;
	return 0;
}
