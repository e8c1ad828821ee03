/* Files that come along, because the destination does not have them.
 *
 * The destination makes each under a name of its own beside its path, and links it to the path once
 * it is whole (link(2) replaces nothing). The other name stays until the tasks run: by it whoever
 * undoes, perhaps in another process, knows that what is at the path is ours. All of it is in the
 * journal before it happens. */
#pragma once
#include <stdbool.h>
#include "base/journal.h"
#include "model/refusal.h"
#include "model/tree.h"

/* POSIX shared memory and semaphores, shm_overview(7): files, but in memory, and gone with the
 * host. They come along without being asked for. */
bool carried_is_shm(const char *path);
/* A file of a disk or of memory, that has contents of its own. */
bool carried_can(const char *path, bool *ret_shm);
/* A directory that can be made elsewhere. */
bool carried_can_directory(const char *path);
/* Refuse if a task outside the tree (resource/inside.h) has path mapped or open. */
void carried_refuse_shared(const struct tree *t, bool exact, const char *path, uint64_t dev,
			   uint64_t ino, struct refusals *refused);

/* Source, once the tasks are gone: what they had, and have elsewhere now, is marked (an extended
 * attribute) as left behind. And: is that such a file, unchanged since, which nobody on this host
 * has open or mapped? */
void carried_leave(const char *path, uint64_t dev, uint64_t ino);
bool carried_is_left(const char *path);
/* The mark itself, which does not travel. */
bool carried_is_mark(const char *xattr);
/* Destination: temp, whole by now, takes the place of what was left behind at path, which is kept
 * for an undo. */
int carried_replace(const char *temp, const char *path, struct cr_err *err) must_check;

/* Destination: away with all that was made. */
void carried_undo(const struct journal *j);
/* Destination: one that is not needed after all. */
void carried_drop(const struct journal_carried *c);
/* Destination: they are the tasks' from now on. */
void carried_keep(const struct journal *j);
/* Source: the shared memory that has gone with the tasks. */
void carried_give(const struct journal *j);
