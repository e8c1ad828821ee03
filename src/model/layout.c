#include "model/layout.h"

#include <string.h>

bool vma_same_backing(const struct vma *a, const struct vma *b)
{
	if (a->kind != b->kind || a->ino != b->ino || a->dev != b->dev)
		return false;
	if ((a->flags ^ b->flags) & (VMA_F_GROWSDOWN | VMA_F_NORESERVE))
		return false;
	if (a->page_bytes != b->page_bytes)
		return false;
	return (a->kind == VMA_ANON && !a->page_bytes) ||
	       a->offset - a->start == b->offset - b->start;
}

size_t layout_lower(const struct vma *v, size_t n, uint64_t va)
{
	size_t lo = 0, hi = n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (v[mid].end <= va)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

const struct vma *layout_find(const struct vma *v, size_t n, uint64_t va)
{
	size_t i = layout_lower(v, n, va);

	return i < n && v[i].start <= va ? &v[i] : NULL;
}

bool layout_kept(const struct vma *old, size_t n_old, const struct vma *v)
{
	uint64_t at = v->start;

	for (size_t i = layout_lower(old, n_old, at); at < v->end; i++) {
		if (i >= n_old || old[i].start > at || !vma_same_backing(&old[i], v))
			return false;
		at = old[i].end;
	}
	return true;
}

static uint64_t vdso_at(const struct mm *mm)
{
	for (size_t i = 0; i < mm->n_vmas; i++)
		if (mm->vmas[i].kind == VMA_VDSO)
			return mm->vmas[i].start;
	return 0;
}

bool mm_is_forked(const struct process *child, const struct process *parent)
{
	const struct mm *c = &child->mm, *p = &parent->mm;

	return !child->zombie && !parent->zombie && c->exe_file == p->exe_file &&
	       c->exe_object == p->exe_object && c->start_code == p->start_code &&
	       c->start_stack == p->start_stack && c->auxv_len && c->auxv_len == p->auxv_len &&
	       !memcmp(c->auxv, p->auxv, c->auxv_len) && vdso_at(c) == vdso_at(p);
}
