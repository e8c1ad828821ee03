/* A tree in which every field has a value of its own, and a comparison of every field. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "model/tree.h"

/* When one of these fails a field was added to tree.h (or removed): add it to the codec
 * (src/wire/tree_codec.c says how), to the functions below, and set the size right. */
#define TREE_SIZES(X)                                                                              \
	X(struct vma, 104)                                                                         \
	X(struct mapped_file, 72)                                                                  \
	X(struct shared_object, 88)                                                                \
	X(struct mm, 176)                                                                          \
	X(struct thread, 256)                                                                      \
	X(struct creds, 96)                                                                        \
	X(struct posix_timer_rec, 56)                                                              \
	X(struct fd_entry, 12)                                                                     \
	X(struct file_lock, 32)                                                                    \
	X(struct process, 2792)                                                                    \
	X(struct epoll_target, 24)                                                                 \
	X(struct sockopt_rec, 24)                                                                  \
	X(struct file, 504)                                                                        \
	X(struct tree, 384)                                                                        \
	X(struct seccomp_filter, 24)                                                               \
	X(struct tty, 144)                                                                         \
	X(struct sysv_set, 96)                                                                     \
	X(struct sysv_message, 24)                                                                 \
	X(struct unix_message, 64)                                                                 \
	X(struct datagram, 56)                                                                     \
	X(struct membership, 56)                                                                   \
	X(struct tcp_conn, 136)

struct filler {
	struct tree *t;
	uint64_t next;
};

static inline uint64_t fill_u64(struct filler *f)
{
	/* large and irregular, so that neither halves nor neighbours are alike */
	return ++f->next * 0x9e3779b97f4a7c15ull;
}
static inline uint32_t fill_u32(struct filler *f)
{
	return (uint32_t)(fill_u64(f) >> 32);
}
static inline int32_t fill_s32(struct filler *f)
{
	return (int32_t)fill_u32(f);
}
static inline uint64_t fill_page(struct filler *f)
{
	return fill_u64(f) & ~0xfffull;
}
static inline bool fill_bool(struct filler *f)
{
	(void)f;
	return true; /* the other value is what a forgotten field has */
}
static inline const char *fill_path(struct filler *f)
{
	char s[64];

	snprintf(s, sizeof(s), "/path/%llu", (unsigned long long)++f->next);
	return arena_strdup(f->t->arena, s);
}
static inline const uint8_t *fill_bytes(struct filler *f, size_t n)
{
	uint8_t *p = arena_alloc(f->t->arena, n);

	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(fill_u64(f) >> 40);
	return p;
}

#define FILL_BYTES(f, p, len, n) ((p) = fill_bytes((f), (n)), (len) = (n))

static inline void fill_vma(struct filler *f, struct vma *v, uint64_t start, enum vma_kind kind)
{
	v->start = start;
	v->end = start + 0x1000 * (1 + f->next % 7);
	v->offset = fill_page(f);
	v->prot = 5;
	v->kind = kind;
	v->flags = fill_u32(f);
	v->file = kind == VMA_FILE_PRIVATE || kind == VMA_FILE_SHARED ? f->next % 2 : UINT32_MAX;
	v->object = kind == VMA_SHARED_OBJ || kind == VMA_FILE_PRIVATE ? f->next % 2 : UINT32_MAX;
	v->name = kind == VMA_ANON ? NULL : fill_path(f);
	v->ino = fill_u64(f);
	v->dev = fill_u64(f);
	if (kind == VMA_ANON) {
		v->page_bytes = 2 << 20;
		v->start = ALIGN_UP(start, 2ull << 20);
		v->end = v->start + (2 << 20);
		v->huge_there = 1;
		v->huge_own = 1;
		v->huge_stays = true;
	}
}

static inline void fill_mm(struct filler *f, struct mm *m)
{
	m->n_vmas = 6;
	m->vmas = arena_array(f->t->arena, struct vma, m->n_vmas);
	for (size_t i = 0; i < 6; i++)
		fill_vma(f, &m->vmas[i], i == 5 ? 0xffffffffff600000 : 0x400000 * (i + 1),
			 (enum vma_kind)(i + 1));
	m->n_guards = 2;
	m->guards = arena_array(f->t->arena, struct addr_range, 2);
	m->guards[0] = (struct addr_range){0x401000, 0x402000};
	m->guards[1] = (struct addr_range){0x402000, 0x409000};
	m->n_held = 2;
	m->held = arena_array(f->t->arena, uint64_t, 2);
	m->held[0] = 0x401000;
	m->held[1] = 0x7fff00002000;
	m->start_code = fill_u64(f);
	m->end_code = fill_u64(f);
	m->start_data = fill_u64(f);
	m->end_data = fill_u64(f);
	m->start_brk = fill_u64(f);
	m->brk = fill_u64(f);
	m->start_stack = fill_u64(f);
	m->arg_start = fill_u64(f);
	m->arg_end = fill_u64(f);
	m->env_start = fill_u64(f);
	m->env_end = fill_u64(f);
	FILL_BYTES(f, m->auxv, m->auxv_len, 320);
	m->exe_file = 1;
	m->dumpable = fill_s32(f);
	m->thp_disable = fill_bool(f);
	m->layout_digest = fill_u64(f);
}

