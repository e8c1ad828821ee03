#include "memory/shared_tracker.h"

#include <stdio.h>
#include "kernel/pagemap.h"
#include "kernel/uffd.h"

enum {
	/* more take longer to ask than the memory to compare */
	MAPPINGS_MAX = 64,
	/* What protects a page that a process has never touched lies in its page tables, 1/512 of
	 * the mapping: no more of them than a part of the memory that is left. */
	TABLE_SHARE = 512,
	TABLES_PART = 16,
};
static const uint64_t TABLE_BYTES = 2 << 20; /* what one page table maps */

void shared_look_done(struct shared_look *l)
{
	vec_done(&l->maps);
	*l = (struct shared_look){0};
}

/* ---- can every write be seen? ---- */

static uint64_t memory_available(void)
{
	unsigned long long kib = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib << 10;
}

/* What was registered, but perhaps has pages that look protected and are not, is not relied on. */
static bool is_settled(const struct tracker *t, const struct shm_mapping *m)
{
	vec_foreach (g, &t->unsettled)
		if (g->start < m->end && m->start < g->end)
			return false;
	return true;
}

/* What may not be written now could not be since the last change of the address space, nor can it
 * be before the next. */
static bool may_be_written(const struct shared_mapping *s)
{
	return s->m.flags & SHM_WRITE;
}

static bool is_tracked(const struct shared_mapping *s)
{
	return s->tracker && s->tracker->uffd >= 0 && !s->tracker->always_full &&
	       shm_mapping_is_tracked(&s->m) && is_settled(s->tracker, &s->m);
}

/* Counted twice, by processes that share an address space, they would hide one of somebody else. */
static bool is_told_again(const struct shared_look *l, const struct shared_mapping *s)
{
	for (const struct shared_mapping *o = l->maps.v; o < s; o++)
		if (o->m.mm == s->m.mm && o->m.start == s->m.start)
			return true;
	return false;
}

/* Openings for writing by which it is mapped, and that nothing but these mappings leads to any
 * more: what was mapped by a descriptor that is closed, as all is that has been moved here. */
static uint64_t openings_of_maps(const struct shared_look *l)
{
	uint64_t n = 0;

	vec_foreach (s, &l->maps) {
		uint64_t mappings = 0;
		bool first = true;

		vec_foreach (o, &l->maps) {
			if (o->m.file != s->m.file)
				continue;
			mappings++;
			first &= o >= s;
		}
		n += first && shm_mapping_is_opening(&s->m) && mappings == s->m.file_refs;
	}
	return n;
}

void shared_look_judge(struct shared_look *l, const struct shared_look *before)
{
	uint64_t bytes = 0, openings;

	l->known = false;
	if (!l->maps.n || l->maps.n > MAPPINGS_MAX)
		return;
	openings = l->openings + openings_of_maps(l);
	vec_foreach (s, &l->maps) {
		const struct shm_mapping *first = &l->maps.v[0].m;

		if ((may_be_written(s) && !is_tracked(s)) || is_told_again(l, s) ||
		    s->m.inode != first->inode ||
		    s->m.writable_maps != l->maps.n + l->maps_of_ours ||
		    (!l->by_descriptor && s->m.write_openings != openings))
			return;
		if (may_be_written(s))
			bytes += s->m.end - s->m.start;
	}
	/* once they are there, they are */
	l->known = before->known || bytes / TABLE_SHARE <= memory_available() / TABLES_PART;
}

static bool same_mapping(const struct shared_mapping *a, const struct shared_mapping *b)
{
	return a->pid == b->pid && a->m.mm == b->m.mm && a->m.lock_seq == b->m.lock_seq &&
	       a->m.start == b->m.start && a->m.end == b->m.end && a->m.first == b->m.first &&
	       a->m.inode == b->m.inode;
}

/* By any descriptor, written or mapped once more? */
static bool is_used(const struct shared_look *before, const struct shared_look *now)
{
	if (!before->by_descriptor && !now->by_descriptor)
		return false;
	return !before->by_descriptor || !now->by_descriptor || !now->marks.kept ||
	       !before->marks.accesses_show || before->marks.accessed_ns != now->marks.accessed_ns;
}

bool shared_look_follows(const struct shared_look *before, const struct shared_look *now)
{
	if (!before->known || !now->known || now->opened || before->size != now->size ||
	    before->maps.n != now->maps.n || before->attached_s != now->attached_s ||
	    is_used(before, now))
		return false;
	/* by the second only: another attachment may have followed within the same one */
	if (now->attached_s >= before->when_s && now->attached_s)
		return false;
	for (size_t i = 0; i < now->maps.n; i++)
		if (!same_mapping(&before->maps.v[i], &now->maps.v[i]))
			return false;
	return true;
}

