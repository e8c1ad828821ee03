/* Two sockets, one for each version of IP: bound to its protocol one gets what comes in and not
 * what goes out. The filter decides in the kernel. */
#include "kernel/netcap.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include "base/vec.h"

enum {
	BUFFER_BYTES = 64 << 20, /* ten thousand small packets, or what fills several windows */
	LINK_HEADER_MAX = 32,
	V4_PROTOCOL = 9, /* offsets in the headers: RFC 791, RFC 8200 */
	V4_DESTINATION = 16,
	V6_NEXT_HEADER = 6,
	V6_DESTINATION = 24,
};

struct netcap {
	int fd[2];
	int at; /* of fd, which is read at present */
	unsigned int lost;
	uint8_t buf[LINK_HEADER_MAX + NET_PACKET_MAX];
};

void netcap_free(struct netcap *c)
{
	if (!c)
		return;
	close_fdp(&c->fd[0]);
	close_fdp(&c->fd[1]);
	free(c);
}

/* ---- the filter ---- */

typedef VEC(struct sock_filter) program;

static void emit(program *p, uint16_t code, uint8_t jt, uint8_t jf, uint32_t k)
{
	struct sock_filter *i = vec_push(p);

	if (i)
		*i = (struct sock_filter){code, jt, jf, k};
}

/* Offsets count from the network header with SKF_NET_OFF, whatever is before it. */
static void load(program *p, uint16_t size, int offset)
{
	emit(p, BPF_LD | size | BPF_ABS, 0, 0, (uint32_t)(SKF_NET_OFF + offset));
}

/* Accepts what goes to a; what does not goes on behind. */
static void match_address(program *p, const struct devaddr *a)
{
	int words = a->family == AF_INET ? 1 : 4;
	int offset = a->family == AF_INET ? V4_DESTINATION : V6_DESTINATION;

	for (int i = 0; i < words; i++) {
		uint32_t word;

		memcpy(&word, a->addr + 4 * i, 4);
		load(p, BPF_W, offset + 4 * i);
		/* past the remaining words, two instructions each, and the return */
		emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, (uint8_t)(2 * (words - 1 - i) + 1),
		     ntohl(word));
	}
	emit(p, BPF_RET | BPF_K, 0, 0, UINT32_MAX);
}

static int attach(int fd, int family, const struct devaddr *v, size_t n, struct cr_err *err)
{
	program p = {0};

	load(&p, BPF_B, family == AF_INET ? V4_PROTOCOL : V6_NEXT_HEADER);
	emit(&p, BPF_JMP | BPF_JEQ | BPF_K, 2, 0, IPPROTO_TCP);
	emit(&p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, IPPROTO_UDP);
	emit(&p, BPF_RET | BPF_K, 0, 0, 0);
	for (size_t i = 0; i < n; i++)
		if (v[i].family == family)
			match_address(&p, &v[i]);
	emit(&p, BPF_RET | BPF_K, 0, 0, 0);
	const struct sock_fprog prog = {(unsigned short)p.n, p.v};
	int r = p.v ? setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) : -1;
	if (r)
		r = p.v ? cr_err_sys(err, "a filter for packets") : cr_err_oom(err);
	vec_done(&p);
	return r;
}

/* ---- life ---- */

/* Of no protocol, and so deaf, until its filter is there. */
static int open_one(int family, const struct devaddr *v, size_t n, struct cr_err *err)
{
	const int one = 1, room = BUFFER_BYTES;
	struct sockaddr_ll sa = {.sll_family = AF_PACKET,
				 .sll_protocol =
				     htons(family == AF_INET ? ETHERTYPE_IP : ETHERTYPE_IPV6)};
	_cleanup_fd_ int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)))
		return cr_err_sys(err, "packet socket");
	int r = attach(fd, family, v, n, err);
	if (!r && bind(fd, (struct sockaddr *)&sa, sizeof(sa)))
		r = cr_err_sys(err, "packet socket");
	return r ? r : take_fd(&fd);
}

static bool has_family(const struct devaddr *v, size_t n, int family)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].family == family)
			return true;
	return false;
}

