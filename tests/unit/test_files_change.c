/* What changed between two captures is mended in the shells, and what the tasks then see. */
#include "files_harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include "base/clock.h"

enum {
	FD_LOG = 5,
	FD_EVENT,
	FD_LISTEN,
	FD_EPOLL,
	FD_CONN,
	FD_CONN2,
	FD_IDLE_EVENT,
	FD_PIPE_R,
	FD_PIPE_W,
	FD_MANY = 100, /* and 99 more */
	FD_CLIENT = 300,
	FD_CLIENT2,
};

static void ctl(int op, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = {.events = events, .data.u64 = data};

	if (epoll_ctl(FD_EPOLL, op, fd, &ev))
		_exit(40);
}

static void connect_to_listener(int client, int conn)
{
	struct sockaddr_in sa;
	socklen_t len = sizeof(sa);

	getsockname(FD_LISTEN, (void *)&sa, &len);
	put_at(socket(AF_INET, SOCK_STREAM, 0), client, 0);
	if (connect(client, (void *)&sa, len))
		_exit(41);
	put_at(accept(FD_LISTEN, NULL, NULL), conn, 0);
}

static void server_ahead(struct source *s)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};

	put_at(open(at_dir("log"), O_WRONLY | O_CREAT, 0600), FD_LOG, 0);
	put_at(eventfd(0, 0), FD_EVENT, 0);
	put_at(eventfd(1, 0), FD_IDLE_EVENT, 0);
	put_at(socket(AF_INET, SOCK_STREAM, 0), FD_LISTEN, 0);
	if (bind(FD_LISTEN, (void *)&sa, sizeof(sa)) || listen(FD_LISTEN, 4))
		_exit(42);
	put_at(epoll_create1(0), FD_EPOLL, 0);
	connect_to_listener(FD_CLIENT, FD_CONN);
	ctl(EPOLL_CTL_ADD, FD_LISTEN, EPOLLIN, 1);
	ctl(EPOLL_CTL_ADD, FD_EVENT, EPOLLIN, 2);
	ctl(EPOLL_CTL_ADD, FD_CONN, EPOLLIN, 3);
	for (int i = 0; i < 100; i++)
		dup2(0, FD_MANY + i);
	source_fork(s);
}

/* The client goes, another comes, a descriptor takes the number of another, and of our slot. */
static void server_moves_on(struct source *s)
{
	int p[2];

	(void)s;
	close(FD_CLIENT);
	close(FD_CONN);
	connect_to_listener(FD_CLIENT2, FD_CONN);
	ctl(EPOLL_CTL_ADD, FD_CONN, EPOLLIN | EPOLLET, 33);
	ctl(EPOLL_CTL_MOD, FD_LISTEN, EPOLLIN | EPOLLOUT, 11);
	close(FD_MANY + 50);
	fcntl(FD_MANY + 51, F_SETFD, FD_CLOEXEC);
	if (pipe(p))
		_exit(43);
	put_at(p[0], FD_PIPE_R, 0);
	put_at(p[1], FD_PIPE_W, 0);
	if (write(FD_PIPE_W, "abc", 3) != 3 || write(FD_LOG, "line", 4) != 4)
		_exit(44);
	dup2(FD_PIPE_W, SHELL_SLOT);
	fcntl(FD_LOG, F_SETFL, O_APPEND);
}

/* Both trees built and installed one after the other: the second is what the shells then have. */
static void rebuild_twice(struct rebuilt *b, const struct tree *ahead, const struct tree *exact)
{
	shells_new(b, (int)ahead->n_procs);
	build_all(b, ahead, NULL);
	unsigned long calls = b->shell[0]->n_calls;
	build_all(b, exact, NULL);
	calls = b->shell[0]->n_calls - calls;
	if (calls > 40)
		fail_msg("%lu calls for a small change", calls);
	finish(b, exact);
}

