#include "wire/token_bucket.h"

/* Both bounds keep the products below within 64 bits: 2^40 bytes/s over 2^23 us. */
enum { PASSED_MOST_US = 1 << 23 };

void token_bucket_set(struct token_bucket *b, uint64_t bytes_s, uint64_t now_us)
{
	b->bytes_s = bytes_s < 1ull << 40 ? bytes_s : 0;
	b->tokens = 0;
	b->filled_us = now_us;
}

uint64_t token_bucket_wait_us(struct token_bucket *b, uint64_t now_us)
{
	uint64_t passed = now_us - b->filled_us;

	if (!b->bytes_s)
		return 0;
	if (passed > PASSED_MOST_US)
		passed = PASSED_MOST_US;
	int64_t fresh = (int64_t)(b->bytes_s * passed / 1000000);
	int64_t most = (int64_t)(b->bytes_s * TOKEN_BUCKET_BURST_US / 1000000);
	if (fresh) { /* else a slow limit asked often would never fill */
		b->tokens = b->tokens + fresh < most ? b->tokens + fresh : most;
		b->filled_us = now_us;
	}
	return b->tokens >= 0 ? 0 : (uint64_t)-b->tokens * 1000000 / b->bytes_s + 1;
}

void token_bucket_pay(struct token_bucket *b, uint64_t bytes)
{
	if (b->bytes_s)
		b->tokens -= (int64_t)bytes;
}
