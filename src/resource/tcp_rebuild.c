/* The order of the calls matters almost everywhere here; what breaks otherwise is said beside. */
#include "resource/tcp_repair.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include "base/clock.h"
#include "resource/file_kind.h"
#include "resource/tcp_private.h"

enum {
	SEND_CHUNK = 64 * 1024,
	SEND_WAIT_MS = 1000,
	FITS_BYTES = 4 * 1024,   /* in the smallest buffers that a fresh socket has */
	FRAME_BYTES = 64 * 1024, /* of a queue's memory, beside twice what is in it */
};

/* ---- rebuild ---- */

static int set_transparent(int fd, const struct file *f, bool on)
{
	return f->sock_family == AF_INET ? tcp_set_int(fd, IPPROTO_IP, IP_TRANSPARENT, on)
					 : tcp_set_int(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, on);
}

/* Of the program's own setting. */
static bool was_transparent(const struct file *f)
{
	return f->sock_family == AF_INET ? sockopt_int(f, IPPROTO_IP, IP_TRANSPARENT, 0)
					 : sockopt_int(f, IPPROTO_IPV6, IPV6_TRANSPARENT, 0);
}

static bool fits(const struct tcp_conn *c)
{
	return c->out_len <= FITS_BYTES && c->in_len <= FITS_BYTES;
}

/* Room for what is in the queues, which need not fit as the kernel counts it here. */
static int large_buffers(int fd, const struct tcp_conn *c)
{
	size_t out = 2 * c->out_len + FRAME_BYTES, in = 2 * c->in_len + FRAME_BYTES;

	if (fits(c))
		return 0;
	/* both double the value, socket(7) */
	return tcp_set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE,
			   (int)(out > c->sndbuf ? out : c->sndbuf / 2)) ||
	       tcp_set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE,
			   (int)(in > c->rcvbuf ? in : c->rcvbuf / 2));
}

/* One call to find out that three are not needed. */
static int final_buffers(int fd, const struct tcp_conn *c)
{
	uint32_t snd, rcv;

	if (fits(c) && !c->buf_lock && !tcp_get_buffers(fd, &snd, &rcv) && snd == c->sndbuf &&
	    rcv == c->rcvbuf)
		return 0;
	return tcp_set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, (int)c->sndbuf / 2) ||
	       tcp_set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)c->rcvbuf / 2) ||
	       tcp_set_int(fd, SOL_SOCKET, SO_BUF_LOCK, (int)c->buf_lock);
}

static int set_seq(int fd, int queue, uint32_t seq)
{
	return tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue) ||
	       setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &seq, sizeof(seq));
}

static int set_options(int fd, const struct tcp_conn *c)
{
	struct tcp_repair_opt o[4] = {{2 /* TCPOPT_MSS */, c->mss}};
	socklen_t n = 1;

	if (c->options & TCPI_OPT_WSCALE)
		o[n++] = (struct tcp_repair_opt){3, c->snd_wscale | c->rcv_wscale << 16};
	if (c->options & TCPI_OPT_SACK)
		o[n++] = (struct tcp_repair_opt){4, 0};
	if (c->options & TCPI_OPT_TIMESTAMPS)
		o[n++] = (struct tcp_repair_opt){8, 0};
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, o, n * sizeof(*o)))
		return -1;
	/* once more when it is launched; but what comes for the address before that is
	 * acknowledged, and a time in the future would have the peer drop all that is sent later */
	return c->options & TCPI_OPT_TIMESTAMPS &&
	       tcp_set_int(fd, IPPROTO_TCP, TCP_TIMESTAMP, (int)c->timestamp);
}

/* What is told at the launch, as if the peer said it: the socket has not received that yet. */
static size_t received_before(const struct tcp_conn *c)
{
	return c->has_urgent ? c->urgent_at : c->in_len;
}

static int set_window(int fd, const struct tcp_conn *c)
{
	struct tcp_repair_window w = {c->snd_wl1, c->snd_wnd, c->max_window, c->rcv_wnd,
				      c->rcv_wup};
	int32_t beyond = (int32_t)(c->rcv_wup - c->rcv_seq - (uint32_t)received_before(c));

	if (!c->has_window)
		return 0;
	if (beyond > 0) { /* the right edge stays where it is */
		w.rcv_wup -= (uint32_t)beyond;
		w.rcv_wnd += (uint32_t)beyond;
	}
	return setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, sizeof(w));
}

