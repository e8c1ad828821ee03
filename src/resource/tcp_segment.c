#include "resource/tcp_segment.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdbool.h>
#include <string.h>

enum { HOP_LIMIT = 64 };

/* RFC 1071 */
static uint32_t sum(const void *data, size_t len, uint32_t so_far)
{
	const uint8_t *b = data;

	for (size_t i = 0; i + 1 < len; i += 2)
		so_far += (uint32_t)(b[i] << 8 | b[i + 1]);
	return len & 1 ? so_far + (uint32_t)(b[len - 1] << 8) : so_far;
}

static uint16_t fold(uint32_t s)
{
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return htons((uint16_t)~s);
}

struct endpoints {
	bool v4;
	const uint8_t *from, *to; /* addresses */
	uint16_t from_port, to_port;
};

static const uint8_t *address(const void *sockaddr, bool *ret_v4)
{
	const struct sockaddr_in *in = sockaddr;
	const struct sockaddr_in6 *in6 = sockaddr;

	*ret_v4 = in->sin_family == AF_INET || IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
	if (in->sin_family == AF_INET)
		return (const uint8_t *)&in->sin_addr;
	return in6->sin6_addr.s6_addr + (*ret_v4 ? 12 : 0);
}

static struct endpoints endpoints_of(const struct segment *s)
{
	const struct sockaddr_in *from = s->from, *to = s->to;
	struct endpoints e;

	e.from = address(s->from, &e.v4);
	e.to = address(s->to, &e.v4);
	e.from_port = from->sin_port; /* sin6_port is at the same place */
	e.to_port = to->sin_port;
	return e;
}

/* Returns its length; the transport header begins there. */
static size_t put_ip(const struct endpoints *e, uint8_t protocol, size_t payload, uint8_t ttl,
		     uint8_t tos, uint8_t *b)
{
	if (e->v4) {
		struct iphdr ip = {.version = 4,
				   .ihl = 5,
				   .tos = tos,
				   .tot_len = htons((uint16_t)(sizeof(ip) + payload)),
				   .frag_off = htons(IP_DF),
				   .ttl = ttl,
				   .protocol = protocol};

		memcpy(&ip.saddr, e->from, 4);
		memcpy(&ip.daddr, e->to, 4);
		ip.check = fold(sum(&ip, sizeof(ip), 0));
		memcpy(b, &ip, sizeof(ip));
		return sizeof(ip);
	}
	struct ip6_hdr ip6 = {.ip6_flow = htonl(6u << 28 | (uint32_t)tos << 20),
			      .ip6_plen = htons((uint16_t)payload),
			      .ip6_nxt = protocol,
			      .ip6_hlim = ttl};
	memcpy(&ip6.ip6_src, e->from, 16);
	memcpy(&ip6.ip6_dst, e->to, 16);
	memcpy(b, &ip6, sizeof(ip6));
	return sizeof(ip6);
}

static uint16_t checksum(const struct endpoints *e, uint8_t protocol, const uint8_t *transport,
			 size_t len)
{
	size_t n = e->v4 ? 4 : 16;
	uint32_t s = sum(e->from, n, sum(e->to, n, protocol + (uint32_t)len));

	return fold(sum(transport, len, s));
}

void segment_make(const struct segment *s, struct segment_buf *buf, struct net_packet *ret)
{
	struct endpoints e = endpoints_of(s);
	struct tcphdr th = {.th_sport = e.from_port,
			    .th_dport = e.to_port,
			    .th_seq = htonl(s->seq),
			    .th_ack = htonl(s->ack),
			    .th_off = 5,
			    .th_flags = s->flags,
			    .th_win = htons(s->window),
			    .th_urp = htons(s->urgent)};
	size_t payload = sizeof(th) + s->len;
	size_t at = put_ip(&e, IPPROTO_TCP, payload, HOP_LIMIT, 0, buf->b);

	memcpy(buf->b + at, &th, sizeof(th));
	if (s->len)
		memcpy(buf->b + at + sizeof(th), s->data, s->len);
	th.th_sum = checksum(&e, IPPROTO_TCP, buf->b + at, payload);
	memcpy(buf->b + at, &th, sizeof(th));
	*ret = (struct net_packet){.data = buf->b, .len = at + payload};
}

void datagram_make(const struct segment *s, uint8_t ttl, uint8_t tos, struct segment_buf *buf,
		   struct net_packet *ret)
{
	struct endpoints e = endpoints_of(s);
	size_t payload = sizeof(struct udphdr) + s->len;
	struct udphdr uh = {
	    .uh_sport = e.from_port, .uh_dport = e.to_port, .uh_ulen = htons((uint16_t)payload)};
	size_t at = put_ip(&e, IPPROTO_UDP, payload, ttl, tos, buf->b);

	memcpy(buf->b + at, &uh, sizeof(uh));
	if (s->len)
		memcpy(buf->b + at + sizeof(uh), s->data, s->len);
	uh.uh_sum = checksum(&e, IPPROTO_UDP, buf->b + at, payload);
	if (!uh.uh_sum) /* which would say that there is none, RFC 768 */
		uh.uh_sum = 0xffff;
	memcpy(buf->b + at, &uh, sizeof(uh));
	*ret = (struct net_packet){.data = buf->b, .len = at + payload};
}

void unreachable_make(const struct segment *s, uint8_t type, uint8_t code, struct segment_buf *buf,
		      struct net_packet *ret)
{
	struct endpoints e = endpoints_of(s);
	const struct endpoints ours = {e.v4, e.to, e.from, e.to_port, e.from_port};
	const struct udphdr uh = {
	    .uh_sport = ours.from_port, .uh_dport = ours.to_port, .uh_ulen = htons(sizeof(uh))};
	uint8_t head[8] = {type, code}; /* checksum, and nothing */
	size_t quoted = (e.v4 ? sizeof(struct iphdr) : sizeof(struct ip6_hdr)) + sizeof(uh);
	uint8_t protocol = e.v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	size_t at = put_ip(&e, protocol, sizeof(head) + quoted, HOP_LIMIT, 0, buf->b);
	uint8_t *message = buf->b + at;

	memcpy(message, head, sizeof(head));
	size_t inner = put_ip(&ours, IPPROTO_UDP, sizeof(uh), HOP_LIMIT, 0, message + sizeof(head));
	memcpy(message + sizeof(head) + inner, &uh, sizeof(uh));
	uint16_t check = e.v4 ? fold(sum(message, sizeof(head) + quoted, 0))
			      : checksum(&e, protocol, message, sizeof(head) + quoted);
	memcpy(message + 2, &check, sizeof(check));
	*ret = (struct net_packet){.data = buf->b, .len = at + sizeof(head) + quoted};
}
