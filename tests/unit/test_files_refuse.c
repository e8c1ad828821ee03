/* What cannot move is refused by name, at the source and at the destination; and the parsers. */
#include "files_harness.h"
#include <sys/ioctl.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { FD = 7 };

/* The signal comes for a parent that ends from now on, prctl(2). */
static void end_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
}

/* ---- one source for each refusal ---- */

static void path_only(struct source *s)
{
	(void)s;
	if (symlink("nowhere", at_dir("link")))
		_exit(90);
	put_at(open(at_dir("link"), O_PATH | O_NOFOLLOW), FD, 0);
}

static void leased(struct source *s)
{
	(void)s;
	put_at(open(at_dir("lock"), O_RDWR | O_CREAT, 0600), FD, 0);
	fcntl(FD, F_SETLEASE, F_WRLCK);
}

static void named_pipe(struct source *s)
{
	(void)s;
	mkfifo(at_dir("fifo"), 0600);
	put_at(open(at_dir("fifo"), O_RDONLY | O_NONBLOCK), FD, 0);
	int writer = open(at_dir("fifo"), O_WRONLY);
	pid_t parent = getpid(), child = fork();

	if (child == 0) {
		end_with(parent);
		close(FD);
		for (;;)
			pause();
	}
	close(writer);
}

static void inotify(struct source *s)
{
	(void)s;
	char path[256];

	put_at(inotify_init1(0), FD, 0);
	snprintf(path, sizeof(path), "%s", at_dir("watched"));
	if (open(path, O_CREAT | O_WRONLY, 0600) <
	    0) /* stays open: it would go, and the watch with it */
		_exit(90);
	inotify_add_watch(FD, path, IN_MODIFY);
	unlink(path);
}

static void pidfd(struct source *s)
{
	(void)s;
	put_at((int)syscall(SYS_pidfd_open, getppid(), 0), FD, 0);
}

static int new_io_uring(void)
{
	char params[120] = {0}; /* struct io_uring_params */

	return (int)syscall(SYS_io_uring_setup, 4, params);
}

static void io_uring(struct source *s)
{
	(void)s;
	put_at(new_io_uring(), FD, 0);
}

static bool have_io_uring(void)
{
	_cleanup_fd_ int fd = new_io_uring();

	return fd >= 0;
}

static void terminal(struct source *s)
{
	const int unlock = 0;
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);

	(void)s;
	ioctl(master, TIOCSPTLCK, &unlock);
	put_at(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY), FD, 0);
	pid_t parent = getpid();
	if (fork()) {
		close(master);
		return;
	}
	end_with(parent);
	close(FD);
	for (;;)
		pause();
}

static void raw(struct source *s)
{
	(void)s;
	put_at(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), FD, 0);
}

static void netlink_socket(struct source *s)
{
	(void)s;
	put_at(socket(AF_NETLINK, SOCK_RAW, 0), FD, 0);
}

/* A descriptor waits to be received that nobody has, and that is of a kind that needs a task. */
static void unix_rights(struct source *s)
{
	int p[2];
	char c = 0;
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec iov = {&c, 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control.bytes)};

	(void)s;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, p))
		_exit(50);
	int epoll = epoll_create1(0);
	memcpy(CMSG_DATA(&control.head), &epoll, sizeof(int));
	if (sendmsg(p[1], &m, 0) != 1)
		_exit(51);
	close(epoll);
	put_at(p[0], FD, 0);
	put_at(p[1], FD + 1, 0);
}

/* The other end lives on in nobody's table, only in a message of another socket: as good as
 * outside. */
static void unix_peer_outside(struct source *s)
{
	const struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_un name;
	socklen_t len = sizeof(name);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);

	(void)s;
	if (bind(listener, (const void *)&un, sizeof(sa_family_t)) || listen(listener, 1) ||
	    getsockname(listener, (void *)&name, &len) || connect(c, (void *)&name, len))
		_exit(50);
	pid_t parent = getpid(), child = fork();
	if (child == 0) {
		int accepted = accept(listener, NULL, NULL);

		end_with(parent);
		close(c);
		close(listener);
		setpgid(0, 0);
		if (write(accepted, "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	char x;
	if (read(c, &x, 1) != 1) /* it has accepted */
		_exit(51);
	close(listener);
	put_at(c, FD, 0);
}

static void unix_urgent(struct source *s)
{
	int p[2];

	(void)s;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, p) || send(p[1], "!", 1, MSG_OOB) != 1)
		_exit(50);
	put_at(p[0], FD, 0);
	put_at(p[1], FD + 1, 0);
}

