/* What waits in unix sockets: descriptors (SCM_RIGHTS) that somebody or nobody else has, a socket
 * in a socket, credentials, names of senders; connections that nobody has accepted, with what was
 * sent over them; sockets with names of every sort. All of it is set up before the move and
 * received at the end. Meanwhile descriptors go from a parent to its child and are used there,
 * without a pause.
 *
 * --dense: rounds of passing follow each other without a wait
 * --quiet-clients: over connections that nobody has accepted nothing is sent before the end */
#include "workload.h"
#include <poll.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { CONTROL = 512, OUTSTANDING = 6 };

struct got { /* one message that was received */
	char text[64];
	ssize_t n;
	int fds[8], n_fds;
	struct ucred cred;
	bool has_cred;
	struct sockaddr_un from;
	socklen_t from_len;
};

static struct {
	int plain[2], nest[2], inner[2], creds[2], packets[2], other_end, pipe_write, kept_event;
	int listener, seq_listener, clients[3], seq_client, gone_listener;
	int server, abstract, relative, unlinked, sender, idle, bound_server, bound_client;
	int to_child[2], live[2], asked;
	int outstanding[OUTSTANDING], n_out;
	uint64_t first_out, next;
	pid_t child;
	char dir[64];
} f;

static struct sockaddr_un at_path(socklen_t *len, const char *fmt, const char *name)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	snprintf(un.sun_path, sizeof(un.sun_path), fmt, f.dir, name);
	*len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(un.sun_path) + 1);
	return un;
}

static struct sockaddr_un path_name(const char *name, socklen_t *len)
{
	return at_path(len, "%s/%s", name);
}

/* Abstract names are seen by both hosts of a test on one machine only if they share a network
 * namespace, which they do not. */
static struct sockaddr_un abstract_name(const char *name, socklen_t *len)
{
	struct sockaddr_un un = at_path(len, "x%s-%s", name);

	un.sun_path[0] = '\0';
	*len -= 1;
	return un;
}

static void send_with(int fd, const char *text, const int *fds, int n, const struct ucred *cred,
		      const struct sockaddr_un *to, socklen_t to_len)
{
	char control[CONTROL] __attribute__((aligned(8))) = {0};
	struct iovec iov = {(void *)text, strlen(text)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_name = (void *)to,
			   .msg_namelen = to ? to_len : 0};
	size_t used = 0;

	if (n) {
		struct cmsghdr *c = (void *)control;

		*c = (struct cmsghdr){CMSG_LEN((size_t)n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
		memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
		used += CMSG_SPACE((size_t)n * sizeof(int));
	}
	if (cred) {
		struct cmsghdr *c = (void *)(control + used);

		*c = (struct cmsghdr){CMSG_LEN(sizeof(*cred)), SOL_SOCKET, SCM_CREDENTIALS};
		memcpy(CMSG_DATA(c), cred, sizeof(*cred));
		used += CMSG_SPACE(sizeof(*cred));
	}
	m.msg_control = used ? control : NULL;
	m.msg_controllen = used;
	ssize_t sent = sendmsg(fd, &m, MSG_NOSIGNAL);
	wl_check(sent == (ssize_t)strlen(text), "sending \"%s\": %zd, %s", text, sent,
		 strerror(errno));
}

static void send_fd(int fd, const char *text, int what)
{
	send_with(fd, text, &what, 1, NULL, NULL, 0);
}

static struct got receive(int fd, size_t room)
{
	char control[CONTROL] __attribute__((aligned(8)));
	struct got g = {.from = {.sun_family = 0}};
	struct iovec iov = {g.text, room < sizeof(g.text) ? room : sizeof(g.text) - 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_name = &g.from,
			   .msg_namelen = sizeof(g.from),
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};

	g.n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (g.n < 0)
		return g;
	g.from_len = m.msg_namelen;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&g.cred, CMSG_DATA(c), sizeof(g.cred));
			g.has_cred = true;
		}
		if (c->cmsg_type == SCM_RIGHTS) {
			g.n_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			wl_check(g.n_fds <= 8, "%d descriptors", g.n_fds);
			memcpy(g.fds, CMSG_DATA(c), (size_t)g.n_fds * sizeof(int));
		}
	}
	return g;
}