static void changed_table(void **state)
{
	struct source *s = source_new(server_ahead);
	struct captured ahead, exact, after;
	struct rebuilt b = {0};

	(void)state;
	capture_pids(&ahead, s->pid, s->n, NULL, false);
	assert_clean(&ahead);
	source_step(s, server_moves_on);
	capture_pids(&exact, s->pid, s->n, ahead.t, true);
	assert_clean(&exact);
	assert_false(files_same_shape(ahead.t, exact.t));
	source_kill(s);
	rebuild_twice(&b, ahead.t, exact.t);
	assert_int_not_equal(b.slot[0], SHELL_SLOT);
	capture_pids(&after, b.pid, b.n, NULL, true);
	assert_clean(&after);
	compare(exact.t, after.t);
	captured_done(&ahead);
	captured_done(&exact);
	captured_done(&after);
	rebuilt_done(&b);
	source_free(s);
}

/* ---- one instance for all that follows ---- */

static void move(struct rebuilt *b, struct source *s)
{
	struct captured ahead, exact;

	capture_pids(&ahead, s->pid, s->n, NULL, false);
	capture_pids(&exact, s->pid, s->n, ahead.t, true);
	assert_clean(&exact);
	source_kill(s);
	shells_new(b, (int)exact.t->n_procs);
	build_all(b, ahead.t, NULL);
	if (!files_same_shape(ahead.t, exact.t))
		build_all(b, exact.t, NULL);
	finish(b, exact.t);
	captured_done(&ahead);
	captured_done(&exact);
}

static long in_shell(struct rebuilt *b, long nr, long a0, const void *a1, long a2, long a3)
{
	return rtask_syscall(b->shell[0], nr, (uint64_t)a0, (uint64_t)(uintptr_t)a1, (uint64_t)a2,
			     (uint64_t)a3, 0, 8);
}

/* Events that the shell gets, by their data. */
static int wait_events(struct rebuilt *b, struct epoll_event *ev, int max)
{
	uint64_t va;
	void *out = rtask_scratch(b->shell[0], sizeof(*ev) * (size_t)max, &va);
	long n = in_shell(b, SYS_epoll_pwait, FD_EPOLL, out, max, 0);

	assert_true(n >= 0);
	memcpy(ev, out, sizeof(*ev) * (size_t)n);
	return (int)n;
}

static void reset_connection(void **state)
{
	struct source *s = source_new(server_ahead);
	struct rebuilt b = {0};
	struct epoll_event ev[8];
	uint64_t va;

	(void)state;
	move(&b, s);
	assert_int_equal(wait_events(&b, ev, 8), 1);
	assert_int_equal(ev[0].data.u64, 3);
	assert_int_equal(ev[0].events & (EPOLLIN | EPOLLHUP), EPOLLIN | EPOLLHUP);
	char *buf = rtask_scratch(b.shell[0], 16, &va);
	assert_int_equal(in_shell(&b, SYS_read, FD_CONN, buf, 16, 0), -ECONNRESET);
	assert_int_equal(in_shell(&b, SYS_read, FD_CONN, buf, 16, 0), 0);
	rebuilt_done(&b);
	source_free(s);
}

enum { N_SHOTS = 6 };

/* One-shot entries of all sorts, each fired, and one that has not. */
static void shots(struct source *s)
{
	static const int fds[N_SHOTS] = {FD_CONN, FD_EVENT, FD_PIPE_R, FD_PIPE_W, 20, 22};
	struct itimerspec its = {.it_value = {0, 1}};
	struct epoll_event ev[16];
	int p[2];

	server_ahead(s);
	if (pipe(p) || write(p[1], "x", 1) != 1 || send(FD_CLIENT, "x", 1, 0) != 1)
		_exit(45);
	put_at(p[0], FD_PIPE_R, 0);
	put_at(p[1], FD_PIPE_W, 0);
	put_at(timerfd_create(CLOCK_MONOTONIC, 0), 20, 0);
	if (timerfd_settime(20, 0, &its, NULL) || pipe(p) || write(p[1], "x", 1) != 1)
		_exit(49);
	put_at(p[1], 21, 0);
	put_at(p[0], 22, 0);
	ctl(EPOLL_CTL_DEL, FD_CONN, 0, 0);
	ctl(EPOLL_CTL_DEL, FD_EVENT, 0, 0);
	for (int i = 0; i < N_SHOTS; i++) {
		struct epoll_event one = {.events = EPOLLIN | EPOLLOUT | EPOLLONESHOT,
					  .data.u64 = 100 + (uint64_t)i};

		if (epoll_ctl(FD_EPOLL, EPOLL_CTL_ADD, fds[i], &one) ||
		    epoll_wait(FD_EPOLL, ev, 16, 1000) != 1)
			_exit(60);
	}
	ctl(EPOLL_CTL_ADD, FD_IDLE_EVENT, EPOLLIN | EPOLLONESHOT, 4);
	if (read(22, p, 1) != 1 ||
	    read(FD_PIPE_R, p, 1) != 1) /* nothing to be read here any more */
		_exit(61);
}

