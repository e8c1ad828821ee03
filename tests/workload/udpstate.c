/* What UDP sockets have that shows only when it is used.
 *
 * --what errors: what the network has said of something sent, which nobody has asked for, also
 * before datagrams. --from ADDR --to ADDR: also between these, IPv4 or IPv6; at the other nobody
 * listens. --from6, --to6: likewise
 * --what peekoff: SO_PEEK_OFF
 * --what interfaces: what is sent to a group goes out by --dev NAME, which was chosen by number
 * --what notices: messages of the network wait in the error queue */
#include "tcp_stream.h"
#include <net/if.h>
#include <poll.h>

enum { ERRORS_MAX = 4, CLOSED = 9 /* the port that discards; nobody has it */ };

static struct {
	int fds[ERRORS_MAX], n, waits;
	int peeked;
	int sender[2], member[2]; /* IPv4, IPv6 */
	struct sockaddr_storage group[2];
	socklen_t group_len[2];
} f;

static int udp_at(const char *text, struct sockaddr_storage *sa, socklen_t *len)
{
	int fd;

	*len = tcp_address(text, sa);
	fd = socket(sa->ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	wl_must(fd >= 0 && !bind(fd, (void *)sa, *len) && !getsockname(fd, (void *)sa, len), text);
	return fd;
}

static bool has_error(int fd)
{
	struct pollfd p = {.fd = fd};

	return poll(&p, 1, 0) == 1 && p.revents & POLLERR;
}

static void get_error(const char *what, int fd, int error)
{
	char c;
	ssize_t n = recv(fd, &c, 1, 0);

	wl_check(n < 0 && errno == error, "%s: expected %s, got %zd (%s)", what, strerror(error), n,
		 n < 0 ? strerror(errno) : "no error");
}

/* ---- errors ---- */

static int refused(const char *from, const char *to)
{
	struct sockaddr_storage us, peer;
	socklen_t len, peer_len = tcp_address(to, &peer);
	int fd = udp_at(from, &us, &len);

	wl_must(!connect(fd, (void *)&peer, peer_len), to);
	wl_same("send", 1, send(fd, "x", 1, 0));
	struct pollfd p = {.fd = fd};
	wl_check(poll(&p, 1, 5000) == 1 && p.revents & POLLERR, "%s does not refuse", to);
	return fd;
}

static void refused_between(const char *from, const char *to)
{
	char us[100], peer[100];

	if (!wl_opt_str(from, NULL))
		return;
	snprintf(us, sizeof(us), "%s:0", wl_opt_str(from, NULL));
	snprintf(peer, sizeof(peer), "%s:%d", wl_opt_str(to, NULL), CLOSED);
	f.fds[f.n++] = refused(us, peer);
}

static void errors_set_up(void)
{
	struct sockaddr_storage us, peer;
	socklen_t len, peer_len;
	int other;

	f.fds[f.n++] = refused("127.0.0.1:0", "127.0.0.1:9");
	refused_between("from", "to");
	refused_between("from6", "to6");
	other = udp_at("127.0.0.1:0", &peer, &peer_len);
	f.waits = udp_at("127.0.0.1:0", &us, &len);
	wl_must(!connect(f.waits, (void *)&peer, peer_len), "connect");
	wl_same("send", 5, sendto(other, "first", 5, 0, (void *)&us, len));
	close(other);
	wl_same("send", 1, send(f.waits, "x", 1, 0));
	wl_check(has_error(f.waits), "nobody refuses");
}

static void errors_check(void)
{
	char buf[16] = "";

	for (int i = 0; i < f.n; i++) {
		wl_check(has_error(f.fds[i]), "socket %d: no error waits", i);
		get_error("after something was refused", f.fds[i], ECONNREFUSED);
		get_error("after that", f.fds[i], EAGAIN);
	}
	get_error("before a datagram", f.waits, ECONNREFUSED);
	wl_same("the datagram", 5, recv(f.waits, buf, sizeof(buf), 0));
	wl_check(!strcmp(buf, "first"), "the datagram: %s", buf);
	get_error("after all", f.waits, EAGAIN);
}

/* ---- SO_PEEK_OFF ---- */

static void peekoff_set_up(void)
{
	struct sockaddr_storage us;
	const int off = 3;
	socklen_t len;

	f.peeked = udp_at("127.0.0.1:0", &us, &len);
	wl_must(!connect(f.peeked, (void *)&us, len), "connect");
	wl_same("send", 3, send(f.peeked, "one", 3, 0));
	wl_same("send", 3, send(f.peeked, "two", 3, 0));
	wl_must(!setsockopt(f.peeked, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)), "SO_PEEK_OFF");
}

