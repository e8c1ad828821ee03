/* The destination's half of moving connections, beside what is done to each (file_tcp_conn.c): the
 * addresses, and the end of a launch that somebody else has begun. */
#include "resource/file_kind.h"

#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include "base/clock.h"
#include "base/log.h"
#include "kernel/netdev.h"
#include "kernel/timens.h"
#include "resource/net_ways.h"
#include "resource/sock_filter.h"
#include "resource/tcp_repair.h"
#include "resource/udp_queue.h"

void net_check(const struct tree *t, struct refusals *refused)
{
	for (size_t i = 0; i < t->n_moved; i++) {
		char text[DEVADDR_TEXT];
		struct cr_err err = {0};
		bool has;

		devaddr_text(&t->moved[i], text);
		if (netdev_has_address(&t->moved[i], &has, NULL, &err))
			refuse(refused, 0, text, "%s", err.msg);
		else if (has)
			refuse(refused, 0, text,
			       "this host has that address already: it cannot move here");
	}
}

bool net_needs_launch(const struct tree *t)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_TCP_CONN || t->files[i].kind == FILE_UDP)
			return true;
	return t->n_moved > 0 || t->switched;
}

int net_take_addresses(const struct tree *t, int *announce_fd, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_moved; i++) {
		int r = netdev_add_address(&t->moved[i], err);
		struct cr_err why = {0};

		if (r)
			return r;
		/* those who are not told find out when what they know of it gets old */
		if (netdev_announce(&t->moved[i], announce_fd, &why))
			log_warn("%s", why.msg);
	}
	return 0;
}

bool net_is_inside(const struct tree *t, const struct file *f)
{
	const struct sockaddr_in *in = (const void *)f->peeraddr;
	const struct sockaddr_in6 *in6 = (const void *)f->peeraddr;
	const uint8_t *v4 = (const uint8_t *)&in->sin_addr;

	if (in->sin_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr))
		return true;
	if (in->sin_family == AF_INET6)
		v4 = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) ? &in6->sin6_addr.s6_addr[12] : NULL;
	return (v4 && v4[0] == IN_LOOPBACKNET) ||
	       tree_moves_address(t, f->peeraddr, f->peeraddr_len);
}

/* ---- in somebody else's place ---- */

static void finish_one(int pidfd, int number, const struct tree *t, const struct file *f,
		       const struct net_ways *w, uint64_t now)
{
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	struct cr_err why = {0};

	if (fd >= 0 && t->switched && f->kind != FILE_UDP && sock_unlock(fd, &why))
		log_warn("socket, fd %d: %s", number, why.msg);
	/* one that is not locked has been launched */
	if (fd >= 0 && f->kind == FILE_UDP && sock_is_locked(fd) && !sockopts_unlock(fd, f, &why))
		udp_launch(fd, f, w);
	if (fd >= 0 && f->kind != FILE_TCP_CONN && sockopts_lock_filter(fd, f, &why))
		log_warn("socket, fd %d: %s", number, why.msg);
	if (f->kind != FILE_TCP_CONN)
		return;
	if (fd < 0)
		log_warn("TCP connection, fd %d: %s", number, strerror(errno));
	else if (tcp_launch(fd, f, now,
			    net_is_inside(t, f) ? NULL
						: net_ways_to(w, f->sockaddr, f->sockaddr_len),
			    &why))
		log_warn("TCP connection, fd %d: %s", number, why.msg);
}

static void net_ways_freep(struct net_ways **w)
{
	net_ways_free(*w);
}

int net_finish_launch(const struct tree *t, struct cr_err *err)
{
	_cleanup_(net_ways_freep) struct net_ways *ways = NULL;
	struct cr_err why = {0};
	_cleanup_free_ bool *done = calloc(t->n_files + 1, sizeof(*done));
	struct timens_offsets own, theirs;

	if (!done)
		return cr_err_oom(err);
	if (net_ways_open_for(&ways, t, &why))
		log_warn("%s", why.msg);
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];
		_cleanup_fd_ int pidfd = p->zombie ? -1 : (int)syscall(SYS_pidfd_open, p->pid, 0);

		if (pidfd < 0 || timens_read(0, &own, err) || timens_read(p->pid, &theirs, err))
			continue; /* it has ended since */
		uint64_t now =
		    clock_ns(CLOCK_MONOTONIC) + (uint64_t)(theirs.monotonic - own.monotonic);
		for (size_t k = 0; k < p->n_fds; k++) {
			uint32_t file = p->fds[k].file;

			bool conn = t->files[file].kind == FILE_TCP_CONN && t->files[file].tcp;

			bool locked = t->switched && t->files[file].kind == FILE_TCP_LISTEN;

			if (done[file] || (!conn && !locked && t->files[file].kind != FILE_UDP))
				continue;
			done[file] = true;
			finish_one(pidfd, p->fds[k].fd, t, &t->files[file], ways, now);
		}
	}
	return 0;
}
