/* Asks udp_server, in a host that does not move. --connect ADDR:PORT --late N: sends N datagrams
 * first, whose answers come once the server reads them; all of them have to, in order. Else one at
 * a time; one that gets lost is sent again, which is UDP's way. --group ADDR: sends to that group
 * (same port) instead. --bind PORT: from there. */
#include "tcp_stream.h"
#include <net/if.h>
#include <poll.h>

enum { BYTES = 100 };

static struct {
	int fd;
	struct sockaddr_storage to, server;
	socklen_t len;
	uint64_t sent, got, lost;
} s;

static void ask(uint64_t number)
{
	uint8_t buf[BYTES];

	memcpy(buf, &number, sizeof(number));
	stream_fill(buf + 8, BYTES - 8, number);
	wl_must(sendto(s.fd, buf, BYTES, 0, (void *)&s.to, s.len) == BYTES, "send");
}

/* Which one is answered? */
static bool answer(int timeout_ms, uint64_t *number)
{
	struct pollfd p = {.fd = s.fd, .events = POLLIN};
	uint8_t buf[2 * BYTES];
	struct sockaddr_storage from = {0};
	socklen_t len = sizeof(from);

	if (poll(&p, 1, timeout_ms) <= 0)
		return false;
	ssize_t n = recvfrom(s.fd, buf, sizeof(buf), 0, (void *)&from, &len);
	wl_same("bytes of an answer", BYTES, n);
	memcpy(number, buf, sizeof(*number));
	stream_check(buf + 8, BYTES - 8, *number, "peer");
	return true;
}

/* The one that was asked last is; another that was asked twice may be answered twice. */
static bool last_is_answered(void)
{
	uint64_t number;

	while (answer(100, &number))
		if (number == s.sent)
			return true;
	return false;
}

int main(int argc, char **argv)
{
	const int ttl = 55;
	uint64_t late, number;
	char text[100];

	wl_init(argc, argv);
	s.len = tcp_address(wl_opt_str("connect", ""), &s.server);
	s.to = s.server;
	if (wl_opt_str("group", NULL)) {
		const char *g = wl_opt_str("group", NULL);

		snprintf(text, sizeof(text), strchr(g, ':') ? "[%s]:%d" : "%s:%d", g,
			 ntohs(((struct sockaddr_in *)&s.server)->sin_port));
		tcp_address(text, &s.to);
		if (s.to.ss_family == AF_INET6)
			((struct sockaddr_in6 *)&s.to)->sin6_scope_id = if_nametoindex("eth0");
	}
	s.fd = socket(s.to.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	setsockopt(s.fd, IPPROTO_IP, IP_TTL, &ttl, sizeof(ttl));
	setsockopt(s.fd, IPPROTO_IP, IP_MULTICAST_TTL, &ttl, sizeof(ttl));
	const struct ip_mreqn over = {.imr_ifindex = if_nametoindex("eth0")};
	setsockopt(s.fd, IPPROTO_IP, IP_MULTICAST_IF, &over, sizeof(over));
	if (wl_opt("bind", 0)) {
		struct sockaddr_in us = {AF_INET, htons(wl_opt("bind", 0)), {0}, {0}};

		wl_must(!bind(s.fd, (void *)&us, sizeof(us)), "bind");
	}
	late = wl_opt("late", 0);
	for (; s.sent < late; s.sent++)
		ask(s.sent);
	wl_ready();
	for (uint64_t i = 0; i < late; i++) {
		while (!answer(10, &number)) {
			wl_tick();
			wl_check(!wl_stop(), "%lu of %lu datagrams were not answered", late - i,
				 late);
		}
		wl_same("number of an answer", i, number);
	}
	while (!wl_stop()) {
		ask(s.sent);
		while (!last_is_answered()) {
			wl_tick();
			wl_check(++s.lost < 100, "100 datagrams without an answer");
			ask(s.sent);
		}
		s.sent++;
		s.got++;
		wl_tick();
		usleep(300);
	}
	wl_check(s.got > 0, "no answer");
	wl_done();
}
