/* What the kernel tells about a unix socket, sock_diag(7). */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct unix_diag_info {
	bool listens;
	bool has_peer;      /* connected, or was */
	uint64_t peer_ino;  /* 0: the peer is closed, or was never accepted */
	uint32_t queued;    /* LISTEN: connections that wait; else: bytes, or those of a packet */
	uint32_t queue_max; /* LISTEN: the backlog */
	/* LISTEN: the inodes of the ends that connected, in order; 0: closed. Fewer than queued if
	 * there are too many for one answer. malloc: the caller frees it. */
	uint32_t *waiting;
	uint32_t n_waiting;
	uint32_t shutdown; /* bit 0: for reading, bit 1: for writing (RCV_, SEND_SHUTDOWN) */
};

/* ino: of the socket, in the network namespace of the caller. */
int unix_diag_get(uint64_t ino, struct unix_diag_info *ret, struct cr_err *err) must_check;
