/* A program that connects, to be moved before it has an answer: in SYN_SENT. Afterwards the
 * connection comes about from the same address and port, carries what is sent, and only once.
 *
 * --connect ADDR:PORT: somebody who takes no connections until the move, and sends back what it
 * gets then. --from ADDR: ours. */
#include "tcp_stream.h"
#include <poll.h>

static int state_of(int fd)
{
	struct tcp_info ti = {0};
	socklen_t len = sizeof(ti);

	wl_must(!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len), "TCP_INFO");
	return ti.tcpi_state;
}

static int port_of(int fd)
{
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);

	wl_must(!getsockname(fd, (void *)&sa, &len), "getsockname");
	return ntohs(((struct sockaddr_in *)&sa)->sin_port);
}

static int dial(void)
{
	struct sockaddr_storage to, from;
	char text[100];
	const char *host = wl_opt_str("from", "0.0.0.0");
	const int one = 1;

	snprintf(text, sizeof(text), strchr(host, ':') ? "[%s]:0" : "%s:0", host);
	socklen_t len = tcp_address(text, &from);
	int fd = socket(from.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	wl_must(fd >= 0 && !bind(fd, (void *)&from, len), "bind");
	wl_must(!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	len = tcp_address(wl_opt_str("connect", ""), &to);
	wl_must(connect(fd, (void *)&to, len) < 0 && errno == EINPROGRESS, "connect");
	return fd;
}

/* What it says comes back. */
static void talk(int fd)
{
	static const char said[] = "here I am";
	char heard[32] = "";
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int error = -1;
	socklen_t len = sizeof(error);

	wl_must(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len), "SO_ERROR");
	wl_same("error of the connection", 0, error);
	wl_must(send(fd, said, sizeof(said), 0) == sizeof(said), "send");
	wl_same("answers in time", 1, poll(&p, 1, 20000));
	wl_same("length of an answer", sizeof(said), recv(fd, heard, sizeof(heard), 0));
	wl_check(!strcmp(said, heard), "another answer: %s", heard);
}

int main(int argc, char **argv)
{
	bool through = false;

	wl_init(argc, argv);
	int fd = dial(), port = port_of(fd);
	wl_same("state", TCP_SYN_SENT, state_of(fd));
	wl_ready();
	while (!through || !wl_stop()) {
		struct pollfd p = {.fd = fd, .events = POLLOUT};

		if (!through && poll(&p, 1, 5) == 1) {
			wl_check(wl.moves > 0, "connected before it was moved");
			wl_same("port", port, port_of(fd));
			talk(fd);
			wl_write("through", "");
			through = true;
		} else if (through) {
			usleep(5000);
		}
		wl_tick();
	}
	wl_done();
}