static struct got expect(const char *what, int fd, size_t room, const char *text, int n_fds)
{
	struct got g = receive(fd, room);

	wl_check(g.n == (ssize_t)strlen(text) && !strcmp(g.text, text),
		 "%s: expected \"%s\", got %zd \"%s\" (%s)", what, text, g.n, g.text,
		 g.n < 0 ? strerror(errno) : "");
	wl_check(g.n_fds == n_fds, "%s: %d descriptors with \"%s\", not %d", what, g.n_fds, text,
		 n_fds);
	return g;
}

static void expect_nothing(const char *what, int fd)
{
	struct got g = receive(fd, 64);

	wl_check(g.n < 0 && errno == EAGAIN, "%s: nothing more was sent, got %zd \"%s\"", what, g.n,
		 g.text);
}

static void make_pair(int type, int p[2])
{
	wl_must(!socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, p), "socketpair");
}

/* ---- descriptors ---- */

static void set_up_rights(void)
{
	int p[2], q[2], file, event;
	char path[256];

	make_pair(SOCK_STREAM, f.plain);
	send_with(f.plain[0], "aaa", NULL, 0, NULL, NULL, 0);
	wl_must(!pipe2(p, O_CLOEXEC), "pipe2");
	wl_same("write", 4, write(p[1], "pipe", 4));
	send_fd(f.plain[0], "bbb", p[0]); /* only there */
	close(p[0]);
	f.pipe_write = p[1];
	send_with(f.plain[0], "ccc", NULL, 0, NULL, NULL, 0);
	file = open(wl_path(path, "file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	wl_same("write", 10, write(file, "0123456789", 10));
	wl_same("lseek", 5, lseek(file, 5, SEEK_SET));
	f.kept_event = eventfd(41, EFD_CLOEXEC | EFD_NONBLOCK);
	send_with(f.plain[0], "ddd", (int[]){file, f.kept_event, f.kept_event}, 3, NULL, NULL, 0);
	close(file);

	/* a socket that only waits in another, with something in it */
	make_pair(SOCK_SEQPACKET, f.nest);
	make_pair(SOCK_STREAM, q);
	event = eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK);
	send_fd(q[1], "inside", event);
	close(event);
	send_fd(f.nest[0], "socket", q[0]);
	close(q[0]);
	f.other_end = q[1];
	/* the writing end alone, and both ends of one */
	wl_must(!pipe2(p, O_CLOEXEC), "pipe2");
	send_fd(f.nest[0], "writer", p[1]);
	close(p[1]);
	f.inner[0] = p[0];
	wl_must(!pipe2(p, O_CLOEXEC), "pipe2");
	wl_same("write", 2, write(p[1], "hi", 2));
	send_with(f.nest[0], "both", p, 2, NULL, NULL, 0);
	close(p[0]);
	close(p[1]);
}

static void check_rights(void)
{
	char buf[16] = "";
	uint64_t v;
	struct got g;

	expect("bytes before a descriptor", f.plain[1], 3, "aaa", 0);
	g = expect("a pipe that nobody has", f.plain[1], 64, "bbb", 1);
	wl_same("in that pipe", 4, read(g.fds[0], buf, sizeof(buf)));
	wl_check(!strncmp(buf, "pipe", 4), "in that pipe: %.4s", buf);
	wl_same("write", 5, write(f.pipe_write, "again", 5));
	wl_same("through that pipe", 5, read(g.fds[0], buf, sizeof(buf)));
	close(f.pipe_write);
	wl_same("its end", 0, read(g.fds[0], buf, sizeof(buf)));
	g = expect("several", f.plain[1], 64, "cccddd", 3);
	wl_same("position of a file", 5, lseek(g.fds[0], 0, SEEK_CUR));
	wl_same("what follows", 5, read(g.fds[0], buf, sizeof(buf)));
	wl_check(!strncmp(buf, "56789", 5), "what follows: %.5s", buf);
	v = 1;
	wl_same("add to the eventfd", 8, write(g.fds[1], &v, 8));
	wl_same("its value", 8, read(f.kept_event, &v, 8));
	wl_same("one eventfd under three numbers", 42, v);
	expect_nothing("the pair", f.plain[1]);

	g = expect("a socket in a socket", f.nest[1], 64, "socket", 1);
	struct got in = expect("what is in that", g.fds[0], 64, "inside", 1);
	wl_same("eventfd in that", 8, read(in.fds[0], &v, 8));
	wl_same("its value", 7, v);
	send_with(f.other_end, "go on", NULL, 0, NULL, NULL, 0);
	expect("its other end", g.fds[0], 64, "go on", 0);
	g = expect("a writing end", f.nest[1], 64, "writer", 1);
	wl_same("write", 3, write(g.fds[0], "end", 3));
	wl_same("read", 3, read(f.inner[0], buf, sizeof(buf)));
	g = expect("both ends", f.nest[1], 64, "both", 2);
	wl_same("what is in it", 2, read(g.fds[0], buf, sizeof(buf)));
	wl_check(!strncmp(buf, "hi", 2), "what is in it: %.2s", buf);
	expect_nothing("the other pair", f.nest[1]);
}

/* ---- credentials ---- */

static void pass_cred(int fd, int on)
{
	wl_must(!setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), "SO_PASSCRED");
}

