/* What unix sockets have that shows only when it is used: the error of a peer that was closed with
 * something unread, SO_PEEK_OFF, who made them where that process has ended, empty packets that
 * were looked at once.
 *
 * --what reset, peekoff, makers, empty: one of these alone (default: all)
 * --taken: the number of who made the pair, which is in DIR/maker, may be another after a move */
#include "workload.h"
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { ROOM = 64 };

static struct {
	int left, seq, embryo, calm; /* ends whose peer is closed */
	int stream[2], grams[2];     /* SO_PEEK_OFF */
	int pair[2], served, client, listener;
	pid_t pair_maker, client_maker, listener_maker;
	int packets[2], named, sender;
	struct sockaddr_un name, sender_name;
	socklen_t name_len, sender_name_len;
} f;

static void make_pair(int type, int p[2])
{
	wl_must(!socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, p), "socketpair");
}

static void put(int fd, const char *text)
{
	wl_same("send", (ssize_t)strlen(text), send(fd, text, strlen(text), MSG_NOSIGNAL));
}

static void get(const char *what, int fd, int flags, const char *text)
{
	char buf[ROOM] = "";
	ssize_t n = recv(fd, buf, ROOM - 1, MSG_DONTWAIT | flags);

	wl_check(n == (ssize_t)strlen(text) && !strcmp(buf, text),
		 "%s: expected \"%s\", got %zd \"%s\" (%s)", what, text, n, buf,
		 n < 0 ? strerror(errno) : "");
}

static void get_error(const char *what, int fd, int error)
{
	char c;
	ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT);

	wl_check(n < 0 && errno == error, "%s: expected %s, got %zd (%s)", what, strerror(error), n,
		 n < 0 ? strerror(errno) : "no error");
}

static int listener_at(const char *name)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	char path[256];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	wl_check(strlen(wl_path(path, name)) < sizeof(un.sun_path), "DIR is too long");
	strcpy(un.sun_path, path);
	wl_must(!bind(fd, (void *)&un, sizeof(un)) && !chmod(path, 0777), "bind");
	return fd;
}

static int client_of(const char *name)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	char path[256];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, wl_path(path, name));
	wl_must(!connect(fd, (void *)&un, sizeof(un)), "connect");
	return fd;
}

/* ---- a peer that was closed before it had read everything ---- */

static void reset_set_up(void)
{
	int p[2], l = listener_at("embryo");

	make_pair(SOCK_STREAM, p);
	put(p[1], "left");
	put(p[0], "unread");
	close(p[1]);
	f.left = p[0];
	make_pair(SOCK_SEQPACKET, p);
	put(p[0], "unread");
	close(p[1]);
	f.seq = p[0];
	wl_must(!listen(l, 1), "listen");
	f.embryo = client_of("embryo");
	close(l);
	make_pair(SOCK_STREAM, p);
	put(p[1], "last");
	close(p[1]);
	f.calm = p[0];
}

static void reset_check(void)
{
	struct pollfd p[3] = {{.fd = f.left}, {.fd = f.seq}, {.fd = f.embryo}};

	wl_same("ends with an error", 3, poll(p, 3, 0));
	for (int i = 0; i < 3; i++)
		wl_check(p[i].revents & POLLERR, "end %d: no error waits: %x", i, p[i].revents);
	get("what was left", f.left, 0, "left");
	get_error("after that", f.left, ECONNRESET);
	get("the end", f.left, 0, "");
	get_error("seqpacket", f.seq, ECONNRESET);
	get("its end", f.seq, 0, "");
	get_error("never accepted", f.embryo, ECONNRESET);
	get("what came last", f.calm, 0, "last");
	get("the end without an error", f.calm, 0, "");
}

/* ---- SO_PEEK_OFF ---- */

static void peek_off(int fd, int off)
{
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)), "SO_PEEK_OFF");
}

static void check_peek_off(const char *what, int fd, int want)
{
	int off = -2;
	socklen_t len = sizeof(off);

	wl_must(!getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, &len), "SO_PEEK_OFF");
	wl_check(off == want, "SO_PEEK_OFF of a %s: expected %d, got %d", what, want, off);
}

