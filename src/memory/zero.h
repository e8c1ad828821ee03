/* Is a page all zeros? */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "base/cleanup.h"

static inline bool page_is_zero(const void *page)
{
	const uint64_t *w = page;

	/* most pages that are not zero show it at once; memcmp(3) of the page with itself, shifted,
	 * is vectorised by libc */
	if (w[0] | w[1] | w[64] | w[256])
		return false;
	return !memcmp(page, (const char *)page + 8, CR_PAGE_SIZE - 8);
}