static inline struct siginfo_rec *fill_pending(struct filler *f, size_t *n, size_t want)
{
	*n = want;
	return (struct siginfo_rec *)fill_bytes(f, want * 128);
}

static inline void fill_thread(struct filler *f, struct thread *th, pid_t tid)
{
	th->tid = tid;
	snprintf(th->comm, sizeof(th->comm), "thread %d", tid);
	FILL_BYTES(f, th->gpregs, th->gpregs_len, 216);
	FILL_BYTES(f, th->xstate, th->xstate_len, 2696);
	th->sigmask = fill_u64(f);
	th->pending = fill_pending(f, &th->n_pending, 2);
	th->altstack_sp = fill_u64(f);
	th->altstack_size = fill_u64(f);
	th->altstack_flags = fill_s32(f);
	th->clear_tid_va = fill_u64(f);
	th->robust_list_va = fill_u64(f);
	th->robust_list_len = fill_u64(f);
	th->rseq_va = fill_u64(f);
	th->rseq_len = fill_u32(f);
	th->rseq_sig = fill_u32(f);
	th->rseq_flags = fill_u32(f);
	th->sched_policy = fill_s32(f);
	th->sched_prio = fill_s32(f);
	th->nice = -7;
	th->sched_runtime = fill_u64(f);
	th->sched_deadline = fill_u64(f);
	th->sched_period = fill_u64(f);
	th->sched_flags = fill_u32(f);
	FILL_BYTES(f, th->affinity, th->affinity_len, 16);
	th->pdeathsig = fill_s32(f);
	th->timer_slack_ns = fill_u64(f);
	th->io_prio = fill_u32(f);
	th->no_new_privs = fill_bool(f);
	th->seccomp_mode = 2;
	th->n_seccomp_filters = 3;
	th->seccomp_filters = arena_array(f->t->arena, uint32_t, 3);
	th->seccomp_filters[1] = 1; /* 0, 1, 0 */
}

static inline void fill_creds(struct filler *f, struct creds *c)
{
	c->uid = fill_u32(f);
	c->euid = fill_u32(f);
	c->suid = fill_u32(f);
	c->fsuid = fill_u32(f);
	c->gid = fill_u32(f);
	c->egid = fill_u32(f);
	c->sgid = fill_u32(f);
	c->fsgid = fill_u32(f);
	c->n_groups = 3;
	c->groups = (uint32_t *)fill_bytes(f, 12);
	c->cap_inh = fill_u64(f);
	c->cap_prm = fill_u64(f);
	c->cap_eff = fill_u64(f);
	c->cap_bnd = fill_u64(f);
	c->cap_amb = fill_u64(f);
	c->securebits = fill_u32(f);
}

static inline void fill_timer(struct filler *f, struct posix_timer_rec *t)
{
	t->id = fill_s32(f);
	t->clockid = -6;
	t->notify = fill_s32(f);
	t->signo = fill_s32(f);
	t->notify_tid = 4243;
	t->sigval = fill_u64(f);
	t->interval_ns = fill_u64(f);
	t->value_ns = fill_u64(f);
	t->overrun = fill_s32(f);
}

static inline void fill_process(struct filler *f, struct process *p, pid_t pid, pid_t ppid)
{
	struct arena *a = f->t->arena;

	p->pid = pid;
	p->ppid = ppid;
	p->pgid = pid + 1000;
	p->sid = pid + 2000;
	p->exit_status = fill_s32(f);
	p->exit_signal = fill_u32(f);
	p->n_threads = 2;
	p->threads = arena_array(a, struct thread, 2);
	fill_thread(f, &p->threads[0], pid);
	fill_thread(f, &p->threads[1], pid + 1);
	fill_mm(f, &p->mm);
	for (size_t i = 0; i < TREE_NSIG; i++)
		p->sigactions[i] =
		    (struct sigaction_rec){fill_u64(f), fill_u64(f), fill_u64(f), fill_u64(f)};
	p->pending = fill_pending(f, &p->n_pending, 3);
	fill_creds(f, &p->creds);
	for (size_t i = 0; i < 16; i++)
		p->rlimits[i] = (struct rlimit_rec){fill_u64(f), i ? fill_u64(f) : UINT64_MAX};
	for (size_t i = 0; i < 3; i++)
		p->itimers[i] = (struct itimer_rec){fill_u64(f), fill_u64(f)};
	p->n_timers = 2;
	p->timers = arena_array(a, struct posix_timer_rec, 2);
	fill_timer(f, &p->timers[0]);
	fill_timer(f, &p->timers[1]);
	p->ctty = 8;
	p->n_locks = 2;
	p->locks = arena_array(a, struct file_lock, 2);
	p->locks[0] = (struct file_lock){0, LOCK_OFD, true, 7, UINT64_MAX};
	p->locks[1] = (struct file_lock){0, LOCK_POSIX, false, 0, 1ull << 40};
	p->n_fds = 3;
	p->fds = arena_array(a, struct fd_entry, 3);
	p->fds[0] = (struct fd_entry){0, 3, false};
	p->fds[1] = (struct fd_entry){1, 4, true};
	p->fds[2] = (struct fd_entry){1023, 0, true};
	p->cwd = fill_path(f);
	p->cwd_carried = fill_bool(f);
	p->root = fill_path(f);
	p->umask = fill_u32(f);
	p->oom_score_adj = -500;
	p->coredump_bits = 0x4c;
	p->stop_sig = 20;
	p->stop_told = true;
	p->child_subreaper = fill_bool(f);
	p->personality = fill_u32(f);
}

