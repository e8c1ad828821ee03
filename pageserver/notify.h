/* What happens, for who started us: one JSON object a line on --status-fd, and a service manager's
 * socket, sd_notify(3). Neither is ever waited for: a reader that does not read misses lines. */
#pragma once

struct notify {
	int status_fd; /* -1: none */
	int socket;    /* connected to $NOTIFY_SOCKET; -1: none */
};

/* fd: -1 or of --status-fd, which becomes ours. */
void notify_init(struct notify *n, int fd);
/* event and two more words of plain text; NULL: left out. */
void notify_event(struct notify *n, const char *event, const char *key, const char *value);
void notify_image(struct notify *n, const char *name, const char *state);
void notify_ready(struct notify *n, const char *address);
void notify_reloading(struct notify *n); /* notify_ready() ends it */
void notify_stopping(struct notify *n);
