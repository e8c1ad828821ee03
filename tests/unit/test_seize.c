/* Seizing real processes. With cgroups (made and removed here): needs root. Without:
 * CAP_SYS_PTRACE. */
#include "source/seize.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <cmocka.h>
#include "base/clock.h"
#include "kernel/cgroup.h"
#include "kernel/procfs.h"

enum { SLOTS = 256, PATIENCE_US = 10000000 };

/* What targets tell us: each counts in its slot. */
struct board {
	_Atomic unsigned long count[SLOTS];
	_Atomic unsigned int next, stop, signals, eintr;
};
static struct board *board;

/* A new one for every target: those of the last test may count on for a moment after their parent's
 * end. */
static void new_board(void)
{
	if (board)
		munmap(board, sizeof(*board));
	board =
	    mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(board != MAP_FAILED);
}

/* ---- targets ---- */

static void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* The more of them the slower: all together keep about half a CPU busy. */
static unsigned int crowd = 1;

static _Noreturn void count_for_ever(unsigned int slot)
{
	for (;;) {
		board->count[slot]++;
		nanosleep(&(struct timespec){.tv_nsec = 100000 * (crowd + 1)}, NULL);
	}
}

static void *counting_thread(void *arg)
{
	count_for_ever((unsigned int)(uintptr_t)arg);
}

static unsigned int take_slot(void)
{
	return board->next++ % SLOTS;
}

static void be_target(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGALRM, SIG_DFL);
}

static _Noreturn void threads_target(int n)
{
	pthread_attr_t attr;

	crowd = (unsigned int)n;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	for (int i = 1; i < n; i++) {
		pthread_t th;

		if (pthread_create(&th, &attr, counting_thread, (void *)(uintptr_t)take_slot()))
			_exit(9);
	}
	count_for_ever(take_slot());
}

static _Noreturn void tree_target(int width, int depth)
{
	unsigned int slot = take_slot(); /* the root has the first */

	for (int i = 0; depth && i < width; i++) {
		if (!fork()) {
			be_target();
			i = -1; /* the child: the same, one less deep */
			depth--;
			slot = take_slot();
		}
	}
	pid_t zombie = fork();
	if (!zombie)
		_exit(3);
	siginfo_t si;
	if (waitid(P_PID, (id_t)zombie, &si, WEXITED | WNOWAIT)) /* never reaped */
		_exit(7);
	count_for_ever(slot);
}

/* Each keeps short-lived children coming; orphans: grandchildren that leave the tree, too. */
static _Noreturn void storm_target(int n, bool orphans)
{
	for (int i = 1; i < n; i++) {
		if (!fork()) {
			be_target();
			break;
		}
	}
	unsigned int slot = take_slot();
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		pid_t pid = fork();

		if (!pid) {
			be_target();
			if (orphans && !fork())
				_exit(0);
			_exit(0);
		}
		board->count[slot]++;
		sched_yield();
	}
}

static pid_t start(void (*fn)(int), int arg)
{
	pid_t pid = fork();

	if (!pid) {
		be_target();
		fn(arg);
		_exit(1);
	}
	return pid;
}

static void run_threads(int n)
{
	threads_target(n);
}

static void run_tree(int depth)
{
	tree_target(2, depth);
}

static void run_storm(int n)
{
	storm_target(n, false);
}

static void run_orphan_storm(int n)
{
	storm_target(n, true);
}

/* ---- watching ---- */

static void wait_for(bool (*done)(void *), void *arg)
{
	uint64_t end = now_us() + PATIENCE_US;

	while (!done(arg)) {
		if (now_us() > end)
			fail_msg("waited too long");
		nap();
	}
}

static bool all_counting(void *arg)
{
	unsigned int want = *(unsigned int *)arg;

	for (unsigned int i = 0; i < want; i++) {
		if (!board->count[i])
			return false;
	}
	return board->next >= want;
}

/* Every one of the n counters moves on from here. */
static void assert_running(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		board->count[i] = 0;
	wait_for(all_counting, &n);
}

static pid_t start_counting(void (*fn)(int), int arg, unsigned int n)
{
	new_board();
	pid_t pid = start(fn, arg);
	wait_for(all_counting, &n);
	return pid;
}

static char state_of(pid_t pid, pid_t tid, pid_t *tracer)
{
	struct proc_status st;
	struct cr_err err;

	if (proc_status_read(pid, tid, &st, &err) < 0)
		return 0;
	proc_status_done(&st);
	if (tracer)
		*tracer = st.tracer;
	return st.state;
}