static inline void fill_file_owner(struct filler *f, struct file *e)
{
	e->uid = fill_u32(f);
	e->gid = fill_u32(f);
	e->cred_pid = 4321;
	e->cred_uid = fill_u32(f);
	e->cred_gid = fill_u32(f);
	e->peer = UINT32_MAX;
	e->waits_at = UINT32_MAX;
	e->waits_nth = fill_u32(f);
	e->bound = fill_bool(f);
	e->name_ino = fill_u64(f);
	e->name_dev = fill_u64(f);
	e->peer_ino = fill_u64(f);
	e->connected = true;
	e->sock_shutdown = fill_u32(f);
	e->sock_error = 104;
	e->tcp_end = TCP_END_REFUSED;
}

static inline void fill_tcp(struct filler *f, struct tcp_conn *c)
{
	c->state = 8;
	c->options = fill_u32(f);
	c->snd_wscale = 7;
	c->rcv_wscale = 14;
	c->mss = 1448;
	c->rcv_seq = fill_u32(f);
	c->snd_seq = fill_u32(f);
	c->unsent = 33;
	c->timestamp = fill_u32(f);
	c->timestamp_ns = fill_u64(f);
	c->has_window = fill_bool(f);
	c->snd_wl1 = fill_u32(f);
	c->snd_wnd = fill_u32(f);
	c->max_window = fill_u32(f);
	c->rcv_wnd = fill_u32(f);
	c->rcv_wup = fill_u32(f);
	c->sndbuf = fill_u32(f) >> 1;
	c->rcvbuf = fill_u32(f) >> 1;
	c->buf_lock = fill_u32(f);
	FILL_BYTES(f, c->in, c->in_len, 77);
	FILL_BYTES(f, c->out, c->out_len, 44);
	c->has_urgent = fill_bool(f);
	c->urgent_at = 76;
	c->urgent_read = fill_bool(f);
	c->read_shut = fill_bool(f);
}

static inline void fill_udp(struct filler *f, struct file *e)
{
	struct arena *a = f->t->arena;
	static const uint8_t sources[2][16] = {{1, 2, 3, 4}, {5, 6, 7, 8}};

	e->n_datagrams = 2;
	e->datagrams = arena_array(a, struct datagram, 2);
	for (uint8_t i = 0; i < 2; i++) {
		struct datagram *d = &e->datagrams[i];

		FILL_BYTES(f, d->from, d->from_len, 16);
		FILL_BYTES(f, d->data, d->len, 5 + i);
		memset(d->to, 0xa0 + i, 16);
		d->ttl = 200 + i;
		d->tos = 100 + i;
	}
	e->n_groups = 1;
	e->groups = arena_array(a, struct membership, 1);
	e->groups[0] = (struct membership){
	    .dev = "eth7", .family = 2, .include = true, .sources = sources, .n_sources = 2};
	memset(e->groups[0].group, 0xe7, 16);
}

static inline void fill_messages(struct filler *f, struct file *e)
{
	struct arena *a = f->t->arena;

	e->n_messages = 2;
	e->messages = arena_array(a, struct unix_message, 2);
	for (uint32_t i = 0; i < 2; i++) {
		struct unix_message *m = &e->messages[i];

		FILL_BYTES(f, m->data, m->len, 8 + i);
		FILL_BYTES(f, m->from, m->from_len, 20 + i);
		m->has_cred = fill_bool(f);
		m->cred_pid = (int32_t)(700 + i);
		m->cred_uid = fill_u32(f);
		m->cred_gid = fill_u32(f);
		m->n_files = 2;
		m->files = arena_array(a, uint32_t, 2);
		m->files[0] = i;
		m->files[1] = 3;
	}
}

