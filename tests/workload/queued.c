/* Connections of a program to itself that it has not accepted: over IPv4, IPv6 and IPv4 at an IPv6
 * socket, with nothing, a little, and more sent than the other end has room for; shut down, closed,
 * and with an urgent byte. At the end all are accepted in their order, and answer.
 *
 * --listen IP (default 127.0.0.1), --listen6 IP (default ::1) */
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

enum { FAMILIES = 3, USES = 6, LITTLE = 700, MANY = 8 << 20 };
enum use { NOTHING, SOME, MUCH, SHUT, CLOSED, URGENT };

static struct {
	int listener[FAMILIES];
	struct conn {
		int fd;
		size_t sent;
		uint16_t port; /* our own */
	} conns[FAMILIES][USES];
} f;

static uint8_t byte_at(size_t seed, size_t at)
{
	return (uint8_t)(at * 7 + (at >> 8) * 13 + seed);
}

static void listen_at(int family, const char *name, const char *fallback, bool mapped)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
	struct sockaddr_in in = {.sin_family = AF_INET};
	const char *ip = wl_opt_str(name, fallback);
	int fd = socket(family == 1 || mapped ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, ip, &in.sin_addr);
	inet_pton(AF_INET6, mapped ? "::" : ip, &in6.sin6_addr);
	f.listener[family] = fd;
	if (family == 0)
		wl_must(!bind(fd, (void *)&in, sizeof(in)), "bind");
	else
		wl_must(!bind(fd, (void *)&in6, sizeof(in6)), "bind");
	wl_must(!listen(fd, USES), "listen");
}

static void fill(struct conn *c, size_t seed, size_t most)
{
	uint8_t buf[4096];

	while (c->sent < most) {
		size_t n = most - c->sent < sizeof(buf) ? most - c->sent : sizeof(buf);

		for (size_t i = 0; i < n; i++)
			buf[i] = byte_at(seed, c->sent + i);
		ssize_t w = send(c->fd, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (w < 0 && errno == EAGAIN)
			return;
		wl_must(w > 0, "send");
		c->sent += (size_t)w;
	}
}

static void connect_one(int family, enum use use)
{
	struct conn *c = &f.conns[family][use];
	struct sockaddr_storage at = {0}, us = {0};
	struct sockaddr_in *in = (void *)&at;
	socklen_t len = sizeof(at);
	size_t seed = (size_t)family * USES + use;

	wl_must(!getsockname(f.listener[family], (void *)&at, &len), "getsockname");
	if (family == 2) { /* the program has asked for IPv4 */
		in->sin_family = AF_INET;
		inet_pton(AF_INET, wl_opt_str("listen", "127.0.0.1"), &in->sin_addr);
		len = sizeof(*in);
	}
	c->fd = socket(at.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	us = at; /* a secondary address connects from the first one otherwise */
	((struct sockaddr_in *)&us)->sin_port = 0;
	wl_must(!bind(c->fd, (void *)&us, len), "bind");
	wl_must(!connect(c->fd, (void *)&at, len), "connect");
	len = sizeof(us);
	wl_must(!getsockname(c->fd, (void *)&us, &len), "getsockname");
	c->port = ((struct sockaddr_in *)&us)->sin_port;
	if (use != NOTHING)
		fill(c, seed, use == MUCH ? MANY : LITTLE);
	if (use == URGENT) {
		wl_same("urgent byte", 1, send(c->fd, "!", 1, MSG_OOB));
		fill(c, seed, 2 * LITTLE);
	}
	if (use == SHUT)
		wl_must(!shutdown(c->fd, SHUT_WR), "shutdown");
	if (use == CLOSED) {
		close(c->fd);
		c->fd = -1;
	}
}

static void set_up(void)
{
	listen_at(0, "listen", "127.0.0.1", false);
	listen_at(1, "listen6", "::1", false);
	listen_at(2, "listen", "127.0.0.1", true);
	for (int i = 0; i < FAMILIES; i++)
		for (int k = 0; k < USES; k++)
			connect_one(i, (enum use)k);
}

static void expect(int fd, int family, enum use use)
{
	struct conn *c = &f.conns[family][use];
	size_t seed = (size_t)family * USES + use, got = 0;
	uint8_t buf[65536];

	if (use == URGENT) /* a read that passes it loses it */
		wl_check(poll(&(struct pollfd){.fd = fd, .events = POLLPRI}, 1, 5000) == 1 &&
			     recv(fd, buf, 1, MSG_OOB) == 1 && buf[0] == '!',
			 "no urgent byte");
	while (got < c->sent) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};

		wl_check(poll(&pfd, 1, 5000) == 1, "%d, %d: %zu of %zu bytes came", family, use,
			 got, c->sent);
		ssize_t n = recv(fd, buf, sizeof(buf), 0);
		wl_check(n > 0, "%d, %d: after %zu of %zu bytes: %zd, %s", family, use, got,
			 c->sent, n, strerror(errno));
		for (ssize_t i = 0; i < n; i++)
			wl_check(buf[i] == byte_at(seed, got + (size_t)i),
				 "%d, %d: byte %zu: got %u", family, use, got + (size_t)i, buf[i]);
		got += (size_t)n;
		wl_check(use != URGENT || got <= LITTLE || got - (size_t)n >= LITTLE,
			 "a read did not stop at the urgent byte");
	}
	if (use == SHUT || use == CLOSED)
		wl_same("end", 0, recv(fd, buf, 1, 0));
	else
		wl_check(recv(fd, buf, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN,
			 "%d, %d: more came, or its end: %s", family, use, strerror(errno));
}

static void accept_one(int family, enum use use)
{
	struct conn *c = &f.conns[family][use];
	struct sockaddr_storage peer = {0};
	socklen_t len = sizeof(peer);
	char answer[8] = "";
	int fd = accept4(f.listener[family], (void *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

	wl_must(fd >= 0, "accept");
	wl_check(((struct sockaddr_in *)&peer)->sin_port == c->port, "%d, %d: not in its order",
		 family, use);
	expect(fd, family, use);
	if (use == CLOSED)
		return;
	wl_same("answer", 6, send(fd, "answer", 6, MSG_NOSIGNAL));
	wl_same("answer", 6, recv(c->fd, answer, 6, MSG_WAITALL));
	wl_check(!strcmp(answer, "answer"), "got \"%s\"", answer);
	wl_must(use == SHUT || send(c->fd, "on", 2, MSG_NOSIGNAL) == 2, "to send on");
	close(fd);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		poll(NULL, 0, 5);
	}
	for (int i = 0; i < FAMILIES; i++)
		for (int k = 0; k < USES; k++)
			accept_one(i, (enum use)k);
	wl_done();
}
