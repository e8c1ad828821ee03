/* Every kind of open file: captured from a source, rebuilt in shells, captured there, compared. */
#include "files_harness.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include "base/clock.h"

enum { /* descriptor numbers in the source */
       FD_LOG = 5,
       FD_LOG_DUP = 6,
       FD_LOG_OTHER = 7, /* the same file, opened separately */
       FD_DIR = 9,
       FD_PIPE_R = 10,
       FD_PIPE_W,
       FD_PACKET_R,
       FD_PACKET_W,
       FD_BROKEN_W,
       FD_BROKEN_R,
       FD_EVENT = 20,
       FD_SEMAPHORE,
       FD_TIMER,
       FD_TIMER_ABS,
       FD_TIMER_FIRED,
       FD_TIMER_OFF,
       FD_SIGNAL,
       FD_MEMFD,
       FD_EPOLL = 40,
       FD_EPOLL_OUTER,
       FD_ZERO = 50,
       FD_TCP = 60,
       FD_TCP6,
       FD_TCP_IDLE,
       FD_CLIENT,
       FD_SERVED,
       FD_SERVED6,
       FD_ABSTRACT,
       FD_UNIX,
       FD_UNIX_REL,
       FD_PAIR_A = 80,
       FD_PAIR_B,
       FD_PACKETS_A,
       FD_PACKETS_B,
       FD_DATAGRAMS_A,
       FD_DATAGRAMS_B,
       FD_HALF_A, /* shut down in one direction */
       FD_HALF_B,
       FD_LONELY, /* its peer is closed */
       FD_UNIX_IDLE,
       FD_NAMED_CLIENT,
       FD_NAMED_SERVED,
       FD_ABSTRACT_CLIENT,
       FD_ABSTRACT_SERVED,
       FD_UDP,
       FD_UDP6,
       FD_UDP_FRESH,
       FD_FAR = 500,
};

/* ---- the source ---- */

static void open_files(void)
{
	int fd = put_at(open(at_dir("log"), O_RDWR | O_APPEND | O_CREAT, 0644), FD_LOG, 0);

	if (write(fd, "0123456789", 10) != 10 || lseek(fd, 4, SEEK_SET) != 4)
		_exit(1);
	dup2(FD_LOG, FD_LOG_DUP);
	fd = put_at(open(at_dir("log"), O_RDWR | O_APPEND | O_NONBLOCK), FD_LOG_OTHER, O_CLOEXEC);
	if (lseek(fd, 7, SEEK_SET) != 7)
		_exit(2);
	put_at(open(test_dir, O_RDONLY | O_DIRECTORY), FD_DIR, O_CLOEXEC);
	put_at(open("/dev/zero", O_RDONLY), FD_ZERO, 0);
	dup3(FD_ZERO, FD_FAR, O_CLOEXEC);
	put_at(memfd_create("mem", 0), FD_MEMFD, 0);
	if (write(FD_MEMFD, "hello", 5) != 5)
		_exit(3);
}

static void open_pipes(void)
{
	int p[2];

	if (pipe2(p, O_NONBLOCK))
		_exit(4);
	put_at(p[0], FD_PIPE_R, 0);
	put_at(p[1], FD_PIPE_W, O_CLOEXEC);
	if (fcntl(FD_PIPE_W, F_SETPIPE_SZ, 1 << 17) < 0)
		_exit(5);
	char block[8192];
	for (int i = 0; i < 11; i++) {
		memset(block, 'a' + i, sizeof(block));
		if (write(FD_PIPE_W, block, sizeof(block)) != sizeof(block))
			_exit(6);
	}
	if (read(FD_PIPE_R, block, 1000) != 1000 || fcntl(FD_PIPE_R, F_SETFL, 0))
		_exit(7);
	if (pipe2(p, O_DIRECT))
		_exit(8);
	put_at(p[0], FD_PACKET_R, 0);
	put_at(p[1], FD_PACKET_W, 0);
	if (write(FD_PACKET_W, "one", 3) != 3 || write(FD_PACKET_W, "three", 5) != 5)
		_exit(9);
	if (pipe(p))
		_exit(10);
	put_at(p[1], FD_BROKEN_W, 0);
	close(p[0]);
	if (pipe(p) || write(p[1], "last", 4) != 4)
		_exit(11);
	put_at(p[0], FD_BROKEN_R, 0);
	close(p[1]);
}

static void arm(int fd, int flags, uint64_t value_ns, uint64_t interval_ns)
{
	struct itimerspec its = {
	    .it_value = {(time_t)(value_ns / 1000000000), (long)(value_ns % 1000000000)},
	    .it_interval = {(time_t)(interval_ns / 1000000000), (long)(interval_ns % 1000000000)}};

	if (timerfd_settime(fd, flags, &its, NULL))
		_exit(12);
}

