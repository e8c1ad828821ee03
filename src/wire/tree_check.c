/* What must hold of a tree, whoever made it: checked before it is sent and after it was received.
 */
#include "wire/tree_priv.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/vec.h"
#include "model/lazy.h"

enum {
	PID_MAX_LIMIT = 4 << 20, /* proc_sys_kernel(5), pid_max */
	GPREGS_BYTES = 27 * 8,   /* struct user_regs_struct, x86-64 */
	XSTATE_BYTES_MAX = 64 * 1024,
	AUXV_BYTES_MAX = 4096,
	AFFINITY_BYTES_MAX = 8192,
	FILTER_BYTES_MAX = 4096 * 8, /* seccomp(2): BPF_MAXINSNS instructions */
	FILTERS_MAX = 8192,          /* seccomp(2): fewer, as each counts 4 and more of 32,768 */
	FILTER_LOG = 2,              /* seccomp(2): the one flag that a filter keeps */
	GROUPS_MAX = 65536,          /* credentials(7), NGROUPS_MAX */
	LOCKS_MAX = 100,
	TTY_BYTES_MAX = 1 << 20,  /* the kernel holds less, for each direction */
	SOCKADDR_BYTES_MAX = 128, /* struct sockaddr_storage */
	SOCKOPT_BYTES_MAX = 65536,
	FILTER_MAX = 4096,      /* BPF_MAXINSNS */
	PROGRAM_NAME_SIZE = 16, /* BPF_OBJ_NAME_LEN */
};
/* User addresses end below this with five levels of page tables,
 * Documentation/arch/x86/x86_64/5level-paging.rst */
#define USER_END (1ull << 56)

#define CHECK(cond, ...)                                                                           \
	do {                                                                                       \
		if (!(cond))                                                                       \
			return tree_bad(err, __VA_ARGS__);                                         \
	} while (0)

static bool pid_ok(pid_t pid)
{
	return pid > 0 && pid <= PID_MAX_LIMIT;
}

/* 0: outside of the pid namespace, or none. */
static bool pid_or_none(pid_t pid)
{
	return pid == 0 || pid_ok(pid);
}

static bool absolute(const char *path)
{
	return path && path[0] == '/' && strlen(path) < PATH_MAX;
}

/* ---- known kinds: the compiler says when one is missing here ---- */

static bool vma_kind_known(enum vma_kind k)
{
	switch (k) {
	case VMA_ANON:
	case VMA_SHARED_OBJ:
	case VMA_FILE_PRIVATE:
	case VMA_FILE_SHARED:
	case VMA_VDSO:
	case VMA_VSYSCALL:
		return true;
	}
	return false;
}

static bool file_kind_known(enum file_kind k)
{
	switch (k) {
	case FILE_REGULAR:
	case FILE_CHARDEV:
	case FILE_PIPE:
	case FILE_EVENTFD:
	case FILE_EPOLL:
	case FILE_TIMERFD:
	case FILE_SIGNALFD:
	case FILE_MEMFD:
	case FILE_TCP_LISTEN:
	case FILE_UNIX_LISTEN:
	case FILE_TCP_CLOSED:
	case FILE_TCP_IDLE:
	case FILE_UNIX_CONN:
	case FILE_UDP:
	case FILE_UNLINKED:
	case FILE_TCP_CONN:
	case FILE_PTY_MASTER:
	case FILE_PTY_SLAVE:
	case FILE_TTY:
	case FILE_INOTIFY:
	case FILE_PIDFD:
		return true;
	}
	return false;
}

/* ---- memory ---- */

/* A power of two that mmap(2), shmget(2) and the like can be asked for. */
static bool huge_page_bytes_valid(uint64_t bytes)
{
	return bytes > CR_PAGE_SIZE && bytes <= 1ull << 40 && !(bytes & (bytes - 1));
}