static inline void fill_file(struct filler *f, struct file *e, enum file_kind kind)
{
	struct arena *a = f->t->arena;

	e->kind = kind;
	e->flags = fill_u32(f);
	e->pos = fill_u64(f);
	e->owner_type = fill_s32(f);
	e->owner_pid = -77;
	e->owner_sig = fill_s32(f);
	e->path = fill_path(f);
	e->size = fill_u64(f);
	e->ino = fill_u64(f);
	e->dev = fill_u64(f);
	e->mtime_ns = fill_u64(f);
	e->carried = fill_bool(f);
	e->rdev = fill_u64(f);
	e->mode = fill_u32(f);
	e->pipe_ino = fill_u64(f);
	e->pipe_has_data = fill_bool(f);
	FILL_BYTES(f, e->data, e->data_len, 99);
	e->pipe_capacity = fill_u32(f);
	e->pipe_packet = fill_bool(f);
	e->pipe_unwritten = fill_bool(f);
	e->counter = fill_u64(f);
	e->semaphore = fill_bool(f);
	e->n_targets = 2;
	e->targets = arena_array(a, struct epoll_target, 2);
	for (size_t i = 0; i < 2; i++)
		e->targets[i] = (struct epoll_target){(int32_t)i * 5, (uint32_t)i + 1, fill_u32(f),
						      fill_u64(f)};
	e->clockid = fill_s32(f);
	e->settime_flags = fill_u32(f);
	e->value_ns = fill_u64(f);
	e->interval_ns = fill_u64(f);
	e->ticks = fill_u64(f);
	e->sigmask = fill_u64(f);
	e->object = kind == FILE_MEMFD || kind == FILE_UNLINKED ? 1 : UINT32_MAX;
	e->sock_family = fill_s32(f);
	e->sock_type = fill_s32(f);
	e->sock_protocol = fill_s32(f);
	e->backlog = fill_s32(f);
	FILL_BYTES(f, e->sockaddr, e->sockaddr_len, 28);
	e->n_opts = 2;
	e->opts = arena_array(a, struct sockopt_rec, 2);
	for (size_t i = 0; i < 2; i++) {
		e->opts[i].level = fill_s32(f);
		e->opts[i].name = fill_s32(f);
		FILL_BYTES(f, e->opts[i].value, e->opts[i].len, 4 + (uint32_t)i);
	}
	e->n_filter = 3;
	e->filter = arena_array(a, uint64_t, 3);
	for (size_t i = 0; i < 3; i++)
		e->filter[i] = fill_u64(f);
	e->filter_locked = true;
	e->n_program = 2;
	e->program = arena_array(a, uint64_t, 2);
	for (size_t i = 0; i < 2; i++)
		e->program[i] = fill_u64(f);
	e->program_name = "port_filter";
	e->program_gpl = true;
	e->reuse_group = fill_u32(f);
	e->reuse_place = 1 + fill_u32(f) % 2;
	e->n_reuse_code = 1;
	e->reuse_code = arena_array(a, uint64_t, 1);
	e->reuse_code[0] = fill_u64(f);
	fill_udp(f, e);
	fill_file_owner(f, e);
	e->tty = file_is_terminal(kind) ? 7 : 0;
	FILL_BYTES(f, e->peeraddr, e->peeraddr_len, 27);
	if (kind != FILE_TCP_CONN)
		return;
	e->tcp = arena_array(a, struct tcp_conn, 1);
	fill_tcp(f, e->tcp);
}

static inline void fill_tables(struct filler *f)
{
	struct tree *t = f->t;

	t->n_mapped_files = 2;
	t->mapped_files = arena_array(t->arena, struct mapped_file, 2);
	for (size_t i = 0; i < 2; i++) {
		struct mapped_file *m = &t->mapped_files[i];

		m->path = fill_path(f);
		m->size = fill_u64(f);
		m->ino = fill_u64(f);
		m->dev = fill_u64(f);
		m->mtime_ns = fill_u64(f);
		m->st_dev = fill_u64(f);
		m->carried = fill_bool(f);
		m->writable = fill_bool(f);
		m->build_id_len = i ? 20 : 8;
		memcpy(m->build_id, fill_bytes(f, 20), m->build_id_len);
	}
	t->n_objects = 2;
	t->objects = arena_array(t->arena, struct shared_object, 2);
	for (size_t i = 0; i < 2; i++) {
		struct shared_object *o = &t->objects[i];

		o->kind = i ? OBJ_MEMFD : OBJ_SHARED_ANON;
		o->name = i ? "" : NULL; /* memfd_create("") is allowed */
		o->size = fill_u64(f) >> 1;
		o->seals = fill_u32(f);
		o->ino = fill_u64(f);
		o->dev = fill_u64(f);
		o->ipc_id = 32768 + (int)i;
		o->ipc_key = -7;
		o->uid = fill_u32(f);
		o->gid = fill_u32(f);
		o->mode = 0640;
		o->ipc_removed = true;
		o->ipc_cpid = 1234;
		o->in_memory = true;
		if (o->kind != OBJ_UNLINKED) {
			o->page_bytes = 2 << 20;
			o->size -= o->size % o->page_bytes;
		}
	}
}

