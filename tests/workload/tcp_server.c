/* A TCP server, to be moved while tcp_peer talks to it: many connections, each used as its first
 * byte says (tcp_stream.h). A connection that breaks is a failure; so is a byte that is not what
 * its position says.
 *
 * --listen ADDR (default 0.0.0.0; an IPv6 address without brackets); the port is written to
 * DIR/port.
 * --accept-late: accepts nobody before it has moved, or DIR/accept exists.
 * --locked: each connection gets a filter that is locked; --locked-listener: the listener has it,
 * and all connections have it from there. --mib N: memory besides, written at random. --options:
 * sets socket options on each connection, and looks at them after each move. --vary: changes
 * options of connections all the time, and looks at all of them after each move. */
#include "tcp_vary.h"
#include <sys/ioctl.h>

enum { BUFFER = 256 * 1024, EVENTS = 256, TICK_MS = 5 };

struct conn {
	int fd;
	enum tcp_use use; /* 0: not told yet */
	uint64_t in, out; /* positions in the streams */
	uint8_t *echo;    /* not sent back yet */
	size_t echo_n, echo_at;
	bool peer_ended, ended, done;
	bool shut, full; /* our side is; it takes no more */
	uint64_t moves;  /* when it began */
	struct varied varied;
};

static struct {
	int epoll, listener, n;
	bool options, late, vary;
	bool locks, locked;   /* filters of accepted connections; all of them are */
	uint64_t ended_early; /* bytes sent on connections that shut down early */
	uint8_t buf[BUFFER];
	uint8_t *memory;
	size_t memory_bytes;
} s;

static void watch(struct conn *c, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = c};

	wl_must(!epoll_ctl(s.epoll, EPOLL_CTL_MOD, c->fd, &ev), "epoll_ctl");
}

/* ---- options ---- */

static const struct {
	int level, name, value;
	const char *text;
} opts[] = {
    {SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
    {SOL_SOCKET, SO_PRIORITY, 3, "SO_PRIORITY"},
    {SOL_SOCKET, SO_RCVLOWAT, 1, "SO_RCVLOWAT"},
    {SOL_SOCKET, SO_OOBINLINE, 1, "SO_OOBINLINE"},
    {IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"},
    {IPPROTO_TCP, TCP_KEEPIDLE, 77, "TCP_KEEPIDLE"},
    {IPPROTO_TCP, TCP_KEEPINTVL, 7, "TCP_KEEPINTVL"},
    {IPPROTO_TCP, TCP_KEEPCNT, 4, "TCP_KEEPCNT"},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 54321, "TCP_USER_TIMEOUT"},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 65536, "TCP_NOTSENT_LOWAT"},
    {IPPROTO_TCP, TCP_LINGER2, 5, "TCP_LINGER2"},
    {IPPROTO_TCP, TCP_SYNCNT, 3, "TCP_SYNCNT"},
    {IPPROTO_TCP, TCP_INQ, 1, "TCP_INQ"},
    {IPPROTO_IP, IP_FREEBIND, 1, "IP_FREEBIND"},
    {IPPROTO_IP, IP_TTL, 44, "IP_TTL"},
    {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, "IP_MTU_DISCOVER"},
    {IPPROTO_IP, IP_RECVERR, 1, "IP_RECVERR"},
    {IPPROTO_IP, IP_RECVTTL, 1, "IP_RECVTTL"},
    {IPPROTO_IP, IP_PKTINFO, 1, "IP_PKTINFO"},
    {IPPROTO_IP, IP_MINTTL, 2, "IP_MINTTL"},
    {SOL_SOCKET, SO_MARK, 9, "SO_MARK"},
    {SOL_SOCKET, SO_TIMESTAMP, 1, "SO_TIMESTAMP"},
    {SOL_SOCKET, SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"},
    {SOL_SOCKET, SO_DONTROUTE, 1, "SO_DONTROUTE"},
};

/* Lets all pass, and is told from others by its first instruction. */
static struct sock_filter filter[] = {{BPF_LD | BPF_IMM, 0, 0, 4711},
				      {BPF_RET | BPF_K, 0, 0, UINT32_MAX}};

static void set_filter(int fd)
{
	const struct sock_fprog prog = {2, filter};

	wl_must(!setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)),
		"SO_ATTACH_FILTER");
}