static void check_cred(const char *what, const struct got *g, pid_t pid, uid_t uid, gid_t gid)
{
	wl_check(g->has_cred && g->cred.pid == pid && g->cred.uid == uid && g->cred.gid == gid,
		 "%s: credentials pid %d uid %u gid %u, not %d, %u, %u", what, g->cred.pid,
		 g->cred.uid, g->cred.gid, pid, uid, gid);
}

static void check_creds(void)
{
	struct got g = expect("of the parent", f.creds[1], 64, "mine", 0);

	check_cred("parent", &g, getpid(), 0, 0);
	g = expect("of the child", f.creds[1], 64, "child's", 0);
	check_cred("child", &g, f.child, 1, 2);
	g = expect("made up", f.creds[1], 64, "made up", 0);
	check_cred("made up", &g, f.child, 1234, 5678);
	expect_nothing("credentials", f.creds[1]);
	/* sent before anybody asked: none were recorded */
	pass_cred(f.packets[1], 1);
	g = expect("nobody's", f.packets[1], 64, "nobody's", 0);
	check_cred("nobody", &g, 0, 65534, 65534);
	g = expect("empty", f.packets[1], 64, "", 0);
	check_cred("empty", &g, 0, 65534, 65534);
	g = expect("last", f.packets[1], 64, "last", 0);
	expect_nothing("packets", f.packets[1]);
}

/* ---- connections that nobody has accepted ---- */

static int listener_at(int type, const char *name)
{
	socklen_t len;
	struct sockaddr_un un = path_name(name, &len);
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	wl_must(!bind(fd, (void *)&un, len) && !chmod(un.sun_path, 0777) && !listen(fd, 8),
		"a listener");
	return fd;
}

static int client_of(int type, const char *name)
{
	socklen_t len;
	struct sockaddr_un un = path_name(name, &len);
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	wl_must(!connect(fd, (void *)&un, len), "connect");
	return fd;
}

static void check_accepted(const char *what, int fd, pid_t pid, uid_t uid)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	wl_must(fd >= 0, what);
	wl_must(!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &uc, &len), "SO_PEERCRED");
	wl_check(uc.pid == pid && uc.uid == uid, "%s: SO_PEERCRED pid %d uid %u, not %d, %u", what,
		 uc.pid, uc.uid, pid, uid);
}

static int accept_now(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1 ? accept4(fd, NULL, NULL, SOCK_CLOEXEC) : -1;
}

static void ask_child(char what)
{
	char c = 0;

	wl_same("question", 1, write(f.asked, &what, 1));
	wl_same("answer", 1, read(f.asked, &c, 1));
	wl_same("the answer", what, c);
}

