/* Who opens a file that has no name, such as shared memory (proc(5), map_files): inotify(7) tells.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

/* Watches from here on what fd is of. Returns which watch it is, for openwatch_next(), or a
 * negative errno, without *err. */
int openwatch_add(int inotify, int fd) must_check;
int openwatch_new(void) must_check; /* a descriptor, or a negative errno */
/* Which watches have seen an open(2) since the last call: fn for each, some more than once. -1:
 * some were lost, it may be any of them. */
void openwatch_read(int inotify, void (*fn)(int watch, void *arg), void *arg);
