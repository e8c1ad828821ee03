/* A source tree and shells for the tests of open files: processes forked by the test, and an rtask
 * whose calls a forked process runs, one at a time, as the blob does in a shell. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "resource/file_kind.h"

/* ---- a task that runs system calls for us ---- */

enum { SHELL_SLOT = 3, MAX_PROCS = 4 };

struct rtask {
	unsigned int todo, done; /* futex words */
	long nr, ret;
	unsigned long args[6];
	pid_t tid;
	struct rcall last;
	size_t scratch_used;
	int failed;
	char failure[200];
	unsigned long n_calls;
	_Alignas(16) char scratch[RTASK_SCRATCH_BYTES];
};

static inline void futex_wait(unsigned int *word, unsigned int value)
{
	syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static inline void futex_wake(unsigned int *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static inline void shell_loop(struct rtask *t)
{
	for (unsigned int n = 1;; n++) {
		while (__atomic_load_n(&t->todo, __ATOMIC_SEQ_CST) != n)
			futex_wait(&t->todo, n - 1);
		long r = syscall(t->nr, t->args[0], t->args[1], t->args[2], t->args[3], t->args[4],
				 t->args[5]);
		t->ret = r < 0 ? -errno : r;
		__atomic_store_n(&t->done, n, __ATOMIC_SEQ_CST);
		futex_wake(&t->done);
	}
}

/* A shell, with a pidfd of us at SHELL_SLOT. */
static inline struct rtask *shell_new(void)
{
	struct rtask *t =
	    mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(t, MAP_FAILED);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int fd = (int)syscall(SYS_pidfd_open, getppid(), 0);
		if (fd != SHELL_SLOT) {
			dup3(fd, SHELL_SLOT, O_CLOEXEC);
			close(fd);
		}
		shell_loop(t);
	}
	t->tid = pid;
	return t;
}

static inline void reap(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static inline void shell_free(struct rtask *t)
{
	reap(t->tid);
	munmap(t, sizeof(*t));
}

pid_t rtask_tid(const struct rtask *t)
{
	return t->tid;
}

struct rcall *rtask_queue(struct rtask *t, const char *what, long nr, uint64_t a0, uint64_t a1,
			  uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
	const uint64_t args[6] = {a0, a1, a2, a3, a4, a5};
	unsigned int n = t->todo + 1;

	t->n_calls++;
	t->nr = nr;
	for (int i = 0; i < 6; i++)
		t->args[i] = t->last.args[i] = args[i];
	__atomic_store_n(&t->todo, n, __ATOMIC_SEQ_CST);
	futex_wake(&t->todo);
	while (__atomic_load_n(&t->done, __ATOMIC_SEQ_CST) != n)
		futex_wait(&t->done, n - 1);
	t->last.nr = nr;
	t->last.ret = t->ret;
	if (what && t->ret < 0 && !t->failed) {
		t->failed = (int)-t->ret;
		snprintf(t->failure, sizeof(t->failure), "%s(%ld, %ld, %ld)", what, (long)a0,
			 (long)a1, (long)a2);
	}
	return &t->last;
}

int rtask_run(struct rtask *t, struct cr_err *err)
{
	int code = t->failed;

	t->failed = 0;
	return code ? cr_err_set(err, CR_ERR_KERNEL, code, "%s: %s", t->failure, strerror(code))
		    : 0;
}

long rtask_syscall(struct rtask *t, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		   uint64_t a4, uint64_t a5)
{
	return rtask_queue(t, NULL, nr, a0, a1, a2, a3, a4, a5)->ret;
}

void *rtask_scratch(struct rtask *t, size_t bytes, uint64_t *ret_va)
{
	size_t need = ALIGN_UP(bytes, (size_t)16);

	if (need > sizeof(t->scratch) - t->scratch_used)
		return NULL;
	char *p = t->scratch + t->scratch_used;
	memset(p, 0, need);
	t->scratch_used += need;
	*ret_va = (uint64_t)(uintptr_t)p;
	return p;
}

void *rtask_scratch_copy(struct rtask *t, const void *p, size_t bytes, uint64_t *ret_va)
{
	void *q = rtask_scratch(t, bytes, ret_va);

	return q ? memcpy(q, p, bytes) : NULL;
}

void rtask_scratch_reset(struct rtask *t)
{
	t->scratch_used = 0;
}

/* ---- a directory for the files of a test ---- */

static char test_dir[] = "/tmp/test_files.XXXXXX";

static inline const char *at_dir(const char *name)
{
	static char path[4][256];
	static int k;

	k = (k + 1) % 4;
	snprintf(path[k], sizeof(path[k]), "%s/%s", test_dir, name);
	return path[k];
}

static inline int make_test_dir(void **state)
{
	(void)state;
	return mkdtemp(test_dir) ? 0 : -1;
}

static inline int remove_test_dir(void **state)
{
	char cmd[64];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -r %s", test_dir);
	return system(cmd);
}

/* ---- source processes ---- */

struct source {
	pid_t pid[MAX_PROCS];
	int n;
	unsigned int ready, forked_ready, step; /* futex words */
	void (*next)(struct source *);
};

/* In a forked process: descriptor fd becomes number n. */
static inline int put_at(int fd, int n, int flags)
{
	if (fd < 0 || fd == n)
		_exit(91);
	if (dup3(fd, n, flags) < 0)
		_exit(92);
	close(fd);
	return n;
}

static inline void say_ready(unsigned int *word)
{
	__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	futex_wake(word);
}

static inline void wait_ready(unsigned int *word, pid_t pid)
{
	const struct timespec slice = {0, 50000000};
	int st;

	while (!__atomic_load_n(word, __ATOMIC_SEQ_CST)) {
		syscall(SYS_futex, word, FUTEX_WAIT, 0, &slice, NULL, 0);
		if (waitpid(pid, &st, WNOHANG) == pid)
			fail_msg("the source process ended: status %x", st);
	}
}

/* Runs prepare(s) in a new process with nothing open but descriptors 0 to 2 on /dev/null; it may
 * fork others, storing their pids in shared memory. */
static inline struct source *source_new(void (*prepare)(struct source *))
{
	struct source *s =
	    mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(s, MAP_FAILED);
	s->n = 1;
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close_range(0, ~0u, 0);
		for (int i = 0; i < 3; i++)
			if (open("/dev/null", O_RDWR) != i)
				_exit(90);
		s->pid[0] = getpid();
		prepare(s);
		say_ready(&s->ready);
		for (;;) {
			while (!__atomic_load_n(&s->step, __ATOMIC_SEQ_CST))
				futex_wait(&s->step, 0);
			s->step = 0;
			s->next(s);
			say_ready(&s->ready);
		}
	}
	wait_ready(&s->ready, pid);
	return s;
}

/* The first process runs next(s). */
static inline void source_step(struct source *s, void (*next)(struct source *))
{
	s->ready = 0;
	s->next = next;
	say_ready(&s->step);
	wait_ready(&s->ready, s->pid[0]);
}

/* In the source: another process with the same descriptors. */
static inline void source_fork(struct source *s)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		say_ready(&s->forked_ready);
		for (;;)
			pause();
	}
	wait_ready(&s->forked_ready, pid);
	s->forked_ready = 0;
	s->pid[s->n++] = pid;
}