static bool not_traced(void *arg)
{
	pid_t pid = *(pid_t *)arg, tracer = 1;

	return state_of(pid, pid, &tracer) && !tracer;
}

static bool is_stopped(void *arg)
{
	pid_t pid = *(pid_t *)arg;

	return state_of(pid, pid, NULL) == 'T';
}

static const struct seized_proc *proc_in(const struct seizure *s, pid_t pid)
{
	for (size_t i = 0; i < s->procs.n; i++) {
		if (s->procs.v[i].pid == pid)
			return &s->procs.v[i];
	}
	return NULL;
}

/* All are stopped by us, the list is in order, and nobody is missing. */
static void assert_seized(const struct seizure *s)
{
	for (size_t i = 0; i < s->procs.n; i++) {
		const struct seized_proc *p = &s->procs.v[i];
		struct cr_err err = {0};
		uint64_t starttime;
		pid_t *ids;

		const struct seized_proc *parent = proc_in(s, p->ppid);
		assert_true(!parent || parent < p);
		assert_int_equal(proc_starttime(p->pid, &starttime, &err), 0);
		assert_int_equal(starttime, p->starttime);
		if (p->zombie) {
			assert_int_equal(state_of(p->pid, p->pid, NULL), 'Z');
			assert_int_equal(p->tasks.n, 0);
			continue;
		}
		assert_int_equal(p->tasks.v[0].tid, p->pid);
		for (size_t k = 0; k < p->tasks.n; k++) {
			pid_t tracer;

			assert_int_equal(state_of(p->pid, p->tasks.v[k].tid, &tracer), 't');
			assert_int_equal(tracer, getpid());
			assert_true(k < 2 || p->tasks.v[k].tid > p->tasks.v[k - 1].tid);
		}
		assert_int_equal(proc_threads(p->pid, &ids, &err), p->tasks.n);
		free(ids);
		ssize_t n = proc_children(p->pid, &ids, &err);
		for (ssize_t k = 0; k < n; k++)
			assert_non_null(proc_in(s, ids[k]));
		free(ids);
	}
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* ---- fixtures: without a cgroup, v1, v2 ---- */

struct fixture {
	enum cgroup_version version;
	struct cgroup *cg;
	const char *path; /* NULL: none */
	bool skip;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct cgroup *root;
	struct cr_err err = {0};
	char name[64];

	f->version = *(const enum cgroup_version *)*state;
	*state = f;
	new_board();
	if (f->version == CGROUP_ANY) {
		f->skip = geteuid() != 0;
		return 0;
	}
	if (geteuid() || cgroup_open(&root, f->version, "/", &err) < 0) {
		f->skip = true;
		return 0;
	}
	snprintf(name, sizeof(name), "crseize-%d-%d", f->version, getpid());
	int r = cgroup_create_child(&f->cg, root, name, &err);
	cgroup_close(root);
	f->path = r ? NULL : cgroup_fs_path(f->cg);
	return r;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	struct cr_err err = {0};
	pid_t *left = NULL;
	int r = 0;

	if (f->cg) { /* what a failed assertion left */
		ssize_t n = cgroup_thaw(f->cg, &err) == 0 ? cgroup_procs(f->cg, &left, &err) : 0;
		for (ssize_t i = 0; i < n; i++) {
			kill(left[i], SIGKILL);
			waitpid(left[i], NULL, 0);
		}
		free(left);
		r = cgroup_remove(f->cg, &err);
	}
	cgroup_close(f->cg);
	free(f);
	return r;
}

static struct fixture *fixture_or_skip(void **state)
{
	struct fixture *f = *state;

	if (f->skip)
		skip();
	return f;
}

/* A target that is in the cgroup with all that it makes. */
static pid_t start_in(const struct fixture *f, void (*fn)(int), int arg, unsigned int n)
{
	struct cr_err err = {0};
	int gate[2];
	char c;

	if (!f->cg)
		return start_counting(fn, arg, n);
	new_board();
	assert_int_equal(pipe(gate), 0);
	pid_t pid = fork();
	if (!pid) {
		be_target();
		close(gate[1]);
		if (read(gate[0], &c, 1) != 0)
			_exit(8);
		close(gate[0]);
		fn(arg);
	}
	close(gate[0]);
	assert_int_equal(cgroup_move_pid(f->cg, pid, &err), 0);
	close(gate[1]);
	wait_for(all_counting, &n);
	return pid;
}

static struct seizure *take(const struct fixture *f, pid_t root)
{
	struct seize_request rq = {.root = root, .cgroup = f->path};
	struct refusals refused = {0};
	struct cr_err err = {0};
	struct seizure *s = NULL;

	if (seizure_take(&s, &rq, &refused, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(refused.list.n, 0);
	refusals_done(&refused);
	return s;
}

static void assert_thawed(const struct fixture *f)
{
	struct cgroup_state st;
	struct cr_err err;

	if (!f->cg)
		return;
	assert_int_equal(cgroup_get_state(f->cg, &st, &err), 0);
	assert_false(st.self_frozen);
}

static int by_size(const void *a, const void *b)
{
	return (*(const uint64_t *)a > *(const uint64_t *)b) -
	       (*(const uint64_t *)a < *(const uint64_t *)b);
}

/* Take and let go, over and over; prints the median times. */
static void cycle(const struct fixture *f, pid_t root, unsigned int n_counters, size_t want_tasks)
{
	enum { ROUNDS = 11 };
	uint64_t take_us[ROUNDS], free_us[ROUNDS];

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t t0 = now_us();
		struct seizure *s = take(f, root);
		uint64_t t1 = now_us();
		size_t tasks = 0;

		assert_seized(s);
		assert_thawed(f);
		vec_foreach (p, &s->procs)
			tasks += p->tasks.n;
		if (want_tasks)
			assert_int_equal(tasks, want_tasks);
		uint64_t t2 = now_us();
		seizure_free(s);
		take_us[i] = t1 - t0;
		free_us[i] = now_us() - t2;
		wait_for(not_traced, &root);
		if (i % 5 == 0)
			assert_running(n_counters);
	}
	qsort(take_us, ROUNDS, sizeof(take_us[0]), by_size);
	qsort(free_us, ROUNDS, sizeof(free_us[0]), by_size);
	print_message("take %lu us, free %lu us\n", (unsigned long)take_us[ROUNDS / 2],
		      (unsigned long)free_us[ROUNDS / 2]);
}

/* ---- tests ---- */

static void one_process(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 1, 1);

	cycle(f, pid, 1, 1);
	end(pid);
}

static void fifty_threads(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 50, 50);

	cycle(f, pid, 50, 50);
	end(pid);
}