static int send_all(int fd, const uint8_t *data, size_t len, struct cr_err *err)
{
	while (len) {
		struct pollfd pfd = {.fd = fd, .events = POLLOUT};
		ssize_t n = send(fd, data, len < SEND_CHUNK ? len : SEND_CHUNK,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN && poll(&pfd, 1, SEND_WAIT_MS) > 0)
			continue;
		if (n <= 0)
			return cr_err_sys(err, "filling a queue");
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int fill(int fd, int queue, const uint8_t *data, size_t len, struct cr_err *err)
{
	if (!len)
		return 0;
	if (tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue))
		return cr_err_sys(err, "TCP_REPAIR_QUEUE");
	return send_all(fd, data, len, err);
}

static int place(int fd, const struct file *f, struct cr_err *err)
{
	enum { MAXSEG_MAX = 32767 }; /* MAX_TCP_WINDOW; what MSS there is comes with the options */
	const struct tcp_conn *c = f->tcp;
	int mss = c->mss < MAXSEG_MAX ? (int)c->mss : MAXSEG_MAX;

	/* before connect: else the segments stay as small as nobody having told an MSS makes them
	 */
	if (tcp_set_int(fd, IPPROTO_TCP, TCP_MAXSEG, mss) ||
	    tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON) || large_buffers(fd, c) ||
	    set_seq(fd, TCP_SEND_QUEUE, c->snd_seq) || set_seq(fd, TCP_RECV_QUEUE, c->rcv_seq))
		return cr_err_sys(err, "TCP_REPAIR");
	/* an address that is not here yet, netdevice and route being there */
	if (set_transparent(fd, f, true) ||
	    bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len))
		return cr_err_sys(err, "bind");
	if (connect(fd, (const struct sockaddr *)f->peeraddr, f->peeraddr_len))
		return cr_err_sys(err, "connect in TCP_REPAIR");
	return 0;
}

/* Without TCP_REPAIR the port might be taken: by the connection's own listener, which shares it. */
static int place_unconnected(int fd, const struct file *f, struct cr_err *err)
{
	if (tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON) ||
	    set_transparent(fd, f, true) ||
	    bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len))
		return cr_err_sys(err, "bind");
	return 0;
}

int tcp_rebuild(int fd, const struct file *f, struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	int r = sockopts_apply(fd, f, err);

	if (r)
		return r;
	if (c->state == TCP_SYN_SENT || c->state == TCP_CLOSE || f->waits_at != UINT32_MAX)
		return place_unconnected(fd, f, err);
	r = place(fd, f, err);
	if (r)
		return r;
	if (set_options(fd, c))
		return cr_err_sys(err, "TCP_REPAIR_OPTIONS");
	r = fill(fd, TCP_RECV_QUEUE, c->in, received_before(c), err);
	if (!r) /* what was sent once; the rest is sent by tcp_launch() */
		r = fill(fd, TCP_SEND_QUEUE, c->out, c->out_len - c->unsent, err);
	if (!r && set_window(fd, c))
		r = cr_err_sys(err, "TCP_REPAIR_WINDOW");
	return r;
}

/* ---- launch ---- */

/* The peer drops what looks older than the last that it heard (RFC 7323, 5.3), and the clock that
 * it heard went on while this connection did not. The lowest bit says that the unit is a
 * microsecond, not a millisecond (6.7). */
uint32_t tcp_timestamp_at(const struct tcp_conn *c, uint64_t now_ns)
{
	uint64_t unit = c->timestamp & 1 ? 1000 : 1000000;
	uint64_t passed = now_ns > c->timestamp_ns ? (now_ns - c->timestamp_ns) / unit : 0;

	return ((c->timestamp + (uint32_t)passed + 2) & ~1u) | (c->timestamp & 1);
}

/* What of the send queue is not in the socket: all that was unsent, unless somebody who did this
 * before us had come further. */
