/* The order of the calls matters almost everywhere here; what breaks otherwise is said beside. */
#include "resource/tcp_repair.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include "resource/sock_filter.h"
#include "resource/tcp_private.h"

bool tcp_is_in_repair(int fd)
{
	return tcp_get_int(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP &&
	       tcp_get_int(fd, IPPROTO_TCP, TCP_REPAIR) == 1;
}

/* ---- dump ---- */

static int get_info(int fd, struct tcp_info *ti, struct cr_err *err)
{
	socklen_t len = sizeof(*ti);

	memset(ti, 0, sizeof(*ti));
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, ti, &len) ? cr_err_sys(err, "TCP_INFO") : 0;
}

static struct tcp_heard heard(const struct tcp_info *ti)
{
	return (struct tcp_heard){ti->tcpi_bytes_received, ti->tcpi_bytes_acked, ti->tcpi_state};
}

int tcp_heard(int fd, struct tcp_heard *ret, struct cr_err *err)
{
	struct tcp_info ti;
	int r = get_info(fd, &ti, err);

	if (!r)
		*ret = heard(&ti);
	return r;
}

int tcp_queue_seq(int fd, int queue, uint32_t *ret, struct cr_err *err)
{
	socklen_t len = sizeof(*ret);

	if (tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue) ||
	    getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, ret, &len))
		return cr_err_sys(err, "TCP_QUEUE_SEQ");
	return 0;
}

/* Of the queue that is selected. */
static int peek(int fd, uint8_t *buf, size_t len, struct cr_err *err)
{
	ssize_t n = len ? recv(fd, buf, len, MSG_PEEK | MSG_DONTWAIT) : 0;

	if (n < 0)
		return cr_err_sys(err, "reading a queue");
	if ((size_t)n != len)
		return cr_err_set(err, CR_ERR_KERNEL, EIO, "%zd bytes in a queue of %zu", n, len);
	return 0;
}

/* ---- urgent data ----
 *
 * A reader that has not set SO_OOBINLINE passes over the urgent byte, and SIOCINQ counts up to it
 * only. With the option it is a byte like others, at which a read stops all the same. */

static int unread(int fd, int *ret, struct cr_err *err)
{
	return ioctl(fd, SIOCINQ, ret) ? cr_err_sys(err, "SIOCINQ") : 0;
}

/* Is there an urgent byte in the queue, at which place, and has it been read out of band? */
static int look_for_urgent(int fd, struct tcp_conn *c, struct cr_err *err)
{
	int n, all, at_mark = 0, r = unread(fd, &n, err);
	char byte;

	if (r)
		return r;
	c->in_len = (size_t)n;
	if (!n && (ioctl(fd, SIOCATMARK, &at_mark) || !at_mark))
		return 0; /* as it nearly always is */
	int is_inline = tcp_get_int(fd, SOL_SOCKET, SO_OOBINLINE) == 1;
	if (tcp_set_int(fd, SOL_SOCKET, SO_OOBINLINE, 0))
		return cr_err_sys(err, "SO_OOBINLINE");
	r = unread(fd, &n, err);
	c->urgent_read =
	    recv(fd, &byte, 1, MSG_OOB | MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EINVAL;
	if (!r && tcp_set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1))
		r = cr_err_sys(err, "SO_OOBINLINE");
	if (!r)
		r = unread(fd, &all, err);
	if (tcp_set_int(fd, SOL_SOCKET, SO_OOBINLINE, is_inline) && !r)
		r = cr_err_sys(err, "SO_OOBINLINE");
	if (r)
		return r;
	c->in_len = (size_t)all;
	c->has_urgent = n < all;
	c->urgent_at = c->has_urgent ? (uint32_t)n : 0;
	return 0;
}

/* The urgent byte and what is behind it: SO_PEEK_OFF of TCP sockets, 6.9. */
static int peek_urgent(int fd, uint8_t *buf, const struct tcp_conn *c, struct cr_err *err)
{
	int is_inline = tcp_get_int(fd, SOL_SOCKET, SO_OOBINLINE) == 1;
	size_t len = c->in_len - c->urgent_at;
	ssize_t n = -1;

	if (!tcp_set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1) &&
	    (!c->urgent_at || !tcp_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, (int)c->urgent_at)))
		n = recv(fd, buf + c->urgent_at, len, MSG_PEEK | MSG_DONTWAIT);
	int saved = errno;
	if (tcp_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, -1) ||
	    tcp_set_int(fd, SOL_SOCKET, SO_OOBINLINE, is_inline))
		return cr_err_sys(err, "SO_OOBINLINE");
	errno = saved;
	if (n < 0 && errno == EOPNOTSUPP)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
				  "urgent data waits behind other data: needs Linux 6.9");
	if (n < 0)
		return cr_err_sys(err, "reading urgent data");
	return (size_t)n == len ? 0
				: cr_err_set(err, CR_ERR_KERNEL, EIO,
					     "%zd bytes from an urgent one on, of %zu", n, len);
}

/* ---- queues ---- */