static inline void fill_seccomp(struct filler *f)
{
	f->t->n_seccomp = 2;
	f->t->seccomp = arena_array(f->t->arena, struct seccomp_filter, 2);
	for (size_t i = 0; i < 2; i++) {
		FILL_BYTES(f, f->t->seccomp[i].insns, f->t->seccomp[i].insns_len, 16);
		f->t->seccomp[i].flags = i ? 2 : 0;
	}
}

static inline void fill_sets(struct filler *f)
{
	struct arena *a = f->t->arena;

	f->t->n_sets = 2;
	f->t->sets = arena_array(a, struct sysv_set, 2);
	for (uint32_t i = 0; i < 2; i++) {
		struct sysv_set *s = &f->t->sets[i];

		*s = (struct sysv_set){.kind = i ? SYSV_MSG : SYSV_SEM,
				       .id = (int32_t)(70 + i),
				       .key = fill_s32(f),
				       .uid = fill_u32(f),
				       .gid = fill_u32(f),
				       .mode = 0640 + i,
				       .max_bytes = fill_u64(f),
				       .sender = 4242,
				       .receiver = 300,
				       .n = i ? 0 : 2,
				       .n_messages = i};
		s->values = arena_array(a, uint32_t, 2);
		s->pids = arena_array(a, int32_t, 2);
		s->values[0] = 32767;
		s->values[1] = 7;
		s->pids[1] = 4242;
		s->n_undo = i ? 0 : 2;
		s->undo = arena_array(a, struct sysv_undo, 2);
		s->undo[0] = (struct sysv_undo){4242, 1, -32767};
		s->undo[1] = (struct sysv_undo){300, 0, 5};
		s->messages = arena_array(a, struct sysv_message, 1);
		s->messages[0].type = 1234567890123;
		FILL_BYTES(f, s->messages[0].data, s->messages[0].len, 17);
	}
}

static inline void fill_ttys(struct filler *f)
{
	struct tty *y = arena_array(f->t->arena, struct tty, 1);

	f->t->ttys = y;
	f->t->n_ttys = 1;
	y->number = 7;
	y->uid = fill_u32(f);
	y->gid = fill_u32(f);
	y->mode = 0620;
	y->locked = y->packet = y->exclusive = y->opened = y->closed = y->stopped = true;
	y->sid = 4242;
	y->pgrp = 4250;
	memcpy(y->termios, fill_bytes(f, sizeof(y->termios)), sizeof(y->termios));
	y->rows = 24, y->cols = 80, y->xpixel = 1, y->ypixel = 2;
	FILL_BYTES(f, y->input, y->input_len, 30);
	FILL_BYTES(f, y->output, y->output_len, 20);
	y->n_lines = 2;
	y->lines = arena_array(f->t->arena, uint32_t, 2);
	y->lines[0] = 1; /* end of file */
	y->lines[1] = 11 << 1;
}

static inline void same_tty(const struct tty *a, const struct tty *b)
{
	assert_true(a->number == b->number && a->uid == b->uid && a->gid == b->gid);
	assert_true(a->mode == b->mode && a->locked == b->locked && a->packet == b->packet);
	assert_true(a->exclusive == b->exclusive && a->opened == b->opened);
	assert_true(a->closed == b->closed && a->stopped == b->stopped && a->sid == b->sid);
	assert_true(a->pgrp == b->pgrp && a->rows == b->rows && a->cols == b->cols);
	assert_true(a->xpixel == b->xpixel && a->ypixel == b->ypixel);
	assert_memory_equal(a->termios, b->termios, sizeof(a->termios));
	assert_true(a->input_len == b->input_len && a->output_len == b->output_len);
	assert_memory_equal(a->input, b->input, a->input_len);
	assert_memory_equal(a->output, b->output, a->output_len);
	assert_true(a->n_lines == b->n_lines);
	assert_memory_equal(a->lines, b->lines, a->n_lines * sizeof(*a->lines));
}

/* One file of every kind, and the other end of the unix connection. */
enum { FILL_OTHER_END = FILE_INOTIFY, FILL_FILES };

