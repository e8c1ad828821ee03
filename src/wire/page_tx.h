/* The sending end of page streams: from the source agent to the page-server.
 *
 *	struct page_tx_opts o = {.address = "10.0.0.2:7711", .id = id, .token = token, .streams =
 *1}; page_tx_open(&tx, &o, err); page_tx_submit(tx, target, runs, nruns, buf, err);	(any number
 *of times) page_tx_flush(tx, &ack, err);				(all placed, digests agree)
 *	page_tx_free(tx);
 *
 * Order: with more than one stream, what two submits sent may be placed in either order. Before a
 * page is sent again, and before a SAME run that refers to pages sent since the last flush, flush.
 * With page_tx_set_same(), SAME runs are made out of DATA here, and keep that order by themselves.
 *
 * Not thread safe. After any error but -EINVAL the sender is broken: only page_tx_free() is left.
 */
#pragma once
#include "wire/page_stream.h"

struct page_tx;

enum page_tx_compress {
	PAGE_TX_COMPRESS_AUTO = 0, /* the rule is in wire/page_policy.h */
	PAGE_TX_COMPRESS_LZ4,      /* always try; raw where that is smaller */
	PAGE_TX_COMPRESS_NONE,
};

struct page_tx_opts {
	const char *address;  /* "ip:port" or "[ip6]:port", numeric */
	const uint8_t *id;    /* PAGE_ID_BYTES */
	const uint8_t *token; /* PAGE_TOKEN_BYTES */
	unsigned int streams; /* 1..PAGE_STREAMS_MAX; 0: 1 */
	enum page_tx_compress compress;
	uint64_t max_bandwidth_bytes_s; /* of all streams together on the wire; 0: no limit */
	/* Called at least every 100 ms while waiting; non-zero makes the call fail with -ECANCELED.
	 * May be NULL. */
	int (*poll_cb)(void *arg);
	void *poll_arg;
};

/* A run of pages to send. Runs of any length: they are split over batches as needed. */
struct page_run {
	enum page_kind kind;
	uint32_t npages;
	uint64_t addr;       /* page aligned: address in a process, byte offset in an object */
	uint32_t src_target; /* SAME: whose pages these are equal to, at src_addr */
	uint64_t src_addr;
	bool unsteady;  /* DATA: the receiver's page may change by itself; none is sent as equal to
			   it */
	size_t buf_off; /* DATA: where in buf the pages are, one after the other */
	const XXH128_hash_t
	    *hashes; /* npages of page_hash(page, target, addr of the page), for every
		      * kind; NULL: computed here for DATA and ZERO (slower) */
};

struct page_tx_stats {
	uint64_t data_pages, zero_pages, same_pages; /* submitted */
	uint64_t raw_bytes;                          /* of DATA pages */
	uint64_t wire_bytes;                         /* sent, headers included */
	uint64_t batches, lz4_batches;
	uint64_t wait_us; /* spent waiting for the link or for the bandwidth limit */
};

/* Connects all streams and says HELLO on them; waits at most 5 s for the connections and 5 s for
 * the answers. The options are copied, strings included. Errors: CR_ERR_IO (cannot reach),
 * CR_ERR_PEER (refused, with the page-server's text). */
int page_tx_open(struct page_tx **ret, const struct page_tx_opts *opts,
		 struct cr_err *err) must_check;

/* Sends the runs of one target. buf may be reused when this returns: what is not on its way then
 * has been copied by the kernel. Adds the hashes to the digest of what was sent. Best with about 1
 * MiB of data a call, or several MiB with several streams. */
int page_tx_submit(struct page_tx *tx, uint32_t target, const struct page_run *runs, size_t nruns,
		   const void *buf, struct cr_err *err) must_check;

/* Waits until all that was submitted is placed, and compares counts and digests with what the
 * page-server placed (CR_ERR_PEER, EBADMSG when they differ). *ret has the totals since open over
 * all streams; it may be NULL. */
int page_tx_flush(struct page_tx *tx, struct page_ack *ret, struct cr_err *err) must_check;

/* The same, in the middle of what goes out page after page: SAME runs may go on to refer to what
 * was sent before. After page_tx_flush() they do not: then the receiver's memory may change. */
int page_tx_barrier(struct page_tx *tx, struct cr_err *err) must_check;

/* Shall pages be sent as equal to others that were sent? Only while nothing else changes the
 * receiver's memory. At first they are not. No effect if the receiver cannot. */
void page_tx_set_same(struct page_tx *tx, bool on);

/* From the next batch on; 0: no limit (for the last round). */
void page_tx_set_bandwidth(struct page_tx *tx, uint64_t bytes_s);

void page_tx_stats(const struct page_tx *tx, struct page_tx_stats *ret);

/* Closes the connections as they are; what is in flight may or may not be placed. NULL is fine. */
void page_tx_free(struct page_tx *tx);
