/* The two halves of page_tx: page_tx.c waits and talks, page_pack.c makes batches. */
#pragma once
#include "wire/page_conn.h"
#include "wire/page_dup.h"
#include "wire/page_policy.h"
#include "wire/page_tx.h"
#include "wire/token_bucket.h"

struct page_tx {
	char *address;
	struct page_conn *conns;
	unsigned int n, next; /* next: whose turn it is */
	uint32_t caps;
	enum page_tx_compress compress;
	struct page_policy policy;
	int (*poll_cb)(void *arg);
	void *poll_arg;
	uint64_t called_us; /* poll_cb was */
	struct token_bucket bucket;
	uint64_t waited_us;     /* since the last batch, for the policy */
	uint8_t *gathered;      /* PAGE_BATCH_BYTES: what lz4 needs in one piece */
	struct page_dups *dups; /* NULL: the receiver knows no SAME */
	bool same;              /* look for pages that equal others */
	bool broken;
	struct page_tx_stats stats;
};

/* What of a submit is still to be put into batches. */
struct cursor {
	uint32_t target;
	const struct page_run *runs;
	size_t nruns, at;
	uint32_t done; /* pages of runs[at] */
	const uint8_t *buf;
	bool drain; /* until no stream owes anything */
};

/* Does the stream owe pages that have to go out now? */
bool page_pack_owes(const struct page_conn *c, const struct cursor *cur);
/* Makes the next frame of an idle stream, out of that or of what the cursor has left. It stays idle
 * if all of that equals what went on other streams. */
void page_pack(struct page_tx *tx, struct page_conn *c, struct cursor *cur);
