/* What a socket can only learn from the network is told to it in segments that its peer might have
 * sent: they carry no timestamp and acknowledge nothing new. Its answers go to the peer, to which
 * they are old news. */
#include "resource/tcp_repair.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "kernel/netinject.h"
#include "kernel/tcp_diag.h"
#include "resource/file_kind.h"
#include "resource/tcp_segment.h"

enum {
	CHUNK_BYTES = 1400, /* like what comes: large ones need more memory than the buffer has */
	PATIENCE_MS = 100,
	MAPPED_AT = offsetof(struct sockaddr_in6, sin6_addr) + 12, /* of an IPv4 address */
};

static bool peer_has_ended(const struct tcp_conn *c)
{
	return c->state == TCP_CLOSE_WAIT || c->state == TCP_LAST_ACK || c->state == TCP_CLOSING;
}

bool tcp_needs_telling(const struct tcp_conn *c)
{
	return c->has_urgent || peer_has_ended(c);
}

/* ---- segments ---- */

static struct segment from_peer(const struct file *f)
{
	const struct tcp_conn *c = f->tcp;
	uint32_t window = c->has_window ? c->snd_wnd >> c->snd_wscale : UINT16_MAX;

	return (struct segment){.from = f->peeraddr,
				.to = f->sockaddr,
				.seq = c->rcv_seq,
				.ack = c->snd_seq,
				.window = (uint16_t)(window < UINT16_MAX ? window : UINT16_MAX),
				.flags = SEGMENT_ACK};
}

static int say(struct netinject *in, const struct segment *s, struct cr_err *err)
{
	struct segment_buf buf;
	struct net_packet p;

	segment_make(s, &buf, &p);
	return netinject_packet(in, &p, err);
}

/* From offset at of what was received on. */
static int say_data(struct netinject *in, const struct file *f, size_t at, struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	int r = 0;

	for (; at < c->in_len && !r; at += CHUNK_BYTES) {
		struct segment s = from_peer(f);

		s.seq += (uint32_t)at;
		s.data = c->in + at;
		s.len = c->in_len - at < CHUNK_BYTES ? c->in_len - at : CHUNK_BYTES;
		s.flags |= SEGMENT_PSH;
		if (c->has_urgent && c->urgent_at >= at && c->urgent_at - at < s.len) {
			/* the kernel takes the pointer for one past it, tcp_check_urg() */
			s.flags |= SEGMENT_URG;
			s.urgent = (uint16_t)(c->urgent_at - at + 1);
		}
		r = say(in, &s, err);
	}
	return r;
}

static int say_end(struct netinject *in, const struct file *f, struct cr_err *err)
{
	struct segment s = from_peer(f);

	if (!peer_has_ended(f->tcp))
		return 0;
	s.seq += (uint32_t)f->tcp->in_len;
	s.flags |= SEGMENT_FIN;
	return say(in, &s, err);
}

/* ---- a socket that we have ---- */

static bool has_heard(int fd, const struct tcp_conn *c)
{
	struct pollfd pfd = {.fd = fd, .events = POLLRDHUP | POLLPRI};
	short want = (short)((peer_has_ended(c) ? POLLRDHUP : 0) |
			     (c->has_urgent && !c->urgent_read ? POLLPRI : 0));

	return poll(&pfd, 1, 0) >= 0 && (pfd.revents & want) == want;
}

/* At once, as it is; unless other CPUs do that work (Documentation/networking/scaling.rst, RPS). */
static int wait_heard(int fd, const struct tcp_conn *c, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = 100000};
	uint64_t end = clock_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;

	while (!has_heard(fd, c)) {
		if (clock_ns(CLOCK_MONOTONIC) > end)
			return cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT,
					  "a socket does not hear what its peer has said");
		nanosleep(&pause, NULL);
	}
	return 0;
}

