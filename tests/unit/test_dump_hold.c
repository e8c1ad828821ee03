/* Who dumps core waits where it was told to, and nobody else does. */
#include "kernel/dump_hold.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/cleanup.h"

struct place {
	char dir[64];
	int group;
	pid_t pid; /* a process there, which aborts when it is told to */
	int order;
	bool made;
};

static void dump_when_told(const char *dir, int order)
{
	const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
	char c;

	if (chdir(dir) || setrlimit(RLIMIT_CORE, &none) || read(order, &c, 1) != 1)
		_exit(1);
	signal(SIGABRT, SIG_DFL);
	raise(SIGABRT);
	_exit(1);
}

/* And stay so: tests that write it wait for those that lock it. */
static bool cores_are_files(void)
{
	char c = '|';
	int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC); /* for good */

	return fd >= 0 && !flock(fd, LOCK_SH) && read(fd, &c, 1) == 1 && c != '|' && c != '@' &&
	       c != '/';
}

static int begin(void **state)
{
	struct place *p = calloc(1, sizeof(*p));
	struct cr_err err = {0};
	int fds[2];

	*state = p;
	snprintf(p->dir, sizeof(p->dir), "/tmp/test-dump.XXXXXX");
	p->group = cores_are_files() ? dump_hold_open(&err) : -1;
	if (p->group < 0)
		return 0;
	assert_non_null(mkdtemp(p->dir));
	p->made = true;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	p->pid = fork();
	if (!p->pid) {
		close(p->group);
		close(fds[1]);
		dump_when_told(p->dir, fds[0]);
	}
	close(fds[0]);
	p->order = fds[1];
	return 0;
}

static int end(void **state)
{
	struct place *p = *state;
	char cmd[128];

	close_fdp(&p->group);
	if (p->pid > 0) {
		kill(p->pid, SIGKILL);
		waitpid(p->pid, NULL, 0);
	}
	if (p->made) {
		close(p->order);
		snprintf(cmd, sizeof(cmd), "rm -r %s", p->dir);
		assert_int_equal(system(cmd), 0);
	}
	free(p);
	return 0;
}

static ssize_t is_it(void *arg, pid_t **ret)
{
	*ret = malloc(sizeof(**ret));
	assert_non_null(*ret);
	**ret = *(const pid_t *)arg;
	return 1;
}

static ssize_t no_one(void *arg, pid_t **ret)
{
	(void)arg;
	(void)ret;
	return 0;
}

/* Until somebody has been told of, and answered. */
static void answer_one(struct place *p, dump_hold_list ours)
{
	struct pollfd q = {.fd = p->group, .events = POLLIN};
	struct cr_err err = {0};

	assert_int_equal(poll(&q, 1, 10000), 1);
	assert_int_equal(dump_hold_answer(p->group, ours, &p->pid, &err), 0);
}

static void abort_it(struct place *p)
{
	char in_its_dir[64];
	struct cr_err err = {0};

	/* it has got there */
	snprintf(in_its_dir, sizeof(in_its_dir), "/proc/%d/cwd", p->pid);
	for (char at[64] = ""; strcmp(at, p->dir) != 0;) {
		ssize_t n = readlink(in_its_dir, at, sizeof(at) - 1);

		at[n < 0 ? 0 : n] = 0;
	}
	assert_int_equal(dump_hold_watch(p->group, &p->pid, 1, &err), 0);
	assert_int_equal(write(p->order, "", 1), 1);
}

static void assert_dumped(struct place *p)
{
	int st;

	assert_int_equal(waitpid(p->pid, &st, 0), p->pid);
	p->pid = -1;
	assert_true(WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT && WCOREDUMP(st));
}

static struct place *place_or_skip(void **state)
{
	struct place *p = *state;

	if (p->group < 0)
		skip();
	return p;
}

static void who_dumps_waits_until_the_group_is_closed(void **state)
{
	struct place *p = place_or_skip(state);
	int st;

	abort_it(p);
	answer_one(p, is_it);
	assert_int_equal(waitpid(p->pid, &st, WNOHANG), 0);
	close_fdp(&p->group);
	assert_dumped(p);
}