static void client_packets(void)
{
	send_with(f.seq_client, "a packet", NULL, 0, NULL, NULL, 0);
	send_with(f.seq_client, "another", NULL, 0, NULL, NULL, 0);
}

static void check_waiting(void)
{
	uint64_t v;

	if (wl_flag("quiet-clients")) {
		send_fd(f.clients[0], "one", f.kept_event);
		ask_child('s');
		client_packets();
	}
	int fd = accept_now(f.listener);

	check_accepted("first in the queue", fd, getpid(), 0);
	struct got g = expect("first", fd, 64, "one", 1);
	v = 3;
	wl_same("eventfd", 8, write(g.fds[0], &v, 8));
	wl_same("eventfd", 8, read(f.kept_event, &v, 8));
	wl_same("its value", 3, v);
	send_with(fd, "welcome", NULL, 0, NULL, NULL, 0);
	expect("the client", f.clients[0], 64, "welcome", 0);
	fd = accept_now(f.listener);
	check_accepted("second in the queue", fd, f.child, 1);
	expect("second", fd, 64, "two, from the child", 0);
	fd = accept_now(f.listener);
	check_accepted("third in the queue", fd, getpid(), 0);
	expect_nothing("third", fd);
	wl_same("no more", -1, accept_now(f.listener));
	fd = accept_now(f.seq_listener);
	wl_must(fd >= 0, "a seqpacket connection");
	expect("first packet", fd, 64, "a packet", 0);
	expect("second packet", fd, 64, "another", 0);
	expect_nothing("packets", fd);
}

/* ---- names ---- */

static void check_name(const char *what, int fd, bool peer, const struct sockaddr_un *want,
		       socklen_t want_len)
{
	struct sockaddr_un un = {0};
	socklen_t len = sizeof(un);

	wl_must(!(peer ? getpeername : getsockname)(fd, (void *)&un, &len), "name of a socket");
	wl_check(len == want_len && !memcmp(&un, want, len), "%s: name of %u bytes, not %u: %s",
		 what, len, want_len, un.sun_path);
}

static int bound(int type, const struct sockaddr_un *un, socklen_t len)
{
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	wl_must(!bind(fd, (const void *)un, len), "bind");
	return fd;
}

static void set_up_names(void)
{
	socklen_t len, to_len;
	struct sockaddr_un un = path_name("datagrams", &len), to = un, name;
	char cwd[256];
	int other;

	f.server = bound(SOCK_DGRAM, &un, len);
	to_len = len;
	un = abstract_name("abstract", &len);
	f.abstract = bound(SOCK_DGRAM, &un, len);
	wl_must(getcwd(cwd, sizeof(cwd)) && !chdir(f.dir), "chdir");
	name = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "relative"};
	f.relative =
	    bound(SOCK_DGRAM, &name, offsetof(struct sockaddr_un, sun_path) + sizeof("relative"));
	wl_must(!chdir(cwd), "chdir");
	un = path_name("unlinked", &len);
	f.unlinked = bound(SOCK_DGRAM, &un, len);
	f.sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	wl_must(!connect(f.sender, (void *)&un, len), "connect");
	wl_must(!unlink(un.sun_path), "unlink");
	send_with(f.sender, "to a path that is gone", NULL, 0, NULL, NULL, 0);
	/* by whoever: one with a path, one that is gone, one without a name */
	send_with(f.relative, "from a relative path", NULL, 0, NULL, &to, to_len);
	un = path_name("gone", &len);
	other = bound(SOCK_DGRAM, &un, len);
	send_with(other, "from one that is gone", &f.kept_event, 1, NULL, &to, to_len);
	close(other);
	unlink(un.sun_path);
	other = socket(AF_UNIX, SOCK_DGRAM, 0);
	send_with(other, "from nobody", NULL, 0, NULL, &to, to_len);
	close(other);
	send_with(f.abstract, "from an abstract name", NULL, 0, NULL, &to, to_len);
	/* a stream socket that will listen later, a client with a name, a listener without a path
	 */
	un = path_name("later", &len);
	f.idle = bound(SOCK_STREAM, &un, len);
	other = listener_at(SOCK_STREAM, "for-bound");
	un = path_name("client", &len);
	f.bound_client = bound(SOCK_STREAM, &un, len);
	un = path_name("for-bound", &len);
	wl_must(!connect(f.bound_client, (void *)&un, len), "connect");
	f.bound_server = accept4(other, NULL, NULL, SOCK_CLOEXEC);
	f.gone_listener = other;
	wl_must(!unlink(un.sun_path), "unlink");
}