static void namespace_open(struct source *s)
{
	(void)s;
	put_at(open("/proc/self/ns/net", O_RDONLY), FD, 0);
}

static void proc_of_init(struct source *s)
{
	(void)s;
	put_at(open("/proc/1/status", O_RDONLY), FD, 0);
}

static void proc_of_thread(struct source *s)
{
	(void)s;
	put_at(open("/proc/thread-self/status", O_RDONLY), FD, 0);
}

static void stale_packets(struct source *s)
{
	int p[2];

	(void)s;
	if (pipe2(p, O_DIRECT))
		_exit(51);
	put_at(p[0], FD, 0);
	put_at(p[1], FD + 1, 0);
	if (write(FD + 1, "a", 1) != 1 || write(FD + 1, "b", 1) != 1)
		_exit(52);
	fcntl(FD + 1, F_SETFL, 0);
}

/* The description lives on in a message that nobody has read; sockets are refused as well. */
static void lost_epoll_target(struct source *s)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct epoll_event ev = {.events = EPOLLIN};
	struct iovec iov = {"x", 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};
	int p[2], fd = eventfd(0, 0);

	(void)s;
	put_at(epoll_create1(0), FD, 0);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, p) || epoll_ctl(FD, EPOLL_CTL_ADD, fd, &ev))
		_exit(53);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(p[0], &m, 0) != 1)
		_exit(54);
	close(fd);
}

static void removed_cwd(struct source *s)
{
	(void)s;
	if (mkdir(at_dir("cwd"), 0700) || chdir(at_dir("cwd")) || rmdir(at_dir("cwd")))
		_exit(56);
}

static void other_network(struct source *s)
{
	(void)s;
	if (unshare(CLONE_NEWNET))
		_exit(59);
}

static void shared_table(struct source *s)
{
	struct {
		unsigned long flags, pidfd, child_tid, parent_tid, exit_signal, more[6];
	} args = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
	pid_t parent = getpid(), pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));

	if (!pid) {
		end_with(parent);
		say_ready(&s->forked_ready);
		for (;;)
			pause();
	}
	wait_ready(&s->forked_ready, pid);
	s->pid[s->n++] = pid;
}

static const struct {
	void (*prepare)(struct source *);
	const char *what, *why;
	bool root;
} refusals[] = {
    {path_only, "fd 7 ", "O_PATH"},
    {leased, "fd 7 ", "holds a lease"},
    {named_pipe, "fd 7 ", "/fifo: its writing end is held outside the tree"},
    {inotify, "fd 7 ", "inotify: watch 1 is of a file that was removed"},
    {pidfd, "fd 7 ", "pidfd of a process outside the tree: not supported"},
    {io_uring, "fd 7 ", "io_uring instance: not supported; close it first"},
    {terminal, "fd 7 ", "whose other side"},
    {raw, "fd 7 ", "IPv4 raw socket", true},
    {netlink_socket, "fd 7 ", "netlink socket"},
    {unix_rights, "fd 7 ",
     "unix socket: a descriptor that nobody has waits in it to be received (epoll"},
    {unix_peer_outside, "fd 7 ", "unix stream socket: its peer is outside the tree"},
    {unix_urgent, "fd 7 ", "unix stream socket: urgent data"},
    {namespace_open, "fd 7 ", "namespace descriptor"},
    {proc_of_init, "fd 7 ", "/proc/1/status: is of a process outside the tree"},
    {proc_of_thread, "fd 7 ", "is of a single thread"},
    {stale_packets, "fd 7 ", "holds packets, and no writer is in packet mode"},
    {lost_epoll_target, "fd 7 ", "no process of the tree has open any more"},
    {removed_cwd, "working directory", "has been removed"},
    {other_network, "net namespace", "is not that of the agent", true},
    {shared_table, "descriptor table", "shared with process"},
};

