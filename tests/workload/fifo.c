/* Named pipes: one that a parent and its child use without a pause; with data in them, with and
 * without a reader or a writer; one whose name is gone; one that the child waits to open.
 *
 * --dense: without a wait */
#include "workload.h"
#include <poll.h>
#include <sys/prctl.h>

enum { RECORD = 250, CAPACITY = 16384 };

static struct {
	int read, keeps, ended, no_reader, gone[2], unwritten, written;
	uint64_t seen;
	pid_t child, waiter;
} f;

static uint8_t byte_at(uint64_t pos)
{
	return (uint8_t)(pos * 11 + (pos >> 8) * 7);
}

static int opened(const char *name, int flags)
{
	char path[256];
	int fd = open(wl_path(path, name), flags | O_CLOEXEC);

	wl_must(fd >= 0, name);
	return fd;
}

static void make(const char *name, mode_t mode)
{
	char path[256];

	wl_must(!mkfifo(wl_path(path, name), 0600) && !chmod(path, mode), "mkfifo");
}

static void child_main(void)
{
	uint8_t buf[RECORD];
	uint64_t sent = 0;
	int fd = opened("flow", O_WRONLY);

	close(f.read);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		for (size_t i = 0; i < sizeof(buf); i++)
			buf[i] = byte_at(sent + i);
		ssize_t n = write(fd, buf, sizeof(buf));
		if (n < 0 && errno == EPIPE)
			_exit(0);
		if (n != sizeof(buf)) /* PIPE_BUF: all or nothing */
			_exit(2);
		sent += sizeof(buf);
	}
}

static void waiter_main(void)
{
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	char path[256];

	do
		fd = open(wl_path(path, "later"), O_WRONLY);
	while (fd < 0 && errno == EINTR);
	_exit(fd >= 0 && write(fd, "at last", 7) == 7 ? 0 : 4);
}

static pid_t start(void (*fn)(void))
{
	pid_t pid = fork();

	wl_must(pid >= 0, "fork");
	if (!pid)
		fn();
	return pid;
}

static void read_some(void)
{
	uint8_t buf[4096];
	ssize_t n = read(f.read, buf, sizeof(buf));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	wl_check(n > 0, "reading: %zd, %s", n, strerror(errno));
	for (ssize_t i = 0; i < n; i++)
		wl_check(buf[i] == byte_at(f.seen + (uint64_t)i), "byte %lu: got %u",
			 f.seen + (uint64_t)i, buf[i]);
	f.seen += (uint64_t)n;
}

static void expect(const char *what, int fd, const char *text)
{
	char buf[64] = "";
	ssize_t n = read(fd, buf, sizeof(buf) - 1);

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
	char path[256];
	int both;

	make("flow", 0600);
	f.read = opened("flow", O_RDONLY | O_NONBLOCK);
	f.child = start(child_main);
	make("keeps", 0640);
	wl_must(!chown(wl_path(path, "keeps"), 3, 4), "chown");
	f.keeps = opened("keeps", O_RDWR | O_NONBLOCK);
	wl_same("capacity", CAPACITY, fcntl(f.keeps, F_SETPIPE_SZ, CAPACITY));
	put(f.keeps, "kept");
	make("ended", 0600);
	f.ended = opened("ended", O_RDONLY | O_NONBLOCK);
	both = opened("ended", O_WRONLY);
	put(both, "last words");
	close(both);
	make("unwritten", 0600);
	f.unwritten = opened("unwritten", O_RDONLY | O_NONBLOCK);
	make("written", 0600);
	f.written = opened("written", O_RDONLY | O_NONBLOCK);
	make("no-reader", 0600);
	both = opened("no-reader", O_RDWR);
	f.no_reader = opened("no-reader", O_WRONLY | O_NONBLOCK);
	put(f.no_reader, "for the next");
	close(both);
	make("gone", 0600);
	f.gone[0] = opened("gone", O_RDONLY | O_NONBLOCK);
	f.gone[1] = opened("gone", O_WRONLY | O_NONBLOCK);
	put(f.gone[1], "no name");
	wl_must(!unlink(wl_path(path, "gone")), "unlink");
	make("later", 0600);
	f.waiter = start(waiter_main);
}

