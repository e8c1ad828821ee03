/* Descriptors of every kind that moves, in two processes that share some of them.
 *
 * Regular files with offsets shared by dup and by fork, append, close-on-exec, devices,
 * directories, pipes with data in them and with tasks blocked on them, eventfds, epoll, signalfd,
 * timerfd, listening TCP and unix sockets, working directory, umask, root.
 *
 * --listen IP (default 0.0.0.0); the port is written to DIR/port. Whoever connects and sends a line
 * gets "LINE HOST SUM" with SUM the sum of the line's bytes.
 * --chroot: also a child whose root directory is DIR/root */
#include "workload.h"
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>

enum { HIGH_FD = 777, PIPE_BYTES = 150000, MAX_FDS = 64, BIG_PIPE = 1 << 18 };
#define SIG_FD (SIGRTMIN + 5)

/* What a descriptor must be; compared as text. */
struct look {
	int fd;
	char text[700];
};
static struct look looks[MAX_FDS];
static int n_looks;

static struct {
	int a, a_dup, a_high, a_other; /* one file: dups share the offset, a_other does not */
	int append, rdonly, dir, path_dir, path_file;
	int null, zero, full, random;
	int data[2], packet[2], eof, broken, small[2], fill[2], async[2];
	int event, semaphore, timer, signal;
	int epoll, inner;
} f;

static struct {
	_Atomic uint64_t turns, blocked_reads, chroot_turns;
	_Atomic bool stopping;
	_Atomic off_t offset; /* of the file that both processes move */
} * shared;

/* ---- what a descriptor looks like ---- */

/* Lines of fdinfo that belong to the host and not to the descriptor, or that move by themselves. (A
 * timerfd's settime flags say how it was armed last, which is the rebuild's own business.) */
static bool fdinfo_skipped(const char *line)
{
	static const char *const skip[] = {
	    "mnt_id:",   "ino:",           "pos:",        "ticks:",
	    "it_value:", "eventfd-count:", "eventfd-id:", "settime flags:"};

	for (size_t i = 0; i < sizeof(skip) / sizeof(skip[0]); i++)
		if (!strncmp(line, skip[i], strlen(skip[i])))
			return true;
	return false;
}

/* An epoll target's line without its position, inode and device. */
static void cut_target(char *line)
{
	char *p = strstr(line, " pos:");

	if (!strncmp(line, "tfd:", 4) && p)
		*p = 0;
}

static int compare_lines(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* Sorted: the kernel lists an epoll's targets by their addresses. */
static size_t add_fdinfo(int fd, char *out, size_t room)
{
	char path[64], lines[32][256];
	size_t n = 0, n_lines = 0;
	FILE *in;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	in = fopen(path, "re");
	if (!in)
		return snprintf(out, room, "closed");
	while (n_lines < 32 && fgets(lines[n_lines], sizeof(lines[0]), in)) {
		char *line = lines[n_lines];

		if (fdinfo_skipped(line))
			continue;
		cut_target(line);
		line[strcspn(line, "\n")] = 0;
		for (char *p = line; *p; p++)
			if (*p == '\t')
				*p = ' ';
		n_lines++;
	}
	fclose(in);
	qsort(lines, n_lines, sizeof(lines[0]), compare_lines);
	for (size_t i = 0; i < n_lines; i++)
		n += snprintf(out + n, n < room ? room - n : 0, "%s; ", lines[i]);
	return n;
}

static void look_at(int fd, char *out, size_t room)
{
	struct f_owner_ex owner = {0};
	struct stat st = {0};
	char path[64], target[200];
	ssize_t len;
	size_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, target, sizeof(target) - 1);
	target[len < 0 ? 0 : len] = 0;
	if (strchr(target, '[')) /* pipe:[inode] */
		*strchr(target, '[') = 0;
	fstat(fd, &st);
	fcntl(fd, F_GETOWN_EX, &owner);
	n = snprintf(out, room, "%s mode %o rdev %x fl %o fd %d own %d/%d sig %d pipe %d; ", target,
		     st.st_mode, (unsigned int)st.st_rdev, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD),
		     owner.type, owner.pid, fcntl(fd, F_GETSIG),
		     S_ISFIFO(st.st_mode) ? fcntl(fd, F_GETPIPE_SZ) : 0);
	add_fdinfo(fd, out + n, room - n);
}

