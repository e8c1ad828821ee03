/* What is pushed, on its way through the destination's page-server (wire/lazy_stream.h,
 * ps_serve.h).
 *
 * The page-server reads a connection, checks what comes, and leaves whole frames as they are in a
 * ring of bytes in shared memory. The fetcher takes them from there: no page is copied in between.
 * The memory is mapped twice in a row on either side, so that each frame is in one piece.
 *
 * Neither believes the other more than a peer. The fetcher looks at each header anew, in a copy of
 * its own; contents may change at any time, and are only ever pages. It never waits for long. */
#pragma once
#include <stdbool.h>
#include "wire/lazy_stream.h"

enum {
	LAZY_RING_BYTES = 1 << 20, /* of frames; more than two of the longest */
	LAZY_RING_WAIT_MS = 100,
};

/* Why nothing more comes. */
enum lazy_ring_end { LAZY_RING_GOES_ON, LAZY_RING_CLOSED, LAZY_RING_NONSENSE, LAZY_RING_DAMAGED };

struct lazy_ring {
	struct lazy_ring_shared *shared;
	uint8_t *data;
	uint32_t at;    /* how far this side is, modulo 2^32 */
	uint32_t frame; /* bytes of the frame that was taken last, and is in use */
};

/* For the fetcher; *fd is to be passed to the page-server. It can be neither shrunk, which would
 * end whoever looks at it by SIGBUS, nor grown. */
int lazy_ring_new(struct lazy_ring *ret, int *fd, struct cr_err *err) must_check;
/* For the page-server; fd stays the caller's. */
int lazy_ring_map(struct lazy_ring *ret, int fd, struct cr_err *err) must_check;
void lazy_ring_unmap(struct lazy_ring *r); /* of zeros, or half made: too */

/* ---- the page-server's side ---- */

/* Reads conn, which stays the caller's, until its end, or until what comes is no good, or the
 * fetcher has stopped. */
void lazy_ring_feed(struct lazy_ring *r, int conn);

/* ---- the fetcher's side ---- */

/* The next frame. 1: there it is; *payload is valid until the next call. 0: none within
 * LAZY_RING_WAIT_MS, or before lazy_ring_stop(), or ever: *why says so. -EPROTO: what is there is
 * no page-server's work. */
int lazy_ring_take(struct lazy_ring *r, struct lazy_frame *ret, const uint8_t **payload,
		   enum lazy_ring_end *why) must_check;
/* By any thread: whoever waits, on either side, does so no longer, and nothing more is fed. */
void lazy_ring_stop(struct lazy_ring *r);
