/* What a page-server that serves stopped tasks can do once it has begun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "pageserver/server.h"

static void *in_thread(void *arg)
{
	return arg;
}

/* 0, or the number of the line of what should not be. */
#define refused(expr)                                                                              \
	if ((expr) >= 0 || errno != ENOSYS)                                                        \
	return __LINE__
#define works(expr)                                                                                \
	if (!(expr))                                                                               \
	return __LINE__

static int try_all(pid_t other)
{
	struct rlimit rl = {1, 1};
	struct iovec v = {&rl, sizeof(rl)};
	cpu_set_t cpus;
	pthread_t t;
	char c;
	int pair[2];

	works(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	_cleanup_fd_ int zero = open("/dev/zero", O_RDONLY);
	works(zero >= 0);
	struct cr_err err = {0};
	works(!sandbox_enter(SANDBOX_TASKS, &err));
	refused(open("/dev/null", O_RDONLY));
	refused(syscall(SYS_open, "/dev/null", O_RDONLY));
	refused(openat(AT_FDCWD, "/etc/passwd", O_RDONLY));
	refused(unlink("/nothing"));
	refused(socket(AF_INET, SOCK_STREAM, 0));
	refused(accept(pair[0], NULL, NULL));
	refused(kill(other, 0));
	refused(syscall(SYS_tgkill, other, other, 0));
	refused(prlimit(other, RLIMIT_NOFILE, &rl, NULL));
	refused(process_vm_readv(other, &v, 1, &v, 1, 0));
	refused(process_vm_writev(other, &v, 1, &v, 1, 0));
	refused(syscall(SYS_pidfd_open, other, 0));
	refused(sched_setaffinity(other, sizeof(cpus), &cpus));
	refused(pwrite(zero, &c, 1, 0));
	refused(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
	works(!sched_getaffinity(0, sizeof(cpus), &cpus));
	works(!sched_setaffinity(0, sizeof(cpus), &cpus));
	works(pread(zero, &c, 1, 0) == 1);
	works(send(pair[0], "x", 1, 0) == 1 && recv(pair[1], &c, 1, 0) == 1);
	works(!pthread_create(&t, NULL, in_thread, NULL) && !pthread_join(t, NULL));
	return 0;
}

static int status_of(int (*f)(pid_t))
{
	pid_t self = getpid(), pid = fork();
	int st = 0;

	if (!pid) {
		int line = f(self);

		if (line) /* write(2) is left */
			dprintf(STDERR_FILENO, "line %d: %s\n", line, strerror(errno));
		_exit(line != 0);
	}
	assert_int_equal(waitpid(pid, &st, 0), pid);
	return st;
}

static void test_refused(void **state)
{
	(void)state;
	assert_int_equal(status_of(try_all), 0);
}

static int try_connect(pid_t other)
{
	struct sockaddr sa = {.sa_family = AF_UNSPEC};
	int pair[2];
	struct cr_err err = {0};

	(void)other;
	works(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	works(!sandbox_enter(SANDBOX_TASKS, &err));
	connect(pair[0], &sa, sizeof(sa));
	return 0;
}

static void test_deadly(void **state)
{
	(void)state;
	int st = status_of(try_connect);
	assert_true(WIFSIGNALED(st));
	assert_int_equal(WTERMSIG(st), SIGSYS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_refused),
	    cmocka_unit_test(test_deadly),
	};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* they need more */
	return 0;
#endif
	return cmocka_run_group_tests(tests, NULL, NULL);
}
