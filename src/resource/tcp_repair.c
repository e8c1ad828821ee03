/* The order of the calls matters almost everywhere here; what breaks otherwise is said beside. */
#include "resource/tcp_repair.h"

#include <linux/filter.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "resource/file_kind.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* 5.14 */
#endif
#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif

/* As <netinet/tcp.h> has them, which cannot be included beside <linux/tcp.h>. */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
};

enum {
	SEND_CHUNK = 64 * 1024,
	SEND_WAIT_MS = 1000,
	FRAME_BYTES = 64 * 1024, /* of a queue's memory, beside twice what is in it */
};

/* ---- lock ---- */

/* Drops all. The first instruction does nothing but tell whose filter it is. */
static const struct sock_filter lock_code[] = {
    {BPF_LD | BPF_IMM, 0, 0, 0x63722d6c},
    {BPF_RET | BPF_K, 0, 0, 0},
};

static int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

static int get_int(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, name, &v, &len) ? -1 : v;
}

bool tcp_is_locked(int fd)
{
	struct sock_filter code[ARRAY_SIZE(lock_code)];
	socklen_t n = 0; /* counts instructions here, not bytes */

	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n) || n != ARRAY_SIZE(lock_code))
		return false;
	return !getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, code, &n) &&
	       !memcmp(code, lock_code, sizeof(code));
}

bool tcp_has_filter(int fd)
{
	socklen_t n = 0;
	int r = getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n);

	return (r || n) && !tcp_is_locked(fd);
}

int tcp_lock(int fd, struct cr_err *err)
{
	const struct sock_fprog prog = {ARRAY_SIZE(lock_code), (struct sock_filter *)lock_code};

	if (tcp_has_filter(fd))
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
				  "socket with a filter (SO_ATTACH_FILTER): not supported");
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)))
		return cr_err_sys(err, "SO_ATTACH_FILTER");
	return 0;
}

int tcp_unlock(int fd, struct cr_err *err)
{
	if (!tcp_is_locked(fd) || !set_int(fd, SOL_SOCKET, SO_DETACH_FILTER, 0))
		return 0;
	return cr_err_sys(err, "SO_DETACH_FILTER");
}

bool tcp_is_in_repair(int fd)
{
	return get_int(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP &&
	       get_int(fd, IPPROTO_TCP, TCP_REPAIR) == 1;
}

/* ---- dump ---- */

static int get_info(int fd, struct tcp_info *ti, struct cr_err *err)
{
	socklen_t len = sizeof(*ti);

	memset(ti, 0, sizeof(*ti));
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, ti, &len) ? cr_err_sys(err, "TCP_INFO") : 0;
}

int tcp_heard(int fd, struct tcp_heard *ret, struct cr_err *err)
{
	struct tcp_info ti;
	int r = get_info(fd, &ti, err);

	if (!r)
		*ret =
		    (struct tcp_heard){ti.tcpi_bytes_received, ti.tcpi_bytes_acked, ti.tcpi_state};
	return r;
}

/* Our FIN has taken a sequence number. */
static bool fin_sent(uint32_t state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_LAST_ACK ||
	       state == TCP_CLOSING;
}

/* The peer's has. */
static bool fin_received(uint32_t state)
{
	return state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;
}

static int queue_seq(int fd, int queue, uint32_t *ret, struct cr_err *err)
{
	socklen_t len = sizeof(*ret);

	if (set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue) ||
	    getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, ret, &len))
		return cr_err_sys(err, "TCP_QUEUE_SEQ");
	return 0;
}

/* Of the queue that is selected. */
static int peek(int fd, struct arena *a, size_t len, const uint8_t **ret, struct cr_err *err)
{
	uint8_t *buf = arena_array(a, uint8_t, len + 1);

	*ret = buf;
	if (!buf)
		return cr_err_oom(err);
	ssize_t n = len ? recv(fd, buf, len, MSG_PEEK | MSG_DONTWAIT) : 0;
	if (n < 0)
		return cr_err_sys(err, "reading a queue");
	if ((size_t)n != len)
		return cr_err_set(err, CR_ERR_KERNEL, EIO, "%zd bytes in a queue of %zu", n, len);
	return 0;
}

/* The byte that urgent data ends with is in no queue that could be read; and SIOCINQ counts up to
 * it.
 */
static int refuse_urgent(int fd, struct cr_err *err)
{
	char c;

	if (recv(fd, &c, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EINVAL)
		return 0;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
			  "urgent data waits to be read: not supported; try again");
}

