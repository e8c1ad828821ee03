/* File locks of all three kinds, seen by a process that has none of them: held without a gap that
 * it could notice, by whom and where they were; and waiting for one goes on. */
#include "workload.h"

#include <pthread.h>
#include <sys/file.h>

enum { FIRST = 100, BYTES = 50 };

static int whole_fd, shared_fd, ofd_fd, posix_fd, wait_fd;
static pid_t sibling;
static int ask_fd, answer_fd;

static int open_file(const char *name)
{
	char path[256];
	int fd = open(wl_path(path, name), O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	wl_check(fd >= 0, "%s: %s", name, strerror(errno));
	return fd;
}

static struct flock range(int type, off_t start, off_t len)
{
	return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
}

/* ---- the other process: holds a record lock of its own, and looks at the others' ---- */

/* Who holds something that conflicts with writing there? -1: a description; -2: nobody. */
static int holder(int fd, off_t at)
{
	struct flock fl = range(F_WRLCK, at, 1);

	wl_must(!fcntl(fd, F_GETLK, &fl), "F_GETLK");
	return fl.l_type == F_UNLCK ? -2 : fl.l_pid;
}

/* "" or what is not as it must be. */
static const char *look_once(pid_t parent, int posix, int ofd, int whole, int shared)
{
	struct flock fl = range(F_RDLCK, 1l << 40, 1); /* for reading others may have it */

	if (holder(posix, FIRST - 1) != -2)
		return "record lock before the range";
	if (holder(posix, FIRST) != parent)
		return "record lock, first byte";
	if (holder(posix, FIRST + BYTES - 1) != parent)
		return "record lock, last byte";
	if (holder(posix, FIRST + BYTES) != -2)
		return "record lock after the range";
	if (holder(posix, 1l << 40) != parent)
		return "record lock to the end";
	if (holder(ofd, 7) != -1)
		return "lock of a description";
	if (holder(ofd, 8) != -2)
		return "lock of a description, beyond";
	if (!flock(whole, LOCK_SH | LOCK_NB) || errno != EWOULDBLOCK)
		return "an exclusive flock is gone";
	if (!flock(shared, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK)
		return "a shared flock is gone";
	if (flock(shared, LOCK_SH | LOCK_NB))
		return "a shared flock is exclusive";
	wl_must(!fcntl(posix, F_GETLK, &fl), "F_GETLK");
	return fl.l_type == F_UNLCK ? "" : "record lock to the end, for reading";
}

/* DIR/killed: the agent was, and each process takes its locks again by itself, one later than
 * another. */
static void look(pid_t parent, int posix, int ofd)
{
	const char *wrong;

	for (int tries = 0;; tries++) {
		int whole = open_file("whole"), shared = open_file("shared");

		wrong = look_once(parent, posix, ofd, whole, shared);
		close(whole);
		close(shared);
		if (!*wrong || tries == 1000 || !wl_asked("killed"))
			break;
		wl_sleep_us(10000);
	}
	wl_check(!*wrong, "%s: held by %ld at the first byte, %ld at the description's, %s", wrong,
		 (long)holder(posix, FIRST), (long)holder(ofd, 7), strerror(errno));
}

static void sibling_main(int in, int out)
{
	int posix = open_file("posix"), ofd = open_file("ofd"), own = open_file("wait");
	struct flock fl = range(F_WRLCK, 0, 0);
	char c;

	wl_must(!fcntl(own, F_SETLK, &fl), "the other process's lock");
	while (read(in, &c, 1) == 1) {
		if (c == 'l')
			look(getppid(), posix, ofd);
		fl = range(F_UNLCK, 0, 0);
		if (c == 'u')
			wl_must(!fcntl(own, F_SETLK, &fl), "F_UNLCK");
		wl_same("answer", 1, write(out, &c, 1));
	}
	_exit(0);
}

static void start_sibling(void)
{
	int in[2], out[2];

	wl_must(!pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC), "pipe2");
	sibling = fork();
	wl_must(sibling >= 0, "fork");
	if (!sibling) {
		close(in[1]);
		close(out[0]);
		sibling_main(in[0], out[1]);
	}
	close(in[0]);
	close(out[1]);
	ask_fd = in[1];
	answer_fd = out[0];
}

static void ask(char c)
{
	char got = 0;

	wl_check(write(ask_fd, &c, 1) == 1 && read(answer_fd, &got, 1) == 1 && got == c,
		 "the other process does not answer");
}

/* ---- a thread that waits for the other's lock ---- */

static _Atomic bool got_it;

static void *waiter_main(void *arg)
{
	struct flock fl = range(F_WRLCK, 0, 0);
	int r;

	(void)arg;
	while ((r = fcntl(wait_fd, F_SETLKW, &fl)) < 0 && errno == EINTR)
		;
	wl_must(!r, "F_SETLKW");
	got_it = true;
	return NULL;
}

/* ---- the main thread ---- */

static void take_locks(void)
{
	struct flock a = range(F_WRLCK, FIRST, BYTES), b = range(F_RDLCK, FIRST + 2 * BYTES, 0),
		     c = range(F_WRLCK, 0, 8);

	wl_must(!flock(whole_fd, LOCK_EX), "flock");
	wl_must(!flock(shared_fd, LOCK_SH), "flock");
	wl_must(dup(whole_fd) >= 0, "dup");
	wl_must(!fcntl(ofd_fd, F_OFD_SETLK, &c), "F_OFD_SETLK");
	wl_must(!fcntl(posix_fd, F_SETLK, &a) && !fcntl(posix_fd, F_SETLK, &b), "F_SETLK");
}

int main(int argc, char **argv)
{
	pthread_t waiter;

	wl_init(argc, argv);
	start_sibling(); /* before there is anything that it could inherit */
	whole_fd = open_file("whole");
	shared_fd = open_file("shared");
	ofd_fd = open_file("ofd");
	posix_fd = open_file("posix");
	wait_fd = open_file("wait");
	take_locks();
	ask('l');
	wl_must(!(errno = pthread_create(&waiter, NULL, waiter_main, NULL)), "pthread_create");
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		ask('l');
		wl_check(!got_it, "a lock that somebody holds was given to another");
		wl_sleep_us(3000);
	}
	ask('l');
	ask('u');
	pthread_join(waiter, NULL);
	wl_check(got_it, "a lock that was given up is not had by who waits for it");
	close(ask_fd);
	wl_same("waitpid", sibling, waitpid(sibling, NULL, 0));
	wl_done();
}
