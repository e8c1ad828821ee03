/* Real cgroups, v1 freezer and v2, made and removed here: needs root. */
#include "kernel/cgroup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <signal.h>
#include <cmocka.h>
#include "base/clock.h"
#include "kernel/cgroup_guard.h"
#include "kernel/procfs.h"

struct fixture {
	enum cgroup_version version;
	struct cgroup *root, *cg;
	char name[64];
};

/* A child that blocks until its pipe closes; it dies with us. */
struct child {
	pid_t pid;
	int hold;
};

static struct child spawn(void)
{
	int p[2];
	char c;

	assert_int_equal(pipe(p), 0);
	pid_t pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(p[1]);
		_exit(read(p[0], &c, 1) != 0);
	}
	close(p[0]);
	return (struct child){pid, p[1]};
}

static void reap(struct child *c)
{
	close(c->hold);
	kill(c->pid, SIGKILL);
	assert_int_equal(waitpid(c->pid, NULL, 0), c->pid);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct cr_err err = {0};

	f->version = *(const enum cgroup_version *)*state;
	*state = f;
	if (geteuid() || cgroup_open(&f->root, f->version, "/", &err) < 0)
		return 0;
	snprintf(f->name, sizeof(f->name), "crtest-%d-%d", f->version, getpid());
	return cgroup_create_child(&f->cg, f->root, f->name, &err);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	struct cr_err err = {0};
	pid_t *left = NULL;

	/* after a failed assertion */
	ssize_t n = f->cg && cgroup_thaw(f->cg, &err) == 0 ? cgroup_procs(f->cg, &left, &err) : 0;
	for (ssize_t i = 0; i < n; i++) {
		kill(left[i], SIGKILL);
		waitpid(left[i], NULL, 0);
	}
	free(left);
	int r = f->cg ? cgroup_remove(f->cg, &err) : 0;

	cgroup_close(f->cg);
	cgroup_close(f->root);
	free(f);
	return r;
}

static struct fixture *fixture_or_skip(void **state)
{
	struct fixture *f = *state;

	if (!f->cg)
		skip();
	return f;
}

static void open_by_path(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child c = spawn();
	struct cr_err err = {0};
	struct cgroup *cg;
	char path[80];

	snprintf(path, sizeof(path), "/%s", f->name);
	assert_int_equal(cgroup_move_pid(f->cg, c.pid, &err), 0);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, path, &err), 0);
	assert_int_equal(cgroup_version(cg), f->version);
	assert_string_equal(cgroup_path(cg), path);
	assert_string_equal(cgroup_fs_path(cg), cgroup_fs_path(f->cg));
	assert_false(cgroup_is_root(cg));
	cgroup_close(cg);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, cgroup_fs_path(f->cg), &err), 0);
	assert_string_equal(cgroup_path(cg), path);
	assert_int_equal(cgroup_version(cg), f->version);
	cgroup_close(cg);
	enum cgroup_version other = f->version == CGROUP_V1 ? CGROUP_V2 : CGROUP_V1;
	assert_true(cgroup_open(&cg, other, path, &err) < 0);
	assert_true(cgroup_open(&cg, other, cgroup_fs_path(f->cg), &err) < 0);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, "/no/such/cgroup", &err), -ENOENT);
	assert_int_equal(err.kind, CR_ERR_INPUT);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, "web", &err), -EINVAL);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, "/tmp", &err), -ENOENT);
	assert_true(cgroup_is_root(f->root));
	assert_int_equal(cgroup_freeze(f->root, 10, &err), -EINVAL);
	reap(&c);
}

/* The same name in both hierarchies: the one with tasks in it is meant, v2 if neither has any. */
static void open_the_used_one(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	enum cgroup_version other = f->version == CGROUP_V1 ? CGROUP_V2 : CGROUP_V1;
	struct cgroup *root2, *cg2, *cg;
	struct cr_err err = {0};
	char path[80];

	if (cgroup_open(&root2, other, "/", &err) < 0)
		skip();
	snprintf(path, sizeof(path), "/%s", f->name);
	assert_int_equal(cgroup_create_child(&cg2, root2, f->name, &err), 0);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, path, &err), 0);
	struct child c = spawn();
	cgroup_close(cg);
	assert_int_equal(cgroup_move_pid(f->cg, c.pid, &err), 0);
	assert_int_equal(cgroup_open(&cg, CGROUP_ANY, path, &err), 0);
	assert_int_equal(cgroup_version(cg), f->version);
	cgroup_close(cg);
	reap(&c);
	assert_int_equal(cgroup_remove(cg2, &err), 0);
	cgroup_close(cg2);
	cgroup_close(root2);
}

static bool told_and_frozen(struct cgroup *cg)
{
	struct cgroup_state st;
	struct cr_err err;

	assert_int_equal(cgroup_get_state(cg, &st, &err), 0);
	assert_false(st.ancestor_frozen);
	return st.self_frozen && st.frozen;
}