static void check_filter(int fd)
{
	struct sock_filter there[8];
	socklen_t n = 8;

	wl_must(!getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, there, &n), "SO_GET_FILTER");
	wl_same("instructions of a filter", 2, n);
	wl_check(!memcmp(there, filter, sizeof(filter)), "another filter");
}

static void lock_filter(int fd)
{
	const int one = 1;

	set_filter(fd);
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof(one)), "SO_LOCK_FILTER");
}

static void check_locked(int fd)
{
	const int zero = 0;

	check_filter(fd);
	wl_check(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &zero, sizeof(zero)) &&
		     errno == EPERM,
		 "a filter that was locked can be detached");
}

static void check_text(int fd, int level, int name, const char *want)
{
	char text[32] = "";
	socklen_t len = sizeof(text) - 1;

	wl_must(!getsockopt(fd, level, name, text, &len), want);
	wl_check(!strcmp(text, want), "expected %s, got %s", want, text);
}

static void set_options(int fd)
{
	const struct linger l = {1, 9};
	const struct timeval timeout = {77, 0};
	const int size = 100000;

	for (size_t i = 0; i < sizeof(opts) / sizeof(opts[0]); i++)
		wl_must(!setsockopt(fd, opts[i].level, opts[i].name, &opts[i].value, sizeof(int)),
			opts[i].text);
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)), "SO_LINGER");
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), "SO_SNDBUF");
	wl_must(!setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), "TCP_CONGESTION");
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 5), "SO_BINDTODEVICE");
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), "SO_RCVTIMEO");
	set_filter(fd);
}

static void check_options(int fd)
{
	struct linger l = {0};
	struct timeval timeout = {0};
	int v;
	socklen_t len = sizeof(l);

	getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len);
	wl_same("SO_LINGER", 9, l.l_onoff ? l.l_linger : -1);
	len = sizeof(timeout);
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, &len);
	wl_same("SO_RCVTIMEO", 77, timeout.tv_sec);
	check_text(fd, IPPROTO_TCP, TCP_CONGESTION, "reno");
	check_text(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0");
	check_filter(fd);
	len = sizeof(v);
	getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &v, &len);
	wl_same("SO_SNDBUF", 200000, v);
	getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &v, &len);
	wl_same("SO_REUSEADDR", 1, v);
	getsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &v, &len);
	wl_same("IP_TRANSPARENT", 0, v);
	for (size_t i = 0; i < sizeof(opts) / sizeof(opts[0]); i++) {
		len = sizeof(v);
		wl_must(!getsockopt(fd, opts[i].level, opts[i].name, &v, &len), opts[i].text);
		wl_same(opts[i].text, opts[i].value, v);
	}
}

/* ---- connections ---- */

