/* Attributes: what differs the second time, timers that are due or have far ids, large numbers. */
#include "tests/unit/attrs_kid.h"

#include <linux/securebits.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include "resource/attrs_internal.h"

static struct kid src, dst;
#define SEC_NS 1000000000ull

static void handler(int signo)
{
	(void)signo;
}

static void wait_pending(int signo)
{
	sigset_t set;

	do
		must(sigpending(&set));
	while (!sigismember(&set, signo));
}

static const struct kid_spec plain_spec = {kid_reset_signals, NULL, NULL, 1};
static const struct kid_spec shell_spec = {kid_reset_signals, kid_be_shell_thread, NULL, 1};

/* A plain root process in a plain root agent: nothing is left for the switch-over. */
static void test_plain_needs_nothing_late(void **state)
{
	(void)state;
	kid_start(&src, &plain_spec);
	struct tree *t = kid_capture(&src);
	const struct process *p = &t->procs[0];

	assert_false(attrs_needs_late(p, &p->threads[0]));
	assert_false(attrs_needs_launch(p, &p->threads[0], true));
	assert_false(attrs_sigtrap_fragile(p));
	tree_free(t);
	kid_stop(&src);
}

/* ---- ahead, then the difference ---- */

static void test_second_pass(void **state)
{
	const struct sigaction_rec act = {(uint64_t)handler, 0x04000000 /* SA_RESTORER */, 1, 2};
	struct cr_err err = {0};

	(void)state;
	if (geteuid())
		skip(); /* timer slack needs CAP_SYS_NICE */
	kid_start(&src, &plain_spec);
	kid_start(&dst, &shell_spec);
	struct tree *first = kid_capture(&src), *second;
	rename_tasks(first, &dst);
	rebuild_ahead(&dst, NULL, &first->procs[0]);

	struct process *p = &first->procs[0];
	second = tree_new();
	second->procs = arena_memdup(second->arena, p, sizeof(*p));
	second->n_procs = 1;
	p = &second->procs[0];
	p->threads = arena_memdup(second->arena, p->threads, sizeof(struct thread));
	assert_false(attrs_process_differs(&first->procs[0], p));
	assert_false(attrs_thread_differs(&first->procs[0].threads[0], &p->threads[0]));
	p->sigactions[SIGUSR1 - 1] = act;
	p->rlimits[RLIMIT_CORE].max = p->rlimits[RLIMIT_CORE].cur = 0;
	p->n_timers = 2;
	p->timers = arena_array(second->arena, struct posix_timer_rec, 2);
	p->timers[0] = (struct posix_timer_rec){.id = 7, .clockid = 1, .notify = SIGEV_NONE};
	p->timers[1] = (struct posix_timer_rec){.id = 70, .clockid = 1, .notify = SIGEV_NONE};
	p->threads[0].nice = 4;
	strcpy(p->threads[0].comm, "renamed");
	p->threads[0].clear_tid_va = 0;
	assert_true(attrs_process_differs(&first->procs[0], p));
	assert_true(attrs_thread_differs(&first->procs[0].threads[0], &p->threads[0]));
	rebuild_ahead(&dst, &first->procs[0], p);
	struct tree *copy = kid_capture(&dst);
	assert_false(attrs_process_differs(p, &copy->procs[0]));
	assert_false(attrs_thread_differs(&p->threads[0], &copy->procs[0].threads[0]));

	/* and back: what is gone is taken away */
	assert_ok(attrs_timers_rebuild(&dst.rt[0], p, &first->procs[0], &err), &err);
	tree_free(copy);
	copy = kid_capture(&dst);
	assert_int_equal(copy->procs[0].n_timers, 0);
	tree_free(copy);
	tree_free(first);
	tree_free(second);
	kid_stop(&src);
	kid_stop(&dst);
}

static void test_copy_inside(void **state)
{
	struct refusals refused = {0};

	(void)state;
	kid_start(&src, &plain_spec);
	struct tree *prev = kid_capture(&src);
	struct tree *t = kid_capture_outside(&src, false, &refused);
	struct process *p = &t->procs[0], *was = &prev->procs[0];

	was->sigactions[SIGCHLD - 1].flags = SA_NOCLDWAIT;
	was->sigactions[SIGHUP - 1].handler = 0x1234;
	was->sigactions[SIGUSR1 - 1].handler = 0x1234;
	p->sigactions[SIGHUP - 1].handler = ATTRS_HANDLER_UNKNOWN;  /* as before */
	p->sigactions[SIGUSR2 - 1].handler = ATTRS_HANDLER_UNKNOWN; /* new: not known yet */
	p->sigactions[SIGUSR1 - 1].handler = 1;                     /* ignored now */
	was->threads[0].pdeathsig = 9;
	was->threads[0].rseq_va = 0x1000;
	attrs_copy_inside(t, p, was, false);
	assert_int_equal(p->sigactions[SIGCHLD - 1].flags, SA_NOCLDWAIT);
	assert_int_equal(p->sigactions[SIGHUP - 1].handler, 0x1234);
	assert_int_equal(p->sigactions[SIGUSR1 - 1].handler, 1);
	assert_int_equal(p->sigactions[SIGUSR2 - 1].handler, 0);
	assert_int_equal(p->threads[0].pdeathsig, 9);
	assert_int_equal(p->threads[0].rseq_va, 0x1000);
	assert_int_equal(p->threads[0].timer_slack_ns, was->threads[0].timer_slack_ns);
	p->sigactions[SIGHUP - 1].handler = ATTRS_HANDLER_UNKNOWN;
	attrs_copy_inside(t, p, NULL, false);
	assert_int_equal(p->sigactions[SIGHUP - 1].handler, 0);
	refusals_done(&refused);
	tree_free(prev);
	tree_free(t);
	kid_stop(&src);
}