static void peekoff_set_up(void)
{
	make_pair(SOCK_STREAM, f.stream);
	put(f.stream[0], "abcdef");
	peek_off(f.stream[1], 3);
	peek_off(f.stream[0], 0);
	make_pair(SOCK_DGRAM, f.grams);
	put(f.grams[0], "one");
	put(f.grams[0], "two");
	peek_off(f.grams[1], 3);
}

static void peekoff_check(void)
{
	check_peek_off("stream", f.stream[1], 3);
	check_peek_off("stream with nothing in it", f.stream[0], 0);
	check_peek_off("datagram socket", f.grams[1], 3);
	get("stream from there", f.stream[1], MSG_PEEK, "def");
	check_peek_off("stream that was looked at", f.stream[1], 6);
	get("all of it", f.stream[1], 0, "abcdef");
	get("datagram from there", f.grams[1], MSG_PEEK, "two");
	get("the first", f.grams[1], 0, "one");
	get("the second", f.grams[1], 0, "two");
}

/* ---- made by processes that have ended ---- */

static void pass(int over, const int *fds, int n)
{
	char control[CMSG_SPACE(2 * sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec iov = {"x", 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = CMSG_SPACE((size_t)n * sizeof(int))};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	*c = (struct cmsghdr){CMSG_LEN((size_t)n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
	if (sendmsg(over, &m, 0) != 1)
		_exit(3);
}

static void take(int over, int *fds, int n)
{
	char control[CMSG_SPACE(2 * sizeof(int))] __attribute__((aligned(8)));
	char c;
	struct iovec iov = {&c, 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};

	wl_same("what a maker has passed", 1, recvmsg(over, &m, MSG_CMSG_CLOEXEC));
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), (size_t)n * sizeof(int));
}

/* A child makes fds, as another user, passes them on, and ends. */
static pid_t made_by_child(int (*make)(int fds[2]), int fds[2])
{
	int p[2], status, n;

	wl_must(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), "socketpair");
	pid_t child = fork();
	if (!child) {
		if (setresgid(2, 2, 2) || setresuid(1, 1, 1))
			_exit(2);
		n = make(fds);
		pass(p[1], fds, n);
		_exit(n);
	}
	wl_same("the maker", child, waitpid(child, &status, 0));
	wl_check(WIFEXITED(status) && WEXITSTATUS(status) < 3, "a maker ended with %x", status);
	take(p[0], fds, WEXITSTATUS(status));
	close(p[0]);
	close(p[1]);
	return child;
}

static int make_a_pair(int fds[2])
{
	make_pair(SOCK_STREAM, fds);
	return 2;
}

static int make_a_client(int fds[2])
{
	fds[0] = client_of("makers");
	return 1;
}

static int make_a_listener(int fds[2])
{
	if (listen(f.listener, 5))
		_exit(4);
	fds[0] = f.listener;
	return 1;
}

static void check_maker(const char *what, int fd, pid_t pid, uid_t uid, gid_t gid)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	wl_must(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &uc, &len), "SO_PEERCRED");
	if (pid == f.pair_maker && wl_flag("taken"))
		pid = uc.pid;
	wl_check(uc.pid == pid && uc.uid == uid && uc.gid == gid,
		 "SO_PEERCRED of %s: expected pid %d uid %u gid %u, got pid %d uid %u gid %u", what,
		 pid, uid, gid, uc.pid, uc.uid, uc.gid);
}

static void makers_set_up(void)
{
	int fds[2], l = listener_at("makers");
	char text[16];

	f.pair_maker = made_by_child(make_a_pair, f.pair);
	snprintf(text, sizeof(text), "%d\n", f.pair_maker);
	wl_write("maker", text);
	wl_must(!listen(l, 5), "listen");
	f.client_maker = made_by_child(make_a_client, fds);
	f.client = fds[0];
	f.served = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	close(l);
	f.listener = listener_at("listener");
	f.listener_maker = made_by_child(make_a_listener, fds);
	close(fds[0]);
}

static void makers_check(void)
{
	for (int i = 0; i < 2; i++)
		check_maker("an end of a pair", f.pair[i], f.pair_maker, 1, 2);
	check_maker("an accepted end", f.served, f.client_maker, 1, 2);
	check_maker("the end that connected", f.client, getpid(), 0, 0);
	put(f.pair[0], "pair");
	get("the pair", f.pair[1], 0, "pair");
	put(f.client, "client");
	get("the connection", f.served, 0, "client");
	int fd = client_of("listener");
	check_maker("a client", fd, f.listener_maker, 1, 2);
	close(fd);
}

