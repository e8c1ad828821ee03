/* A thread at a real-time priority goes where its packets come in, and leaves again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernel/near_cpu.h"

enum { PATIENCE = 3 };

/* Two processors that this process may use, or a skip. */
static void two_cpus(int cpus[2])
{
	cpu_set_t all;
	int n = 0;

	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	for (int i = 0; i < CPU_SETSIZE && n < 2; i++)
		if (CPU_ISSET(i, &all))
			cpus[n++] = i;
	if (n < 2)
		skip();
}

static void real_time(bool on)
{
	const struct sched_param sp = {.sched_priority = on};

	if (sched_setscheduler(0, on ? SCHED_FIFO : SCHED_OTHER, &sp))
		skip(); /* not allowed */
}

static void tcp_pair(int fd[2])
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(bind(l, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&a, &len), 0);
	fd[0] = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(fd[0], (struct sockaddr *)&a, sizeof(a)), 0);
	fd[1] = accept(l, NULL, NULL);
	assert_true(fd[1] >= 0);
	close(l);
}

/* A packet that a process on that processor sends; over loopback it is received there. */
static void send_from(int cpu, int fd)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		cpu_set_t one;

		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		_exit(sched_setaffinity(0, sizeof(one), &one) || send(fd, "x", 1, 0) != 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void receive_and_follow(struct near_cpu *n, int fd)
{
	char c;

	assert_int_equal(recv(fd, &c, 1, 0), 1);
	near_cpu_follow(n, fd, PATIENCE);
}

static int pinned_to(void)
{
	cpu_set_t now;

	assert_int_equal(sched_getaffinity(0, sizeof(now), &now), 0);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_COUNT(&now) == 1 && CPU_ISSET(i, &now))
			return i;
	return -1;
}

static void follows(void **state)
{
	struct near_cpu n;
	int fd[2], cpus[2];

	(void)state;
	two_cpus(cpus);
	tcp_pair(fd);
	real_time(true);
	near_cpu_init(&n);
	for (int i = 0; i < 2; i++) {
		const int cpu = cpus[i];

		/* the first packet is enough at first; then as many as patience says */
		for (int k = 0; k < (i ? PATIENCE : 1); k++) {
			assert_int_not_equal(pinned_to(), cpu);
			send_from(cpu, fd[0]);
			receive_and_follow(&n, fd[1]);
		}
		assert_int_equal(pinned_to(), cpu);
	}
	/* not in a row */
	for (int k = 0; k < 2 * PATIENCE; k++) {
		send_from(cpus[k % 2], fd[0]);
		receive_and_follow(&n, fd[1]);
		assert_int_equal(pinned_to(), cpus[1]);
	}
	near_cpu_leave(&n);
	assert_int_equal(pinned_to(), -1);
	real_time(false);
	close(fd[0]);
	close(fd[1]);
}

static void only_real_time(void **state)
{
	struct near_cpu n;
	int fd[2], cpus[2];

	(void)state;
	two_cpus(cpus);
	tcp_pair(fd);
	near_cpu_init(&n);
	send_from(cpus[0], fd[0]);
	receive_and_follow(&n, fd[1]);
	assert_int_equal(pinned_to(), -1);
	near_cpu_leave(&n);
	close(fd[0]);
	close(fd[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(only_real_time),
	    cmocka_unit_test(follows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
