/* Questions about the layout of an address space: the same ones at both ends, so that they agree.
 */
#pragma once
#include <stdbool.h>
#include "model/tree.h"

/* The same mapping of the same thing, perhaps with other bounds or attributes: what lies in both
 * keeps its pages at the destination. */
bool vma_same_backing(const struct vma *a, const struct vma *b);
/* The VMA that holds va, or NULL. */
const struct vma *layout_find(const struct vma *v, size_t n, uint64_t va);
/* Index of the first VMA that ends after va; n if none. */
size_t layout_lower(const struct vma *v, size_t n, uint64_t va);
/* Are all of [start, end) of v backed the same in the old layout? */
bool layout_kept(const struct vma *old, size_t n_old, const struct vma *v);
/* Does child, as far as the tree tells, have its memory from a fork(2) of parent and no execve(2)
 * since? What lies in the auxiliary vector (addresses chosen at random) would differ. */
bool mm_is_forked(const struct process *child, const struct process *parent);
/* Its pages are copied one by one into the task at the destination (not through a shared object).
 */
static inline bool vma_is_copied(const struct vma *v)
{
	return v->kind == VMA_ANON || v->kind == VMA_FILE_PRIVATE;
}
