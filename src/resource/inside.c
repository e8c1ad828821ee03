#include "resource/inside.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/procfs.h"

enum { GENERATIONS = 256 };

bool inside_tree(const struct tree *t, bool exact, pid_t pid)
{
	struct proc_stat st;
	struct cr_err err;
	pid_t at = pid;

	for (int steps = 0; at > 1 && steps < GENERATIONS; steps++) {
		if (tree_find_process(t, at))
			return true;
		if (exact)
			return false;
		if (!proc_stat_read(at, at, &st, &err))
			at = st.ppid;
		else if (at != pid)
			at = pid; /* a parent has ended meanwhile: there is another one now */
		else
			return false;
	}
	return false;
}

/* By the lines of maps, proc_pid_maps(5). */
static bool maps_it(pid_t pid, const char *name, uint64_t ino)
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
		    n == ino && !strncmp(line + at, name, strlen(name)))
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

pid_t outside_holder(const struct tree *t, bool exact, const char *name, uint64_t dev, uint64_t ino)
{
	_cleanup_dir_ DIR *d = opendir("/proc");

	if (!d)
		return -errno;
	for (struct dirent *e; (e = readdir(d));) {
		pid_t pid = (pid_t)atoi(e->d_name);

		/* in this order: who ends in between is not inside, but has nothing either */
		if (pid > 0 && pid != getpid() && !inside_tree(t, exact, pid) &&
		    (maps_it(pid, name, ino) || (dev && opens_it(pid, dev, ino))))
			return pid;
	}
	return 0;
}
