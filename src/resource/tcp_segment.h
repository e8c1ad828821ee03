/* Segments that a peer has sent, or might have, made anew: what a socket takes only from the
 * network is told to it so. */
#pragma once
#include "base/err.h"
#include "kernel/netpacket.h"

enum { SEGMENT_BYTES_MAX = 65535 - 60, SEGMENT_HEADERS = 40 + 20 };
enum {
	SEGMENT_FIN = 1,
	SEGMENT_SYN = 2,
	SEGMENT_RST = 4,
	SEGMENT_PSH = 8,
	SEGMENT_ACK = 16,
	SEGMENT_URG = 32
};

struct segment {
	/* struct sockaddr_in or in6, both of one family; mapped IPv4 addresses are written as such
	 */
	const void *from, *to;
	uint32_t seq, ack;
	uint16_t window, urgent; /* as they are in the header */
	uint8_t flags;
	const uint8_t *data;
	size_t len; /* up to SEGMENT_BYTES_MAX */
};

struct segment_buf {
	uint8_t b[SEGMENT_HEADERS + SEGMENT_BYTES_MAX];
};

/* *ret points into buf. */
void segment_make(const struct segment *s, struct segment_buf *buf, struct net_packet *ret);
/* The same of UDP: from, to, data and len of s are used. */
void datagram_make(const struct segment *s, uint8_t ttl, uint8_t tos, struct segment_buf *buf,
		   struct net_packet *ret);
/* That a datagram from `to` has not reached `from`: a message of ICMP (RFC 792; IPv6: RFC 4443)
 * with nothing of its data. */
void unreachable_make(const struct segment *s, uint8_t type, uint8_t code, struct segment_buf *buf,
		      struct net_packet *ret);
