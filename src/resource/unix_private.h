/* What the files that deal with unix sockets share. */
#pragma once
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "resource/file_kind.h"
#include "resource/unix_diag.h"

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE 0x89e0 /* 4.12: O_PATH descriptor of what a socket is bound to */
#endif
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* 5.14 */
#endif

enum { UNIX_NAME_OFF = offsetof(struct sockaddr_un, sun_path) };
enum { UNIX_SHUT_RD = 1, UNIX_SHUT_WR = 2, UNIX_SHUT_BOTH = 3 };

static inline bool unix_has_name(const struct file *f)
{
	return f->sockaddr_len > UNIX_NAME_OFF;
}

static inline bool unix_is_abstract(const struct file *f)
{
	return unix_has_name(f) && !f->sockaddr[UNIX_NAME_OFF];
}

const char *unix_type_name(const struct file *f);

/* ---- names (unix_name.c) ---- */

/* getsockname(2) into f. */
int unix_capture_name(struct files_ctx *x, int fd, struct file *f, struct cr_err *err) must_check;
/* Of a socket that was bound to a path: where its inode is. No path: it is not there any more. */
int unix_capture_path(struct files_ctx *x, int fd, struct file *f, struct cr_err *err) must_check;
/* Destination preflight: can it have that name? */
void unix_check_name(const struct file_check *k, const struct file *f);
/* Bind fd, of h, to f's name; a path is taken over by reserve_launch(). */
int unix_bind_name(struct held *h, int fd, const struct file *f, struct cr_err *err) must_check;
/* Bind fd to that path, as it was given to bind(2), in a directory that is gone afterwards. */
int unix_bind_nowhere(int fd, const struct sockaddr_un *un, size_t len,
		      struct cr_err *err) must_check;
/* The address by which to reach fd, a socket with a name, from this process: *ret_at, which has to
 * be closed then, is an O_PATH descriptor or -1. */
int unix_way_to(int fd, const struct file *f, struct sockaddr_un *un, socklen_t *len, int *ret_at,
		struct cr_err *err) must_check;

/* ---- who made it (unix_maker.c) ---- */

struct unix_maker { /* as SO_PEERCRED reads it */
	pid_t pid;  /* 0: any */
	uint32_t uid, gid;
};
/* A system call by a process of that number, under these effective ids, which ends then; it has our
 * descriptors. ret_fds: the fourth argument is where two descriptors are told, or NULL. Where the
 * number is taken: exactly: -EEXIST or -EINVAL, else somebody of another number does it. */
int unix_call_as(const struct unix_maker *who, bool exactly, const char *what, long nr,
		 const uint64_t args[4], int ret_fds[2], struct cr_err *err) must_check;
/* Destination preflight: will SO_PEERCRED read what it did? If not, that is warned of. */
void unix_check_maker(const struct file_check *k, const struct file *f);

/* ---- what waits to be read ---- */

/* unix_pending.c: it, and the error that is pending, into f. Ahead: no more than what refuses it.
 */
int unix_capture_pending(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err) must_check;

struct unix_peeked {
	VEC(struct unix_message) v; /* what they point to is in the arena */
	VEC(int) fds; /* ours, of all messages in their order: whoever has this closes them */
	bool urgent;  /* something was sent with MSG_OOB */
};

/* unix_peek.c: nothing is taken out. */
int unix_peek(int fd, int type, struct arena *a, struct unix_peeked *ret,
	      struct cr_err *err) must_check;
void unix_peeked_done(struct unix_peeked *q);

/* unix_fill.c: f's messages into h, of which nothing else is in it. And: what the source told of a
 * connection that waits to be accepted, through its other end. */
int unix_fill(struct fileset *fs, const struct tree *t, struct held *h, const struct file *f,
	      struct cr_err *err) must_check;
int unix_fill_through(const struct fileset *fs, int other, const struct file *f,
		      struct cr_err *err) must_check;
void unix_drain(int fd);
/* Something to be read, for a moment. */
bool unix_make_ready(struct held *h, bool on);

/* ---- connections (unix_connect.c, unix_prepare.c) ---- */

/* Made by socketpair(2), or as good as that. */
bool unix_is_pair(const struct tree *t, uint32_t i);
int unix_prepare(struct fileset *fs, const struct tree *t, uint32_t i,
		 struct cr_err *err) must_check;

/* Both ends of f's connection, and what they are bound to. */
int unix_build_connected(struct fileset *fs, const struct tree *t, uint32_t i,
			 struct cr_err *err) must_check;

/* ---- what clients have sent that wait to be accepted (unix_waiting.c) ---- */

/* Source: does any of the tree's wait at that listener? And, after the decision: accept all that
 * do, and add what waits in them to *w. */
bool unix_has_waiting(const struct tree *t, uint32_t listener);
int unix_accept_waiting(int listener, const struct tree *t, struct waiting *w, size_t *cap,
			struct cr_err *err) must_check;
/* Destination: through the client. */
int unix_tell_waiting(const struct fileset *fs, const struct tree *t, const struct file *f,
		      struct cr_err *err) must_check;
