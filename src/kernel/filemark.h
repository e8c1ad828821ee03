/* Whether a file in memory (tmpfs(5), memfd_create(2)) has been written, or mapped once more, since
 * the last look, by whomever and by whatever descriptor. Writes by mappings that are there show in
 * page tables, and not here.
 *
 * Times do not tell them apart: the first write to a page by a mapping changes these, too. Nor does
 * inotify(7): descriptors of memfd_create(2) make no events (6.14). But a file that is written
 * loses its capabilities, capabilities(7): the kernel takes "security.capability" away before
 * write(2) and its like change anything, and before fallocate(2) (also of MADV_REMOVE) and
 * truncate(2) have ended, all with the inode locked, whoever it is. A page fault does not. So the
 * file is given capabilities, which contain none: as long as they are there, nobody has written.
 *
 * mmap(2) is an access, which shows in its time, unless the mount or the descriptor has "noatime":
 * such a mount is told here, but not a descriptor with O_NOATIME. With "relatime" it only shows if
 * the time before was no later than that of the last change; the mark changes the file. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct filemark {
	bool kept;            /* nobody has written since the mark was put there */
	bool accesses_show;   /* the next one makes accessed_ns another */
	uint64_t accessed_ns; /* CLOCK_REALTIME */
};

/* Does this kernel keep to that? Tried with a memfd of our own. -ENOTSUP: it does not. */
int filemark_check(struct cr_err *err) must_check;
/* Looks, and puts the mark there if it is gone: that waits for writes that are under way. Whatever
 * comes after it shows in the next look. A negative errno: it cannot be had; -EBUSY: the file has
 * capabilities, which are to stay. Needs CAP_SETFCAP. */
int filemark_look(int fd, struct filemark *ret) must_check;
/* Is that extended attribute the mark? It does not travel. */
bool filemark_is(const char *name, const void *value, size_t len);
/* If it is there. */
void filemark_remove(int fd);
