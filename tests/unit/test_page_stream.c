/* The page stream's codec, the receiving parser, digests, and the sender's policies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <lz4.h>
#include "pageserver/page_rx.c"
#include "wire/le.h"
#include "wire/page_policy.h"
#include "wire/ps_msg.h"
#include "wire/token_bucket.h"

static void golden_frames(void **state)
{
	static const uint8_t batch[PAGE_HDR_BYTES + PAGE_RUN_BYTES] = {
	    'C',  'R',  'P',  'G',  4,    1,    2, 0, /* magic, BATCH, LZ4, 2 runs */
	    0x39, 0x30, 0,    0,    0,    0x20, 0, 0, /* target 12345, raw 8192 */
	    0xd2, 4,    0,    0,    0,    0,    0, 0, /* wire 1234, reserved */
	    8,    7,    6,    5,    4,    3,    2, 1, /* seq */
	    0,    0xf0, 0xde, 0xbc, 0x9a, 0x78, 0, 0, /* addr 0x789abcdef000 */
	    0,    0x10, 0,    0,    0,    0,    0, 0, /* src_addr 0x1000 */
	    5,    0,    0,    0,    7,    0,    0, 0, /* 5 pages, src_target 7 */
	    3,    0,    0,    0,    0,    0,    0, 0, /* SAME */
	};
	struct page_frame f = {
	    .type = PAGE_FRAME_BATCH,
	    .flags = PAGE_FLAG_LZ4,
	    .nruns = 2,
	    .target = 12345,
	    .raw_bytes = 8192,
	    .wire_bytes = 1234,
	    .seq = 0x0102030405060708,
	};
	struct page_wire_run run = {
	    .addr = 0x789abcdef000,
	    .src_addr = 0x1000,
	    .npages = 5,
	    .src_target = 7,
	    .kind = PAGE_SAME,
	};
	uint8_t out[sizeof(batch)];
	struct page_frame got;
	struct cr_err err = {0};

	(void)state;
	page_frame_encode(out, &f);
	page_run_encode(out + PAGE_HDR_BYTES, &run);
	assert_memory_equal(out, batch, sizeof(batch));
	assert_int_equal(page_frame_decode(&got, batch, sizeof(batch), &err), 0);
	assert_memory_equal(&got, &f, sizeof(f));
}

static void golden_payloads(void **state)
{
	uint8_t out[PAGE_ERROR_MAX_BYTES],
	    want[PAGE_HELLO_BYTES] = {1, 0, 1, 0, 1, 0, 2, 0, 3, 0, 0, 0, 3};
	struct page_hello h = {.version = 1,
			       .version_min = 1,
			       .stream = 2,
			       .nstreams = 3,
			       .caps = 3},
			  h2;
	struct page_hello_ok k2, k = {.version = 1, .caps = 0x01020304};
	struct page_ack a2, a = {1, 2, 3, {4, 5}, 6};
	struct page_error e;
	struct cr_err err = {0}, sent = {.kind = CR_ERR_INPUT, .code = ENOENT, .msg = "a\nb"};

	(void)state;
	memset(h.id, 0xaa, sizeof(h.id));
	memset(h.token, 0xbb, sizeof(h.token));
	memset(want + 16, 0xaa, 16);
	memset(want + 32, 0xbb, 32);
	assert_int_equal(page_hello_encode(out, &h), sizeof(want));
	assert_memory_equal(out, want, sizeof(want));
	assert_int_equal(page_hello_decode(&h2, out, sizeof(want), &err), 0);
	assert_memory_equal(&h2, &h, sizeof(h));
	assert_int_equal(page_hello_ok_encode(out, &k), 8);
	assert_memory_equal(out, "\1\0\0\0\4\3\2\1", 8);
	assert_int_equal(page_hello_ok_decode(&k2, out, 8, &err), 0);
	assert_true(k2.version == k.version && k2.caps == k.caps);
	assert_int_equal(page_ack_encode(out, &a), PAGE_ACK_BYTES);
	assert_int_equal(page_ack_decode(&a2, out, PAGE_ACK_BYTES, &err), 0);
	assert_true(a2.data_pages == 1 && a2.zero_pages == 2 && a2.same_pages == 3 &&
		    a2.digest.lo == 4 && a2.digest.hi == 5 && a2.status == 6);
	size_t n = page_error_encode(out, &sent);
	assert_int_equal(n, 11);
	assert_int_equal(page_error_decode(&e, out, n, &err), 0);
	assert_string_equal(e.text, "a?b");
	assert_true(e.kind == CR_ERR_INPUT && e.code == ENOENT);
	out[0] = 99;
	assert_int_equal(page_error_decode(&e, out, n, &err), 0);
	assert_int_equal(e.kind, CR_ERR_PEER);
}

