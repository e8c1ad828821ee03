#include "wire/page_digest.h"

#if defined(__x86_64__)
/* Chooses SSE2, AVX2 or AVX-512 once, at run time: 6, 10 and 14-19 GB/s on pages. */
#include <xxh_x86dispatch.h>
#define hash_with_seed XXH3_128bits_withSeed_dispatch
#else
#define hash_with_seed XXH3_128bits_withSeed
#endif

enum { PAGE_BYTES = 4096 };

XXH128_hash_t page_hash(const void *page, uint32_t target, uint64_t addr)
{
	return hash_with_seed(page, PAGE_BYTES, page_digest_seed(target, addr));
}

void page_hash_run(const void *pages, size_t npages, uint32_t target, uint64_t addr,
		   XXH128_hash_t *ret)
{
	const char *p = pages;

	for (size_t i = 0; i < npages; i++)
		ret[i] = page_hash(p + i * PAGE_BYTES, target, addr + i * PAGE_BYTES);
}

XXH128_hash_t page_hash_zero(uint32_t target, uint64_t addr)
{
	static const _Alignas(64) unsigned char zeros[PAGE_BYTES];

	return page_hash(zeros, target, addr);
}