static int dump_receive_queue(int fd, struct arena *a, struct tcp_conn *c, struct cr_err *err)
{
	uint32_t seq;
	int n = 0, r = queue_seq(fd, TCP_RECV_QUEUE, &seq, err);

	if (r)
		return r;
	if (ioctl(fd, SIOCINQ, &n))
		return cr_err_sys(err, "SIOCINQ");
	c->in_len = (size_t)n;
	c->rcv_seq = seq - (uint32_t)n - fin_received(c->state);
	return peek(fd, a, c->in_len, &c->in, err);
}

/* From the moment that this queue is selected nothing of it is sent. It stays selected: a probe or
 * a paced segment that went out later would have the peer acknowledge what the destination never
 * sent. */
static int dump_send_queue(int fd, struct arena *a, struct tcp_conn *c, struct cr_err *err)
{
	uint32_t seq;
	int n = 0, unsent = 0, r = queue_seq(fd, TCP_SEND_QUEUE, &seq, err);

	if (r)
		return r;
	if (ioctl(fd, SIOCOUTQ, &n) || ioctl(fd, SIOCOUTQNSD, &unsent))
		return cr_err_sys(err, "SIOCOUTQ");
	if (fin_sent(c->state)) { /* counted like a byte, until it is acknowledged */
		seq--;
		n -= n > 0 && c->state != TCP_FIN_WAIT2;
		unsent -= unsent > 0 && c->state != TCP_FIN_WAIT2;
	}
	c->out_len = (size_t)n;
	c->unsent = (uint32_t)unsent;
	c->snd_seq = seq - (uint32_t)n;
	return peek(fd, a, c->out_len, &c->out, err);
}

static void dump_rest(int fd, uint64_t now_ns, struct tcp_conn *c)
{
	struct tcp_repair_window w;
	socklen_t len = sizeof(w);

	c->mss = (uint32_t)get_int(fd, IPPROTO_TCP, TCP_MAXSEG);
	c->timestamp = (uint32_t)get_int(fd, IPPROTO_TCP, TCP_TIMESTAMP);
	c->timestamp_ns = now_ns;
	c->has_window = !getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, &len);
	if (!c->has_window)
		return;
	c->snd_wl1 = w.snd_wl1;
	c->snd_wnd = w.snd_wnd;
	c->max_window = w.max_window;
	c->rcv_wnd = w.rcv_wnd;
	c->rcv_wup = w.rcv_wup;
}

static int dump(int fd, struct arena *a, uint64_t now_ns, struct tcp_conn *c, struct cr_err *err)
{
	struct tcp_info ti;
	int r = get_info(fd, &ti, err);

	if (r)
		return r;
	c->state = ti.tcpi_state;
	c->options = ti.tcpi_options;
	c->snd_wscale = ti.tcpi_snd_wscale;
	c->rcv_wscale = ti.tcpi_rcv_wscale;
	if (c->state == TCP_CLOSE || c->state == TCP_SYN_SENT)
		return 0;
	if (fin_received(c->state))
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
				  "the peer has shut its side down: not supported");
	r = refuse_urgent(fd, err);
	if (!r && set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON))
		r = cr_err_sys(err, "TCP_REPAIR");
	if (!r)
		r = dump_receive_queue(fd, a, c, err);
	if (!r)
		r = dump_send_queue(fd, a, c, err);
	if (!r)
		dump_rest(fd, now_ns, c);
	return r;
}

int tcp_dump(int fd, struct arena *a, uint64_t now_ns, struct tcp_conn *ret, struct cr_err *err)
{
	*ret = (struct tcp_conn){.sndbuf = (uint32_t)get_int(fd, SOL_SOCKET, SO_SNDBUF),
				 .rcvbuf = (uint32_t)get_int(fd, SOL_SOCKET, SO_RCVBUF),
				 .buf_lock = (uint32_t)get_int(fd, SOL_SOCKET, SO_BUF_LOCK)};
	return dump(fd, a, now_ns, ret, err);
}

int tcp_release(int fd, int reuseaddr, struct cr_err *err)
{
	int r = tcp_unlock(fd, err);

	if (r || !tcp_is_in_repair(fd))
		return r;
	/* leaving repair clears SO_REUSEADDR */
	if (set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE) ||
	    set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF) ||
	    set_int(fd, SOL_SOCKET, SO_REUSEADDR, reuseaddr))
		return cr_err_sys(err, "leaving TCP_REPAIR");
	return 0;
}

/* ---- rebuild ---- */

static int set_transparent(int fd, const struct file *f, bool on)
{
	return f->sock_family == AF_INET ? set_int(fd, IPPROTO_IP, IP_TRANSPARENT, on)
					 : set_int(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, on);
}

/* Of the program's own setting. */
static bool was_transparent(const struct file *f)
{
	return f->sock_family == AF_INET ? sockopt_int(f, IPPROTO_IP, IP_TRANSPARENT, 0)
					 : sockopt_int(f, IPPROTO_IPV6, IPV6_TRANSPARENT, 0);
}

