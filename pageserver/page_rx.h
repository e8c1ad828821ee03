/* The receiving end of a page stream without its input: bytes in, callbacks out.
 *
 * The caller puts bytes where page_rx_room() says and tells page_rx_advance() how many. The payload
 * of a batch so lands once, where it is used from. No system calls; nothing is believed unchecked.
 */
#pragma once
#include "wire/page_stream.h"

struct page_rx;

/* A batch that passed all checks that need no state of the receiver. */
struct page_batch {
	uint32_t target;
	size_t nruns;
	const struct page_wire_run *runs;
	const uint8_t *data; /* pages of the DATA runs, in their order, uncompressed */
	size_t data_bytes;
};

/* Each returns 0 or a negative errno with *err filled, which page_rx_advance() then returns. What
 * they are given is valid until they return. */
struct page_rx_ops {
	int (*hello)(void *arg, const struct page_hello *h, struct cr_err *err);
	int (*batch)(void *arg, const struct page_batch *b, struct cr_err *err);
	int (*flush)(void *arg, uint64_t seq, struct cr_err *err);
};

/* Working memory that all streams of a thread share: used only inside page_rx_advance(). */
struct page_rx_scratch {
	struct page_wire_run runs[PAGE_BATCH_RUNS];
	_Alignas(64) uint8_t raw[PAGE_BATCH_BYTES];
};

/* Bytes of memory of one that has seen its HELLO; before that it is a few hundred bytes. */
enum { PAGE_RX_READ_AHEAD = 64 * 1024, PAGE_RX_BYTES = PAGE_FRAME_MAX_BYTES + PAGE_RX_READ_AHEAD };

/* NULL when memory is out. */
struct page_rx *page_rx_new(const struct page_rx_ops *ops, void *arg,
			    struct page_rx_scratch *scratch);
void page_rx_free(struct page_rx *rx); /* takes NULL; not from inside a callback */

/* Where the next bytes go and how many may: never 0, except after an error. */
void page_rx_room(struct page_rx *rx, char **ret, size_t *ret_len);

/* n bytes have been put there: handles all frames that are complete. After an error the stream is
 * over: every further call fails the same way. */
int page_rx_advance(struct page_rx *rx, size_t n, struct cr_err *err) must_check;
