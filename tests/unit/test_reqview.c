/* Handshakes whose third segment has not come: a client's kernel that sends none, in a network
 * namespace with a veth pair and a raw peer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "kernel/netinject.h"
#include "kernel/reqview.h"
#include "resource/tcp_segment.h"

enum { CLIENT_SEQ = 0x11223344 };

static struct netinject *in;

static int set_up(void **state)
{
	struct cr_err err = {0};

	(void)state;
	if (unshare(CLONE_NEWNET) ||
	    system("ip link set lo up && ip link add v0 type veth peer name v1 && "
		   "ip link set v0 up && ip link set v1 up && "
		   "ip addr add 10.9.9.1/24 dev v0 && ip addr add fd99::1/64 dev v0 nodad && "
		   "ip neigh add 10.9.9.2 dev v0 lladdr 02:00:00:00:00:02 && "
		   "ip neigh add fd99::2 dev v0 lladdr 02:00:00:00:00:02"))
		return -1;
	return netinject_open(&in, "v0", &err);
}

static int tear_down(void **state)
{
	(void)state;
	netinject_free(in);
	return 0;
}

static void address(struct sockaddr_storage *sa, const char *text, int family, int port)
{
	struct sockaddr_in *v4 = (void *)sa;
	struct sockaddr_in6 *v6 = (void *)sa;

	memset(sa, 0, sizeof(*sa));
	sa->ss_family = (sa_family_t)family;
	assert_int_equal(
	    inet_pton(family, text, family == AF_INET ? (void *)&v4->sin_addr : &v6->sin6_addr), 1);
	v4->sin_port = htons((uint16_t)port);
}

static uint64_t cookie_of(int fd)
{
	uint64_t v = 0;
	socklen_t len = sizeof(v);

	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &v, &len), 0);
	return v;
}

static void look(int family, const char *our_name, const char *peer_name)
{
	struct sockaddr_storage us, peer;
	socklen_t len =
	    family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	struct handshakes got = {0};
	struct reqview *v = NULL;
	struct cr_err err = {0};
	struct segment_buf buf;
	struct net_packet p;
	uint8_t want[16] = {0};
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address(&us, our_name, family, 0);
	address(&peer, peer_name, family, 5555);
	assert_int_equal(bind(fd, (void *)&us, len), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (void *)&us, &len), 0);
	if (reqview_new(&v, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(reqview_read(v, &got, &err), 0);
	assert_int_equal(got.list.n, 0);

	struct segment s = {.from = (void *)&peer,
			    .to = (void *)&us,
			    .seq = CLIENT_SEQ,
			    .window = 1000,
			    .flags = SEGMENT_SYN};
	segment_make(&s, &buf, &p);
	assert_int_equal(netinject_packet(in, &p, &err), 0);
	uint64_t cookie = cookie_of(fd);
	assert_int_equal(reqview_read(v, &got, &err), 0);
	assert_int_equal(got.list.n, 1);
	const struct handshake *h = got.list.v;
	assert_int_equal(h->family, family);
	assert_int_equal(h->listener, cookie);
	assert_int_equal(h->peer_port, htons(5555));
	assert_int_equal(h->our_port, ((struct sockaddr_in *)&us)->sin_port);
	inet_pton(family, peer_name, want);
	assert_memory_equal(h->peer, want, 16);
	inet_pton(family, our_name, want);
	assert_memory_equal(h->us, want, 16);
	assert_int_equal(h->rcv_seq, CLIENT_SEQ + 1);
	assert_int_equal(h->answers, 0);
	/* options that the SYN had not */
	assert_false(h->timestamps || h->sack || h->wscale || h->ecn);
	assert_int_equal(h->mss, family == AF_INET ? 536 : 1220);

	/* the third segment, with the sequence number that it told */
	s.flags = SEGMENT_ACK;
	s.seq = h->rcv_seq;
	s.ack = h->snd_seq;
	segment_make(&s, &buf, &p);
	assert_int_equal(netinject_packet(in, &p, &err), 0);
	int conn = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(conn >= 0);
	vec_done(&got.list);
	assert_int_equal(reqview_read(v, &got, &err), 0);
	assert_int_equal(got.list.n, 0);
	close(conn);
	close(fd);
	reqview_free(v);
}

static void test_v4(void **state)
{
	(void)state;
	look(AF_INET, "10.9.9.1", "10.9.9.2");
}

static void test_v6(void **state)
{
	(void)state;
	look(AF_INET6, "fd99::1", "fd99::2");
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_v4), cmocka_unit_test(test_v6)};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