static void accept_all(void)
{
	for (;;) {
		int fd = accept4(s.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		const int one = 1;

		if (fd < 0 && errno == EAGAIN)
			return;
		wl_must(fd >= 0, "accept4");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (s.options)
			set_options(fd);
		if (s.locks)
			lock_filter(fd);
		struct conn *c = calloc(1, sizeof(*c));
		struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
		wl_must(c, "memory");
		c->fd = fd;
		c->moves = wl.moves;
		vary_begin(&c->varied);
		wl_must(!epoll_ctl(s.epoll, EPOLL_CTL_ADD, fd, &ev), "epoll_ctl");
		s.n++;
	}
}

static void finish(struct conn *c)
{
	close(c->fd);
	free(c->echo);
	c->done = true;
	s.n--;
}

static void begin(struct conn *c)
{
	const int one = 1;

	switch (c->use) {
	case USE_PEER_SHUT:
		watch(c, EPOLLOUT);
		break;
	case USE_SOURCE:
	case USE_BOTH:
		watch(c, EPOLLIN | EPOLLOUT);
		break;
	case USE_SERVER_SHUT:
		wl_must(!shutdown(c->fd, SHUT_WR), "shutdown");
		break;
	case USE_UNREAD:
		watch(c, 0);
		break;
	case USE_URGENT:
	case USE_URGENT_READ:
		watch(c, EPOLLPRI);
		break;
	case USE_FIN_WAIT1:
	case USE_CLOSING:
	case USE_LAST_ACK:
	case USE_CLOSED:
	case USE_CLOSED_LAST:
		watch(c, EPOLLOUT | EPOLLIN);
		break;
	case USE_CORKED:
		setsockopt(c->fd, IPPROTO_TCP, TCP_CORK, &one, sizeof(one));
		wl_must(write(c->fd, CORK_FIRST, strlen(CORK_FIRST)) > 0, "write");
		watch(c, 0);
		break;
	default:
		wl_check(c->use == USE_ECHO || c->use == USE_SINK, "what use is %c?", c->use);
	}
}

/* false: nothing more for now. */
static bool receive(struct conn *c)
{
	if (c->use == USE_URGENT || c->use == USE_URGENT_READ ||
	    (c->use == USE_UNREAD && c->moves == wl.moves))
		return false;
	ssize_t n = recv(c->fd, s.buf, c->use ? sizeof(s.buf) : 1, 0);

	if (n < 0 && errno == EAGAIN)
		return false;
	wl_check(n >= 0, "receiving (%c, %lu in, %lu out): %s", c->use ? c->use : '?', c->in,
		 c->out, strerror(errno));
	if (n == 0) {
		c->peer_ended = true;
		return false;
	}
	if (!c->use) {
		c->use = s.buf[0];
		begin(c);
		return true;
	}
	if (c->use != USE_ECHO) {
		stream_check(s.buf, n, c->in, "server");
		c->in += n;
		return true;
	}
	c->in += n;
	if (c->echo_at == c->echo_n)
		c->echo_at = c->echo_n = 0;
	c->echo = realloc(c->echo, c->echo_n + n);
	wl_must(c->echo, "memory");
	memcpy(c->echo + c->echo_n, s.buf, n);
	c->echo_n += n;
	return c->echo_n < BUFFER;
}

static bool send_some(struct conn *c, const uint8_t *data, size_t n, size_t *sent)
{
	ssize_t r = send(c->fd, data, n, MSG_NOSIGNAL);

	*sent = r > 0 ? (size_t)r : 0;
	if (r < 0 && errno == EAGAIN)
		return false;
	/* a peer that has shut its side down has no other way of telling that it ends */
	if (r < 0 && c->use == USE_PEER_SHUT && (errno == EPIPE || errno == ECONNRESET)) {
		c->ended = true;
		return false;
	}
	wl_check(r >= 0, "sending (%c, %lu in, %lu out): %s", c->use, c->in, c->out,
		 strerror(errno));
	return true;
}

static void send_stream(struct conn *c)
{
	size_t sent;

	do {
		stream_fill(s.buf, 65536, c->out);
		bool more = send_some(c, s.buf, 65536, &sent);

		c->out += sent;
		if (!more)
			break;
	} while (sent == 65536 && c->out % (1 << 20) >= 65536);
}

static void send_echo(struct conn *c)
{
	size_t sent;

	while (c->echo_at < c->echo_n) {
		if (!send_some(c, c->echo + c->echo_at, c->echo_n - c->echo_at, &sent))
			break;
		c->echo_at += sent;
		c->out += sent;
	}
	watch(c, c->echo_at < c->echo_n ? EPOLLOUT : EPOLLIN);
}

static void peer_has_ended(struct conn *c)
{
	size_t sent;

	if (c->use == USE_PEER_SHUT)
		return;
	if (c->use == USE_ECHO && c->echo_at < c->echo_n)
		return;
	if (c->use == USE_SINK || c->use == USE_UNREAD)
		send_some(c, (uint8_t *)&c->in, sizeof(c->in), &sent);
	finish(c);
}

/* ---- states of the end ---- */

static bool ends_early(const struct conn *c)
{
	return c->use == USE_FIN_WAIT1 || c->use == USE_CLOSING || c->use == USE_LAST_ACK;
}

static void say_sent(const struct conn *c)
{
	char text[32], path[256];

	s.ended_early += c->out;
	snprintf(text, sizeof(text), "%lu\n", s.ended_early);
	unlink(wl_path(path, "sent"));
	wl_write("sent", text);
}

/* Sends until nothing is taken any more; then shuts its side down, as the use says when. What has
 * been sent goes on being sent afterwards. */
static void send_and_shut(struct conn *c)
{
	size_t sent;

	while (!c->full) {
		stream_fill(s.buf, 65536, c->out);
		c->full = !send_some(c, s.buf, 65536, &sent);
		c->out += sent;
	}
	if (!c->shut && (c->use != USE_LAST_ACK || c->peer_ended)) {
		wl_must(!shutdown(c->fd, SHUT_WR), "shutdown");
		c->shut = true;
		say_sent(c);
	}
	watch(c, c->peer_ended ? 0 : EPOLLIN);
}

static void send_and_close(struct conn *c)
{
	size_t sent;
	bool more = true;

	if (c->use == USE_CLOSED_LAST && !c->peer_ended)
		return;
	while (more) {
		stream_fill(s.buf, 65536, c->out);
		more = send_some(c, s.buf, 65536, &sent);
		c->out += sent;
	}
	say_sent(c);
	finish(c);
}

static int tcp_state(const struct conn *c)
{
	struct tcp_info ti = {0};
	socklen_t len = sizeof(ti);

	wl_must(!getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &ti, &len), "TCP_INFO");
	return ti.tcpi_state;
}