/* Room for what is in the queues, which need not fit as the kernel counts it here. */
static int large_buffers(int fd, const struct tcp_conn *c)
{
	size_t out = 2 * c->out_len + FRAME_BYTES, in = 2 * c->in_len + FRAME_BYTES;

	/* both double the value, socket(7) */
	return set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE,
		       (int)(out > c->sndbuf ? out : c->sndbuf / 2)) ||
	       set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)(in > c->rcvbuf ? in : c->rcvbuf / 2));
}

static int final_buffers(int fd, const struct tcp_conn *c)
{
	return set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, (int)c->sndbuf / 2) ||
	       set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)c->rcvbuf / 2) ||
	       set_int(fd, SOL_SOCKET, SO_BUF_LOCK, (int)c->buf_lock);
}

static int set_seq(int fd, int queue, uint32_t seq)
{
	return set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue) ||
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
	return c->options & TCPI_OPT_TIMESTAMPS &&
	       set_int(fd, IPPROTO_TCP, TCP_TIMESTAMP, (int)c->timestamp);
}

static int set_window(int fd, const struct tcp_conn *c)
{
	struct tcp_repair_window w = {c->snd_wl1, c->snd_wnd, c->max_window, c->rcv_wnd,
				      c->rcv_wup};

	if (!c->has_window)
		return 0;
	if (fin_received(c->state)) { /* the FIN comes later: tcp_launch() */
		w.rcv_wup--;
		w.rcv_wnd++;
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
	if (set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue))
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
	if (set_int(fd, IPPROTO_TCP, TCP_MAXSEG, mss) ||
	    set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON) || large_buffers(fd, c) ||
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
	if (set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON) || set_transparent(fd, f, true) ||
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
	if (c->state == TCP_SYN_SENT || c->state == TCP_CLOSE)
		return place_unconnected(fd, f, err);
	r = place(fd, f, err);
	if (r)
		return r;
	if (set_options(fd, c))
		return cr_err_sys(err, "TCP_REPAIR_OPTIONS");
	r = fill(fd, TCP_RECV_QUEUE, c->in, c->in_len, err);
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
static uint32_t timestamp_now(const struct tcp_conn *c, uint64_t now_ns)
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
	int r = queue_seq(fd, TCP_SEND_QUEUE, &seq, err);
	if (r)
		return r;
	uint32_t there = seq - c->snd_seq;
	*ret = there < c->out_len ? c->out_len - there : 0;
	return 0;
}

static int leave_repair(int fd, const struct file *f, uint64_t now_ns, size_t *ret_missing,
			struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	bool fresh = tcp_is_in_repair(fd);
	uint32_t ts = timestamp_now(c, now_ns);

	if (!fresh && set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON))
		return cr_err_sys(err, "TCP_REPAIR");
	int r = missing(fd, c, fresh, ret_missing, err);
	if (r)
		return r;
	if (set_int(fd, IPPROTO_TCP, TCP_MAXSEG, 0) ||
	    (fresh && c->options & TCPI_OPT_TIMESTAMPS &&
	     setsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &ts, sizeof(ts))) ||
	    set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE) ||
	    /* not without its window probe: by the answer we learn what has been acknowledged */
	    set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF))
		return cr_err_sys(err, "leaving TCP_REPAIR");
	return 0;
}

/* A SYN that the peer has perhaps answered already; another one is, too. */
static int connect_anew(int fd, const struct file *f, struct cr_err *err)
{
	int flags = fcntl(fd, F_GETFL);

	if (set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP) || flags < 0 ||
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

	if (set_int(fd, SOL_SOCKET, SO_REUSEADDR, reuse) || final_buffers(fd, f->tcp) ||
	    (!was_transparent(f) && set_transparent(fd, f, false)))
		return cr_err_sys(err, "socket options");
	return 0;
}

int tcp_launch(int fd, const struct file *f, uint64_t now_ns, struct cr_err *err)
{
	const struct tcp_conn *c = f->tcp;
	size_t rest = 0;
	int r;

	if (c->state == TCP_SYN_SENT || c->state == TCP_CLOSE) {
		r = c->state == TCP_SYN_SENT ? connect_anew(fd, f, err) : 0;
		return r ? r : settle_options(fd, f, err);
	}
	r = leave_repair(fd, f, now_ns, &rest, err);
	if (!r)
		r = send_all(fd, c->out + c->out_len - rest, rest, err);
	if (!r && fin_sent(c->state) && shutdown(fd, SHUT_WR) && errno != ENOTCONN)
		r = cr_err_sys(err, "shutdown");
	return r ? r : settle_options(fd, f, err);
}