static void note_fds(void)
{
	for (int fd = 0; fd < 1024; fd++) {
		if (fcntl(fd, F_GETFD) < 0)
			continue;
		wl_check(n_looks < MAX_FDS, "too many descriptors");
		looks[n_looks].fd = fd;
		look_at(fd, looks[n_looks].text, sizeof(looks[n_looks].text));
		n_looks++;
	}
}

static void check_fds(void)
{
	char text[700];
	int n = 0;

	for (int fd = 0; fd < 1024; fd++) {
		if (fcntl(fd, F_GETFD) < 0)
			continue;
		wl_check(n < n_looks && looks[n].fd == fd, "descriptor %d is open, expected %d", fd,
			 n < n_looks ? looks[n].fd : -1);
		look_at(fd, text, sizeof(text));
		wl_check(!strcmp(text, looks[n].text), "descriptor %d: expected '%s', got '%s'", fd,
			 looks[n].text, text);
		n++;
	}
	wl_same("open descriptors", n_looks, n);
}

/* ---- regular files, directories, devices ---- */

static int open_in(const char *name, int flags)
{
	char path[256];
	int fd = open(wl_path(path, name), flags, 0644);

	wl_check(fd >= 0, "open %s: %s", path, strerror(errno));
	return fd;
}

static void set_up_files(void)
{
	char line[32];

	f.a = open_in("file.a", O_RDWR | O_CREAT | O_TRUNC | O_NOATIME);
	for (int i = 0; i < 1000; i++) {
		snprintf(line, sizeof(line), "line %06d ....\n", i); /* 17 bytes */
		wl_same("write", 17, write(f.a, line, 17));
	}
	f.a_dup = fcntl(f.a, F_DUPFD_CLOEXEC, 50);
	f.a_high = dup2(f.a, HIGH_FD);
	f.a_other = open_in("file.a", O_RDONLY | O_CLOEXEC);
	lseek(f.a, 170, SEEK_SET);
	lseek(f.a_other, 340, SEEK_SET);
	f.append = open_in("file.append", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
	f.rdonly = open_in("file.a", O_RDONLY | O_NONBLOCK);
	f.dir = open_in(".", O_RDONLY | O_DIRECTORY);
	f.path_dir = open_in(".", O_PATH | O_DIRECTORY);
	f.path_file = open_in("file.a", O_PATH | O_CLOEXEC);
	f.null = open("/dev/null", O_RDWR);
	f.zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	f.full = open("/dev/full", O_RDWR);
	f.random = open("/dev/urandom", O_RDONLY);
	wl_must(f.a_high == HIGH_FD && f.null >= 0 && f.zero >= 0 && f.full >= 0 && f.random >= 0,
		"devices");
}

/* Each turn moves the shared offset by a line; dups see it, the other description does not. */
static void check_files(void)
{
	const off_t at = shared->offset;
	char line[20] = {0}, want[32], byte = 'x';

	wl_same("offset by dup", at, lseek(f.a_dup, 0, SEEK_CUR));
	wl_same("offset by dup2", at, lseek(f.a_high, 0, SEEK_CUR));
	wl_same("offset of another description", 340, lseek(f.a_other, 0, SEEK_CUR));
	wl_same("read", 17, read(f.a, line, 17));
	snprintf(want, sizeof(want), "line %06ld ....\n", (long)at / 17);
	wl_check(!strcmp(line, want), "file content: expected %s, got %s", want, line);
	shared->offset = at + 17 < 1000 * 17 ? at + 17 : 0;
	lseek(f.a, shared->offset, SEEK_SET);
	wl_same("write to /dev/null", 1, write(f.null, &byte, 1));
	wl_same("read from /dev/zero", 1, read(f.zero, &byte, 1));
	wl_same("byte of /dev/zero", 0, byte);
	wl_check(write(f.full, &byte, 1) < 0 && errno == ENOSPC,
		 "write to /dev/full: expected ENOSPC, got %s", strerror(errno));
	wl_same("read from /dev/urandom", 1, read(f.random, &byte, 1));
	wl_check(write(f.rdonly, "x", 1) < 0 && errno == EBADF,
		 "could write to a read-only descriptor");
}

static void finish_files(void)
{
	struct stat st;
	off_t end;

	end = lseek(f.append, 0, SEEK_END);
	lseek(f.append, 0, SEEK_SET);
	wl_same("append", 4, write(f.append, "more", 4));
	fstat(f.append, &st);
	wl_same("size after an append", end + 4, st.st_size);
	wl_same("openat by a directory", 3,
		write(openat(f.dir, "file.new", O_CREAT | O_WRONLY, 0777), "new", 3));
	wl_must(!fstatat(f.dir, "file.new", &st, 0), "fstatat");
	wl_same("mode under the umask", 0777 & ~027, st.st_mode & 0777);
	wl_same("umask", 027, umask(027));
	wl_must(!fstatat(f.path_dir, "file.new", &st, 0), "fstatat by a path");
	wl_must(!fstat(f.path_file, &st), "fstat of a path");
	wl_same("size by a path", 17000, st.st_size);
	wl_check(read(f.path_file, &st, 1) < 0 && errno == EBADF, "could read from a path");
}

/* ---- pipes ---- */

static uint8_t stream_byte(size_t i)
{
	return wl_mix(i / 8) >> (i % 8 * 8);
}

static void fill_pipe(int fd, size_t from, size_t n)
{
	static uint8_t buf[PIPE_BYTES];

	for (size_t i = 0; i < n; i++)
		buf[i] = stream_byte(from + i);
	wl_same("write to a pipe", n, write(fd, buf, n));
}

static void drain_pipe(int fd, size_t from, size_t n)
{
	static uint8_t buf[PIPE_BYTES];
	size_t have = 0;

	while (have < n) {
		const ssize_t r = read(fd, buf + have, n - have);

		wl_check(r > 0 || (r < 0 && errno == EINTR),
			 "read from a pipe after %zu of %zu bytes: got %zd (%s)", have, n, r,
			 strerror(errno));
		have += r > 0 ? r : 0;
	}
	for (size_t i = 0; i < n; i++)
		wl_check(buf[i] == stream_byte(from + i),
			 "byte %zu of a pipe: expected 0x%02x, got 0x%02x", from + i,
			 stream_byte(from + i), buf[i]);
}

static void set_up_pipes(void)
{
	const struct f_owner_ex owner = {.type = F_OWNER_PID, .pid = getpid()};
	int p[2];

	wl_must(!pipe2(f.data, O_CLOEXEC), "pipe2");
	wl_must(fcntl(f.data[1], F_SETPIPE_SZ, BIG_PIPE) == BIG_PIPE, "F_SETPIPE_SZ");
	fill_pipe(f.data[1], 0, PIPE_BYTES);
	drain_pipe(f.data[0], 0, 100); /* so that its first page has been read in part */

	wl_must(!pipe2(f.packet, O_DIRECT | O_NONBLOCK), "pipe2");
	for (int i = 1; i <= 5; i++)
		fill_pipe(f.packet[1], i * 100, i * 10);

	wl_must(!pipe(p), "pipe");
	fill_pipe(p[1], 7000, 700);
	close(p[1]);
	f.eof = p[0];
	wl_must(!pipe(p), "pipe");
	close(p[0]);
	f.broken = p[1];
	wl_must(!pipe2(f.small, 0) && !pipe2(f.fill, 0), "pipe2");
	wl_must(!pipe2(f.async, O_NONBLOCK), "pipe2");
	wl_must(!fcntl(f.async[0], F_SETOWN_EX, &owner) && !fcntl(f.async[0], F_SETSIG, SIGWINCH),
		"F_SETOWN_EX");
}

/* The child sits in write(2) on a full pipe, then in read(2) on an empty one. */
static void finish_pipes(void)
{
	uint8_t buf[256];

	drain_pipe(f.data[0], 100, PIPE_BYTES - 100);
	fill_pipe(f.data[1], 5, 5000);
	drain_pipe(f.data[0], 5, 5000);
	for (int i = 1; i <= 5; i++) {
		wl_same("packet in a pipe", i * 10, read(f.packet[0], buf, sizeof(buf)));
		wl_same("first byte of a packet", stream_byte(i * 100), buf[0]);
	}
	wl_check(read(f.packet[0], buf, 1) < 0 && errno == EAGAIN, "empty pipe: expected EAGAIN");
	drain_pipe(f.eof, 7000, 700);
	wl_same("read of a pipe without writers", 0, read(f.eof, buf, 1));
	wl_check(write(f.broken, "x", 1) < 0 && errno == EPIPE,
		 "pipe without readers: expected EPIPE");
}

/* ---- eventfd, timerfd, signalfd, epoll ---- */

static void watch(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = {.events = events, .data.u64 = data};

	wl_must(!epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev), "EPOLL_CTL_ADD");
}

