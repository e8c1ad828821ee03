#include "pageserver/page_rx.h"

#include <lz4.h>
#include <stdlib.h>
#include <string.h>

struct page_rx {
	const struct page_rx_ops *ops;
	void *arg;
	struct page_rx_scratch *scratch;
	uint8_t *buf;           /* `first` until HELLO is accepted, then PAGE_RX_BYTES of heap */
	size_t cap, start, end; /* what is there and not yet handled: [start, end) */
	bool have_header;       /* `frame` is the decoded header at start */
	bool greeted, failed;
	uint64_t seq; /* of the last BATCH or FLUSH */
	struct page_frame frame;
	uint8_t first[PAGE_HDR_BYTES + PAGE_HELLO_BYTES];
};

struct page_rx *page_rx_new(const struct page_rx_ops *ops, void *arg,
			    struct page_rx_scratch *scratch)
{
	struct page_rx *rx = calloc(1, sizeof(*rx));

	if (!rx)
		return NULL;
	rx->ops = ops;
	rx->arg = arg;
	rx->scratch = scratch;
	rx->buf = rx->first;
	rx->cap = sizeof(rx->first);
	return rx;
}

void page_rx_free(struct page_rx *rx)
{
	if (!rx)
		return;
	if (rx->buf != rx->first)
		free(rx->buf);
	free(rx);
}

void page_rx_room(struct page_rx *rx, char **ret, size_t *ret_len)
{
	size_t have = rx->end - rx->start;
	size_t missing = (rx->have_header ? page_frame_bytes(&rx->frame) : PAGE_HDR_BYTES) - have;
	/* exactly this frame and the header after it where it is large; for small frames, many at
	 * once */
	size_t need = missing + PAGE_HDR_BYTES;
	size_t want = need < PAGE_RX_READ_AHEAD ? PAGE_RX_READ_AHEAD : need;

	if (rx->failed) {
		*ret = (char *)rx->buf;
		*ret_len = 0;
		return;
	}
	/* what is moved is at most what was read ahead of its frame: a frame that fits stays */
	if (rx->start && rx->cap - rx->end < need) {
		memmove(rx->buf, rx->buf + rx->start, have);
		rx->start = 0;
		rx->end = have;
	}
	if (want > rx->cap - rx->end)
		want = rx->cap - rx->end;
	*ret = (char *)rx->buf + rx->end;
	*ret_len = want;
}

static int handle_hello(struct page_rx *rx, const uint8_t *body, struct cr_err *err)
{
	struct page_hello h;
	int r = page_hello_decode(&h, body, rx->frame.wire_bytes, err);

	if (r)
		return r;
	r = rx->ops->hello(rx->arg, &h, err);
	if (r)
		return r;
	/* the large buffer is only for those who proved that they belong here */
	uint8_t *buf = malloc(PAGE_RX_BYTES);
	if (!buf)
		return cr_err_oom(err);
	memcpy(buf, rx->buf, rx->end);
	rx->buf = buf;
	rx->cap = PAGE_RX_BYTES;
	rx->greeted = true;
	return 0;
}

static int handle_batch(struct page_rx *rx, const uint8_t *body, struct cr_err *err)
{
	const struct page_frame *f = &rx->frame;
	size_t runs_bytes = (size_t)f->nruns * PAGE_RUN_BYTES;
	int r = page_runs_decode(rx->scratch->runs, f, body, runs_bytes, err);

	if (r)
		return r;
	struct page_batch b = {
	    .target = f->target,
	    .nruns = f->nruns,
	    .runs = rx->scratch->runs,
	    .data = body + runs_bytes,
	    .data_bytes = f->raw_bytes,
	};
	if (f->flags & PAGE_FLAG_LZ4) {
		int n = LZ4_decompress_safe((const char *)b.data, (char *)rx->scratch->raw,
					    (int)f->wire_bytes, (int)f->raw_bytes);

		if (n < 0 || (uint32_t)n != f->raw_bytes)
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "page stream: batch %llu does not decompress to %u bytes",
					  (unsigned long long)f->seq, f->raw_bytes);
		b.data = rx->scratch->raw;
	}
	return rx->ops->batch(rx->arg, &b, err);
}

static int handle_frame(struct page_rx *rx, struct cr_err *err)
{
	const struct page_frame *f = &rx->frame;
	const uint8_t *body = rx->buf + rx->start + PAGE_HDR_BYTES;

	if (f->type == PAGE_FRAME_HELLO)
		return handle_hello(rx, body, err);
	if (f->seq != rx->seq + 1)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "page stream: frame %llu where %llu is due",
				  (unsigned long long)f->seq, (unsigned long long)rx->seq + 1);
	rx->seq = f->seq;
	if (f->type == PAGE_FRAME_FLUSH)
		return rx->ops->flush(rx->arg, f->seq, err);
	return handle_batch(rx, body, err);
}

/* Which frames may come now. Decided on the header, before room is made for the rest. */
static int check_order(const struct page_rx *rx, struct cr_err *err)
{
	uint8_t type = rx->frame.type;

	if (type != PAGE_FRAME_HELLO && type != PAGE_FRAME_BATCH && type != PAGE_FRAME_FLUSH)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "page stream: frame type %u is not for a receiver", type);
	if (rx->greeted == (type == PAGE_FRAME_HELLO))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "page stream: %s",
				  rx->greeted ? "HELLO for the second time" : "no HELLO first");
	return 0;
}

static int handle_all(struct page_rx *rx, struct cr_err *err)
{
	for (;;) {
		size_t have = rx->end - rx->start;
		int r = 0;

		if (!rx->have_header) {
			if (have < PAGE_HDR_BYTES)
				return 0;
			r = page_frame_decode(&rx->frame, rx->buf + rx->start, have, err);
			if (!r)
				r = check_order(rx, err);
			if (r)
				return r;
			rx->have_header = true;
		}
		if (have < page_frame_bytes(&rx->frame))
			return 0;
		r = handle_frame(rx, err);
		if (r)
			return r;
		rx->start += page_frame_bytes(&rx->frame);
		rx->have_header = false;
		if (rx->start == rx->end)
			rx->start = rx->end = 0;
	}
}

int page_rx_advance(struct page_rx *rx, size_t n, struct cr_err *err)
{
	if (rx->failed || n > rx->cap - rx->end)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "page stream: fed after its end");
	rx->end += n;
	int r = handle_all(rx, err);
	if (r)
		rx->failed = true;
	return r;
}
