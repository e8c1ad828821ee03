/* The other end of tcp_server, in a host that does not move: never connects anew, and checks every
 * byte. --connect ADDR:PORT --use X (tcp_stream.h; default E) --conns N --options as below.
 *
 * --churn: each connection says one line, ends, and is followed by another.
 *
 * E: --rate N lines a second over all connections (0: as fast as they come back, one at a time on
 * each). The longest wait for an echo is written to DIR/stall, in microseconds, at the end; `reset`
 * in DIR starts it anew. Others: nothing is read before DIR/read exists, with --late. K, N: --mib N
 * bounds what is sent. */
#include "tcp_stream.h"
#include <sys/prctl.h>

enum { BUFFER = 256 * 1024, EVENTS = 256, LINE = 64 };

struct conn {
	int fd;
	uint64_t in, out;
	uint64_t asked_ns; /* E: of the line that is under way; 0: none */
	bool shut, done;
};

static struct {
	int epoll, n, left;
	enum tcp_use use;
	bool late;
	struct sockaddr_storage address;
	socklen_t address_len;
	uint64_t limit, stall_ns, echoes, rate, begin_ns, asked, got;
	struct conn *conns;
	uint8_t buf[BUFFER];
} s;

static void watch(struct conn *c, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = c};

	wl_must(!epoll_ctl(s.epoll, EPOLL_CTL_MOD, c->fd, &ev), "epoll_ctl");
}

static void say_stall(void)
{
	char text[64], from[256], to[256];

	snprintf(text, sizeof(text), "%lu %lu\n", s.stall_ns / 1000, s.echoes);
	wl_write("stall.new", text);
	wl_must(!rename(wl_path(from, "stall.new"), wl_path(to, "stall")), "rename");
}

/* The server ends by itself, in the course of its use. */
static bool server_ends(void)
{
	switch (s.use) {
	case USE_CORKED:
	case USE_URGENT:
	case USE_URGENT_READ:
	case USE_FIN_WAIT1:
	case USE_CLOSING:
	case USE_LAST_ACK:
	case USE_CLOSED:
	case USE_CLOSED_LAST:
		return true;
	default:
		return false;
	}
}

static bool sends(void)
{
	return s.use == USE_SINK || s.use == USE_BOTH || s.use == USE_UNREAD ||
	       s.use == USE_SERVER_SHUT;
}

static void send_urgent(struct conn *c)
{
	const char urgent = URGENT_BYTE;

	stream_fill(s.buf, URGENT_BEFORE + URGENT_AFTER, 0);
	wl_must(send(c->fd, s.buf, URGENT_BEFORE, 0) == URGENT_BEFORE &&
		    send(c->fd, &urgent, 1, MSG_OOB) == 1 &&
		    send(c->fd, s.buf + URGENT_BEFORE, URGENT_AFTER, 0) == URGENT_AFTER,
		"urgent data");
}

static void note_wait(uint64_t ns)
{
	if (ns > s.stall_ns)
		s.stall_ns = ns;
}

/* ---- connections that come and go ----
 *
 * Each says one line, gets it back, ends, and is followed by another. */