int netcap_open(struct netcap **ret, const struct devaddr *v, size_t n, struct cr_err *err)
{
	static const int families[] = {AF_INET, AF_INET6};
	struct netcap *c = calloc(1, sizeof(*c));
	int r = 0;

	if (!c)
		return cr_err_oom(err);
	c->fd[0] = c->fd[1] = -1;
	for (int i = 0; i < 2 && !r; i++)
		if (has_family(v, n, families[i])) {
			c->fd[i] = open_one(families[i], v, n, err);
			r = c->fd[i] < 0 ? c->fd[i] : 0;
		}
	if (r)
		netcap_free(c);
	else
		*ret = c;
	return r;
}

int netcap_stop(struct netcap *c, struct cr_err *err)
{
	static struct sock_filter none = {BPF_RET | BPF_K, 0, 0, 0};
	const struct sock_fprog prog = {1, &none};

	for (int i = 0; i < 2; i++)
		if (c->fd[i] >= 0 &&
		    setsockopt(c->fd[i], SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)))
			return cr_err_sys(err, "a filter for packets");
	return 0;
}

/* ---- reading ---- */

/* -1: unknown, so where the IP header begins is not known. */
static int link_header(const struct sockaddr_ll *from)
{
	switch (from->sll_hatype) {
	case ARPHRD_ETHER:
	case ARPHRD_LOOPBACK:
		return ETH_HLEN;
	case ARPHRD_NONE:
	case ARPHRD_TUNNEL:
	case ARPHRD_TUNNEL6:
	case ARPHRD_PPP:
	case ARPHRD_RAWIP:
		return 0;
	default:
		return -1;
	}
}

/* false: none that is good for anything. */
static bool understand(struct netcap *c, const struct sockaddr_ll *from,
		       const struct virtio_net_hdr *vh, size_t len, struct net_packet *ret)
{
	int skip = link_header(from);

	if (skip < 0 || len <= (size_t)skip)
		return false;
	*ret = (struct net_packet){.flags = vh->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM,
				   .gso_type = vh->gso_type,
				   .gso_size = vh->gso_size,
				   .data = c->buf + skip,
				   .len = len - (size_t)skip};
	if (ret->flags) {
		if (vh->csum_start < skip)
			return false;
		ret->csum_start = (uint32_t)(vh->csum_start - skip);
		ret->csum_offset = vh->csum_offset;
	}
	if (ret->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
		if (vh->hdr_len < skip)
			return false;
		ret->hdr_len = (uint32_t)(vh->hdr_len - skip);
	}
	return true;
}

int netcap_next(struct netcap *c, struct net_packet *ret, struct cr_err *err)
{
	while (c->at < 2) {
		struct virtio_net_hdr vh;
		struct sockaddr_ll from;
		struct iovec iov[] = {{&vh, sizeof(vh)}, {c->buf, sizeof(c->buf)}};
		struct msghdr m = {.msg_name = &from,
				   .msg_namelen = sizeof(from),
				   .msg_iov = iov,
				   .msg_iovlen = 2};
		ssize_t n = c->fd[c->at] < 0 ? 0 : recvmsg(c->fd[c->at], &m, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN && errno != ENETDOWN)
			return cr_err_sys(err, "packet socket");
		if (n <= 0)
			c->at++;
		else if (m.msg_flags & MSG_TRUNC || n < (ssize_t)sizeof(vh))
			c->lost++;
		else if (understand(c, &from, &vh, (size_t)n - sizeof(vh), ret))
			return 1;
	}
	c->at = 0;
	return 0;
}

unsigned int netcap_lost(struct netcap *c)
{
	for (int i = 0; i < 2; i++) {
		struct tpacket_stats st;
		socklen_t len = sizeof(st);

		/* reading it sets it to zero */
		if (c->fd[i] >= 0 &&
		    !getsockopt(c->fd[i], SOL_PACKET, PACKET_STATISTICS, &st, &len))
			c->lost += st.tp_drops;
	}
	return c->lost;
}
