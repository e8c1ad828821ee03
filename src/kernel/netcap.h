/* Copies of what comes in for some addresses over network devices: packet(7). They are kept in the
 * kernel until they are asked for, and go with the descriptor. */
#pragma once
#include "base/devaddr.h"
#include "base/err.h"
#include "kernel/netpacket.h"

struct netcap;

/* From now on, TCP and UDP for these n addresses, whatever device they come over. In the network
 * namespace of the caller. */
int netcap_open(struct netcap **ret, const struct devaddr *v, size_t n,
		struct cr_err *err) must_check;
/* The next one; valid until the next call. 1: there is one, 0: none at present. */
int netcap_next(struct netcap *c, struct net_packet *ret, struct cr_err *err) must_check;
/* No more are taken up; what is there can still be read. */
int netcap_stop(struct netcap *c, struct cr_err *err) must_check;
/* How many there was no room for. */
unsigned int netcap_lost(struct netcap *c);
void netcap_free(struct netcap *c); /* takes NULL */