static void two_hundred_threads(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 200, 200);

	cycle(f, pid, 200, 200);
	end(pid);
}

static void tree_with_zombies(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_tree, 3, 15);

	cycle(f, pid, 15, 15);
	struct seizure *s = take(f, pid);
	assert_int_equal(s->procs.n, 30);
	assert_int_equal(s->procs.v[0].pid, pid);
	size_t zombies = 0;
	vec_foreach (p, &s->procs) {
		zombies += p->zombie;
	}
	assert_int_equal(zombies, 15);
	seizure_free(s);
	end(pid);
}

static void fork_storm(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_storm, 4, 4);

	cycle(f, pid, 4, 0);
	end(pid);
}

static void *ending_thread(void *arg)
{
	sched_yield();
	return arg;
}

/* Each keeps short-lived threads coming. */
static void *spawning_thread(void *arg)
{
	unsigned int slot = (unsigned int)(uintptr_t)arg;

	for (;;) {
		pthread_t th;

		if (pthread_create(&th, NULL, ending_thread, NULL) || pthread_join(th, NULL))
			_exit(9);
		board->count[slot]++;
	}
}

static void run_spawners(int n)
{
	for (int i = 1; i < n; i++) {
		pthread_t th;

		if (pthread_create(&th, NULL, spawning_thread, (void *)(uintptr_t)take_slot()))
			_exit(9);
	}
	spawning_thread((void *)(uintptr_t)take_slot());
}

/* One process and none below it: no thread is missed, and how long they stood still is told. */
static void alone(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct refusals refused = {0};
	struct cr_err err = {0};

	pid_t pid = start_in(f, run_spawners, 4, 4);
	const struct seize_request rq = {.root = pid, .alone = true};
	for (int i = 0; i < 100; i++) {
		struct seizure *s = NULL;

		uint64_t before = now_us();
		assert_int_equal(seizure_take(&s, &rq, &refused, &err), 0);
		uint64_t taken = now_us();
		assert_seized(s);
		assert_in_range(s->stopped_us, before, taken);
		uint64_t first = s->stopped_us, longest = seizure_let_go(s);
		assert_in_range(first + longest, taken, now_us());
	}
	assert_running(4);
	end(pid);
}

