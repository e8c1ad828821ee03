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
void net_ways_free(struct net_ways *w); /* takes NULL */
/* The one for a local address; NULL if there is none. w may be NULL. */
struct netinject *net_ways_to(const struct net_ways *w, const void *sockaddr, size_t len);
/* A packet that came for one of the addresses, elsewhere. Others: PEER, -EPROTO. */
int net_ways_put(const struct net_ways *w, const struct net_packet *p,
		 struct cr_err *err) must_check;
/* Can a connection be made by the end of its handshake? */
bool net_ways_know_handshakes(const struct net_ways *w);
