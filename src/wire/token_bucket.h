/* A limit on bytes per second. What goes out is paid for once its size is known, so the bucket may
 * go below zero by one message; then the next one waits until it is filled again. */
#pragma once
#include <stdint.h>

enum { TOKEN_BUCKET_BURST_US = 20000 }; /* how much of the limit may be saved up */

struct token_bucket {
	uint64_t bytes_s; /* 0: no limit */
	int64_t tokens;   /* bytes that may go out; negative: owed */
	uint64_t filled_us;
};

/* Limits from 1 TB/s up are none. */
void token_bucket_set(struct token_bucket *b, uint64_t bytes_s, uint64_t now_us);
/* How long until something may go out; 0: now. */
uint64_t token_bucket_wait_us(struct token_bucket *b, uint64_t now_us);
void token_bucket_pay(struct token_bucket *b, uint64_t bytes);