static int missing(int fd, const struct tcp_conn *c, bool fresh, size_t *ret, struct cr_err *err)
{
	uint32_t seq;

	*ret = c->unsent;
	if (fresh)
		return 0;
	int r = tcp_queue_seq(fd, TCP_SEND_QUEUE, &seq, err);
	if (r)
		return r;
	uint32_t there = seq - c->snd_seq;
	*ret = there < c->out_len ? c->out_len - there : 0;
	return 0;
}

/* Leaving TCP_REPAIR sends a window probe, which acknowledges what the source had not, and whose
 * answer tells what the peer has acknowledged. Where both have nothing to say, ten thousand probes
 * and answers only take time. */
static bool has_news(const struct tcp_conn *c)
{
	uint32_t rcv_nxt = c->rcv_seq + (uint32_t)c->in_len + tcp_fin_received(c->state);

	return c->state != TCP_ESTABLISHED || c->out_len || !c->has_window || !c->snd_wnd ||
	       c->rcv_wup != rcv_nxt || c->has_urgent;
}

static int leave_repair(int fd, const struct file *f, uint64_t now_ns, size_t *ret_missing,
			struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	bool fresh = tcp_get_int(fd, IPPROTO_TCP, TCP_REPAIR) == 1;
	int off = fresh && !has_news(c) ? TCP_REPAIR_OFF_NO_WP : TCP_REPAIR_OFF;
	uint32_t ts = tcp_timestamp_at(c, now_ns);

	if (!fresh && tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON))
		return cr_err_sys(err, "TCP_REPAIR");
	int r = missing(fd, c, fresh, ret_missing, err);
	if (r)
		return r;
	if (tcp_set_int(fd, IPPROTO_TCP, TCP_MAXSEG, 0) ||
	    (fresh && c->options & TCPI_OPT_TIMESTAMPS &&
	     setsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &ts, sizeof(ts))) ||
	    tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, off))
		return cr_err_sys(err, "leaving TCP_REPAIR");
	return 0;
}

/* A SYN that the peer has perhaps answered already; another one is, too. */
static int connect_anew(int fd, const struct file *f, struct cr_err *err)
{
	int flags = fcntl(fd, F_GETFL);

	if (tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP) || flags < 0 ||
	    fcntl(fd, F_SETFL, flags | O_NONBLOCK))
		return cr_err_sys(err, "leaving TCP_REPAIR");
	if (connect(fd, (const struct sockaddr *)f->peeraddr, f->peeraddr_len) &&
	    errno != EINPROGRESS && errno != EALREADY && errno != EISCONN)
		return cr_err_sys(err, "connect");
	return fcntl(fd, F_SETFL, flags) ? cr_err_sys(err, "F_SETFL") : 0;
}

static int settle_options(int fd, const struct file *f, struct cr_err *err)
{
	int reuse = sockopt_int(f, SOL_SOCKET, SO_REUSEADDR, 0);

	/* leaving repair has cleared it */
	if ((reuse && tcp_set_int(fd, SOL_SOCKET, SO_REUSEADDR, reuse)) ||
	    final_buffers(fd, f->tcp) || (!was_transparent(f) && set_transparent(fd, f, false)))
		return cr_err_sys(err, "socket options");
	return 0;
}

/* In the order in which it came about: who shut down first is what the two closing states differ
 * in. */
static int tell_and_send(int fd, const struct file *f, size_t rest, struct netinject *in,
			 struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	bool closing = c->state == TCP_CLOSING;
	int r = closing ? 0 : tcp_tell(fd, f, in, err);

	if (!r)
		r = send_all(fd, c->out + c->out_len - rest, rest, err);
	if (!r && tcp_fin_sent(c->state) && shutdown(fd, SHUT_WR) && errno != ENOTCONN)
		r = cr_err_sys(err, "shutdown");
	if (!r && closing)
		r = tcp_tell(fd, f, in, err);
	if (!r && c->read_shut && shutdown(fd, SHUT_RD) && errno != ENOTCONN)
		r = cr_err_sys(err, "shutdown");
	return r;
}