static bool is_listed(const struct captured *c, const char *what, const char *why)
{
	for (size_t i = 0; i < c->refused.list.n; i++)
		if (strstr(c->refused.list.v[i].what, what) &&
		    strstr(c->refused.list.v[i].why, why))
			return true;
	return false;
}

static void by_name(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		struct captured c;

		if ((refusals[i].root && geteuid()) ||
		    (refusals[i].prepare == io_uring && !have_io_uring()))
			continue;
		struct source *s = source_new(refusals[i].prepare);
		capture_pids(&c, s->pid, s->n, NULL, true);
		if (c.r || !is_listed(&c, refusals[i].what, refusals[i].why)) {
			for (size_t k = 0; k < c.refused.list.n; k++)
				print_error("%s: %s\n", c.refused.list.v[k].what,
					    c.refused.list.v[k].why);
			fail_msg("case %zu (%s) is not refused: %d", i, refusals[i].why, c.r);
		}
		captured_done(&c);
		source_free(s);
	}
}

/* ---- shared with the outside ---- */

static int outside_pipe[2], outside_event;

/* The source inherits; source_new() closes all, so the descriptors are passed around that by pidfd.
 */
static void takes_ours(struct source *s)
{
	int ours = (int)syscall(SYS_pidfd_open, getppid(), 0);

	(void)s;
	put_at((int)syscall(SYS_pidfd_getfd, ours, outside_pipe[1], 0), FD, 0);
	put_at((int)syscall(SYS_pidfd_getfd, ours, outside_event, 0), FD + 1, 0);
	close(ours);
}

static void held_outside(void **state)
{
	struct captured c;

	(void)state;
	assert_int_equal(pipe(outside_pipe), 0);
	outside_event = eventfd(0, 0);
	struct source *s = source_new(takes_ours);
	/* this process is the agent, whose own descriptors do not count: somebody else holds them
	 */
	struct source *other = source_new(takes_ours);
	close(outside_pipe[1]);
	capture_pids(&c, s->pid, 1, NULL, false);
	assert_int_equal(c.r, 0);
	assert_true(is_listed(&c, "fd 7 ", "its reading end is held outside the tree") ||
		    is_listed(&c, "fd 7 ", "is also held by process"));
	assert_true(is_listed(&c, "fd 8 ", "eventfd is also held by process"));
	captured_done(&c);
	source_free(other);
	source_free(s);
	close(outside_pipe[0]);
	close(outside_event);
}

/* ---- held for a moment ---- */

/* A child has children, one after the other, who hold the eventfd, and write to the pipe, for as
 * long as they live. */
static void has_passing_children(struct source *s)
{
	int p[2];

	(void)s;
	if (pipe(p))
		_exit(54);
	put_at(p[0], FD, 0);
	put_at(eventfd(0, 0), FD + 1, 0);
	close(p[1]);
	pid_t parent = getpid();
	if (fork())
		return;
	end_with(parent);
	for (;;) {
		pid_t child = fork();

		if (!child)
			_exit(open("/proc/self/fd/7", O_WRONLY) < 0);
		waitpid(child, NULL, 0);
	}
}

/* And the other end of one connection after the other. */
static void *connect_children(void *arg)
{
	for (;;) {
		int p[2];
		pid_t child = socketpair(AF_UNIX, SOCK_STREAM, 0, p) ? -1 : fork();

		if (child <= 0)
			_exit(0);
		close(p[1]);
		put_at(p[0], FD, 0);
		waitpid(child, NULL, 0);
	}
	return arg;
}

static void has_passing_peers(struct source *s)
{
	pthread_t thread;

	(void)s;
	if (pthread_create(&thread, NULL, connect_children, NULL))
		_exit(54);
}

static void is_not_refused(void (*prepare)(struct source *))
{
	struct source *s = source_new(prepare);

	for (int i = 0; i < 200; i++) {
		struct captured c;

		capture_pids(&c, s->pid, 1, NULL, false);
		assert_int_equal(c.r, 0);
		if (c.refused.list.n)
			fail_msg("look %d: %s %s", i, c.refused.list.v[0].what,
				 c.refused.list.v[0].why);
		captured_done(&c);
	}
	source_free(s);
}

static void held_for_a_moment(void **state)
{
	(void)state;
	is_not_refused(has_passing_children);
	is_not_refused(has_passing_peers);
}

