/* Connections that nobody had accepted at the source come about here by the end of their handshake,
 * and are told what they had received. The one way to have room for that in a socket that nobody
 * holds is to have its listener have it when it comes about. */
#include "resource/file_kind.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/log.h"
#include "resource/net_ways.h"
#include "resource/tcp_repair.h"
#include "resource/unix_private.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* 5.14 */
#endif
#ifndef SOCK_RCVBUF_LOCK
#define SOCK_RCVBUF_LOCK 2
#endif

enum { PLENTY_BYTES = 16 * 1024, ROOM_MIN_BYTES = 256 * 1024 };

static uint16_t port_of(const struct file *f)
{
	/* sin_port and sin6_port are at one place */
	return f->sockaddr_len >= sizeof(struct sockaddr_in)
		   ? ((const struct sockaddr_in *)f->sockaddr)->sin_port
		   : 0;
}

static int get_int(int fd, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, SOL_SOCKET, name, &v, &len) ? 0 : v;
}

static void set_int(int fd, int name, int value)
{
	if (setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value)))
		log_warn("room in a listening socket: %s", strerror(errno));
}

struct room {
	int size, lock; /* as it was */
};

/* Connections inherit the size, and whether the kernel may change it. */
static void make_room(int fd, size_t bytes, struct room *before)
{
	*before = (struct room){get_int(fd, SO_RCVBUF), get_int(fd, SO_BUF_LOCK)};
	if ((size_t)before->size >= bytes)
		return;
	set_int(fd, SO_RCVBUFFORCE, (int)(bytes / 2)); /* doubled, socket(7) */
	set_int(fd, SO_BUF_LOCK, before->lock & ~SOCK_RCVBUF_LOCK);
}

static void room_as_before(int fd, const struct room *before)
{
	if (get_int(fd, SO_RCVBUF) == before->size)
		return;
	set_int(fd, SO_RCVBUFFORCE, before->size / 2);
	set_int(fd, SO_BUF_LOCK, before->lock);
}

static int tell_one(struct fileset *fs, const struct tree *t, const struct file *f,
		    struct netinject *in, struct cr_err *err)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC) + (uint64_t)fs->monotonic_off_ns;
	bool much = f->tcp->in_len > PLENTY_BYTES;
	_cleanup_free_ struct room *rooms = calloc(fs->n_held + 1, sizeof(*rooms));

	if (!rooms)
		return cr_err_oom(err);
	for (uint32_t i = 0; much && i < fs->n_held; i++)
		if (t->files[i].kind == FILE_TCP_LISTEN && port_of(&t->files[i]) == port_of(f))
			make_room(fs->held[i].fd, 4 * f->tcp->in_len + ROOM_MIN_BYTES, &rooms[i]);
	int r = tcp_tell_waiting(f, now, in, err);
	for (uint32_t i = 0; i < fs->n_held; i++)
		if (rooms[i].size)
			room_as_before(fs->held[i].fd, &rooms[i]);
	return r;
}

/* ---- both ends are here ---- */

/* The end that connected, in the tree; n_files: it is gone. */
static uint32_t find_client(const struct tree *t, const struct file *f)
{
	uint8_t us[TCP_END_BYTES], peer[TCP_END_BYTES], other[TCP_END_BYTES];

	tcp_end(f->sockaddr, us);
	tcp_end(f->peeraddr, peer);
	for (uint32_t i = 0; i < t->n_files; i++) {
		if (t->files[i].kind != FILE_TCP_CONN || t->files[i].waits_at == UINT32_MAX)
			continue;
		tcp_end(t->files[i].sockaddr, other);
		if (memcmp(other, peer, sizeof(other)))
			continue;
		tcp_end(t->files[i].peeraddr, other);
		if (!memcmp(other, us, sizeof(other)))
			return i;
	}
	return (uint32_t)t->n_files;
}

/* 1: done, 0: its other end is elsewhere. */
static int tell_inside(const struct fileset *fs, const struct tree *t, const struct file *f,
		       struct cr_err *err)
{
	uint32_t i = find_client(t, f);
	int r;

	if (i < t->n_files)
		r = tcp_connect_again(fs->held[i].fd, &t->files[i], f, err);
	else if (net_is_inside(t, f) && f->tcp->state == TCP_CLOSE_WAIT)
		r = tcp_connect_for(f, err);
	else
		return 0;
	return r ? r : 1;
}

/* Nobody has told what was sent over them: whoever has them finds them broken. */
static void break_others(const struct fileset *fs, const struct tree *t)
{
	for (uint32_t i = 0; i < t->n_files && i < fs->n_held; i++) {
		const struct file *f = &t->files[i];
		struct cr_err why = {0};

		if (f->kind != FILE_TCP_CONN || f->waits_at == UINT32_MAX ||
		    !tcp_is_in_repair(fs->held[i].fd))
			continue;
		log_warn("a connection that nobody had accepted is lost");
		if (tcp_launch(fs->held[i].fd, f, 0, NULL, &why))
			log_warn("%s", why.msg);
	}
}

static void tell_tcp(struct fileset *fs, const struct tree *t, const struct file *f)
{
	struct netinject *in = net_ways_to(fs->ways, f->sockaddr, f->sockaddr_len);
	struct cr_err why = {0};
	char text[128];
	int r = tell_inside(fs, t, f, &why);

	if (!r && in) /* else its address has stayed where it was */
		r = tell_one(fs, t, f, in, &why);
	if (r < 0)
		log_warn("connection of %s, which nobody had accepted: %s",
			 sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text)), why.msg);
}

void fileset_tell_waiting(struct fileset *fs, const struct tree *t, const struct waiting *list)
{
	for (size_t i = 0; i < list->n && fs->n_held == t->n_files; i++) {
		const struct file *f = &list->list[i];
		struct cr_err why = {0};

		if (f->kind != FILE_UNIX_CONN)
			tell_tcp(fs, t, f);
		else if (unix_tell_waiting(fs, t, f, &why))
			log_warn("unix connection that nobody had accepted: %s", why.msg);
	}
	break_others(fs, t);
}
