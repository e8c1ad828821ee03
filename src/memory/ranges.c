#include "memory/ranges.h"

#include <stdlib.h>

static int by_start(const void *a, const void *b)
{
	const struct addr_range *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

void addr_ranges_tidy(struct addr_ranges *r)
{
	size_t n = 0;

	if (!r->n)
		return;
	qsort(r->v, r->n, sizeof(*r->v), by_start);
	for (size_t i = 1; i < r->n; i++) {
		struct addr_range *last = &r->v[n], *g = &r->v[i];

		if (g->start > last->end)
			r->v[++n] = *g;
		else if (g->end > last->end)
			last->end = g->end;
	}
	r->n = n + 1;
}
