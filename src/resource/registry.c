/* The kinds of open file descriptions. Adding one: its file, and its line here. */
#include "resource/file_kind.h"

/* In the order in which they are asked whether a description is theirs. */
#define KINDS(KIND)                                                                                \
	KIND(unlinked)                                                                             \
	KIND(regular)                                                                              \
	KIND(pidfd)                                                                                \
	KIND(inotify)                                                                              \
	KIND(pty_master)                                                                           \
	KIND(pty_slave)                                                                            \
	KIND(tty)                                                                                  \
	KIND(chardev)                                                                              \
	KIND(pipe)                                                                                 \
	KIND(eventfd)                                                                              \
	KIND(timerfd)                                                                              \
	KIND(signalfd)                                                                             \
	KIND(epoll)                                                                                \
	KIND(memfd)                                                                                \
	KIND(tcp_listen)                                                                           \
	KIND(tcp_idle)                                                                             \
	KIND(tcp_conn)                                                                             \
	KIND(tcp_closed)                                                                           \
	KIND(unix_listen)                                                                          \
	KIND(udp)                                                                                  \
	KIND(unix_conn)                                                                            \
	KIND(refused) /* last: takes what is left */

#define DECLARE(name) extern const struct file_ops file_ops_##name;
KINDS(DECLARE)
#define ENTRY(name) &file_ops_##name,
static const struct file_ops *const all[] = {KINDS(ENTRY) NULL};

const struct file_ops *file_ops_match(const struct fd_probe *p)
{
	const struct file_ops *const *ops = all;

	while (!(*ops)->match(p))
		ops++;
	return *ops;
}

const struct file_ops *file_ops_of(enum file_kind kind)
{
	for (const struct file_ops *const *ops = all; kind && *ops; ops++)
		if ((*ops)->kind == kind)
			return *ops;
	return NULL;
}

const struct file_ops *const *file_ops_all(void)
{
	return all;
}