static bool huge_vma_valid(const struct vma *v)
{
	uint64_t pages = (v->end - v->start) / v->page_bytes;

	return huge_page_bytes_valid(v->page_bytes) && v->kind == VMA_ANON &&
	       !((v->start | v->end) % v->page_bytes) && v->huge_own <= v->huge_there &&
	       v->huge_there <= pages && (!v->huge_stays || v->page_bytes == LAZY_HUGE_BYTES);
}

static int check_vma(const struct tree *t, const struct vma *v, struct cr_err *err)
{
	unsigned long long at = v->start;
	bool file = v->kind == VMA_FILE_PRIVATE || v->kind == VMA_FILE_SHARED;

	CHECK(!((v->start | v->end | v->offset) % CR_PAGE_SIZE), "mapping %llx: not page aligned",
	      at);
	CHECK(v->start < v->end, "mapping %llx: empty", at);
	CHECK(vma_kind_known(v->kind), "mapping %llx: unknown kind %u", at, v->kind);
	CHECK(v->end <= USER_END || v->kind == VMA_VSYSCALL, "mapping %llx: not a user address",
	      at);
	CHECK(v->prot <= 7, "mapping %llx: protection %#x", at, v->prot);
	if (file)
		CHECK(v->file == UINT32_MAX || v->file < t->n_mapped_files,
		      "mapping %llx: there is no file %u", at, v->file);
	if (v->kind == VMA_FILE_SHARED)
		CHECK(v->file != UINT32_MAX, "mapping %llx: no file", at);
	if (v->kind == VMA_FILE_PRIVATE || v->kind == VMA_SHARED_OBJ)
		CHECK(v->object == UINT32_MAX || v->object < t->n_objects,
		      "mapping %llx: there is no shared object %u", at, v->object);
	if (v->kind == VMA_SHARED_OBJ)
		CHECK(v->object != UINT32_MAX, "mapping %llx: no shared object", at);
	if (v->kind == VMA_FILE_PRIVATE)
		CHECK(v->object != UINT32_MAX || v->file != UINT32_MAX, "mapping %llx: no file",
		      at);
	CHECK(!v->page_bytes || huge_vma_valid(v), "mapping %llx: huge pages", at);
	return 0;
}

static int check_mm(const struct tree *t, const struct mm *mm, struct cr_err *err)
{
	uint64_t end = 0;

	for (size_t i = 0; i < mm->n_vmas; i++) {
		CHECK(mm->vmas[i].start >= end, "mapping %llx: overlaps the one before",
		      (unsigned long long)mm->vmas[i].start);
		end = mm->vmas[i].end;
		int r = check_vma(t, &mm->vmas[i], err);
		if (r < 0)
			return r;
	}
	end = 0;
	for (size_t i = 0; i < mm->n_guards; i++) {
		const struct addr_range *g = &mm->guards[i];

		CHECK(!((g->start | g->end) % CR_PAGE_SIZE), "guard range %zu: not page aligned",
		      i);
		CHECK(g->start >= end && g->start < g->end && g->end <= USER_END,
		      "guard range %zu: empty, or overlaps the one before", i);
		end = g->end;
	}
	for (size_t i = 0; i < mm->n_held; i++)
		CHECK(mm->held[i] < USER_END && (!i || mm->held[i] > mm->held[i - 1]),
		      "page %zu with mutexes: out of order", i);
	CHECK(mm->exe_object ? mm->exe_file == UINT32_MAX : mm->exe_file < t->n_mapped_files,
	      "there is no file %u, the executable", mm->exe_file);
	CHECK(!mm->exe_object || (mm->exe_object <= t->n_objects &&
				  (t->objects[mm->exe_object - 1].kind == OBJ_MEMFD ||
				   t->objects[mm->exe_object - 1].kind == OBJ_UNLINKED)),
	      "there is no object %u, the executable", mm->exe_object - 1);
	CHECK(mm->auxv_len <= AUXV_BYTES_MAX && !(mm->auxv_len % 16), "auxv of %zu bytes",
	      mm->auxv_len);
	return 0;
}