static void set_up_events(void)
{
	const struct itimerspec its = {.it_value = wl_timespec(40000000),
				       .it_interval = wl_timespec(40000000)};
	struct epoll_event ev;
	sigset_t set;

	f.event = eventfd(5, EFD_NONBLOCK);
	f.semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	f.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	timerfd_settime(f.timer, 0, &its, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIG_FD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	f.signal = signalfd(-1, &set, SFD_NONBLOCK);
	sigqueue(getpid(), SIG_FD, (union sigval){.sival_int = 4711});

	f.epoll = epoll_create1(EPOLL_CLOEXEC);
	f.inner = epoll_create1(0);
	watch(f.epoll, f.event, EPOLLIN, 0x1111222233334444);
	watch(f.epoll, f.small[0], EPOLLIN | EPOLLET, 2);
	watch(f.epoll, f.semaphore, EPOLLIN | EPOLLONESHOT, 3);
	watch(f.epoll, f.timer, EPOLLIN | EPOLLONESHOT, 4);
	watch(f.epoll, f.signal, EPOLLIN, 5);
	watch(f.epoll, f.inner, EPOLLIN, 7);
	watch(f.inner, f.eof, EPOLLIN | EPOLLRDHUP, 8);
	watch(f.inner, f.async[1], EPOLLIN | EPOLLEXCLUSIVE, 9);
	/* One one-shot has fired, one (the timer's) has not been looked at. */
	for (bool fired = false; !fired;) {
		wl_same("epoll_wait", 1, epoll_wait(f.epoll, &ev, 1, 1000));
		fired = ev.data.u64 == 3;
	}
}

static bool epoll_says(int ep, uint64_t data, uint32_t *ret_events)
{
	struct epoll_event ev[16];
	const int n = epoll_wait(ep, ev, 16, 0);

	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == data) {
			if (ret_events)
				*ret_events = ev[i].events;
			return true;
		}
	return false;
}

