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

static char dir[] = "/tmp/test_files.XXXXXX";

static const char *at_dir(const char *name)
{
	static char path[4][256];
	static int k;

	k = (k + 1) % 4;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

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
	put_at(open(dir, O_RDONLY | O_DIRECTORY), FD_DIR, O_CLOEXEC);
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
	if (chdir(dir))
		_exit(24);
	open_files();
	open_pipes();
	open_events();
	open_epolls();
	open_sockets();
	if (geteuid() == 0)
		open_unix_paths();
	source_fork(s);
}

/* ---- rebuild and compare ---- */

struct rebuilt {
	struct rtask *shell[MAX_PROCS];
	int slot[MAX_PROCS];
	pid_t pid[MAX_PROCS];
	int n;
	struct fileset *fs;
};

static void install_all(struct rebuilt *b, const struct tree *t)
{
	struct cr_err err = {0};

	for (int i = 0; i < b->n; i++)
		if (fileset_install(b->fs, b->shell[i], t, &t->procs[i], &b->slot[i], &err))
			fail_msg("install: %s", err.msg);
}

static int memfd_for(const struct tree *t)
{
	int fd = memfd_create("mem", MFD_CLOEXEC);

	assert_int_equal(t->n_objects, 1);
	assert_string_equal(t->objects[0].name, "mem");
	assert_int_equal(t->objects[0].size, 5);
	assert_int_equal(pwrite(fd, "hello", 5, 0), 5);
	return fd;
}

static void build_all(struct rebuilt *b, const struct tree *t, const int *objects)
{
	struct cr_err err = {0};

	if (fileset_build(b->fs, t, objects, &err))
		fail_msg("build: %s", err.msg);
	install_all(b, t);
}

static void shells_new(struct rebuilt *b, int n)
{
	b->n = n;
	b->fs = fileset_new();
	for (int i = 0; i < n; i++) {
		b->shell[i] = shell_new();
		b->slot[i] = SHELL_SLOT;
		b->pid[i] = b->shell[i]->tid;
	}
}

static void finish(struct rebuilt *b, const struct tree *t)
{
	struct cr_err err = {0};

	if (fileset_settle(b->fs, t, &err))
		fail_msg("settle: %s", err.msg);
	if (fileset_launch(b->fs, t, &err))
		fail_msg("launch: %s", err.msg);
	fileset_free(b->fs);
	b->fs = NULL;
	for (int i = 0; i < b->n; i++)
		rtask_syscall(b->shell[i], SYS_close, (uint64_t)b->slot[i], 0, 0, 0, 0, 0);
}

static void rebuilt_done(struct rebuilt *b)
{
	fileset_free(b->fs);
	for (int i = 0; i < b->n; i++)
		shell_free(b->shell[i]);
}

static void compare_opts(const struct file *a, const struct file *b, int fd)
{
	if (!sockopts_cmp(a, b))
		return;
	for (size_t i = 0; i < a->n_opts; i++)
		print_error("fd %d had %d/%d\n", fd, a->opts[i].level, a->opts[i].name);
	for (size_t i = 0; i < b->n_opts; i++)
		print_error("fd %d has %d/%d\n", fd, b->opts[i].level, b->opts[i].name);
	fail();
}

static void compare_file(const struct tree *ta, const struct file *a, const struct file *b, int fd)
{
	if (a->kind != b->kind || (a->flags & ~0100000u) != (b->flags & ~0100000u) ||
	    a->pos != b->pos)
		fail_msg("fd %d: kind %d flags %o pos %lu became kind %d flags %o pos %lu", fd,
			 a->kind, a->flags, a->pos, b->kind, b->flags, b->pos);
	assert_string_equal(a->path ? a->path : "", b->path ? b->path : "");
	assert_int_equal(a->counter, b->counter);
	assert_int_equal(a->semaphore, b->semaphore);
	assert_int_equal(a->sigmask, b->sigmask);
	assert_int_equal(a->pipe_capacity, b->pipe_capacity);
	assert_int_equal(a->pipe_packet, b->pipe_packet);
	assert_int_equal(a->data_len, b->data_len);
	if (a->data_len)
		assert_memory_equal(a->data, b->data, a->data_len);
	assert_int_equal(a->clockid, b->clockid);
	if (a->kind == FILE_TIMERFD && a->clockid == CLOCK_REALTIME)
		assert_int_equal(a->settime_flags, b->settime_flags);
	assert_int_equal(a->interval_ns, b->interval_ns);
	assert_int_equal(a->ticks, b->ticks);
	if (a->value_ns - b->value_ns + 1000000 > 2000000)
		fail_msg("timer of fd %d: %lu became %lu", fd, a->value_ns, b->value_ns);
	assert_int_equal(a->backlog, b->backlog);
	assert_int_equal(a->sockaddr_len, b->sockaddr_len);
	if (a->sockaddr_len)
		assert_memory_equal(a->sockaddr, b->sockaddr, a->sockaddr_len);
	compare_opts(a, b, fd);
	assert_int_equal(a->n_targets, b->n_targets);
	for (size_t i = 0; i < a->n_targets; i++) {
		assert_int_equal(a->targets[i].fd, b->targets[i].fd);
		assert_int_equal(a->targets[i].file, b->targets[i].file);
		assert_true(a->targets[i].data == b->targets[i].data);
		if (!epoll_is_disarmed(a->targets[i].events) ||
		    ta->files[a->targets[i].file].kind == FILE_TCP_CLOSED)
			assert_int_equal(a->targets[i].events, b->targets[i].events);
	}
	if (a->kind == FILE_UNIX_LISTEN && a->path)
		assert_int_equal(a->mode, b->mode);
}

static void compare(const struct tree *a, const struct tree *b)
{
	assert_int_equal(a->n_files, b->n_files);
	for (size_t i = 0; i < a->n_procs; i++) {
		const struct process *p = &a->procs[i], *q = &b->procs[i];

		assert_int_equal(p->n_fds, q->n_fds);
		assert_int_equal(p->umask, q->umask);
		assert_string_equal(p->cwd, q->cwd);
		for (size_t k = 0; k < p->n_fds; k++) {
			assert_int_equal(p->fds[k].fd, q->fds[k].fd);
			assert_int_equal(p->fds[k].cloexec, q->fds[k].cloexec);
			assert_int_equal(p->fds[k].file, q->fds[k].file);
			compare_file(a, &a->files[p->fds[k].file], &b->files[q->fds[k].file],
				     p->fds[k].fd);
		}
	}
}

static void print_shape(const struct tree *t)
{
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++) {
			const struct fd_entry *e = &t->procs[i].fds[k];
			const struct file *f = &t->files[e->file];

			print_error(
			    "%zu:%d%s = %u: kind %d ino %lu flags %o backlog %d targets %zu "
			    "opts %zu\n",
			    i, e->fd, e->cloexec ? "c" : "", e->file, f->kind, f->ino, f->flags,
			    f->backlog, f->n_targets, f->n_opts);
		}
}

static void assert_same_shape(const struct tree *a, const struct tree *b)
{
	if (files_same_shape(a, b))
		return;
	print_shape(a);
	print_shape(b);
	fail();
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

static int setup(void **state)
{
	(void)state;
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	unlink(at_dir("log"));
	unlink(at_dir("sub/sock"));
	unlink(at_dir("rel"));
	rmdir(at_dir("sub"));
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(all_kinds),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