/* Processes that leave the tree while it is walked: only where they are in nobody's way. */
static void orphan_storm(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_orphan_storm, 3, 3);

	if (!f->cg)
		cycle(f, pid, 3, 0);
	for (int i = 0; f->cg && i < 10; i++) {
		struct seize_request rq = {.cgroup = f->path};
		struct refusals refused = {0};
		struct cr_err err = {0};
		struct seizure *s;

		if (seizure_take(&s, &rq, &refused, &err))
			fail_msg("%s", err.msg);
		assert_seized(s);
		assert_true(s->procs.n >= 3);
		seizure_free(s);
		assert_running(3);
	}
	end(pid);
}

/* Our own interval timer interrupts every system call that can be. */
static void on_alarm(int sig)
{
	(void)sig;
}

static void interrupted_caller(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct sigaction sa = {.sa_handler = on_alarm};
	struct itimerval every = {{0, 300}, {0, 300}}, off = {0};
	pid_t pid = start_in(f, run_threads, 20, 20);

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	cycle(f, pid, 20, 20);
	setitimer(ITIMER_REAL, &off, NULL);
	end(pid);
}

/* Queued signals are counted: none may be lost or doubled by a seizure that meets them. */
static void count_signal(int sig)
{
	(void)sig;
	board->signals++;
}

static void run_signalled(int arg)
{
	(void)arg;
	signal(SIGRTMIN + 3, count_signal);
	count_for_ever(take_slot());
}

static void signals_arrive_once(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_signalled, 0, 1);
	unsigned int sent = 0;

	for (int i = 0; i < 40; i++) {
		struct seizure *s;
		struct cr_err err = {0};

		for (int k = 0; k < 3; k++)
			sent += !sigqueue(pid, SIGRTMIN + 3, (union sigval){.sival_int = k});
		s = take(f, pid);
		for (int k = 0; k < 3; k++)
			sent += !sigqueue(pid, SIGRTMIN + 3, (union sigval){.sival_int = k});
		if (i % 2) {
			assert_int_equal(seizure_hold(s, &err), 0);
			if (i % 4 == 3)
				assert_int_equal(seizure_unhold(s, &err), 0);
		}
		seizure_free(s);
	}
	uint64_t end_us = now_us() + PATIENCE_US;
	while (board->signals < sent && now_us() < end_us)
		nap();
	assert_running(1);
	assert_int_equal(board->signals, sent);
	end(pid);
}

static void frozen_before(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cgroup_state st;
	struct cr_err err = {0};
	pid_t pid = start_in(f, run_threads, 5, 5);

	for (int i = 0; i < 5; i++) {
		assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
		unsigned long before = board->count[0];
		struct seizure *s = take(f, pid);
		assert_seized(s);
		assert_thawed(f);
		seizure_free(s);
		assert_int_equal(cgroup_freeze(f->cg, 1000, &err),
				 0); /* waits for what free began */
		assert_int_equal(cgroup_get_state(f->cg, &st, &err), 0);
		assert_true(st.self_frozen && st.frozen);
		assert_int_equal(board->count[0], before); /* it never ran in between */
		assert_int_equal(cgroup_thaw(f->cg, &err), 0);
		assert_running(5);
	}
	/* and when it fails: a stranger in the cgroup */
	pid_t stranger = start(run_threads, 1);
	assert_int_equal(cgroup_move_pid(f->cg, stranger, &err), 0);
	assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
	struct seize_request rq = {.root = pid, .cgroup = f->path};
	struct refusals refused = {0};
	struct seizure *s;
	unsigned long before = board->count[0];
	assert_int_equal(seizure_take(&s, &rq, &refused, &err), -EBUSY);
	refusals_done(&refused);
	assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
	assert_int_equal(cgroup_get_state(f->cg, &st, &err), 0);
	assert_true(st.self_frozen && st.frozen);
	assert_int_equal(board->count[0], before);
	assert_int_equal(cgroup_thaw(f->cg, &err), 0);
	assert_running(5);
	end(stranger);
	end(pid);
}

