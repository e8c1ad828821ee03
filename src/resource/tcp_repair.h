/* One TCP connection taken out of one socket and put into another: TCP_REPAIR, tcp(7).
 *
 * At the source: tcp_lock, tcp_dump; then either tcp_release (it goes on there) or close(2), which
 * sends nothing. At the destination: tcp_rebuild into a fresh socket, and tcp_launch once packets
 * for it come to this host. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "model/tree.h"

/* The socket drops whatever comes in, before TCP sees it. Not if a filter of the program's own is
 * there: UNSUPPORTED. */
int tcp_lock(int fd, struct cr_err *err) must_check;
/* Is it our lock that is on it? */
bool tcp_is_locked(int fd);
/* Nothing to do where it is not locked. Children that were accepted meanwhile inherit the lock. */
int tcp_unlock(int fd, struct cr_err *err) must_check;

/* What the program attached, SO_ATTACH_FILTER or SO_ATTACH_BPF; a lock of ours is none. */
bool tcp_has_filter(int fd);
/* Is it taken out of TCP's hands? Not for sockets that are no TCP sockets. */
bool tcp_is_in_repair(int fd);

/* Everything about a locked connection, allocated from a; it neither sends nor answers from then
 * on. now_ns: CLOCK_MONOTONIC of the tasks. */
int tcp_dump(int fd, struct arena *a, uint64_t now_ns, struct tcp_conn *ret,
	     struct cr_err *err) must_check;
/* How much the network has told a connection so far: equal before and after means that nothing came
 * in between. */
struct tcp_heard {
	uint64_t received, acked;
	uint32_t state;
};
int tcp_heard(int fd, struct tcp_heard *ret, struct cr_err *err) must_check;
/* It goes on as if nothing had been, and unlocked. reuseaddr: SO_REUSEADDR as it was. */
int tcp_release(int fd, int reuseaddr, struct cr_err *err) must_check;

/* f (TCP_CONN, with f->tcp) into the fresh socket fd, which stays in repair mode: nothing is sent,
 * and close(2) is silent. Its address need not be here yet. */
int tcp_rebuild(int fd, const struct file *f, struct cr_err *err) must_check;
/* It talks to its peer again. now_ns: CLOCK_MONOTONIC of the tasks. May be repeated after somebody
 * else's attempt got lost half way. */
int tcp_launch(int fd, const struct file *f, uint64_t now_ns, struct cr_err *err) must_check;