static void payloads_of_a_wrong_size_fail(void **state)
{
	uint8_t b[PAGE_ERROR_MAX_BYTES + 1] = {1, 0, 1, 0, 1, 0, 0, 0, 1};
	struct page_hello h;
	struct page_hello_ok k;
	struct page_ack a;
	struct page_error e;
	struct cr_err err = {0};

	(void)state;
	for (size_t n = 0; n <= sizeof(b); n++) {
		assert_int_equal(page_hello_decode(&h, b, n, &err) == 0, n == PAGE_HELLO_BYTES);
		assert_int_equal(page_hello_ok_decode(&k, b, n, &err) == 0,
				 n == PAGE_HELLO_OK_BYTES);
		assert_int_equal(page_ack_decode(&a, b, n, &err) == 0, n == PAGE_ACK_BYTES);
		assert_int_equal(page_error_decode(&e, b, n, &err) == 0,
				 n >= 8 && n <= PAGE_ERROR_MAX_BYTES);
	}
}

static void bad_hellos_fail(void **state)
{
	static const struct {
		size_t at;
		uint8_t value;
	} bad[] = {
	    {2, 0}, {2, 2}, {4, 0}, {4, 2}, {6, 1}, {8, 0}, {8, PAGE_STREAMS_MAX + 1}, {9, 1},
	};
	uint8_t good[PAGE_HELLO_BYTES] = {1, 0, 1, 0, 1, 0, 0, 0, 1}, b[PAGE_HELLO_BYTES];
	struct page_hello h;
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(page_hello_decode(&h, good, sizeof(good), &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		memcpy(b, good, sizeof(b));
		b[bad[i].at] = bad[i].value;
		assert_int_equal(page_hello_decode(&h, b, sizeof(b), &err), -EPROTO);
	}
}

static int decode_header(struct page_frame f)
{
	uint8_t b[PAGE_HDR_BYTES];
	struct page_frame got;
	struct cr_err err = {0};

	page_frame_encode(b, &f);
	return page_frame_decode(&got, b, sizeof(b), &err);
}

static void bad_headers_fail(void **state)
{
	struct page_frame raw = {.type = 4, .nruns = 1, .raw_bytes = 4096, .wire_bytes = 4096}, f;
	uint8_t b[PAGE_HDR_BYTES];
	struct page_frame got;
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(decode_header(raw), 0);
	page_frame_encode(b, &raw);
	for (size_t n = 0; n < sizeof(b); n++)
		assert_int_equal(page_frame_decode(&got, b, n, &err), -EPROTO);
	for (size_t i = 0; i < 4; i++) {
		b[i] ^= 0x20;
		assert_int_equal(page_frame_decode(&got, b, sizeof(b), &err), -EPROTO);
		b[i] ^= 0x20;
	}
	b[22] = 1;
	assert_int_equal(page_frame_decode(&got, b, sizeof(b), &err), -EPROTO);
#define BAD(field, value)                                                                          \
	f = raw;                                                                                   \
	f.field = value;                                                                           \
	assert_int_equal(decode_header(f), -EPROTO)
	BAD(type, 0);
	BAD(type, 7);
	BAD(type, 255);
	BAD(flags, 2);
	BAD(flags, PAGE_FLAG_LZ4); /* 4096 compressed to 4096 */
	BAD(nruns, 0);
	BAD(nruns, PAGE_BATCH_RUNS + 1);
	BAD(target, PAGE_TARGETS_MAX);
	BAD(raw_bytes, 8192);
	BAD(wire_bytes, 4095);
	BAD(wire_bytes, UINT32_MAX);
	raw.flags = PAGE_FLAG_LZ4;
	raw.wire_bytes = 100;
	assert_int_equal(decode_header(raw), 0);
	BAD(wire_bytes, 0);
	BAD(raw_bytes, 4097);
	BAD(raw_bytes, PAGE_BATCH_BYTES + 4096);
	raw = (struct page_frame){.type = PAGE_FRAME_FLUSH, .seq = 3};
	assert_int_equal(decode_header(raw), 0);
	BAD(wire_bytes, 1);
	BAD(nruns, 1);
	BAD(flags, 1);
	BAD(target, 1);
	BAD(raw_bytes, 4096);
	BAD(type, PAGE_FRAME_HELLO_OK);
	raw = (struct page_frame){.type = PAGE_FRAME_HELLO, .wire_bytes = PAGE_HELLO_BYTES};
	assert_int_equal(decode_header(raw), 0);
	BAD(seq, 1);
	raw = (struct page_frame){.type = PAGE_FRAME_ERROR, .wire_bytes = PAGE_ERROR_MAX_BYTES};
	assert_int_equal(decode_header(raw), 0);
	BAD(wire_bytes, 7);
	BAD(wire_bytes, PAGE_ERROR_MAX_BYTES + 1);
#undef BAD
}

static int decode_run(struct page_wire_run r)
{
	struct page_frame f = {.type = PAGE_FRAME_BATCH, .nruns = 1};
	struct page_wire_run got;
	uint8_t b[PAGE_RUN_BYTES];
	struct cr_err err = {0};

	if (r.kind == PAGE_DATA)
		f.raw_bytes = r.npages * 4096;
	page_run_encode(b, &r);
	return page_runs_decode(&got, &f, b, sizeof(b), &err);
}

static void bad_runs_fail(void **state)
{
	struct page_wire_run good = {.addr = PAGE_ADDR_END - 2 * 4096,
				     .npages = 2,
				     .kind = PAGE_DATA},
			     r;
	struct page_frame f = {.type = PAGE_FRAME_BATCH, .nruns = 2, .raw_bytes = 8192};
	struct page_wire_run got[2];
	uint8_t b[2 * PAGE_RUN_BYTES];
	struct cr_err err = {0};

	(void)state;
#define BAD(field, value)                                                                          \
	r = good;                                                                                  \
	r.field = value;                                                                           \
	assert_int_equal(decode_run(r), -EPROTO)
	assert_int_equal(decode_run(good), 0);
	BAD(npages, 3);
	BAD(npages, 0);
	BAD(npages, UINT32_MAX);
	BAD(addr, 1);
	BAD(addr, PAGE_ADDR_END);
	BAD(addr, 0xfffffffffffff000);
	BAD(kind, 0);
	BAD(kind, 4);
	BAD(src_addr, 4096);
	BAD(src_target, 1);
	good.kind = PAGE_SAME;
	assert_int_equal(decode_run(good), 0);
	BAD(src_addr, 7);
	BAD(src_addr, PAGE_ADDR_END - 4096);
	BAD(src_target, PAGE_TARGETS_MAX);
	good = (struct page_wire_run){.npages = PAGE_BATCH_PAGES, .kind = PAGE_ZERO};
	assert_int_equal(decode_run(good), 0);
	BAD(npages, PAGE_BATCH_PAGES + 1);
#undef BAD
	good.npages = PAGE_BATCH_PAGES / 2;
	page_run_encode(b, &good);
	good.npages++;
	page_run_encode(b + PAGE_RUN_BYTES, &good);
	f.raw_bytes = 0;
	assert_int_equal(page_runs_decode(got, &f, b, sizeof(b), &err),
			 -EPROTO); /* together too many */
	good = (struct page_wire_run){.npages = 1, .kind = PAGE_DATA};
	page_run_encode(b, &good);
	page_run_encode(b + PAGE_RUN_BYTES, &good);
	f.raw_bytes = 8192;
	assert_int_equal(page_runs_decode(got, &f, b, sizeof(b), &err), 0);
	assert_int_equal(page_runs_decode(got, &f, b, sizeof(b) - 1, &err), -EPROTO);
	f.raw_bytes = 4096;
	assert_int_equal(page_runs_decode(got, &f, b, sizeof(b), &err), -EPROTO);
	b[31] = 1;
	assert_int_equal(page_runs_decode(got, &f, b, sizeof(b), &err), -EPROTO);
}

/* ---- the parser ---- */

struct seen {
	int hellos, batches, flushes;
	struct page_digest digest;
	int refuse;
	bool hold;               /* each batch is in use until the test resumes */
	struct page_batch batch; /* held */
	bool held;
};

static int see_hello(void *arg, const struct page_hello *h, struct cr_err *err)
{
	struct seen *s = arg;

	(void)h;
	s->hellos++;
	return s->refuse ? cr_err_set(err, CR_ERR_PEER, EACCES, "no") : 0;
}

static int count_batch(struct seen *s, const struct page_batch *b, struct cr_err *err)
{
	static uint8_t room[PAGE_BATCH_BYTES];
	const uint8_t *data;
	int r = page_batch_unpack(b, room, &data, err);

	if (r)
		return r;
	s->batches++;
	for (size_t i = 0; i < b->data_bytes; i += 4096)
		page_digest_add(&s->digest, page_hash(data + i, b->target, i));
	return 0;
}

static int see_batch(void *arg, const struct page_batch *b, struct cr_err *err)
{
	struct seen *s = arg;

	if (!s->hold)
		return count_batch(s, b, err);
	assert_false(s->held);
	s->batch = *b;
	s->held = true;
	return PAGE_RX_BUSY;
}

static int see_flush(void *arg, uint64_t seq, struct cr_err *err)
{
	struct seen *s = arg;

	(void)seq;
	(void)err;
	assert_false(s->held); /* all before it is placed */
	s->flushes++;
	return 0;
}

static const struct page_rx_ops see = {.hello = see_hello, .batch = see_batch, .flush = see_flush};

static size_t put_frame(uint8_t *out, struct page_frame f, const void *payload)
{
	page_frame_encode(out, &f);
	for (uint16_t i = 0; i < f.nruns; i++) {
		struct page_wire_run r = {
		    .addr = 0x10000u + i * 4096u,
		    .kind = PAGE_DATA,
		    .npages = f.raw_bytes / 4096 / f.nruns,
		};
		page_run_encode(out + PAGE_HDR_BYTES + i * PAGE_RUN_BYTES, &r);
	}
	memcpy(out + page_frame_bytes(&f) - f.wire_bytes, payload, f.wire_bytes);
	return page_frame_bytes(&f);
}

/* HELLO, a raw batch of two pages, FLUSH, a full batch in lz4, a full one raw, FLUSH. */
static uint8_t *golden_stream(size_t *ret_bytes, struct page_digest *digest)
{
	uint8_t *out = malloc(3 << 20), *pages = malloc(PAGE_BATCH_BYTES),
		*packed = malloc(PAGE_BATCH_BYTES);
	uint8_t hello[PAGE_HELLO_BYTES] = {1, 0, 1, 0, 1, 0, 0, 0, 1};
	size_t n = 0;

	for (size_t i = 0; i < PAGE_BATCH_BYTES; i++)
		pages[i] = (uint8_t)(i / 4096 + i % 7);
	int k =
	    LZ4_compress_default((char *)pages, (char *)packed, PAGE_BATCH_BYTES, PAGE_BATCH_BYTES);
	struct page_frame frames[] = {
	    {.type = PAGE_FRAME_HELLO, .wire_bytes = sizeof(hello)},
	    {.type = PAGE_FRAME_BATCH, .nruns = 2, .raw_bytes = 8192, .wire_bytes = 8192, .seq = 1},
	    {.type = PAGE_FRAME_FLUSH, .seq = 2},
	    {.type = PAGE_FRAME_BATCH,
	     .flags = PAGE_FLAG_LZ4,
	     .nruns = 1,
	     .raw_bytes = PAGE_BATCH_BYTES,
	     .wire_bytes = (uint32_t)k,
	     .seq = 3},
	    {.type = PAGE_FRAME_BATCH,
	     .nruns = 1,
	     .raw_bytes = PAGE_BATCH_BYTES,
	     .wire_bytes = PAGE_BATCH_BYTES,
	     .seq = 4},
	    {.type = PAGE_FRAME_FLUSH, .seq = 5},
	};
	const void *payloads[] = {hello, pages, NULL, packed, pages, NULL};
	for (size_t i = 0; i < ARRAY_SIZE(frames); i++) {
		n += put_frame(out + n, frames[i], payloads[i] ? payloads[i] : "");
		for (size_t at = 0; at < frames[i].raw_bytes; at += 4096)
			page_digest_add(digest, page_hash(pages + at, 0, at));
	}
	free(pages);
	free(packed);
	*ret_bytes = n;
	return out;
}

/* In pieces of at most `piece` bytes. */
static int feed(struct page_rx *rx, const uint8_t *p, size_t n, size_t piece, struct cr_err *err)
{
	while (n) {
		char *room;
		size_t len;

		page_rx_room(rx, &room, &len);
		assert_true(len > 0);
		if (len > piece)
			len = piece;
		if (len > n)
			len = n;
		memcpy(room, p, len);
		int r = page_rx_advance(rx, len, err);
		if (r)
			return r;
		p += len;
		n -= len;
	}
	return 0;
}

static void any_pieces_give_the_same(void **state)
{
	static const size_t pieces[] = {1, 31, 33, 95, 97, 4096, 65535, 70000, 1 << 20, 8 << 20};
	struct page_digest want = {0};
	size_t n;
	uint8_t *stream = golden_stream(&n, &want);
	struct cr_err err = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
		struct seen s = {0};
		struct page_rx *rx = page_rx_new(&see, &s);

		assert_int_equal(feed(rx, stream, n, pieces[i], &err), 0);
		assert_true(s.hellos == 1 && s.batches == 3 && s.flushes == 2);
		assert_true(page_digest_equal(s.digest, want));
		page_rx_free(rx);
	}
	free(stream);
}

