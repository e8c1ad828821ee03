/* Packets put into this host's own network stack as if they had just come in over one of its
 * devices: what another host got in this one's place, and what has to be said to a socket that only
 * its peer could say.
 *
 * They go in at a tap(4) device of our own, from which a small program sends them on to the device
 * that they are to have come over: whatever is set up for that device (reverse path filters,
 * firewalls, SO_BINDTODEVICE) holds for them. Needs BPF with BTF and TCX (6.6); nothing is left of
 * it when the descriptors are closed. A packet has been dealt with when the call returns. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "kernel/netpacket.h"

struct netinject;

/* dev: of the caller's network namespace, and Ethernet or like it. */
int netinject_open(struct netinject **ret, const char *dev, struct cr_err *err) must_check;
void netinject_free(struct netinject *n); /* takes NULL */
const char *netinject_device(const struct netinject *n);

int netinject_packet(struct netinject *n, const struct net_packet *p,
		     struct cr_err *err) must_check;

/* A handshake that was finished elsewhere, with its sequence numbers, RFC 7323 included. */
struct netinject_handshake {
	int family;                   /* AF_INET, AF_INET6 */
	uint8_t peer[16], us[16];     /* addresses … */
	uint16_t peer_port, our_port; /* … and ports, in network order */
	uint32_t mss;
	bool wscale, sack, timestamps, usec, ecn;
	uint32_t snd_wscale, rcv_wscale;
	uint32_t peer_clock, our_clock; /* of timestamps, as of now; peer_clock 0: not known */
};
/* p, the third segment of a handshake of whose first two this host knows nothing: it is taken for
 * good by the socket that listens there, and a connection waits to be accepted. 6.9. Errors:
 * -ENOENT: nobody listens. */
int netinject_handshake(struct netinject *n, const struct netinject_handshake *h,
			const struct net_packet *p, struct cr_err *err) must_check;
/* Does this kernel have that? */
bool netinject_knows_handshakes(const struct netinject *n);
