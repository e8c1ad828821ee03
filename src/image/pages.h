/* The pages of one process or object in an image: a sparse file of slots of 2 MiB, and an index in
 * memory that says which chunk of the address space is in which slot, which of its pages are there,
 * and the hash of each.
 *
 * A page written again overwrites, one that was discarded becomes a hole: the file holds no page
 * twice. A slot that nothing uses any more is used again. Writing may be done by several threads;
 * everything else is for one, while nobody writes. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/vec.h"
#include "wire/page_digest.h"

enum { IMAGE_CHUNK_PAGES = 512 };
#define IMAGE_CHUNK_BYTES ((uint64_t)IMAGE_CHUNK_PAGES * CR_PAGE_SIZE)

struct image_chunk {
	uint64_t va;      /* of its first page: an address, or an offset in an object */
	uint32_t slot;    /* at slot * IMAGE_CHUNK_BYTES in the file */
	uint64_t data[8]; /* bit per page: bytes in the file */
	uint64_t zero[8]; /* bit per page: known to be zeros; nothing in the file */
	XXH128_hash_t hash[IMAGE_CHUNK_PAGES]; /* of the data pages */
};

/* What all images of a receiver may take together; NULL where nothing is limited. */
struct image_limits {
	_Atomic uint64_t memory_bytes, disk_bytes; /* in use */
	_Atomic uint64_t memory_max, disk_max;     /* 0: no limit */
};

/* For what else it holds; the caller subtracts it from memory_bytes. -ENOMEM: over the limit. */
int image_limits_take_memory(struct image_limits *l, uint64_t n, struct cr_err *err) must_check;

struct image_pages {
	int fd;                           /* owned */
	uint32_t target;                  /* seed of the hashes */
	VEC(struct image_chunk *) chunks; /* by address */
	VEC(uint32_t) free_slots;
	uint32_t slots; /* that the file has room for */
	uint64_t n_data, n_zero;
	struct image_limits *limits;
	pthread_mutex_t lock;
};

/* Takes fd (also on failure of what comes later: image_pages_done() closes it). */
void image_pages_init(struct image_pages *p, int fd, uint32_t target, struct image_limits *l);
void image_pages_done(struct image_pages *p);

/* n pages, all from addr on, their hashes with page_hash(…, target, address). -ENOSPC, -ENOMEM:
 * over a limit, or the disk is full. */
int image_pages_write(struct image_pages *p, uint64_t addr, size_t n, const uint8_t *data,
		      const XXH128_hash_t *hashes, struct cr_err *err) must_check;
int image_pages_zero(struct image_pages *p, uint64_t addr, size_t n, struct cr_err *err) must_check;

/* Pages of [start, end), page aligned, that are no page any more. */
int image_pages_drop(struct image_pages *p, uint64_t start, uint64_t end,
		     struct cr_err *err) must_check;

/* Every page for which keep() says no goes. */
typedef bool (*image_keep_fn)(uint64_t va, bool zero, void *arg);
int image_pages_prune(struct image_pages *p, image_keep_fn keep, void *arg,
		      struct cr_err *err) must_check;

/* The payload of an index: *ret is malloc'ed. */
int image_pages_encode(const struct image_pages *p, uint8_t **ret, size_t *n,
		       struct cr_err *err) must_check;
/* Chunks from va on, as many as fit into max bytes, likewise, but with slots counted from 0. *next:
 * where to go on; 0: that was all. */
int image_pages_encode_part(const struct image_pages *p, uint64_t va, size_t max, uint8_t **ret,
			    size_t *n, uint64_t *next, struct cr_err *err) must_check;
/* Into an empty one, for reading. file: for messages. Errors: INPUT, -EBADMSG. */
int image_pages_decode(struct image_pages *p, const uint8_t *b, size_t n, const char *file,
		       struct cr_err *err) must_check;

/* Before the first is written to what was decoded: the slots that are free are used first. */
int image_pages_find_free(struct image_pages *p, struct cr_err *err) must_check;

/* NULL if there is none. */
const struct image_chunk *image_pages_find(const struct image_pages *p, uint64_t va);
/* First chunk at or after va, by index; p->chunks.n if none. */
size_t image_pages_lower(const struct image_pages *p, uint64_t va);

/* The page at va, checked against its hash; zeros where there is none (*ret_there tells, may be
 * NULL). Errors: INPUT, -EBADMSG: damaged. */
int image_pages_read(const struct image_pages *p, uint64_t va, uint8_t buf[CR_PAGE_SIZE],
		     bool *ret_there, struct cr_err *err) must_check;

static inline bool image_bit(const uint64_t bits[8], unsigned int i)
{
	return bits[i / 64] >> (i % 64) & 1;
}
static inline uint64_t image_page_offset(const struct image_chunk *c, unsigned int i)
{
	return c->slot * IMAGE_CHUNK_BYTES + i * CR_PAGE_SIZE;
}
