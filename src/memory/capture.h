/* Capture of address spaces: mappings, shared objects, mapped files. The pages are the tracker's.
 */
#pragma once
#include "base/err.h"
#include "base/vec.h"
#include "resource/resource.h"

struct proc_map;

/* Descriptors of the shared memory objects of a tree, same index; kept over all captures. */
struct object_fds {
	VEC(int) list;
};
void object_fds_done(struct object_fds *o);

/* Fill mm, tree->mapped_files and tree->objects of every process. Before files_capture(). Objects
 * and files keep their index over captures. -EAGAIN, only without exact: the mappings changed while
 * they were looked at; try again later. */
int memory_capture(struct capture *c, struct object_fds *o, struct cr_err *err) must_check;
/* After files_capture(): descriptors for the memfds that it has added. */
int memory_capture_objects(struct capture *c, struct object_fds *o, struct cr_err *err) must_check;

/* Room for one more, during memory_capture(). */
bool memory_objects_grow(struct tree *t);
/* memory/huge.c. The size of the huge pages that a file consists of; 0: of ordinary ones. */
uint64_t huge_page_bytes(int fd);
/* Of a private mapping of them: what the tree says of it, or why it cannot move. */
const char *huge_fill(const struct proc_map *m, struct vma *v);
struct huge_id {
	uint64_t dev, ino;
};
/* Mappings that a fork(2) has made two of: only one of them has pages reserved, mmap(2). */
struct huge_forked {
	VEC(struct huge_id) list;
};
/* Which private ones may stay behind at the source. f: from one capture to the next. */
int huge_mark_stays(struct tree *t, struct huge_forked *f, struct cr_err *err) must_check;
/* Does this host reserve a page once more when MADV_DONTNEED discards it (6.9)? Tries it, which
 * takes a free one for a moment. */
bool huge_may_be_discarded(void);
/* Preflight: are there as many at this host? */
void huge_check(const struct tree *t, struct refusals *refused);
/* memory/exe.c: the program of p, whose path exe says that it was removed. Refused, by name, if it
 * cannot move. */
int exe_capture(struct capture *c, struct object_fds *o, struct process *p, const char *exe,
		struct cr_err *err) must_check;

/* Destination preflight: mapped files are there and the same. */
void memory_check(const struct tree *t, struct refusals *refused);
