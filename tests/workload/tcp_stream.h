/* What both ends of the TCP workloads know: how a connection is used, told by its first byte, and a
 * stream of bytes each of which is told by its position, so that one that is lost, doubled or out
 * of order shows. */
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include "workload.h"

enum tcp_use {
	USE_ECHO = 'E',        /* the server sends back what it gets */
	USE_SOURCE = 'S',      /* the server sends the stream */
	USE_SINK = 'K',        /* the peer does; at its end the server tells how much came */
	USE_BOTH = 'B',        /* both do */
	USE_PEER_SHUT = 'C',   /* SOURCE, and the peer has shut its side down: CLOSE_WAIT */
	USE_SERVER_SHUT = 'F', /* SINK, and the server has shut its side down: FIN_WAIT2 */
	USE_UNREAD = 'N',      /* SINK, but the server reads nothing before it has moved */
	USE_CORKED =
	    'Q', /* the server has a corked part of a line, and ends it when it has moved */
	USE_URGENT = 'U',      /* an urgent byte amid others, not read before the move */
	USE_URGENT_READ = 'u', /* the same, but that byte is read, out of band */
	/* the server has sent all that is taken, the peer reads nothing before the move: */
	USE_FIN_WAIT1 = 'G', /* and the server shuts its side down */
	USE_CLOSING = 'H',   /* and the peer its, after that */
	USE_LAST_ACK = 'A',  /* and the peer before that */
	/* and the server closes, so that nobody has it: */
	USE_CLOSED = 'O',
	USE_CLOSED_LAST = 'o', /* after the peer has shut its side down */
};
enum { URGENT_BEFORE = 300, URGENT_AFTER = 500 }; /* bytes of the stream */
#define URGENT_BYTE '!'
#define CORK_FIRST "one half,"
#define CORK_REST " and the other"

static inline uint8_t stream_byte(uint64_t pos)
{
	return (uint8_t)(wl_mix(pos >> 3) >> (pos & 7) * 8);
}

static inline void stream_fill(uint8_t *buf, size_t n, uint64_t pos)
{
	for (size_t i = 0; i < n;) {
		if (!(pos & 7) && n - i >= 8) {
			uint64_t v = wl_mix(pos >> 3);

			memcpy(buf + i, &v, 8);
			i += 8;
			pos += 8;
		} else {
			buf[i++] = stream_byte(pos++);
		}
	}
}

static inline void stream_check(const uint8_t *buf, size_t n, uint64_t pos, const char *who)
{
	for (size_t i = 0; i < n;) {
		uint64_t v = wl_mix(pos >> 3);

		if (!(pos & 7) && n - i >= 8 && !memcmp(buf + i, &v, 8)) {
			i += 8;
			pos += 8;
			continue;
		}
		wl_check(buf[i] == stream_byte(pos),
			 "%s: byte %lu of the stream: expected %02x, got %02x", who, pos,
			 stream_byte(pos), buf[i]);
		i++;
		pos++;
	}
}

/* "ADDR:PORT", "[ADDR]:PORT" */
WL_UNUSED static socklen_t tcp_address(const char *text, struct sockaddr_storage *ret)
{
	struct sockaddr_in *in = (void *)ret;
	struct sockaddr_in6 *in6 = (void *)ret;
	char host[80];
	const char *colon = strrchr(text, ':');
	bool v6 = text[0] == '[';

	wl_check(colon, "%s: no port", text);
	snprintf(host, sizeof(host), "%.*s", (int)(colon - text - 2 * v6), text + v6);
	memset(ret, 0, sizeof(*ret));
	ret->ss_family = v6 ? AF_INET6 : AF_INET;
	in->sin_port = htons((uint16_t)atoi(colon + 1));
	wl_check(inet_pton(ret->ss_family, host, v6 ? (void *)&in6->sin6_addr : &in->sin_addr) == 1,
		 "%s: no address", host);
	return v6 ? sizeof(*in6) : sizeof(*in);
}

WL_UNUSED static void tcp_many_files(void)
{
	struct rlimit rl;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
}
