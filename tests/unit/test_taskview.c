/* What BPF says of threads, against what they were told to be. */
#include "kernel/taskview.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

enum { THREADS = 300 };

struct kid {
	pid_t tid;
	char name[16];
	void *stack;
	int *clear_tid;
	bool forks;
};

static pthread_barrier_t barrier;

static void *thread_main(void *arg)
{
	struct kid *k = arg;

	k->tid = (pid_t)syscall(SYS_gettid);
	prctl(PR_SET_NAME, k->name);
	prctl(PR_SET_PDEATHSIG, 1 + k->tid % 60);
	prctl(PR_SET_TIMERSLACK, 100000 + k->tid);
	prctl(PR_GET_TID_ADDRESS, &k->clear_tid);
	if (k->tid % 2) {
		const stack_t ss = {.ss_sp = k->stack, .ss_size = 8192};

		sigaltstack(&ss, NULL);
	}
	if (k->tid % 3 == 0)
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (k->forks && !fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
	}
	pthread_barrier_wait(&barrier);
	pause();
	return NULL;
}

/* More threads than one read gives. */
static void every_thread_is_as_it_is(void **state)
{
	static struct kid kids[THREADS];
	static char stacks[THREADS][8192];
	struct task_facts_list l;
	struct taskview *tv = NULL;
	struct cr_err err = {0};
	pthread_attr_t attr;

	(void)state;
	if (taskview_new(&tv, &err)) {
		print_message("%s\n", err.msg);
		skip();
	}
	pthread_barrier_init(&barrier, NULL, THREADS + 1);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	for (int i = 0; i < THREADS; i++) {
		pthread_t t;

		snprintf(kids[i].name, sizeof(kids[i].name), "kid %d", i);
		kids[i].stack = stacks[i];
		kids[i].forks = i == 7;
		assert_int_equal(pthread_create(&t, &attr, thread_main, &kids[i]), 0);
	}
	pthread_barrier_wait(&barrier);
	assert_int_equal(taskview_read(tv, getpid(), &l, &err), 0);
	assert_int_equal(l.list.n, THREADS + 1);
	assert_non_null(task_facts_find(&l, getpid()));
	assert_null(task_facts_find(&l, 1));
	for (int i = THREADS - 1; i >= 0; i--) { /* in any order */
		const struct kid *k = &kids[i];
		const struct task_facts *f = task_facts_find(&l, k->tid);

		assert_non_null(f);
		assert_string_equal(f->comm, k->name);
		assert_int_equal(f->pdeathsig, 1 + k->tid % 60);
		assert_int_equal(f->timer_slack_ns, 100000 + k->tid);
		assert_int_equal(f->clear_tid_va, (uintptr_t)k->clear_tid);
		assert_int_equal(f->altstack_sp, k->tid % 2 ? (uintptr_t)k->stack : 0);
		assert_int_equal(f->altstack_size, k->tid % 2 ? 8192 : 0);
		assert_int_equal(f->altstack_flags, k->tid % 2 ? 0 : SS_DISABLE);
		assert_int_equal(f->no_new_privs, k->tid % 3 == 0);
		assert_int_equal(f->seccomp_mode, 0);
		assert_int_equal(f->pending, 0);
		assert_int_equal(f->has_children, i == 7);
		assert_true(f->rseq_va || !f->rseq_len);
	}
	task_facts_done(&l);
	taskview_free(tv);
}

/* Of another process, which does not run; and of one that is not there. */
static void another_process(void **state)
{
	struct task_facts_list l;
	struct taskview *tv = NULL;
	struct cr_err err = {0};
	int st;

	(void)state;
	if (taskview_new(&tv, &err))
		skip();
	pid_t pid = fork();
	if (!pid) {
		sigset_t all;

		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, NULL);
		syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN + 3);
		raise(SIGSTOP);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &st, WUNTRACED), pid);
	assert_int_equal(taskview_read(tv, getpid(), &l, &err), 0);
	assert_true(l.list.v[0].has_children);
	task_facts_done(&l);
	assert_int_equal(taskview_read(tv, pid, &l, &err), 0);
	assert_false(l.list.v[0].has_children);
	assert_int_equal(l.list.n, 1);
	assert_int_equal(l.list.v[0].tid, pid);
	assert_true(l.list.v[0].pending == 1ull << (SIGRTMIN + 3 - 1));
	task_facts_done(&l);
	kill(pid, SIGKILL);
	waitpid(pid, &st, 0);
	if (!taskview_read(tv, pid, &l, &err)) {
		assert_int_equal(l.list.n, 0);
		task_facts_done(&l);
	}
	taskview_free(tv);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(another_process),
	    cmocka_unit_test(every_thread_is_as_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
