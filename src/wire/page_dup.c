#include "wire/page_dup.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "wire/page_stream.h"

enum {
	SLOTS_LOG2 = 18,
	PAGE_WORDS = 512,
	SAMPLES = 16, /* words of a page, which tell most pages apart */
	STRIDE = PAGE_WORDS / SAMPLES,
	STREAM_BITS = 8, /* of a slot's place, below the page number */
	PAGE_SHIFT = 12,
};
_Static_assert(PAGE_STREAMS_MAX <= 1 << STREAM_BITS, "a stream's index fits");

struct slot {
	uint64_t hash;  /* low half of the page's hash, of its own place */
	uint64_t place; /* page number, stream */
	uint32_t tag;   /* of the sample, what does not choose the slot */
	uint32_t target;
	uint32_t generation; /* of the target when it was sent; 0: empty */
	uint32_t flushes;    /* how many there had been */
};

/* What of it was sent in this generation lies below `top`, every page once. */
struct dup_target {
	uint32_t generation; /* unique among all targets */
	uint64_t top;
};

struct page_dups {
	struct slot *slots;
	struct dup_target *targets; /* PAGE_TARGETS_MAX */
	uint32_t generation;        /* the last that was given */
	uint32_t oldest;            /* earlier ones are forgotten */
	uint32_t flushes;
};

struct page_dups *page_dups_new(void)
{
	struct page_dups *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	/* memory that is never touched costs nothing */
	d->slots = calloc((size_t)1 << SLOTS_LOG2, sizeof(*d->slots));
	d->targets = calloc(PAGE_TARGETS_MAX, sizeof(*d->targets));
	if (!d->slots || !d->targets) {
		page_dups_free(d);
		return NULL;
	}
	page_dups_forget(d);
	return d;
}

void page_dups_free(struct page_dups *d)
{
	if (!d)
		return;
	free(d->slots);
	free(d->targets);
	free(d);
}

void page_dups_forget(struct page_dups *d)
{
	d->oldest = d->generation + 1;
}

void page_dups_flushed(struct page_dups *d)
{
	d->flushes++;
}

void page_dups_sent(struct page_dups *d, uint32_t target, uint64_t addr, uint32_t npages)
{
	struct dup_target *t = &d->targets[target];

	if (t->generation < d->oldest || addr < t->top)
		t->generation = ++d->generation;
	t->top = addr + ((uint64_t)npages << PAGE_SHIFT);
}

static struct slot *slot_of(const struct page_dups *d, uint64_t sample)
{
	return &d->slots[sample >> (64 - SLOTS_LOG2)];
}

uint64_t page_dups_sample(const struct page_dups *d, const void *page)
{
	uint64_t words[SAMPLES];

	/* at another place of each stride: structures that repeat are seen as a whole */
	for (size_t i = 0; i < SAMPLES; i++)
		memcpy(&words[i], (const char *)page + 8 * (i * STRIDE + i * 7 % STRIDE),
		       sizeof(words[i]));
	uint64_t sample = XXH3_64bits(words, sizeof(words));
	__builtin_prefetch(slot_of(d, sample), 1);
	return sample;
}

bool page_dups_find(const struct page_dups *d, const void *page, uint64_t sample,
		    struct page_dup *ret)
{
	const struct slot *s = slot_of(d, sample);
	uint64_t addr = s->place >> STREAM_BITS << PAGE_SHIFT;

	if (s->tag != (uint32_t)sample || s->generation < d->oldest ||
	    s->generation != d->targets[s->target].generation ||
	    page_hash(page, s->target, addr).low64 != s->hash)
		return false;
	*ret = (struct page_dup){
	    .target = s->target,
	    .addr = addr,
	    .stream = s->flushes == d->flushes ? (int)(s->place & ((1u << STREAM_BITS) - 1))
					       : PAGE_DUP_PLACED,
	};
	return true;
}

void page_dups_add(struct page_dups *d, uint64_t sample, const struct page_dup *it,
		   XXH128_hash_t hash)
{
	*slot_of(d, sample) = (struct slot){
	    .hash = hash.low64,
	    .place = it->addr >> PAGE_SHIFT << STREAM_BITS | (uint64_t)it->stream,
	    .tag = (uint32_t)sample,
	    .target = it->target,
	    .generation = d->targets[it->target].generation,
	    .flushes = d->flushes,
	};
}
