/* Who works on a migration: a lock on a file beside its journal, and in that file who that is. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include "agent/agent.h"
#include "base/clock.h"
#include "kernel/procfs.h"

enum { POLL_NS = 10 * 1000 * 1000 };

void journal_lock_path(char *buf, size_t n, const char *dir, const char *id, const char *role)
{
	snprintf(buf, n, "%s/%s.%s.lock", dir, id, role);
}

int journal_lock_note(int fd, const char *what, struct cr_err *err)
{
	uint64_t start;
	char text[80];
	int r = proc_starttime(getpid(), &start, err);

	if (r)
		return r;
	int n =
	    snprintf(text, sizeof(text), "%d %llu %s\n", getpid(), (unsigned long long)start, what);
	if (pwrite(fd, text, (size_t)n, 0) != n || ftruncate(fd, n))
		return cr_err_sys(err, "noting who works on a migration");
	return 0;
}

/* Whoever settles a migration removes the file, lock and all: then another file has its name, or
 * none. */
static bool is_still(int fd, const char *path)
{
	struct stat a, b;

	return !fstat(fd, &a) && !stat(path, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

int journal_lock(const char *dir, const char *id, const char *role, const char *what,
		 unsigned int timeout_ms, struct cr_err *err)
{
	uint64_t deadline = now_us() + timeout_ms * 1000ull;
	char path[512];

	journal_lock_path(path, sizeof(path), dir, id, role);
	for (;;) {
		_cleanup_fd_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

		if (fd < 0)
			return cr_err_sys(err, "opening %s", path);
		bool mine = !flock(fd, LOCK_EX | LOCK_NB);
		if (mine && is_still(fd, path)) {
			int r = journal_lock_note(fd, what, err);
			return r ? r : take_fd(&fd);
		}
		if (mine)
			continue;
		if (now_us() >= deadline)
			return cr_err_set(err, CR_ERR_INPUT, EBUSY,
					  "migration %s is being worked on already", id);
		nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
	}
}

bool journal_is_held(const char *dir, const char *id, const char *role, struct journal_holder *ret)
{
	char path[512], text[80];
	unsigned long long start;
	struct journal_holder h = {0};
	struct cr_err ignored = {0};
	uint64_t now_start;

	journal_lock_path(path, sizeof(path), dir, id, role);
	_cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || !flock(fd, LOCK_EX | LOCK_NB))
		return false;
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	text[n < 0 ? 0 : n] = 0;
	/* a child of the one that took the lock may have it a moment longer */
	if (sscanf(text, "%d %llu %15s", &h.pid, &start, h.what) != 3 ||
	    proc_starttime(h.pid, &now_start, &ignored) || now_start != start)
		h = (struct journal_holder){0};
	if (ret)
		*ret = h;
	return true;
}
