/* Which pages of an address space the destination has, and with what contents.
 *
 * A bit for every page, in chunks of 2 MiB, and, as far as memory allows, the digest of what was
 * sent: a page that was written with what it held before is not sent again. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

enum { CHUNK_PAGES = 512 };
#define CHUNK_SIZE ((uint64_t)CHUNK_PAGES * 4096)

struct sent_chunk {
	uint64_t start;         /* address of its first page */
	uint64_t sent[8];       /* bit per page */
	uint64_t lazy[8];       /* it is to fetch it from here when it runs */
	uint64_t copied[8];     /* it has it as a part of a donor's copy, memory/donor.h */
	uint64_t scratch[8];    /* for the user of a walk */
	XXH128_hash_t *digests; /* CHUNK_PAGES of them, or NULL */
	bool used;
};

struct sentmap {
	struct sent_chunk *slots; /* open addressing */
	size_t n, cap;
	size_t *budget; /* bytes that digests may still take, shared by all maps of a migration */
	bool digests_at_once; /* of all that is sent; else from the second time on */
};

void sentmap_init(struct sentmap *m, size_t *budget);
void sentmap_done(struct sentmap *m);
/* NULL: not there (create: memory is out). */
struct sent_chunk *sentmap_chunk(struct sentmap *m, uint64_t va, bool create);
bool sentmap_test(struct sentmap *m, uint64_t va);
/* The destination no longer has these. */
void sentmap_forget(struct sentmap *m, uint64_t start, uint64_t end);
/* Nor any at or above `end`. */
void sentmap_cut(struct sentmap *m, uint64_t end);
/* It has this page, but perhaps with other contents than were sent. */
void sentmap_doubt(struct sentmap *m, uint64_t va);

static inline unsigned int chunk_index(uint64_t va)
{
	return (unsigned int)(va % CHUNK_SIZE / 4096);
}
static inline bool chunk_test(const uint64_t bits[8], unsigned int i)
{
	return bits[i / 64] >> (i % 64) & 1;
}
static inline void chunk_set(uint64_t bits[8], unsigned int i)
{
	bits[i / 64] |= 1ull << (i % 64);
}
static inline void chunk_clear(uint64_t bits[8], unsigned int i)
{
	bits[i / 64] &= ~(1ull << (i % 64));
}
/* Digests of the chunk, allocated on demand within the budget; NULL where there is no room. */
XXH128_hash_t *sentmap_digests(struct sentmap *m, struct sent_chunk *c);