/* ---- which pages were written ---- */

int shared_pages_init(struct shared_pages *p, uint64_t bytes, struct cr_err *err)
{
	*p = (struct shared_pages){.n = ALIGN_UP(bytes, CR_PAGE_SIZE) / CR_PAGE_SIZE};
	p->bits = calloc(p->n / 64 + 1, sizeof(*p->bits));
	return p->bits ? 0 : cr_err_oom(err);
}

void shared_pages_done(struct shared_pages *p)
{
	free(p->bits);
	*p = (struct shared_pages){0};
}

struct collecting {
	const struct shm_mapping *m;
	struct shared_pages *to;
};

void shared_pages_mark(struct shared_pages *p, size_t page)
{
	uint64_t bit = 1ull << page % 64;

	if (page >= p->n) /* a mapping may reach beyond the end of the object */
		return;
	p->marked += !(p->bits[page / 64] & bit);
	p->bits[page / 64] |= bit;
}

void shared_pages_unmark(struct shared_pages *p, size_t page)
{
	uint64_t bit = 1ull << page % 64;

	if (page >= p->n)
		return;
	p->marked -= !!(p->bits[page / 64] & bit);
	p->bits[page / 64] &= ~bit;
}

static void mark(const struct collecting *c, uint64_t start, uint64_t end)
{
	size_t i = (start - c->m->start) / CR_PAGE_SIZE + c->m->first;

	for (uint64_t va = start; va < end; va += CR_PAGE_SIZE)
		shared_pages_mark(c->to, i++);
}

static int on_written(const struct page_extent *e, void *arg, struct cr_err *err)
{
	(void)err;
	mark(arg, e->start, e->end);
	return 0;
}

/* Where there is no page table the scan reports nothing, whatever was written there before it went
 * (MADV_DONTNEED). One page tells, after the scan: its entry is empty then. That it can be asked
 * for also shows that the address space was there while it was scanned. */
static int look_for_tables(const struct shared_mapping *s, bool protect, struct collecting *c,
			   struct cr_err *err)
{
	int r = 0;

	for (uint64_t va = s->m.start; va < s->m.end && !r;) {
		uint64_t next = va - va % TABLE_BYTES + TABLE_BYTES, entry;

		if (next > s->m.end)
			next = s->m.end;
		r = pagemap_entry(s->tracker->pagemap, va, &entry, err);
		if (!r && pagemap_entry_empty(entry)) {
			mark(c, va, next);
			if (protect && uffd_protect(s->tracker->uffd, va, next))
				r = cr_err_set(err, CR_ERR_KERNEL, ESRCH,
					       "a shared mapping of %d is gone", s->pid);
		}
		va = next;
	}
	return r;
}

static int collect(const struct shared_mapping *s, bool protect, struct shared_pages *to,
		   struct cr_err *err)
{
	struct collecting c = {&s->m, to};
	/* mask and return exactly WRITTEN: all that is not protected, if it was never there as
	 * well; that is protected in one step with it, by a marker if need be */
	const struct pagemap_query q = {.start = s->m.start,
					.end = s->m.end,
					.mask = PAGE_CAT_WRITTEN,
					.ret = PAGE_CAT_WRITTEN,
					.protect = protect};
	int r = pagemap_walk(s->tracker->pagemap, &q, on_written, &c, err);

	return r ? r : look_for_tables(s, protect, &c, err);
}

int shared_look_collect(const struct shared_look *l, bool protect, struct shared_pages *ret,
			struct cr_err *err)
{
	int r = shared_pages_init(ret, l->size, err);

	vec_foreach (s, &l->maps)
		if (!r && may_be_written(s))
			r = collect(s, protect, ret, err);
	if (r)
		shared_pages_done(ret);
	return r;
}

bool shared_pages_next(const struct shared_pages *p, size_t *at, size_t *end)
{
	size_t i = *at;

	while (i < p->n && !(p->bits[i / 64] >> i % 64 & 1))
		i = p->bits[i / 64] >> i % 64 ? i + 1 : i - i % 64 + 64;
	if (i >= p->n)
		return false;
	*at = i;
	while (i < p->n && p->bits[i / 64] >> i % 64 & 1)
		i++;
	*end = i;
	return true;
}