/* ---- processes ---- */

static int check_thread(const struct tree *t, const struct thread *th, struct cr_err *err)
{
	CHECK(th->gpregs_len == 0 || th->gpregs_len == GPREGS_BYTES,
	      "thread %d: registers of %zu bytes", th->tid, th->gpregs_len);
	CHECK(th->xstate_len <= XSTATE_BYTES_MAX, "thread %d: xstate of %zu bytes", th->tid,
	      th->xstate_len);
	CHECK(th->affinity_len <= AFFINITY_BYTES_MAX, "thread %d: affinity of %zu bytes", th->tid,
	      th->affinity_len);
	CHECK(memchr(th->comm, 0, sizeof(th->comm)), "thread %d: name does not end", th->tid);
	CHECK(th->seccomp_mode <= 2 && th->n_seccomp_filters <= FILTERS_MAX,
	      "thread %d: seccomp mode %u, %zu filters", th->tid, th->seccomp_mode,
	      th->n_seccomp_filters);
	for (size_t i = 0; i < th->n_seccomp_filters; i++)
		CHECK(th->seccomp_filters[i] < t->n_seccomp, "thread %d: there is no filter %u",
		      th->tid, th->seccomp_filters[i]);
	return 0;
}

static int check_fds(const struct tree *t, const struct process *p, struct cr_err *err)
{
	int32_t before = -1;

	for (size_t i = 0; i < p->n_fds; i++) {
		const struct fd_entry *e = &p->fds[i];

		CHECK(e->fd > before, "process %d: descriptor %d is out of order", p->pid, e->fd);
		CHECK(e->file < t->n_files, "process %d: descriptor %d: there is no file %u",
		      p->pid, e->fd, e->file);
		before = e->fd;
	}
	return 0;
}

static int check_locks(const struct process *p, struct cr_err *err)
{
	CHECK(p->n_locks <= LOCKS_MAX, "process %d: %zu file locks", p->pid, p->n_locks);
	for (size_t i = 0; i < p->n_locks; i++) {
		const struct file_lock *l = &p->locks[i];
		bool there = false;

		for (size_t k = 0; k < p->n_fds; k++)
			there |= p->fds[k].fd == l->fd;
		CHECK(there && l->kind >= LOCK_FLOCK && l->kind <= LOCK_POSIX &&
			  l->start <= INT64_MAX && l->start <= l->end &&
			  (l->end < INT64_MAX || l->end == UINT64_MAX),
		      "process %d: lock %zu, on descriptor %d", p->pid, i, l->fd);
	}
	return 0;
}

static int check_process(const struct tree *t, const struct process *p, struct cr_err *err)
{
	int r;

	CHECK(pid_or_none(p->ppid) && pid_or_none(p->pgid) && pid_or_none(p->sid),
	      "process %d: parent %d, group %d, session %d", p->pid, p->ppid, p->pgid, p->sid);
	if (p->zombie)
		return 0;
	CHECK(p->n_threads > 0, "process %d: no threads", p->pid);
	CHECK(!p->stop_sig || is_stop_signal((int)p->stop_sig), "process %d: stopped by signal %u",
	      p->pid, p->stop_sig);
	CHECK(p->threads[0].tid == p->pid, "process %d: its first thread is %d", p->pid,
	      p->threads[0].tid);
	CHECK(!p->ctty || tree_find_tty(t, p->ctty - 1), "process %d: there is no terminal %u",
	      p->pid, p->ctty - 1);
	CHECK(absolute(p->cwd) && absolute(p->root), "process %d: no root or working directory",
	      p->pid);
	CHECK(p->creds.n_groups <= GROUPS_MAX, "process %d: %zu groups", p->pid, p->creds.n_groups);
	for (size_t i = 0; i < p->n_threads; i++)
		if ((r = check_thread(t, &p->threads[i], err)) < 0)
			return r;
	for (size_t i = 0; i < p->n_timers; i++)
		CHECK(pid_or_none(p->timers[i].notify_tid), "process %d: timer %d for thread %d",
		      p->pid, p->timers[i].id, p->timers[i].notify_tid);
	if ((r = check_mm(t, &p->mm, err)) < 0)
		return cr_err_ctx(err, "process %d", p->pid);
	r = check_fds(t, p, err);
	return r ? r : check_locks(p, err);
}