static int dump_receive_queue(int fd, struct arena *a, struct tcp_conn *c, struct cr_err *err)
{
	size_t first = c->has_urgent ? c->urgent_at : c->in_len;
	uint32_t seq;
	int off = -1, r = tcp_queue_seq(fd, TCP_RECV_QUEUE, &seq, err);

	if (r)
		return r;
	c->rcv_seq = seq - (uint32_t)c->in_len - tcp_fin_received(c->state);
	if (!c->in_len)
		return 0;
	uint8_t *buf = arena_array(a, uint8_t, c->in_len + 1);
	if (!buf)
		return cr_err_oom(err);
	c->in = buf;
	off = tcp_get_int(fd, SOL_SOCKET, SO_PEEK_OFF);
	if (off >= 0 && tcp_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, -1))
		return cr_err_sys(err, "SO_PEEK_OFF");
	r = peek(fd, buf, first, err);
	if (!r && c->has_urgent)
		r = peek_urgent(fd, buf, c, err);
	if (off >= 0 && tcp_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, off) && !r)
		r = cr_err_sys(err, "SO_PEEK_OFF");
	return r;
}

/* From the moment that this queue is selected nothing of it is sent. It stays selected: a probe or
 * a paced segment that went out later would have the peer acknowledge what the destination never
 * sent. */
static int dump_send_queue(int fd, struct arena *a, struct tcp_conn *c, struct cr_err *err)
{
	uint32_t seq;
	int n = 0, unsent = 0, r = tcp_queue_seq(fd, TCP_SEND_QUEUE, &seq, err);

	if (r)
		return r;
	if (ioctl(fd, SIOCOUTQ, &n) || (n && ioctl(fd, SIOCOUTQNSD, &unsent)))
		return cr_err_sys(err, "SIOCOUTQ");
	if (tcp_fin_sent(c->state)) { /* counted like a byte, until it is acknowledged */
		seq--;
		n -= n > 0 && c->state != TCP_FIN_WAIT2;
		unsent -= unsent > 0 && c->state != TCP_FIN_WAIT2;
	}
	c->out_len = (size_t)n;
	c->unsent = (uint32_t)unsent;
	c->snd_seq = seq - (uint32_t)n;
	if (!n)
		return 0;
	uint8_t *buf = arena_array(a, uint8_t, c->out_len + 1);
	c->out = buf;
	return buf ? peek(fd, buf, c->out_len, err) : cr_err_oom(err);
}

/* Whoever has shut down reading sees the end, whether the peer has sent it or not. */
static bool is_read_shut(int fd, uint32_t state)
{
	struct pollfd pfd = {.fd = fd, .events = POLLRDHUP};

	return !tcp_fin_received(state) && poll(&pfd, 1, 0) > 0 && pfd.revents & POLLRDHUP;
}

static void dump_rest(int fd, uint64_t now_ns, struct tcp_conn *c)
{
	struct tcp_repair_window w;
	socklen_t len = sizeof(w);

	c->mss = (uint32_t)tcp_get_int(fd, IPPROTO_TCP, TCP_MAXSEG);
	c->timestamp = (uint32_t)tcp_get_int(fd, IPPROTO_TCP, TCP_TIMESTAMP);
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

static int dump(int fd, struct arena *a, uint64_t now_ns, struct tcp_conn *c,
		struct tcp_heard *ret_heard, struct cr_err *err)
{
	struct tcp_info ti;
	int r = get_info(fd, &ti, err);

	if (r)
		return r;
	*ret_heard = heard(&ti);
	c->state = ti.tcpi_state;
	c->options = ti.tcpi_options;
	c->snd_wscale = ti.tcpi_snd_wscale;
	c->rcv_wscale = ti.tcpi_rcv_wscale;
	if (c->state == TCP_CLOSE || c->state == TCP_SYN_SENT)
		return 0;
	c->read_shut = is_read_shut(fd, c->state);
	r = look_for_urgent(fd, c, err);
	if (!r && tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON))
		r = cr_err_sys(err, "TCP_REPAIR");
	if (!r)
		r = dump_receive_queue(fd, a, c, err);
	if (!r)
		r = dump_send_queue(fd, a, c, err);
	if (!r)
		dump_rest(fd, now_ns, c);
	return r;
}

int tcp_dump(int fd, struct arena *a, uint64_t now_ns, struct tcp_conn *ret,
	     struct tcp_heard *ret_heard, struct cr_err *err)
{
	*ret = (struct tcp_conn){.buf_lock = (uint32_t)tcp_get_int(fd, SOL_SOCKET, SO_BUF_LOCK)};
	if (tcp_get_buffers(fd, &ret->sndbuf, &ret->rcvbuf))
		return cr_err_sys(err, "SO_MEMINFO");
	return dump(fd, a, now_ns, ret, ret_heard, err);
}

int tcp_release(int fd, int reuseaddr, struct cr_err *err)
{
	int r = sock_unlock(fd, err);

	if (r || !tcp_is_in_repair(fd))
		return r;
	/* leaving repair clears SO_REUSEADDR */
	if (tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE) ||
	    tcp_set_int(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF) ||
	    tcp_set_int(fd, SOL_SOCKET, SO_REUSEADDR, reuseaddr))
		return cr_err_sys(err, "leaving TCP_REPAIR");
	return 0;
}