static void frozen_above_or_below(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};
	struct refusals refused = {0};
	struct cgroup *sub;
	struct seizure *s;
	pid_t pid = start_in(f, run_threads, 2, 2);

	assert_int_equal(cgroup_create_child(&sub, f->cg, "sub", &err), 0);
	assert_int_equal(cgroup_move_pid(sub, pid, &err), 0);
	assert_int_equal(cgroup_freeze(sub, 1000, &err), 0);
	struct seize_request rq = {.root = pid, .cgroup = f->path};
	assert_int_equal(seizure_take(&s, &rq, &refused, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "/sub"));
	assert_int_equal(cgroup_thaw(sub, &err), 0);
	assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
	rq.cgroup = cgroup_fs_path(sub);
	assert_int_equal(seizure_take(&s, &rq, &refused, &err), -EBUSY);
	assert_int_equal(cgroup_thaw(f->cg, &err), 0);
	/* a sub-cgroup is part of it */
	s = take(f, pid);
	assert_seized(s);
	seizure_free(s);
	assert_running(2);
	refusals_done(&refused);
	end(pid);
	assert_int_equal(cgroup_remove(sub, &err), 0);
	cgroup_close(sub);
}

static void strangers_in_the_cgroup(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};
	struct refusals refused = {0};
	struct seizure *s;
	pid_t a = start_in(f, run_threads, 2, 2);
	pid_t b = start(run_threads, 1);

	assert_int_equal(cgroup_move_pid(f->cg, b, &err), 0);
	struct seize_request rq = {.root = a, .cgroup = f->path};
	assert_int_equal(seizure_take(&s, &rq, &refused, &err), -EBUSY);
	assert_int_equal(err.pid, b);
	assert_int_equal(refused.list.n, 1);
	assert_int_equal(refused.list.v[0].pid, b);
	assert_thawed(f);
	assert_running(3);
	refusals_done(&refused);

	assert_int_equal(seizure_preview(&s, &rq, &refused, &err), 0);
	assert_int_equal(refused.list.n, 1);
	seizure_free(s);
	refusals_done(&refused);

	for (int named = 0; named < 2; named++) { /* all of it, with and without a root */
		rq = (struct seize_request){
		    .root = named ? a : 0, .cgroup = f->path, .whole_cgroup = named};
		assert_int_equal(seizure_take(&s, &rq, &refused, &err), 0);
		assert_int_equal(refused.list.n + refused.warnings.n, 0);
		assert_int_equal(s->procs.n, 2);
		assert_seized(s);
		seizure_free(s);
		assert_running(3);
	}
	end(a);
	end(b);
}

/* A child that left the cgroup is caught by the walk, and said. */
static void outside_the_cgroup(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};
	struct refusals refused = {0};
	struct cgroup *root;
	struct seizure *s;
	pid_t pid = start_in(f, run_tree, 1, 3), *kids;

	assert_int_equal(cgroup_open(&root, f->version, "/", &err), 0);
	assert_true(proc_children(pid, &kids, &err) > 0);
	pid_t outside = kids[0]; /* made before the zombie-to-be */
	free(kids);
	assert_int_equal(cgroup_move_pid(root, outside, &err), 0);
	struct seize_request rq = {.root = pid, .cgroup = f->path};
	assert_int_equal(seizure_take(&s, &rq, &refused, &err), 0);
	assert_int_equal(refused.list.n, 0);
	assert_int_equal(refused.warnings.n, 1);
	assert_int_equal(refused.warnings.v[0].pid, outside);
	assert_seized(s);
	assert_non_null(proc_in(s, outside));
	seizure_free(s);
	refusals_done(&refused);
	assert_running(3);
	cgroup_close(root);
	end(pid);
}

static void assert_refused(pid_t pid, const char *cgroup, int code, const char *why)
{
	struct seize_request rq = {.root = pid, .cgroup = cgroup};
	struct refusals refused = {0};
	struct cr_err err = {0};
	struct seizure *s;

	assert_int_equal(seizure_take(&s, &rq, &refused, &err), -code);
	if (!strstr(err.msg, why))
		fail_msg("\"%s\" does not say \"%s\"", err.msg, why);
	refusals_done(&refused);
}

static void group_stopped(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 5, 5);
	struct seize_request rq = {.root = pid, .cgroup = f->path};
	struct refusals refused = {0};
	struct cr_err err = {0};
	struct seizure *s;

	kill(pid, SIGSTOP);
	wait_for(is_stopped, &pid);
	assert_int_equal(seizure_preview(&s, &rq, &refused, &err), 0);
	assert_int_equal(refused.list.n, 0);
	seizure_free(s);
	for (int i = 0; i < 20; i++) {
		s = take(f, pid);
		assert_int_equal(proc_in(s, pid)->stop_sig, SIGSTOP);
		assert_int_equal(proc_in(s, pid)->tasks.n, 5);
		assert_seized(s);
		if (i % 2) /* held and not held any more, it is still stopped */
			assert_int_equal(seizure_hold(s, &err), 0);
		seizure_free(s);
		assert_thawed(f);
		wait_for(is_stopped, &pid);
	}
	kill(pid, SIGCONT);
	assert_running(5);
	s = take(f, pid);
	assert_int_equal(proc_in(s, pid)->stop_sig, 0);
	seizure_free(s);
	assert_running(5);
	end(pid);
}