/* Three processes (one a zombie), a file of every kind, a mapping of every kind. */
static inline struct tree *fill_tree(void)
{
	struct filler f = {.t = tree_new()};
	struct tree *t = f.t;

	t->root_pid = 4242;
	t->n_procs = 3;
	t->procs = arena_array(t->arena, struct process, 3);
	fill_process(&f, &t->procs[0], 4242, 17);
	t->procs[1] = (struct process){.pid = 4250,
				       .ppid = 4242,
				       .pgid = 4242,
				       .sid = 0,
				       .zombie = true,
				       .exit_status = 0x0b00,
				       .exit_signal = 17};
	fill_process(&f, &t->procs[2], 300, 4242);
	t->n_files = FILL_FILES;
	t->files = arena_array(t->arena, struct file, t->n_files);
	for (size_t i = 0; i < t->n_files; i++)
		fill_file(&f, &t->files[i],
			  i < FILL_OTHER_END ? (enum file_kind)(i + 1) : FILE_UNIX_CONN);
	fill_messages(&f, &t->files[FILL_OTHER_END]);
	t->files[FILL_OTHER_END].waits_at = FILE_UNIX_LISTEN - 1;
	t->files[FILE_TCP_CONN - 1].waits_at = FILE_TCP_LISTEN - 1;
	t->files[FILE_UNIX_LISTEN - 1].sock_type = t->files[FILE_UNIX_CONN - 1].sock_type;
	t->files[FILL_OTHER_END].peer = FILE_UNIX_CONN - 1;
	t->files[FILE_UNIX_CONN - 1].peer = FILL_OTHER_END;
	t->files[FILL_OTHER_END].sock_type = t->files[FILE_UNIX_CONN - 1].sock_type;
	fill_tables(&f);
	fill_seccomp(&f);
	fill_ttys(&f);
	fill_sets(&f);
	t->n_moved = 2;
	t->switched = true;
	t->moved = arena_array(t->arena, struct devaddr, 2);
	t->moved[0] = (struct devaddr){2, {192, 0, 2, 7}, 24, "eth0"};
	t->moved[1] = (struct devaddr){10, {0x20, 1, 0xd, 0xb8, [15] = 1}, 64, "bond0.17"};
	t->xfeatures = fill_u64(&f);
	t->xcr0 = fill_u64(&f);
	memcpy(t->vdso_digest, fill_bytes(&f, 16), 16);
	t->clock_monotonic_ns = fill_u64(&f);
	t->clock_boottime_ns = fill_u64(&f);
	t->task_monotonic_offset_ns = (int64_t)fill_u64(&f);
	t->task_boottime_offset_ns = -5;
	memset(t->kernel_release, 'k', 64);
	memset(t->hostname, 'h', 64);
	memset(t->boot_id, 'b', 36);
	return t;
}

/* ---- comparison ---- */

#define SAME(f) assert_true(a->f == b->f)
#define SAME_STR(f)                                                                                \
	do {                                                                                       \
		assert_int_equal(!a->f, !b->f);                                                    \
		if (a->f)                                                                          \
			assert_string_equal(a->f, b->f);                                           \
	} while (0)
#define SAME_BYTES(f, n)                                                                           \
	do {                                                                                       \
		SAME(n);                                                                           \
		if (a->n)                                                                          \
			assert_memory_equal(a->f, b->f, (size_t)a->n * sizeof(*a->f));             \
	} while (0)
#define SAME_EACH(f, n, fn)                                                                        \
	do {                                                                                       \
		SAME(n);                                                                           \
		for (size_t i_ = 0; i_ < a->n; i_++)                                               \
			fn(&a->f[i_], &b->f[i_]);                                                  \
	} while (0)

static inline void same_vma(const struct vma *a, const struct vma *b)
{
	SAME(start), SAME(end), SAME(offset), SAME(prot), SAME(kind), SAME(flags);
	SAME(file), SAME(object), SAME(ino), SAME(dev);
	SAME(page_bytes), SAME(huge_there), SAME(huge_own), SAME(huge_stays);
	SAME_STR(name);
}

static inline void same_mm(const struct mm *a, const struct mm *b)
{
	SAME_EACH(vmas, n_vmas, same_vma);
	SAME_BYTES(guards, n_guards);
	SAME_BYTES(held, n_held);
	SAME(start_code), SAME(end_code), SAME(start_data), SAME(end_data), SAME(start_brk);
	SAME(brk), SAME(start_stack), SAME(arg_start), SAME(arg_end), SAME(env_start);
	SAME(env_end), SAME(exe_file), SAME(exe_object), SAME(dumpable), SAME(thp_disable),
	    SAME(layout_digest);
	SAME_BYTES(auxv, auxv_len);
}

static inline void same_thread(const struct thread *a, const struct thread *b)
{
	SAME(tid), SAME(sigmask), SAME(altstack_sp), SAME(altstack_size), SAME(altstack_flags);
	SAME(clear_tid_va), SAME(robust_list_va), SAME(robust_list_len), SAME(rseq_va);
	SAME(rseq_len), SAME(rseq_sig), SAME(rseq_flags), SAME(sched_policy), SAME(sched_prio);
	SAME(nice), SAME(sched_runtime), SAME(sched_deadline), SAME(sched_period);
	SAME(sched_flags), SAME(pdeathsig), SAME(timer_slack_ns), SAME(io_prio);
	SAME(no_new_privs), SAME(seccomp_mode);
	SAME_BYTES(seccomp_filters, n_seccomp_filters);
	assert_string_equal(a->comm, b->comm);
	SAME_BYTES(gpregs, gpregs_len);
	SAME_BYTES(xstate, xstate_len);
	SAME_BYTES(pending, n_pending);
	SAME_BYTES(affinity, affinity_len);
}