int tcp_launch(int fd, const struct file *f, uint64_t now_ns, struct netinject *in,
	       struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	size_t rest = 0;
	int r;

	if (c->state == TCP_SYN_SENT || c->state == TCP_CLOSE) {
		r = c->state == TCP_SYN_SENT ? connect_anew(fd, f, err) : 0;
		if (!r)
			r = settle_options(fd, f, err);
		return r ? r : sockopts_apply_late(fd, f, err);
	}
	if (f->waits_at != UINT32_MAX) /* nobody knows what has been sent: it is a broken one */
		return tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
			   ? cr_err_sys(err, "leaving TCP_REPAIR")
			   : 0;
	r = leave_repair(fd, f, now_ns, &rest, err);
	if (!r)
		r = tell_and_send(fd, f, rest, in, err);
	if (!r)
		r = settle_options(fd, f, err);
	return r ? r : sockopts_apply_late(fd, f, err);
}

/* ---- to a listener of the tree's own ---- */

void tcp_end(const void *sockaddr, uint8_t out[TCP_END_BYTES])
{
	const struct sockaddr_in *in = sockaddr;
	const struct sockaddr_in6 *in6 = sockaddr;

	memset(out, 0, TCP_END_BYTES);
	if (in->sin_family == AF_INET) {
		out[10] = out[11] = 0xff;
		memcpy(out + 12, &in->sin_addr, 4);
	} else {
		memcpy(out, &in6->sin6_addr, 16);
	}
	memcpy(out + 16, &in->sin_port, 2); /* sin6_port is at the same place */
}

/* Over the loopback interface the answer is there at once. */
static int wait_connected(int fd, struct cr_err *err)
{
	struct pollfd pfd = {.fd = fd, .events = POLLOUT};
	int n = poll(&pfd, 1, SEND_WAIT_MS), why = tcp_get_int(fd, SOL_SOCKET, SO_ERROR);

	if (n == 1 && !why)
		return 0;
	errno = why > 0 ? why : ETIMEDOUT;
	return cr_err_sys(err, "connecting to it again");
}

static int send_received(int fd, const struct tcp_conn *c, struct cr_err *err)
{
	size_t first = received_before(c);
	int r = send_all(fd, c->in, first, err);

	if (r || first == c->in_len)
		return r;
	if (send(fd, c->in + first, 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
		return cr_err_sys(err, "sending urgent data");
	return send_all(fd, c->in + first + 1, c->in_len - first - 1, err);
}

int tcp_connect_again(int fd, const struct file *f, const struct file *waiting, struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp, *w = waiting->tcp;
	/* of our queue, what has come there, and of which we were not told yet */
	uint32_t there = w->rcv_seq + (uint32_t)w->in_len - c->snd_seq;

	if (there > c->out_len)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "its ends do not agree about what has been sent");
	if (tcp_set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE,
			(int)(2 * (w->in_len + c->out_len) + FRAME_BYTES)))
		return cr_err_sys(err, "SO_SNDBUFFORCE");
	int r = connect_anew(fd, f, err);
	if (!r)
		r = wait_connected(fd, err);
	if (!r)
		r = send_received(fd, w, err);
	if (!r)
		r = send_all(fd, c->out + there, c->out_len - there, err);
	if (!r && tcp_fin_sent(c->state) && shutdown(fd, SHUT_WR))
		r = cr_err_sys(err, "shutdown");
	if (!r)
		r = settle_options(fd, f, err);
	return r ? r : sockopts_apply_late(fd, f, err);
}

int tcp_connect_for(const struct file *waiting, struct cr_err *err)
{
	const struct tcp_conn *w = waiting->tcp;
	struct tcp_conn c = {.state = TCP_FIN_WAIT2, .snd_seq = w->rcv_seq + (uint32_t)w->in_len};
	struct file f = {.sock_family = waiting->sock_family,
			 .sockaddr = waiting->peeraddr,
			 .sockaddr_len = waiting->peeraddr_len,
			 .peeraddr = waiting->sockaddr,
			 .peeraddr_len = waiting->sockaddr_len,
			 .waits_at = 0,
			 .tcp = &c};
	_cleanup_fd_ int fd = socket(f.sock_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "TCP socket");
	int r = tcp_rebuild(fd, &f, err);
	return r ? r : tcp_connect_again(fd, &f, waiting, err);
}