int tcp_tell(int fd, const struct file *f, struct netinject *in, struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	struct f_owner_ex owner = {0}, nobody = {.type = F_OWNER_PID};
	char byte;
	int r = 0;

	if (!tcp_needs_telling(c) ||
	    (!in && !c->has_urgent)) /* its other end is here, and says it */
		return 0;
	if (!in)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EOPNOTSUPP,
				  "there is no way to tell it what its peer has said");
	if (c->has_urgent) { /* whose signal it is has had it */
		if (fcntl(fd, F_GETOWN_EX, &owner) || fcntl(fd, F_SETOWN_EX, &nobody))
			return cr_err_sys(err, "F_SETOWN_EX");
		r = say_data(in, f, c->urgent_at, err);
	}
	if (!r)
		r = say_end(in, f, err);
	if (!r)
		r = wait_heard(fd, c, err);
	if (!r && c->has_urgent && c->urgent_read && recv(fd, &byte, 1, MSG_OOB | MSG_DONTWAIT) < 0)
		errno = 0; /* with SO_OOBINLINE nothing is read so */
	if (owner.pid && fcntl(fd, F_SETOWN_EX, &owner) && !r)
		r = cr_err_sys(err, "F_SETOWN_EX");
	return r;
}

/* ---- one that is to come about ---- */

static void put_address(const uint8_t *sockaddr, uint8_t out[16], uint16_t *port, bool v4)
{
	const struct sockaddr_in *in = (const void *)sockaddr;
	const struct sockaddr_in6 *in6 = (const void *)sockaddr;

	*port = in->sin_port; /* sin6_port is at the same place */
	if (in->sin_family == AF_INET)
		memcpy(out, &in->sin_addr, 4);
	else if (v4)
		memcpy(out, in6->sin6_addr.s6_addr + 12, 4);
	else
		memcpy(out, &in6->sin6_addr, 16);
}

/* A connection of the same ends that was closed on this host is in the way for a minute
 * (TIME_WAIT), of which the peer need not know any more: it has connected anew where its address
 * has been since. */
static bool forget_closed(const struct file *f, bool v4)
{
	struct sockaddr_storage us = {0}, peer = {0};
	struct cr_err ignored = {0};

	memcpy(&us, f->sockaddr, f->sockaddr_len);
	memcpy(&peer, f->peeraddr, f->peeraddr_len);
	if (v4 && us.ss_family == AF_INET6) {
		memcpy(&((struct sockaddr_in *)&us)->sin_addr, f->sockaddr + MAPPED_AT, 4);
		memcpy(&((struct sockaddr_in *)&peer)->sin_addr, f->peeraddr + MAPPED_AT, 4);
		us.ss_family = peer.ss_family = AF_INET;
	}
	return !tcp_diag_destroy(&us, &peer, 0, &ignored);
}

int tcp_tell_waiting(const struct file *f, uint64_t now_ns, struct netinject *in,
		     struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	const struct sockaddr_in6 *us = (const void *)f->sockaddr;
	bool v4 = us->sin6_family == AF_INET || IN6_IS_ADDR_V4MAPPED(&us->sin6_addr);
	struct netinject_handshake h = {
	    .family = v4 ? AF_INET : AF_INET6,
	    .mss = c->mss,
	    .wscale = c->options & TCPI_OPT_WSCALE,
	    .sack = c->options & TCPI_OPT_SACK,
	    .timestamps = c->options & TCPI_OPT_TIMESTAMPS,
	    .ecn = c->options & TCPI_OPT_ECN,
	    .usec = c->timestamp & 1,
	    .snd_wscale = c->snd_wscale,
	    .rcv_wscale = c->rcv_wscale,
	    .our_clock = tcp_timestamp_at(c, now_ns) & ~1u,
	};
	struct segment s = from_peer(f);
	struct segment_buf buf;
	struct net_packet p;

	put_address(f->sockaddr, h.us, &h.our_port, v4);
	put_address(f->peeraddr, h.peer, &h.peer_port, v4);
	segment_make(&s, &buf, &p);
	int r = netinject_handshake(in, &h, &p, err);
	if (r == -ENOENT && forget_closed(f, v4))
		r = netinject_handshake(in, &h, &p, err);
	if (!r)
		r = say_data(in, f, 0, err);
	return r ? r : say_end(in, f, err);
}