/* Stopped and continued all the time, all threads are in one state or the other. */
static void stopped_meanwhile(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 5, 5);

	pid_t other = fork();
	if (!other) {
		be_target();
		for (;;) {
			kill(pid, SIGSTOP);
			usleep(300);
			kill(pid, SIGCONT);
			usleep(200);
		}
	}
	for (int i = 0; i < 200; i++) {
		struct seizure *s = take(f, pid);

		assert_seized(s);
		seizure_free(s);
	}
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	kill(pid, SIGCONT);
	assert_running(5);
	end(pid);
}

static void traced_by_another(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	int p[2], done[2];
	char c;
	pid_t pid = start_in(f, run_threads, 3, 3);

	assert_int_equal(pipe(p), 0);
	assert_int_equal(pipe(done), 0);
	pid_t tracer = fork();
	if (!tracer) {
		be_target();
		close(done[1]);
		c = (char)ptrace(PTRACE_SEIZE, pid, 0, 0);
		if (write(p[1], &c, 1) == 1 && read(done[0], &c, 1) >= 0)
			_exit(0);
	}
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(c, 0);
	char want[64];
	snprintf(want, sizeof(want), "is traced by process %d", tracer);
	assert_refused(pid, f->path, EBUSY, want);
	assert_thawed(f);
	close(done[1]);
	assert_int_equal(waitpid(tracer, NULL, 0), tracer);
	close(done[0]);
	close(p[0]);
	close(p[1]);
	wait_for(not_traced, &pid);
	assert_running(3);
	end(pid);
}

static void run_leaderless(int arg)
{
	pthread_t th;

	(void)arg;
	pthread_create(&th, NULL, counting_thread, (void *)(uintptr_t)take_slot());
	pthread_exit(NULL);
}

static bool is_zombie(void *arg)
{
	pid_t pid = *(pid_t *)arg;

	return state_of(pid, pid, NULL) == 'Z';
}

static void dead_leader(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct refusals refused = {0};
	struct cr_err err = {0};
	struct seizure *s;
	pid_t pid = start_in(f, run_leaderless, 0, 1);

	wait_for(is_zombie, &pid);
	assert_refused(pid, f->path, EBUSY, "its first thread has exited while others run");
	struct seize_request rq = {.root = pid, .cgroup = f->path};
	assert_int_equal(seizure_preview(&s, &rq, &refused, &err), -ESRCH);
	assert_int_equal(refused.list.n, 1);
	refusals_done(&refused);
	assert_running(1);
	end(pid);
}

static void *exits_soon(void *arg)
{
	(void)arg;
	nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	_exit(0);
}

/* Children that look leaderless for some milliseconds, and are on their way out. */
static void run_exiting(int arg)
{
	unsigned int slot = take_slot();

	(void)arg;
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		if (!fork()) {
			pthread_t th;

			be_target();
			pthread_create(&th, NULL, exits_soon, NULL);
			pthread_exit(NULL);
		}
		board->count[slot]++;
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	}
}

static void exiting_children(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_exiting, 0, 1);

	for (int i = 0; i < 30; i++) {
		struct seize_request rq = {.root = pid, .cgroup = f->path};
		struct refusals refused = {0};
		struct cr_err err = {0};
		struct seizure *s;
		int r = seizure_preview(&s, &rq, &refused, &err);

		if (r || refused.list.n)
			fail_msg("preview: %s", r ? err.msg : refused.list.v[0].why);
		seizure_free(s);
		r = seizure_take(&s, &rq, &refused, &err);
		if (r)
			fail_msg("take: %s", err.msg);
		seizure_free(s);
		refusals_done(&refused);
		nap();
	}
	assert_running(1);
	end(pid);
}

/* The parent in vfork waits uninterruptibly for its child, which sleeps before it calls exec. */
static void run_vfork(int arg)
{
	(void)arg;
	unsigned int slot = take_slot();
	for (;;) {
		board->count[slot]++;
		pid_t pid = vfork();
		if (!pid) {
			nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
			execl("/bin/true", "true", NULL);
			_exit(1);
		}
		waitpid(pid, NULL, 0);
	}
}

