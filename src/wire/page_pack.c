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

enum { SAMPLES_AHEAD = 16 };

/* A batch that is being made. */
struct filling {
	struct page_tx *tx;
	struct page_conn *c;
	struct cursor *cur;
	struct page_frame *f;
	struct page_wire_run last; /* the last run of it */
	uint32_t data_left, left;  /* pages that still go in */
	/* of pages [sampled_from, …) of this run */
	const struct page_run *sampled;
	uint32_t sampled_from, sampled_n;
	uint64_t samples[SAMPLES_AHEAD];
};

static void put_run(struct filling *fl, const struct page_wire_run *w)
{
	struct page_wire_run *last = &fl->last;
	uint64_t bytes = last->npages * CR_PAGE_SIZE;

	if (fl->f->nruns && w->kind == PAGE_SAME && last->kind == PAGE_SAME &&
	    w->src_target == last->src_target && w->addr == last->addr + bytes &&
	    w->src_addr == last->src_addr + bytes) {
		last->npages += w->npages;
	} else {
		*last = *w;
		fl->f->nruns++;
	}
	page_run_encode(fl->c->head + PAGE_HDR_BYTES + (size_t)(fl->f->nruns - 1) * PAGE_RUN_BYTES,
			last);
	fl->left -= w->npages;
}

static XXH128_hash_t hash_at(const struct cursor *cur, uint32_t k)
{
	const struct page_run *run = &cur->runs[cur->at];
	uint64_t addr = run->addr + k * CR_PAGE_SIZE;

	if (run->hashes)
		return run->hashes[k];
	if (run->kind == PAGE_ZERO)
		return page_hash_zero(cur->target, addr);
	return page_hash(cur->buf + run->buf_off + k * CR_PAGE_SIZE, cur->target, addr);
}

/* ---- pages that equal others ---- */

enum {
	OWED_MOST = 1024,
	OWED_PACK = 512, /* so many go out before anything else */
};

/* Can the receiver be told to take it from there? Only behind it on the same stream: where that is
 * another one, it is left for that one's next batch. */
static bool can_refer(const struct filling *fl, const struct page_dup *of)
{
	return of->stream == PAGE_DUP_PLACED || of->stream == fl->c->index ||
	       fl->tx->conns[of->stream].owed.n < OWED_MOST;
}

static bool refer(struct filling *fl, const struct page_dup *of, uint64_t addr, XXH128_hash_t hash)
{
	if (of->stream != PAGE_DUP_PLACED && of->stream != fl->c->index) {
		struct page_owed *o = vec_push(&fl->tx->conns[of->stream].owed);

		if (!o)
			return false;
		*o = (struct page_owed){*of, fl->cur->target, addr, hash};
		return true;
	}
	put_run(fl, &(struct page_wire_run){
			.kind = PAGE_SAME,
			.addr = addr,
			.npages = 1,
			.src_target = of->target,
			.src_addr = of->addr,
		    });
	fl->c->sent.same_pages++;
	page_digest_add(&fl->c->sent.digest, hash);
	return true;
}

static uint64_t sample_of(struct filling *fl, uint32_t k)
{
	const struct cursor *cur = fl->cur;
	const struct page_run *run = &cur->runs[cur->at];

	if (fl->sampled != run || k - fl->sampled_from >= fl->sampled_n) {
		fl->sampled = run;
		fl->sampled_from = k;
		fl->sampled_n = run->npages - k < SAMPLES_AHEAD ? run->npages - k : SAMPLES_AHEAD;
		for (uint32_t i = 0; i < fl->sampled_n; i++)
			fl->samples[i] = page_dups_sample(fl->tx->dups, cur->buf + run->buf_off +
									    (k + i) * CR_PAGE_SIZE);
	}
	return fl->samples[k - fl->sampled_from];
}

/* Page k of the current run: is there another like it to refer to? Else it goes as data, and others
 * may refer to it. */
static bool find_equal(struct filling *fl, uint32_t k, struct page_dup *ret)
{
	struct page_dups *dups = fl->tx->dups;
	const struct cursor *cur = fl->cur;
	const struct page_run *run = &cur->runs[cur->at];
	uint64_t sample = sample_of(fl, k), addr = run->addr + k * CR_PAGE_SIZE;

	page_dups_sent(dups, cur->target, addr, 1);
	if (page_dups_find(dups, cur->buf + run->buf_off + k * CR_PAGE_SIZE, sample, ret) &&
	    can_refer(fl, ret))
		return true;
	const struct page_dup it = {cur->target, addr, fl->c->index};
	if (!run->unsteady)
		page_dups_add(dups, sample, &it, hash_at(cur, k));
	return false;
}

