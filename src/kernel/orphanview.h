/* TCP connections that their program has closed, and whose peer has not acknowledged everything yet
 * (orphans: FIN_WAIT1, CLOSING, LAST_ACK). Nobody has a descriptor of one, so that no system call
 * tells what it has still to send: a BPF iterator finds them, and what they are is read where the
 * kernel keeps it (kernel/kread.h). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include "base/err.h"
#include "base/vec.h"

struct orphan {
	int family; /* of the socket */
	struct sockaddr_storage us, peer;
	uint8_t state; /* TCP_FIN_WAIT1, … */
	bool timestamps, sack, wscale;
	uint32_t snd_wscale, rcv_wscale, mss;
	uint32_t clock_offset; /* of our timestamps, as in kernel/reqview.h … */
	bool usec;
	/* sequence numbers; ours counts our FIN, the peer's its own */
	uint32_t snd_una, snd_nxt, write_seq, rcv_nxt;
	uint32_t snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup;
	uint32_t sndbuf, rcvbuf; /* bytes */
	uint8_t *out;            /* from snd_una on, up to the FIN; by malloc(3) */
	size_t out_len;
};

struct orphans {
	VEC(struct orphan) list;
	size_t unread; /* of those asked for: what they are could not be told */
};

void orphans_done(struct orphans *o);

struct orphanview;

int orphanview_new(struct orphanview **ret, struct cr_err *err) must_check;
void orphanview_free(struct orphanview *v); /* takes NULL */
/* Those of this network namespace that wanted() says. take: they are out of the network first, for
 * good: nothing reaches them any more, and of what they send no more than the peer's window has
 * room for gets out, over IPv6; over IPv4 nothing, once their address is gone. */
typedef bool (*orphan_wanted_fn)(const struct orphan *o, void *arg);
int orphanview_read(const struct orphanview *v, bool take, orphan_wanted_fn wanted, void *arg,
		    struct orphans *ret, struct cr_err *err) must_check;
