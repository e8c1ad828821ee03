/* Memory that lives and dies together: allocate at will, free once. Zeroed. Not thread safe. */
#pragma once
#include <stddef.h>

struct arena;

struct arena *arena_new(void);    /* NULL when memory is out */
void arena_free(struct arena *a); /* takes NULL */
/* What was allocated from b lives as long as a; frees b. Takes NULL for b. */
void arena_join(struct arena *a, struct arena *b);
void *arena_alloc(struct arena *a, size_t bytes);
char *arena_strdup(struct arena *a, const char *s); /* NULL stays NULL */
void *arena_memdup(struct arena *a, const void *p, size_t bytes);

#define arena_new_of(a, type) ((type *)arena_alloc((a), sizeof(type)))
#define arena_array(a, type, n) ((type *)arena_alloc((a), sizeof(type) * (n)))
