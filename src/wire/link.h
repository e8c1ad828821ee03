/* A connection that carries messages: a frame is a little-endian u32 length and that many bytes of
 * a message (wire/msg.h).
 *
 * Unix and TCP sockets. A TCP link notices a peer that is gone within about 5 seconds, whether
 * something is in flight (TCP_USER_TIMEOUT) or not (keepalive), tcp(7). Not thread safe. Memory:
 * one frame each way, and a frame's memory is only taken as its bytes arrive. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "wire/msg.h"

struct link;

/* address: "IP:PORT", "[V6]:PORT" or "unix:/PATH". Errors: INPUT (address), IO. */
int link_connect(struct link **ret, const char *address, int timeout_ms,
		 struct cr_err *err) must_check;

/* Wrap a connected stream socket (or a pair of pipe ends: in and out) that the link then owns, also
 * on failure. in and out may be the same descriptor. Makes them non-blocking. */
int link_new(struct link **ret, int in, int out, struct cr_err *err) must_check;

void link_free(struct link *l); /* closes; takes NULL */

/* Frames up to MSG_TREE_BYTES are accepted from now on, instead of MSG_BYTES: call it when the peer
 * has proved that it knows the migration's token. */
void link_accept_trees(struct link *l);

/* Frames up to this many bytes only, from now on: for a peer that nobody knows yet. */
void link_set_limit(struct link *l, size_t bytes);

/* Of link_send() from now on. */
void link_set_send_timeout(struct link *l, int timeout_ms);

/* Blocks until the frame is handed to the kernel; -ETIMEDOUT if the peer takes nothing for 10
 * seconds, or what was set. Errors: PEER (-ETIMEDOUT, -ECONNRESET, -EPIPE …), BUG (-EMSGSIZE).
 * After one the link is useless. */
int link_send(struct link *l, const struct msg *m, struct cr_err *err) must_check;

/* One message, which the caller releases with msg_free(). timeout_ms 0: only what is there already;
 * negative: for ever. -ETIMEDOUT: nothing yet, the link is still good. -ECONNRESET: the peer closed
 * the link, between messages or in one. Other errors: -EPROTO, -EMSGSIZE (nonsense), all of kind
 * PEER. */
int link_recv(struct link *l, int timeout_ms, struct msg *ret, struct cr_err *err) must_check;

/* For poll(2): readable when link_recv() may have something, unless link_pending(). */
int link_fd(const struct link *l);
/* A whole message (or an error) is buffered already: poll would not tell. */
bool link_pending(const struct link *l);

/* The connecting side of HELLO: says hello, waits for the answer, which *reply holds (strings
 * included, until msg_free()). An ERROR in its place becomes *err. */
int link_hello(struct link *l, const struct msg_hello *mine, int timeout_ms, struct msg *reply,
	       struct cr_err *err) must_check;

/* Send m and wait for an answer of type want. An ERROR in its place becomes *err, with context
 * "NAME: "; any other type is -EPROTO. */
int link_call(struct link *l, const struct msg *m, enum msg_type want, int timeout_ms,
	      struct msg *reply, struct cr_err *err) must_check;

/* A listening socket, close-on-exec, non-blocking; "IP:0" picks a port. A unix socket that nobody
 * listens on any more is replaced; it is made with mode 0600. Returns the descriptor. Errors:
 * INPUT, IO. */
int link_listen(const char *address, struct cr_err *err) must_check;
/* Where it listens, as text that link_connect() takes. buf holds ADDR_TEXT bytes. */
int link_listen_address(int listen_fd, char *buf, struct cr_err *err) must_check;
/* -EAGAIN if nobody is waiting. */
int link_accept(int listen_fd, struct link **ret, struct cr_err *err) must_check;

static inline void link_freep(struct link **l)
{
	link_free(*l);
}
