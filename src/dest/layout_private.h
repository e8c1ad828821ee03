/* Shared by layout.c and layout_join.c. */
#pragma once
#include "base/vec.h"
#include "dest/layout.h"

struct mapper {
	struct rtask *rt;
	const struct tree *t;
	const struct objects *objects;
	int pidfd_slot;
	int fd; /* open in the shell, -1 if none */
	const struct vma *fd_of;
	unsigned int pieces;             /* of the mapping at hand: mapped before, or mapped now */
	VEC(const struct vma *) several; /* mappings that were made of several pieces */
	struct cr_err *err;
};

/* Queue: map [start, end) of v anew; the name that v has. */
int layout_map_range(struct mapper *m, const struct vma *v, uint64_t start,
		     uint64_t end) must_check;
int layout_set_name(struct mapper *m, const struct vma *v) must_check;
/* Queue: what madvise(2) and mlock(2) say of v's mapping, which had these flags before. */
void layout_advise(struct mapper *m, const struct vma *v, uint64_t start, uint64_t end,
		   uint32_t had);
/* Queue: open in the shell, as m->fd, what v maps. */
int layout_open_backing(struct mapper *m, const struct vma *v) must_check;

/* ---- layout_join.c ---- */

/* How many mappings from the i-th on lie side by side, of one kind and backing, where the shell has
 * nothing yet; less than 2 is no run. */
size_t layout_run(const struct shell *sh, const struct mm *mm, size_t i);
/* Map a run of n so that whatever part of it becomes one mapping later can be one here. */
int layout_map_run(struct mapper *m, const struct shell *sh, const struct vma *v,
		   size_t n) must_check;
/* Those in m->several that are one mapping at the source and not here: make them so. */
int layout_join(struct mapper *m, const struct shell *sh, const struct mm *mm) must_check;