static void expect_from(const char *what, int fd, const char *text, int n_fds,
			const struct sockaddr_un *un, socklen_t len)
{
	struct got g = expect(what, fd, 64, text, n_fds);

	wl_check(g.from_len == len && !memcmp(&g.from, un, len),
		 "%s: sender's name of %u bytes, not %u: \"%s\"", what, g.from_len, len,
		 g.from.sun_path);
}

static void check_names(void)
{
	socklen_t len, to_len;
	struct sockaddr_un un, to = path_name("datagrams", &to_len);
	struct sockaddr_un relative = {.sun_family = AF_UNIX, .sun_path = "relative"};
	socklen_t relative_len = offsetof(struct sockaddr_un, sun_path) + sizeof("relative");

	check_name("datagrams", f.server, false, &to, to_len);
	check_name("relative", f.relative, false, &relative, relative_len);
	expect_from("relative", f.server, "from a relative path", 0, &relative, relative_len);
	un = path_name("gone", &len);
	expect_from("gone", f.server, "from one that is gone", 1, &un, len);
	expect_from("nobody", f.server, "from nobody", 0, &un, 0);
	un = abstract_name("abstract", &len);
	check_name("abstract", f.abstract, false, &un, len);
	expect_from("abstract", f.server, "from an abstract name", 0, &un, len);
	expect_nothing("datagrams", f.server);
	send_with(f.server, "to an abstract name", NULL, 0, NULL, &un, len);
	expect_from("by an abstract name", f.abstract, "to an abstract name", 0, &to, to_len);
	send_with(f.abstract, "by path", NULL, 0, NULL, &to, to_len);
	expect_from("by path", f.server, "by path", 0, &un, len);
	expect("a path that is gone", f.unlinked, 64, "to a path that is gone", 0);
	send_with(f.sender, "once more", NULL, 0, NULL, NULL, 0);
	expect("a path that is gone", f.unlinked, 64, "once more", 0);
	un = path_name("unlinked", &len);
	check_name("a path that is gone", f.unlinked, false, &un, len);
	check_name("a connected datagram socket", f.sender, true, &un, len);

	un = path_name("client", &len);
	check_name("a client with a name", f.bound_client, false, &un, len);
	check_name("its server", f.bound_server, true, &un, len);
	un = path_name("for-bound", &len);
	check_name("a client's peer", f.bound_client, true, &un, len);
	check_name("a listener whose path is gone", f.gone_listener, false, &un, len);
	send_with(f.bound_client, "named", NULL, 0, NULL, NULL, 0);
	expect("a client with a name", f.bound_server, 64, "named", 0);
	wl_must(!listen(f.idle, 2), "listen");
	int c = client_of(SOCK_STREAM, "later");
	wl_check(accept_now(f.idle) >= 0, "a socket that listens after the move: %s",
		 strerror(errno));
	close(c);
}

/* ---- what goes on ---- */

/* As many descriptors on the way as may be; each comes back with what the child wrote. */
static void turn(void)
{
	while (f.n_out < OUTSTANDING) {
		int p[2];
		char text[24];

		wl_must(!pipe2(p, O_CLOEXEC | O_NONBLOCK), "pipe2");
		snprintf(text, sizeof(text), "%lu", f.next);
		send_fd(f.live[0], text, p[1]);
		close(p[1]);
		f.outstanding[f.next++ % OUTSTANDING] = p[0];
		f.n_out++;
	}
	while (f.n_out) {
		uint64_t v = 0;
		int fd = f.outstanding[f.first_out % OUTSTANDING];
		ssize_t n = read(fd, &v, sizeof(v));

		if (n < 0 && errno == EAGAIN)
			return;
		wl_same("what the child wrote", sizeof(v), n);
		wl_same("number", f.first_out, v);
		close(fd);
		f.first_out++;
		f.n_out--;
	}
}

