/* Unix sockets between a parent and its child: bytes both ways without a pause, each byte checked
 * by who reads it; packets with their bounds; queues that stay full across the move; an end that
 * was shut down, one whose peer is gone; names and SO_PEERCRED as before.
 *
 * --uid N: the child is that user and connects as that (default 0) */
#include "workload.h"
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { BLOCK = 3001, PACKET_MAX = 900, PARKED = 60000 };

struct flow { /* what goes one way over one stream */
	int fd;
	uint64_t sent, seen;
};

static struct {
	int stream[2], packets[2], datagrams[2], parked[2], half[2], lonely, idle;
	int listener, client, served;
	struct sockaddr_un name;
	socklen_t name_len;
	pid_t parent, child;
	uid_t uid;
} f;

static uint8_t byte_at(uint64_t pos)
{
	return (uint8_t)(pos * 7 + (pos >> 8) * 13);
}

/* ---- streams ---- */

static void send_some(struct flow *w)
{
	uint8_t buf[BLOCK];

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = byte_at(w->sent + i);
	ssize_t n = send(w->fd, buf, sizeof(buf), MSG_DONTWAIT | MSG_NOSIGNAL);
	wl_check(n >= 0 || errno == EAGAIN || errno == EINTR, "send: %s", strerror(errno));
	w->sent += n > 0 ? (uint64_t)n : 0;
}

static void read_some(struct flow *w)
{
	uint8_t buf[2 * BLOCK];
	ssize_t n = recv(w->fd, buf, sizeof(buf), MSG_DONTWAIT);

	wl_check(n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)), "recv: %zd, %s", n,
		 strerror(errno));
	for (ssize_t i = 0; i < n; i++)
		wl_check(buf[i] == byte_at(w->seen + (uint64_t)i), "byte %lu of a stream: got %u",
			 w->seen + (uint64_t)i, buf[i]);
	w->seen += n > 0 ? (uint64_t)n : 0;
}

/* ---- packets: number, then as many bytes as follow from it ---- */

static size_t packet_len(uint64_t number)
{
	return sizeof(number) + number * 37 % PACKET_MAX;
}

static void send_packet(struct flow *w)
{
	uint8_t buf[sizeof(w->sent) + PACKET_MAX];

	memset(buf, (int)w->sent, sizeof(buf));
	memcpy(buf, &w->sent, sizeof(w->sent));
	ssize_t n = send(w->fd, buf, packet_len(w->sent), MSG_DONTWAIT | MSG_NOSIGNAL);
	wl_check(n >= 0 || errno == EAGAIN || errno == EINTR, "send: %s", strerror(errno));
	w->sent += n > 0;
}

static void read_packet(struct flow *w)
{
	uint8_t buf[sizeof(w->sent) + PACKET_MAX + 1];
	uint64_t number;
	ssize_t n = recv(w->fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	wl_check(n >= (ssize_t)sizeof(number), "packet: %zd bytes (%s)", n, strerror(errno));
	memcpy(&number, buf, sizeof(number));
	wl_same("number of a packet", w->seen, number);
	wl_same("bytes of a packet", packet_len(number), (size_t)n);
	w->seen++;
}

/* ---- what both do ---- */

static struct flow flows[2][3]; /* of this process: [0] what it sends, [1] what it reads */

static void set_up_flows(int side)
{
	int fds[3] = {f.stream[side], f.packets[side], f.datagrams[side]};

	for (int i = 0; i < 3; i++)
		flows[0][i].fd = flows[1][i].fd = fds[i];
}

static void turn(void)
{
	send_some(&flows[0][0]);
	read_some(&flows[1][0]);
	for (int i = 1; i < 3; i++) {
		send_packet(&flows[0][i]);
		read_packet(&flows[1][i]);
	}
}

static void check_cred(const char *what, int fd, pid_t pid, uid_t uid)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	wl_must(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &uc, &len), "SO_PEERCRED");
	if (uc.pid != pid || uc.uid != uid)
		wl_fail("SO_PEERCRED of the %s: expected pid %d uid %u, got pid %d uid %u", what,
			pid, uid, uc.pid, uc.uid);
}

static void check_name(const char *what, int fd, bool peer, bool named)
{
	struct sockaddr_un un = {0};
	socklen_t len = sizeof(un), want = named ? f.name_len : sizeof(sa_family_t);

	wl_must(!(peer ? getpeername : getsockname)(fd, (void *)&un, &len), "name of a socket");
	wl_check(len == want && !memcmp(&un, &f.name, len), "%s: name of %u bytes, not %u: %s",
		 what, len, want, un.sun_path);
}

/* ---- the child ---- */

static void child_main(void)
{
	if (f.uid && setresuid(f.uid, f.uid, f.uid))
		_exit(3);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a change of ids takes it back */
	set_up_flows(1);
	f.client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(f.client, (void *)&f.name, f.name_len))
		_exit(2);
	close(f.lonely);
	for (;;) {
		struct pollfd p[4] = {{.fd = flows[0][0].fd, .events = POLLIN},
				      {.fd = flows[0][1].fd, .events = POLLIN},
				      {.fd = flows[0][2].fd, .events = POLLIN},
				      {.fd = f.client, .events = POLLIN}};
		char c;

		poll(p, 4, 20);
		turn();
		check_name("the connecting end", f.client, true, true);
		check_cred("connecting end", f.client, f.parent, 0);
		ssize_t n = recv(f.client, &c, 1, MSG_DONTWAIT);
		if (n == 1 &&
		    c == '?') { /* how much there is on the way is the parent's to check */
			uint64_t v[6];

			for (int i = 0; i < 3; i++) {
				v[i] = flows[0][i].sent;
				v[3 + i] = flows[1][i].seen;
			}
			wl_same("answer", sizeof(v), send(f.client, v, sizeof(v), 0));
		}
		if (n == 0)
			_exit(0);
	}
}

