/* When a sender of pages compresses by itself (compress=auto).
 *
 * Compression pays only where the link, not this CPU, limits the sender, and where the data
 * shrinks. Both are measured, over windows of PAGE_POLICY_WINDOW batches:
 *
 *  - While off: a window in which the sender waited for the link (or for the bandwidth limit) for
 * at least 1/4 of the time starts a trial; its raw bytes/s are what compression has to beat.
 *  - While on: two batches in a row that stay above 0.9 of their size end it at once. At the end of
 * a window it ends if fewer than 1.1 times those raw bytes/s were sent.
 *  - After such an end it stays off for 4 windows, doubling up to 64 each time that it did not pay.
 *  - While on, every 64th window is sent raw, since links and data change.
 *  - A pause of more than 50 ms between batches, and a flush, start the window anew. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum {
	PAGE_POLICY_WINDOW = 16,
	PAGE_POLICY_PAUSE_US = 50000,
	PAGE_POLICY_OFF_FIRST = 4, /* windows */
	PAGE_POLICY_OFF_MOST = 64,
	PAGE_POLICY_PROBE = 64,
};

/* Zeroed: off, ready for a trial. */
struct page_policy {
	bool on;
	unsigned int off_for;  /* windows still to stay off */
	unsigned int off_next; /* after the next failure; 0: OFF_FIRST */
	unsigned int on_windows, misses;
	uint64_t plain_bytes_s; /* of the last window that was off */
	/* the window so far */
	unsigned int batches;
	uint64_t start_us, last_us, wait_us, raw_bytes;
};

/* A batch has been sent at now_us: raw_bytes of pages as wire_bytes, after waiting for wait_us. */
void page_policy_sent(struct page_policy *p, uint64_t now_us, uint64_t raw_bytes,
		      uint64_t wire_bytes, uint64_t wait_us);
void page_policy_restart_window(struct page_policy *p);
