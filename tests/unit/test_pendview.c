/* What BPF says of sockets beside their data, and that looking takes nothing away. */
#include "kernel/pendview.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

static struct pendview *view;

static int setup(void **state)
{
	struct cr_err err = {0};

	(void)state;
	if (pendview_new(&view, &err))
		print_message("%s\n", err.msg);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	pendview_free(view);
	return 0;
}

static struct pending ask(int fd)
{
	struct pending_list l;
	struct cr_err err = {0};

	if (pendview_read(view, getpid(), &l, &err))
		fail_msg("%s", err.msg);
	assert_null(pending_find(&l, -1));
	const struct pending *found = pending_find(&l, fd);
	if (!found)
		fail_msg("fd %d is not told of", fd);
	struct pending p = *found;
	pending_done(&l);
	return p;
}

static int error_of(int fd)
{
	int error = 0;
	socklen_t len = sizeof(error);

	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len), 0);
	return error;
}

static void errors_stay(void **state)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof(in);
	int p[2], u = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int closed = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)state;
	if (!view)
		skip();
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	assert_int_equal(ask(p[0]).error, 0);
	assert_int_equal(send(p[1], "ab", 2, 0), 2);
	assert_int_equal(send(p[0], "c", 1, 0), 1);
	close(p[1]);
	assert_int_equal(ask(p[0]).error, ECONNRESET);
	assert_int_equal(ask(p[0]).to_read, 1);
	assert_int_equal(ask(p[0]).family, AF_UNIX);
	assert_int_equal(error_of(p[0]), ECONNRESET);
	assert_int_equal(ask(p[0]).error, 0);
	close(p[0]);
	assert_int_equal(bind(closed, (void *)&in, sizeof(in)), 0);
	assert_int_equal(getsockname(closed, (void *)&in, &len), 0);
	close(closed);
	assert_int_equal(connect(u, (void *)&in, sizeof(in)), 0);
	assert_int_equal(send(u, "x", 1, 0), 1); /* over loopback the answer is there at once */
	assert_int_equal(ask(u).error, ECONNREFUSED);
	assert_int_equal(error_of(u), ECONNREFUSED);
	close(u);
}

static void udp_queues(void **state)
{
	const int on = 1;
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	const struct ip_mreqn by_index = {.imr_ifindex = 1};
	socklen_t len = sizeof(in);
	int u = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char c;

	(void)state;
	if (!view)
		skip();
	assert_int_equal(bind(u, (void *)&in, sizeof(in)), 0);
	assert_int_equal(getsockname(u, (void *)&in, &len), 0);
	assert_int_equal(connect(u, (void *)&in, sizeof(in)), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(send(u, "x", 1, 0), 1);
	assert_int_equal(ask(u).to_read, 3);
	assert_int_equal(recv(u, &c, 1, 0), 1);
	assert_int_equal(ask(u).to_read, 2); /* the kernel has moved them to another queue */
	assert_int_equal(ask(u).to_send, 0);
	assert_int_equal(send(u, "y", 1, MSG_MORE), 1);
	assert_int_equal(ask(u).to_send, 1);
	assert_int_equal(ask(u).multicast_if, 0);
	assert_int_equal(setsockopt(u, IPPROTO_IP, IP_MULTICAST_IF, &by_index, sizeof(by_index)),
			 0);
	assert_int_equal(ask(u).multicast_if, 1);
	assert_int_equal(setsockopt(u, IPPROTO_IP, IP_RECVERR, &on, sizeof(on)), 0);
	assert_int_equal(ask(u).notices, 0);
	close(u);
}

static void packets(void **state)
{
	const int on = 1;
	struct pending_packets l;
	struct cr_err err = {0};
	int p[2];
	char c;

	(void)state;
	if (!view)
		skip();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, p), 0);
	assert_int_equal(send(p[0], "abc", 3, 0), 3);
	assert_int_equal(setsockopt(p[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
	assert_int_equal(send(p[0], "", 0, 0), 0);
	assert_int_equal(send(p[0], "", 0, 0), 0);
	assert_int_equal(recv(p[1], &c, 1, 0), 1);
	assert_int_equal(recv(p[1], &c, 1, MSG_PEEK), 0);
	struct pending of = ask(p[1]);
	if (pendview_packets(view, &of, &l, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(l.list.n, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(l.list.v[i].len, 0);
		assert_int_equal(l.list.v[i].peeked, i == 0);
		assert_false(l.list.v[i].rights);
		assert_int_equal(l.list.v[i].pid, getpid());
		assert_int_equal(l.list.v[i].uid, getuid());
		assert_int_equal(l.list.v[i].from_len, 0);
	}
	pending_packets_done(&l);
	of = ask(p[0]);
	assert_int_equal(pendview_packets(view, &of, &l, &err), 0);
	assert_int_equal(l.list.n, 0);
	pending_packets_done(&l);
	close(p[0]);
	close(p[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(errors_stay),
	    cmocka_unit_test(udp_queues),
	    cmocka_unit_test(packets),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
