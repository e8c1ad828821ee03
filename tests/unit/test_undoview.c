/* What BPF says of what SEM_UNDO will undo, against what was done. */
#include "kernel/undoview.h"

#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernel/bpf_iter.h"

static int make_view(const struct btf *btf, void *ret, struct cr_err *err)
{
	return undoview_new(ret, btf, err);
}

static struct undoview *view_or_skip(void)
{
	struct undoview *v = NULL;
	struct cr_err err = {0};

	if (bpf_with_types(make_view, &v, &err)) {
		print_message("%s\n", err.msg);
		skip();
	}
	return v;
}

static int use(int sems, unsigned short sem, short by)
{
	struct sembuf op = {sem, by, SEM_UNDO};
	int id = semget(IPC_PRIVATE, sems, 0600);

	return id < 0 || semop(id, &op, 1) ? -1 : id;
}

/* Sets, their first and last, and one that was removed. What fails is the exit status. */
static int several_sets(const struct undoview *v)
{
	struct undo_facts f = {0};
	struct cr_err err = {0};
	int gone = use(1, 0, 1), first = use(1, 0, 32767), last = use(UNDO_SEMS, UNDO_SEMS - 1, 9);

	if (gone < 0 || first < 0 || last < 0 || semctl(gone, 0, IPC_RMID))
		return 1;
	if (undoview_read(v, getpid(), &f, &err))
		return 2;
	bool seen_first = false, seen_last = false;
	vec_foreach (u, &f.list) {
		seen_first |= u->semid == first && u->by[0] == -32767;
		seen_last |= u->semid == last && !u->by[0] && u->by[UNDO_SEMS - 1] == -9;
		if (u->semid == gone || u->list != f.list.v[0].list)
			return 3;
	}
	vec_done(&f.list);
	return seen_first && seen_last ? 0 : 4;
}

static int as_many_as_can_be(const struct undoview *v)
{
	struct undo_facts f = {0};
	struct cr_err err = {0};

	for (int i = 0; i < UNDO_SETS; i++)
		if (use(1, 0, 1) < 0)
			return 1;
	if (undoview_read(v, getpid(), &f, &err) || f.list.n != UNDO_SETS)
		return 2;
	vec_done(&f.list);
	if (use(1, 0, 1) < 0)
		return 1;
	return undoview_read(v, getpid(), &f, &err) == -ENOTSUP && strstr(err.msg, "more than 16")
		   ? 0
		   : 3;
}

/* In a process that takes its semaphores along. */
static void in_child(int (*fn)(const struct undoview *v))
{
	struct undoview *v = view_or_skip();
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(unshare(CLONE_NEWIPC) ? 99 : fn(v));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	undoview_free(v);
	assert_int_equal(status, 0);
}

static void sets(void **state)
{
	(void)state;
	in_child(several_sets);
}

static void too_many(void **state)
{
	(void)state;
	in_child(as_many_as_can_be);
}

static void nothing(void **state)
{
	struct undoview *v = view_or_skip();
	struct undo_facts f = {0};
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(undoview_read(v, getpid(), &f, &err), 0);
	assert_int_equal(f.list.n, 0);
	undoview_free(v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sets),
	    cmocka_unit_test(too_many),
	    cmocka_unit_test(nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
