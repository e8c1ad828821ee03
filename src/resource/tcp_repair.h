/* One TCP connection taken out of one socket and put into another: TCP_REPAIR, tcp(7).
 *
 * At the source: sock_lock, tcp_dump; then either tcp_release (it goes on there) or close(2), which
 * sends nothing. At the destination: tcp_rebuild into a fresh socket, and tcp_launch once packets
 * for it come to this host. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "model/tree.h"

struct netinject;

/* Is it taken out of TCP's hands? Not for sockets that are no TCP sockets. */
bool tcp_is_in_repair(int fd);

/* How much the network has told a connection so far: equal before and after means that nothing came
 * in between. */
struct tcp_heard {
	uint64_t received, acked;
	uint32_t state;
};
int tcp_heard(int fd, struct tcp_heard *ret, struct cr_err *err) must_check;
/* Everything about a locked connection, allocated from a; it neither sends nor answers from then
 * on. now_ns: CLOCK_MONOTONIC of the tasks. */
int tcp_dump(int fd, struct arena *a, uint64_t now_ns, struct tcp_conn *ret,
	     struct tcp_heard *ret_heard, struct cr_err *err) must_check;
/* It goes on as if nothing had been, and unlocked. reuseaddr: SO_REUSEADDR as it was. */
int tcp_release(int fd, int reuseaddr, struct cr_err *err) must_check;

/* f (TCP_CONN, with f->tcp) into the fresh socket fd, which stays in repair mode: nothing is sent,
 * and close(2) is silent. Its address need not be here yet. */
int tcp_rebuild(int fd, const struct file *f, struct cr_err *err) must_check;
/* It talks to its peer again. in: of the device that its packets come over; NULL: none. May be
 * repeated after somebody else's attempt got lost half way. */
int tcp_launch(int fd, const struct file *f, uint64_t now_ns, struct netinject *in,
	       struct cr_err *err) must_check;
/* Has the peer said anything that a socket can only be told by the network: urgent data, its end?
 * Then tcp_launch() needs a way in for packets. */
bool tcp_needs_telling(const struct tcp_conn *c);

/* An address, as IPv6, and port: what is equal is one. */
enum { TCP_END_BYTES = 18 };
void tcp_end(const void *sockaddr, uint8_t out[TCP_END_BYTES]);
/* Of a connection with both ends in the tree, of which nobody has accepted the other one, waiting:
 * fd, of f, connects to its listener again, and sends what has been sent. After tcp_rebuild(). */
int tcp_connect_again(int fd, const struct file *f, const struct file *waiting,
		      struct cr_err *err) must_check;
/* The same for one whose end that connected is gone: that has sent all, and ended. */
int tcp_connect_for(const struct file *waiting, struct cr_err *err) must_check;

/* ---- tcp_tell.c ---- */

/* What tcp_needs_telling(), to a socket that is launched. The task gets no SIGURG for it. May be
 * repeated. in NULL: an error, unless there is nothing to be told. */
int tcp_tell(int fd, const struct file *f, struct netinject *in, struct cr_err *err) must_check;
/* f, a connection that nobody had accepted, waits here to be accepted by whoever listens for it. */
int tcp_tell_waiting(const struct file *f, uint64_t now_ns, struct netinject *in,
		     struct cr_err *err) must_check;
/* The connection's own clock (RFC 7323) at now_ns of the tasks' CLOCK_MONOTONIC. */
uint32_t tcp_timestamp_at(const struct tcp_conn *c, uint64_t now_ns);