/* ---- timers ---- */

static void test_timer_ids_by_search(void **state)
{
	struct posix_timer_rec tm = {.id = 5, .clockid = CLOCK_MONOTONIC, .notify = SIGEV_NONE};
	struct cr_err err = {0};

	(void)state;
	kid_start(&dst, &plain_spec);
	assert_ok(attrs_timer_create_by_search(&dst.rt[0], &tm, &err), &err);
	tm.id = 6;
	assert_ok(attrs_timer_create_by_search(&dst.rt[0], &tm, &err), &err);
	tm.id = 1234;
	assert_ok(attrs_timer_create_by_search(&dst.rt[0], &tm, &err), &err);
	tm.id = 1000; /* behind */
	assert_int_equal(attrs_timer_create_by_search(&dst.rt[0], &tm, &err), -ENOTSUP);
	struct tree *t = kid_capture(&dst);
	assert_int_equal(t->procs[0].n_timers, 3);
	assert_int_equal(t->procs[0].timers[0].id, 5);
	assert_int_equal(t->procs[0].timers[1].id, 6);
	assert_int_equal(t->procs[0].timers[2].id, 1234);
	tree_free(t);
	kid_stop(&dst);
}

enum { MANY = 300 };

static void all_signals_and_many_timers(const pid_t *tids, size_t n)
{
	struct sigevent ev = {.sigev_notify = SIGEV_NONE};

	(void)tids, (void)n;
	for (int signo = 1; signo <= 64; signo++) {
		struct sigaction_rec act = {(uint64_t)handler + (uint64_t)signo, 0x04000000, 1, 0};

		if (signo != SIGKILL && signo != SIGSTOP)
			must(syscall(SYS_rt_sigaction, signo, &act, NULL, 8));
	}
	for (int i = 0; i < MANY; i++) {
		struct itimerspec its = {.it_value = {1000 + i, 0}, .it_interval = {0, i}};
		int id;

		must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &ev, &id));
		must(syscall(SYS_timer_settime, id, 0, &its, NULL));
	}
}

static void test_many(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, all_signals_and_many_timers, 1};

	(void)state;
	if (geteuid())
		skip(); /* timer slack needs CAP_SYS_NICE */
	kid_start(&src, &spec);
	kid_start(&dst, &shell_spec);
	struct tree *image = kid_capture(&src);
	rename_tasks(image, &dst);
	rebuild_ahead(&dst, NULL, &image->procs[0]);
	rebuild_last(&dst, image);
	struct tree *copy = kid_capture(&dst);
	struct process *a = &image->procs[0], *b = &copy->procs[0];

	assert_int_equal(a->n_timers, MANY);
	assert_int_equal(b->n_timers, MANY);
	for (int i = 0; i < MANY; i++) {
		int64_t d = (int64_t)(copy->clock_monotonic_ns + b->timers[i].value_ns -
				      image->clock_monotonic_ns - a->timers[i].value_ns);

		assert_int_equal(a->timers[i].id, b->timers[i].id);
		assert_int_equal(a->timers[i].interval_ns, b->timers[i].interval_ns);
		assert_in_range(a->timers[i].interval_ns, i, i);
		assert_true(d >= 0 && d < (int64_t)SEC_NS);
	}
	for (int i = 0; i < TREE_NSIG; i++)
		if (i != SIGKILL - 1 && i != SIGSTOP - 1)
			assert_int_equal(a->sigactions[i].handler,
					 (uint64_t)handler + (uint64_t)i + 1);
	assert_memory_equal(a->sigactions, b->sigactions, sizeof(a->sigactions));
	tree_free(image);
	tree_free(copy);
	kid_stop(&src);
	kid_stop(&dst);
}