/* Whole pages; a segment of System V may end within one. */
static bool huge_object_valid(const struct shared_object *o)
{
	return huge_page_bytes_valid(o->page_bytes) && o->kind != OBJ_UNLINKED &&
	       (o->kind == OBJ_SYSV_SHM || !(o->size % o->page_bytes));
}

/* ---- who is whose ---- */

struct task_id {
	pid_t tid;
	size_t proc; /* index, and SIZE_MAX for threads that are not leaders */
};
typedef int (*compare_fn)(const void *, const void *);

static int compare_ids(const struct task_id *a, const struct task_id *b)
{
	return (a->tid > b->tid) - (a->tid < b->tid);
}

static int check_ids_sorted(const struct tree *t, const struct task_id *ids, size_t n,
			    struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		CHECK(pid_ok(ids[i].tid), "pid %d", ids[i].tid);
		CHECK(!i || ids[i].tid != ids[i - 1].tid, "pid %d twice", ids[i].tid);
	}
	for (size_t i = 0; i < t->n_procs; i++) {
		struct task_id key = {.tid = t->procs[i].ppid};
		const struct task_id *parent =
		    bsearch(&key, ids, n, sizeof(key), (compare_fn)compare_ids);

		if (parent)
			CHECK(parent->proc < i, "process %d comes before its parent %d",
			      t->procs[i].pid, key.tid);
	}
	return 0;
}

/* All pids and tids sane and unique, parents before children. */
static int check_ids(const struct tree *t, struct cr_err *err)
{
	VEC(struct task_id) ids = {0};
	int r = 0;

	for (size_t i = 0; i < t->n_procs && r == 0; i++) {
		const struct process *p = &t->procs[i];
		struct task_id *id = vec_push(&ids);

		if (id)
			*id = (struct task_id){p->pid, i};
		for (size_t j = 1; id && j < (p->zombie ? 0 : p->n_threads); j++) {
			id = vec_push(&ids);
			if (id)
				*id = (struct task_id){p->threads[j].tid, SIZE_MAX};
		}
		if (!id)
			r = cr_err_oom(err);
	}
	if (ids.n)
		qsort(ids.v, ids.n, sizeof(*ids.v), (compare_fn)compare_ids);
	if (r == 0)
		r = check_ids_sorted(t, ids.v, ids.n, err);
	vec_done(&ids);
	return r;
}

/* ---- open files ---- */

static int check_tcp(const struct tcp_conn *c, size_t i, struct cr_err *err)
{
	/* TCP_ESTABLISHED to TCP_CLOSING */
	CHECK(c->state >= 1 && c->state <= 11, "file %zu: TCP state %u", i, c->state);
	CHECK(c->unsent <= c->out_len, "file %zu: %u bytes not sent of %zu", i, c->unsent,
	      c->out_len);
	/* RFC 7323, 2.3 */
	CHECK(c->snd_wscale <= 14 && c->rcv_wscale <= 14, "file %zu: window scale %u, %u", i,
	      c->snd_wscale, c->rcv_wscale);
	CHECK(!c->has_urgent || c->urgent_at < c->in_len, "file %zu: urgent byte %u of %zu", i,
	      c->urgent_at, c->in_len);
	CHECK(c->mss <= UINT16_MAX, "file %zu: MSS %u", i, c->mss);
	CHECK(c->sndbuf <= INT32_MAX && c->rcvbuf <= INT32_MAX, "file %zu: buffers of %u, %u bytes",
	      i, c->sndbuf, c->rcvbuf);
	return 0;
}