static inline void same_creds(const struct creds *a, const struct creds *b)
{
	SAME(uid), SAME(euid), SAME(suid), SAME(fsuid), SAME(gid), SAME(egid), SAME(sgid);
	SAME(fsgid), SAME(cap_inh), SAME(cap_prm), SAME(cap_eff), SAME(cap_bnd), SAME(cap_amb);
	SAME(securebits);
	SAME_BYTES(groups, n_groups);
}

static inline void same_timer(const struct posix_timer_rec *a, const struct posix_timer_rec *b)
{
	SAME(id), SAME(clockid), SAME(notify), SAME(signo), SAME(notify_tid), SAME(sigval);
	SAME(interval_ns), SAME(value_ns), SAME(overrun);
}

static inline void same_fd(const struct fd_entry *a, const struct fd_entry *b)
{
	SAME(fd), SAME(file), SAME(cloexec);
}

static inline void same_lock(const struct file_lock *a, const struct file_lock *b)
{
	SAME(fd), SAME(kind), SAME(write), SAME(start), SAME(end);
}

static inline void same_process(const struct process *a, const struct process *b)
{
	SAME(pid), SAME(ppid), SAME(pgid), SAME(sid), SAME(zombie), SAME(exit_status);
	SAME(exit_signal);
	SAME_EACH(threads, n_threads, same_thread);
	same_mm(&a->mm, &b->mm);
	assert_memory_equal(a->sigactions, b->sigactions, sizeof(a->sigactions));
	SAME_BYTES(pending, n_pending);
	same_creds(&a->creds, &b->creds);
	assert_memory_equal(a->rlimits, b->rlimits, sizeof(a->rlimits));
	assert_memory_equal(a->itimers, b->itimers, sizeof(a->itimers));
	SAME_EACH(timers, n_timers, same_timer);
	SAME_EACH(fds, n_fds, same_fd);
	SAME_EACH(locks, n_locks, same_lock);
	SAME_STR(cwd);
	SAME(cwd_carried);
	SAME_STR(root);
	SAME(umask), SAME(oom_score_adj), SAME(child_subreaper), SAME(personality);
	SAME(ctty);
	SAME(umask), SAME(oom_score_adj), SAME(coredump_bits), SAME(stop_sig), SAME(stop_told),
	    SAME(child_subreaper), SAME(personality);
}

static inline void same_target(const struct epoll_target *a, const struct epoll_target *b)
{
	SAME(fd), SAME(file), SAME(events), SAME(data);
}

static inline void same_opt(const struct sockopt_rec *a, const struct sockopt_rec *b)
{
	SAME(level), SAME(name);
	SAME_BYTES(value, len);
}

static inline void same_tcp(const struct tcp_conn *a, const struct tcp_conn *b)
{
	SAME(state), SAME(options), SAME(snd_wscale), SAME(rcv_wscale), SAME(mss), SAME(rcv_seq);
	SAME(snd_seq), SAME(unsent), SAME(timestamp), SAME(timestamp_ns), SAME(has_window);
	SAME(snd_wl1), SAME(snd_wnd), SAME(max_window), SAME(rcv_wnd), SAME(rcv_wup);
	SAME(sndbuf), SAME(rcvbuf), SAME(buf_lock), SAME(has_urgent), SAME(urgent_at);
	SAME(urgent_read);
	SAME(read_shut);
	SAME_BYTES(in, in_len);
	SAME_BYTES(out, out_len);
}

static inline void same_datagram(const struct datagram *a, const struct datagram *b)
{
	SAME(ttl), SAME(tos);
	SAME_BYTES(from, from_len);
	SAME_BYTES(data, len);
	assert_memory_equal(a->to, b->to, 16);
}

static inline void same_message(const struct unix_message *a, const struct unix_message *b)
{
	SAME(has_cred), SAME(cred_pid), SAME(cred_uid), SAME(cred_gid), SAME(n_files);
	SAME_BYTES(from, from_len);
	SAME_BYTES(data, len);
	assert_memory_equal(a->files, b->files, a->n_files * sizeof(*a->files));
}

static inline void same_sysv_message(const struct sysv_message *a, const struct sysv_message *b)
{
	SAME(type);
	SAME_BYTES(data, len);
}

static inline void same_set(const struct sysv_set *a, const struct sysv_set *b)
{
	SAME(kind), SAME(id), SAME(key), SAME(uid), SAME(gid), SAME(mode), SAME(n);
	SAME(max_bytes), SAME(sender), SAME(receiver);
	assert_memory_equal(a->values, b->values, a->n * sizeof(*a->values));
	assert_memory_equal(a->pids, b->pids, a->n * sizeof(*a->pids));
	SAME(n_undo);
	assert_memory_equal(a->undo, b->undo, a->n_undo * sizeof(*a->undo));
	SAME_EACH(messages, n_messages, same_sysv_message);
}

