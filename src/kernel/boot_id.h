/* Which boot of which machine's kernel this is: where it is the same, device and inode numbers of
 * two captures mean the same. /proc/sys/kernel/random/boot_id, random(4). */
#pragma once
#include <stdbool.h>

enum { BOOT_ID_SIZE = 37 }; /* with the final NUL */

/* "" if it cannot be told. */
void boot_id_read(char ret[static BOOT_ID_SIZE]);
/* True if theirs is that of the kernel that runs here. *ret_known: false if one of both is not
 * told. */
bool boot_id_matches(const char *theirs, bool *ret_known);