/* ---- empty packets that were looked at ---- */

static void pass_cred(int fd)
{
	const int one = 1;

	wl_must(!setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)), "SO_PASSCRED");
}

static void bind_at(int fd, const char *name, struct sockaddr_un *un, socklen_t *len)
{
	char path[256];

	*un = (struct sockaddr_un){.sun_family = AF_UNIX};
	strcpy(un->sun_path, wl_path(path, name));
	*len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
	wl_must(!bind(fd, (void *)un, *len), "bind");
}

static void empty_set_up(void)
{
	make_pair(SOCK_SEQPACKET, f.packets);
	pass_cred(f.packets[1]);
	put(f.packets[0], "");
	put(f.packets[0], "");
	put(f.packets[0], "abc");
	put(f.packets[0], "");
	get("the first empty packet", f.packets[1], MSG_PEEK, "");
	f.named = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	f.sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bind_at(f.named, "named", &f.name, &f.name_len);
	bind_at(f.sender, "sender", &f.sender_name, &f.sender_name_len);
	wl_must(!connect(f.sender, (void *)&f.name, f.name_len), "connect");
	put(f.sender, "");
	put(f.sender, "def");
	get("an empty datagram", f.named, MSG_PEEK, "");
}

static void get_packet(const char *what, int fd, const char *text, bool cred,
		       const struct sockaddr_un *name, socklen_t name_len)
{
	char buf[ROOM] = "", control[ROOM * 2] __attribute__((aligned(8)));
	struct sockaddr_un from;
	struct iovec iov = {buf, ROOM - 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_name = &from,
			   .msg_namelen = sizeof(from),
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
	struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m);
	struct ucred uc = {0};

	wl_check(n == (ssize_t)strlen(text) && !strcmp(buf, text),
		 "%s: expected \"%s\", got %zd \"%s\" (%s)", what, text, n, buf,
		 n < 0 ? strerror(errno) : "");
	if (cred) {
		wl_check(c && c->cmsg_type == SCM_CREDENTIALS, "%s: without credentials", what);
		memcpy(&uc, CMSG_DATA(c), sizeof(uc));
		wl_check(uc.pid == getpid() && uc.uid == 0, "%s: of pid %d uid %u", what, uc.pid,
			 uc.uid);
	}
	if (name)
		wl_check(m.msg_namelen == name_len && !memcmp(&from, name, name_len),
			 "%s: a sender's name of %u bytes, not %u", what, m.msg_namelen, name_len);
}

static void empty_check(void)
{
	get_packet("the first empty packet", f.packets[1], "", true, NULL, 0);
	get_packet("the second empty packet", f.packets[1], "", true, NULL, 0);
	get_packet("a packet between", f.packets[1], "abc", true, NULL, 0);
	get_packet("the last empty packet", f.packets[1], "", true, NULL, 0);
	get_error("no more packets", f.packets[1], EAGAIN);
	get_packet("an empty datagram", f.named, "", false, &f.sender_name, f.sender_name_len);
	get_packet("a datagram", f.named, "def", false, &f.sender_name, f.sender_name_len);
	get_error("no more datagrams", f.named, EAGAIN);
}

/* ---- all ---- */

static const struct {
	const char *name;
	void (*set_up)(void), (*check)(void);
} things[] = {
    {"reset", reset_set_up, reset_check},
    {"peekoff", peekoff_set_up, peekoff_check},
    {"makers", makers_set_up, makers_check},
    {"empty", empty_set_up, empty_check},
};
enum { THINGS = sizeof(things) / sizeof(things[0]) };

static bool is_wanted(int i)
{
	return !strcmp(wl_opt_str("what", things[i].name), things[i].name);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	for (int i = 0; i < THINGS; i++)
		if (is_wanted(i))
			things[i].set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		wl_sleep_us(2000);
	}
	for (int i = 0; i < THINGS; i++)
		if (is_wanted(i))
			things[i].check();
	wl_done();
}
