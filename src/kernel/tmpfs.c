#include "kernel/tmpfs.h"

#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/procfs.h"

bool tmpfs_has(int fd)
{
	struct statfs sf;

	return !fstatfs(fd, &sf) && sf.f_type == TMPFS_MAGIC;
}

/* "41 31 0:38 ROOT POINT rw,relatime [optional…] - TYPE SOURCE OPTIONS", proc_pid_mountinfo(5);
 * never is not shown. */
static bool is_small(const char *line, unsigned int maj, unsigned int min)
{
	const char *tail = strstr(line, " - tmpfs ");
	unsigned int a, b;

	return tail && sscanf(line, "%*u %*u %u:%u", &a, &b) == 2 && a == maj && b == min &&
	       !strstr(tail, ",huge=");
}

bool tmpfs_has_small(int fd)
{
	_cleanup_free_ char *text = NULL;
	struct cr_err ignored = {0};
	struct stat st;
	char *save = NULL;
	bool small = false;

	if (!tmpfs_has(fd) || fstat(fd, &st) ||
	    proc_read(getpid(), "mountinfo", &text, &ignored) < 0)
		return false;
	for (char *line = strtok_r(text, "\n", &save); line && !small;
	     line = strtok_r(NULL, "\n", &save))
		small = is_small(line, major(st.st_dev), minor(st.st_dev));
	return small;
}
