/* Batches: runs of pages, their data, compressed where that pays. */
#include <lz4.h>
#include <string.h>
#include "base/clock.h"
#include "wire/page_tx_priv.h"

enum {
	LZ4_ACCELERATION =
	    4, /* on pages of a heap about twice as fast as 1, for 5 % of the ratio */
	/* What saves less than 1/16 is sent as it is: unpacking costs more. LZ4 gives up there. */
	LZ4_LEAST_GAIN = 16,
	PACED_PAGES_LEAST = 16, /* a batch under a low limit is at least this */
};

/* Small batches under a low limit, so that they go out evenly. */
static uint32_t batch_data_pages(const struct page_tx *tx)
{
	uint64_t pages = tx->bucket.bytes_s * TOKEN_BUCKET_BURST_US / 1000000 / CR_PAGE_SIZE;

	if (!tx->bucket.bytes_s || pages > PAGE_BATCH_DATA_PAGES)
		return PAGE_BATCH_DATA_PAGES;
	return pages < PACED_PAGES_LEAST ? PACED_PAGES_LEAST : (uint32_t)pages;
}

static void count_pages(struct page_ack *sent, uint32_t target, const struct page_run *run,
			const struct page_wire_run *w, uint32_t done, const uint8_t *buf)
{
	for (uint32_t k = 0; k < w->npages; k++) {
		uint64_t addr = w->addr + k * CR_PAGE_SIZE;
		XXH128_hash_t h;

		if (run->hashes)
			h = run->hashes[done + k];
		else if (w->kind == PAGE_ZERO)
			h = page_hash_zero(target, addr);
		else
			h = page_hash(buf + run->buf_off + (done + k) * CR_PAGE_SIZE, target, addr);
		page_digest_add(&sent->digest, h);
	}
	if (w->kind == PAGE_DATA)
		sent->data_pages += w->npages;
	else if (w->kind == PAGE_ZERO)
		sent->zero_pages += w->npages;
	else
		sent->same_pages += w->npages;
}

/* Takes runs from the cursor until the batch is full: their heads into c->head, their data behind.
 */
static void fill_batch(struct page_tx *tx, struct page_conn *c, struct cursor *cur,
		       struct page_frame *f)
{
	uint32_t data_left = batch_data_pages(tx), left = PAGE_BATCH_PAGES;

	while (cur->at < cur->nruns && f->nruns < PAGE_BATCH_RUNS && left) {
		const struct page_run *run = &cur->runs[cur->at];
		bool data = run->kind == PAGE_DATA;
		uint32_t most = data && data_left < left ? data_left : left;
		uint32_t n = run->npages - cur->done < most ? run->npages - cur->done : most;

		if (!n)
			break;
		struct page_wire_run w = {
		    .kind = (uint8_t)run->kind,
		    .addr = run->addr + cur->done * CR_PAGE_SIZE,
		    .npages = n,
		};
		if (run->kind == PAGE_SAME) {
			w.src_target = run->src_target;
			w.src_addr = run->src_addr + cur->done * CR_PAGE_SIZE;
		}
		page_run_encode(c->head + PAGE_HDR_BYTES + f->nruns++ * PAGE_RUN_BYTES, &w);
		count_pages(&c->sent, cur->target, run, &w, cur->done, cur->buf);
		if (data) {
			page_conn_add(c, cur->buf + run->buf_off + cur->done * CR_PAGE_SIZE,
				      n * CR_PAGE_SIZE);
			data_left -= n;
			f->raw_bytes += n * (uint32_t)CR_PAGE_SIZE;
		}
		left -= n;
		cur->done += n;
		if (cur->done == run->npages) {
			cur->at++;
			cur->done = 0;
		}
	}
}

/* Returns the compressed size, 0 if it is hardly smaller (or there is no memory for trying). */
static uint32_t compress_batch(struct page_tx *tx, struct page_conn *c, uint32_t raw_bytes)
{
	const uint8_t *from = c->iov[1].iov_base;

	if (!c->packed)
		c->packed = malloc(PAGE_BATCH_BYTES);
	if (c->iov_n > 2) {
		if (!tx->gathered)
			tx->gathered = malloc(PAGE_BATCH_BYTES);
		if (!tx->gathered)
			return 0;
		uint8_t *to = tx->gathered;
		for (size_t i = 1; i < c->iov_n; i++) {
			memcpy(to, c->iov[i].iov_base, c->iov[i].iov_len);
			to += c->iov[i].iov_len;
		}
		from = tx->gathered;
	}
	if (!c->packed)
		return 0;
	int n = LZ4_compress_fast((const char *)from, (char *)c->packed, (int)raw_bytes,
				  (int)(raw_bytes - raw_bytes / LZ4_LEAST_GAIN), LZ4_ACCELERATION);
	return n > 0 ? (uint32_t)n : 0;
}

static bool want_compress(const struct page_tx *tx)
{
	if (!(tx->caps & PAGE_CAP_LZ4) || tx->compress == PAGE_TX_COMPRESS_NONE)
		return false;
	return tx->compress == PAGE_TX_COMPRESS_LZ4 || tx->policy.on;
}

void page_pack(struct page_tx *tx, struct page_conn *c, struct cursor *cur)
{
	struct page_frame f = {
	    .type = PAGE_FRAME_BATCH,
	    .target = cur->target,
	    .seq = ++c->seq,
	};

	page_conn_begin(c, &f, PAGE_HDR_BYTES);
	fill_batch(tx, c, cur, &f);
	f.wire_bytes = f.raw_bytes;
	size_t head = PAGE_HDR_BYTES + (size_t)f.nruns * PAGE_RUN_BYTES;
	c->iov[0].iov_len = head;
	c->left += head - PAGE_HDR_BYTES;
	uint32_t packed = f.raw_bytes && want_compress(tx) ? compress_batch(tx, c, f.raw_bytes) : 0;
	if (packed) {
		f.flags = PAGE_FLAG_LZ4;
		f.wire_bytes = packed;
		page_conn_begin(c, &f, head);
		page_conn_add(c, c->packed, packed);
		tx->stats.lz4_batches++;
	} else {
		page_frame_encode(c->head, &f);
	}
	tx->stats.batches++;
	tx->stats.raw_bytes += f.raw_bytes;
	tx->stats.wire_bytes += c->left;
	token_bucket_pay(&tx->bucket, c->left);
	if (tx->compress == PAGE_TX_COMPRESS_AUTO)
		page_policy_sent(&tx->policy, now_us(), f.raw_bytes, f.wire_bytes, tx->waited_us);
	tx->waited_us = 0;
}
