/* Multicast groups that a socket has joined, ip(7), ipv6(7). No call lists them: each group that
 * this host has joined is asked for. */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "base/vec.h"
#include "model/tree.h"

struct multicast_host { /* what this host has joined, over which interface */
	VEC(struct membership) list;
	bool read;
};
void multicast_host_done(struct multicast_host *h);

/* Those of fd, a socket of that family, into the arena. h: filled at the first call. -E2BIG: one
 * with more sources than we can tell. */
int multicast_get(int fd, int family, struct multicast_host *h, struct arena *a,
		  struct membership **ret, size_t *n, struct cr_err *err) must_check;
int multicast_join(int fd, const struct membership *m, struct cr_err *err) must_check;
/* Is there such an interface here? */
bool multicast_is_possible(const struct membership *m);
