#include "model/lazy.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "model/layout.h"

enum { PER_THREAD = 8, REG_RSP = 19, ROBUST_HEAD_BYTES = 24, BELOW_STACK_BYTES = 128 };

struct list {
	uint64_t *v;
	size_t n;
};

static void add(struct list *l, uint64_t va, uint64_t bytes)
{
	uint64_t first = va & ~(CR_PAGE_SIZE - 1), last = (va + bytes - 1) & ~(CR_PAGE_SIZE - 1);

	if (!va || !bytes)
		return;
	l->v[l->n++] = first;
	if (last != first)
		l->v[l->n++] = last;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static bool is_huge(const struct mm *mm, uint64_t va)
{
	const struct vma *v = layout_find(mm->vmas, mm->n_vmas, va);

	return v && v->huge_stays;
}

/* The pages of l, which ascend, each once; where one lies in a huge page, all of that. *ret: for
 * the caller to free. */
static int whole_huge_pages(const struct mm *mm, const struct list *l, uint64_t **ret, size_t *n)
{
	size_t huge = 0;

	for (size_t i = 0; i < l->n; i++)
		huge += is_huge(mm, l->v[i]);
	uint64_t *out = malloc((l->n + huge * LAZY_HUGE_PAGES + 1) * sizeof(*out));
	*n = 0;
	if (!out)
		return -ENOMEM;
	for (size_t i = 0; i < l->n; i++) {
		bool whole = huge && is_huge(mm, l->v[i]);
		uint64_t va = whole ? l->v[i] & ~(LAZY_HUGE_BYTES - 1) : l->v[i];
		size_t pages = whole ? LAZY_HUGE_PAGES : 1;

		for (size_t k = 0; k < pages; k++, va += CR_PAGE_SIZE)
			if (!*n || out[*n - 1] < va)
				out[(*n)++] = va;
	}
	*ret = out;
	return 0;
}

int lazy_eager_pages(const struct process *p, uint64_t **ret, size_t *n)
{
	size_t most = p->n_threads * PER_THREAD + p->mm.n_held;
	struct list l = {.v = calloc(most + 1, sizeof(*l.v))};

	if (!l.v)
		return -ENOMEM;
	for (size_t i = 0; i < p->n_threads; i++) {
		const struct thread *th = &p->threads[i];
		uint64_t rsp = 0;

		/* at most a page: the kernel knows none larger */
		add(&l, th->rseq_va, th->rseq_len < CR_PAGE_SIZE ? th->rseq_len : CR_PAGE_SIZE);
		add(&l, th->clear_tid_va, sizeof(uint32_t));
		add(&l, th->robust_list_va, ROBUST_HEAD_BYTES);
		if (th->gpregs_len >= (REG_RSP + 1) * sizeof(rsp)) {
			memcpy(&rsp, th->gpregs + REG_RSP * sizeof(rsp), sizeof(rsp));
			if (rsp > BELOW_STACK_BYTES)
				add(&l, rsp - BELOW_STACK_BYTES, BELOW_STACK_BYTES + sizeof(rsp));
		}
	}
	for (size_t i = 0; i < p->mm.n_held; i++)
		add(&l, p->mm.held[i], 1);
	qsort(l.v, l.n, sizeof(*l.v), by_value);
	int r = whole_huge_pages(&p->mm, &l, ret, n);
	free(l.v);
	return r;
}

bool lazy_is_eager(const uint64_t *pages, size_t n, uint64_t va)
{
	return n && bsearch(&va, pages, n, sizeof(va), by_value);
}

static bool mapping_is_lazy(const struct vma *v, const uint64_t *eager, size_t n_eager)
{
	/* who wants huge pages of it may ask for them at any time, madvise(2) MADV_COLLAPSE: the
	 * kernel maps them without asking us */
	const uint32_t never = VMA_F_LOCKED | VMA_F_DONTFORK | VMA_F_WIPEONFORK | VMA_F_HUGEPAGE;

	if (v->kind != VMA_SHARED_OBJ || v->flags & never)
		return false;
	for (size_t i = 0; i < n_eager; i++)
		if (eager[i] >= v->start && eager[i] < v->end)
			return false;
	return true;
}

static bool process_lets_it_be_lazy(const struct process *p, uint32_t object)
{
	uint64_t *eager = NULL;
	size_t n = 0;
	bool is = true;

	for (size_t i = 0; i < p->mm.n_vmas && is; i++) {
		if (p->mm.vmas[i].object != object)
			continue;
		is = (eager || !lazy_eager_pages(p, &eager, &n)) &&
		     mapping_is_lazy(&p->mm.vmas[i], eager, n);
	}
	free(eager);
	return is;
}

/* Memory that nothing but its mappings leads to, once no descriptor does. A memfd that is sealed
 * against writing cannot be written by whoever fetches it, either. */
static bool kind_is_lazy(const struct shared_object *so)
{
	bool sealed = so->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);

	return so->kind == OBJ_SHARED_ANON || (so->kind == OBJ_UNLINKED && so->in_memory) ||
	       (so->kind == OBJ_MEMFD && !sealed && !(so->size % CR_PAGE_SIZE));
}

bool object_is_lazy(const struct tree *t, uint32_t object)
{
	const struct shared_object *so = object < t->n_objects ? &t->objects[object] : NULL;
	bool is = so && kind_is_lazy(so) && so->size >= LAZY_OBJECT_MIN_BYTES &&
		  (!so->page_bytes || so->page_bytes == LAZY_HUGE_BYTES);

	for (size_t i = 0; i < t->n_files && is; i++)
		is = t->files[i].object != object;
	for (size_t i = 0; i < t->n_procs && is; i++)
		is = t->procs[i].mm.exe_object != object + 1 && /* execve(2) reads it */
		     process_lets_it_be_lazy(&t->procs[i], object);
	return is;
}