/* Nothing has ended yet that the peer will end. */
static void check_state(struct conn *c)
{
	static const int want[256] = {[USE_PEER_SHUT] = TCP_CLOSE_WAIT,
				      [USE_SERVER_SHUT] = TCP_FIN_WAIT2,
				      [USE_FIN_WAIT1] = TCP_FIN_WAIT1,
				      [USE_CLOSING] = TCP_CLOSING,
				      [USE_LAST_ACK] = TCP_LAST_ACK};
	char byte;

	if (wl_asked("states") && want[c->use])
		wl_same("state of a connection", want[c->use], tcp_state(c));
	if (c->use == USE_PEER_SHUT)
		wl_same("what is read after the peer's end", 0, recv(c->fd, &byte, 1, 0));
}

/* ---- urgent data ---- */

static void read_stream(struct conn *c, size_t n)
{
	while (n) {
		ssize_t got = recv(c->fd, s.buf, n, 0);

		wl_check(got > 0, "reading around an urgent byte: %zd, %s", got, strerror(errno));
		stream_check(s.buf, got, c->in, "server");
		c->in += got;
		n -= got;
	}
}

static int at_mark(const struct conn *c)
{
	int at = 0;

	wl_must(!ioctl(c->fd, SIOCATMARK, &at), "SIOCATMARK");
	return at;
}

static void read_urgent(struct conn *c)
{
	char byte = 0;

	wl_same("the urgent byte", 1, recv(c->fd, &byte, 1, MSG_OOB));
	wl_same("the urgent byte", URGENT_BYTE, byte);
}

static void finish_urgent(struct conn *c)
{
	wl_same("at the mark before", 0, at_mark(c));
	read_stream(c, URGENT_BEFORE);
	wl_same("at the mark", 1, at_mark(c));
	if (c->use == USE_URGENT)
		read_urgent(c);
	else
		wl_check(recv(c->fd, s.buf, 1, MSG_OOB) < 0 && errno == EINVAL,
			 "an urgent byte can be read twice");
	read_stream(c, URGENT_AFTER);
	wl_must(send(c->fd, CORK_FIRST, strlen(CORK_FIRST), 0) > 0, "send");
	finish(c);
}

/* It has come. */
static void note_urgent(struct conn *c)
{
	static int n;
	char text[32], path[256];

	if (wl.moves || wl_asked("accept")) { /* it waited to be accepted */
		finish_urgent(c);
		return;
	}
	if (c->use == USE_URGENT_READ)
		read_urgent(c);
	watch(c, 0);
	snprintf(text, sizeof(text), "%d\n", ++n);
	unlink(wl_path(path, "marked"));
	wl_write("marked", text);
}

static void serve(struct conn *c, uint32_t events)
{
	if (events & EPOLLPRI)
		note_urgent(c);
	if (c->done)
		return;
	for (int i = 0; events & EPOLLIN && i < 16 && receive(c); i++)
		;
	if (c->use == USE_CLOSED || c->use == USE_CLOSED_LAST) {
		send_and_close(c);
		return;
	}
	if (ends_early(c)) {
		send_and_shut(c);
		return;
	}
	if (c->use == USE_ECHO)
		send_echo(c);
	if (events & EPOLLOUT &&
	    (c->use == USE_SOURCE || c->use == USE_BOTH || c->use == USE_PEER_SHUT))
		send_stream(c);
	if (c->ended)
		finish(c);
	else if (c->peer_ended)
		peer_has_ended(c);
}

