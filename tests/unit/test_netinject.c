/* Packets in at a device, and out of a capture; connections made by the end of their handshake
 * alone. In a network namespace with a veth pair. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "kernel/netcap.h"
#include "kernel/netinject.h"
#include "resource/tcp_segment.h"

#define must(cond) assert_true(cond)

struct fixture {
	struct netinject *in;
	struct sockaddr_storage us, peer;
	socklen_t len;
	int family;
};

static int set_up(void **state)
{
	static bool done;
	struct cr_err err = {0};
	struct fixture *x = calloc(1, sizeof(*x));

	if (!done &&
	    (unshare(CLONE_NEWNET) ||
	     system("ip link set lo up && ip link add v0 type veth peer name v1 && "
		    "ip link set v0 up && ip link set v1 up && "
		    "ip addr add 10.9.9.1/24 dev v0 && ip addr add fd99::1/64 dev v0 nodad && "
		    "ip neigh add 10.9.9.2 dev v0 lladdr 02:00:00:00:00:02 && "
		    "ip neigh add fd99::2 dev v0 lladdr 02:00:00:00:00:02 && "
		    "sysctl -qw net.ipv4.conf.all.rp_filter=1")))
		return -1;
	done = true;
	if (netinject_open(&x->in, "v0", &err)) {
		print_error("%s\n", err.msg);
		return -1;
	}
	*state = x;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *x = *state;

	netinject_free(x->in);
	free(x);
	return 0;
}

static void address(struct sockaddr_storage *sa, const char *text, int family, int port)
{
	struct sockaddr_in *in = (void *)sa;
	struct sockaddr_in6 *in6 = (void *)sa;

	memset(sa, 0, sizeof(*sa));
	sa->ss_family = (sa_family_t)family;
	must(inet_pton(family, text, family == AF_INET ? (void *)&in->sin_addr : &in6->sin6_addr));
	in->sin_port = htons((uint16_t)port);
}

static int listener(struct fixture *x, int family)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	x->family = family;
	x->len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	address(&x->us, family == AF_INET ? "10.9.9.1" : "fd99::1", family, 0);
	address(&x->peer, family == AF_INET ? "10.9.9.2" : "fd99::2", family, 4000);
	must(fd >= 0 && !bind(fd, (void *)&x->us, x->len) && !listen(fd, 8));
	must(!getsockname(fd, (void *)&x->us, &x->len));
	return fd;
}

static void say(struct fixture *x, uint32_t seq, uint32_t ack, uint8_t flags, const char *text,
		struct segment_buf *buf, struct net_packet *ret)
{
	struct segment s = {.from = &x->peer,
			    .to = &x->us,
			    .seq = seq,
			    .ack = ack,
			    .window = 500,
			    .flags = flags,
			    .data = (const uint8_t *)text,
			    .len = strlen(text)};

	segment_make(&s, buf, ret);
}

static int shake_hands(struct fixture *x, uint32_t seq, uint32_t ack, struct cr_err *err)
{
	struct segment_buf buf;
	struct net_packet p;
	struct netinject_handshake h = {.family = x->family,
					.mss = 1400,
					.wscale = true,
					.sack = true,
					.timestamps = true,
					.snd_wscale = 7,
					.rcv_wscale = 5,
					.our_clock = 123456};

	if (x->family == AF_INET) {
		struct sockaddr_in *us = (void *)&x->us, *peer = (void *)&x->peer;

		memcpy(h.us, &us->sin_addr, 4);
		memcpy(h.peer, &peer->sin_addr, 4);
	} else {
		struct sockaddr_in6 *us = (void *)&x->us, *peer = (void *)&x->peer;

		memcpy(h.us, &us->sin6_addr, 16);
		memcpy(h.peer, &peer->sin6_addr, 16);
	}
	h.our_port = ((struct sockaddr_in *)&x->us)->sin_port;
	h.peer_port = ((struct sockaddr_in *)&x->peer)->sin_port;
	say(x, seq, ack, SEGMENT_ACK, "", &buf, &p);
	return netinject_handshake(x->in, &h, &p, err);
}

static void check_handshake(struct fixture *x, int family)
{
	struct cr_err err = {0};
	struct segment_buf buf;
	struct net_packet p;
	struct tcp_info ti;
	socklen_t len = sizeof(ti);
	struct sockaddr_storage from = {0};
	char text[16];
	int l = listener(x, family);

	if (!netinject_knows_handshakes(x->in))
		skip();
	assert_int_equal(0, shake_hands(x, 1000001, 0xfffffff0, &err));
	say(x, 1000001, 0xfffffff0, SEGMENT_ACK | SEGMENT_PSH, "hello", &buf, &p);
	assert_int_equal(0, netinject_packet(x->in, &p, &err));
	say(x, 1000006, 0xfffffff0, SEGMENT_ACK | SEGMENT_FIN, "", &buf, &p);
	assert_int_equal(0, netinject_packet(x->in, &p, &err));

	socklen_t from_len = sizeof(from);
	int fd = accept4(l, (void *)&from, &from_len, SOCK_NONBLOCK);
	must(fd >= 0);
	assert_memory_equal(&x->peer, &from, 8);
	assert_int_equal(5, recv(fd, text, sizeof(text), 0));
	assert_memory_equal("hello", text, 5);
	assert_int_equal(0, recv(fd, text, sizeof(text), 0));
	must(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len));
	assert_int_equal(TCP_CLOSE_WAIT, ti.tcpi_state);
	assert_int_equal(7, ti.tcpi_snd_wscale);
	assert_int_equal(5, ti.tcpi_rcv_wscale);
	assert_int_equal(TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE,
			 ti.tcpi_options & 7);
	int clock = 0, on = 1;
	uint32_t seq = 0;
	len = sizeof(clock);
	must(!getsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &clock, &len));
	assert_in_range(clock, 123456, 123456 + 5000);
	/* it says what comes after what the peer has acknowledged */
	must(!setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)));
	on = 2; /* TCP_SEND_QUEUE */
	must(!setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &on, sizeof(on)));
	len = sizeof(seq);
	must(!getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &seq, &len));
	assert_int_equal(0xfffffff0, seq);
	close(fd);
	close(l);
	assert_int_equal(-ENOENT, shake_hands(x, 1, 1, &err));
}