/* And waits until all they had open is closed. */
static inline void source_kill(struct source *s)
{
	for (int i = s->n - 1; i >= 0; i--) {
		struct pollfd pfd = {.fd = (int)syscall(SYS_pidfd_open, s->pid[i], 0),
				     .events = POLLIN};

		kill(s->pid[i], SIGKILL);
		poll(&pfd, 1, 5000);
		close(pfd.fd);
	}
	if (s->n)
		waitpid(s->pid[0], NULL, 0);
	s->n = 0;
}

static inline void source_free(struct source *s)
{
	source_kill(s);
	munmap(s, sizeof(*s));
}

/* ---- capture ---- */

struct captured {
	struct tree *t;
	struct refusals refused;
	struct cr_err err;
	int r;
};

static inline void capture_pids(struct captured *out, const pid_t *pids, int n,
				const struct tree *prev, bool exact)
{
	struct tree *t = tree_new();
	struct capture_proc procs[MAX_PROCS] = {0};
	struct capture c = {.tree = t,
			    .prev = prev,
			    .refused = &out->refused,
			    .exact = exact,
			    .tcp = TCP_MODE_CLOSE,
			    .procs = procs};

	memset(out, 0, sizeof(*out));
	assert_non_null(t);
	t->procs = arena_array(t->arena, struct process, (size_t)n);
	t->n_procs = (size_t)n;
	t->root_pid = pids[0];
	for (int i = 0; i < n; i++) {
		struct process *p = &t->procs[i];

		p->pid = pids[i];
		p->ppid = i ? pids[0] : 1;
		p->threads = arena_new_of(t->arena, struct thread);
		p->threads[0].tid = pids[i];
		p->n_threads = 1;
		procs[i] =
		    (struct capture_proc){.p = p,
					  .prev = prev ? tree_find_process(prev, pids[i]) : NULL,
					  .pidfd = (int)syscall(SYS_pidfd_open, pids[i], 0)};
		assert_true(procs[i].pidfd >= 0);
	}
	out->t = t;
	out->r = files_capture(&c, &out->err);
	for (int i = 0; i < n; i++)
		close(procs[i].pidfd);
}