static void open_events(void)
{
	sigset_t mask;

	put_at(eventfd(7, EFD_NONBLOCK), FD_EVENT, 0);
	put_at(eventfd(3, EFD_SEMAPHORE), FD_SEMAPHORE, O_CLOEXEC);
	put_at(timerfd_create(CLOCK_MONOTONIC, 0), FD_TIMER, 0);
	arm(FD_TIMER, 0, 3600000000000ull, 5000000000ull);
	put_at(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), FD_TIMER_ABS, 0);
	arm(FD_TIMER_ABS, TFD_TIMER_ABSTIME, 4000000000ull * 1000000000, 0);
	put_at(timerfd_create(CLOCK_BOOTTIME, 0), FD_TIMER_FIRED, 0);
	arm(FD_TIMER_FIRED, 0, 1, 0);
	struct pollfd pfd = {.fd = FD_TIMER_FIRED, .events = POLLIN};
	if (poll(&pfd, 1, 5000) != 1)
		_exit(13);
	put_at(timerfd_create(CLOCK_MONOTONIC, 0), FD_TIMER_OFF, 0);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMAX);
	put_at(signalfd(-1, &mask, SFD_NONBLOCK), FD_SIGNAL, O_CLOEXEC);
}

static void add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = {.events = events, .data.u64 = data};

	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
		_exit(14);
}

static void open_epolls(void)
{
	struct epoll_event ev;

	put_at(epoll_create1(0), FD_EPOLL, 0);
	add(FD_EPOLL, FD_EVENT, EPOLLOUT | EPOLLONESHOT, 1);
	if (epoll_wait(FD_EPOLL, &ev, 1, 0) != 1) /* fires, is disarmed */
		_exit(15);
	add(FD_EPOLL, FD_PIPE_R, EPOLLIN | EPOLLET, 0xdeadbeef00112233ull);
	add(FD_EPOLL, FD_SIGNAL, EPOLLIN, 3);
	/* under a number that is another file now */
	if (dup2(FD_SEMAPHORE, 45) != 45)
		_exit(16);
	add(FD_EPOLL, 45, EPOLLIN, 4);
	dup2(FD_ZERO, 45);
	/* and under one that is closed */
	dup2(FD_TIMER, 46);
	add(FD_EPOLL, 46, EPOLLIN | EPOLLONESHOT, 5);
	close(46);
	put_at(epoll_create1(EPOLL_CLOEXEC), FD_EPOLL_OUTER, O_CLOEXEC);
	add(FD_EPOLL_OUTER, FD_EPOLL, EPOLLIN, 6);
}

static int listener(int family, int n)
{
	struct sockaddr_in6 sa = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	struct sockaddr_in sa4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int one = 1, fd = put_at(socket(family, SOCK_STREAM, 0), n, O_CLOEXEC);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (family == AF_INET ? bind(fd, (void *)&sa4, sizeof(sa4))
			      : bind(fd, (void *)&sa, sizeof(sa)))
		_exit(17);
	if (listen(fd, 17))
		_exit(18);
	return fd;
}

static void open_sockets(void)
{
	struct sockaddr_storage sa;
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(sa);
	int cnt = 3;

	listener(AF_INET, FD_TCP);
	setsockopt(FD_TCP, IPPROTO_TCP, TCP_KEEPCNT, &cnt, sizeof(cnt));
	listener(AF_INET6, FD_TCP6);
	put_at(socket(AF_INET, SOCK_STREAM, 0), FD_TCP_IDLE, 0);
	put_at(socket(AF_INET, SOCK_STREAM, 0), FD_CLIENT, 0);
	getsockname(FD_TCP, (void *)&sa, &len);
	if (connect(FD_CLIENT, (void *)&sa, len))
		_exit(19);
	put_at(accept(FD_TCP, NULL, NULL), FD_SERVED, 0);
	len = sizeof(sa);
	getsockname(FD_TCP6, (void *)&sa, &len);
	int fd = socket(AF_INET6, SOCK_STREAM, 0);
	if (connect(fd, (void *)&sa, len))
		_exit(20);
	put_at(accept(FD_TCP6, NULL, NULL), FD_SERVED6, 0);
	close(fd);
	put_at(socket(AF_UNIX, SOCK_STREAM, 0), FD_ABSTRACT, 0);
	if (bind(FD_ABSTRACT, (void *)&un, sizeof(sa_family_t)) || listen(FD_ABSTRACT, 9))
		_exit(21);
}

