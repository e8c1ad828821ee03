/* Mirror the source's address spaces in the shells, and keep them in step.
 *
 * Every mapping is made with its final protection at its final place; the page-server writes into
 * read-only ones through /proc/PID/mem. What stays the same mapping keeps its pages. */
#pragma once
#include "base/err.h"
#include "dest/shells.h"

/* The memory shared by several mappings: one descriptor per tree->objects entry. */
struct object {
	int fd;
	int exe_fd;        /* the same contents, to be executed; -1: not made yet */
	uint64_t ino, dev; /* at the source */
};
struct objects {
	VEC(struct object) list;
};
/* Make what the tree has and we have not; sizes follow. Descriptors stay ours. */
int objects_sync(struct objects *o, const struct tree *t, struct cr_err *err) must_check;
/* Once the contents are in place. The seals against writing ask for there being no mapping that may
 * write: layout_unmap_object() first, layout_sync() afterwards. */
int objects_seal(struct objects *o, const struct tree *t, struct cr_err *err) must_check;
/* exe_file.c: a file with so's contents, which are in place, that can be a process's executable. It
 * stays o's: do not close. */
int object_exe(struct object *o, const struct shared_object *so, int *ret,
	       struct cr_err *err) must_check;
/* As make_object() of layout.c makes it, where so was. */
int layout_make_unlinked(const struct shared_object *so, struct cr_err *err) must_check;
void objects_done(struct objects *o);

/* A fresh shell: vdso, exe and the fields of PR_SET_MM_MAP. Once, before layout_sync(). */
int layout_init(struct shells *s, struct shell *sh, const struct tree *t, const struct process *p,
		struct cr_err *err) must_check;
/* Bring the shell's mappings to p->mm. Not parked. *ret_changed is set if anything was to be done.
 */
int layout_sync(struct shell *sh, const struct tree *t, const struct process *p,
		const struct objects *o, struct cr_err *err) must_check;
/* Take the mappings of one object out of the shell; the next layout_sync() makes them again. Not
 * parked. *ret_any is set if there were any. */
int layout_unmap_object(struct shell *sh, uint32_t object, bool *ret_any,
			struct cr_err *err) must_check;
/* The tree that the shell's mappings were compared with goes away: take the names of p's. */
int layout_adopt(struct shell *sh, const struct process *p, struct cr_err *err) must_check;
bool layout_differs(const struct shell *sh, const struct process *p);
/* brk and the rest of PR_SET_MM_MAP once more (without exe). Not parked. */
/* At the last tree; exe_fd is ours. Its pidfd must be there (shell_take_pidfd). */
int layout_set_exe(struct shell *sh, const struct process *p, int exe_fd,
		   struct cr_err *err) must_check;
int layout_set_mm_fields(struct shell *sh, const struct process *p, struct cr_err *err) must_check;
