/* Robust mutexes that threads hold at the stop (get_robust_list(2); Documentation/locking/
 * robust-futexes.rst). A thread that exits with one has the kernel mark its word, and a page that
 * is missing then is passed over: whoever waits for the mutex would wait for ever. So such pages do
 * not stay behind (model/lazy.h). One that is taken later lies in a page that is there. */
#include <sys/uio.h>
#include "source/source.h"

enum {
	LIST_MAX = 2048, /* ROBUST_LIST_LIMIT: the kernel does not look further either */
	HEADS = 64,
	PI = 1, /* in the lowest bit of a pointer: the mutex inherits priority */
};

struct head { /* struct robust_list_head, linux/futex.h */
	uint64_t next;
	int64_t futex_offset;
	uint64_t pending;
};

typedef VEC(uint64_t) page_list;

static bool read_from(pid_t pid, uint64_t va, void *buf, size_t bytes)
{
	struct iovec local = {buf, bytes}, remote = {(void *)(uintptr_t)va, bytes};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes;
}

static int add_bytes(page_list *l, uint64_t va, uint64_t bytes, struct cr_err *err)
{
	for (uint64_t page = va & ~(CR_PAGE_SIZE - 1); page < va + bytes; page += CR_PAGE_SIZE) {
		uint64_t *slot = vec_push(l);

		if (!slot)
			return cr_err_oom(err);
		*slot = page;
	}
	return 0;
}

static int add_mutex(page_list *l, uint64_t entry, int64_t futex_offset, struct cr_err *err)
{
	int r = add_bytes(l, entry, sizeof(uint64_t), err);

	return r ? r : add_bytes(l, entry + (uint64_t)futex_offset, sizeof(uint32_t), err);
}

/* A list that leads to nowhere ends there, as it does for the kernel. */
static int add_list(page_list *l, pid_t pid, uint64_t head_va, const struct head *h,
		    struct cr_err *err)
{
	uint64_t entry = h->next & ~(uint64_t)PI, pending = h->pending & ~(uint64_t)PI, next;
	int r = pending ? add_mutex(l, pending, h->futex_offset, err) : 0;

	for (int i = 0; i < LIST_MAX && entry != head_va && !r; i++) {
		if (!read_from(pid, entry, &next, sizeof(next)))
			return 0;
		r = add_mutex(l, entry, h->futex_offset, err);
		entry = next & ~(uint64_t)PI;
	}
	return r;
}

/* Of up to HEADS threads from first on. */
static int add_some(page_list *l, const struct process *p, size_t first, struct cr_err *err)
{
	struct head heads[HEADS];
	struct iovec local[HEADS], remote[HEADS];
	uint64_t va[HEADS];
	size_t n = 0;
	int r = 0;

	for (size_t i = first; i < p->n_threads && i < first + HEADS; i++) {
		if (!p->threads[i].robust_list_va)
			continue;
		va[n] = p->threads[i].robust_list_va;
		remote[n] = (struct iovec){(void *)(uintptr_t)va[n], sizeof(*heads)};
		local[n] = (struct iovec){&heads[n], sizeof(*heads)};
		n++;
	}
	ssize_t got = n ? process_vm_readv(p->pid, local, n, remote, n, 0) : 0;
	bool at_once = got == (ssize_t)(n * sizeof(*heads));
	for (size_t i = 0; i < n && !r; i++)
		if (at_once || read_from(p->pid, va[i], &heads[i], sizeof(*heads)))
			r = add_list(l, p->pid, va[i], &heads[i], err);
	return r;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static int note(struct tree *t, struct process *p, struct cr_err *err)
{
	page_list l = {0};
	int r = 0;

	for (size_t i = 0; i < p->n_threads && !r; i += HEADS)
		r = add_some(&l, p, i, err);
	if (!r && l.n) {
		qsort(l.v, l.n, sizeof(*l.v), by_value);
		size_t n = 0;
		for (size_t i = 0; i < l.n; i++)
			if (!n || l.v[n - 1] != l.v[i])
				l.v[n++] = l.v[i];
		p->mm.held = arena_memdup(t->arena, l.v, n * sizeof(*l.v));
		p->mm.n_held = p->mm.held ? n : 0;
		r = p->mm.held ? 0 : cr_err_oom(err);
	}
	vec_done(&l);
	return r;
}

int source_note_held(struct source *s, struct tree *t, struct cr_err *err)
{
	int r = 0;

	if (!s->lazy && !s->image)
		return 0;
	for (size_t i = 0; i < t->n_procs && !r; i++)
		if (!t->procs[i].zombie)
			r = note(t, &t->procs[i], err);
	return r;
}