static void handshake_v4(void **state)
{
	check_handshake(*state, AF_INET);
}

static void handshake_v6(void **state)
{
	check_handshake(*state, AF_INET6);
}

/* What is captured and put in again comes twice. */
static void check_capture(struct fixture *x, int family)
{
	struct cr_err err = {0};
	struct netcap *cap = NULL;
	struct devaddr a = {.family = family}, other = {.family = family};
	struct segment_buf buf;
	struct net_packet p;
	char text[64];
	socklen_t len = sizeof(x->us);
	int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int n = 0;

	address(&x->us, family == AF_INET ? "10.9.9.1" : "fd99::1", family, 0);
	address(&x->peer, family == AF_INET ? "10.9.9.2" : "fd99::2", family, 53);
	must(fd >= 0 && !bind(fd, (void *)&x->us, len) && !getsockname(fd, (void *)&x->us, &len));
	inet_pton(family, family == AF_INET ? "10.9.9.7" : "fd99:1:2:3::1", other.addr);
	inet_pton(family, family == AF_INET ? "10.9.9.1" : "fd99::1", a.addr);
	struct devaddr both[] = {other, a};
	assert_int_equal(0, netcap_open(&cap, both, 2, &err));
	struct segment s = {
	    .from = &x->peer, .to = &x->us, .data = (const uint8_t *)"datagram", .len = 8};
	datagram_make(&s, 17, 0, &buf, &p);
	assert_int_equal(0, netinject_packet(x->in, &p, &err));
	assert_int_equal(8, recv(fd, text, sizeof(text), 0));
	assert_memory_equal("datagram", text, 8);
	while (netcap_next(cap, &p, &err) == 1) {
		n++;
		assert_int_equal(0, netinject_packet(x->in, &p, &err));
		if (n == 3)
			break;
	}
	assert_int_equal(3, n); /* each of them is captured again */
	for (n = 0; n < 3; n++)
		assert_int_equal(8, recv(fd, text, sizeof(text), 0));
	assert_int_equal(-1, recv(fd, text, sizeof(text), 0));
	assert_int_equal(0, netcap_lost(cap));
	netcap_free(cap);
	/* not for that address */
	assert_int_equal(0, netcap_open(&cap, &other, 1, &err));
	datagram_make(&s, 17, 0, &buf, &p);
	assert_int_equal(0, netinject_packet(x->in, &p, &err));
	assert_int_equal(0, netcap_next(cap, &p, &err));
	netcap_free(cap);
	close(fd);
}

static void capture_v4(void **state)
{
	check_capture(*state, AF_INET);
}

static void capture_v6(void **state)
{
	check_capture(*state, AF_INET6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(handshake_v4, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(handshake_v6, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(capture_v4, set_up, tear_down),
	    cmocka_unit_test_setup_teardown(capture_v6, set_up, tear_down),
	};

	if (geteuid()) {
		printf("1..0 # SKIP needs root\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