int tree_check_file(const struct tree *t, const struct file *f, size_t i, struct cr_err *err)
{
	CHECK(file_kind_known(f->kind), "file %zu: unknown kind %u", i, f->kind);
	if (file_is_terminal(f->kind))
		CHECK(tree_find_tty(t, f->tty), "file %zu: there is no terminal %u", i, f->tty);
	if (f->kind == FILE_REGULAR || f->kind == FILE_CHARDEV || file_is_terminal(f->kind))
		CHECK(absolute(f->path), "file %zu: no path", i);
	if (f->kind == FILE_MEMFD || f->kind == FILE_UNLINKED)
		CHECK(f->object < t->n_objects, "file %zu: there is no shared object %u", i,
		      f->object);
	if (f->kind == FILE_TCP_LISTEN || f->kind == FILE_UNIX_LISTEN)
		CHECK(f->sockaddr_len >= 2, "file %zu: no address", i);
	CHECK(f->sockaddr_len <= SOCKADDR_BYTES_MAX, "file %zu: address of %u bytes", i,
	      f->sockaddr_len);
	CHECK(f->peeraddr_len <= SOCKADDR_BYTES_MAX, "file %zu: peer's address of %u bytes", i,
	      f->peeraddr_len);
	CHECK(f->tcp_end <= TCP_END_REFUSED, "file %zu: unknown end %u", i, f->tcp_end);
	if (f->kind == FILE_TCP_CONN) {
		CHECK(f->sockaddr_len >= 2 && f->peeraddr_len >= 2, "file %zu: no address", i);
		CHECK(f->waits_at == UINT32_MAX || (f->waits_at < t->n_files &&
						    t->files[f->waits_at].kind == FILE_TCP_LISTEN),
		      "file %zu: cannot wait at file %u", i, f->waits_at);
	}
	if (f->tcp) {
		int r = check_tcp(f->tcp, i, err);

		if (r < 0)
			return r;
	}
	for (size_t j = 0; j < f->n_targets; j++)
		CHECK(f->targets[j].fd >= 0 && f->targets[j].file < t->n_files,
		      "file %zu: target %d: there is no file %u", i, f->targets[j].fd,
		      f->targets[j].file);
	int r = tree_check_udp(f, i, err);
	if (r >= 0)
		r = tree_check_unix(t, f, i, err);
	if (r < 0)
		return r;
	CHECK(f->n_filter <= FILTER_MAX, "file %zu: filter of %zu instructions", i, f->n_filter);
	CHECK(f->n_program <= FILTER_MAX, "file %zu: eBPF filter of %zu instructions", i,
	      f->n_program);
	CHECK(!f->program_name || strlen(f->program_name) < PROGRAM_NAME_SIZE,
	      "file %zu: eBPF filter with a name that is too long", i);
	CHECK(!f->reuse_place || f->reuse_place < t->n_files, "file %zu: place %u of a group", i,
	      f->reuse_place);
	CHECK(f->n_reuse_code <= FILTER_MAX, "file %zu: program of %zu instructions", i,
	      f->n_reuse_code);
	for (size_t j = 0; j < f->n_opts; j++)
		CHECK(f->opts[j].len <= SOCKOPT_BYTES_MAX, "file %zu: option of %u bytes", i,
		      f->opts[j].len);
	CHECK(f->cred_pid <= PID_MAX_LIMIT, "file %zu: made by process %d", i, f->cred_pid);
	return 0;
}

/* ---- terminals ---- */