static void freeze_and_thaw(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child c[3] = {spawn(), spawn(), spawn()};
	struct cr_err err = {0};

	for (int i = 0; i < 3; i++)
		assert_int_equal(cgroup_move_pid(f->cg, c[i].pid, &err), 0);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
		assert_true(told_and_frozen(f->cg));
		assert_int_equal(cgroup_thaw(f->cg, &err), 0);
		assert_false(told_and_frozen(f->cg));
	}
	/* thawed means running: they end when their pipe closes, in them too, so all before any */
	for (int i = 0; i < 3; i++)
		close(c[i].hold);
	for (int i = 0; i < 3; i++) {
		int status;

		assert_int_equal(waitpid(c[i].pid, &status, 0), c[i].pid);
		assert_int_equal(status, 0);
	}
}

static void lists_below(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child a = spawn(), b = spawn();
	struct cr_err err = {0};
	struct cgroup *sub;
	char want[100];
	pid_t *ids;

	assert_int_equal(cgroup_procs(f->cg, &ids, &err), 0);
	free(ids);
	assert_int_equal(cgroup_create_child(&sub, f->cg, "sub", &err), 0);
	assert_int_equal(cgroup_move_pid(f->cg, a.pid, &err), 0);
	assert_int_equal(cgroup_move_pid(sub, b.pid, &err), 0);
	assert_int_equal(cgroup_procs(f->cg, &ids, &err), 2);
	assert_true(ids[0] < ids[1] && (ids[0] == a.pid || ids[1] == a.pid));
	free(ids);
	assert_int_equal(cgroup_threads(f->cg, &ids, &err), 2);
	free(ids);
	assert_int_equal(cgroup_procs(sub, &ids, &err), 1);
	assert_int_equal(ids[0], b.pid);
	free(ids);

	char *path;
	snprintf(want, sizeof(want), "/%s/sub", f->name);
	assert_int_equal(cgroup_of_pid(b.pid, f->version, &path, &err), 0);
	assert_string_equal(path, want);
	free(path);
	reap(&a);
	reap(&b);
	assert_int_equal(cgroup_remove(sub, &err), 0);
	cgroup_close(sub);
}

static void frozen_relatives(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child c = spawn();
	struct cr_err err = {0};
	struct cgroup_state st;
	struct cgroup *sub;
	char name[100], want[100];
	bool below;

	assert_int_equal(cgroup_create_child(&sub, f->cg, "sub", &err), 0);
	assert_int_equal(cgroup_move_pid(sub, c.pid, &err), 0);
	assert_int_equal(cgroup_frozen_below(f->cg, &below, name, sizeof(name), &err), 0);
	assert_false(below);
	assert_int_equal(cgroup_freeze(sub, 1000, &err), 0);
	assert_int_equal(cgroup_frozen_below(f->cg, &below, name, sizeof(name), &err), 0);
	assert_true(below);
	snprintf(want, sizeof(want), "/%s/sub", f->name);
	assert_string_equal(name, want);
	assert_int_equal(cgroup_thaw(sub, &err), 0);

	assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
	assert_int_equal(cgroup_get_state(sub, &st, &err), 0);
	assert_true(st.ancestor_frozen);
	assert_false(st.self_frozen);
	assert_int_equal(cgroup_thaw(f->cg, &err), 0);
	reap(&c);
	assert_int_equal(cgroup_remove(sub, &err), 0);
	cgroup_close(sub);
}

