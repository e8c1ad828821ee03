/* One page stream's connection at the sending end: a frame on its way out, a frame on its way in.
 * Internal to page_tx. Non-blocking; who waits is page_tx. */
#pragma once
#include <sys/uio.h>
#include "base/vec.h"
#include "wire/addr.h"
#include "wire/page_dup.h"
#include "wire/page_stream.h"

/* A page that equals one that went on this stream, and was found when another was filled. */
struct page_owed {
	struct page_dup of;
	uint32_t target;
	uint64_t addr;
	XXH128_hash_t hash;
};

struct page_conn {
	int fd;
	uint16_t index;
	const char *address; /* not owned; for messages */
	uint64_t seq;        /* of the last BATCH or FLUSH */
	struct page_ack sent;
	VEC(struct page_owed) owed;
	/* out: head and what follows it */
	size_t left; /* bytes of the frame not yet sent; 0: idle */
	size_t iov_at, iov_n;
	struct iovec iov[1 + PAGE_BATCH_RUNS];
	uint8_t head[PAGE_HDR_BYTES + PAGE_BATCH_RUNS * PAGE_RUN_BYTES];
	uint8_t *packed; /* page_tx's, for a compressed payload; freed here */
	/* in */
	size_t in_bytes;
	uint8_t in[PAGE_HDR_BYTES + PAGE_ERROR_MAX_BYTES];
	struct page_frame in_frame;
};

/* Starts connecting; POLLOUT tells the end, page_conn_connected() the result. */
int page_conn_connect(struct page_conn *c, const struct addr *addr, struct cr_err *err) must_check;
int page_conn_connected(struct page_conn *c, struct cr_err *err) must_check;

/* Make the frame that goes out: `head` starts with this header and has head_bytes in all; payload
 * pieces follow by page_conn_add(). */
void page_conn_begin(struct page_conn *c, const struct page_frame *f, size_t head_bytes);
void page_conn_add(struct page_conn *c, const void *p, size_t bytes);

/* Send what the socket takes. Returns the bytes sent (0: it takes nothing now). */
ssize_t page_conn_send(struct page_conn *c, struct cr_err *err) must_check;

/* Read what has come. Returns 1 when a whole frame is there (c->in_frame, its payload at
 * c->in + PAGE_HDR_BYTES, until the next call), 0 when not yet. An ERROR frame is returned as the
 * error that it reports, the end of the connection as one too. */
int page_conn_receive(struct page_conn *c, struct cr_err *err) must_check;

void page_conn_done(struct page_conn *c);
