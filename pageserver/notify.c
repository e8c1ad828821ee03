#include "pageserver/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"

/* A path, or, with '@', a name in the abstract namespace: sd_notify(3). */
static int connect_manager(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	size_t n = strlen(path);
	int fd;

	if ((*path != '/' && *path != '@') || n >= sizeof(a.sun_path))
		return -1;
	memcpy(a.sun_path, path, n);
	if (*path == '@')
		a.sun_path[0] = 0;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&a,
			       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n))) {
		log_warn("$NOTIFY_SOCKET %s: %s", path, strerror(errno));
		close(fd);
		return -1;
	}
	return fd;
}

void notify_init(struct notify *n, int fd)
{
	const char *path = getenv("NOTIFY_SOCKET");

	n->status_fd = fd;
	if (fd >= 0) {
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	}
	n->socket = path && *path ? connect_manager(path) : -1;
}

static void tell_manager(struct notify *n, const char *text)
{
	if (n->socket >= 0 && send(n->socket, text, strlen(text), MSG_NOSIGNAL) < 0)
		log_debug("$NOTIFY_SOCKET: %s", strerror(errno));
}

static void tell_reader(struct notify *n, const char *line)
{
	if (n->status_fd < 0 || write(n->status_fd, line, strlen(line)) >= 0 || errno == EAGAIN)
		return;
	close(n->status_fd);
	n->status_fd = -1;
}

void notify_event(struct notify *n, const char *event, const char *key, const char *value)
{
	char line[400];

	if (key)
		snprintf(line, sizeof(line), "{\"event\":\"%s\",\"%s\":\"%.200s\"}\n", event, key,
			 value);
	else
		snprintf(line, sizeof(line), "{\"event\":\"%s\"}\n", event);
	tell_reader(n, line);
}

void notify_image(struct notify *n, const char *name, const char *state)
{
	char line[400];

	snprintf(line, sizeof(line), "{\"event\":\"image\",\"name\":\"%.100s\",\"state\":\"%s\"}\n",
		 name, state);
	tell_reader(n, line);
}

void notify_ready(struct notify *n, const char *address)
{
	char text[200];

	snprintf(text, sizeof(text), "READY=1\nSTATUS=listening on %.100s\n", address);
	tell_manager(n, text);
	notify_event(n, "ready", "listen", address);
}

void notify_reloading(struct notify *n)
{
	char text[100];

	snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%llu\n",
		 (unsigned long long)(clock_ns(CLOCK_MONOTONIC) / 1000));
	tell_manager(n, text);
	notify_event(n, "reloading", NULL, NULL);
}

void notify_stopping(struct notify *n)
{
	tell_manager(n, "STOPPING=1\nSTATUS=finishing what is about to be decided\n");
	notify_event(n, "stopping", NULL, NULL);
}
