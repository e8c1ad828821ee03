/* What BPF says of many descriptors at once is what each would say itself. */
#include "kernel/sockview.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "resource/sockopt_alike.h"

enum { CONNECTIONS = 300 }; /* more than one read(2) of an iterator gives */

static struct sock_alike *sa;
static struct sockview *view;

static int setup(void **state)
{
	struct cr_err err = {0};

	(void)state;
	if (sock_alike_new(&sa, &err) || sockview_new(&view, &err))
		print_message("%s\n", err.msg);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	sock_alike_free(sa);
	sockview_free(view);
	return 0;
}

static void every_option_shows(void **state)
{
	const char *missing = NULL;

	(void)state;
	if (!sa)
		skip();
	assert_true(sock_alike_covers(sa, AF_INET, &missing));
	if (access("/proc/net/if_inet6", F_OK) == 0 && !sock_alike_covers(sa, AF_INET6, &missing))
		fail_msg("%s does not show", missing);
}

static int fds[CONNECTIONS];

static void connect_all(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof(to);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&to, len), 0);
	assert_int_equal(listen(listener, CONNECTIONS), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&to, &len), 0);
	for (int i = 0; i < CONNECTIONS; i++) {
		fds[i] = socket(AF_INET, SOCK_STREAM | (i % 3 ? SOCK_CLOEXEC : 0), 0);
		assert_true(fds[i] >= 0);
		assert_int_equal(connect(fds[i], (struct sockaddr *)&to, len), 0);
	}
}

static const struct sock_facts *find(const struct sock_facts_list *l, int fd)
{
	for (size_t i = 0; i < l->list.n; i++)
		if (l->list.v[i].fd == fd)
			return &l->list.v[i];
	fail_msg("descriptor %d is not told", fd);
	return NULL;
}

static void compare(const struct sock_facts *f, int fd)
{
	struct sockaddr_storage us = {0}, peer = {0};
	socklen_t len = sizeof(us), peer_len = sizeof(peer);
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&us, &len), 0);
	assert_int_equal(getpeername(fd, (struct sockaddr *)&peer, &peer_len), 0);
	assert_true(f->connection);
	assert_int_equal(f->ino, st.st_ino);
	assert_int_equal(f->cloexec, fcntl(fd, F_GETFD) == FD_CLOEXEC);
	assert_int_equal(f->state, TCP_ESTABLISHED);
	assert_memory_equal(&us, &f->us, len);
	assert_memory_equal(&peer, &f->peer, peer_len);
}

/* Of a child that has the same: while a process reads, it has some more. */
static void read_all(struct sock_facts_list *l)
{
	struct cr_err err = {0};
	bool told = false;
	pid_t pid = fork();

	if (!pid) {
		pause();
		_exit(0);
	}
	assert_true(pid > 0);
	int r = sock_alike_list(sa, pid, l, &told, &err);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	if (r)
		fail_msg("%s", err.msg);
	assert_true(told);
}

/* Those that nothing was set on are alike, and nobody else is. */
static void of_many_connections(void **state)
{
	struct sock_facts_list l;
	const int one = 1;

	(void)state;
	if (!sa)
		skip();
	connect_all();
	assert_int_equal(setsockopt(fds[7], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), 0);
	assert_int_equal(setsockopt(fds[8], SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)), 0);
	read_all(&l);
	for (size_t i = 1; i < l.list.n; i++)
		assert_true(l.list.v[i - 1].fd < l.list.v[i].fd);
	for (int i = 0; i < CONNECTIONS; i++)
		compare(find(&l, fds[i]), fds[i]);
	uint64_t most = find(&l, fds[0])->options;
	for (int i = 1; i < CONNECTIONS; i++)
		assert_int_equal(find(&l, fds[i])->options == most, i != 7 && i != 8);
	assert_int_not_equal(find(&l, fds[7])->options, find(&l, fds[8])->options);
	sock_facts_done(&l);
}

/* What has more to it than the facts say. */
static void special_ones(void **state)
{
	struct f_owner_ex self = {F_OWNER_PID, getpid()};
	struct flock lock = {.l_type = F_WRLCK};
	struct sock_facts_list l;
	const int size = 65536;

	(void)state;
	if (!sa)
		skip();
	assert_int_equal(fcntl(fds[20], F_SETOWN_EX, &self), 0);
	assert_int_equal(fcntl(fds[21], F_SETLK, &lock), 0);
	assert_int_equal(setsockopt(fds[22], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	shutdown(fds[23], SHUT_WR);
	read_all(&l);
	for (int i = 20; i < 23; i++)
		assert_false(find(&l, fds[i])->connection);
	assert_true(find(&l, fds[23])->connection);
	assert_int_not_equal(find(&l, fds[23])->state, TCP_ESTABLISHED);
	sock_facts_done(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_option_shows),
	    cmocka_unit_test(of_many_connections),
	    cmocka_unit_test(special_ones),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
