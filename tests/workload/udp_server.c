/* A UDP server, to be moved: what waits in its socket is read after the move, in order and with
 * what the kernel tells of it, and what udp_peer asks is answered.
 *
 * --listen ADDR (default 0.0.0.0; an IPv6 address without brackets); the port is written to
 * DIR/port. --group ADDR: joins that multicast group over eth0. --late: reads nothing before it has
 * moved. --connected ADDR:PORT: connects there. */
#include "tcp_stream.h"
#include <net/if.h>

static struct {
	int fd;
	bool late;
	uint64_t served, waited;
	struct sockaddr_storage us;
	socklen_t us_len;
	struct group_req group;
} s;

static const struct {
	int level, name, value;
	const char *text;
} opts[] = {
    {SOL_SOCKET, SO_BROADCAST, 1, "SO_BROADCAST"},
    {SOL_SOCKET, SO_PRIORITY, 3, "SO_PRIORITY"},
    {SOL_SOCKET, SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"},
    {IPPROTO_IP, IP_RECVTTL, 1, "IP_RECVTTL"},
    {IPPROTO_IP, IP_TTL, 33, "IP_TTL"},
    {IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR"},
    {IPPROTO_IP, IP_MULTICAST_TTL, 4, "IP_MULTICAST_TTL"},
    {IPPROTO_IP, IP_MULTICAST_LOOP, 0, "IP_MULTICAST_LOOP"},
    {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, "IP_MTU_DISCOVER"},
};

static void set_up(void)
{
	const char *host = wl_opt_str("listen", "0.0.0.0"), *group = wl_opt_str("group", NULL);
	const char *peer = wl_opt_str("connected", NULL);
	char text[100], port[32];

	snprintf(text, sizeof(text), strchr(host, ':') ? "[%s]:0" : "%s:0", host);
	s.us_len = tcp_address(text, &s.us);
	s.fd = socket(s.us.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	wl_must(s.fd >= 0 && !bind(s.fd, (void *)&s.us, s.us_len), "bind");
	getsockname(s.fd, (void *)&s.us, &s.us_len);
	for (size_t i = 0; i < sizeof(opts) / sizeof(opts[0]); i++)
		wl_must(!setsockopt(s.fd, opts[i].level, opts[i].name, &opts[i].value, sizeof(int)),
			opts[i].text);
	if (group) {
		snprintf(text, sizeof(text), strchr(group, ':') ? "[%s]:0" : "%s:0", group);
		tcp_address(text, &s.group.gr_group);
		s.group.gr_interface = if_nametoindex("eth0");
		wl_must(!setsockopt(s.fd, s.us.ss_family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6,
				    MCAST_JOIN_GROUP, &s.group, sizeof(s.group)),
			"MCAST_JOIN_GROUP");
	}
	if (peer) {
		struct sockaddr_storage to;
		socklen_t len = tcp_address(peer, &to);

		wl_must(!connect(s.fd, (void *)&to, len), "connect");
	}
	snprintf(port, sizeof(port), "%d\n", ntohs(((struct sockaddr_in *)&s.us)->sin_port));
	wl_write("port", port);
}

static void check_options(void)
{
	struct sockaddr_storage us;
	socklen_t len = sizeof(us);

	for (size_t i = 0; i < sizeof(opts) / sizeof(opts[0]); i++) {
		int v = 0;

		len = sizeof(v);
		wl_must(!getsockopt(s.fd, opts[i].level, opts[i].name, &v, &len), opts[i].text);
		wl_same(opts[i].text, opts[i].value, v);
	}
	len = sizeof(us);
	getsockname(s.fd, (void *)&us, &len);
	wl_check(len == s.us_len && !memcmp(&us, &s.us, len), "another address");
	if (s.group.gr_interface)
		wl_check(setsockopt(s.fd, s.us.ss_family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6,
				    MCAST_JOIN_GROUP, &s.group, sizeof(s.group)) &&
			     errno == EADDRINUSE,
			 "the multicast group is not joined any more");
}

/* Numbered by its sender, and sent back as it is. */
static bool serve_one(void)
{
	uint8_t buf[2000], control[256];
	struct sockaddr_storage from;
	struct iovec iov = {buf, sizeof(buf)};
	struct msghdr m = {.msg_name = &from,
			   .msg_namelen = sizeof(from),
			   .msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(s.fd, &m, 0);
	uint64_t number;

	if (n < 0 && errno == EAGAIN)
		return false;
	wl_check(n >= 0, "receiving: %s", strerror(errno));
	if (s.late && n > 0) { /* those that waited are all there, one after the other */
		memcpy(&number, buf, sizeof(number));
		wl_same("number of a datagram that waited", s.waited, number);
		stream_check(buf + 8, n - 8, number, "server");
		s.waited++;
	}
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL)
			wl_same("IP_TTL of a datagram", 55, *(int *)CMSG_DATA(c));
	wl_check(sendto(s.fd, buf, n, 0, (void *)&from, m.msg_namelen) == n, "answering: %s",
		 strerror(errno));
	s.served++;
	return true;
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	s.late = wl_flag("late");
	set_up();
	wl_ready();
	while (!wl_stop()) {
		if (!s.late || wl.moves)
			while (serve_one())
				;
		if (s.late && s.waited)
			s.late = false;
		if (wl_tick())
			check_options();
		usleep(200);
	}
	wl_check(s.served > 0, "nothing came");
	wl_done();
}
