/* They are read by MSG_PEEK, with all that the kernel tells of each, and sent again as if by
 * whoever sent them: put in at the device of an address that has moved along, for others by a raw
 * socket, whose packets for this host come back to it over the loopback interface. */
#include "resource/udp_queue.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include "base/log.h"
#include "base/vec.h"
#include "kernel/netinject.h"
#include "resource/multicast.h"
#include "resource/net_ways.h"
#include "resource/tcp_segment.h"
#include "resource/udp_error.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef IPV6_HDRINCL
#define IPV6_HDRINCL 36
#endif

enum { DATAGRAM_MAX = 65536, CONTROL_BYTES = 512, DATAGRAMS_MAX = 65536, ERRORS_MAX = 8 };

/* ---- what is to be told of each ---- */

static const struct {
	int level, name;
	bool v6;
} told[] = {
    {IPPROTO_IP, IP_PKTINFO, false},         {IPPROTO_IP, IP_RECVTTL, false},
    {IPPROTO_IP, IP_RECVTOS, false},         {IPPROTO_IPV6, IPV6_RECVPKTINFO, true},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, true}, {IPPROTO_IPV6, IPV6_RECVTCLASS, true},
};

struct before {
	int v[ARRAY_SIZE(told)], peek_off;
};

static int get_int(int fd, int level, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, name, &v, &len) ? -1 : v;
}

static int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

static int have_told(int fd, int family, struct before *b, struct cr_err *err)
{
	b->peek_off = get_int(fd, SOL_SOCKET, SO_PEEK_OFF);
	for (size_t i = 0; i < ARRAY_SIZE(told); i++) {
		if (told[i].v6 && family != AF_INET6)
			continue;
		b->v[i] = get_int(fd, told[i].level, told[i].name);
		if (!b->v[i] && set_int(fd, told[i].level, told[i].name, 1))
			return cr_err_sys(err, "what a datagram tells");
	}
	return set_int(fd, SOL_SOCKET, SO_PEEK_OFF, 0) ? cr_err_sys(err, "SO_PEEK_OFF") : 0;
}

static int as_before(int fd, int family, const struct before *b, struct cr_err *err)
{
	int r = set_int(fd, SOL_SOCKET, SO_PEEK_OFF, b->peek_off);

	for (size_t i = 0; i < ARRAY_SIZE(told); i++)
		if ((!told[i].v6 || family == AF_INET6) && !b->v[i])
			r |= set_int(fd, told[i].level, told[i].name, 0);
	return r ? cr_err_sys(err, "options of a UDP socket") : 0;
}

/* ---- dump ---- */

static void take_control(struct msghdr *m, struct datagram *d, uint32_t *segment)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		int v = 0;

		memcpy(&v, CMSG_DATA(c), c->cmsg_len == CMSG_LEN(1) ? 1 : sizeof(v));
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo info;

			memcpy(&info, CMSG_DATA(c), sizeof(info));
			memset(d->to, 0, 16);
			d->to[10] = d->to[11] = 0xff;
			memcpy(d->to + 12, &info.ipi_addr, 4);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo info;

			memcpy(&info, CMSG_DATA(c), sizeof(info));
			memcpy(d->to, &info.ipi6_addr, 16);
		} else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) ||
			   (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT)) {
			d->ttl = (uint32_t)v & 0xff;
		} else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) ||
			   (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS)) {
			d->tos = (uint32_t)v & 0xff;
		} else if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
			*segment = (uint32_t)v;
		}
	}
}

struct queue {
	struct arena *a;
	VEC(struct datagram) list;
	uint8_t buf[DATAGRAM_MAX];
};

/* Several of one size that came as one (UDP_GRO) are told apart again. */
static int add(struct queue *q, const struct datagram *d, size_t len, uint32_t segment,
	       struct cr_err *err)
{
	size_t at = 0;

	do {
		struct datagram *slot = vec_push(&q->list);
		size_t n = segment && len - at > segment ? segment : len - at;

		if (!slot)
			return cr_err_oom(err);
		*slot = *d;
		slot->data = arena_memdup(q->a, q->buf + at, n);
		slot->len = n;
		if (!slot->data)
			return cr_err_oom(err);
		at += n;
	} while (at < len);
	return 0;
}

/* 1: there was one. *ret_error: an error that was told before, which is only told once. */
static int peek_one(int fd, struct queue *q, int *ret_error, struct cr_err *err)
{
	uint8_t control[CONTROL_BYTES];
	struct sockaddr_storage from = {0};
	struct iovec iov = {q->buf, sizeof(q->buf)};
	struct msghdr m = {.msg_name = &from,
			   .msg_namelen = sizeof(from),
			   .msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};
	struct datagram d = {.ttl = 64};
	uint32_t segment = 0;
	ssize_t n = recvmsg(fd, &m, MSG_PEEK | MSG_DONTWAIT);

	/* what the network has said of something sent (ICMP) is told before any datagram, and only
	 * once, ip(7) */
	for (int i = 0; n < 0 && errno != EAGAIN && i < ERRORS_MAX; i++) {
		*ret_error = errno;
		m.msg_namelen = sizeof(from);
		m.msg_controllen = sizeof(control);
		n = recvmsg(fd, &m, MSG_PEEK | MSG_DONTWAIT);
	}
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		return cr_err_sys(err, "reading a datagram");
	take_control(&m, &d, &segment);
	d.from = arena_memdup(q->a, &from, m.msg_namelen);
	d.from_len = m.msg_namelen;
	if (!d.from)
		return cr_err_oom(err);
	int r = add(q, &d, (size_t)n, segment, err);
	return r ? r : 1;
}

