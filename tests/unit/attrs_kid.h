/* A forked child whose threads run the executor: what is captured from, and what is rebuilt. */
#pragma once
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/clock.h"
#include "kernel/procfs.h"
#include "kernel/task.h"
#include "remote/area.h"
#include "resource/resource.h"

enum { KID_THREADS = 256, KID_AREA_SPACING = 1 << 24 };
#define KID_AREA_BASE 0x510000000000ull

struct kid_spec {
	void (*process)(void); /* in the main thread, before there are others */
	void (*thread)(int i); /* in each thread, 0 is the main one */
	void (*last)(const pid_t *tids,
		     size_t n); /* in the main thread, when all threads are there */
	size_t n;               /* threads */
};

struct kid {
	pid_t pid;
	size_t n;
	pid_t *tids; /* shared with the child */
	struct rarea area;
	struct rtask rt[KID_THREADS];
	int ready[2];
	const struct kid_spec *spec;
};

#define must(x)                                                                                    \
	do {                                                                                       \
		if ((x) < 0) {                                                                     \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x,                 \
				strerror(errno));                                                  \
			_exit(99);                                                                 \
		}                                                                                  \
	} while (0)

__attribute__((noreturn)) static inline void kid_enter_blob(struct kid *k, int i)
{
	must(write(k->ready[1], "+", 1));
	__asm__ volatile("mov %0, %%rsp\n\tjmp *%1"
			 :
			 : "r"(rtask_stack_va(&k->rt[i])), "r"(rarea_entry_va(&k->area)),
			   "D"(k->rt[i].slot_va)
			 : "memory");
	__builtin_unreachable();
}

struct kid_thread {
	struct kid *k;
	int i;
};

static inline void *kid_thread_main(void *arg)
{
	struct kid_thread *t = arg;

	if (t->k->spec->thread)
		t->k->spec->thread(t->i);
	__atomic_store_n(&t->k->tids[t->i], gettid(), __ATOMIC_SEQ_CST);
	kid_enter_blob(t->k, t->i);
}

__attribute__((noreturn)) static inline void kid_main(struct kid *k)
{
	static struct kid_thread args[KID_THREADS];
	const struct kid_spec *s = k->spec;

	must(mprotect((void *)k->area.remote, CR_PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC));
	if (s->process)
		s->process();
	for (int i = 1; i < (int)k->n; i++) {
		pthread_t unused;

		args[i] = (struct kid_thread){k, i};
		must(-pthread_create(&unused, NULL, kid_thread_main, &args[i]));
	}
	if (s->thread)
		s->thread(0);
	k->tids[0] = gettid();
	for (size_t i = 1; i < k->n; i++)
		while (!__atomic_load_n(&k->tids[i], __ATOMIC_SEQ_CST))
			sched_yield();
	if (s->last)
		s->last(k->tids, k->n);
	kid_enter_blob(k, 0);
}

/* Those that run: a test that fails leaves them to the teardown. */
static struct kid *kids[4];

static inline void kid_register(struct kid *k, struct kid *as)
{
	for (size_t i = 0; i < ARRAY_SIZE(kids); i++)
		if (kids[i] == k) {
			kids[i] = as;
			return;
		}
}

static inline void kid_start(struct kid *k, const struct kid_spec *spec)
{
	static int serial;
	struct cr_err err = {0};
	char c;

	memset(k, 0, sizeof(*k));
	k->spec = spec;
	k->n = spec->n ? spec->n : 1;
	k->tids =
	    mmap(NULL, CR_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(k->tids, MAP_FAILED);
	assert_int_equal(rarea_init(&k->area, memfd_create("kid", MFD_CLOEXEC), (unsigned int)k->n,
				    KID_AREA_BASE + (uint64_t)serial++ * KID_AREA_SPACING, &err),
			 0);
	for (size_t i = 0; i < k->n; i++)
		assert_int_equal(rtask_init(&k->rt[i], &k->area, 0, &err), 0);
	assert_int_equal(pipe(k->ready), 0);
	k->pid = fork();
	if (k->pid == 0)
		kid_main(k);
	assert_true(k->pid > 0);
	kid_register(NULL, k);
	close(k->ready[1]);
	for (size_t i = 0; i < k->n; i++)
		assert_int_equal(read(k->ready[0], &c, 1), 1); /* 0: it died, and said why */
	close(k->ready[0]);
	for (size_t i = 0; i < k->n; i++)
		k->rt[i].tid = k->tids[i];
}

static inline void kid_stop(struct kid *k)
{
	if (k->pid > 0) {
		kill(k->pid, SIGKILL);
		for (size_t i = k->n; i-- > 1;) /* those that are traced, before their leader */
			while (waitpid(k->tids[i], NULL, __WALL) > 0)
				;
		waitpid(k->pid, NULL, 0);
	}
	rarea_done(&k->area);
	munmap(k->tids, CR_PAGE_SIZE);
	k->pid = 0;
	kid_register(k, NULL);
}

static inline int kid_teardown(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kids); i++)
		if (kids[i])
			kid_stop(kids[i]);
	return 0;
}

#define kid_test(f) cmocka_unit_test_teardown(f, kid_teardown)

/* ---- capture ---- */

static inline struct tree *kid_tree(const struct kid *k)
{
	struct tree *t = tree_new();

	assert_non_null(t);
	t->root_pid = k->pid;
	t->n_procs = 1;
	t->procs = arena_array(t->arena, struct process, 1);
	t->procs[0].pid = k->pid;
	t->procs[0].n_threads = k->n;
	t->procs[0].threads = arena_array(t->arena, struct thread, k->n);
	for (size_t i = 0; i < k->n; i++)
		t->procs[0].threads[i].tid = k->tids[i];
	return t;
}