static void finish_events(void)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 33};
	struct signalfd_siginfo si;
	uint64_t v;

	wl_check(epoll_says(f.epoll, 0x1111222233334444, NULL),
		 "epoll does not report the eventfd");
	wl_check(epoll_says(f.epoll, 5, NULL), "epoll does not report the signalfd");
	wl_check(epoll_says(f.epoll, 7, NULL), "epoll does not report the other epoll");
	wl_check(epoll_says(f.inner, 8, NULL), "the inner epoll does not report its pipe");
	wl_check(!epoll_says(f.epoll, 3, NULL), "epoll reports a one-shot that has fired already");
	wl_must(!epoll_ctl(f.epoll, EPOLL_CTL_MOD, f.semaphore, &ev), "EPOLL_CTL_MOD");
	wl_check(epoll_says(f.epoll, 33, NULL),
		 "epoll does not report a one-shot that was renewed");
	/* Edges: what is new is reported, once. */
	epoll_says(f.epoll, 2, NULL);
	wl_same("write", 1, write(f.small[1], "e", 1));
	wl_check(epoll_says(f.epoll, 2, NULL), "epoll does not report an edge");
	wl_check(!epoll_says(f.epoll, 2, NULL), "epoll reports an edge twice");

	wl_same("read of an eventfd", 8, read(f.event, &v, 8));
	wl_same("its counter", 5, v);
	for (int i = 0; i < 3; i++) {
		wl_same("read of an eventfd semaphore", 8, read(f.semaphore, &v, 8));
		wl_same("its value", 1, v);
	}
	wl_check(read(f.semaphore, &v, 8) < 0 && errno == EAGAIN,
		 "an eventfd semaphore of 3 gives a fourth");
	wl_same("read of a signalfd", sizeof(si), read(f.signal, &si, sizeof(si)));
	wl_same("its signal", SIG_FD, si.ssi_signo);
	wl_same("its value", 4711, si.ssi_int);
	wl_same("read of a timerfd", 8, read(f.timer, &v, 8));
}

static uint64_t timer_from_ns, timer_read;

