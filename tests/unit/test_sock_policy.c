/* A socket with a policy hears nothing, whichever version of IP it speaks; without it, what comes.
 */
#include "kernel/sock_policy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

enum { WAIT_MS = 5000 };

struct ends {
	int ours, peer;
};

static struct sockaddr_storage loopback(int family, const char *address, socklen_t *len)
{
	struct sockaddr_storage sa = {.ss_family = (sa_family_t)family};
	bool v4 = family == AF_INET;

	*len = v4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	assert_int_equal(inet_pton(family, address,
				   v4 ? (void *)&((struct sockaddr_in *)&sa)->sin_addr
				      : (void *)&((struct sockaddr_in6 *)&sa)->sin6_addr),
			 1);
	return sa;
}

static struct ends connected(int family, const char *address, int type)
{
	socklen_t len;
	struct sockaddr_storage sa = loopback(family, address, &len);
	struct ends e = {socket(family, type, 0), socket(family, type, 0)};

	assert_int_equal(bind(e.ours, (struct sockaddr *)&sa, len), 0);
	assert_int_equal(getsockname(e.ours, (struct sockaddr *)&sa, &len), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(e.ours, 1), 0);
	assert_int_equal(connect(e.peer, (struct sockaddr *)&sa, len), 0);
	if (type == SOCK_DGRAM)
		return e;
	int listener = e.ours;
	e.ours = accept(listener, NULL, NULL);
	assert_true(e.ours >= 0);
	close(listener);
	return e;
}

static void locks(int family, const char *address, int type)
{
	struct cr_err err = {0};
	struct ends e = connected(family, address, type);
	char buf[2];

	assert_int_equal(sock_policy_lock(e.ours, &err), 0);
	assert_int_equal(send(e.peer, "a", 1, 0), 1);
	/* over the loopback interface it would be there when send(2) returns */
	assert_int_equal(recv(e.ours, buf, sizeof(buf), MSG_DONTWAIT), -1);
	assert_int_equal(sock_policy_unlock(e.ours, &err), 0);
	assert_int_equal(sock_policy_unlock(e.ours, &err), 0); /* which may be repeated */
	assert_int_equal(send(e.peer, "b", 1, 0), 1);
	struct pollfd pfd = {.fd = e.ours, .events = POLLIN};
	assert_int_equal(poll(&pfd, 1, WAIT_MS), 1);
	assert_true(recv(e.ours, buf, sizeof(buf), 0) > 0);
	assert_int_equal(buf[0], type == SOCK_STREAM ? 'a' : 'b'); /* sent again, or lost */
	close(e.ours);
	close(e.peer);
}

static void nothing_comes(void **state)
{
	(void)state;
	if (!sock_policy_is_possible())
		skip();
	for (int i = 0; i < 2; i++) {
		int type = i ? SOCK_DGRAM : SOCK_STREAM;

		locks(AF_INET, "127.0.0.1", type);
		locks(AF_INET6, "::1", type);
		locks(AF_INET6, "::ffff:127.0.0.1", type);
	}
}

static void others_are_left_alone(void **state)
{
	struct cr_err err = {0};
	int fds[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(sock_policy_unlock(fds[0], &err), 0);
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(nothing_comes),
	    cmocka_unit_test(others_are_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
