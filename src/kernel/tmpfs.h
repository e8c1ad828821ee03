/* Files in memory, tmpfs(5). */
#pragma once
#include <stdbool.h>

/* Is that file one of a tmpfs? */
bool tmpfs_has(int fd);
/* Of one that makes no huge pages by itself: mounted without huge=, by which it would. False also
 * where that cannot be found out, as of a mount that is not in this process's namespace.
 * Documentation/admin-guide/mm/transhuge.rst; sizes other than of 2 MiB: 6.14. */
bool tmpfs_has_small(int fd);
