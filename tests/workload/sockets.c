/* Listening sockets: TCP over IPv4 and IPv6, unix by path and by abstract name, watched by an
 * epoll.
 *
 * --connected: also a connection to itself, both ends, and one that was never accepted. They cannot
 * be moved: whoever uses them afterwards is told that they are broken, and is not left waiting.
 * --listen IP (default 0.0.0.0); the port is written to DIR/port. Whoever connects and sends a line
 * gets "LINE HOST SUM" with SUM the sum of the line's bytes. */
#include "workload.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct {
	int tcp, tcp6, un, un_abstract, epoll;
	int listener, client, server, waiting;
	int udp, udp_client;
	int group[2];
} f;

static void set_up_sockets(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(in);
	char path[256], port[32];
	const int one = 1;

	f.tcp = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(f.tcp, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(f.tcp, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	inet_pton(AF_INET, wl_opt_str("listen", "0.0.0.0"), &in.sin_addr);
	wl_must(!bind(f.tcp, (void *)&in, sizeof(in)) && !listen(f.tcp, 17), "bind and listen");
	getsockname(f.tcp, (void *)&in, &len);
	snprintf(port, sizeof(port), "%d\n", ntohs(in.sin_port));
	wl_write("port", port);

	f.tcp6 = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
	setsockopt(f.tcp6, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (f.tcp6 >= 0 && (bind(f.tcp6, (void *)&in6, sizeof(in6)) || listen(f.tcp6, 5))) {
		close(f.tcp6); /* IPv6 is off here */
		f.tcp6 = -1;
	}
	wl_path(path, "socket");
	wl_check(strlen(path) < sizeof(un.sun_path), "DIR is too long for a unix socket");
	strcpy(un.sun_path, path);
	f.un = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	wl_must(!bind(f.un, (void *)&un, sizeof(un)) && !listen(f.un, 9), "bind and listen");
	snprintf(un.sun_path, sizeof(un.sun_path), "%cwl-%d", 0, getpid());
	f.un_abstract = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
	wl_must(
	    !bind(f.un_abstract, (void *)&un, sizeof(sa_family_t) + 1 + strlen(un.sun_path + 1)) &&
		!listen(f.un_abstract, 9),
	    "bind and listen");
}

/* Two that share a port: connections come to both. */
static void set_up_group(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(in);
	const int one = 1;

	for (int i = 0; i < 2; i++) {
		f.group[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		wl_must(!setsockopt(f.group[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)),
			"SO_REUSEPORT");
		wl_must(!bind(f.group[i], (void *)&in, sizeof(in)) && !listen(f.group[i], 64),
			"bind and listen");
		wl_must(!getsockname(f.group[i], (void *)&in, &len), "getsockname");
	}
}

static void check_group(void)
{
	struct sockaddr_in in;
	socklen_t len = sizeof(in), on_len = sizeof(int);
	int got[2] = {0}, on = 0;

	wl_must(!getsockname(f.group[0], (void *)&in, &len), "getsockname");
	for (int tries = 0; tries < 1000 && !(got[0] && got[1]); tries++) {
		int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		wl_must(!connect(c, (void *)&in, len), "connect to the group");
		for (int i = 0; i < 2; i++) {
			int s = accept(f.group[i], NULL, NULL);

			got[i] += s >= 0;
			if (s >= 0)
				close(s);
		}
		close(c);
	}
	wl_check(got[0] && got[1], "of a group: %d connections at one, %d at the other", got[0],
		 got[1]);
	for (int i = 0; i < 2; i++) {
		getsockopt(f.group[i], SOL_SOCKET, SO_REUSEPORT, &on, &on_len);
		wl_same("SO_REUSEPORT", 1, on);
	}
}

static void set_up_udp(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(in);
	const int ttl = 9;

	f.udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	wl_must(!bind(f.udp, (void *)&in, sizeof(in)), "bind");
	wl_must(!getsockname(f.udp, (void *)&in, &len), "getsockname");
	f.udp_client = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	wl_must(!setsockopt(f.udp_client, IPPROTO_IP, IP_TTL, &ttl, sizeof(ttl)), "IP_TTL");
	wl_must(!connect(f.udp_client, (void *)&in, len), "connect");
}

/* What the connected one sends comes from the address that it had. */
static void check_udp(void)
{
	struct sockaddr_in from, client;
	socklen_t from_len = sizeof(from), len = sizeof(client);
	struct pollfd pfd = {.fd = f.udp, .events = POLLIN};
	char got[16] = {0};
	int ttl = 0;
	socklen_t ttl_len = sizeof(ttl);

	wl_must(!getsockname(f.udp_client, (void *)&client, &len), "getsockname");
	wl_same("send over UDP", 5, send(f.udp_client, "hello", 5, 0));
	wl_check(poll(&pfd, 1, 2000) == 1, "no datagram came");
	wl_same("receive over UDP", 5,
		recvfrom(f.udp, got, sizeof(got), 0, (void *)&from, &from_len));
	wl_check(!strcmp(got, "hello"), "datagram: expected hello, got %s", got);
	wl_same("port of the sender", ntohs(client.sin_port), ntohs(from.sin_port));
	getsockopt(f.udp_client, IPPROTO_IP, IP_TTL, &ttl, &ttl_len);
	wl_same("IP_TTL", 9, ttl);
}

/* ---- connections ---- */

static int connect_to(int listener)
{
	struct sockaddr_in in;
	socklen_t len = sizeof(in);
	const int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	wl_must(!getsockname(listener, (void *)&in, &len), "getsockname");
	wl_must(!connect(c, (void *)&in, len), "connect");
	return c;
}

static void set_up_connections(void)
{
	const struct sockaddr_in in = {.sin_family = AF_INET,
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	f.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	wl_must(!bind(f.listener, (void *)&in, sizeof(in)) && !listen(f.listener, 5),
		"bind and listen");
	f.client = connect_to(f.listener);
	f.server = accept4(f.listener, NULL, NULL, SOCK_CLOEXEC);
	wl_must(f.server >= 0, "accept");
	f.waiting = connect_to(f.listener);
	wl_same("write to a connection", 4, write(f.client, "sent", 4));
}

static void check_broken(int fd, const char *what)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	char buf[8];

	wl_check(poll(&pfd, 1, 1000) == 1, "%s: a broken connection tells nobody", what);
	const ssize_t n = read(fd, buf, sizeof(buf));
	wl_check(n == 0 || (n < 0 && errno == ECONNRESET),
		 "%s: expected a broken connection, got %zd (%s)", what, n, strerror(errno));
}

static void finish_connections(void)
{
	char got[8] = {0};

	if (!wl.moves) {
		wl_same("read of a connection", 4, read(f.server, got, sizeof(got)));
		return;
	}
	check_broken(f.client, "client");
	check_broken(f.server, "server");
	check_broken(f.waiting, "never accepted");
	wl_check(close(connect_to(f.listener)) == 0, "the listener does not take connections");
}

static void answer(int conn)
{
	char line[200] = {0}, reply[320];
	struct pollfd pfd = {.fd = conn, .events = POLLIN};
	uint64_t sum = 0;
	ssize_t n;

	if (poll(&pfd, 1, 2000) <= 0 || (n = read(conn, line, sizeof(line) - 1)) <= 0)
		return;
	line[strcspn(line, "\n")] = 0;
	for (char *p = line; *p; p++)
		sum += (uint8_t)*p;
	n = snprintf(reply, sizeof(reply), "%s %s %lu\n", line, wl.host, sum);
	if (write(conn, reply, n) != n)
		dprintf(2, "answer was not taken: %s\n", strerror(errno));
}

static void serve(void)
{
	const int conn = accept4(f.tcp, NULL, NULL, SOCK_CLOEXEC);

	if (conn < 0) {
		wl_check(errno == EAGAIN || errno == EINTR, "accept: %s", strerror(errno));
		return;
	}
	answer(conn);
	close(conn);
}

/* From this same process: whoever answers is this listener. */
static void reach(int listener, const char *what)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	char got[16] = {0};
	int type, c, s;
	socklen_t type_len = sizeof(type);

	wl_must(!getsockname(listener, (void *)&addr, &len), "getsockname");
	getsockopt(listener, SOL_SOCKET, SO_TYPE, &type, &type_len);
	c = socket(addr.ss_family, type, 0);
	wl_check(!connect(c, (void *)&addr, len), "connect to the %s: %s", what, strerror(errno));
	s = accept(listener, NULL, NULL);
	wl_check(s >= 0, "accept on the %s: %s", what, strerror(errno));
	wl_same("write to a socket", 5, write(c, "hello", 5));
	wl_same("read from a socket", 5, read(s, got, 5));
	wl_check(!strcmp(got, "hello"), "%s: expected hello, got %s", what, got);
	close(c);
	close(s);
}

static void finish_sockets(void)
{
	int v;
	socklen_t len = sizeof(v);

	wl_must(!getsockopt(f.tcp, SOL_SOCKET, SO_REUSEADDR, &v, &len), "SO_REUSEADDR");
	wl_same("SO_REUSEADDR", 1, v);
	getsockopt(f.tcp, SOL_SOCKET, SO_KEEPALIVE, &v, &len);
	wl_same("SO_KEEPALIVE", 1, v);
	reach(f.un, "unix socket");
	reach(f.un_abstract, "abstract unix socket");
	if (f.tcp6 >= 0)
		reach(f.tcp6, "TCP socket over IPv6");
}

static void watch(int fd, uint64_t data)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = data};

	wl_must(!epoll_ctl(f.epoll, EPOLL_CTL_ADD, fd, &ev), "EPOLL_CTL_ADD");
}

int main(int argc, char **argv)
{
	struct epoll_event ev;

	wl_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	set_up_sockets();
	set_up_udp();
	set_up_group();
	if (wl_flag("connected"))
		set_up_connections();
	f.epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(f.tcp, 1);
	watch(f.un, 2);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		if (epoll_wait(f.epoll, &ev, 1, 5) == 1) {
			wl_same("epoll's data", 1, ev.data.u64);
			serve();
		}
	}
	finish_sockets();
	check_udp();
	check_group();
	if (wl_flag("connected"))
		finish_connections();
	wl_done();
}
