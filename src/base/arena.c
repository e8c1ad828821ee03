#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 32 * 1024 };

struct chunk {
	struct chunk *next;
	size_t used, size;
	max_align_t data[];
};

struct arena {
	struct chunk *head;
};

struct arena *arena_new(void)
{
	return calloc(1, sizeof(struct arena));
}

void arena_free(struct arena *a)
{
	if (!a)
		return;
	for (struct chunk *c = a->head, *next; c; c = next) {
		next = c->next;
		free(c);
	}
	free(a);
}

void arena_join(struct arena *a, struct arena *b)
{
	struct chunk **end = &a->head; /* behind the one that is in use */

	if (!b)
		return;
	while (*end)
		end = &(*end)->next;
	*end = b->head;
	free(b);
}

void *arena_alloc(struct arena *a, size_t bytes)
{
	size_t need = (bytes + 15) & ~(size_t)15;

	if (need < bytes)
		return NULL;
	if (!a->head || a->head->size - a->head->used < need) {
		size_t size = need > CHUNK_BYTES ? need : CHUNK_BYTES;
		struct chunk *c = calloc(1, sizeof(*c) + size);

		if (!c)
			return NULL;
		c->size = size;
		c->next = a->head;
		a->head = c;
	}
	void *p = (char *)a->head->data + a->head->used;
	a->head->used += need;
	return p;
}

void *arena_memdup(struct arena *a, const void *p, size_t bytes)
{
	void *q = arena_alloc(a, bytes ? bytes : 1);

	if (q && bytes)
		memcpy(q, p, bytes);
	return q;
}

char *arena_strdup(struct arena *a, const char *s)
{
	return s ? arena_memdup(a, s, strlen(s) + 1) : NULL;
}
