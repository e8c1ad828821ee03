/* A growable array of any type: `VEC(struct vma) v = {0}; *vec_push(&v) = …;`
 *
 * vec_push returns a zeroed slot or NULL when memory is out. The owner frees with vec_done. */
#pragma once
#include <stdlib.h>
#include <string.h>

#define VEC(type)                                                                                  \
	struct {                                                                                   \
		type *v;                                                                           \
		size_t n, cap;                                                                     \
	}

static inline int vec_reserve_(void **v, size_t *cap, size_t want, size_t elem)
{
	if (want <= *cap)
		return 0;
	size_t c = *cap ? *cap * 2 : 16;
	if (c < want)
		c = want;
	void *p = reallocarray(*v, c, elem);
	if (!p)
		return -1;
	*v = p;
	*cap = c;
	return 0;
}

#define vec_push(vec)                                                                              \
	(vec_reserve_((void **)&(vec)->v, &(vec)->cap, (vec)->n + 1, sizeof(*(vec)->v))            \
	     ? NULL                                                                                \
	     : (__typeof__((vec)->v))memset(&(vec)->v[(vec)->n++], 0, sizeof(*(vec)->v)))

#define vec_done(vec)                                                                              \
	do {                                                                                       \
		free((vec)->v);                                                                    \
		memset((vec), 0, sizeof(*(vec)));                                                  \
	} while (0)

#define vec_foreach(it, vec)                                                                       \
	for (__typeof__((vec)->v + 0) it = (vec)->v; it && it < (vec)->v + (vec)->n; it++)