static void check_names(void)
{
	char path[256];
	struct stat st, own;

	/* a move makes another inode; it may come between the two */
	for (int i = 0; i < 2 && (!i || st.st_ino != own.st_ino); i++)
		wl_must(!stat(wl_path(path, "keeps"), &st) && !fstat(f.keeps, &own), "stat");
	wl_check(S_ISFIFO(st.st_mode) && (st.st_mode & 07777) == 0640 && st.st_uid == 3 &&
		     st.st_gid == 4,
		 "mode %o, owner %u, %u", st.st_mode, st.st_uid, st.st_gid);
	wl_check(st.st_ino == own.st_ino && st.st_dev == own.st_dev, "the path leads elsewhere");
	wl_same("capacity", CAPACITY, fcntl(f.keeps, F_GETPIPE_SZ));
}

/* poll(2) tells of a hang-up only if there has been a writer since it was opened. */
static bool hung_up(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};

	while (poll(&p, 1, 0) < 0)
		wl_must(errno == EINTR, "poll");
	return p.revents & POLLHUP;
}

/* Nobody has come to write, to both; then somebody has, to one. */
static void check_hang_ups(void)
{
	char c;

	wl_check(!hung_up(f.unwritten), "hung up, and nobody has written");
	wl_same("read of it", 0, read(f.unwritten, &c, 1));
	if (wl.moves && !hung_up(f.written))
		close(opened("written", O_WRONLY | O_NONBLOCK));
	wl_same("hung up", wl.moves > 0, hung_up(f.written));
}

static void finish(void)
{
	char c, path[256];
	int fd, status;

	check_hang_ups();
	put(opened("unwritten", O_WRONLY | O_NONBLOCK), "the first");
	expect("that nobody had written to", f.unwritten, "the first");
	expect("one end for both", f.keeps, "kept");
	fd = opened("keeps", O_WRONLY | O_NONBLOCK);
	put(fd, "by its name");
	expect("one end for both", f.keeps, "by its name");
	expect("whose writer is gone", f.ended, "last words");
	wl_same("its end", 0, read(f.ended, &c, 1));
	wl_check(write(f.no_reader, "x", 1) < 0 && errno == EPIPE, "without a reader: %s",
		 strerror(errno));
	fd = opened("no-reader", O_RDONLY | O_NONBLOCK);
	expect("without a reader", fd, "for the next");
	put(f.no_reader, "more");
	expect("with a reader", fd, "more");
	expect("without a name", f.gone[0], "no name");
	put(f.gone[1], "more");
	expect("without a name", f.gone[0], "more");
	do
		fd = open(wl_path(path, "later"), O_RDONLY | O_CLOEXEC);
	while (fd < 0 && errno == EINTR);
	wl_must(fd >= 0, "opening what somebody waits for");
	expect("what somebody waited for", fd, "at last");
	wl_same("waiter", f.waiter, waitpid(f.waiter, &status, 0));
	wl_same("its exit", 0, status);
	close(f.gone[1]); /* which the waiter had too */
	wl_same("end of one without a name", 0, read(f.gone[0], &c, 1));
	signal(SIGPIPE, SIG_IGN);
	close(f.read);
	wl_same("child", f.child, waitpid(f.child, &status, 0));
	wl_check(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE, "child: status %x", status);
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	bool dense = wl_flag("dense");

	signal(SIGPIPE, SIG_DFL);
	set_up();
	signal(SIGPIPE, SIG_IGN);
	wl_ready();
	while (!wl_stop()) {
		struct pollfd p = {.fd = f.read, .events = POLLIN};

		wl_tick();
		poll(&p, 1, 10);
		read_some();
		check_names();
		check_hang_ups();
		if (!dense)
			poll(NULL, 0, 2);
	}
	finish();
	wl_done();
}
