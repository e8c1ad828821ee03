/* UDP sockets, IPv4 and IPv6: bound, connected, with their options.
 *
 * A socket is bound and connected ahead, under the very address and port that the source's has;
 * whether this host has them, or is to get them, is asked in the preflight. Until it is launched it
 * takes nothing: it hears what comes for the wildcard address from the beginning. Datagrams that
 * wait to be read come with the tree of the final stop (udp_queue.c), multicast groups are joined
 * when it is launched. */
#include "resource/file_kind.h"
#include "resource/multicast.h"
#include "resource/net_ways.h"
#include "resource/reuseport.h"
#include "resource/sock_filter.h"
#include "resource/udp_queue.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif

enum { ADDR_TEXT = 128 };

static bool match(const struct fd_probe *p)
{
	return (p->so_domain == AF_INET || p->so_domain == AF_INET6) && p->so_type == SOCK_DGRAM &&
	       p->so_protocol == IPPROTO_UDP;
}

/* ---- capture ---- */

static int keep_address(struct files_ctx *x, const struct fd_probe *p,
			const struct sockaddr_storage *sa, socklen_t len, const uint8_t **ret,
			uint32_t *ret_len, struct cr_err *err)
{
	const struct sockaddr_in6 *in6 = (const void *)sa;

	if (sa->ss_family == AF_INET6 && in6->sin6_scope_id)
		files_refuse(x, p->pid, p->fd, "UDP socket on a link-local address: not supported");
	*ret = arena_memdup(x->c->tree->arena, sa, len);
	*ret_len = len;
	return *ret ? 0 : cr_err_oom(err);
}

/* What else waits in it, and what cannot be had again of that. */
static int capture_pending(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			   struct cr_err *err)
{
	const struct pending *pend = files_pending(x, p);

	if (!pend)
		return 0;
	if (pend->to_send)
		files_refuse(x, p->pid, p->fd,
			     "UDP socket: a datagram is being put together (UDP_CORK, MSG_MORE): "
			     "not supported; try again once it has been sent");
	if (pend->zerocopied)
		files_refuse(x, p->pid, p->fd,
			     "UDP socket that has sent with MSG_ZEROCOPY: not supported; close it "
			     "first");
	else if (pend->notices)
		files_warn(x, p->pid, p->fd,
			   "UDP socket: %u messages that wait in its error queue (MSG_ERRQUEUE) "
			   "are lost",
			   pend->notices);
	return pend->multicast_if ? sockopts_add_multicast_if(x, f, pend->multicast_if, err) : 0;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct fd_watch w = {.dev = p->st.st_dev,
			     .ino = p->st.st_ino,
			     .file = (uint32_t)x->c->tree->n_files,
			     .kind = WATCH_WARN};
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);

	f->kind = FILE_UDP;
	f->sock_family = p->so_domain;
	f->sock_type = p->so_type;
	f->sock_protocol = p->so_protocol;
	f->uid = p->st.st_uid;
	f->gid = p->st.st_gid;
	if (getsockname(p->local, (struct sockaddr *)&sa, &len))
		return cr_err_sys(err, "getsockname");
	int r = keep_address(x, p, &sa, len, &f->sockaddr, &f->sockaddr_len, err);
	len = sizeof(sa);
	f->connected = !getpeername(p->local, (struct sockaddr *)&sa, &len);
	if (!r && f->connected)
		r = keep_address(x, p, &sa, len, &f->peeraddr, &f->peeraddr_len, err);
	if (!r)
		r = sockopts_capture(x, p, f, err);
	if (!r)
		r = capture_pending(x, p, f, err);
	if (!r)
		r = multicast_get(p->local, p->so_domain, &x->multicast, x->c->tree->arena,
				  &f->groups, &f->n_groups, err);
	if (r == -E2BIG) {
		files_refuse(x, p->pid, p->fd, "UDP socket: %s: not supported", err->msg);
		r = 0;
	}
	return r < 0 ? r : files_watch(x, &w, err);
}

/* ---- check and rebuild ---- */

static bool valid(const struct file *f, const uint8_t *address, uint32_t len)
{
	const struct sockaddr *sa = (const void *)address;

	return (f->sock_family == AF_INET && len == sizeof(struct sockaddr_in) &&
		sa->sa_family == AF_INET) ||
	       (f->sock_family == AF_INET6 && len == sizeof(struct sockaddr_in6) &&
		sa->sa_family == AF_INET6);
}

static bool is_bound(const struct file *f)
{
	const struct sockaddr_in *in = (const void *)f->sockaddr;

	return in->sin_port; /* sin6_port is at the same place */
}

/* An address that moves along is not here yet, netdevice and route being there: so for the moment
 * with the option for those who speak for others. Then as the program had it. */