/* Unread expirations pile up and go along. */
static void finish_timer(void)
{
	const uint64_t due = (wl_ns(CLOCK_MONOTONIC) - timer_from_ns) / 40000000;
	uint64_t v = 0;

	wl_same("read of a timerfd", 8, read(f.timer, &v, 8));
	wl_check(v + timer_read <= due && v + timer_read + 3 >= due,
		 "expirations of a timerfd: expected about %lu, got %lu", due, v + timer_read);
}

/* ---- the children ---- */

static pid_t child, writer, jailed;

/* Moves the offset that it shares with the parent, by turns: a pipe each way says whose turn it is.
 */
static void child_main(int in, int out)
{
	char c;

	while (read(in, &c, 1) == 1) {
		check_files();
		shared->turns++;
		wl_same("turn back", 1, write(out, "c", 1));
	}
	_exit(21);
}

/* Blocked in write(2) all the time: the pipe is full, and somebody reads at the end only. */
static void writer_main(void)
{
	static uint8_t buf[100000];

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = stream_byte(i);
	for (size_t done = 0; done < sizeof(buf);) {
		const ssize_t n = write(f.fill[1], buf + done, sizeof(buf) - done);

		wl_check(n > 0 || errno == EINTR, "write to a full pipe: %s", strerror(errno));
		done += n > 0 ? n : 0;
	}
	_exit(22);
}

static void jailed_main(void)
{
	char path[256];

	mkdir(wl_path(path, "root"), 0755);
	mkdir(wl_path(path, "root/inside"), 0755);
	wl_path(path, "root");
	wl_must(!chroot(path) && !chdir("/inside"), "chroot");
	while (!shared->stopping) {
		char cwd[64];

		wl_check(!access("/inside", F_OK) && access("/etc", F_OK),
			 "the root directory is another one");
		wl_check(getcwd(cwd, sizeof(cwd)) && !strcmp(cwd, "/inside"),
			 "working directory in a root directory");
		shared->chroot_turns++;
		wl_sleep_us(10000);
	}
	_exit(23);
}

static void reap(pid_t pid, int code)
{
	int status;

	wl_same("waitpid", pid, waitpid(pid, &status, 0));
	wl_same("a child's exit status", code << 8, status);
}

static void start_children(int to[2], int from[2])
{
	wl_must(!pipe(to) && !pipe(from), "pipe");
	child = fork();
	if (!child) {
		close(to[1]);
		close(from[0]);
		child_main(to[0], from[1]);
	}
	close(to[0]);
	close(from[1]);
	writer = fork();
	if (!writer) {
		close(to[1]);
		writer_main();
	}
	jailed = wl_flag("chroot") ? fork() : 0;
	if (!jailed && wl_flag("chroot")) {
		close(to[1]);
		jailed_main();
	}
}

static void finish(int to_child, const char *want_cwd)
{
	char cwd[256];

	check_fds();
	wl_check(getcwd(cwd, sizeof(cwd)) && !strcmp(cwd, want_cwd),
		 "working directory: expected %s, got %s", want_cwd, cwd);
	finish_timer();
	finish_files();
	finish_pipes();
	drain_pipe(f.fill[0], 0, 100000);
	reap(writer, 22);
	wl_sleep_us(100000); /* so that the timerfd has something to report */
	finish_events();
	shared->stopping = true;
	if (jailed)
		reap(jailed, 23);
	close(to_child);
	reap(child, 21);
}

int main(int argc, char **argv)
{
	int to[2], from[2];
	char path[256], c;

	wl_init(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	shared =
	    mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(shared != MAP_FAILED, "mmap");
	mkdir(wl_path(path, "cwd"), 0755);
	wl_must(!chdir(path), "chdir");
	umask(027);
	set_up_files();
	set_up_pipes();
	timer_from_ns = wl_ns(CLOCK_MONOTONIC);
	set_up_events();
	shared->offset = 170;
	start_children(to, from);
	note_fds();
	wl_ready();
	while (!wl_stop()) {
		if (wl_tick())
			check_fds();
		check_files();
		wl_same("turn to the child", 1, write(to[1], "p", 1));
		while (read(from[0], &c, 1) < 0)
			wl_must(errno == EINTR, "the child's turn");
		wl_same("append", 5, write(f.append, "line\n", 5));
		wl_sleep_us(3000);
	}
	finish(to[1], path);
	wl_done();
}
