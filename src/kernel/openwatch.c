#include "kernel/openwatch.h"

#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>

int openwatch_new(void)
{
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int openwatch_add(int inotify, int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int wd = inotify_add_watch(inotify, path, IN_OPEN);
	return wd < 0 ? -errno : wd;
}

void openwatch_read(int inotify, void (*fn)(int watch, void *arg), void *arg)
{
	char buf[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
	ssize_t n;

	/* nothing to read is EAGAIN */
	while ((n = read(inotify, buf, sizeof(buf))) > 0)
		for (ssize_t at = 0; at < n;) {
			const struct inotify_event *e = (const void *)(buf + at);

			fn(e->mask & IN_Q_OVERFLOW ? -1 : e->wd, arg);
			at += (ssize_t)(sizeof(*e) + e->len);
		}
}
