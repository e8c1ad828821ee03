/* Connections that a program has closed while what it sent last was not acknowledged: the kernel
 * sees them to their end, and nobody has a descriptor by which they could be taken along. They are
 * read out of the kernel's memory after the decision (kernel/orphanview.h), when their address has
 * left and nothing reaches or leaves them any more; rebuilt at the destination before the address
 * is there, so that nothing for them is answered by a reset; and closed there once more. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include "base/err.h"
#include "model/tree.h"

struct net_ways;
struct orphanview;

/* Does this socket lose its address by the move? */
bool net_loses_address(const struct tree *t, const struct sockaddr_storage *us);
/* Has this host any such connection? Without walking all connections. */
bool net_has_closed(void);
/* Those that lose their address to w->closed, into t's arena. *ret_lost: so many could not be read.
 */
int net_closed_collect(const struct orphanview *v, const struct tree *t, struct waiting *w,
		       size_t *ret_lost, struct cr_err *err) must_check;

/* They run elsewhere: what is left of them here, where they have no address any more, would only be
 * in the way of their coming back. Their peers are told, if there is a way there: over IPv6 there
 * is. */
void net_closed_end(const struct file *list, size_t n);

/* ---- at the destination ---- */

struct net_closed;

/* Sockets for them, which neither send nor answer. What fails is logged. NULL: nothing to do, or
 * memory is out. */
struct net_closed *net_closed_rebuild(const struct waiting *w);
void net_closed_free(struct net_closed *c); /* without a word to anybody; takes NULL */
/* Once their address is here: they go on, and nobody has them. now_ns: of the tasks'
 * CLOCK_MONOTONIC. Frees c; takes NULL. */
void net_closed_launch(struct net_closed *c, const struct tree *t, const struct net_ways *ways,
		       uint64_t now_ns);
