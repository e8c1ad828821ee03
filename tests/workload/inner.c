/* TCP connections whose both ends are in the tree, over 127.0.0.1 and ::1: between a parent and its
 * child, both directions full and one that goes to and fro, with segments larger than can be asked
 * for (tcp(7), TCP_MAXSEG); with data that nobody has read; half-closed; one that nobody has
 * accepted; both ends in one process.
 *
 * --conns N: of each family */
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { MOST = 64, BUFFER = 128 * 1024, LARGE = 32767 };

struct end {
	int fd;
	bool turns; /* one record goes to and fro */
	bool ours;  /* the record is here */
	uint64_t in, out;
};

static struct {
	int n;
	struct end ends[2 * MOST];
	int listener, listener6, unread, unread_peer, shut, shut_peer;
	uint64_t largest;
	uint8_t buf[BUFFER];
} f;

static uint8_t byte_at(uint64_t pos)
{
	return (uint8_t)(pos * 13 + (pos >> 9) * 5);
}

static int listens(int family)
{
	struct sockaddr_in6 sa = {.sin6_family = (sa_family_t)family};
	socklen_t len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(sa);
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (family == AF_INET)
		((struct sockaddr_in *)&sa)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		sa.sin6_addr = in6addr_loopback;
	wl_must(fd >= 0 && !bind(fd, (void *)&sa, len) && !listen(fd, 128), "a listening socket");
	return fd;
}

static int connects(int listener)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);

	wl_must(!getsockname(listener, (void *)&sa, &len), "getsockname");
	int fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	wl_must(fd >= 0 && !connect(fd, (void *)&sa, len), "connect");
	return fd;
}

static int accepts(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	wl_must(fd >= 0, "accept");
	return fd;
}

static void look_at_size(int fd)
{
	int v = 0;
	socklen_t len = sizeof(v);

	wl_must(!getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &v, &len), "TCP_MAXSEG");
	if ((uint64_t)v > f.largest)
		f.largest = (uint64_t)v;
}

static void put_all(struct end *e, size_t most)
{
	for (size_t done = 0; done < most;) {
		size_t n = most - done < BUFFER ? most - done : BUFFER;

		for (size_t i = 0; i < n; i++)
			f.buf[i] = byte_at(e->out + i);
		ssize_t sent = send(e->fd, f.buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		wl_check(sent > 0, "sending: %s", strerror(errno));
		e->out += (uint64_t)sent;
		done += (size_t)sent;
	}
}

static bool take(struct end *e)
{
	ssize_t n = recv(e->fd, f.buf, BUFFER, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	wl_check(n > 0, "receiving after %lu bytes: %zd, %s", e->in, n,
		 n ? strerror(errno) : "end");
	for (ssize_t i = 0; i < n; i++)
		wl_check(f.buf[i] == byte_at(e->in + (uint64_t)i), "byte %lu: expected %u, got %u",
			 e->in + (uint64_t)i, byte_at(e->in + (uint64_t)i), f.buf[i]);
	e->in += (uint64_t)n;
	return true;
}

enum { RECORD = 100000 };

static void work(struct end *e)
{
	while (take(e))
		;
	if (!e->turns) {
		put_all(e, 4 * BUFFER);
	} else if (e->in / RECORD * RECORD + (e->ours ? RECORD : 0) > e->out) {
		put_all(e, e->in / RECORD * RECORD + (e->ours ? RECORD : 0) - e->out);
	}
	look_at_size(e->fd);
}

static void child_main(struct end *ends)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() == 1)
		_exit(0);
	for (;;) {
		struct pollfd p[2 * MOST];

		for (int i = 0; i < f.n; i++)
			p[i] = (struct pollfd){ends[i].fd, POLLIN, 0};
		if (poll(p, (nfds_t)f.n, 20) < 0 && errno != EINTR)
			_exit(3);
		for (int i = 0; i < f.n; i++)
			work(&ends[i]);
	}
}

static void expect(const char *what, int fd, const char *text)
{
	char buf[64] = "";
	struct pollfd p = {fd, POLLIN, 0};
	ssize_t n = poll(&p, 1, 5000) == 1 ? read(fd, buf, sizeof(buf) - 1) : -1;

	wl_check(n == (ssize_t)strlen(text) && !strcmp(buf, text),
		 "%s: expected \"%s\", got %zd \"%s\" (%s)", what, text, n, buf,
		 n < 0 ? strerror(errno) : "");
}

static void put(int fd, const char *text)
{
	wl_same("write", strlen(text), write(fd, text, strlen(text)));
}

static void set_up(void)
{
	static struct end others[2 * MOST];
	int each = (int)wl_opt("conns", 4);

	wl_check(each <= MOST, "--conns: at most %d", MOST);
	f.listener = listens(AF_INET);
	f.listener6 = listens(AF_INET6);
	for (f.n = 0; f.n < 2 * each; f.n++) {
		int l = f.n < each ? f.listener : f.listener6;

		f.ends[f.n] = (struct end){.fd = connects(l), .turns = f.n % 2, .ours = true};
		others[f.n] = (struct end){.fd = accepts(l), .turns = f.n % 2};
	}
	pid_t pid = fork();
	wl_must(pid >= 0, "fork");
	if (!pid)
		child_main(others);
	for (int i = 0; i < f.n; i++)
		close(others[i].fd);
	f.unread = connects(f.listener);
	f.unread_peer = accepts(f.listener);
	put(f.unread_peer, "not read yet");
	f.shut = connects(f.listener6);
	f.shut_peer = accepts(f.listener6);
	put(f.shut, "the last");
	wl_must(!shutdown(f.shut, SHUT_WR), "shutdown");
}

/* Each once, at the end: it reads what is there. */
static void finish(void)
{
	expect("data that nobody had read", f.unread, "not read yet");
	put(f.unread, "back");
	expect("its other end", f.unread_peer, "back");
	expect("half-closed", f.shut_peer, "the last");
	expect("its end", f.shut_peer, "");
	put(f.shut_peer, "still open");
	expect("the other way", f.shut, "still open");
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	set_up();
	while (f.largest <= LARGE) {
		for (int i = 0; i < f.n; i++)
			work(&f.ends[i]);
		wl_tick();
	}
	wl_ready();
	while (!wl_stop()) {
		uint64_t before = 0, after = 0;

		for (int i = 0; i < f.n; i++) {
			before += f.ends[i].in;
			work(&f.ends[i]);
			after += f.ends[i].in;
		}
		wl_tick();
		if (before == after) {
			struct pollfd p = {f.ends[0].fd, POLLIN, 0};

			poll(&p, 1, 5);
		}
	}
	finish();
	wl_done();
}