static inline void assert_ok(int r, const struct cr_err *err)
{
	if (r)
		fail_msg("%d: %s", r, err->msg);
}

static inline void kid_freeze(const struct kid *k)
{
	struct cr_err err = {0};

	for (size_t i = 0; i < k->n; i++) {
		assert_ok(task_seize(k->tids[i], PTRACE_O_TRACESYSGOOD, &err), &err);
		assert_ok(task_interrupt(k->tids[i], &err), &err);
	}
}

static inline void kid_thaw(const struct kid *k)
{
	for (size_t i = 0; i < k->n; i++)
		assert_int_equal(ptrace(PTRACE_DETACH, k->tids[i], 0, 0), 0);
}

/* True if the signals have to be looked at again. */
static inline bool kid_query(struct kid *k, struct tree *t)
{
	struct attrs_query q[KID_THREADS];
	struct process *p = &t->procs[0];
	struct cr_err err = {0};

	for (size_t i = 0; i < k->n; i++) {
		rtask_scratch_reset(&k->rt[i]);
		assert_ok(attrs_query_queue(&k->rt[i], &q[i], p, &p->threads[i], i == 0, &err),
			  &err);
		rtask_start(&k->rt[i]);
	}
	for (size_t i = 0; i < k->n; i++) {
		assert_ok(rtask_wait(&k->rt[i], &err), &err);
		assert_ok(attrs_query_collect(&k->rt[i], &q[i], t, p, &p->threads[i], i == 0, &err),
			  &err);
		rtask_scratch_reset(&k->rt[i]);
	}
	return q[0].signals_stale;
}

static inline void print_refusals(struct refusals *r)
{
	vec_foreach (e, &r->list)
		fprintf(stderr, "refused: %d: %s: %s\n", e->pid, e->what, e->why);
}

static inline bool has_refusal(struct refusals *r, const char *what)
{
	vec_foreach (e, &r->list)
		if (strstr(e->what, what))
			return true;
	return false;
}

/* From outside only. */
static inline struct tree *kid_capture_outside(struct kid *k, bool exact, struct refusals *refused)
{
	struct tree *t = kid_tree(k);
	struct capture_proc cp = {.p = &t->procs[0], .pidfd = -1};
	struct capture c = {.tree = t, .refused = refused, .exact = exact, .procs = &cp};
	struct cr_err err = {0};

	if (exact)
		kid_freeze(k);
	int r = attrs_capture(&c, &err);
	if (exact)
		kid_thaw(k);
	assert_ok(r, &err);
	return t;
}

/* Everything, and nothing refused. */
static inline struct tree *kid_capture(struct kid *k)
{
	struct refusals refused = {0};
	struct tree *t = kid_capture_outside(k, true, &refused);

	print_refusals(&refused);
	assert_int_equal(refused.list.n, 0);
	refusals_done(&refused);
	kid_query(k, t);
	return t;
}

/* ---- rebuild: such a child stands for a shell ---- */

static inline void kid_reset_signals(void)
{
	uint64_t all = ~0ull;

	must(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8));
	for (int i = 1; i <= 64; i++) {
		struct sigaction_rec none = {0};

		syscall(SYS_rt_sigaction, i, &none, NULL, 8);
	}
}

static inline void kid_be_shell_thread(int i)
{
	struct rseq *mine = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	(void)i;
	if (__rseq_size)
		must(syscall(SYS_rseq, mine, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG));
}

/* The image with the pids of the other child: they could not both have the same ones. */
static inline void rename_tasks(struct tree *t, const struct kid *k)
{
	struct process *p = &t->procs[0];

	for (size_t i = 0; i < p->n_timers; i++)
		for (size_t j = 0; j < k->n; j++)
			if (p->timers[i].notify_tid &&
			    p->timers[i].notify_tid == p->threads[j].tid) {
				p->timers[i].notify_tid = k->tids[j];
				break;
			}
	t->root_pid = p->pid = k->pid;
	for (size_t j = 0; j < k->n; j++)
		p->threads[j].tid = k->tids[j];
}

static inline void run_all(struct kid *k)
{
	struct cr_err err = {0};

	for (size_t i = 0; i < k->n; i++)
		rtask_start(&k->rt[i]);
	for (size_t i = 0; i < k->n; i++) {
		assert_ok(rtask_wait(&k->rt[i], &err), &err);
		rtask_scratch_reset(&k->rt[i]);
	}
}

static inline void rebuild_ahead(struct kid *k, const struct process *old, const struct process *p)
{
	struct cr_err err = {0};

	assert_ok(attrs_rebuild_process_queue(&k->rt[0], old, p, &err), &err);
	for (size_t i = 0; i < k->n; i++)
		assert_ok(attrs_rebuild_thread_queue(&k->rt[i], p, old ? &old->threads[i] : NULL,
						     &p->threads[i], &err),
			  &err);
	run_all(k);
	for (size_t i = 0; i < k->n; i++)
		assert_ok(attrs_rebuild_outside(k->tids[i], p, &p->threads[i], i == 0, &err), &err);
	assert_ok(attrs_timers_rebuild(&k->rt[0], old, p, &err), &err);
}

static inline void rebuild_last(struct kid *k, const struct tree *t)
{
	const struct process *p = &t->procs[0];
	struct cr_err err = {0};

	for (size_t i = 0; i < k->n; i++)
		assert_ok(attrs_late_queue(&k->rt[i], p, &p->threads[i], i == 0, &err), &err);
	run_all(k);
	for (size_t i = 0; i < k->n; i++)
		assert_ok(attrs_launch_queue(&k->rt[i], t, p, &p->threads[i], i == 0,
					     clock_ns(CLOCK_MONOTONIC), &err),
			  &err);
	run_all(k);
}