/* Who waits until so many bytes are there waits for none that never come, and wakes up seldom. */
static void missing_is_what_still_comes(void **state)
{
	struct page_digest want = {0};
	size_t n, at = 0, steps = 0;
	uint8_t *stream = golden_stream(&n, &want);
	struct cr_err err = {0};
	struct seen s = {0};
	struct page_rx *rx = page_rx_new(&see, &s);

	(void)state;
	assert_int_equal(page_rx_missing(rx), PAGE_HDR_BYTES);
	for (; at < n; steps++) {
		size_t missing = page_rx_missing(rx);

		assert_true(missing > 0 && missing <= n - at);
		assert_int_equal(feed(rx, stream + at, missing, missing, &err), 0);
		at += missing;
	}
	assert_true(s.hellos == 1 && s.batches == 3 && s.flushes == 2);
	assert_true(page_digest_equal(s.digest, want));
	assert_int_equal(steps, 6 + 4); /* each header; what follows it, where something does */
	assert_int_equal(page_rx_missing(rx), PAGE_HDR_BYTES);
	page_rx_free(rx);
	free(stream);
}

/* Batches stay in use for as long as can be: until nothing more may be read. */
static void batches_in_use_are_left_alone(void **state)
{
	static const size_t pieces[] = {1000, 70000, 1 << 20};
	struct page_digest want = {0};
	size_t n;
	uint8_t *stream = golden_stream(&n, &want);
	struct cr_err err = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
		struct seen s = {.hold = true};
		struct page_rx *rx = page_rx_new(&see, &s);
		size_t at = 0;

		while (at < n || s.held) {
			char *room;
			size_t len;

			page_rx_room(rx, &room, &len);
			assert_int_equal(len == 0, page_rx_stalled(rx));
			len = len < pieces[i] ? len : pieces[i];
			len = len < n - at ? len : n - at;
			if (len) {
				memcpy(room, stream + at, len);
				assert_int_equal(page_rx_advance(rx, len, &err), 0);
				at += len;
				continue;
			}
			assert_true(s.held);
			assert_int_equal(count_batch(&s, &s.batch, &err), 0);
			s.held = false;
			assert_int_equal(page_rx_resume(rx, &err), 0);
		}
		assert_true(s.hellos == 1 && s.batches == 3 && s.flushes == 2);
		assert_true(page_digest_equal(s.digest, want));
		page_rx_free(rx);
	}
	free(stream);
}

