#include "pageserver/page_rx.h"

#include <lz4.h>
#include <stdlib.h>
#include <string.h>

struct page_rx {
	const struct page_rx_ops *ops;
	void *arg;
	uint8_t *buf;           /* `first` until HELLO is accepted, then one of two[] */
	size_t cap, start, end; /* what is there and not yet handled: [start, end) */
	bool have_header;       /* `frame` is the decoded header at start */
	bool greeted, failed;
	bool busy;    /* the other of two[] and `runs` are in use by the owner */
	uint64_t seq; /* of the last BATCH or FLUSH */
	struct page_frame frame;
	uint8_t *two[2];
	struct page_wire_run *runs; /* PAGE_BATCH_RUNS */
	uint8_t first[PAGE_HDR_BYTES + PAGE_HELLO_BYTES];
};

struct page_rx *page_rx_new(const struct page_rx_ops *ops, void *arg)
{
	struct page_rx *rx = calloc(1, sizeof(*rx));

	if (!rx)
		return NULL;
	rx->ops = ops;
	rx->arg = arg;
	rx->buf = rx->first;
	rx->cap = sizeof(rx->first);
	return rx;
}

void page_rx_free(struct page_rx *rx)
{
	if (!rx)
		return;
	free(rx->two[0]);
	free(rx->two[1]);
	free(rx->runs);
	free(rx);
}

bool page_rx_stalled(const struct page_rx *rx)
{
	return rx->busy && rx->have_header && rx->end - rx->start >= page_frame_bytes(&rx->frame);
}

bool page_rx_in_frame(const struct page_rx *rx)
{
	return rx->end > rx->start && !page_rx_stalled(rx);
}

size_t page_rx_missing(const struct page_rx *rx)
{
	size_t need = rx->have_header ? page_frame_bytes(&rx->frame) : PAGE_HDR_BYTES;
	size_t have = rx->end - rx->start;

	return need > have ? need - have : 1;
}

void page_rx_room(struct page_rx *rx, char **ret, size_t *ret_len)
{
	size_t have = rx->end - rx->start;

	*ret = (char *)rx->buf;
	*ret_len = 0;
	if (rx->failed || page_rx_stalled(rx))
		return;
	/* exactly this frame and the header after it where it is large; for small frames, many at
	 * once */
	size_t need = page_rx_missing(rx) + PAGE_HDR_BYTES;
	size_t want = need < PAGE_RX_READ_AHEAD ? PAGE_RX_READ_AHEAD : need;

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
	/* the large buffers are only for those who proved that they belong here */
	rx->two[0] = malloc(PAGE_RX_BYTES);
	rx->two[1] = malloc(PAGE_RX_BYTES);
	rx->runs = malloc(PAGE_BATCH_RUNS * sizeof(*rx->runs));
	if (!rx->two[0] || !rx->two[1] || !rx->runs)
		return cr_err_oom(err);
	memcpy(rx->two[0], rx->buf, rx->end);
	rx->buf = rx->two[0];
	rx->cap = PAGE_RX_BYTES;
	rx->greeted = true;
	return 0;
}

int page_batch_unpack(const struct page_batch *b, uint8_t *room, const uint8_t **ret,
		      struct cr_err *err)
{
	*ret = b->payload;
	if (!b->lz4)
		return 0;
	int n = LZ4_decompress_safe((const char *)b->payload, (char *)room, (int)b->wire_bytes,
				    (int)b->data_bytes);
	if (n < 0 || (size_t)n != b->data_bytes)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "page stream: batch %llu does not decompress to %zu bytes",
				  (unsigned long long)b->seq, b->data_bytes);
	*ret = room;
	return 0;
}

static int handle_batch(struct page_rx *rx, const uint8_t *body, struct cr_err *err)
{
	const struct page_frame *f = &rx->frame;
	size_t runs_bytes = (size_t)f->nruns * PAGE_RUN_BYTES;
	int r = page_runs_decode(rx->runs, f, body, runs_bytes, err);

	if (r)
		return r;
	struct page_batch b = {
	    .target = f->target,
	    .nruns = f->nruns,
	    .runs = rx->runs,
	    .seq = f->seq,
	    .payload = body + runs_bytes,
	    .wire_bytes = f->wire_bytes,
	    .data_bytes = f->raw_bytes,
	    .lz4 = f->flags & PAGE_FLAG_LZ4,
	};
	r = rx->ops->batch(rx->arg, &b, err);
	if (r == PAGE_RX_BUSY)
		rx->busy = true;
	return r < 0 ? r : 0;
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

/* Past the frame at start. If that is still in use, what came after it moves to the other buffer:
 * at most what was read ahead. */
static void consume(struct page_rx *rx)
{
	rx->start += page_frame_bytes(&rx->frame);
	rx->have_header = false;
	if (rx->busy) {
		uint8_t *other = rx->buf == rx->two[0] ? rx->two[1] : rx->two[0];

		memcpy(other, rx->buf + rx->start, rx->end - rx->start);
		rx->buf = other;
		rx->end -= rx->start;
		rx->start = 0;
	}
	if (rx->start == rx->end)
		rx->start = rx->end = 0;
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
		if (have < page_frame_bytes(&rx->frame) || rx->busy)
			return 0;
		r = handle_frame(rx, err);
		if (r)
			return r;
		consume(rx);
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

int page_rx_resume(struct page_rx *rx, struct cr_err *err)
{
	rx->busy = false;
	return page_rx_advance(rx, 0, err);
}