int udp_dump(int fd, struct arena *a, struct file *f, struct cr_err *err)
{
	struct before b = {0};
	_cleanup_free_ struct queue *q = calloc(1, sizeof(*q));
	int r = q ? have_told(fd, f->sock_family, &b, err) : cr_err_oom(err);

	if (r)
		return r;
	q->a = a;
	do {
		r = peek_one(fd, q, &f->sock_error, err);
	} while (r == 1 && q->list.n < DATAGRAMS_MAX);
	f->datagrams = arena_memdup(a, q->list.v, q->list.n * sizeof(*q->list.v));
	f->n_datagrams = q->list.n;
	if (f->n_datagrams && !f->datagrams && r >= 0)
		r = cr_err_oom(err);
	vec_done(&q->list);
	if (f->sock_error && udp_keeps_errors(f)) /* it comes with the message, which still waits */
		f->sock_error = 0;
	else if (f->sock_error)
		udp_tell_error(f, NULL); /* as it was, should the tasks go on here */
	struct cr_err why = {0};
	int r2 = as_before(fd, f->sock_family, &b, &why);
	if (r >= 0 && r2)
		*err = why;
	return r < 0 ? r : r2;
}

/* ---- launch ---- */

static void address_to(const struct file *f, const struct datagram *d, struct sockaddr_storage *to)
{
	struct sockaddr_in *in = (void *)to;
	struct sockaddr_in6 *in6 = (void *)to;

	memcpy(to, f->sockaddr, f->sockaddr_len); /* the port; the address may be any */
	if (to->ss_family == AF_INET)
		memcpy(&in->sin_addr, d->to + 12, 4);
	else
		memcpy(&in6->sin6_addr, d->to, 16);
}

/* to: struct sockaddr_in or in6. */
static int send_raw(const struct net_packet *p, const void *to, bool v4)
{
	const int one = 1;
	_cleanup_fd_ int fd = socket(v4 ? AF_INET : AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	const struct sockaddr_in6 *to6 = to;
	struct sockaddr_storage dst = {0};
	struct sockaddr_in *in = (void *)&dst;
	struct sockaddr_in6 *in6 = (void *)&dst;

	if (v4 && to6->sin6_family == AF_INET6) {
		memcpy(&in->sin_addr, to6->sin6_addr.s6_addr + 12, 4);
		in->sin_family = AF_INET;
	} else {
		memcpy(&dst, to, v4 ? sizeof(*in) : sizeof(*in6));
	}
	if (!v4)
		in6->sin6_port = 0; /* which would be a protocol here */
	if (fd < 0 || (!v4 && setsockopt(fd, IPPROTO_IPV6, IPV6_HDRINCL, &one, sizeof(one))))
		return -1;
	return sendto(fd, p->data, p->len, 0, (struct sockaddr *)&dst,
		      v4 ? sizeof(*in) : sizeof(*in6)) < 0
		   ? -1
		   : 0;
}

int udp_put(const struct net_packet *p, const void *sockaddr, size_t len, const struct net_ways *w,
	    struct cr_err *err)
{
	struct netinject *in = net_ways_to(w, sockaddr, len);

	if (in)
		return netinject_packet(in, p, err);
	return send_raw(p, sockaddr, p->data[0] >> 4 == 4) ? cr_err_sys(err, "a raw socket") : 0;
}

static bool has_address(const struct datagram *d)
{
	static const uint8_t none[16];

	return memcmp(d->to, none, 16) != 0;
}

static void send_again(const struct file *f, const struct datagram *d, const struct net_ways *w)
{
	struct sockaddr_storage to = {0};
	struct segment_buf *buf = malloc(sizeof(*buf));
	struct segment s = {.from = d->from, .to = &to, .data = d->data, .len = d->len};
	struct cr_err why = {0};
	struct net_packet p;

	if (!buf || d->len > SEGMENT_BYTES_MAX || !has_address(d) ||
	    d->from_len != f->sockaddr_len) {
		log_warn("a datagram of %zu bytes that waited to be read is lost", d->len);
		free(buf);
		return;
	}
	address_to(f, d, &to);
	datagram_make(&s, (uint8_t)d->ttl, (uint8_t)d->tos, buf, &p);
	if (udp_put(&p, &to, f->sockaddr_len, w, &why))
		log_warn("a datagram that waited to be read is lost: %s", why.msg);
	free(buf);
}

void udp_launch(int fd, const struct file *f, const struct net_ways *w)
{
	for (size_t i = 0; i < f->n_groups; i++) {
		struct cr_err why = {0};

		if (multicast_join(fd, &f->groups[i], &why))
			log_warn("%s", why.msg);
	}
	for (size_t i = 0; i < f->n_datagrams; i++)
		send_again(f, &f->datagrams[i], w);
	if (f->sock_error)
		udp_tell_error(f, w);
}