static void sigkill_ends_the_wait(void **state)
{
	struct place *p = place_or_skip(state);
	int st;

	abort_it(p);
	answer_one(p, is_it);
	kill(p->pid, SIGKILL);
	assert_int_equal(waitpid(p->pid, &st, 0), p->pid);
	p->pid = -1;
	assert_true(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
}

static void one_that_is_not_ours_goes_on(void **state)
{
	struct place *p = place_or_skip(state);

	abort_it(p);
	answer_one(p, no_one);
	assert_dumped(p);
}

/* Whatever it is, ours or not: it is no dump. */
static void who_opens_a_file_goes_on(void **state)
{
	struct place *p = place_or_skip(state);
	struct cr_err err = {0};
	char path[96];
	pid_t pid;
	int st;

	snprintf(path, sizeof(path), "%s/file", p->dir);
	abort_it(p);
	answer_one(p, no_one);
	assert_dumped(p);
	pid = fork();
	if (!pid)
		_exit(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0);
	p->pid = pid;
	assert_int_equal(dump_hold_watch(p->group, &p->pid, 1, &err), 0);
	answer_one(p, is_it);
	assert_int_equal(waitpid(pid, &st, 0), pid);
	p->pid = -1;
	assert_true(WIFEXITED(st) && !WEXITSTATUS(st));
}

static void who_has_ended_is_passed_over(void **state)
{
	struct place *p = place_or_skip(state);
	const pid_t pids[] = {0x3ffffff, getpid()};
	struct cr_err err = {0};

	assert_int_equal(dump_hold_watch(p->group, pids, 2, &err), 0);
}

static void assert_where(const char *pattern, const char *want)
{
	char path[64];
	bool known = dump_hold_where(pattern, 7, path, sizeof(path));

	assert_true(known == (want != NULL));
	if (known)
		assert_string_equal(path, want);
}

static void the_pattern_tells_the_directory(void **state)
{
	char small[12];

	(void)state;
	assert_where("core\n", "/proc/7/cwd/");
	assert_where("core.%e.%p\n", "/proc/7/cwd/");
	assert_where("cores/%p\n", "/proc/7/cwd/cores");
	assert_where("/var/crash/core.%p\n", "/proc/7/root//var/crash");
	assert_where("/core\n", "/proc/7/root/");
	assert_where("\n", "/proc/7/cwd/");
	assert_where("%e/core\n", NULL);
	assert_where("/var/%u/core\n", NULL);
	assert_where("|/usr/bin/take %p\n", NULL);
	assert_where("@/run/take\n", NULL);
	assert_false(dump_hold_where("core", 1234567, small, sizeof(small)));
}

static void assert_program(const char *pattern, const char *want)
{
	char path[16];
	bool known = dump_hold_program(pattern, path, sizeof(path));

	assert_true(known == (want != NULL));
	if (known)
		assert_string_equal(path, want);
}

static void the_pattern_tells_the_program(void **state)
{
	(void)state;
	assert_program("|/usr/bin/take %p %P\n", "/usr/bin/take");
	assert_program("|/take\n", "/take");
	assert_program("|/usr/bin/takes-s\n", NULL);
	assert_program("|/usr/%e/take\n", NULL);
	assert_program("|take %p\n", NULL);
	assert_program("| /take\n", NULL);
	assert_program("|", NULL);
	assert_program("/take\n", NULL);
	assert_program("core\n", NULL);
	assert_program("\n", NULL);
	assert_program("", NULL);
	assert_program("@/take\n", NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_pattern_tells_the_directory),
	    cmocka_unit_test(the_pattern_tells_the_program),
	    cmocka_unit_test_setup_teardown(who_dumps_waits_until_the_group_is_closed, begin, end),
	    cmocka_unit_test_setup_teardown(sigkill_ends_the_wait, begin, end),
	    cmocka_unit_test_setup_teardown(one_that_is_not_ours_goes_on, begin, end),
	    cmocka_unit_test_setup_teardown(who_opens_a_file_goes_on, begin, end),
	    cmocka_unit_test_setup_teardown(who_has_ended_is_passed_over, begin, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
