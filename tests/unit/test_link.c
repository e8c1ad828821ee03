/* Links: frames over real sockets, ends and nonsense of the other side, addresses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "wire/addr.h"
#include "wire/link.h"

#define OK(call)                                                                                   \
	do {                                                                                       \
		struct cr_err e_ = {0}, *err = &e_;                                                \
		if ((call) < 0)                                                                    \
			fail_msg(#call ": %s", e_.msg);                                            \
	} while (0)
#define FAILS(call, code_, kind_)                                                                  \
	do {                                                                                       \
		struct cr_err e_ = {0}, *err = &e_;                                                \
		assert_int_equal((call), -(code_));                                                \
		assert_int_equal(e_.kind, (kind_));                                                \
		assert_true(e_.msg[0]);                                                            \
	} while (0)

struct pair {
	struct link *a, *b;
};

static int make_pair(void **state)
{
	static struct pair p;
	struct cr_err e = {0};
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0 ||
	    link_new(&p.a, sv[0], sv[0], &e) < 0 || link_new(&p.b, sv[1], sv[1], &e) < 0)
		return -1;
	*state = &p;
	return 0;
}

static int drop_pair(void **state)
{
	struct pair *p = *state;

	link_free(p->a);
	link_free(p->b);
	*p = (struct pair){0};
	return 0;
}

static void put_raw(struct link *l, const void *bytes, size_t n)
{
	assert_int_equal(write(link_fd(l), bytes, n), n);
}

static void test_call(void **state)
{
	struct pair *p = *state;
	struct msg m = msg_of(MSG_PING), n;

	OK(link_send(p->a, &m, err));
	OK(link_recv(p->b, 1000, &n, err));
	assert_int_equal(n.type, MSG_PING);
	msg_free(&n);
	/* the answer first: both ends are in this thread */
	m = (struct msg){.type = MSG_RUNNING, .running.us = 7};
	OK(link_send(p->b, &m, err));
	m = msg_of(MSG_COMMIT);
	OK(link_call(p->a, &m, MSG_RUNNING, 1000, &n, err));
	assert_int_equal(n.running.us, 7);
	msg_free(&n);
}

static void test_call_error(void **state)
{
	struct pair *p = *state;
	struct msg m = {
	    .type = MSG_ERROR,
	    .error = {.kind = CR_ERR_UNSUPPORTED, .code = EOPNOTSUPP, .pid = 5, .msg = "no"}};
	struct msg n, commit = msg_of(MSG_COMMIT);
	struct cr_err e = {0};

	OK(link_send(p->b, &m, err));
	assert_int_equal(link_call(p->a, &commit, MSG_RUNNING, 1000, &n, &e), -EOPNOTSUPP);
	assert_int_equal(e.kind, CR_ERR_UNSUPPORTED);
	assert_int_equal(e.pid, 5);
	assert_string_equal(e.msg, "COMMIT: no");
	assert_null(n.arena);
	m = msg_of(MSG_PONG);
	OK(link_send(p->b, &m, err));
	FAILS(link_call(p->a, &commit, MSG_RUNNING, 1000, &n, err), EPROTO, CR_ERR_PEER);
}

static void test_several_at_once(void **state)
{
	struct pair *p = *state;
	struct msg m = msg_of(MSG_PING), n;

	assert_false(link_pending(p->b));
	for (int i = 0; i < 100; i++)
		OK(link_send(p->a, &m, err));
	for (int i = 0; i < 100; i++) {
		OK(link_recv(p->b, 0, &n, err));
		assert_int_equal(n.type, MSG_PING);
		msg_free(&n);
		if (i == 0)
			assert_true(link_pending(p->b));
	}
	assert_false(link_pending(p->b));
	FAILS(link_recv(p->b, 0, &n, err), ETIMEDOUT, CR_ERR_PEER);
}

static void test_byte_by_byte(void **state)
{
	struct pair *p = *state;
	static const uint8_t pong[] = {3, 0, 0, 0, 0x82, 0x02, 0x00};
	struct msg n;

	for (size_t i = 0; i < sizeof(pong); i++) {
		FAILS(link_recv(p->b, 0, &n, err), ETIMEDOUT, CR_ERR_PEER);
		put_raw(p->a, pong + i, 1);
	}
	OK(link_recv(p->b, 0, &n, err));
	assert_int_equal(n.type, MSG_PONG);
	msg_free(&n);
}