static int check_tty(const struct tree *t, const struct tty *y, struct cr_err *err)
{
	size_t masters = 0, bytes = 0;

	/* Documentation/admin-guide/devices.txt: 2^20 at most */
	CHECK(y->number < 1 << 20 && tree_find_tty(t, y->number) == y, "terminal %u twice, or none",
	      y->number);
	for (size_t i = 0; i < t->n_files; i++)
		masters += t->files[i].kind == FILE_PTY_MASTER && t->files[i].tty == y->number;
	CHECK(masters == 1, "terminal %u: %zu masters", y->number, masters);
	CHECK(pid_or_none(y->sid) && pid_or_none(y->pgrp), "terminal %u: session %d, group %d",
	      y->number, y->sid, y->pgrp);
	CHECK(y->mode <= 07777 && y->rows <= UINT16_MAX && y->cols <= UINT16_MAX &&
		  y->xpixel <= UINT16_MAX && y->ypixel <= UINT16_MAX,
	      "terminal %u: mode or size", y->number);
	CHECK(y->input_len <= TTY_BYTES_MAX && y->output_len <= TTY_BYTES_MAX,
	      "terminal %u: %zu and %zu bytes", y->number, y->input_len, y->output_len);
	for (size_t i = 0; i < y->n_lines; i++) {
		bytes += y->lines[i] >> 1;
		CHECK(bytes <= y->input_len && y->lines[i], "terminal %u: line %zu", y->number, i);
	}
	return 0;
}

/* ---- the whole ---- */

static int check_tables(const struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_mapped_files; i++)
		CHECK(absolute(t->mapped_files[i].path), "mapped file %zu: no path", i);
	for (size_t i = 0; i < t->n_objects; i++) {
		const struct shared_object *o = &t->objects[i];

		CHECK(o->kind == OBJ_SHARED_ANON || o->kind == OBJ_MEMFD ||
			  o->kind == OBJ_SYSV_SHM || o->kind == OBJ_UNLINKED,
		      "shared object %zu: unknown kind %u", i, o->kind);
		CHECK(o->size <= INT64_MAX, "shared object %zu: size", i);
		CHECK(!o->page_bytes || huge_object_valid(o), "shared object %zu: huge pages", i);
		CHECK(o->ipc_id >= 0 && o->mode <= 07777, "shared object %zu: id or mode", i);
		CHECK(o->kind != OBJ_UNLINKED || absolute(o->name), "shared object %zu: no path",
		      i);
		CHECK(o->kind != OBJ_MEMFD || o->name, "shared object %zu: no name", i);
	}
	for (size_t i = 0; i < t->n_ttys; i++) {
		int r = check_tty(t, &t->ttys[i], err);

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < t->n_seccomp; i++) {
		const struct seccomp_filter *f = &t->seccomp[i];

		CHECK(f->insns_len && f->insns_len <= FILTER_BYTES_MAX && !(f->insns_len % 8) &&
			  !(f->flags & ~(uint32_t)FILTER_LOG),
		      "seccomp filter %zu: %zu bytes, flags %#x", i, f->insns_len, f->flags);
	}
	for (size_t i = 0; i < t->n_sets; i++) {
		int r = tree_check_set(&t->sets[i], i, err);

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < t->n_files; i++) {
		int r = tree_check_file(t, &t->files[i], i, err);

		if (r < 0)
			return r;
	}
	return 0;
}

int tree_check(const struct tree *t, struct cr_err *err)
{
	int r;

	CHECK(t->n_procs > 0, "no process");
	CHECK(memchr(t->kernel_release, 0, sizeof(t->kernel_release)) &&
		  memchr(t->hostname, 0, sizeof(t->hostname)) &&
		  memchr(t->boot_id, 0, sizeof(t->boot_id)),
	      "name of host, kernel or boot does not end");
	if ((r = check_tables(t, err)) < 0)
		return r;
	for (size_t i = 0; i < t->n_procs; i++)
		if ((r = check_process(t, &t->procs[i], err)) < 0)
			return r;
	if ((r = check_ids(t, err)) < 0)
		return r;
	CHECK(tree_find_process(t, t->root_pid), "the root, process %d, is not in the tree",
	      t->root_pid);
	return 0;
}