/* ---- destination ---- */

static void serves(struct source *s)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};

	(void)s;
	put_at(socket(AF_INET, SOCK_STREAM, 0), FD, 0);
	if (bind(FD, (void *)&sa, sizeof(sa)) || listen(FD, 1))
		_exit(57);
	put_at(open(at_dir("data"), O_RDWR | O_CREAT, 0600), FD + 1, 0);
	if (write(FD + 1, "12345", 5) != 5)
		_exit(58);
}

static void assert_check(const struct tree *t, const char *why)
{
	struct captured c = {0};

	files_check(t, &c.refused);
	if (why ? !is_listed(&c, "fd ", why) : c.refused.list.n > 0)
		fail_msg("check: %s", c.refused.list.n ? c.refused.list.v[0].why : "nothing");
	refusals_done(&c.refused);
}

static void at_destination(void **state)
{
	struct source *s = source_new(serves);
	struct captured c;
	struct cr_err err = {0};
	struct rebuilt b = {0};

	(void)state;
	capture_pids(&c, s->pid, s->n, NULL, true);
	assert_clean(&c);
	assert_check(c.t, "taken on this host");
	source_kill(s);
	assert_check(c.t, NULL);
	/* another machine: the same numbers do not make it the same file, equal size and time do */
	c.t->boot_id[0] = c.t->boot_id[0] == 'x' ? 'y' : 'x';
	assert_check(c.t, NULL);
	shells_new(&b, 1);
	build_all(&b, c.t, NULL);
	assert_int_equal(truncate(at_dir("data"), 3), 0);
	assert_check(c.t, "differs here: 3 bytes instead of 5");
	assert_int_equal(fileset_settle(b.fs, c.t, &err), -ESTALE);
	assert_int_equal(truncate(at_dir("data"), 5), 0);
	assert_check(c.t, "differs here: modified at");
	unlink(at_dir("data"));
	assert_check(c.t, "No such file or directory here");
	struct sockaddr_in *sa = (void *)file_at(c.t, 0, FD)->sockaddr;
	sa->sin_addr.s_addr = htonl(0xc0000201); /* TEST-NET-1 */
	assert_check(c.t, "does not have that address");
	rebuilt_done(&b);
	captured_done(&c);
	source_free(s);
}

/* ---- parsers ---- */

static void fdinfo_golden(void **state)
{
	static const char text[] = "pos:\t12\nflags:\t02104002\nmnt_id:\t17\nino:\t1038\n"
				   "lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n"
				   "eventfd-count:                5\neventfd-id: 3\n";
	struct fdinfo fi;
	struct cr_err err = {0};
	const char *rest;
	uint64_t n;

	(void)state;
	assert_int_equal(fdinfo_parse(text, &fi, &rest, &err), 0);
	assert_int_equal(fi.pos, 12);
	assert_int_equal(fi.flags, 02104002);
	assert_int_equal(fi.mnt_id, 17);
	assert_int_equal(fi.ino, 1038);
	assert_true(fi.locked);
	assert_true(!strncmp(rest, "lock:", 5));
	assert_true(fdinfo_u64(text, "eventfd-count", 16, &n) && n == 5);
	assert_true(fdinfo_u64(text, "eventfd-id", 10, &n) && n == 3);
	assert_false(fdinfo_u64(text, "eventfd-semaphore", 10, &n));
	assert_int_equal(fdinfo_parse("pos:\t0\nflags:\t0\nmnt_id:\t1\n", &fi, &rest, &err), 0);
	assert_string_equal(rest, "");
	for (size_t len = 0; len < strlen("pos:\t12\nflags:\t02104002\nmnt_id:\t"); len++) {
		char cut[sizeof(text)] = "";

		memcpy(cut, text, len);
		assert_int_equal(fdinfo_parse(cut, &fi, NULL, &err), -EPROTO);
	}
	assert_int_equal(
	    fdinfo_parse("pos:\t0\nflags:\t077777777777777\nmnt_id:\t1\n", &fi, NULL, &err),
	    -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(by_name),           cmocka_unit_test(held_outside),
	    cmocka_unit_test(held_for_a_moment), cmocka_unit_test(at_destination),
	    cmocka_unit_test(fdinfo_golden),
	};

	return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