static void peekoff_check(void)
{
	char buf[16] = "";
	int off = 0;
	socklen_t len = sizeof(off);

	wl_must(!getsockopt(f.peeked, SOL_SOCKET, SO_PEEK_OFF, &off, &len), "SO_PEEK_OFF");
	wl_same("SO_PEEK_OFF", 3, off);
	wl_same("a look", 3, recv(f.peeked, buf, sizeof(buf), MSG_PEEK));
	wl_check(!strcmp(buf, "two"), "a look from there: %s", buf);
	wl_same("the first", 3, recv(f.peeked, buf, sizeof(buf), 0));
	wl_check(!strcmp(buf, "one"), "the first: %s", buf);
}

/* ---- interfaces ---- */

static int level_of(int i)
{
	return i ? IPPROTO_IPV6 : IPPROTO_IP;
}

static void interfaces_set_up(void)
{
	const char *groups[2] = {"239.7.7.7:0", "[ff05::7777]:0"},
		   *any[2] = {"0.0.0.0:0", "[::]:0"};
	const unsigned int index = if_nametoindex(wl_opt_str("dev", "eth0"));
	const struct ip_mreqn by_number = {.imr_ifindex = (int)index};
	const int on = 1;

	wl_must(index, "the interface");
	for (int i = 0; i < 2; i++) {
		struct group_req rq = {.gr_interface = index};
		struct sockaddr_storage us;
		socklen_t len;

		f.member[i] = udp_at(any[i], &us, &len);
		f.sender[i] = udp_at(any[i], &(struct sockaddr_storage){0}, &(socklen_t){0});
		f.group_len[i] = tcp_address(groups[i], &f.group[i]);
		memcpy(&rq.gr_group, &f.group[i], f.group_len[i]);
		wl_must(!setsockopt(f.member[i], level_of(i), MCAST_JOIN_GROUP, &rq, sizeof(rq)),
			"MCAST_JOIN_GROUP");
		((struct sockaddr_in *)&f.group[i])->sin_port =
		    ((struct sockaddr_in *)&us)->sin_port;
	}
	wl_must(!setsockopt(f.member[0], IPPROTO_IP, IP_PKTINFO, &on, sizeof(on)), "IP_PKTINFO");
	wl_must(!setsockopt(f.member[1], IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on)),
		"IPV6_RECVPKTINFO");
	wl_must(
	    !setsockopt(f.sender[0], IPPROTO_IP, IP_MULTICAST_IF, &by_number, sizeof(by_number)),
	    "IP_MULTICAST_IF");
	wl_must(!setsockopt(f.sender[1], IPPROTO_IPV6, IPV6_MULTICAST_IF, &index, sizeof(index)),
		"IPV6_MULTICAST_IF");
}

/* By which interface did what is sent now come in? */
static unsigned int came_by(int i)
{
	char buf[8], control[256];
	struct pollfd p = {.fd = f.member[i], .events = POLLIN};
	struct iovec iov = {buf, sizeof(buf)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};
	struct in6_pktinfo six = {0};
	struct in_pktinfo four = {0};

	wl_same("send to a group", 5,
		sendto(f.sender[i], "hello", 5, 0, (void *)&f.group[i], f.group_len[i]));
	wl_check(poll(&p, 1, 2000) == 1, "IPv%d: nothing comes by the group", i ? 6 : 4);
	wl_same("receive by a group", 5, recvmsg(f.member[i], &m, 0));
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	wl_check(c, "IPv%d: not told by which interface", i ? 6 : 4);
	if (i)
		memcpy(&six, CMSG_DATA(c), sizeof(six));
	else
		memcpy(&four, CMSG_DATA(c), sizeof(four));
	return i ? six.ipi6_ifindex : (unsigned int)four.ipi_ifindex;
}

static void interfaces_check(void)
{
	for (int i = 0; i < 2; i++)
		wl_same("interface", if_nametoindex(wl_opt_str("dev", "eth0")), came_by(i));
}

/* ---- the error queue ---- */

static void notices_set_up(void)
{
	struct sockaddr_storage us, peer;
	const int on = 1;
	socklen_t len, peer_len = tcp_address("127.0.0.1:9", &peer);
	int fd = udp_at("127.0.0.1:0", &us, &len);

	wl_must(!setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof(on)), "IP_RECVERR");
	wl_same("send", 1, sendto(fd, "x", 1, 0, (void *)&peer, peer_len));
	wl_check(has_error(fd), "nobody refuses");
}

static void notices_check(void)
{
}

/* ---- all ---- */

static const struct {
	const char *name;
	void (*set_up)(void), (*check)(void);
} things[] = {
    {"errors", errors_set_up, errors_check},
    {"peekoff", peekoff_set_up, peekoff_check},
    {"interfaces", interfaces_set_up, interfaces_check},
    {"notices", notices_set_up, notices_check},
};
enum { THINGS = sizeof(things) / sizeof(things[0]) };

int main(int argc, char **argv)
{
	int k = 0;

	wl_init(argc, argv);
	while (k < THINGS && strcmp(things[k].name, wl_opt_str("what", "")))
		k++;
	wl_check(k < THINGS, "--what: no such thing");
	things[k].set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		wl_sleep_us(2000);
	}
	things[k].check();
	wl_done();
}