static void pair(int type, int n)
{
	int p[2];

	if (socketpair(AF_UNIX, type, 0, p))
		_exit(30);
	put_at(p[0], n, 0);
	put_at(p[1], n + 1, O_CLOEXEC);
}

static void say(int fd, const char *text)
{
	if (send(fd, text, strlen(text), 0) != (ssize_t)strlen(text))
		_exit(31);
}

static void open_pairs(void)
{
	char big[70000];
	int two = 2, p[2];

	memset(big, 'b', sizeof(big));
	pair(SOCK_STREAM, FD_PAIR_A);
	say(FD_PAIR_A, "for b");
	say(FD_PAIR_A, ", more");
	say(FD_PAIR_B, "for a");
	/* the task looks from its own place on */
	if (setsockopt(FD_PAIR_B, SOL_SOCKET, SO_PEEK_OFF, &two, sizeof(two)) ||
	    fcntl(FD_PAIR_B, F_SETFL, O_NONBLOCK))
		_exit(32);
	pair(SOCK_SEQPACKET, FD_PACKETS_A);
	say(FD_PACKETS_A, "one");
	say(FD_PACKETS_A, "");
	if (send(FD_PACKETS_A, big, sizeof(big), 0) != sizeof(big))
		_exit(33);
	say(FD_PACKETS_A, "last");
	pair(SOCK_DGRAM, FD_DATAGRAMS_A);
	say(FD_DATAGRAMS_B, "datagram");
	say(FD_DATAGRAMS_B, "two");
	pair(SOCK_STREAM, FD_HALF_A);
	say(FD_HALF_A, "before the end");
	if (shutdown(FD_HALF_A, SHUT_WR))
		_exit(34);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p))
		_exit(35);
	say(p[1], "farewell");
	say(p[1], ""); /* and then the end, which looks the same */
	put_at(p[0], FD_LONELY, 0);
	close(p[1]);
	put_at(socket(AF_UNIX, SOCK_STREAM, 0), FD_UNIX_IDLE, 0);
}

static void open_udp(void)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	int ttl = 7;

	put_at(socket(AF_INET, SOCK_DGRAM, 0), FD_UDP, 0);
	setsockopt(FD_UDP, IPPROTO_IP, IP_TTL, &ttl, sizeof(ttl));
	if (bind(FD_UDP, (void *)&in, sizeof(in)))
		_exit(38);
	put_at(socket(AF_INET6, SOCK_DGRAM, 0), FD_UDP6, O_CLOEXEC);
	if (bind(FD_UDP6, (void *)&in6,
		 sizeof(in6))) /* sets IPV6_V6ONLY: connect(2) alone does not */
		_exit(40);
	in6.sin6_port = htons(9);
	if (connect(FD_UDP6, (void *)&in6, sizeof(in6)))
		_exit(39);
	put_at(socket(AF_INET, SOCK_DGRAM, 0), FD_UDP_FRESH, 0);
}

static void connection(int listener, int type, int n)
{
	struct sockaddr_un un;
	socklen_t len = sizeof(un);

	if (getsockname(listener, (void *)&un, &len))
		_exit(36);
	put_at(socket(AF_UNIX, type, 0), n, 0);
	if (connect(n, (void *)&un, len))
		_exit(37);
	put_at(accept(listener, NULL, NULL), n + 1, 0);
	say(n, "to the server");
	say(n + 1, "to the client");
}

static void open_unix_paths(void)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	put_at(socket(AF_UNIX, SOCK_SEQPACKET, 0), FD_UNIX, 0);
	snprintf(un.sun_path, sizeof(un.sun_path), "%s", at_dir("sub/sock"));
	if (mkdir(at_dir("sub"), 0755) || bind(FD_UNIX, (void *)&un, sizeof(un)) ||
	    chmod(un.sun_path, 0640) || listen(FD_UNIX, 5))
		_exit(22);
	put_at(socket(AF_UNIX, SOCK_STREAM, 0), FD_UNIX_REL, 0);
	strcpy(un.sun_path, "../sub/../rel");
	if (chdir(at_dir("sub")) || bind(FD_UNIX_REL, (void *)&un, sizeof(un)) ||
	    listen(FD_UNIX_REL, 6))
		_exit(23);
}

static void prepare_all(struct source *s)
{
	umask(027);
	if (chdir(test_dir))
		_exit(24);
	open_files();
	open_pipes();
	open_events();
	open_epolls();
	open_sockets();
	open_pairs();
	open_udp();
	connection(FD_ABSTRACT, SOCK_STREAM, FD_ABSTRACT_CLIENT);
	if (geteuid() == 0) {
		open_unix_paths();
		connection(FD_UNIX, SOCK_SEQPACKET, FD_NAMED_CLIENT);
	}
	source_fork(s);
}

