/* Connections that nobody has a descriptor of any more. */
#include "kernel/tcp_diag.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static const struct tcp_unowned *find(const struct tcp_unowned_list *l,
				      const struct sockaddr_in *peer)
{
	for (size_t i = 0; i < l->list.n; i++)
		if (!memcmp(&l->list.v[i].peer, peer, sizeof(*peer)))
			return &l->list.v[i];
	return NULL;
}

static size_t fill(int fd)
{
	static char data[65536];
	size_t sum = 0;
	ssize_t n;

	while ((n = write(fd, data, sizeof(data))) > 0)
		sum += (size_t)n;
	assert_true(n < 0 && errno == EAGAIN);
	return sum;
}

static void closed_with_bytes_under_way(void **state)
{
	struct sockaddr_in us = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, peer;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct tcp_unowned_list l;
	socklen_t len = sizeof(us);
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(bind(listener, (struct sockaddr *)&us, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&us, &len), 0);
	int other = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(other, (struct sockaddr *)&us, len), 0);
	assert_int_equal(getsockname(other, (struct sockaddr *)&peer, &len), 0);
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(fd >= 0);

	assert_int_equal(tcp_diag_unowned(&l, &err), 0);
	assert_null(find(&l, &peer)); /* we have it */
	tcp_unowned_done(&l);

	assert_true(fill(fd) > 0);
	close(fd);
	assert_int_equal(tcp_diag_unowned(&l, &err), 0);
	const struct tcp_unowned *u = find(&l, &peer);
	assert_non_null(u);
	assert_true(u->bytes > 0);
	assert_memory_equal(&u->us, &us, sizeof(us));
	tcp_unowned_done(&l);

	close(other); /* with bytes unread: it is reset */
	assert_int_equal(tcp_diag_unowned(&l, &err), 0);
	assert_null(find(&l, &peer));
	tcp_unowned_done(&l);
	close(listener);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(closed_with_bytes_under_way)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
