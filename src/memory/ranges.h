/* Lists of address ranges. */
#pragma once
#include <stddef.h>
#include "base/vec.h"
#include "model/tree.h"

struct addr_ranges { /* a VEC() that has a name */
	struct addr_range *v;
	size_t n, cap;
};

/* Ascending and disjoint: those that touch become one. */
void addr_ranges_tidy(struct addr_ranges *r);