/* ---- the test ---- */

static int memfd_for(const struct tree *t)
{
	int fd = memfd_create("mem", MFD_CLOEXEC);

	assert_int_equal(t->n_objects, 1);
	assert_string_equal(t->objects[0].name, "mem");
	assert_int_equal(t->objects[0].size, 5);
	assert_int_equal(pwrite(fd, "hello", 5, 0), 5);
	return fd;
}

/* Looking leaves the task's place as it was. */
static void check_peek_offset(const struct source *s)
{
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, s->pid[0], 0);
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, FD_PAIR_B, 0);
	int off = 0;
	socklen_t len = sizeof(off);

	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, &len), 0);
	assert_int_equal(off, 2);
}

static size_t queue_bytes(const struct tree *t, int fd)
{
	const struct file *f = file_at(t, 0, fd);
	size_t n = 0;

	for (size_t i = 0; i < f->n_messages; i++)
		n += f->messages[i].len;
	return n;
}

static void check_pairs(const struct tree *t)
{
	assert_ptr_equal(&t->files[file_at(t, 0, FD_PAIR_A)->peer], file_at(t, 0, FD_PAIR_B));
	assert_int_equal(queue_bytes(t, FD_PAIR_B), strlen("for b, more"));
	assert_int_equal(queue_bytes(t, FD_PACKETS_B), 3 + 70000 + 4);
	assert_int_equal(file_at(t, 0, FD_PACKETS_B)->n_messages, 4);
	assert_int_equal(file_at(t, 0, FD_HALF_B)->sock_shutdown, 1);
	assert_int_equal(queue_bytes(t, FD_LONELY), 8);
	assert_int_equal(file_at(t, 0, FD_LONELY)->n_messages, 2);
	assert_int_equal(file_at(t, 0, FD_LONELY)->sock_shutdown, 3);
	assert_int_equal(file_at(t, 0, FD_UNIX_IDLE)->connected, false);
}

static void check_refusals(const struct tree *t)
{
	struct refusals refused = {0};

	files_check(t, &refused);
	if (refused.list.n)
		fail_msg("%s: %s", refused.list.v[0].what, refused.list.v[0].why);
	refusals_done(&refused);
}

static void check_grouping(const struct tree *t)
{
	assert_ptr_equal(file_at(t, 0, FD_LOG), file_at(t, 0, FD_LOG_DUP));
	assert_ptr_equal(file_at(t, 0, FD_LOG), file_at(t, 1, FD_LOG));
	assert_ptr_not_equal(file_at(t, 0, FD_LOG), file_at(t, 0, FD_LOG_OTHER));
	assert_ptr_not_equal(file_at(t, 0, FD_EVENT), file_at(t, 0, FD_SEMAPHORE));
	assert_int_equal(file_at(t, 0, FD_LOG)->pos, 4);
	assert_int_equal(file_at(t, 0, FD_PIPE_R)->data_len, 11 * 8192 - 1000);
	assert_int_equal(file_at(t, 0, FD_EPOLL)->n_targets, 5);
	assert_int_equal(file_at(t, 0, FD_TIMER_FIRED)->ticks, 1);
	assert_int_equal(file_at(t, 0, FD_TCP)->backlog, 17);
	assert_int_equal(file_at(t, 0, FD_TCP_IDLE)->kind, FILE_TCP_IDLE);
	assert_int_equal(file_at(t, 0, FD_SERVED)->kind, FILE_TCP_CLOSED);
}

static void all_kinds(void **state)
{
	struct source *s = source_new(prepare_all);
	struct captured ahead, exact, after;
	struct rebuilt b = {0};

	(void)state;
	capture_pids(&ahead, s->pid, s->n, NULL, false);
	assert_clean(&ahead);
	assert_int_equal(ahead.refused.warnings.n, 3); /* connections */
	capture_pids(&exact, s->pid, s->n, ahead.t, true);
	assert_clean(&exact);
	assert_same_shape(ahead.t, exact.t);
	check_grouping(exact.t);
	check_pairs(exact.t);
	check_peek_offset(s);
	source_kill(s);
	check_refusals(ahead.t);
	shells_new(&b, 2);
	int object = memfd_for(exact.t);
	build_all(&b, ahead.t, &object);
	if (geteuid() == 0)
		assert_int_not_equal(access(at_dir("sub/sock"), F_OK), -1);
	finish(&b, exact.t);
	capture_pids(&after, b.pid, 2, NULL, true);
	assert_clean(&after);
	compare(exact.t, after.t);
	close(object);
	rebuilt_done(&b);
	captured_done(&ahead);
	captured_done(&exact);
	captured_done(&after);
	source_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(all_kinds),
	};

	return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