/* A worker that took its one shot is not woken twice, not by a hang-up either; the one that did not
 * yet is. */
static void one_shot(void **state)
{
	struct source *s = source_new(shots);
	struct captured after;
	struct rebuilt b = {0};
	struct epoll_event ev[16];

	(void)state;
	move(&b, s);
	capture_pids(&after, b.pid, b.n, NULL, true);
	assert_clean(&after);
	const struct file *f = file_at(after.t, 0, FD_EPOLL);
	assert_int_equal(f->n_targets, N_SHOTS + 2);
	for (size_t i = 0; i < f->n_targets; i++)
		if (f->targets[i].data >= 100)
			assert_int_equal(f->targets[i].events, EPOLLONESHOT);
	assert_int_equal(wait_events(&b, ev, 16), 1);
	assert_int_equal(ev[0].data.u64, 4);
	assert_int_equal(wait_events(&b, ev, 16), 0);
	captured_done(&after);
	rebuilt_done(&b);
	source_free(s);
}

/* Until all is prepared nobody can connect; then the listener of the shell accepts. */
static void listens_when_prepared(void **state)
{
	struct source *s = source_new(server_ahead);
	struct rebuilt b = {0};
	struct captured c;
	int one = 1;

	(void)state;
	capture_pids(&c, s->pid, s->n, NULL, true);
	assert_clean(&c);
	struct sockaddr_in sa;
	memcpy(&sa, file_at(c.t, 0, FD_LISTEN)->sockaddr, sizeof(sa));
	source_kill(s);
	shells_new(&b, 2);
	build_all(&b, c.t, NULL);
	int fd = socket(AF_INET, SOCK_STREAM, 0), thief = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(fd, (void *)&sa, sizeof(sa)), -1);
	assert_int_equal(errno, ECONNREFUSED);
	setsockopt(thief, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	assert_true(bind(thief, (void *)&sa, sizeof(sa)) || listen(thief, 1));
	finish(&b, c.t);
	assert_int_equal(connect(fd, (void *)&sa, sizeof(sa)), 0);
	assert_true(in_shell(&b, SYS_accept, FD_LISTEN, NULL, 0, 0) >= 0);
	close(fd);
	close(thief);
	captured_done(&c);
	rebuilt_done(&b);
	source_free(s);
}

/* ---- unix sockets ---- */

static void serve_path(struct source *s)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	(void)s;
	snprintf(un.sun_path, sizeof(un.sun_path), "%s", at_dir("sock"));
	put_at(socket(AF_UNIX, SOCK_STREAM, 0), FD_LISTEN, 0);
	if (bind(FD_LISTEN, (void *)&un, sizeof(un)) || setegid(12345) || seteuid(12345) ||
	    listen(FD_LISTEN, 3) || seteuid(0) || setegid(0))
		_exit(46);
}