/* Whatever is cut off, nothing that is incomplete is handled. */
static void truncation_handles_nothing_more(void **state)
{
	struct page_digest want = {0};
	size_t n;
	uint8_t *stream = golden_stream(&n, &want);
	struct cr_err err = {0};

	(void)state;
	for (size_t k = 0; k < n; k += k < 9000 ? 1 : 50021) {
		struct seen s = {0};
		struct page_rx *rx = page_rx_new(&see, &s);

		assert_int_equal(feed(rx, stream, k, 1 << 20, &err), 0);
		assert_int_equal(s.hellos, k >= 96);
		assert_true(k >= 96 + 32 + 64 + 8192 || s.batches == 0);
		assert_true(s.flushes < 2 && s.batches <= 3);
		page_rx_free(rx);
	}
	free(stream);
}

/* Every byte of the heads counts: changed, it is refused, or it is one that says something else. */
static void changed_bytes_are_survived(void **state)
{
	struct page_digest want = {0};
	size_t n, refused = 0;
	uint8_t *stream = golden_stream(&n, &want);
	struct cr_err err = {0};

	(void)state;
	n = 96 + 32 + 64 + 8192 + 32 + 32 + 32 + 100; /* into the compressed payload */
	for (size_t k = 0; k < n; k += k == 300 ? 8000 : 1) {
		for (int bit = 0; bit < 8; bit += 3) {
			struct seen s = {0};
			struct page_rx *rx = page_rx_new(&see, &s);

			stream[k] ^= 1 << bit;
			refused += feed(rx, stream, n, 1 << 20, &err) < 0;
			stream[k] ^= 1 << bit;
			page_rx_free(rx);
		}
	}
	assert_true(refused > 200);
	free(stream);
}