static void connect_next(struct conn *c)
{
	struct epoll_event ev = {.events = EPOLLOUT, .data.ptr = c};

	*c = (struct conn){
	    .fd = socket(s.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
	wl_must(c->fd >= 0, "socket");
	wl_must(!connect(c->fd, (void *)&s.address, s.address_len) || errno == EINPROGRESS,
		"connect");
	c->asked_ns = wl_ns(CLOCK_MONOTONIC);
	wl_must(!epoll_ctl(s.epoll, EPOLL_CTL_ADD, c->fd, &ev), "epoll_ctl");
}

static void say_line(struct conn *c)
{
	uint8_t line[1 + LINE] = {USE_ECHO};
	int why = 0;
	socklen_t len = sizeof(why);

	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &why, &len);
	wl_check(!why, "connecting: %s", strerror(why));
	stream_fill(line + 1, LINE, 0);
	wl_must(send(c->fd, line, sizeof(line), MSG_NOSIGNAL) == sizeof(line), "send a line");
	c->out = LINE;
	watch(c, EPOLLIN);
}

/* The server ends after us: it has nothing under way then. */
static void hear_line(struct conn *c, bool stopping)
{
	ssize_t n = recv(c->fd, s.buf, sizeof(s.buf), 0);

	if (n < 0 && errno == EAGAIN)
		return;
	wl_check(n >= 0, "receiving (%lu in): %s", c->in, strerror(errno));
	stream_check(s.buf, n, c->in, "peer");
	c->in += n;
	wl_check(n || c->shut, "ended after %lu bytes", c->in);
	if (n && c->in == c->out) {
		note_wait(wl_ns(CLOCK_MONOTONIC) - c->asked_ns);
		s.echoes++;
		c->shut = true;
		wl_must(!shutdown(c->fd, SHUT_WR), "shutdown");
	}
	if (n)
		return;
	close(c->fd);
	if (stopping)
		s.left--;
	else
		connect_next(c);
}

static void churn(void)
{
	struct epoll_event ev[EVENTS];

	while (s.left) {
		int n = epoll_wait(s.epoll, ev, EVENTS, 10);

		for (int i = 0; i < n; i++) {
			struct conn *c = ev[i].data.ptr;

			if (c->out)
				hear_line(c, wl_stop());
			else
				say_line(c);
		}
		wl_tick();
	}
	say_stall();
	wl_done();
}

static void connect_all(const char *text)
{
	struct sockaddr_storage sa;
	socklen_t len = tcp_address(text, &sa);
	const int one = 1;
	char use = (char)s.use;

	for (int i = 0; i < s.n; i++) {
		struct conn *c = &s.conns[i];
		struct epoll_event ev = {.events = EPOLLIN | (sends() ? EPOLLOUT : 0),
					 .data.ptr = c};

		c->fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		wl_must(c->fd >= 0 && !connect(c->fd, (void *)&sa, len), "connect");
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		wl_must(send(c->fd, &use, 1, 0) == 1, "send");
		fcntl(c->fd, F_SETFL, O_NONBLOCK);
		if (s.late)
			ev.events = 0;
		wl_must(!epoll_ctl(s.epoll, EPOLL_CTL_ADD, c->fd, &ev), "epoll_ctl");
		if (s.use == USE_PEER_SHUT || s.use == USE_LAST_ACK || s.use == USE_CLOSED_LAST)
			wl_must(!shutdown(c->fd, SHUT_WR), "shutdown");
		if (s.use == USE_URGENT || s.use == USE_URGENT_READ)
			send_urgent(c);
	}
}

/* ---- echo ---- */

static void ask(struct conn *c)
{
	uint8_t line[LINE];

	stream_fill(line, LINE, c->out);
	wl_must(send(c->fd, line, LINE, MSG_NOSIGNAL) == LINE, "send a line");
	c->out += LINE;
	c->asked_ns = wl_ns(CLOCK_MONOTONIC);
}

/* As many as are due; each connection has one line under way at most. */
static void ask_due(void)
{
	static int next;
	uint64_t now = wl_ns(CLOCK_MONOTONIC);
	uint64_t due = s.rate ? (now - s.begin_ns) / 1000 * s.rate / 1000000 : UINT64_MAX;

	for (int tried = 0; tried < s.n && s.asked < due; tried++) {
		struct conn *c = &s.conns[next++ % s.n];

		if (c->asked_ns || c->done)
			continue;
		ask(c);
		s.asked++;
	}
	if (s.rate && s.asked < due) /* all are under way: what is late is not caught up on */
		s.asked = due;
}

/* How long there is nothing to ask; a millisecond at most. */
static long until_due_ns(void)
{
	enum { MOST = 1000000 };

	if (!s.rate || s.use != USE_ECHO)
		return MOST;
	uint64_t now = wl_ns(CLOCK_MONOTONIC);
	uint64_t next = s.begin_ns + (s.asked + 1) * 1000000000 / s.rate;
	return next <= now ? 0 : next - now < MOST ? (long)(next - now) : MOST;
}

static void echoed(struct conn *c)
{
	if (c->in < c->out || !c->asked_ns)
		return;
	note_wait(wl_ns(CLOCK_MONOTONIC) - c->asked_ns);
	c->asked_ns = 0;
	s.echoes++;
}

/* ---- streams ---- */

static void ended(struct conn *c)
{
	wl_check(server_ends() || wl_stop() || c->shut || s.use == USE_SERVER_SHUT,
		 "the server has ended connection %d (%lu in, %lu out)", (int)(c - s.conns), c->in,
		 c->out);
	if (s.use == USE_SERVER_SHUT && !c->shut) {
		watch(c, EPOLLOUT);
		return;
	}
	if (s.use == USE_CORKED)
		wl_same("bytes that were corked", strlen(CORK_FIRST CORK_REST), c->in);
	if (s.use == USE_URGENT || s.use == USE_URGENT_READ)
		wl_same("bytes of an answer", strlen(CORK_FIRST), c->in);
	s.got += c->in;
	c->done = true;
	close(c->fd);
	s.left--;
}

static void receive(struct conn *c)
{
	ssize_t n = recv(c->fd, s.buf, sizeof(s.buf), 0);

	if (n < 0 && errno == EAGAIN)
		return;
	wl_check(n >= 0, "receiving on connection %d (%lu in, %lu out): %s", (int)(c - s.conns),
		 c->in, c->out, strerror(errno));
	if (n == 0) {
		ended(c);
		return;
	}
	if (s.use == USE_CORKED || s.use == USE_URGENT || s.use == USE_URGENT_READ) {
		wl_check(!memcmp(s.buf, CORK_FIRST CORK_REST + c->in, n), "corked bytes differ");
	} else if (s.use == USE_SINK || s.use == USE_UNREAD) {
		uint64_t count;

		wl_same("bytes of an answer", sizeof(count), n);
		memcpy(&count, s.buf, sizeof(count));
		wl_same("bytes that came to the server", c->out, count);
	} else {
		stream_check(s.buf, n, c->in, "peer");
	}
	c->in += n;
	if (s.use == USE_ECHO)
		echoed(c);
}

static void transmit(struct conn *c)
{
	size_t want = sizeof(s.buf) / 4;

	if (s.limit && c->out + want > s.limit)
		want = s.limit - c->out;
	if (!want) {
		watch(c, EPOLLIN);
		return;
	}
	stream_fill(s.buf, want, c->out);
	ssize_t n = send(c->fd, s.buf, want, MSG_NOSIGNAL);
	wl_check(n >= 0 || errno == EAGAIN, "sending on connection %d (%lu in, %lu out): %s",
		 (int)(c - s.conns), c->in, c->out, strerror(errno));
	c->out += n > 0 ? n : 0;
}

/* ---- the end ---- */

static void shut_all(void)
{
	for (int i = 0; i < s.n; i++) {
		struct conn *c = &s.conns[i];

		if (c->done || c->shut || server_ends()) /* those have to end by themselves */
			continue;
		c->shut = true;
		if (s.use != USE_PEER_SHUT)
			wl_must(!shutdown(c->fd, SHUT_WR), "shutdown");
		if (s.use == USE_PEER_SHUT || s.use == USE_SERVER_SHUT) {
			/* the server has no end of its own, or told it before */
			c->done = true;
			s.left--;
			close(c->fd);
		} else {
			watch(c, EPOLLIN);
		}
	}
}

static bool lines_under_way(void)
{
	for (int i = 0; s.use == USE_ECHO && i < s.n; i++)
		if (!s.conns[i].done && s.conns[i].asked_ns)
			return true;
	return false;
}

static void start_reading(void)
{
	for (int i = 0; i < s.n; i++)
		watch(&s.conns[i], EPOLLIN);
	s.late = false;
}

static void now_and_then(void)
{
	char path[256];

	if (s.late && wl_asked("read"))
		start_reading();
	for (int i = 0; s.use == USE_CLOSING && wl_asked("shut") && i < s.n; i++)
		if (!s.conns[i].shut) {
			wl_must(!shutdown(s.conns[i].fd, SHUT_WR), "shutdown");
			s.conns[i].shut = true;
		}
	if (s.use == USE_ECHO && wl_asked("reset")) {
		s.stall_ns = 0;
		unlink(wl_path(path, "reset"));
	}
	if (s.use == USE_ECHO)
		say_stall();
}

static void loop(void)
{
	struct epoll_event ev[EVENTS];
	bool stopping = false;
	uint64_t looked = 0;

	while (s.left) {
		const struct timespec pause = {.tv_nsec = stopping ? 1000000 : until_due_ns()};
		int n = epoll_pwait2(s.epoll, ev, EVENTS, &pause, NULL);

		for (int i = 0; i < n; i++) {
			struct conn *c = ev[i].data.ptr;

			if (ev[i].events & EPOLLIN)
				receive(c);
			if (ev[i].events & EPOLLOUT && !c->done && !c->shut)
				transmit(c);
			wl_check(c->done || ev[i].events & (EPOLLIN | EPOLLOUT),
				 "connection %d: %s%s", (int)(c - s.conns),
				 ev[i].events & EPOLLERR ? "error" : "",
				 ev[i].events & EPOLLHUP ? " hang-up" : "");
		}
		wl_tick();
		if (!stopping && s.use == USE_ECHO)
			ask_due();
		if (wl_ns(CLOCK_MONOTONIC) - looked > 20000000) {
			looked = wl_ns(CLOCK_MONOTONIC);
			now_and_then();
			stopping |= wl_stop();
			if (s.rate && !stopping)
				wl_check(n >= 0, "epoll_wait");
		}
		if (stopping && !lines_under_way())
			shut_all();
	}
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	tcp_many_files();
	s.n = s.left = (int)wl_opt("conns", 1);
	s.use = wl_opt_str("use", "E")[0];
	s.rate = wl_opt("rate", 1000);
	s.limit = wl_opt("mib", 0) << 20;
	s.late = wl_flag("late");
	s.conns = calloc(s.n, sizeof(*s.conns));
	prctl(PR_SET_TIMERSLACK, 1ul); /* or 50 us are added to each wait */
	s.epoll = epoll_create1(EPOLL_CLOEXEC);
	wl_must(s.conns && s.epoll >= 0, "memory");
	if (wl_flag("churn")) {
		s.address_len = tcp_address(wl_opt_str("connect", ""), &s.address);
		for (int i = 0; i < s.n; i++)
			connect_next(&s.conns[i]);
		wl_ready();
		churn();
	}
	connect_all(wl_opt_str("connect", ""));
	s.begin_ns = wl_ns(CLOCK_MONOTONIC);
	wl_ready();
	loop();
	if (s.use == USE_ECHO)
		say_stall();
	if (server_ends()) {
		char text[32];

		snprintf(text, sizeof(text), "%lu\n", s.got);
		wl_write("got", text);
	}
	wl_done();
}