static void in_vfork(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_vfork, 0, 1);

	for (int i = 0; i < 10; i++) {
		struct seizure *s = take(f, pid);

		assert_seized(s);
		seizure_free(s);
		assert_running(1);
	}
	end(pid);
}

static void killed_while_held(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 30, 30);
	struct seizure *s = take(f, pid);

	kill(pid, SIGKILL);
	seizure_forget(s);
	/* our own child: as its tracer and its parent we have reaped it by one wait */
	assert_true(waitpid(pid, NULL, 0) == pid || errno == ECHILD);

	pid = start_in(f, run_tree, 2, 7);
	pid_t *kids;
	struct cr_err err;
	ssize_t n = proc_children(pid, &kids, &err);
	s = take(f, pid);
	for (ssize_t i = 0; i < n; i++)
		kill(kids[i], SIGKILL);
	free(kids);
	seizure_free(s); /* finds the children dying, and gives the parent its zombies */
	assert_running(1);
	end(pid);
}

static void waits_in_poll(int arg)
{
	(void)arg;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	board->count[take_slot()] = 1;
	for (;;) {
		if (poll(NULL, 0, -1) < 0)
			board->eintr++;
	}
}

/* A held and released task in a system call that shows EINTR must not see one, nor lose a signal.
 */
static void hold_is_invisible(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};
	struct proc_status st;
	pid_t pid = start_in(f, waits_in_poll, 0, 1);

	kill(pid, SIGUSR1); /* stays pending */
	for (int i = 0; i < 20; i++) {
		struct seizure *s = take(f, pid);

		assert_int_equal(seizure_hold(s, &err), 0);
		assert_int_equal(proc_status_read(pid, pid, &st, &err), 0);
		assert_true(st.sig_pnd & 1ull << (SIGSTOP - 1));
		proc_status_done(&st);
		assert_int_equal(seizure_unhold(s, &err), 0);
		assert_seized(s);
		assert_int_equal(proc_status_read(pid, pid, &st, &err), 0);
		assert_int_equal(st.sig_pnd, 0);
		assert_int_equal(st.shd_pnd, 1ull << (SIGUSR1 - 1));
		assert_int_equal(st.sig_blk, 1ull << (SIGUSR1 - 1));
		proc_status_done(&st);
		if (i % 2) {
			assert_int_equal(seizure_hold(s, &err), 0);
			assert_true(s->held);
		}
		seizure_free(s);
		wait_for(not_traced, &pid);
		assert_int_not_equal(state_of(pid, pid, NULL), 'T');
	}
	assert_int_equal(board->eintr, 0);
	end(pid);
}

static bool is_traced_stop(void *arg)
{
	const struct seized_task *t = arg;

	return state_of(t->tid, t->tid, NULL) == 't';
}

/* Tasks that run meanwhile, as those that wait in an executor do, stop at the hold and go on. */
static void hold_of_running_tasks(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};
	pid_t pid = start_in(f, run_threads, 4, 4);

	for (int i = 0; i < 10; i++) {
		struct seizure *s = take(f, pid);

		vec_foreach (t, &s->procs.v[0].tasks)
			assert_int_equal(ptrace(PTRACE_CONT, t->tid, 0, 0), 0);
		assert_int_equal(seizure_hold(s, &err), 0);
		vec_foreach (t, &s->procs.v[0].tasks)
			wait_for(is_traced_stop, t);
		if (i % 2) {
			assert_int_equal(seizure_unhold(s, &err), 0);
			assert_running(4);
		}
		seizure_free(s);
		wait_for(not_traced, &pid);
		assert_running(4);
	}
	end(pid);
}

/* Another process takes the targets, says so, and is killed. */
static pid_t start_seizer(const struct fixture *f, pid_t target, bool hold)
{
	struct refusals refused = {0};
	struct cr_err err = {0};
	struct seizure *s;
	int p[2];
	char c = 1;

	assert_int_equal(pipe(p), 0);
	pid_t pid = fork();
	if (!pid) {
		struct seize_request rq = {.root = target, .cgroup = f->path};

		be_target();
		c = seizure_take(&s, &rq, &refused, &err) != 0;
		if (!c && hold)
			c = seizure_hold(s, &err) != 0;
		if (write(p[1], &c, 1) == 1)
			for (;;)
				pause();
		_exit(1);
	}
	close(p[1]);
	assert_int_equal(read(p[0], &c, 1), 1);
	close(p[0]);
	assert_int_equal(c, 0);
	return pid;
}