static void child_turn(uint64_t *number)
{
	struct got g = receive(f.live[1], 64);

	if (g.n < 0)
		return;
	wl_check(g.n_fds == 1, "%d descriptors came with \"%s\"", g.n_fds, g.text);
	wl_same("number", *number, strtoull(g.text, NULL, 10));
	wl_same("write", 8, write(g.fds[0], number, 8));
	close(g.fds[0]);
	++*number;
}

static void child_main(void)
{
	uint64_t number = 0;
	int client = -1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(f.asked);
	if (setregid(2, 2) || setreuid(1, 1))
		_exit(2);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		struct pollfd p[2] = {{.fd = f.live[1], .events = POLLIN},
				      {.fd = f.to_child[1], .events = POLLIN}};
		char c;

		poll(p, 2, -1);
		child_turn(&number);
		if (!p[1].revents)
			continue;
		if (read(f.to_child[1], &c, 1) != 1)
			_exit(0);
		if (c == 'c')
			send_with(f.creds[0], "child's", NULL, 0, NULL, NULL, 0);
		if (c == 'l' || c == 'q')
			client = client_of(SOCK_STREAM, "listener");
		if (c == 'l' || c == 's')
			send_with(client, "two, from the child", NULL, 0, NULL, NULL, 0);
		if (write(f.to_child[1], &c, 1) != 1)
			_exit(3);
	}
}

static void set_up(void)
{
	struct ucred made_up;

	wl_check(strlen(wl.dir) < sizeof(f.dir), "DIR is too long for unix sockets");
	strcpy(f.dir, wl.dir);
	make_pair(SOCK_STREAM, f.to_child);
	make_pair(SOCK_SEQPACKET, f.live);
	make_pair(SOCK_STREAM, f.creds);
	make_pair(SOCK_DGRAM, f.packets);
	f.asked = f.to_child[0];
	f.child = fork();
	wl_must(f.child >= 0, "fork");
	if (!f.child)
		child_main();
	close(f.to_child[1]);
	set_up_rights();
	pass_cred(f.creds[1], 1);
	send_with(f.creds[0], "mine", NULL, 0, NULL, NULL, 0);
	ask_child('c');
	made_up = (struct ucred){f.child, 1234, 5678};
	send_with(f.creds[0], "made up", NULL, 0, &made_up, NULL, 0);
	send_with(f.packets[0], "nobody's", NULL, 0, NULL, NULL, 0);
	send_with(f.packets[0], "", NULL, 0, NULL, NULL, 0);
	send_with(f.packets[0], "last", NULL, 0, NULL, NULL, 0);
	f.listener = listener_at(SOCK_STREAM, "listener");
	f.clients[0] = client_of(SOCK_STREAM, "listener");
	if (!wl_flag("quiet-clients"))
		send_fd(f.clients[0], "one", f.kept_event);
	ask_child(wl_flag("quiet-clients") ? 'q' : 'l');
	f.clients[2] = client_of(SOCK_STREAM, "listener");
	f.seq_listener = listener_at(SOCK_SEQPACKET, "seq");
	f.seq_client = client_of(SOCK_SEQPACKET, "seq");
	if (!wl_flag("quiet-clients"))
		client_packets();
	set_up_names();
}

int main(int argc, char **argv)
{
	int status;

	wl_init(argc, argv);
	bool dense = wl_flag("dense");
	set_up();
	wl_ready();
	while (!wl_stop()) {
		struct pollfd p = {.fd = f.outstanding[f.first_out % OUTSTANDING],
				   .events = POLLIN};

		wl_tick();
		turn();
		if (f.n_out)
			poll(&p, 1, dense ? 0 : 3);
	}
	check_rights();
	check_creds();
	check_waiting();
	check_names();
	close(f.asked);
	wl_same("child", f.child, waitpid(f.child, &status, 0));
	wl_same("its exit", 0, status);
	wl_done();
}
