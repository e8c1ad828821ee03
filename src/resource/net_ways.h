/* Ways into this host's network stack for what comes, or would come, for certain addresses. */
#pragma once
#include <stdbool.h>
#include "base/devaddr.h"
#include "base/err.h"
#include "kernel/netpacket.h"
#include "model/tree.h"

struct netinject;
struct net_ways;

/* At the devices of these addresses, which need not be there yet. Takes a few milliseconds. */
int net_ways_open(struct net_ways **ret, const struct devaddr *v, size_t n,
		  struct cr_err *err) must_check;
/* For all that t moves, and what others have moved here with it. Nothing to do: *ret is NULL. */
int net_ways_open_for(struct net_ways **ret, const struct tree *t, struct cr_err *err) must_check;
/* The addresses of t: those that move along, and if others are moved by somebody else the local
 * ones of its sockets that this host has; any: those of listeners on any address, too. *ret by
 * malloc(3). */
int net_list_addresses(const struct tree *t, bool any, struct devaddr **ret, size_t *n,
		       struct cr_err *err) must_check;
void net_ways_free(struct net_ways *w); /* takes NULL */
/* The one for a local address; NULL if there is none. w may be NULL. */
struct netinject *net_ways_to(const struct net_ways *w, const void *sockaddr, size_t len);
/* A packet that came for one of the addresses, elsewhere. Others: PEER, -EPROTO. */
int net_ways_put(const struct net_ways *w, const struct net_packet *p,
		 struct cr_err *err) must_check;
/* Can a connection be made by the end of its handshake? */
bool net_ways_know_handshakes(const struct net_ways *w);
