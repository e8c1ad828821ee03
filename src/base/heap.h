/* Memory that is there when it is needed: a page fault in a virtual machine costs more than most
 * system calls, and a stop has no time for thousands of them. */
#pragma once
#include <stddef.h>

/* From here on free(3) keeps memory for the next malloc(3); mallopt(3). */
void heap_keep(void);
/* The next allocations, up to so many bytes in all, touch no new page. After heap_keep(). */
void heap_warm(size_t bytes);