/* ---- the parent ---- */

static void pair(int type, int p[2])
{
	wl_must(!socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, p), "socketpair");
}

static void set_up(void)
{
	uint8_t *buf = malloc(PARKED);
	int p[2], room = 1 << 20;

	pair(SOCK_STREAM, f.stream);
	pair(SOCK_SEQPACKET, f.packets);
	pair(SOCK_DGRAM, f.datagrams);
	pair(SOCK_STREAM, f.parked);
	wl_must(!setsockopt(f.parked[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)), "SO_SNDBUF");
	for (size_t i = 0; i < PARKED; i++)
		buf[i] = byte_at(i);
	for (size_t i = 0; i < PARKED; i += 100) /* in small pieces: each has its own overhead */
		wl_same("send", 100, send(f.parked[0], buf + i, 100, 0));
	free(buf);
	pair(SOCK_STREAM, f.half);
	wl_same("send", 5, send(f.half[0], "final", 5, 0));
	wl_must(!shutdown(f.half[0], SHUT_WR), "shutdown");
	pair(SOCK_SEQPACKET, p);
	wl_same("send", 4, send(p[1], "gone", 4, 0));
	wl_same("send", 0, send(p[1], "", 0, 0));
	close(p[1]);
	f.lonely = p[0];
	f.idle = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	f.name.sun_family = AF_UNIX;
	char path[256];
	wl_check(strlen(wl_path(path, "s")) < sizeof(f.name.sun_path),
		 "DIR is too long for a unix socket");
	strcpy(f.name.sun_path, path);
	f.name_len =
	    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(f.name.sun_path) + 1);
	f.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	wl_must(!bind(f.listener, (void *)&f.name, f.name_len) && !listen(f.listener, 4),
		"bind and listen");
	wl_must(!chmod(f.name.sun_path, 0777), "chmod");
	f.parent = getpid();
	f.uid = (uid_t)wl_opt("uid", 0);
	f.child = fork();
	if (!f.child)
		child_main();
	f.served = accept4(f.listener, NULL, NULL, SOCK_CLOEXEC);
	wl_must(f.served >= 0, "accept");
	set_up_flows(0);
}

static void check_all(void)
{
	check_name("the accepted end", f.served, false, true);
	check_name("the accepted end's peer", f.served, true, false);
	check_name("an end of a pair", f.stream[0], false, false);
	check_cred("accepted end", f.served, f.child, f.uid);
	check_cred("pair", f.stream[0], f.parent, 0);
	struct pollfd p = {.fd = f.half[0], .events = POLLIN | POLLOUT};
	wl_check(poll(&p, 1, 0) == 1 && !(p.revents & POLLIN),
		 "the end that was shut down: events %x", p.revents);
	wl_check(send(f.half[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE,
		 "sending after shutdown: %s", strerror(errno));
	wl_check(send(f.lonely, "x", 1, MSG_NOSIGNAL) < 0 &&
		     (errno == EPIPE || errno == ECONNRESET),
		 "sending to a peer that is gone: %s", strerror(errno));
}

static void finish(void)
{
	uint8_t *buf = malloc(PARKED + 1);
	uint64_t v[6];
	char text[8] = {0};
	int got = 0;

	for (ssize_t n; got < PARKED && (n = recv(f.parked[1], buf + got,
						  (size_t)(PARKED + 1 - got), MSG_DONTWAIT)) > 0;)
		got += (int)n;
	wl_same("bytes that waited", PARKED, got);
	for (int i = 0; i < PARKED; i++)
		wl_check(buf[i] == byte_at((uint64_t)i), "byte %d of those that waited", i);
	free(buf);
	wl_same("bytes before the end", 5, recv(f.half[1], text, sizeof(text), 0));
	wl_check(!strcmp(text, "final"), "expected final, got %s", text);
	wl_same("end of a stream", 0, recv(f.half[1], text, sizeof(text), 0));
	wl_same("answer over it", 2, send(f.half[1], "ok", 2, 0));
	wl_same("answer over it", 2, recv(f.half[0], text, sizeof(text), 0));
	wl_same("last packet", 4, recv(f.lonely, text, sizeof(text), 0));
	wl_same("last packet", 0, recv(f.lonely, text, sizeof(text), 0));
	wl_same("end", 0, recv(f.lonely, text, sizeof(text), 0));
	/* the child stops sending when it is asked, by being asked once more each time */
	for (int i = 0; i < 200; i++)
		turn();
	wl_same("question", 1, send(f.served, "?", 1, 0));
	wl_same("answer", sizeof(v), recv(f.served, v, sizeof(v), MSG_WAITALL));
	for (int i = 0; i < 3; i++)
		wl_check(flows[1][i].seen <= v[i] && v[3 + i] <= flows[0][i].sent,
			 "flow %d: %lu read of %lu sent; %lu of %lu", i, flows[1][i].seen, v[i],
			 v[3 + i], flows[0][i].sent);
	close(f.served);
	wl_same("child", f.child, waitpid(f.child, &got, 0));
	wl_same("its exit", 0, got);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		struct pollfd p[3] = {{.fd = flows[0][0].fd, .events = POLLIN},
				      {.fd = flows[0][1].fd, .events = POLLIN},
				      {.fd = flows[0][2].fd, .events = POLLIN}};

		wl_tick();
		poll(p, 3, 5);
		turn();
		check_all();
	}
	finish();
	wl_done();
}
