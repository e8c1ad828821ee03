/* The receiving end of a page stream without its input: bytes in, callbacks out.
 *
 * * The caller puts bytes where page_rx_room() says and tells page_rx_advance() how many. The
 * payload of a batch so lands once, where it is used from. There are two buffers: while a batch is
 * being placed from one, the next comes into the other. No system calls; nothing is believed
 * unchecked. */
#pragma once
#include "wire/page_stream.h"

struct page_rx;

/* A batch that passed all checks that need no state of the receiver. */
struct page_batch {
	uint32_t target;
	size_t nruns;
	const struct page_wire_run *runs;
	uint64_t seq;
	const uint8_t *payload; /* of wire_bytes; data_bytes when it is unpacked */
	size_t wire_bytes;
	size_t data_bytes;
	bool lz4;
};

/* The pages of the DATA runs, in their order: *ret is the payload itself or `room` (data_bytes of
 * memory; not needed unless b->lz4). */
int page_batch_unpack(const struct page_batch *b, uint8_t *room, const uint8_t **ret,
		      struct cr_err *err) must_check;

/* Each returns 0 or a negative errno with *err filled, which page_rx_advance() then returns. What
 * they are given is valid until they return.
 *
 * `batch` may also return PAGE_RX_BUSY: then what it was given stays valid, and no further callback
 * comes, until page_rx_resume(). */
enum { PAGE_RX_BUSY = 1 };
struct page_rx_ops {
	int (*hello)(void *arg, const struct page_hello *h, struct cr_err *err);
	int (*batch)(void *arg, const struct page_batch *b, struct cr_err *err);
	int (*flush)(void *arg, uint64_t seq, struct cr_err *err);
};

/* Bytes of each of the two buffers that one has which has seen its HELLO; before that it takes a
 * few hundred bytes. */
enum { PAGE_RX_READ_AHEAD = 64 * 1024, PAGE_RX_BYTES = PAGE_FRAME_MAX_BYTES + PAGE_RX_READ_AHEAD };

/* NULL when memory is out. */
struct page_rx *page_rx_new(const struct page_rx_ops *ops, void *arg);
void page_rx_free(struct page_rx *rx); /* takes NULL; not from inside a callback */

/* Where the next bytes go and how many may: never 0, except when stalled and after an error. */
void page_rx_room(struct page_rx *rx, char **ret, size_t *ret_len);

/* So many bytes have to come before anything can be handled; at least 1. */
size_t page_rx_missing(const struct page_rx *rx);

/* n bytes have been put there: handles all frames that are complete. After an error the stream is
 * over: every further call fails the same way. */
int page_rx_advance(struct page_rx *rx, size_t n, struct cr_err *err) must_check;

/* A whole frame waits for a batch that is still in use: do not read on before page_rx_resume(). */
bool page_rx_stalled(const struct page_rx *rx);

/* Is part of a frame there, whose rest is still to come? */
bool page_rx_in_frame(const struct page_rx *rx);

/* The batch is no longer in use: handles what came meanwhile. */
int page_rx_resume(struct page_rx *rx, struct cr_err *err) must_check;
