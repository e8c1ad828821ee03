/* The build id of an executable or library: which build of a program a file is, whatever its name
 * and times say. elf(5), NT_GNU_BUILD_ID. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { BUILD_ID_MAX = 20 }; /* SHA-1, as linkers make it; longer ones are cut */

/* Bytes put into ret; 0: no ELF file, none in it, or it cannot be read. */
size_t build_id_read(const char *path, uint8_t ret[static BUILD_ID_MAX]);
