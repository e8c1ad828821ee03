/* Handshakes that listening sockets of the tasks have answered, and that come to their end nowhere
 * once the address is at the destination: their connections come about there as if the third
 * segment had come (net_waiting.c). The peer has connected, or is about to.
 *
 * Asking for them takes a walk over all connections of the host, so that is done beside other
 * work: begin once no handshake can begin any more, end after the decision. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "model/tree.h"

struct arena;
struct net_handshakes;
struct reqview;

/* NULL when memory is out. */
struct net_handshakes *net_handshakes_begin(const struct reqview *view);
/* Adds to *w those of the listener (its SO_COOKIE, and the family that its connections have) that
 * have not become connections of *w meanwhile. Those that had to be answered again are left out:
 * who does not hear us, or does not mean it, is no peer. clock_offset_ns: the tasks'
 * CLOCK_MONOTONIC less ours. */
int net_handshakes_add(struct net_handshakes *h, uint64_t cookie, int family,
		       int64_t clock_offset_ns, struct arena *a, struct waiting *w, size_t *cap,
		       struct cr_err *err) must_check;
void net_handshakes_free(struct net_handshakes *h); /* takes NULL */
/* A fresh entry at the end of *w, which has room for *cap; NULL when memory is out. */
struct file *waiting_push(struct waiting *w, size_t *cap, struct arena *a);
/* Our timestamps (RFC 7323) as TCP_TIMESTAMP would tell them now, the lowest bit as their unit,
 * where the connection's clock is so far from the kernel's. */
uint32_t net_timestamp(uint32_t clock_offset, bool usec);
