/* The receiving parser of page streams and the decoders of what comes back, on hostile bytes.
 *
 * The first byte chooses the size of the pieces in which the rest arrives. Random bytes would not
 * get past the first header, so the mutator below mends half of what it makes: magic, lengths,
 * sequence. Best with -max_len=40000. */
#include "pageserver/page_rx.c"
#include "wire/le.h"
#include "wire/ps_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed);

static int on_hello(void *arg, const struct page_hello *h, struct cr_err *err)
{
	(void)arg;
	(void)err;
	if (h->stream >= h->nstreams)
		__builtin_trap();
	return 0;
}

static int on_batch(void *arg, const struct page_batch *b, struct cr_err *err)
{
	static uint8_t room[PAGE_BATCH_BYTES];
	uint64_t *sum = arg;
	const uint8_t *pages;
	size_t data = 0;

	if (b->data_bytes > PAGE_BATCH_BYTES || b->target >= PAGE_TARGETS_MAX)
		__builtin_trap();
	for (size_t i = 0; i < b->nruns; i++) {
		const struct page_wire_run *r = &b->runs[i];

		if (r->addr % CR_PAGE_SIZE || r->addr + r->npages * CR_PAGE_SIZE > PAGE_ADDR_END)
			__builtin_trap();
		if (r->kind == PAGE_DATA)
			data += r->npages * CR_PAGE_SIZE;
	}
	if (data != b->data_bytes)
		__builtin_trap();
	int r = page_batch_unpack(b, room, &pages, err);
	for (size_t i = 0; !r && i < data; i++) /* all of it is there to be read */
		*sum += pages[i];
	return r ? r : (int)(b->seq % 2); /* every other one stays in use for a while */
}

static int on_flush(void *arg, uint64_t seq, struct cr_err *err)
{
	(void)arg;
	(void)err;
	if (!seq)
		__builtin_trap();
	return 0;
}

static void decode_others(const uint8_t *data, size_t size)
{
	struct cr_err err = {0};
	struct page_error e;
	struct page_ack a;
	struct page_hello_ok k;
	struct ps_request rq;
	struct ps_reply rp;
	uint8_t again[PS_REQUEST_BYTES];

	if (!page_error_decode(&e, data, size, &err) && strlen(e.text) != size - 8)
		__builtin_trap();
	if (page_ack_decode(&a, data, size, &err) || page_hello_ok_decode(&k, data, size, &err) ||
	    ps_reply_decode(&rp, data, size, &err))
		err.code = 0;
	if (!ps_request_decode(&rq, data, size, &err)) {
		ps_request_encode(again, &rq);
		if (memcmp(again, data, size))
			__builtin_trap();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct page_rx_ops ops = {
	    .hello = on_hello, .batch = on_batch, .flush = on_flush};
	struct cr_err err = {0};
	uint64_t sum = 0;

	decode_others(data, size);
	if (!size)
		return 0;
	size_t piece = data[0] ? (size_t)data[0] * data[0] : SIZE_MAX;
	struct page_rx *rx = page_rx_new(&ops, &sum);
	if (!rx)
		return 0;
	for (data++, size--; size;) {
		char *room;
		size_t n;

		page_rx_room(rx, &room, &n);
		if (page_rx_stalled(rx)) {
			if (n)
				__builtin_trap();
			if (page_rx_resume(rx, &err))
				break;
			continue;
		}
		if (!n)
			__builtin_trap();
		n = n < piece ? n : piece;
		n = n < size ? n : size;
		memcpy(room, data, n);
		if (page_rx_advance(rx, n, &err) || (size % 2 && page_rx_resume(rx, &err)))
			break;
		data += n;
		size -= n;
	}
	page_rx_free(rx);
	return 0;
}

/* Makes the frames of a mutated input well formed as far as it goes: magic, lengths that fit,
 * sequence numbers, so that what is behind those checks is reached too. */
static void mend(uint8_t *p, size_t size)
{
	uint64_t seq = 0;
	size_t at = 0;

	while (size - at >= PAGE_HDR_BYTES) {
		uint8_t *h = p + at;

		memcpy(h, "CRPG", 4);
		le_put32(h + 20, 0);
		if (!at) {
			struct page_frame f = {.type = PAGE_FRAME_HELLO,
					       .wire_bytes = PAGE_HELLO_BYTES};

			page_frame_encode(h, &f);
			at += PAGE_HDR_BYTES + PAGE_HELLO_BYTES;
			if (at > size)
				return;
			memcpy(p + PAGE_HDR_BYTES, "\1\0\1\0\1\0\0\0\1\0", 10);
			continue;
		}
		seq++;
		h[4] = h[4] & 1 ? PAGE_FRAME_BATCH : PAGE_FRAME_FLUSH;
		struct page_frame f = {.type = h[4], .seq = seq};
		if (h[4] == PAGE_FRAME_BATCH) {
			f.nruns = 1 + h[6] % 4;
			f.flags = h[5] & 1;
			f.target = h[8];
			for (uint16_t i = 0; i < f.nruns; i++) {
				uint8_t *r = h + PAGE_HDR_BYTES + i * PAGE_RUN_BYTES;

				if (r + PAGE_RUN_BYTES > p + size)
					return;
				struct page_wire_run run = {
				    .kind = 1 + r[24] % 3,
				    .addr = (uint64_t)r[1] << 12,
				    .npages = 1 + r[16] % 2,
				};
				if (run.kind == PAGE_DATA)
					f.raw_bytes += run.npages * CR_PAGE_SIZE;
				page_run_encode(r, &run);
			}
			f.flags &= f.raw_bytes > 0;
			f.wire_bytes =
			    f.flags ? 1 + le_get16(h + 16) % (f.raw_bytes - 1) : f.raw_bytes;
		}
		page_frame_encode(h, &f);
		if (page_frame_bytes(&f) > size - at)
			return;
		at += page_frame_bytes(&f);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, max);
	if (seed % 2 && size > 1)
		mend(data + 1, size - 1);
	return size;
}