static void order_of_frames_is_checked(void **state)
{
	struct page_digest want = {0};
	size_t n;
	uint8_t *stream = golden_stream(&n, &want);
	struct cr_err err = {0};
	struct seen s = {.refuse = 1};
	struct page_rx *rx = page_rx_new(&see, &s);
	char *room;
	size_t len;

	(void)state;
	assert_int_equal(feed(rx, stream, 96, 96, &err), -EACCES);
	page_rx_room(rx, &room, &len);
	assert_int_equal(len, 0);
	assert_int_equal(page_rx_advance(rx, 0, &err), -EINVAL);
	page_rx_free(rx);
	s.refuse = 0;
	rx = page_rx_new(&see, &s);
	assert_int_equal(feed(rx, stream + 96, 96, 96, &err), -EPROTO); /* no HELLO */
	assert_non_null(strstr(err.msg, "no HELLO first"));
	page_rx_free(rx);
	rx = page_rx_new(&see, &s);
	assert_int_equal(feed(rx, stream, 96, 96, &err), 0);
	assert_int_equal(feed(rx, stream + 96 + 96 + 8192, 32, 96, &err),
			 -EPROTO); /* seq 2 first */
	assert_non_null(strstr(err.msg, "frame 2 where 1 is due"));
	page_rx_free(rx);
	page_rx_free(NULL);
	free(stream);
}

