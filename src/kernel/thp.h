/* Transparent huge pages. Documentation/admin-guide/mm/transhuge.rst. */
#pragma once
#include <stdbool.h>

/* Does this host give huge pages, of any size, to anonymous memory that has not asked for them
 * by madvise(2)? False where it cannot be found out. */
bool thp_always(void);
/* May shared memory get huge pages, other than by MADV_COLLAPSE? */
bool thp_shared(void);