static void test_timeout(void **state)
{
	struct pair *p = *state;
	struct msg n;
	uint64_t start = now_us();

	FAILS(link_recv(p->b, 30, &n, err), ETIMEDOUT, CR_ERR_PEER);
	assert_true(now_us() - start >= 29000);
}

static void test_end(void **state)
{
	struct pair *p = *state;
	struct msg m = msg_of(MSG_PING), n;

	OK(link_send(p->a, &m, err));
	link_free(p->a);
	p->a = NULL;
	OK(link_recv(p->b, 1000, &n, err));
	msg_free(&n);
	FAILS(link_recv(p->b, 1000, &n, err), ECONNRESET, CR_ERR_PEER);
	FAILS(link_recv(p->b, 1000, &n, err), ECONNRESET, CR_ERR_PEER);
	assert_true(link_pending(p->b));
	FAILS(link_send(p->b, &m, err), EPIPE, CR_ERR_PEER);
}

static void test_end_inside(void **state)
{
	struct pair *p = *state;
	struct msg n;
	struct cr_err e = {0};

	put_raw(p->a, "\x09\0\0\0half", 8);
	link_free(p->a);
	p->a = NULL;
	assert_int_equal(link_recv(p->b, 1000, &n, &e), -ECONNRESET);
	assert_non_null(strstr(e.msg, "in the middle"));
}

static void test_nonsense(void **state)
{
	struct pair *p = *state;
	struct msg m = msg_of(MSG_PING), n;

	put_raw(p->a, "\x02\0\0\0\xff\xff", 6);
	OK(link_send(p->a, &m, err));
	FAILS(link_recv(p->b, 1000, &n, err), EPROTO, CR_ERR_PEER);
	/* and never trusted again */
	FAILS(link_recv(p->b, 1000, &n, err), EPROTO, CR_ERR_PEER);
}

static void test_empty_frame(void **state)
{
	struct pair *p = *state;
	struct msg n;

	put_raw(p->a, "\0\0\0\0", 4);
	FAILS(link_recv(p->b, 1000, &n, err), EPROTO, CR_ERR_PEER);
}

static void test_too_long(void **state)
{
	struct pair *p = *state;
	struct msg n;

	put_raw(p->a, "\x01\0\x10\0", 4); /* 1 MiB and a byte */
	FAILS(link_recv(p->b, 1000, &n, err), EMSGSIZE, CR_ERR_PEER);
	put_raw(p->b, "\x01\0\x10\0", 4);
	link_accept_trees(p->a);
	FAILS(link_recv(p->a, 0, &n, err), ETIMEDOUT, CR_ERR_PEER);
	put_raw(p->b, "x", 1);
	link_free(p->a);
	p->a = NULL;
}

static void test_too_long_tree(void **state)
{
	struct pair *p = *state;
	struct msg n;

	link_accept_trees(p->b);
	put_raw(p->a, "\x01\0\0\x20", 4); /* 512 MiB and a byte */
	FAILS(link_recv(p->b, 1000, &n, err), EMSGSIZE, CR_ERR_PEER);
}