/* ---- digests ---- */

static void digest_is_fixed_and_commutative(void **state)
{
	static uint8_t page[3][4096];
	struct page_digest a = {0}, b = {0}, c = {.lo = UINT64_MAX, .hi = UINT64_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(page); i++)
		((uint8_t *)page)[i] = (uint8_t)(i * 7 + i / 4096);
	/* golden: other implementations must agree */
	assert_int_equal(page_digest_seed(0, 0), 0x48218226ff3cd4bfull);
	assert_int_equal(page_digest_seed(3, 0x7f0000001000), 0xe2da578e464b41a3ull);
	XXH128_hash_t zero = page_hash_zero(0, 0);
	assert_true(zero.high64 == 0xb770abdd8d82bdadull && zero.low64 == 0x08f3306db51f7e7eull);
	XXH128_hash_t plain = XXH3_128bits_withSeed(page[0], 4096, page_digest_seed(3, 0x1000));
	XXH128_hash_t h = page_hash(page[0], 3, 0x1000);
	assert_true(plain.low64 == h.low64 && plain.high64 == h.high64);
	for (size_t i = 0; i < 3; i++) {
		page_digest_add(&a, page_hash(page[i], 1, i * 4096));
		page_digest_add(&b, page_hash(page[2 - i], 1, (2 - i) * 4096));
	}
	assert_true(page_digest_equal(a, b));
	page_digest_add(&b, page_hash_zero(1, 0));
	assert_false(page_digest_equal(a, b));
	page_digest_merge(&c, (struct page_digest){.lo = 1});
	assert_true(c.lo == 0 && c.hi == 0);
}