/* Its next batch is of what it owes, of one target. */
static void fill_owed(struct filling *fl)
{
	struct page_conn *c = fl->c;
	uint32_t target = c->owed.v[0].target;
	size_t n = 0;

	fl->f->target = target;
	for (; n < c->owed.n && n < PAGE_BATCH_RUNS && c->owed.v[n].target == target; n++) {
		const struct page_owed *o = &c->owed.v[n];

		put_run(fl, &(struct page_wire_run){
				.kind = PAGE_SAME,
				.addr = o->addr,
				.npages = 1,
				.src_target = o->of.target,
				.src_addr = o->of.addr,
			    });
		c->sent.same_pages++;
		page_digest_add(&c->sent.digest, o->hash);
	}
	c->owed.n -= n;
	memmove(c->owed.v, c->owed.v + n, c->owed.n * sizeof(*c->owed.v));
}

bool page_pack_owes(const struct page_conn *c, const struct cursor *cur)
{
	return c->owed.n && (cur->drain || c->owed.n >= OWED_PACK);
}

/* ---- runs ---- */

static void advance(struct cursor *cur, uint32_t n)
{
	cur->done += n;
	if (cur->done == cur->runs[cur->at].npages) {
		cur->at++;
		cur->done = 0;
	}
}

static void count_run(struct filling *fl, const struct page_wire_run *w)
{
	struct page_ack *sent = &fl->c->sent;

	for (uint32_t k = 0; k < w->npages; k++)
		page_digest_add(&sent->digest, hash_at(fl->cur, fl->cur->done + k));
	if (w->kind == PAGE_DATA)
		sent->data_pages += w->npages;
	else if (w->kind == PAGE_ZERO)
		sent->zero_pages += w->npages;
	else
		sent->same_pages += w->npages;
}

/* At most n pages of the current run, as they are. */
static void fill_run(struct filling *fl, uint32_t n)
{
	const struct cursor *cur = fl->cur;
	const struct page_run *run = &cur->runs[cur->at];
	struct page_wire_run w = {
	    .kind = (uint8_t)run->kind,
	    .addr = run->addr + cur->done * CR_PAGE_SIZE,
	    .npages = n,
	};

	if (run->kind == PAGE_SAME) {
		w.src_target = run->src_target;
		w.src_addr = run->src_addr + cur->done * CR_PAGE_SIZE;
	}
	count_run(fl, &w);
	put_run(fl, &w);
	if (run->kind == PAGE_DATA) {
		page_conn_add(fl->c, cur->buf + run->buf_off + cur->done * CR_PAGE_SIZE,
			      n * CR_PAGE_SIZE);
		fl->data_left -= n;
		fl->f->raw_bytes += n * (uint32_t)CR_PAGE_SIZE;
	}
	advance(fl->cur, n);
}

/* Data up to a page that equals another, and that page. */
static void fill_data(struct filling *fl, uint32_t most)
{
	const struct cursor *cur = fl->cur;
	const struct page_run *run = &cur->runs[cur->at];
	uint32_t n = 0, first = cur->done;
	struct page_dup of;
	bool equal = false;

	while (n < most && !equal) {
		equal = find_equal(fl, first + n, &of);
		n += !equal;
	}
	uint64_t addr = run->addr + (first + n) * CR_PAGE_SIZE;
	XXH128_hash_t hash = equal ? hash_at(cur, first + n) : (XXH128_hash_t){0};
	if (n)
		fill_run(fl, n);
	if (!equal)
		return;
	if (refer(fl, &of, addr, hash))
		advance(fl->cur, 1);
	else
		fill_run(fl, 1);
}

/* Takes runs from the cursor until the batch is full: their heads into c->head, their data behind.
 */
static void fill_batch(struct filling *fl)
{
	struct cursor *cur = fl->cur;

	/* room for two: data, and a page that equals another */
	while (cur->at < cur->nruns && fl->f->nruns + 2 <= PAGE_BATCH_RUNS && fl->left) {
		const struct page_run *run = &cur->runs[cur->at];
		bool data = run->kind == PAGE_DATA;
		uint32_t most = data && fl->data_left < fl->left ? fl->data_left : fl->left;
		uint32_t rest = run->npages - cur->done;

		if (rest < most)
			most = rest;
		if (!most)
			break;
		if (data && fl->tx->dups && fl->tx->same) {
			fill_data(fl, most);
			continue;
		}
		if (fl->tx->dups)
			page_dups_sent(fl->tx->dups, cur->target,
				       run->addr + cur->done * CR_PAGE_SIZE, most);
		fill_run(fl, most);
	}
}

/* ---- the frame ---- */

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

	struct filling fl = {
	    .tx = tx,
	    .c = c,
	    .cur = cur,
	    .f = &f,
	    .data_left = batch_data_pages(tx),
	    .left = PAGE_BATCH_PAGES,
	};

	page_conn_begin(c, &f, PAGE_HDR_BYTES);
	if (page_pack_owes(c, cur))
		fill_owed(&fl);
	else
		fill_batch(&fl);
	if (!f.nruns) { /* all of it goes on other streams */
		c->left = 0;
		c->seq--;
		return;
	}
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
