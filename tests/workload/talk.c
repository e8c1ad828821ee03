/* A parent and its child that talk to each other over TCP and the loopback interface: every byte is
 * what its position says, also after a move.
 *
 * Over each family, three connections: one carries an echo all the time; one is stuffed from the
 * beginning until nobody takes any more, and read at the end; one has its side shut down by the
 * child, with a greeting that is read at the end. */
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

enum { CHUNK = 3001, GREETING = 1000, BUFFER = 65536, FAMILIES = 2 };

static struct pair {
	int parent[3], child[3]; /* the echo, the stuffed one, the half-closed one */
	uint64_t out, in;        /* of the echo */
	uint64_t stuffed;        /* bytes */
} pairs[FAMILIES];
static int n_pairs;
static uint8_t buf[BUFFER];

static uint8_t byte_at(uint64_t pos)
{
	return (uint8_t)wl_mix(pos / 8) >> (pos % 8 / 2);
}

static void fill(uint64_t pos, size_t n)
{
	for (size_t i = 0; i < n; i++)
		buf[i] = byte_at(pos + i);
}

static void check(const char *what, uint64_t pos, size_t n)
{
	for (size_t i = 0; i < n; i++)
		wl_check(buf[i] == byte_at(pos + i), "%s: byte %lu is wrong", what, pos + i);
}

static int connection(int family, int *accepted)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	void *a = family == AF_INET ? (void *)&in : (void *)&in6;
	socklen_t len = family == AF_INET ? sizeof(in) : sizeof(in6);
	int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), c = -1;

	if (listener < 0 || bind(listener, a, len)) {
		close(listener);
		return -1; /* IPv6 is off here */
	}
	wl_must(!listen(listener, 1) && !getsockname(listener, a, &len), "listen");
	c = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	wl_must(!connect(c, a, len), "connect");
	*accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	wl_must(*accepted >= 0, "accept");
	close(listener);
	return c;
}

static void set_up(int family)
{
	struct pair *p = &pairs[n_pairs];

	for (int i = 0; i < 3; i++) {
		p->parent[i] = connection(family, &p->child[i]);
		if (p->parent[i] < 0)
			return;
	}
	n_pairs++;
	for (;;) {
		fill(p->stuffed, CHUNK);
		ssize_t n = send(p->parent[1], buf, CHUNK, MSG_DONTWAIT);
		if (n < 0)
			break;
		p->stuffed += n;
	}
	wl_must(errno == EAGAIN, "send");
	fill(0, GREETING);
	wl_same("send", GREETING, send(p->child[2], buf, GREETING, 0));
	wl_must(!shutdown(p->child[2], SHUT_WR), "shutdown");
}

/* ---- the child ---- */

static void take(int fd, const char *what, uint64_t bytes)
{
	uint64_t pos = 0;

	for (ssize_t n; (n = read(fd, buf, BUFFER)) != 0; pos += n) {
		wl_must(n > 0, what);
		check(what, pos, n);
	}
	wl_same(what, bytes, pos);
}

/* Echoes until it is told to end; then takes all that waits for it. */
static void child(int orders)
{
	struct pollfd pfd[FAMILIES + 1] = {{.fd = orders, .events = POLLIN}};
	char c;

	for (int i = 0; i < n_pairs; i++)
		pfd[i + 1] = (struct pollfd){.fd = pairs[i].child[0], .events = POLLIN};
	while (!pfd[0].revents) {
		if (poll(pfd, n_pairs + 1, -1) < 0 && errno == EINTR)
			continue;
		for (int i = 1; i <= n_pairs; i++) {
			if (!pfd[i].revents)
				continue;
			ssize_t n = read(pfd[i].fd, buf, BUFFER);
			wl_must(n >= 0, "echo: read");
			wl_must(write(pfd[i].fd, buf, n) == n, "echo: write");
			if (!n)
				pfd[i].fd = -1;
		}
	}
	if (read(orders, &c, 1) <= 0) /* the parent is dead */
		_exit(1);
	for (int i = 0; i < n_pairs; i++) {
		take(pairs[i].child[1], "what waited to be read", pairs[i].stuffed);
		take(pairs[i].child[2], "what came after the shutdown", CHUNK);
	}
	_exit(0);
}

/* ---- the parent ---- */

static void talk(struct pair *p)
{
	fill(p->out, CHUNK);
	wl_same("echo: send", CHUNK, send(p->parent[0], buf, CHUNK, MSG_NOSIGNAL));
	p->out += CHUNK;
	while (p->in < p->out) {
		struct pollfd pfd = {.fd = p->parent[0], .events = POLLIN};

		int ready = poll(&pfd, 1, 60000);

		if (ready < 0 && errno == EINTR) /* as after any stop */
			continue;
		wl_check(ready == 1, "no echo for 60 s");
		ssize_t n = read(p->parent[0], buf, BUFFER);

		wl_check(n > 0, "echo: %s", n ? strerror(errno) : "the connection has ended");
		check("echo", p->in, n);
		p->in += n;
	}
}

static void finish(pid_t pid, int orders)
{
	int st;

	for (int i = 0; i < n_pairs; i++) {
		struct pair *p = &pairs[i];

		take(p->parent[2], "the greeting", GREETING);
		fill(0, CHUNK);
		wl_same("send", CHUNK, send(p->parent[2], buf, CHUNK, MSG_NOSIGNAL));
		for (int k = 0; k < 3; k++)
			shutdown(p->parent[k], SHUT_WR);
	}
	wl_same("order", 1, write(orders, "e", 1));
	wl_must(waitpid(pid, &st, 0) == pid, "waitpid");
	wl_same("status of the child", 0, st);
}

int main(int argc, char **argv)
{
	int orders[2];

	wl_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	set_up(AF_INET);
	set_up(AF_INET6);
	wl_must(n_pairs > 0 && !pipe(orders), "connections");
	pid_t pid = fork();
	wl_must(pid >= 0, "fork");
	for (int i = 0; i < n_pairs; i++)
		for (int k = 0; k < 3; k++)
			close(pid ? pairs[i].child[k] : pairs[i].parent[k]);
	close(orders[pid ? 0 : 1]);
	if (!pid)
		child(orders[0]);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		for (int i = 0; i < n_pairs; i++)
			talk(&pairs[i]);
		wl_sleep_us(1000);
	}
	finish(pid, orders[1]);
	wl_done();
}
