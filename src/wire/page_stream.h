/* The page stream's frames: pure functions between bytes and structs. Layout in proto/PAGES.md.
 *
 * A frame is a header of 32 bytes, then nruns runs of 32 bytes, then wire_bytes of payload.
 * Decoders check every number for itself and against the others of the frame; *ret is only good to
 * use when all is well. What depends on the receiver's state (is the target known?) is the
 * receiver's to check. Errors of decoders are CR_ERR_PEER, EPROTO. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/page_digest.h"

enum {
	PAGE_STREAM_VERSION = 1,
	PAGE_STREAM_VERSION_MIN = 1, /* the oldest that this side still talks */

	PAGE_HDR_BYTES = 32,
	PAGE_RUN_BYTES = 32,
	/* Most pages of data in a batch: 512 KiB. What is received, hashed and placed in one go
	 * stays in a core's second-level cache; of 128 KiB to 1 MiB this was best, by a little. */
	PAGE_BATCH_DATA_PAGES = 128,
	PAGE_BATCH_PAGES = 4096, /* most pages of any kind in a batch: bounds the receiver's work */
	PAGE_BATCH_RUNS = 1024,  /* most runs in a batch: process_vm_writev's iovec limit */
	PAGE_BATCH_BYTES = PAGE_BATCH_DATA_PAGES * 4096,
	PAGE_FRAME_MAX_BYTES = PAGE_HDR_BYTES + PAGE_BATCH_RUNS * PAGE_RUN_BYTES + PAGE_BATCH_BYTES,
	PAGE_TARGETS_MAX = 1 << 16, /* target indices are below this */
	PAGE_STREAMS_MAX = 16,

	PAGE_ID_BYTES = 16,
	PAGE_TOKEN_BYTES = 32,
	PAGE_HELLO_BYTES = 64,
	PAGE_HELLO_OK_BYTES = 8,
	PAGE_ACK_BYTES = 48,
	PAGE_ERROR_TEXT_BYTES = 512,
	PAGE_ERROR_MAX_BYTES = 8 + PAGE_ERROR_TEXT_BYTES,
};
#define PAGE_ADDR_END 0x7ffffffff000ull /* first byte that no page may touch */

enum page_frame_type {
	PAGE_FRAME_HELLO = 1,    /* sender → receiver, first, once; payload: hello */
	PAGE_FRAME_HELLO_OK = 2, /* receiver → sender; payload: hello_ok */
	PAGE_FRAME_ERROR = 3, /* receiver → sender, then the connection closes; payload: error */
	PAGE_FRAME_BATCH = 4, /* sender → receiver; runs; payload: the DATA runs' pages */
	PAGE_FRAME_FLUSH = 5, /* sender → receiver: answer when all before is placed; seq */
	PAGE_FRAME_ACK = 6,   /* receiver → sender; seq of the FLUSH; payload: ack */
};
enum { PAGE_FLAG_LZ4 = 1 }; /* BATCH: the payload is one LZ4 block of raw_bytes */

enum { /* capability bits of HELLO; HELLO_OK has those that both sides have */
       PAGE_CAP_LZ4 = 1u << 0,
       PAGE_CAP_SAME = 1u << 1,
       PAGE_CAPS = PAGE_CAP_LZ4 | PAGE_CAP_SAME,
};

enum page_kind {
	PAGE_DATA = 1, /* pages in the payload, in the order of the runs */
	PAGE_ZERO = 2, /* pages of zeros */
	PAGE_SAME = 3, /* equal to what the receiver has at src_addr of src_target */
};

struct page_frame {
	uint8_t type;
	uint8_t flags;
	uint16_t nruns;
	uint32_t target;
	uint32_t raw_bytes;  /* of the payload, uncompressed */
	uint32_t wire_bytes; /* of the payload as it is on the wire */
	uint64_t seq;
};

struct page_wire_run {
	uint64_t addr;     /* page aligned; address in a process, byte offset in an object */
	uint64_t src_addr; /* SAME only, else 0 */
	uint32_t npages;
	uint32_t src_target; /* SAME only, else 0 */
	uint8_t kind;
};

struct page_hello {
	uint16_t version, version_min;
	uint16_t stream, nstreams; /* stream < nstreams <= PAGE_STREAMS_MAX */
	uint32_t caps;
	uint8_t id[PAGE_ID_BYTES];
	uint8_t token[PAGE_TOKEN_BYTES];
};

struct page_hello_ok {
	uint16_t version; /* the one to talk from here on */
	uint32_t caps;
};

/* What this stream has placed since its HELLO. */
struct page_ack {
	uint64_t data_pages, zero_pages, same_pages;
	struct page_digest digest;
	uint32_t status; /* 0; errors come as ERROR */
};

struct page_error {
	enum cr_err_kind kind;
	uint32_t code; /* errno */
	char text[PAGE_ERROR_TEXT_BYTES + 1];
};

/* Do these four bytes begin a page stream? */
bool page_stream_begins(const uint8_t p[4]);

/* Header. `len` is how much is there; PAGE_HDR_BYTES are needed. */
void page_frame_encode(uint8_t out[PAGE_HDR_BYTES], const struct page_frame *f);
int page_frame_decode(struct page_frame *ret, const void *p, size_t len,
		      struct cr_err *err) must_check;
/* Bytes of the whole frame, header included: at most PAGE_FRAME_MAX_BYTES for a decoded header. */
static inline size_t page_frame_bytes(const struct page_frame *f)
{
	return PAGE_HDR_BYTES + (size_t)f->nruns * PAGE_RUN_BYTES + f->wire_bytes;
}

void page_run_encode(uint8_t out[PAGE_RUN_BYTES], const struct page_wire_run *r);
/* All f->nruns runs of a BATCH, ret having room for them. Checks also that the pages of DATA are
 * f->raw_bytes and that the limits on pages hold. */
int page_runs_decode(struct page_wire_run *ret, const struct page_frame *f, const void *p,
		     size_t len, struct cr_err *err) must_check;

/* Payloads. The encoders return the bytes written. */
size_t page_hello_encode(uint8_t out[PAGE_HELLO_BYTES], const struct page_hello *h);
int page_hello_decode(struct page_hello *ret, const void *p, size_t len,
		      struct cr_err *err) must_check;
size_t page_hello_ok_encode(uint8_t out[PAGE_HELLO_OK_BYTES], const struct page_hello_ok *h);
int page_hello_ok_decode(struct page_hello_ok *ret, const void *p, size_t len,
			 struct cr_err *err) must_check;
size_t page_ack_encode(uint8_t out[PAGE_ACK_BYTES], const struct page_ack *a);
int page_ack_decode(struct page_ack *ret, const void *p, size_t len, struct cr_err *err) must_check;
size_t page_error_encode(uint8_t out[PAGE_ERROR_MAX_BYTES], const struct cr_err *e);
/* The text is the peer's: unprintable bytes become '?'. */
int page_error_decode(struct page_error *ret, const void *p, size_t len,
		      struct cr_err *err) must_check;
