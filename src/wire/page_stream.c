#include "wire/page_stream.h"

#include <stdarg.h>
#include <stdio.h>
#include "wire/le.h"

static const uint8_t magic[4] = {'C', 'R', 'P', 'G'};

enum { ROLE_SENDER = 1 };

static int bad(struct cr_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), cold));
static int bad(struct cr_err *err, const char *fmt, ...)
{
	char text[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return cr_err_set(err, CR_ERR_PEER, EPROTO, "page stream: %s", text);
}

bool page_stream_begins(const uint8_t p[4])
{
	return !memcmp(p, magic, sizeof(magic));
}

/* ---- header ---- */

void page_frame_encode(uint8_t out[PAGE_HDR_BYTES], const struct page_frame *f)
{
	memcpy(out, magic, sizeof(magic));
	out[4] = f->type;
	out[5] = f->flags;
	le_put16(out + 6, f->nruns);
	le_put32(out + 8, f->target);
	le_put32(out + 12, f->raw_bytes);
	le_put32(out + 16, f->wire_bytes);
	le_put32(out + 20, 0);
	le_put64(out + 24, f->seq);
}

static int check_batch(const struct page_frame *f, struct cr_err *err)
{
	if (f->flags & ~PAGE_FLAG_LZ4)
		return bad(err, "batch with unknown flags %#x", f->flags);
	if (!f->nruns || f->nruns > PAGE_BATCH_RUNS)
		return bad(err, "batch of %u runs (1 to %d are allowed)", f->nruns,
			   PAGE_BATCH_RUNS);
	if (f->target >= PAGE_TARGETS_MAX)
		return bad(err, "target %u is out of range", f->target);
	if (f->raw_bytes > PAGE_BATCH_BYTES || f->raw_bytes % CR_PAGE_SIZE)
		return bad(err, "batch of %u bytes of pages", f->raw_bytes);
	if (f->flags & PAGE_FLAG_LZ4) {
		if (!f->wire_bytes || f->wire_bytes >= f->raw_bytes)
			return bad(err, "%u bytes compressed to %u", f->raw_bytes, f->wire_bytes);
	} else if (f->wire_bytes != f->raw_bytes) {
		return bad(err, "%u bytes of payload for %u of pages", f->wire_bytes, f->raw_bytes);
	}
	return 0;
}

/* Frames other than BATCH carry a payload of a known size and nothing else. */
static int check_other(const struct page_frame *f, struct cr_err *err)
{
	static const struct {
		uint32_t least, most;
		bool seq;
	} allowed[] = {
	    [PAGE_FRAME_HELLO] = {PAGE_HELLO_BYTES, PAGE_HELLO_BYTES, false},
	    [PAGE_FRAME_HELLO_OK] = {PAGE_HELLO_OK_BYTES, PAGE_HELLO_OK_BYTES, false},
	    [PAGE_FRAME_ERROR] = {8, PAGE_ERROR_MAX_BYTES, false},
	    [PAGE_FRAME_FLUSH] = {0, 0, true},
	    [PAGE_FRAME_ACK] = {PAGE_ACK_BYTES, PAGE_ACK_BYTES, true},
	};

	if (f->type >= ARRAY_SIZE(allowed) || !f->type)
		return bad(err, "unknown frame type %u", f->type);
	if (f->wire_bytes < allowed[f->type].least || f->wire_bytes > allowed[f->type].most)
		return bad(err, "frame type %u with a payload of %u bytes", f->type, f->wire_bytes);
	if (f->flags || f->nruns || f->target || f->raw_bytes || (f->seq && !allowed[f->type].seq))
		return bad(err, "frame type %u with fields that it does not have", f->type);
	return 0;
}

int page_frame_decode(struct page_frame *ret, const void *p, size_t len, struct cr_err *err)
{
	const uint8_t *b = p;

	if (len < PAGE_HDR_BYTES)
		return bad(err, "header of %zu bytes", len);
	if (memcmp(b, magic, sizeof(magic)))
		return bad(err, "bad magic %02x%02x%02x%02x", b[0], b[1], b[2], b[3]);
	if (le_get32(b + 20))
		return bad(err, "reserved field of the header is not zero");
	struct page_frame f = {
	    .type = b[4],
	    .flags = b[5],
	    .nruns = le_get16(b + 6),
	    .target = le_get32(b + 8),
	    .raw_bytes = le_get32(b + 12),
	    .wire_bytes = le_get32(b + 16),
	    .seq = le_get64(b + 24),
	};
	int r = f.type == PAGE_FRAME_BATCH ? check_batch(&f, err) : check_other(&f, err);
	if (r)
		return r;
	*ret = f;
	return 0;
}

/* ---- runs ---- */

void page_run_encode(uint8_t out[PAGE_RUN_BYTES], const struct page_wire_run *r)
{
	le_put64(out, r->addr);
	le_put64(out + 8, r->src_addr);
	le_put32(out + 16, r->npages);
	le_put32(out + 20, r->src_target);
	out[24] = r->kind;
	memset(out + 25, 0, 7);
}

static int check_range(const char *what, uint64_t addr, uint32_t npages, struct cr_err *err)
{
	if (addr % CR_PAGE_SIZE)
		return bad(err, "%s %#llx is not page aligned", what, (unsigned long long)addr);
	if (addr >= PAGE_ADDR_END || npages > (PAGE_ADDR_END - addr) / CR_PAGE_SIZE)
		return bad(err, "%s %#llx: %u pages from there are out of range", what,
			   (unsigned long long)addr, npages);
	return 0;
}

static int run_decode(struct page_wire_run *ret, const uint8_t *b, struct cr_err *err)
{
	static const uint8_t zeros[7];
	struct page_wire_run r = {
	    .addr = le_get64(b),
	    .src_addr = le_get64(b + 8),
	    .npages = le_get32(b + 16),
	    .src_target = le_get32(b + 20),
	    .kind = b[24],
	};

	if (memcmp(b + 25, zeros, sizeof(zeros)))
		return bad(err, "reserved field of a run is not zero");
	if (r.kind != PAGE_DATA && r.kind != PAGE_ZERO && r.kind != PAGE_SAME)
		return bad(err, "unknown kind of run %u", r.kind);
	if (!r.npages || r.npages > PAGE_BATCH_PAGES)
		return bad(err, "run of %u pages (1 to %d are allowed)", r.npages,
			   PAGE_BATCH_PAGES);
	int e = check_range("address", r.addr, r.npages, err);
	if (e)
		return e;
	if (r.kind != PAGE_SAME && (r.src_addr || r.src_target))
		return bad(err, "run of kind %u with a source", r.kind);
	if (r.kind == PAGE_SAME) {
		if (r.src_target >= PAGE_TARGETS_MAX)
			return bad(err, "source target %u is out of range", r.src_target);
		e = check_range("source address", r.src_addr, r.npages, err);
		if (e)
			return e;
	}
	*ret = r;
	return 0;
}

int page_runs_decode(struct page_wire_run *ret, const struct page_frame *f, const void *p,
		     size_t len, struct cr_err *err)
{
	const uint8_t *b = p;
	uint64_t data = 0, total = 0;

	if (f->type != PAGE_FRAME_BATCH || f->nruns > PAGE_BATCH_RUNS)
		return bad(err, "runs in a frame that has none");
	if (len < (size_t)f->nruns * PAGE_RUN_BYTES)
		return bad(err, "%u runs in %zu bytes", f->nruns, len);
	for (size_t i = 0; i < f->nruns; i++) {
		int r = run_decode(&ret[i], b + i * PAGE_RUN_BYTES, err);

		if (r)
			return r;
		total += ret[i].npages;
		if (ret[i].kind == PAGE_DATA)
			data += ret[i].npages;
	}
	if (data * CR_PAGE_SIZE != f->raw_bytes)
		return bad(err, "runs of %llu pages of data, payload of %u bytes",
			   (unsigned long long)data, f->raw_bytes);
	if (total > PAGE_BATCH_PAGES)
		return bad(err, "batch of %llu pages", (unsigned long long)total);
	return 0;
}

/* ---- payloads ---- */

static int check_len(const char *what, size_t len, size_t want, struct cr_err *err)
{
	return len == want ? 0 : bad(err, "%s of %zu bytes, not %zu", what, len, want);
}

size_t page_hello_encode(uint8_t out[PAGE_HELLO_BYTES], const struct page_hello *h)
{
	memset(out, 0, PAGE_HELLO_BYTES);
	le_put16(out, h->version);
	le_put16(out + 2, h->version_min);
	out[4] = ROLE_SENDER;
	le_put16(out + 6, h->stream);
	le_put16(out + 8, h->nstreams);
	le_put32(out + 12, h->caps);
	memcpy(out + 16, h->id, PAGE_ID_BYTES);
	memcpy(out + 32, h->token, PAGE_TOKEN_BYTES);
	return PAGE_HELLO_BYTES;
}

int page_hello_decode(struct page_hello *ret, const void *p, size_t len, struct cr_err *err)
{
	const uint8_t *b = p;
	int r = check_len("HELLO", len, PAGE_HELLO_BYTES, err);

	if (r)
		return r;
	struct page_hello h = {
	    .version = le_get16(b),
	    .version_min = le_get16(b + 2),
	    .stream = le_get16(b + 6),
	    .nstreams = le_get16(b + 8),
	    .caps = le_get32(b + 12),
	};
	memcpy(h.id, b + 16, PAGE_ID_BYTES);
	memcpy(h.token, b + 32, PAGE_TOKEN_BYTES);
	if (!h.version_min || h.version_min > h.version)
		return bad(err, "HELLO with versions %u to %u", h.version_min, h.version);
	if (b[4] != ROLE_SENDER)
		return bad(err, "HELLO with role %u", b[4]);
	if (!h.nstreams || h.nstreams > PAGE_STREAMS_MAX || h.stream >= h.nstreams)
		return bad(err, "HELLO of stream %u of %u", h.stream, h.nstreams);
	*ret = h;
	return 0;
}

size_t page_hello_ok_encode(uint8_t out[PAGE_HELLO_OK_BYTES], const struct page_hello_ok *h)
{
	le_put16(out, h->version);
	le_put16(out + 2, 0);
	le_put32(out + 4, h->caps);
	return PAGE_HELLO_OK_BYTES;
}

int page_hello_ok_decode(struct page_hello_ok *ret, const void *p, size_t len, struct cr_err *err)
{
	int r = check_len("HELLO_OK", len, PAGE_HELLO_OK_BYTES, err);

	if (r)
		return r;
	ret->version = le_get16(p);
	ret->caps = le_get32((const uint8_t *)p + 4);
	return 0;
}

size_t page_ack_encode(uint8_t out[PAGE_ACK_BYTES], const struct page_ack *a)
{
	le_put32(out, a->status);
	le_put32(out + 4, 0);
	le_put64(out + 8, a->data_pages);
	le_put64(out + 16, a->zero_pages);
	le_put64(out + 24, a->same_pages);
	le_put64(out + 32, a->digest.lo);
	le_put64(out + 40, a->digest.hi);
	return PAGE_ACK_BYTES;
}

int page_ack_decode(struct page_ack *ret, const void *p, size_t len, struct cr_err *err)
{
	const uint8_t *b = p;
	int r = check_len("ACK", len, PAGE_ACK_BYTES, err);

	if (r)
		return r;
	*ret = (struct page_ack){
	    .status = le_get32(b),
	    .data_pages = le_get64(b + 8),
	    .zero_pages = le_get64(b + 16),
	    .same_pages = le_get64(b + 24),
	    .digest = {.lo = le_get64(b + 32), .hi = le_get64(b + 40)},
	};
	return 0;
}

size_t page_error_encode(uint8_t out[PAGE_ERROR_MAX_BYTES], const struct cr_err *e)
{
	size_t n = strnlen(e->msg, PAGE_ERROR_TEXT_BYTES);

	le_put32(out, e->kind);
	le_put32(out + 4, (uint32_t)e->code);
	memcpy(out + 8, e->msg, n);
	return 8 + n;
}

int page_error_decode(struct page_error *ret, const void *p, size_t len, struct cr_err *err)
{
	const uint8_t *b = p;

	if (len < 8 || len > PAGE_ERROR_MAX_BYTES)
		return bad(err, "ERROR of %zu bytes", len);
	uint32_t kind = le_get32(b), code = le_get32(b + 4);

	/* a newer peer may have kinds that this one has not */
	ret->kind =
	    kind >= CR_ERR_UNSUPPORTED && kind <= CR_ERR_BUG ? (enum cr_err_kind)kind : CR_ERR_PEER;
	ret->code = code && code < 4096 ? code : EIO;
	size_t n = len - 8;
	for (size_t i = 0; i < n; i++)
		ret->text[i] = b[8 + i] < ' ' || b[8 + i] > '~' ? '?' : (char)b[8 + i];
	ret->text[n] = '\0';
	return 0;
}