/* ---- control messages ---- */

static void control_messages(void **state)
{
	struct ps_request rq = {.type = PS_TARGET_PROCESS,
				.index = 9,
				.pid = 77,
				.forbid_end = 8192},
			  rq2;
	struct ps_reply rp = {.type = PS_STATS}, rp2;
	uint8_t q[PS_REQUEST_BYTES], p[PS_REPLY_BYTES];
	struct cr_err err = {0};

	(void)state;
	memset(rq.token, 3, sizeof(rq.token));
	ps_request_encode(q, &rq);
	assert_memory_equal(q, "CRP1\2\0\0\0\x09\0\0\0\x4d\0\0\0", 16);
	assert_int_equal(ps_request_decode(&rq2, q, sizeof(q), &err), 0);
	assert_memory_equal(&rq, &rq2, sizeof(rq));
	for (size_t n = 0; n < sizeof(q); n++)
		assert_int_equal(ps_request_decode(&rq2, q, n, &err), -EPROTO);
	q[4] = PS_HURRY;
	assert_int_equal(ps_request_decode(&rq2, q, sizeof(q), &err), 0);
	q[4] = PS_HURRY + 1;
	assert_int_equal(ps_request_decode(&rq2, q, sizeof(q), &err), -EPROTO);
	q[4] = PS_TARGET_PROCESS;
	q[12] = 0;
	assert_int_equal(ps_request_decode(&rq2, q, sizeof(q), &err), -EPROTO); /* pid 0 */
	strcpy(rp.info.listen, "[::1]:7711");
	rp.info.port = 7711;
	rp.stats.placed.digest.hi = 42;
	cr_err_set(&rp.stats.last_error, CR_ERR_PEER, EACCES, "said no");
	ps_reply_encode(p, &rp);
	assert_int_equal(ps_reply_decode(&rp2, p, sizeof(p), &err), 0);
	assert_memory_equal(&rp, &rp2, sizeof(rp));
	cr_err_set(&rp.err, CR_ERR_INPUT, ENOENT, "none such");
	ps_reply_encode(p, &rp);
	assert_int_equal(ps_reply_decode(&rp2, p, sizeof(p), &err), 0);
	assert_string_equal(rp2.err.msg, "none such");
	assert_int_equal(ps_reply_decode(&rp2, p, sizeof(p) - 1, &err), -EPROTO);
}