static void own_cgroup_is_refused(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};

	pid_t pid = fork();
	if (!pid) {
		bool ok = cgroup_move_pid(f->cg, getpid(), &err) == 0 &&
			  cgroup_freeze(f->cg, 100, &err) == -EINVAL &&
			  cgroup_freeze_start(f->cg, &err) == -EINVAL;
		_exit(ok ? 0 : 1);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void timeout_thaws(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child c = spawn();
	struct cr_err err = {0};
	int timeouts = 0;

	assert_int_equal(cgroup_move_pid(f->cg, c.pid, &err), 0);
	/* no time at all: mostly too late, and then everything must be as before */
	for (int i = 0; i < 50; i++) {
		int r = cgroup_freeze(f->cg, 0, &err);

		assert_true(r == 0 || r == -EAGAIN);
		if (r == -EAGAIN) {
			timeouts++;
			assert_non_null(strstr(err.msg, f->name));
			assert_false(told_and_frozen(f->cg));
		} else {
			assert_int_equal(cgroup_thaw(f->cg, &err), 0);
		}
	}
	print_message("%d of 50 timed out, the last: %s\n", timeouts, err.msg);
	/* told to freeze before: stays so */
	assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
	assert_int_equal(cgroup_freeze(f->cg, 0, &err), 0);
	assert_true(told_and_frozen(f->cg));
	assert_int_equal(cgroup_thaw(f->cg, &err), 0);
	reap(&c);
}

/* Wait until the cgroup was told to freeze, or not. */
static void wait_told(struct cgroup *cg, bool want)
{
	uint64_t end = now_us() + 10000000;
	struct cgroup_state st;
	struct cr_err err;

	do {
		assert_true(now_us() < end);
		nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
		assert_int_equal(cgroup_get_state(cg, &st, &err), 0);
	} while (st.self_frozen != want);
}

/* A process that freezes the cgroup (or not), gives its guard an order, and is killed. */
static void die_guarded(struct cgroup *cg, enum cgroup_last_act act, bool freeze)
{
	int p[2];
	char c = 1;

	assert_int_equal(pipe(p), 0);
	pid_t pid = fork();
	if (!pid) {
		struct cgroup_guard *g;
		struct cr_err err;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		c = cgroup_guard_start(&g, cg, &err) || cgroup_guard_set(g, act, false, &err) ||
		    (freeze && cgroup_freeze(cg, 1000, &err));
		if (write(p[1], &c, 1) == 1)
			for (;;)
				pause();
	}
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(c, 0);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(p[1]);
	/* the guard holds no end of our pipe: it is over when it has acted, or at once */
	assert_int_equal(read(p[0], &c, 1), 0);
	close(p[0]);
}

static void guard_acts_on_death(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child c = spawn();
	struct cgroup_state st;
	struct cr_err err = {0};

	assert_int_equal(cgroup_move_pid(f->cg, c.pid, &err), 0);
	die_guarded(f->cg, CGROUP_THAW, true);
	wait_told(f->cg, false);
	die_guarded(f->cg, CGROUP_FREEZE, false);
	wait_told(f->cg, true);
	assert_int_equal(cgroup_thaw(f->cg, &err), 0);
	die_guarded(f->cg, CGROUP_LEAVE, true);
	assert_int_equal(cgroup_get_state(f->cg, &st, &err), 0);
	assert_true(st.self_frozen);
	assert_int_equal(cgroup_thaw(f->cg, &err), 0);
	reap(&c);
}

static void guard_of_the_living(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct child c = spawn();
	struct cgroup_state st;
	struct cgroup_guard *g;
	struct cr_err err = {0};
	pid_t *kids;
	int *fds;

	assert_int_equal(cgroup_move_pid(f->cg, c.pid, &err), 0);
	assert_int_equal(cgroup_guard_start(&g, f->cg, &err), 0);
	/* stopping it does nothing, whatever it was told */
	assert_int_equal(cgroup_freeze(f->cg, 1000, &err), 0);
	assert_int_equal(cgroup_guard_set(g, CGROUP_THAW, false, &err), 0);
	cgroup_guard_stop(g);
	assert_int_equal(cgroup_get_state(f->cg, &st, &err), 0);
	assert_true(st.self_frozen);
	assert_int_equal(proc_children(getpid(), &kids, &err), 1); /* c alone */
	free(kids);

	/* frozen for too long: thawed, and it goes on watching */
	assert_int_equal(cgroup_guard_start(&g, f->cg, &err), 0);
	assert_int_equal(cgroup_guard_set(g, CGROUP_THAW, true, &err), 0);
	wait_told(f->cg, false);
	assert_int_equal(proc_children(getpid(), &kids, &err), 2);
	assert_int_equal(proc_fds(kids[kids[0] == c.pid], &fds, &err), 2);
	free(fds);
	free(kids);
	cgroup_guard_stop(g);
	cgroup_guard_stop(NULL);
	reap(&c);
}

static void bad_children(void **state)
{
	struct fixture *f = fixture_or_skip(state);
	struct cr_err err = {0};
	struct cgroup *cg;

	assert_int_equal(cgroup_create_child(&cg, f->cg, "a/b", &err), -EINVAL);
	assert_int_equal(cgroup_create_child(&cg, f->cg, "..", &err), -EINVAL);
	assert_int_equal(cgroup_create_child(&cg, f->cg, "", &err), -EINVAL);
	assert_int_equal(cgroup_create_child(&cg, f->root, f->name, &err), -EEXIST);
	assert_true(cgroup_move_pid(f->cg, 1 << 29, &err) < 0);
}

int main(void)
{
	static enum cgroup_version v1 = CGROUP_V1, v2 = CGROUP_V2;
#define BOTH(fn)                                                                                   \
	{#fn " v1", fn, setup, teardown, &v1},                                                     \
	{                                                                                          \
#fn " v2", fn, setup, teardown, &v2                                                \
	}
	const struct CMUnitTest tests[] = {
	    BOTH(open_by_path),        BOTH(open_the_used_one), BOTH(freeze_and_thaw),
	    BOTH(lists_below),         BOTH(frozen_relatives),  BOTH(own_cgroup_is_refused),
	    BOTH(timeout_thaws),       BOTH(bad_children),      BOTH(guard_acts_on_death),
	    BOTH(guard_of_the_living),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
