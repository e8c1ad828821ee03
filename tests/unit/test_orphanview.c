/* Connections that were closed before their peer had acknowledged everything: what they still have
 * to send is told byte for byte. Over the loopback interface of a network namespace; a filter has
 * the peer acknowledge nothing more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernel/orphanview.h"
#include "kernel/tcp_diag.h"

static struct orphanview *view;

static int set_up(void **state)
{
	struct cr_err err = {0};

	(void)state;
	if (unshare(CLONE_NEWNET) || system("ip link set lo up"))
		return -1;
	if (orphanview_new(&view, &err)) {
		print_error("%s\n", err.msg);
		return -1;
	}
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	orphanview_free(view);
	return 0;
}

static uint8_t byte_at(size_t at)
{
	return (uint8_t)(at * 7 + (at >> 8) * 13 + (at >> 16));
}

struct pair {
	int ours, theirs;
	struct sockaddr_storage us;
	size_t sent, read; /* by us; by them */
};

static void make_pair(struct pair *p, int family)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_storage at = {0};
	socklen_t len = family == AF_INET ? sizeof(in) : sizeof(in6);
	int listener = socket(family, SOCK_STREAM, 0);

	memcpy(&at, family == AF_INET ? (void *)&in : (void *)&in6, len);
	*p = (struct pair){.theirs = socket(family, SOCK_STREAM, 0)};
	assert_int_equal(bind(listener, (void *)&at, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (void *)&at, &len), 0);
	assert_int_equal(connect(p->theirs, (void *)&at, len), 0);
	p->ours = accept(listener, NULL, NULL);
	assert_true(p->ours >= 0);
	assert_int_equal(getsockname(p->ours, (void *)&p->us, &len), 0);
	close(listener);
}

/* From here on it hears nothing. */
static void deafen(struct pair *p)
{
	struct sock_filter none = {BPF_RET | BPF_K, 0, 0, 0};
	struct sock_fprog f = {1, &none};

	assert_int_equal(setsockopt(p->theirs, SOL_SOCKET, SO_ATTACH_FILTER, &f, sizeof(f)), 0);
}

static size_t send_some(struct pair *p, size_t len)
{
	static uint8_t buf[1 << 20];

	for (size_t i = 0; i < len; i++)
		buf[i] = byte_at(p->sent + i);
	ssize_t n = send(p->ours, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	assert_true(n > 0);
	p->sent += (size_t)n;
	return (size_t)n;
}

static void send_file(struct pair *p, size_t len)
{
	int fd = memfd_create("sent", 0);
	uint8_t *at;

	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (size_t i = 0; i < len; i++)
		at[i] = byte_at(p->sent + i);
	ssize_t n = sendfile(p->ours, fd, NULL, len);
	assert_true(n > 0);
	p->sent += (size_t)n;
	munmap(at, len);
	close(fd);
}

static bool is_wanted(const struct orphan *o, void *arg)
{
	const struct pair *p = arg;

	return !memcmp(&o->us, &p->us, sizeof(o->us));
}

/* As many of the last bytes as that, and the FIN, are not acknowledged. */
static void expect_as(struct pair *p, size_t at_least, bool take)
{
	struct orphans got = {0};
	struct cr_err err = {0};

	if (orphanview_read(view, take, is_wanted, p, &got, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(got.unread, 0);
	assert_int_equal(got.list.n, 1);
	struct orphan *o = &got.list.v[0];
	assert_true(o->out_len >= at_least && o->out_len <= p->sent);
	assert_int_equal(o->write_seq - o->snd_una, o->out_len + 1);
	for (size_t i = 0; i < o->out_len; i++)
		if (o->out[i] != byte_at(p->sent - o->out_len + i))
			fail_msg("byte %zu of %zu: %u", i, o->out_len, o->out[i]);
	assert_true(o->state == TCP_FIN_WAIT1 || o->state == TCP_LAST_ACK ||
		    o->state == TCP_CLOSING);
	assert_true(o->timestamps && o->sack && o->wscale && o->mss > 1000);
	orphans_done(&got);
}

static void expect(struct pair *p, size_t at_least)
{
	expect_as(p, at_least, false);
}

static void close_both(struct pair *p)
{
	close(p->theirs);
}

static void small(void **state)
{
	struct pair p;

	(void)state;
	for (int family = AF_INET; family <= AF_INET6; family += AF_INET6 - AF_INET) {
		make_pair(&p, family);
		deafen(&p);
		send_some(&p, 700);
		send_some(&p, 3);
		close(p.ours);
		expect(&p, 703);
		expect_as(&p, 703, true);
		close_both(&p);
	}
}

static void only_its_end(void **state)
{
	struct pair p;

	(void)state;
	make_pair(&p, AF_INET);
	deafen(&p);
	close(p.ours);
	expect(&p, 0);
	close_both(&p);
}

/* More than the peer has room for, so that some has been acknowledged, some sent, and some not. */
static void large(void **state)
{
	struct pair p;

	(void)state;
	make_pair(&p, AF_INET6);
	while (p.sent < 64 << 10)
		send_some(&p, 5000);
	deafen(&p);
	int room = 4 << 20;
	setsockopt(p.ours, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	for (int i = 0; i < 6; i++)
		send_some(&p, 100000 + (size_t)i * 1111);
	close(p.ours);
	expect(&p, 600000);
	close_both(&p);
}

static void of_a_file(void **state)
{
	struct pair p;

	(void)state;
	make_pair(&p, AF_INET);
	deafen(&p);
	send_some(&p, 300);
	send_file(&p, 70000);
	send_some(&p, 11);
	close(p.ours);
	expect(&p, 70311);
	close_both(&p);
}

/* A peer that has ended first: LAST_ACK. */
static void last_ack(void **state)
{
	struct pair p;
	char c;

	(void)state;
	make_pair(&p, AF_INET);
	assert_int_equal(shutdown(p.theirs, SHUT_WR), 0);
	assert_int_equal(recv(p.ours, &c, 1, 0), 0);
	deafen(&p);
	send_some(&p, 2000);
	close(p.ours);
	expect(&p, 2000);
	close_both(&p);
}

static void many(void **state)
{
	enum { N = 300 };
	static struct pair p[N];

	(void)state;
	for (int i = 0; i < N; i++) {
		make_pair(&p[i], AF_INET);
		deafen(&p[i]);
		for (int k = 0; k < 10; k++)
			send_some(&p[i], 1 + (size_t)i * 17);
		close(p[i].ours);
	}
	for (int i = 0; i < N; i++)
		expect(&p[i], p[i].sent);
	for (int i = 0; i < N; i++)
		close_both(&p[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(small),     cmocka_unit_test(only_its_end), cmocka_unit_test(large),
	    cmocka_unit_test(of_a_file), cmocka_unit_test(last_ack),     cmocka_unit_test(many),
	};

	return cmocka_run_group_tests_name("orphanview", tests, set_up, tear_down);
}