static int set_transparent(int fd, const struct tree *t, const struct file *f, bool on)
{
	bool v4 = f->sock_family == AF_INET;
	int level = v4 ? IPPROTO_IP : IPPROTO_IPV6, name = v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT;
	int value = on || sockopt_int(f, level, name, 0);

	if (!t->switched && !tree_moves_address(t, f->sockaddr, f->sockaddr_len))
		return 0;
	return setsockopt(fd, level, name, &value, sizeof(value));
}

/* Binding at the time of the preflight shall find out who else has the port: so for the moment not
 * with the options that let two share it. */
static int make(const struct tree *t, const struct file *f, bool alone, struct cr_err *err)
{
	const int off = 0;
	char text[ADDR_TEXT];

	if (!valid(f, f->sockaddr, f->sockaddr_len) ||
	    (f->connected && !valid(f, f->peeraddr, f->peeraddr_len)))
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "address of a UDP socket makes no sense");
	_cleanup_fd_ int fd =
	    socket(f->sock_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_UDP);
	if (fd < 0)
		return cr_err_sys(err, "UDP socket");
	/* sockets that share a port by SO_REUSEPORT have to have one owner */
	if ((f->uid || f->gid) && fchown(fd, f->uid, f->gid))
		return cr_err_sys(err, "owner of a UDP socket");
	int r = sockopts_apply(fd, f, err);
	if (r < 0)
		return r;
	if (alone && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &off, sizeof(off)) ||
		      setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &off, sizeof(off))))
		return cr_err_sys(err, "UDP socket");
	if (set_transparent(fd, t, f, true))
		return cr_err_sys(err, "IP_TRANSPARENT");
	sockaddr_text(f->sockaddr, f->sockaddr_len, text, sizeof(text));
	if (is_bound(f) && bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len))
		return cr_err_set(err, CR_ERR_IO, errno, "UDP socket on %s: %s", text,
				  errno == EADDRNOTAVAIL ? "this host does not have that address"
				  : errno == EADDRINUSE  ? "taken on this host"
							 : strerror(errno));
	if (f->connected && connect(fd, (const struct sockaddr *)f->peeraddr, f->peeraddr_len)) {
		r = errno;
		sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text));
		return cr_err_set(err, CR_ERR_IO, r, "UDP socket connected to %s: %s", text,
				  strerror(r));
	}
	if (set_transparent(fd, t, f, false))
		return cr_err_sys(err, "IP_TRANSPARENT");
	return take_fd(&fd);
}

static bool shares_port(const struct file *f)
{
	return sockopt_int(f, SOL_SOCKET, SO_REUSEADDR, 0) ||
	       sockopt_int(f, SOL_SOCKET, SO_REUSEPORT, 0);
}

static void check(const struct file_check *k, const struct file *f)
{
	struct cr_err err = {0};
	_cleanup_fd_ int fd = make(k->t, f, !shares_port(f), &err);

	if (fd < 0)
		file_check_refuse(k, "%.200s", err.msg);
	for (size_t i = 0; i < f->n_groups; i++)
		if (!multicast_is_possible(&f->groups[i]))
			file_check_refuse(
			    k,
			    "UDP socket in a multicast group over %s: there is no such "
			    "interface here",
			    f->groups[i].dev);
}

static int build_locked(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	int fd = make(t, &t->files[i], false, err);

	if (fd < 0)
		return fd;
	fs->held[i].fd = fd;
	return sock_lock(fd, SOCK_LOCK_ALL, err);
}

/* A socket comes into its group when it is bound: those that have a lower place come first. */
static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	int r = 0;

	for (uint32_t place = 0; f->reuse_group && place < f->reuse_place && !r; place++) {
		uint32_t before = reuseport_member(t, f->reuse_group, place);

		if (before != UINT32_MAX && fs->held[before].fd < 0)
			r = build_locked(fs, t, before, err);
	}
	return r ? r : build_locked(fs, t, i, err);
}

/* Who has left the group meanwhile, left it there and here in another order. */
static int prepare(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i], *built = &fs->held[i].id;

	if (f->reuse_group && (!built->reuse_group || built->reuse_place != f->reuse_place))
		return cr_err_set(
		    err, CR_ERR_KERNEL, EAGAIN,
		    "a program chooses among the UDP sockets of a port, which came or "
		    "went meanwhile; try again");
	return reuseport_attach(fs->held[i].fd, f, err);
}

/* After the decision: what fails is lost, as UDP may. */
static int launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	int fd = fs->held[i].fd;

	if (fs->held[i].launched)
		return 0;
	int r = sockopts_unlock(fd, &t->files[i], err);
	if (r)
		return r;
	udp_launch(fd, &t->files[i], fs->ways);
	return sockopts_lock_filter(fd, &t->files[i], err);
}

const struct file_ops file_ops_udp = {
    .name = "UDP socket",
    .kind = FILE_UDP,
    .match = match,
    .capture = capture,
    .check = check,
    .build = build,
    .prepare = prepare,
    .launch = launch,
};