static inline void captured_done(struct captured *c)
{
	tree_free(c->t);
	refusals_done(&c->refused);
}

static inline const char *why_refused(const struct captured *c)
{
	return c->r ? c->err.msg : c->refused.list.n ? c->refused.list.v[0].why : "";
}

static inline void assert_clean(const struct captured *c)
{
	if (c->r || c->refused.list.n)
		fail_msg("capture: %d, %s", c->r, why_refused(c));
}

/* p's description under that number. */
static inline const struct file *file_at(const struct tree *t, size_t proc, int fd)
{
	const struct fd_entry *e = process_fd(&t->procs[proc], fd);

	if (!e)
		fail_msg("descriptor %d is missing", fd);
	return &t->files[e->file];
}

/* ---- rebuild and compare ---- */

struct rebuilt {
	struct rtask *shell[MAX_PROCS];
	int slot[MAX_PROCS];
	pid_t pid[MAX_PROCS];
	int n;
	struct fileset *fs;
};

static inline void install_all(struct rebuilt *b, const struct tree *t)
{
	struct cr_err err = {0};

	for (int i = 0; i < b->n; i++)
		if (fileset_install(b->fs, b->shell[i], t, &t->procs[i], &b->slot[i], &err))
			fail_msg("install: %s", err.msg);
	if (fileset_queue_clients(b->fs, t, &err))
		fail_msg("clients: %s", err.msg);
}

static inline void build_all(struct rebuilt *b, const struct tree *t, const int *objects)
{
	struct cr_err err = {0};

	if (fileset_build(b->fs, t, objects, &err))
		fail_msg("build: %s", err.msg);
	install_all(b, t);
}

static inline void shells_new(struct rebuilt *b, int n)
{
	b->n = n;
	b->fs = fileset_new();
	for (int i = 0; i < n; i++) {
		b->shell[i] = shell_new();
		b->slot[i] = SHELL_SLOT;
		b->pid[i] = b->shell[i]->tid;
	}
}

static inline void finish(struct rebuilt *b, const struct tree *t)
{
	struct cr_err err = {0};

	if (fileset_settle(b->fs, t, &err))
		fail_msg("settle: %s", err.msg);
	if (fileset_prepare(b->fs, t, &err))
		fail_msg("prepare: %s", err.msg);
	if (fileset_launch(b->fs, t, &err))
		fail_msg("launch: %s", err.msg);
	fileset_free(b->fs);
	b->fs = NULL;
	for (int i = 0; i < b->n; i++)
		rtask_syscall(b->shell[i], SYS_close, (uint64_t)b->slot[i], 0, 0, 0, 0, 0);
}

static inline void rebuilt_done(struct rebuilt *b)
{
	fileset_free(b->fs);
	for (int i = 0; i < b->n; i++)
		shell_free(b->shell[i]);
}

static inline void compare_opts(const struct file *a, const struct file *b, int fd)
{
	if (!sockopts_cmp(a, b))
		return;
	for (size_t i = 0; i < a->n_opts; i++)
		print_error("fd %d had %d/%d\n", fd, a->opts[i].level, a->opts[i].name);
	for (size_t i = 0; i < b->n_opts; i++)
		print_error("fd %d has %d/%d\n", fd, b->opts[i].level, b->opts[i].name);
	fail();
}