/* ---- policies ---- */

/* Batches of 1 MiB, each taking `us`, of which `wait`; `wire` bytes of it go out when on. */
static uint64_t run_batches(struct page_policy *p, uint64_t now, int n, uint64_t us, uint64_t wait,
			    uint64_t wire)
{
	for (int i = 0; i < n; i++) {
		now += us;
		page_policy_sent(p, now, 1 << 20, p->on ? wire : 1 << 20, wait);
	}
	return now;
}

static void compresses_only_where_the_link_limits(void **state)
{
	struct page_policy p = {0};
	uint64_t now = 1000;

	(void)state;
	now = run_batches(&p, now, 10 * PAGE_POLICY_WINDOW, 1000, 100, 300000);
	assert_false(p.on);
	for (int i = 0; i < 2 * PAGE_POLICY_WINDOW && !p.on; i++)
		now = run_batches(&p, now, 1, 1000, 800, 300000);
	assert_true(p.on);
	/* compressed it goes three times as fast: stays on */
	now = run_batches(&p, now, 20 * PAGE_POLICY_WINDOW, 333, 0, 300000);
	assert_true(p.on);
	/* no faster than raw was: off */
	now = run_batches(&p, now, 2 * PAGE_POLICY_WINDOW, 1000, 0, 300000);
	assert_false(p.on);
}

static void stops_trying_what_does_not_compress(void **state)
{
	struct page_policy p = {0};
	uint64_t now = 1000;
	int on = 0;

	(void)state;
	for (int i = 0; i < 200 * PAGE_POLICY_WINDOW; i++) {
		now = run_batches(&p, now, 1, 1000, 800, 1 << 20);
		on += p.on;
	}
	/* two batches a trial, trials ever rarer */
	assert_true(on > 2 && on < 20);
	/* a pause starts a window anew, and is not taken for a slow link */
	page_policy_restart_window(&p);
	assert_int_equal(p.batches, 0);
}

static void token_bucket_keeps_the_rate(void **state)
{
	struct token_bucket b;
	uint64_t now = 1000000, sent = 0, start = now;

	(void)state;
	token_bucket_set(&b, 10000000, now);
	while (now < start + 1000000) {
		uint64_t wait = token_bucket_wait_us(&b, now);

		if (wait) {
			now += wait;
			continue;
		}
		token_bucket_pay(&b, 65536);
		sent += 65536;
	}
	assert_true(sent > 9800000 && sent < 10300000);
	/* an idle hour saves up no more than the burst */
	now += 3600000000;
	for (sent = 0; !token_bucket_wait_us(&b, now); sent += 65536)
		token_bucket_pay(&b, 65536);
	assert_true(sent <= 10000000 / 50 + 2 * 65536);
	token_bucket_set(&b, 0, now);
	token_bucket_pay(&b, 1 << 30);
	assert_int_equal(token_bucket_wait_us(&b, now), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(golden_frames),
	    cmocka_unit_test(golden_payloads),
	    cmocka_unit_test(payloads_of_a_wrong_size_fail),
	    cmocka_unit_test(bad_hellos_fail),
	    cmocka_unit_test(bad_headers_fail),
	    cmocka_unit_test(bad_runs_fail),
	    cmocka_unit_test(any_pieces_give_the_same),
	    cmocka_unit_test(missing_is_what_still_comes),
	    cmocka_unit_test(batches_in_use_are_left_alone),
	    cmocka_unit_test(truncation_handles_nothing_more),
	    cmocka_unit_test(changed_bytes_are_survived),
	    cmocka_unit_test(order_of_frames_is_checked),
	    cmocka_unit_test(digest_is_fixed_and_commutative),
	    cmocka_unit_test(control_messages),
	    cmocka_unit_test(compresses_only_where_the_link_limits),
	    cmocka_unit_test(stops_trying_what_does_not_compress),
	    cmocka_unit_test(token_bucket_keeps_the_rate),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
