#include "resource/carried.h"

#include <dirent.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/procfs.h"

static const char shm_dir[] = "/dev/shm/";

bool carried_is_shm(const char *path)
{
	return !strncmp(path, shm_dir, sizeof(shm_dir) - 1);
}

bool carried_can(const char *path, bool *ret_shm)
{
	struct statfs sf;
	struct stat st;

	if (lstat(path, &st) || !S_ISREG(st.st_mode) || statfs(path, &sf))
		return false;
	switch ((uint32_t)sf.f_type) {
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
		*ret_shm = sf.f_type == TMPFS_MAGIC && carried_is_shm(path);
		return true;
	}
}

/* ---- who else has it ---- */

/* By the lines of maps, proc_pid_maps(5). */
static bool maps_it(pid_t pid, const char *path, uint64_t ino)
{
	_cleanup_free_ char *text = NULL;
	struct cr_err ignored = {0};
	char *save = NULL;

	if (proc_read(pid, "maps", &text, &ignored) < 0)
		return false;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		unsigned long long n;
		int at = 0;

		if (sscanf(line, "%*x-%*x %*s %*x %*x:%*x %llu %n", &n, &at) == 1 && at &&
		    n == ino && !strcmp(line + at, path))
			return true;
	}
	return false;
}

static bool opens_it(pid_t pid, uint64_t dev, uint64_t ino)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	_cleanup_dir_ DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));) {
		struct stat st;

		if (e->d_name[0] != '.' && !fstatat(dirfd(d), e->d_name, &st, 0) &&
		    st.st_dev == dev && st.st_ino == ino)
			return true;
	}
	return false;
}

void carried_refuse_shared(const struct tree *t, const char *path, uint64_t dev, uint64_t ino,
			   struct refusals *refused)
{
	_cleanup_dir_ DIR *d = opendir("/proc");

	for (struct dirent *e; d && (e = readdir(d));) {
		pid_t pid = (pid_t)atoi(e->d_name);

		if (pid <= 0 || tree_find_process(t, pid) || pid == getpid() ||
		    (!maps_it(pid, path, ino) && !opens_it(pid, dev, ino)))
			continue;
		refuse(refused, t->root_pid, path,
		       "shared memory that process %d, which does not move, has as well: not "
		       "supported; move it too",
		       pid);
		return;
	}
}

/* ---- afterwards ---- */

void carried_drop(const struct journal_carried *c)
{
	struct stat ours, there;

	if (!c->temp || stat(c->temp, &ours))
		return; /* not made, or the tasks' by now */
	if (!lstat(c->path, &there) && there.st_dev == ours.st_dev && there.st_ino == ours.st_ino)
		unlink(c->path);
	unlink(c->temp);
}

void carried_undo(const struct journal *j)
{
	vec_foreach (c, &j->carried)
		carried_drop(c);
	for (size_t i = j->dirs.n; i-- > 0;)
		rmdir(j->dirs.v[i]); /* if it is empty: else it is somebody else's as well */
}

void carried_keep(const struct journal *j)
{
	vec_foreach (c, &j->carried)
		if (c->temp)
			unlink(c->temp);
}

void carried_give(const struct journal *j)
{
	struct stat st;

	vec_foreach (c, &j->carried)
		if (!c->temp && !lstat(c->path, &st) && st.st_dev == c->dev && st.st_ino == c->ino)
			unlink(c->path);
}
