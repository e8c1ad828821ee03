/* The digest of pages: what the sender says it sent and the receiver says it placed.
 *
 * A page's hash is XXH3-128 over its 4096 bytes, seeded with where it goes, so that a right page in
 * a wrong place shows. A digest is the sum of the hashes modulo 2^128 over every page placed,
 * counting a page again each time that it is placed: independent of order and of how pages share
 * streams. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

struct page_digest {
	uint64_t lo, hi;
};

/* splitmix64's finaliser. Fixed by the protocol. */
static inline uint64_t page_digest_mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* The seed for the page at addr (byte address or offset, page aligned) of a target. */
static inline uint64_t page_digest_seed(uint32_t target, uint64_t addr)
{
	return page_digest_mix(addr + page_digest_mix((uint64_t)target + 0x9e3779b97f4a7c15ull));
}

static inline void page_digest_add(struct page_digest *d, XXH128_hash_t h)
{
	unsigned __int128 s = ((unsigned __int128)d->hi << 64 | d->lo) +
			      ((unsigned __int128)h.high64 << 64 | h.low64);

	d->lo = (uint64_t)s;
	d->hi = (uint64_t)(s >> 64);
}

static inline void page_digest_merge(struct page_digest *d, struct page_digest o)
{
	page_digest_add(d, (XXH128_hash_t){.low64 = o.lo, .high64 = o.hi});
}

static inline bool page_digest_equal(struct page_digest a, struct page_digest b)
{
	return a.lo == b.lo && a.hi == b.hi;
}

/* Hash of one page (4096 bytes) for its place. Uses the widest vectors that the CPU has. */
XXH128_hash_t page_hash(const void *page, uint32_t target, uint64_t addr);

/* Hashes of npages pages that follow each other both in memory and at the target. */
void page_hash_run(const void *pages, size_t npages, uint32_t target, uint64_t addr,
		   XXH128_hash_t *ret);

/* Hash of a page of zeros for its place. */
XXH128_hash_t page_hash_zero(uint32_t target, uint64_t addr);
