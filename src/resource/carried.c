#include "resource/carried.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "resource/inside.h"

static const char shm_dir[] = "/dev/shm/";

bool carried_is_shm(const char *path)
{
	return !strncmp(path, shm_dir, sizeof(shm_dir) - 1);
}

/* Not what a kernel makes of itself. */
static bool of_storage(const struct statfs *sf)
{
	switch ((uint32_t)sf->f_type) {
	case PROC_SUPER_MAGIC:
	case SYSFS_MAGIC:
	case CGROUP_SUPER_MAGIC:
	case CGROUP2_SUPER_MAGIC:
	case DEBUGFS_MAGIC:
	case TRACEFS_MAGIC:
	case SECURITYFS_MAGIC:
	case SELINUX_MAGIC:
	case HUGETLBFS_MAGIC:
		return false;
	default:
		return true;
	}
}

bool carried_can(const char *path, bool *ret_shm)
{
	struct statfs sf;
	struct stat st;

	if (lstat(path, &st) || !S_ISREG(st.st_mode) || statfs(path, &sf) || !of_storage(&sf))
		return false;
	*ret_shm = sf.f_type == TMPFS_MAGIC && carried_is_shm(path);
	return true;
}

bool carried_can_directory(const char *path)
{
	struct statfs sf;
	struct stat st;

	return !lstat(path, &st) && S_ISDIR(st.st_mode) && !statfs(path, &sf) && of_storage(&sf);
}

void carried_refuse_shared(const struct tree *t, bool exact, const char *path, uint64_t dev,
			   uint64_t ino, struct refusals *refused)
{
	pid_t pid = outside_holder(t, exact, path, dev, ino);

	if (pid > 0)
		refuse(refused, t->root_pid, path,
		       "shared memory that process %d, which does not move, has as well: not "
		       "supported; move it too",
		       pid);
}

/* ---- what is left behind ---- */

static const char mark_name[] = "trusted.cr-migrate.left";

/* What tells that it was not touched since. */
static void mark_text(const struct stat *st, char *buf, size_t size)
{
	snprintf(buf, size, "%llu %llu %lld.%09ld", (unsigned long long)st->st_ino,
		 (unsigned long long)st->st_size, (long long)st->st_mtim.tv_sec,
		 st->st_mtim.tv_nsec);
}

void carried_leave(const char *path, uint64_t dev, uint64_t ino)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	char text[80];

	if (fd < 0 || fstat(fd, &st) || st.st_dev != dev || st.st_ino != ino)
		return;
	mark_text(&st, text, sizeof(text));
	/* without it nothing is ever replaced */
	if (fsetxattr(fd, mark_name, text, strlen(text), 0))
		return;
}

bool carried_is_mark(const char *xattr)
{
	return !strcmp(xattr, mark_name);
}

bool carried_is_left(const char *path)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char want[80], text[80];
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return false;
	ssize_t n = fgetxattr(fd, mark_name, text, sizeof(text) - 1);
	mark_text(&st, want, sizeof(want));
	if (n != (ssize_t)strlen(want) || memcmp(text, want, (size_t)n))
		return false;
	const struct tree nobody = {0};
	return !outside_holder(&nobody, true, path, st.st_dev, st.st_ino);
}

static void beside(char *buf, size_t size, const char *temp, const char *what)
{
	snprintf(buf, size, "%s%s", temp, what);
}

int carried_replace(const char *temp, const char *path, struct cr_err *err)
{
	char old[PATH_MAX], new[PATH_MAX];

	beside(old, sizeof(old), temp, ".old");
	beside(new, sizeof(new), temp, ".new");
	if (link(path, old) || link(temp, new) || rename(new, path))
		return cr_err_sys(err, "putting %s in its place", path);
	return 0;
}

/* ---- afterwards ---- */

void carried_drop(const struct journal_carried *c)
{
	char old[PATH_MAX], new[PATH_MAX];
	struct stat ours, there;

	if (!c->temp || stat(c->temp, &ours))
		return; /* not made, or the tasks' by now */
	beside(old, sizeof(old), c->temp, ".old");
	beside(new, sizeof(new), c->temp, ".new");
	if (!lstat(c->path, &there) && there.st_dev == ours.st_dev && there.st_ino == ours.st_ino &&
	    rename(old, c->path))
		unlink(c->path);
	unlink(old);
	unlink(new);
	unlink(c->temp);
}

void carried_undo(const struct journal *j)
{
	vec_foreach (c, &j->carried)
		carried_drop(c);
	for (size_t i = j->dirs.n; i-- > 0;)
		rmdir(j->dirs.v[i]); /* if it is empty: else it is somebody else's as well */
}

/* What it took the place of first: whoever comes after a death here goes by the other. */
static void forget_temp(const char *temp)
{
	char old[PATH_MAX];

	beside(old, sizeof(old), temp, ".old");
	unlink(old);
	unlink(temp);
}

void carried_keep(const struct journal *j)
{
	vec_foreach (c, &j->carried)
		if (c->temp)
			forget_temp(c->temp);
}

void carried_give(const struct journal *j)
{
	struct stat st;

	vec_foreach (c, &j->carried)
		if (!c->temp && !lstat(c->path, &st) && st.st_dev == c->dev && st.st_ino == c->ino)
			unlink(c->path);
}
