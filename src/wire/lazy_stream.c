#include "wire/lazy_stream.h"

#include <string.h>
#include <xxhash.h>
#if defined(__x86_64__)
/* XXH3_64bits() is with the widest vectors that the processor has: AVX2 and AVX-512 take a third of
 * the time that SSE2 does. */
#include <xxh_x86dispatch.h>
#endif
#include "wire/le.h"
#include "wire/msg.h"

#define MAGIC 0x31595a4cu /* "LZY1" */
#define ADDR_END 0x7ffffffff000ull

void lazy_frame_encode(uint8_t out[LAZY_HDR_BYTES], const struct lazy_frame *f)
{
	memset(out, 0, LAZY_HDR_BYTES);
	le_put32(out, MAGIC);
	out[4] = (uint8_t)f->type;
	le_put32(out + 8, (uint32_t)f->pid);
	le_put32(out + 12, f->npages);
	le_put64(out + 16, f->addr);
	le_put64(out + 24, f->digest);
	le_put32(out + 32, f->payload);
}

static int bad(struct cr_err *err, const struct lazy_frame *f, const char *what)
{
	return cr_err_set(err, CR_ERR_PEER, EPROTO,
			  "fetching pages: frame of type %d with a bad %s", f->type, what);
}

/* How long the payload has to be. */
static uint64_t payload_of(const struct lazy_frame *f)
{
	switch (f->type) {
	case LAZY_MISSING:
	case LAZY_CLEAN:
		return f->npages * (uint64_t)LAZY_CHUNK_BYTES;
	case LAZY_PAGES:
		return f->npages * (uint64_t)CR_PAGE_SIZE;
	case LAZY_COMPLETE:
		return LAZY_STATS_BYTES;
	default:
		return 0;
	}
}

static uint32_t most_pages(enum lazy_type type)
{
	return type == LAZY_WANT ? LAZY_WANT_MAX : LAZY_PAGES_MAX;
}

int lazy_frame_decode(struct lazy_frame *ret, const uint8_t in[LAZY_HDR_BYTES], struct cr_err *err)
{
	struct lazy_frame f = {
	    .type = in[4],
	    .pid = (pid_t)le_get32(in + 8),
	    .npages = le_get32(in + 12),
	    .addr = le_get64(in + 16),
	    .digest = le_get64(in + 24),
	    .payload = le_get32(in + 32),
	};

	if (le_get32(in) != MAGIC || f.type < LAZY_START || f.type > LAZY_TOLD)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "fetching pages: no frame of ours");
	if (f.payload != payload_of(&f))
		return bad(err, &f, "length");
	switch (f.type) {
	case LAZY_MISSING:
	case LAZY_CLEAN:
		if (f.pid <= 0 || !f.npages || f.npages > LAZY_CHUNKS_MAX)
			return bad(err, &f, "count");
		break;
	case LAZY_WANT:
	case LAZY_PAGES:
	case LAZY_ZEROS:
	case LAZY_UNREADABLE:
	case LAZY_UNCHANGED:
		if (f.pid <= 0 || !f.npages || f.npages > most_pages(f.type))
			return bad(err, &f, "count");
		if (f.addr % CR_PAGE_SIZE || f.addr >= ADDR_END ||
		    f.npages > (ADDR_END - f.addr) / CR_PAGE_SIZE)
			return bad(err, &f, "address");
		break;
	default:
		break;
	}
	*ret = f;
	return 0;
}

void lazy_chunk_encode(uint8_t out[LAZY_CHUNK_BYTES], const struct lazy_chunk *c)
{
	le_put64(out, c->start);
	for (int i = 0; i < 8; i++)
		le_put64(out + 8 + 8 * i, c->bits[i]);
}

int lazy_chunk_decode(struct lazy_chunk *ret, const uint8_t in[LAZY_CHUNK_BYTES],
		      struct cr_err *err)
{
	struct lazy_chunk c = {.start = le_get64(in)};

	for (int i = 0; i < 8; i++)
		c.bits[i] = le_get64(in + 8 + 8 * i);
	if (c.start % (512 * CR_PAGE_SIZE) || c.start >= ADDR_END)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "fetching pages: a list of pages at a bad address");
	*ret = c;
	return 0;
}

uint64_t lazy_digest(const void *payload, size_t bytes)
{
	return XXH3_64bits(payload, bytes);
}

bool lazy_frame_intact(const struct lazy_frame *f, const void *payload)
{
	return (f->type != LAZY_PAGES && f->type != LAZY_CLEAN) ||
	       lazy_digest(payload, f->payload) == f->digest;
}

/* The numbers of a COMPLETE, in order. */
/* clang-format off */
#define STATS(X) \
	X(pages_lazy) X(faults) X(p50_us) X(p99_us) X(max_us) X(duration_us) X(reconnects) \
	X(asked_again) X(pushed) X(lost)
/* clang-format on */

void lazy_stats_encode(uint8_t out[LAZY_STATS_BYTES], const struct msg_postcopy *p)
{
#define PUT(f)                                                                                     \
	le_put64(out, p->f);                                                                       \
	out += 8;
	STATS(PUT)
}

void lazy_stats_decode(struct msg_postcopy *ret, const uint8_t in[LAZY_STATS_BYTES])
{
#define GET(f)                                                                                     \
	ret->f = le_get64(in);                                                                     \
	in += 8;
	STATS(GET)
}