static void seizer_is_killed(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start_in(f, run_threads, 10, 10);

	pid_t seizer = start_seizer(f, pid, false);
	assert_int_equal(state_of(pid, pid, NULL), 't');
	end(seizer);
	wait_for(not_traced, &pid);
	assert_running(10);

	seizer = start_seizer(f, pid, true);
	unsigned long before[10];
	for (int i = 0; i < 10; i++)
		before[i] = board->count[i];
	end(seizer);
	wait_for(is_stopped, &pid); /* held: it did not run on */
	for (int i = 0; i < 10; i++)
		assert_int_equal(board->count[i], before[i]);
	kill(pid, SIGCONT);
	assert_running(10);
	end(pid);
}

/* Killed at any moment, also between freeze and thaw: the targets run on. */
static void seizer_is_killed_any_time(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t target = start_in(f, run_threads, 30, 30);

	for (long us = 0; us < 4000; us += 150) {
		pid_t pid = fork();
		if (!pid) {
			struct seize_request rq = {.root = target, .cgroup = f->path};

			be_target();
			for (;;) {
				struct refusals refused = {0};
				struct cr_err err;
				struct seizure *s;

				if (!seizure_take(&s, &rq, &refused, &err))
					seizure_free(s);
			}
		}
		nanosleep(&(struct timespec){.tv_nsec = (5000 + us) * 1000}, NULL);
		end(pid);
		wait_for(not_traced, &target);
		assert_running(30);
		assert_thawed(f);
	}
	end(target);
}

static void nobody_there(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	pid_t pid = start(run_threads, 1);

	end(pid);
	assert_refused(pid, NULL, ESRCH, "there is no process");
	assert_refused(getpid(), NULL, EINVAL, "is this agent itself");
	pid = fork();
	if (!pid)
		_exit(0);
	wait_for(is_zombie, &pid);
	assert_refused(pid, NULL, ESRCH, "has exited");
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_refused(0, NULL, EINVAL, "no process and no cgroup");
	assert_refused(1, "/no/such", ENOENT, "/no/such");
	if (f->cg)
		assert_refused(0, f->path, ESRCH, "has no tasks");
}

static void preview_touches_nothing(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct refusals refused = {0};
	struct cr_err err = {0};
	struct seizure *s;
	pid_t pid = start_in(f, run_tree, 2, 7);
	struct seize_request rq = {.root = pid, .cgroup = f->path};

	assert_int_equal(seizure_preview(&s, &rq, &refused, &err), 0);
	assert_int_equal(refused.list.n + refused.warnings.n, 0);
	assert_int_equal(s->procs.n, 14);
	assert_true(not_traced(&pid));
	assert_thawed(f);
	seizure_free(s);
	refusals_done(&refused);
	assert_running(7);
	end(pid);
}

int main(int argc, char **argv)
{
	static enum cgroup_version none = CGROUP_ANY, v1 = CGROUP_V1, v2 = CGROUP_V2;
#define EACH(fn)                                                                                   \
	{#fn, fn, setup, teardown, &none}, {#fn " v1", fn, setup, teardown, &v1},                  \
	{                                                                                          \
#fn " v2", fn, setup, teardown, &v2                                                \
	}
#define BOTH(fn)                                                                                   \
	{#fn " v1", fn, setup, teardown, &v1},                                                     \
	{                                                                                          \
#fn " v2", fn, setup, teardown, &v2                                                \
	}
	const struct CMUnitTest tests[] = {
	    EACH(one_process),
	    EACH(fifty_threads),
	    EACH(two_hundred_threads),
	    EACH(tree_with_zombies),
	    EACH(fork_storm),
	    {"alone", alone, setup, teardown, &none},
	    EACH(orphan_storm),
	    EACH(interrupted_caller),
	    EACH(signals_arrive_once),
	    BOTH(frozen_before),
	    BOTH(frozen_above_or_below),
	    BOTH(strangers_in_the_cgroup),
	    BOTH(outside_the_cgroup),
	    EACH(group_stopped),
	    EACH(stopped_meanwhile),
	    EACH(traced_by_another),
	    EACH(dead_leader),
	    EACH(exiting_children),
	    EACH(in_vfork),
	    EACH(killed_while_held),
	    EACH(hold_is_invisible),
	    EACH(hold_of_running_tasks),
	    EACH(seizer_is_killed),
	    EACH(seizer_is_killed_any_time),
	    EACH(nobody_there),
	    EACH(preview_touches_nothing),
	};

	if (argc > 1) /* a pattern of test names */
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