/* What waited for a move goes on. */
static void after_move(struct conn *c)
{
	const int zero = 0;

	if (s.options)
		check_options(c->fd);
	if (s.locked)
		check_locked(c->fd);
	if (s.vary)
		vary_check(c->fd, &c->varied);
	check_state(c);
	if (c->use == USE_URGENT || c->use == USE_URGENT_READ)
		finish_urgent(c);
	if (c->use == USE_UNREAD)
		watch(c, EPOLLIN);
	if (c->use == USE_CORKED) {
		wl_must(write(c->fd, CORK_REST, strlen(CORK_REST)) > 0, "write");
		setsockopt(c->fd, IPPROTO_TCP, TCP_CORK, &zero, sizeof(zero));
		finish(c);
	}
}

/* All connections, found by what the kernel has: also a check that none got lost. */
static struct conn *all[65536];

/* A few of them at a time. */
static void vary_some(void)
{
	static uint64_t state = 1;
	static int at;

	for (int i = 0, done = 0; s.vary && i < 65536 && done < 8; i++) {
		at = (at + 1) % 65536;
		if (!all[at])
			continue;
		vary_one(all[at]->fd, &all[at]->varied, &state);
		done++;
	}
}

static void dirty_memory(void)
{
	static uint64_t state = 1;

	for (int i = 0; s.memory_bytes && i < 16; i++)
		s.memory[wl_rand(&state) % s.memory_bytes]++;
}

static void check_listener(void)
{
	int v = 0;
	socklen_t len = sizeof(v);

	getsockopt(s.listener, IPPROTO_TCP, TCP_FASTOPEN, &v, &len);
	wl_same("TCP_FASTOPEN", 5, v);
	check_filter(s.listener);
}

static void start_accepting(void)
{
	struct epoll_event ev = {.events = EPOLLIN};

	wl_must(!epoll_ctl(s.epoll, EPOLL_CTL_ADD, s.listener, &ev), "epoll_ctl");
	s.late = false;
}

static void set_up(void)
{
	struct sockaddr_storage sa;
	const char *host = wl_opt_str("listen", "0.0.0.0");
	char text[100], port[32];
	const int one = 1;
	socklen_t len;

	tcp_many_files();
	snprintf(text, sizeof(text), strchr(host, ':') ? "[%s]:0" : "%s:0", host);
	len = tcp_address(text, &sa);
	s.listener = socket(sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(s.listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	wl_must(!bind(s.listener, (void *)&sa, len) && !listen(s.listener, 4096), "listen");
	getsockname(s.listener, (void *)&sa, &len);
	snprintf(port, sizeof(port), "%d\n", ntohs(((struct sockaddr_in *)&sa)->sin_port));
	wl_write("port", port);
	s.epoll = epoll_create1(EPOLL_CLOEXEC);
	s.late = wl_flag("accept-late");
	if (!s.late)
		start_accepting();
	s.vary = wl_flag("vary");
	s.options = wl_flag("options");
	if (s.options) {
		const int queue = 5;

		wl_must(!setsockopt(s.listener, IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof(queue)),
			"TCP_FASTOPEN");
		set_filter(s.listener);
	}
	s.locks = wl_flag("locked");
	s.locked = s.locks || wl_flag("locked-listener");
	if (s.locked && !s.locks)
		lock_filter(s.listener);
	s.memory_bytes = wl_opt("mib", 0) << 20;
	s.memory = malloc(s.memory_bytes + 1);
	memset(s.memory, 1, s.memory_bytes);
}

int main(int argc, char **argv)
{
	struct epoll_event ev[EVENTS];

	wl_init(argc, argv);
	set_up();
	wl_ready();
	for (;;) {
		int n = epoll_wait(s.epoll, ev, EVENTS, TICK_MS);

		for (int i = 0; i < n; i++) {
			struct conn *c = ev[i].data.ptr;

			if (!c) {
				accept_all();
				continue;
			}
			all[c->fd % 65536] = c;
			serve(c, ev[i].events);
			if (c->done) {
				all[c->fd % 65536] = NULL;
				free(c);
			}
		}
		dirty_memory();
		if (s.late && (wl.moves || wl_asked("accept")))
			start_accepting();
		if (wl_tick()) {
			if (s.options)
				check_listener();
			if (s.locked && !s.locks)
				check_locked(s.listener);
			for (int i = 0; i < 65536; i++)
				if (all[i]) {
					after_move(all[i]);
					if (all[i]->done) {
						free(all[i]);
						all[i] = NULL;
					}
				}
		}
		vary_some();
		if (!n && wl_stop())
			break;
		if (wl.ticks % 64 == 0 && wl_stop())
			break;
	}
	wl_done();
}