/* The task's own clock is this one; all of it was due long ago. */
static void test_due_timers(void **state)
{
	struct posix_timer_rec timers[] = {
	    {.id = 3,
	     .clockid = CLOCK_MONOTONIC,
	     .notify = SIGEV_SIGNAL,
	     .signo = SIGRTMIN,
	     .value_ns = SEC_NS,
	     .interval_ns = 100 * SEC_NS},
	    {.id = 4,
	     .clockid = CLOCK_REALTIME,
	     .notify = SIGEV_SIGNAL,
	     .signo = SIGRTMIN + 1,
	     .value_ns = SEC_NS},
	    {.id = 5,
	     .clockid = CLOCK_REALTIME,
	     .notify = SIGEV_SIGNAL,
	     .signo = SIGRTMIN + 2,
	     .value_ns = 100 * SEC_NS},
	};
	uint64_t now = clock_ns(CLOCK_MONOTONIC);
	struct cr_err err = {0};

	(void)state;
	kid_start(&dst, &plain_spec);
	struct tree *t = kid_tree(&dst);
	struct process *p = &t->procs[0];
	t->clock_monotonic_ns = now - 10 * SEC_NS;
	p->timers = timers;
	p->n_timers = 3;
	p->itimers[ITIMER_REAL] = (struct itimer_rec){7 * 1000000, 1000000};
	assert_ok(attrs_timers_rebuild(&dst.rt[0], NULL, p, &err), &err);
	assert_ok(attrs_launch_queue(&dst.rt[0], t, p, &p->threads[0], true, now, &err), &err);
	run_all(&dst);
	while (rcall_now(&dst.rt[0], SYS_timer_getoverrun, 4) < 0)
		;
	struct tree *copy;
	for (;;) { /* they go off within microseconds: look until they have */
		copy = kid_capture(&dst);
		if (copy->procs[0].n_pending == 3)
			break;
		tree_free(copy);
	}
	struct process *b = &copy->procs[0];
	/* the phase of the periodic one is kept */
	uint64_t next = copy->clock_monotonic_ns + b->timers[0].value_ns;
	assert_in_range(next, t->clock_monotonic_ns + 101 * SEC_NS,
			t->clock_monotonic_ns + 102 * SEC_NS);
	assert_int_equal(b->timers[1].value_ns, 0);
	assert_in_range(b->timers[2].value_ns, 80 * SEC_NS, 90 * SEC_NS);
	assert_int_equal(b->itimers[ITIMER_REAL].interval_us, 7 * 1000000);
	tree_free(copy);
	tree_free(t);
	kid_stop(&dst);
}

/* A signal that the kernel keeps as a bit only, since the limit of queued ones is reached. */
static void bare_signal(const pid_t *tids, size_t n)
{
	struct rlimit none = {0, 0};

	(void)tids, (void)n;
	must(setrlimit(RLIMIT_SIGPENDING, &none));
	must(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 1}));
	wait_pending(SIGUSR1);
}

static void test_bare_pending(void **state)
{
	const struct kid_spec spec = {kid_reset_signals, NULL, bare_signal, 1};

	(void)state;
	kid_start(&src, &spec);
	struct tree *t = kid_capture(&src);
	const struct process *p = &t->procs[0];
	const siginfo_t *si = (const siginfo_t *)p->pending;

	assert_int_equal(p->n_pending, 1);
	assert_int_equal(si->si_signo, SIGUSR1);
	assert_int_equal(si->si_code, SI_USER);
	tree_free(t);
	kid_stop(&src);
}

/* ---- cost, told when asked for ---- */

static uint64_t capture_us(struct kid *k)
{
	struct refusals refused = {0};
	struct tree *t = kid_tree(k);
	struct capture_proc cp = {.p = &t->procs[0], .pidfd = -1};
	struct capture c = {.tree = t, .refused = &refused, .exact = true, .procs = &cp};
	struct cr_err err = {0};
	uint64_t start = now_us();

	assert_ok(attrs_capture(&c, &err), &err);
	uint64_t us = now_us() - start;
	refusals_done(&refused);
	tree_free(t);
	return us;
}

static void test_cost(void **state)
{
	static const size_t sizes[] = {1, 200};

	(void)state;
	if (!getenv("ATTRS_COST"))
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		const struct kid_spec spec = {kid_reset_signals, NULL, NULL, sizes[i]};

		kid_start(&src, &spec);
		kid_freeze(&src);
		for (int j = 0; j < 5; j++)
			print_message("%zu threads: capture %lu us\n", src.n, capture_us(&src));
		kid_thaw(&src);
		struct tree *t = kid_capture(&src);
		for (int j = 0; j < 5; j++) {
			uint64_t start = now_us();

			kid_query(&src, t);
			print_message("%zu threads: query %lu us\n", src.n, now_us() - start);
		}
		tree_free(t);
		kid_stop(&src);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    kid_test(test_plain_needs_nothing_late),
	    kid_test(test_second_pass),
	    kid_test(test_copy_inside),
	    kid_test(test_timer_ids_by_search),
	    kid_test(test_many),
	    kid_test(test_due_timers),
	    kid_test(test_bare_pending),
	    kid_test(test_cost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
