#include "base/heap.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_MAPPING_BYTES = 4 * 1024 * 1024, KEPT_BYTES = 32 * 1024 * 1024 };

void heap_keep(void)
{
	mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
	mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
}

void heap_warm(size_t bytes)
{
	const size_t piece = OWN_MAPPING_BYTES / 4;
	void *pieces[KEPT_BYTES / (OWN_MAPPING_BYTES / 4)];
	size_t n = 0;

	for (; n < sizeof(pieces) / sizeof(pieces[0]) && n * piece < bytes; n++) {
		pieces[n] = malloc(piece);
		if (!pieces[n])
			break;
		memset(pieces[n], 1, piece);
		__asm__ volatile("" ::"r"(pieces[n]) : "memory"); /* not optimized away */
	}
	while (n > 0)
		free(pieces[--n]);
}