static int connect_path(void)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(un.sun_path, sizeof(un.sun_path), "%s", at_dir("sock"));
	if (connect(fd, (void *)&un, sizeof(un))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* The source serves the path until launch; undone, it goes on to; and nothing is left behind. */
static void unix_path(void **state)
{
	struct rebuilt b = {0};
	struct captured c;
	struct ucred uc;
	socklen_t len = sizeof(uc);

	(void)state;
	if (geteuid())
		skip();
	struct source *s = source_new(serve_path);
	capture_pids(&c, s->pid, s->n, NULL, true);
	assert_clean(&c);
	for (int undo = 1; undo >= 0; undo--) {
		shells_new(&b, 1);
		build_all(&b, c.t, NULL);
		int fd = connect_path();
		assert_true(fd >= 0);
		assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &uc, &len), 0);
		assert_int_equal(uc.pid, c.t->root_pid);
		close(fd);
		if (!undo)
			break;
		rebuilt_done(&b);
		memset(&b, 0, sizeof(b));
	}
	source_kill(s);
	assert_int_equal(connect_path(), -1);
	finish(&b, c.t);
	int fd = connect_path();
	assert_true(fd >= 0);
	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &uc, &len), 0);
	assert_int_equal(uc.pid, b.pid[0]);
	assert_int_equal(uc.uid, 12345);
	assert_int_equal(uc.gid, 12345);
	close(fd);
	_cleanup_dir_ DIR *d = opendir(test_dir);
	for (struct dirent *e; (e = readdir(d));)
		assert_true(strncmp(e->d_name, ".cr-", 4));
	unlink(at_dir("sock"));
	captured_done(&c);
	rebuilt_done(&b);
	source_free(s);
}

/* ---- root directory ---- */

static void jailed(struct source *s)
{
	(void)s;
	if (mkdir(at_dir("jail"), 0755) || mkdir(at_dir("jail/in"), 0755) ||
	    chroot(at_dir("jail")) || chdir("/in"))
		_exit(48);
	put_at(open("/in/file", O_RDWR | O_CREAT, 0600), FD_LOG, 0);
}

static void root_directory(void **state)
{
	struct rebuilt b = {0};
	struct captured c, after;
	struct cr_err err = {0};

	(void)state;
	if (geteuid())
		skip();
	struct source *s = source_new(jailed);
	capture_pids(&c, s->pid, s->n, NULL, true);
	assert_clean(&c);
	assert_string_equal(c.t->procs[0].root, at_dir("jail"));
	assert_string_equal(c.t->procs[0].cwd, at_dir("jail/in"));
	assert_true(fileset_needs_late(&c.t->procs[0]));
	shells_new(&b, 1);
	build_all(&b, c.t, NULL);
	build_all(&b, c.t, NULL);
	assert_int_equal(fileset_late_queue(b.shell[0], &c.t->procs[0], &err), 0);
	assert_int_equal(rtask_run(b.shell[0], &err), 0);
	finish(&b, c.t);
	capture_pids(&after, b.pid, b.n, NULL, true);
	assert_clean(&after);
	compare(c.t, after.t);
	assert_string_equal(c.t->procs[0].root, after.t->procs[0].root);
	captured_done(&c);
	captured_done(&after);
	rebuilt_done(&b);
	source_free(s);
}

/* ---- clocks ---- */

static void soon(struct source *s)
{
	struct itimerspec its = {{0, 1000000}, {0, 1000000}};

	(void)s;
	put_at(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 20, 0);
	if (timerfd_settime(20, 0, &its, NULL))
		_exit(47);
}

/* A periodic timer has counted all that went by: in the source, and between capture and settling.
 */
static void periods_that_passed(void **state)
{
	struct source *s = source_new(soon);
	struct rebuilt b = {0};
	struct pollfd none = {.fd = -1};
	uint64_t va, start = clock_ns(CLOCK_MONOTONIC);

	(void)state;
	poll(&none, 1, 20);
	uint64_t least = (clock_ns(CLOCK_MONOTONIC) - start) / 1000000;
	move(&b, s);
	uint64_t *n = rtask_scratch(b.shell[0], sizeof(*n), &va);
	assert_int_equal(in_shell(&b, SYS_read, 20, n, sizeof(*n), 0), sizeof(*n));
	if (*n < least)
		fail_msg("%lu periods of at least %lu", *n, least);
	rebuilt_done(&b);
	source_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(changed_table),  cmocka_unit_test(reset_connection),
	    cmocka_unit_test(one_shot),       cmocka_unit_test(listens_when_prepared),
	    cmocka_unit_test(unix_path),      cmocka_unit_test(periods_that_passed),
	    cmocka_unit_test(root_directory),
	};

	return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
