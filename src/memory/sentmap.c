#include "memory/sentmap.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_CAP = 64 };

void sentmap_init(struct sentmap *m, size_t *budget)
{
	*m = (struct sentmap){.budget = budget};
}

void sentmap_done(struct sentmap *m)
{
	for (size_t i = 0; i < m->cap; i++) {
		if (m->slots[i].digests)
			*m->budget += CHUNK_PAGES * sizeof(XXH128_hash_t);
		free(m->slots[i].digests);
	}
	free(m->slots);
	*m = (struct sentmap){0};
}

static size_t slot_of(const struct sentmap *m, uint64_t start)
{
	uint64_t h = start / CHUNK_SIZE * 0x9e3779b97f4a7c15ull;
	size_t i = (size_t)(h >> 20) & (m->cap - 1);

	while (m->slots[i].used && m->slots[i].start != start)
		i = (i + 1) & (m->cap - 1);
	return i;
}

static bool enlarge(struct sentmap *m)
{
	struct sentmap bigger = {.cap = m->cap ? m->cap * 2 : FIRST_CAP};

	bigger.slots = calloc(bigger.cap, sizeof(*bigger.slots));
	if (!bigger.slots)
		return false;
	for (size_t i = 0; i < m->cap; i++)
		if (m->slots[i].used)
			bigger.slots[slot_of(&bigger, m->slots[i].start)] = m->slots[i];
	free(m->slots);
	m->slots = bigger.slots;
	m->cap = bigger.cap;
	return true;
}

struct sent_chunk *sentmap_chunk(struct sentmap *m, uint64_t va, bool create)
{
	uint64_t start = va - va % CHUNK_SIZE;

	if (m->cap) {
		struct sent_chunk *c = &m->slots[slot_of(m, start)];

		if (c->used)
			return c;
	}
	if (!create || (2 * (m->n + 1) > m->cap && !enlarge(m)))
		return NULL;
	struct sent_chunk *c = &m->slots[slot_of(m, start)];
	*c = (struct sent_chunk){.start = start, .used = true};
	m->n++;
	return c;
}

bool sentmap_test(struct sentmap *m, uint64_t va)
{
	struct sent_chunk *c = sentmap_chunk(m, va, false);

	return c && chunk_test(c->sent, chunk_index(va));
}

void sentmap_forget(struct sentmap *m, uint64_t start, uint64_t end)
{
	for (uint64_t at = start; at < end;) {
		struct sent_chunk *c = sentmap_chunk(m, at, false);
		uint64_t next = at - at % CHUNK_SIZE + CHUNK_SIZE;

		for (; c && at < end && at < next; at += 4096)
			chunk_clear(c->sent, chunk_index(at));
		at = next;
	}
}

void sentmap_cut(struct sentmap *m, uint64_t end)
{
	for (size_t i = 0; i < m->cap; i++) {
		struct sent_chunk *c = &m->slots[i];

		for (unsigned int k = 0; c->used && k < CHUNK_PAGES; k++)
			if (c->start + k * 4096ull >= end)
				chunk_clear(c->sent, k);
	}
}

void sentmap_doubt(struct sentmap *m, uint64_t va)
{
	struct sent_chunk *c = sentmap_chunk(m, va, false);

	if (c && c->digests)
		memset(&c->digests[chunk_index(va)], 0, sizeof(*c->digests));
}

XXH128_hash_t *sentmap_digests(struct sentmap *m, struct sent_chunk *c)
{
	const size_t bytes = CHUNK_PAGES * sizeof(XXH128_hash_t);

	if (c->digests || *m->budget < bytes)
		return c->digests;
	c->digests = calloc(1, bytes);
	if (c->digests)
		*m->budget -= bytes;
	return c->digests;
}
