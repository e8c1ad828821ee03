/* TCP handshakes that have been answered by a listening socket, but whose third segment has not
 * come yet: nothing but a BPF iterator (kernel/bpf_iter.h; iter/tcp, 5.9) tells their sequence
 * numbers. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/vec.h"

struct handshake {
	int family;                   /* AF_INET, AF_INET6 */
	uint8_t peer[16], us[16];     /* addresses … */
	uint16_t peer_port, our_port; /* … and ports, in network order */
	uint64_t listener; /* SO_COOKIE of whoever answered it; 0: nobody has asked for it yet */
	uint32_t rcv_seq, snd_seq; /* of the first byte that each side will send */
	uint32_t mss, snd_wscale, rcv_wscale;
	uint32_t clock_offset; /* of our timestamps: to the kernel's clock (CLOCK_MONOTONIC) … */
	bool usec;             /* … in microseconds, not milliseconds */
	bool timestamps, sack, wscale, ecn;
	unsigned int answers; /* sent once more, since nothing came */
};
struct handshakes {
	VEC(struct handshake) list;
};

struct reqview;

int reqview_new(struct reqview **ret, struct cr_err *err) must_check;
void reqview_free(struct reqview *v); /* takes NULL */
/* All of this network namespace, to the end of *ret. */
int reqview_read(const struct reqview *v, struct handshakes *ret, struct cr_err *err) must_check;