/* Larger than any socket buffer: needs both sides to go on. */
static void test_large_tree(void **state)
{
	struct pair *p = *state;
	enum { BYTES = 8 << 20 };
	_cleanup_free_ uint8_t *bytes = malloc(BYTES);
	struct msg m = {.type = MSG_TREE,
			.tree = {.stage = MSG_STAGE_CHECK, .tree = bytes, .tree_len = BYTES}},
		   n;

	for (size_t i = 0; i < BYTES; i++)
		bytes[i] = (uint8_t)(i * 2654435761u >> 24);
	pid_t child = fork();
	if (child == 0) {
		struct cr_err e = {0};
		struct msg done = msg_of(MSG_OK);

		_exit(link_send(p->a, &m, &e) < 0 || link_send(p->a, &done, &e) < 0);
	}
	link_accept_trees(p->b);
	OK(link_recv(p->b, 10000, &n, err));
	assert_int_equal(n.tree.tree_len, BYTES);
	assert_memory_equal(n.tree.tree, bytes, BYTES);
	msg_free(&n);
	OK(link_recv(p->b, 10000, &n, err));
	assert_int_equal(n.type, MSG_OK);
	msg_free(&n);
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

static void test_pipe_ends(void **state)
{
	(void)state;
	int there[2], back[2];
	struct link *a, *b;
	struct msg m = msg_of(MSG_PING), n;

	assert_int_equal(pipe2(there, O_CLOEXEC) | pipe2(back, O_CLOEXEC), 0);
	OK(link_new(&a, back[0], there[1], err));
	OK(link_new(&b, there[0], back[1], err));
	OK(link_send(a, &m, err));
	OK(link_recv(b, 1000, &n, err));
	assert_int_equal(n.type, MSG_PING);
	msg_free(&n);
	OK(link_send(b, &m, err));
	OK(link_recv(a, 1000, &n, err));
	msg_free(&n);
	link_free(a);
	link_free(b);
}

/* ---- listening and connecting ---- */

static void talk(int listen_fd, const char *address)
{
	struct link *a, *b;
	struct msg_hello hello = {.version = MSG_VERSION, .role = MSG_ROLE_QUERY, .host = "here"};
	struct msg m = {.type = MSG_HELLO, .hello = hello}, n;

	FAILS(link_accept(listen_fd, &b, err), EAGAIN, CR_ERR_IO);
	OK(link_connect(&a, address, 10000, err));
	struct pollfd pfd = {.fd = listen_fd, .events = POLLIN};
	assert_int_equal(poll(&pfd, 1, 10000), 1);
	OK(link_accept(listen_fd, &b, err));
	m.hello.role = MSG_ROLE_AGENT;
	OK(link_send(b, &m, err));
	OK(link_hello(a, &hello, 10000, &n, err));
	assert_int_equal(n.hello.role, MSG_ROLE_AGENT);
	assert_string_equal(n.hello.host, "here");
	msg_free(&n);
	OK(link_recv(b, 10000, &n, err));
	assert_int_equal(n.hello.role, MSG_ROLE_QUERY);
	msg_free(&n);
	link_free(a);
	link_free(b);
}

static void test_tcp(void **state)
{
	(void)state;
	struct cr_err e = {0};
	_cleanup_fd_ int fd = link_listen("127.0.0.1:0", &e);
	char address[ADDR_TEXT];

	assert_true(fd >= 0);
	assert_int_equal(link_listen_address(fd, address, &e), 0);
	assert_int_equal(strncmp(address, "127.0.0.1:", 10), 0);
	talk(fd, address);

	struct link *a;
	int value;
	socklen_t len = sizeof(value);
	OK(link_connect(&a, address, 1000, err));
	assert_int_equal(getsockopt(link_fd(a), IPPROTO_TCP, TCP_NODELAY, &value, &len), 0);
	assert_true(value);
	assert_int_equal(getsockopt(link_fd(a), IPPROTO_TCP, TCP_USER_TIMEOUT, &value, &len), 0);
	assert_int_equal(value, 5000);
	link_free(a);
}

static void test_tcp_v6(void **state)
{
	(void)state;
	struct cr_err e = {0};
	_cleanup_fd_ int fd = link_listen("[::1]:0", &e);
	char address[ADDR_TEXT];

	if (fd < 0)
		skip(); /* no IPv6 here */
	assert_int_equal(link_listen_address(fd, address, &e), 0);
	assert_int_equal(strncmp(address, "[::1]:", 6), 0);
	talk(fd, address);
}

static void test_unix(void **state)
{
	(void)state;
	char dir[] = "/tmp/linkXXXXXX", path[64], address[80], text[ADDR_TEXT];
	struct cr_err e = {0};
	struct stat st;
	struct link *l;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/agent.sock", dir);
	snprintf(address, sizeof(address), "unix:%s", path);
	FAILS(link_connect(&l, address, 1000, err), ENOENT, CR_ERR_IO);
	int fd = link_listen(address, &e);
	assert_true(fd >= 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(link_listen_address(fd, text, &e), 0);
	assert_string_equal(text, address);
	talk(fd, address);
	/* in use: not taken; left behind: replaced */
	FAILS(link_listen(address, err), EADDRINUSE, CR_ERR_IO);
	close(fd);
	FAILS(link_connect(&l, address, 1000, err), ECONNREFUSED, CR_ERR_IO);
	fd = link_listen(address, &e);
	assert_true(fd >= 0);
	talk(fd, address);
	close(fd);
	unlink(path);
	rmdir(dir);
}

static void test_refused(void **state)
{
	(void)state;
	struct cr_err e = {0};
	char address[ADDR_TEXT];
	struct link *l;
	int fd = link_listen("127.0.0.1:0", &e);

	assert_int_equal(link_listen_address(fd, address, &e), 0);
	close(fd);
	FAILS(link_connect(&l, address, 1000, err), ECONNREFUSED, CR_ERR_IO);
	FAILS(link_connect(&l, "nowhere", 1000, err), EINVAL, CR_ERR_INPUT);
}

/* ---- addresses and endpoints ---- */

static void test_addr(void **state)
{
	(void)state;
	static const char *const good[] = {"127.0.0.1:80", "[::1]:7710", "[fe80::1:2]:1",
					   "10.77.0.2:65535", "unix:/run/cr-agent/agent.sock"};
	static const char *const bad[] = {
	    "",
	    ":80",
	    "127.0.0.1",
	    "127.0.0.1:",
	    "127.0.0.1:65536",
	    "127.0.0.1:x",
	    "127.0.0.1:-1",
	    "127.0.0.1: 1",
	    "localhost:80",
	    "::1:80",
	    "[::1]",
	    "[::1]80",
	    "[::1",
	    "[127.0.0.1]:80",
	    "unix:relative",
	    "unix:",
	    "1.2.3.4:1:2",
	};
	struct addr a;
	char text[ADDR_TEXT], path[200] = "unix:/";

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		OK(addr_parse(good[i], &a, err));
		addr_format(&a, text);
		assert_string_equal(text, good[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		FAILS(addr_parse(bad[i], &a, err), EINVAL, CR_ERR_INPUT);
	memset(path + 6, 'x', 107);
	FAILS(addr_parse(path, &a, err), EINVAL, CR_ERR_INPUT);
	path[5 + 107] = 0;
	OK(addr_parse(path, &a, err));
}

static void test_endpoint(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		struct endpoint is;
	} good[] = {
	    {"local", {ENDPOINT_UNIX, .path = AGENT_LOCAL_SOCKET}},
	    {"unix:/a b", {ENDPOINT_UNIX, .path = "/a b"}},
	    {"beta", {ENDPOINT_TCP, .host = "beta", .port = 7710}},
	    {"beta:99", {ENDPOINT_TCP, .host = "beta", .port = 99}},
	    {"10.0.0.1", {ENDPOINT_TCP, .host = "10.0.0.1", .port = 7710}},
	    {"[::1]", {ENDPOINT_TCP, .host = "::1", .port = 7710}},
	    {"[::1]:5", {ENDPOINT_TCP, .host = "::1", .port = 5}},
	    {"ssh://beta", {ENDPOINT_SSH, .host = "beta"}},
	    {"ssh://root@beta.example", {ENDPOINT_SSH, .user = "root", .host = "beta.example"}},
	};
	static const char *const bad[] = {
	    "",      "unix:relative", "unix:",  "beta:",    "beta:0",   "beta:65536", "beta:http",
	    "::1",   "http://beta",   "ssh://", "ssh://@h", "ssh://u@", "ssh://-oX",  "ssh://-l@h",
	    "-beta", "a b",           "a/b",    ":5",       "[::1",     "ssh://a/b",
	};

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		struct endpoint e;

		OK(endpoint_parse(good[i].text, &e, err));
		assert_int_equal(e.kind, good[i].is.kind);
		assert_string_equal(e.path, good[i].is.path);
		assert_string_equal(e.user, good[i].is.user);
		assert_string_equal(e.host, good[i].is.host);
		assert_int_equal(e.port, good[i].is.port);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct endpoint e;

		FAILS(endpoint_parse(bad[i], &e, err), EINVAL, CR_ERR_INPUT);
	}
}

#define ON_PAIR(f) cmocka_unit_test_setup_teardown(f, make_pair, drop_pair)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    ON_PAIR(test_call),
	    ON_PAIR(test_call_error),
	    ON_PAIR(test_several_at_once),
	    ON_PAIR(test_byte_by_byte),
	    ON_PAIR(test_timeout),
	    ON_PAIR(test_end),
	    ON_PAIR(test_end_inside),
	    ON_PAIR(test_nonsense),
	    ON_PAIR(test_empty_frame),
	    ON_PAIR(test_too_long),
	    ON_PAIR(test_too_long_tree),
	    ON_PAIR(test_large_tree),
	    cmocka_unit_test(test_pipe_ends),
	    cmocka_unit_test(test_tcp),
	    cmocka_unit_test(test_tcp_v6),
	    cmocka_unit_test(test_unix),
	    cmocka_unit_test(test_refused),
	    cmocka_unit_test(test_addr),
	    cmocka_unit_test(test_endpoint),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