static inline void compare_file(const struct file *a, const struct file *b, int fd)
{
	if (a->kind != b->kind || (a->flags & ~0100000u) != (b->flags & ~0100000u) ||
	    a->pos != b->pos)
		fail_msg("fd %d: kind %d flags %o pos %lu became kind %d flags %o pos %lu", fd,
			 a->kind, a->flags, a->pos, b->kind, b->flags, b->pos);
	assert_string_equal(a->path ? a->path : "", b->path ? b->path : "");
	assert_int_equal(a->counter, b->counter);
	assert_int_equal(a->semaphore, b->semaphore);
	assert_int_equal(a->sigmask, b->sigmask);
	assert_int_equal(a->pipe_capacity, b->pipe_capacity);
	assert_int_equal(a->pipe_packet, b->pipe_packet);
	assert_int_equal(a->data_len, b->data_len);
	if (a->data_len)
		assert_memory_equal(a->data, b->data, a->data_len);
	assert_int_equal(a->n_messages, b->n_messages);
	for (size_t i = 0; i < a->n_messages; i++) {
		assert_int_equal(a->messages[i].len, b->messages[i].len);
		assert_int_equal(a->messages[i].n_files, b->messages[i].n_files);
		if (a->messages[i].len)
			assert_memory_equal(a->messages[i].data, b->messages[i].data,
					    a->messages[i].len);
	}
	assert_int_equal(a->bound, b->bound);
	assert_int_equal(a->clockid, b->clockid);
	assert_int_equal(a->settime_flags, b->settime_flags);
	assert_int_equal(a->interval_ns, b->interval_ns);
	assert_int_equal(a->ticks, b->ticks);
	if (a->value_ns - b->value_ns + 1000000 > 2000000)
		fail_msg("timer of fd %d: %lu became %lu", fd, a->value_ns, b->value_ns);
	assert_int_equal(a->backlog, b->backlog);
	assert_int_equal(a->peer, b->peer);
	assert_int_equal(a->connected, b->connected);
	assert_int_equal(a->sock_shutdown, b->sock_shutdown);
	assert_int_equal(a->sockaddr_len, b->sockaddr_len);
	if (a->sockaddr_len)
		assert_memory_equal(a->sockaddr, b->sockaddr, a->sockaddr_len);
	assert_int_equal(a->peeraddr_len, b->peeraddr_len);
	if (a->peeraddr_len)
		assert_memory_equal(a->peeraddr, b->peeraddr, a->peeraddr_len);
	compare_opts(a, b, fd);
	assert_int_equal(a->n_targets, b->n_targets);
	for (size_t i = 0; i < a->n_targets; i++) {
		assert_int_equal(a->targets[i].fd, b->targets[i].fd);
		assert_int_equal(a->targets[i].file, b->targets[i].file);
		assert_true(a->targets[i].data == b->targets[i].data);
		assert_int_equal(a->targets[i].events, b->targets[i].events);
	}
	if (a->kind == FILE_UNIX_LISTEN && a->path)
		assert_int_equal(a->mode, b->mode);
}

static inline void compare(const struct tree *a, const struct tree *b)
{
	assert_int_equal(a->n_files, b->n_files);
	for (size_t i = 0; i < a->n_procs; i++) {
		const struct process *p = &a->procs[i], *q = &b->procs[i];

		assert_int_equal(p->n_fds, q->n_fds);
		assert_int_equal(p->umask, q->umask);
		assert_string_equal(p->cwd, q->cwd);
		for (size_t k = 0; k < p->n_fds; k++) {
			assert_int_equal(p->fds[k].fd, q->fds[k].fd);
			assert_int_equal(p->fds[k].cloexec, q->fds[k].cloexec);
			assert_int_equal(p->fds[k].file, q->fds[k].file);
			compare_file(&a->files[p->fds[k].file], &b->files[q->fds[k].file],
				     p->fds[k].fd);
		}
	}
}

static inline void print_shape(const struct tree *t)
{
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++) {
			const struct fd_entry *e = &t->procs[i].fds[k];
			const struct file *f = &t->files[e->file];

			print_error(
			    "%zu:%d%s = %u: kind %d ino %lu flags %o backlog %d targets %zu "
			    "opts %zu\n",
			    i, e->fd, e->cloexec ? "c" : "", e->file, f->kind, f->ino, f->flags,
			    f->backlog, f->n_targets, f->n_opts);
		}
}

static inline void assert_same_shape(const struct tree *a, const struct tree *b)
{
	if (files_same_shape(a, b))
		return;
	print_shape(a);
	print_shape(b);
	fail();
}