static inline void same_group(const struct membership *a, const struct membership *b)
{
	SAME(family), SAME(include), SAME(n_sources);
	assert_string_equal(a->dev, b->dev);
	assert_memory_equal(a->group, b->group, 16);
	assert_memory_equal(a->sources, b->sources, a->n_sources * 16);
}

static inline void same_file(const struct file *a, const struct file *b)
{
	SAME(kind), SAME(flags), SAME(pos), SAME(owner_type), SAME(owner_pid), SAME(owner_sig);
	SAME(size), SAME(ino), SAME(dev), SAME(mtime_ns), SAME(rdev), SAME(mode), SAME(pipe_ino);
	SAME(carried);
	SAME(pipe_has_data), SAME(pipe_capacity), SAME(pipe_packet), SAME(counter);
	SAME(pipe_unwritten);
	SAME(semaphore), SAME(clockid), SAME(settime_flags), SAME(value_ns), SAME(interval_ns);
	SAME(ticks), SAME(sigmask), SAME(object), SAME(sock_family), SAME(sock_type);
	SAME(sock_protocol), SAME(backlog), SAME(uid), SAME(gid), SAME(cred_pid);
	SAME(cred_uid), SAME(cred_gid), SAME(peer), SAME(peer_ino), SAME(connected);
	SAME(sock_shutdown), SAME(sock_error), SAME(tty), SAME(tcp_end);
	SAME_STR(path);
	SAME_BYTES(data, data_len);
	SAME_EACH(targets, n_targets, same_target);
	SAME_BYTES(sockaddr, sockaddr_len);
	SAME_BYTES(peeraddr, peeraddr_len);
	SAME_EACH(opts, n_opts, same_opt);
	SAME_EACH(datagrams, n_datagrams, same_datagram);
	SAME_EACH(messages, n_messages, same_message);
	if (a->kind == FILE_UNIX_CONN || a->kind == FILE_TCP_CONN)
		SAME(waits_at);
	SAME(waits_nth), SAME(bound), SAME(name_ino), SAME(name_dev);
	SAME_EACH(groups, n_groups, same_group);
	SAME(n_filter), SAME(filter_locked), SAME(n_program), SAME(program_gpl);
	assert_memory_equal(a->program, b->program, a->n_program * sizeof(*a->program));
	SAME_STR(program_name);
	SAME(reuse_group), SAME(reuse_place), SAME(n_reuse_code);
	assert_memory_equal(a->reuse_code, b->reuse_code, a->n_reuse_code * sizeof(*a->reuse_code));
	assert_memory_equal(a->filter, b->filter, a->n_filter * sizeof(*a->filter));
	assert_int_equal(!a->tcp, !b->tcp);
	if (a->tcp)
		same_tcp(a->tcp, b->tcp);
}

static inline void same_mapped_file(const struct mapped_file *a, const struct mapped_file *b)
{
	SAME_STR(path);
	SAME(size), SAME(ino), SAME(dev), SAME(mtime_ns), SAME(st_dev), SAME(writable),
	    SAME(carried), SAME(carried), SAME(build_id_len);
	assert_memory_equal(a->build_id, b->build_id, sizeof(a->build_id));
}

static inline void same_object(const struct shared_object *a, const struct shared_object *b)
{
	SAME(kind), SAME(size), SAME(seals), SAME(ino), SAME(dev), SAME(ipc_id), SAME(ipc_key);
	SAME(uid), SAME(gid), SAME(mode), SAME(ipc_removed), SAME(ipc_cpid), SAME(page_bytes);
	SAME(in_memory);
	SAME_STR(name);
}

static inline void same_filter(const struct seccomp_filter *a, const struct seccomp_filter *b)
{
	SAME(flags);
	SAME_BYTES(insns, insns_len);
}

static inline void same_tree(const struct tree *a, const struct tree *b)
{
	SAME(root_pid), SAME(xfeatures), SAME(xcr0), SAME(clock_monotonic_ns);
	SAME(clock_boottime_ns), SAME(task_monotonic_offset_ns), SAME(task_boottime_offset_ns);
	SAME_EACH(procs, n_procs, same_process);
	SAME_EACH(files, n_files, same_file);
	SAME_EACH(mapped_files, n_mapped_files, same_mapped_file);
	SAME_EACH(objects, n_objects, same_object);
	SAME_EACH(seccomp, n_seccomp, same_filter);
	SAME_EACH(ttys, n_ttys, same_tty);
	SAME_EACH(sets, n_sets, same_set);
	SAME(n_moved);
	SAME(switched);
	for (size_t i = 0; i < a->n_moved; i++) {
		char x[DEVADDR_TEXT], y[DEVADDR_TEXT];

		assert_string_equal(devaddr_text(&a->moved[i], x), devaddr_text(&b->moved[i], y));
	}
	assert_memory_equal(a->vdso_digest, b->vdso_digest, sizeof(a->vdso_digest));
	assert_string_equal(a->kernel_release, b->kernel_release);
	assert_string_equal(a->hostname, b->hostname);
	assert_string_equal(a->boot_id, b->boot_id);
}
