#include "dest/lazy_state.h"

#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

/* A remap of a part splits a segment; more often than this nobody does. */
enum { SPARE_SEGS = 1024 };

static uint8_t *slot(struct lazy_shared *s, const struct lazy_space *sp)
{
	size_t i = (size_t)(sp - s->spaces);

	return (uint8_t *)s + ALIGN_UP(sizeof(*s), CR_PAGE_SIZE) + i * s->stride;
}

static struct lazy_seg *table(struct lazy_shared *s, const struct lazy_space *sp, uint32_t which)
{
	return (struct lazy_seg *)slot(s, sp) + which * s->seg_cap;
}

static uint64_t *bitmap(struct lazy_shared *s, const struct lazy_space *sp)
{
	return (uint64_t *)((struct lazy_seg *)slot(s, sp) + 2 * s->seg_cap);
}

int lazy_state_new(struct lazy_shared **ret, uint64_t segs, uint64_t pages, uint64_t object_pages,
		   uint32_t n_objects, struct cr_err *err)
{
	/* each begins in a chunk of its own */
	uint64_t object_words = object_pages / 64 + 8ull * n_objects;
	uint64_t cap = 2 * segs + SPARE_SEGS;
	/* every segment begins in a word of its own */
	uint64_t bits = ALIGN_UP(pages, 64ull) + 64 * segs + 64;
	uint64_t stride =
	    ALIGN_UP(2 * cap * sizeof(struct lazy_seg) + bits / 8, (uint64_t)CR_PAGE_SIZE);
	size_t bytes = ALIGN_UP(sizeof(struct lazy_shared), CR_PAGE_SIZE) + LAZY_SPACES * stride +
		       2 * object_words * sizeof(uint64_t);
	/* memory is taken where it is touched */
	struct lazy_shared *s = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (s == MAP_FAILED)
		return cr_err_sys(err, "memory to note what is missing");
	s->bytes = bytes;
	s->stride = stride;
	s->seg_cap = cap;
	s->bits = bits;
	s->object_words = object_words;
	for (size_t i = 0; i < LAZY_OBJECTS; i++) {
		s->objects[i].fd = -1;
		s->guard_fds[i] = -1;
	}
	s->urgent_fd = s->supervisor_pidfd = s->fetcher_pidfd = -1;
	s->control = s->fetcher_control = s->page_server = -1;
	s->tie_hold = s->tie_read = -1;
	s->dumps = (struct lazy_dumps){-1, -1};
	for (size_t i = 0; i < LAZY_TIES; i++)
		s->ties[i].fd = -1;
	for (size_t i = 0; i < LAZY_BULK_MAX; i++)
		s->bulk_fds[i] = -1;
	*ret = s;
	return 0;
}

void lazy_close(int *fd)
{
	int was = __atomic_exchange_n(fd, -1, __ATOMIC_SEQ_CST);

	if (was >= 0)
		close(was);
}

void lazy_state_free(struct lazy_shared *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < LAZY_SPACES; i++)
		lazy_space_drop(&s->spaces[i]);
	for (size_t i = 0; i < LAZY_OBJECTS; i++) {
		lazy_close(&s->objects[i].fd);
		lazy_close(&s->guard_fds[i]);
	}
	munmap(s, s->bytes);
}

struct lazy_seg *lazy_segs(struct lazy_shared *s, const struct lazy_space *sp, uint32_t *n)
{
	*n = sp->n_segs[sp->active];
	return table(s, sp, sp->active);
}

struct lazy_space *lazy_space_new(struct lazy_shared *s, int uffd, pid_t origin)
{
	for (size_t i = 0; i < LAZY_SPACES; i++) {
		struct lazy_space *sp = &s->spaces[i];

		if (sp->used)
			continue;
		*sp = (struct lazy_space){.uffd = uffd, .origin = origin};
		if (i >= s->top)
			s->top = (uint32_t)i + 1;
		memset(bitmap(s, sp), 0, s->bits / 8);
		return sp;
	}
	return NULL;
}

void lazy_space_drop(struct lazy_space *sp)
{
	if (!sp->used)
		return;
	sp->used = 0; /* first: a number that is closed may be another's at once */
	lazy_close(&sp->uffd);
}

int lazy_space_add(struct lazy_shared *s, struct lazy_space *sp, const struct lazy_seg *seg)
{
	uint32_t n = sp->n_segs[sp->active];

	if (n >= s->seg_cap || (!seg->object && seg->bit0 + seg->pages > s->bits))
		return -ENOSPC;
	table(s, sp, sp->active)[n] = *seg;
	sp->n_segs[sp->active] = n + 1;
	return 0;
}

bool lazy_test(struct lazy_shared *s, const struct lazy_space *sp, uint64_t bit)
{
	return bitmap(s, sp)[bit / 64] >> (bit % 64) & 1;
}

void lazy_mark_words(struct lazy_shared *s, const struct lazy_space *sp, uint64_t bit,
		     const uint64_t words[8])
{
	memcpy(&bitmap(s, sp)[bit / 64], words, 64);
}

bool lazy_clear(struct lazy_shared *s, const struct lazy_space *sp, uint64_t bit)
{
	bool was = lazy_test(s, sp, bit);

	bitmap(s, sp)[bit / 64] &= ~(1ull << (bit % 64));
	return was;
}

static struct lazy_seg *find(struct lazy_shared *s, struct lazy_space *sp, uint64_t va, bool here,
			     uint64_t *page)
{
	uint32_t n;
	struct lazy_seg *v = lazy_segs(s, sp, &n);

	/* several may hold it: what was unmapped leaves a segment with nothing missing */
	for (uint32_t i = 0; i <= n; i++) {
		uint32_t at = i ? i - 1 : sp->hint;
		uint64_t start = here ? v[at].start : v[at].src;
		uint64_t k = (va - start) / CR_PAGE_SIZE;

		if (at < n && !v[at].object && va >= start && k < v[at].pages &&
		    lazy_test(s, sp, v[at].bit0 + k)) {
			*page = k;
			sp->hint = at;
			return &v[at];
		}
	}
	return NULL;
}

struct lazy_seg *lazy_find_here(struct lazy_shared *s, struct lazy_space *sp, uint64_t va,
				uint64_t *page)
{
	return find(s, sp, va, true, page);
}

struct lazy_seg *lazy_find_src(struct lazy_shared *s, struct lazy_space *sp, uint64_t src,
			       uint64_t *page)
{
	return find(s, sp, src, false, page);
}

uint64_t lazy_count(struct lazy_shared *s, const struct lazy_space *sp)
{
	uint64_t n = 0;

	for (uint64_t i = 0; sp->used && i < s->bits / 64; i++)
		n += (uint64_t)__builtin_popcountll(bitmap(s, sp)[i]);
	return n;
}

/* ---- events ---- */

uint64_t lazy_forget(struct lazy_shared *s, struct lazy_space *sp, uint64_t start, uint64_t end)
{
	uint64_t gone = 0;
	uint32_t n;
	struct lazy_seg *v = lazy_segs(s, sp, &n);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t seg_end = v[i].start + v[i].pages * CR_PAGE_SIZE;
		uint64_t a = start > v[i].start ? start : v[i].start;
		uint64_t b = end < seg_end ? end : seg_end;

		if (v[i].object)
			continue;
		for (uint64_t va = a; va < b; va += CR_PAGE_SIZE)
			gone += lazy_clear(s, sp, v[i].bit0 + (va - v[i].start) / CR_PAGE_SIZE);
	}
	return gone;
}

static void put(struct lazy_seg *to, uint32_t *n, uint64_t cap, const struct lazy_seg *seg,
		uint64_t first, uint64_t pages, uint64_t start)
{
	if (!pages)
		return;
	if (++*n > cap) /* the caller sees it by the count */
		return;
	to[*n - 1] = (struct lazy_seg){.start = start,
				       .pages = pages,
				       .src = seg->src + first * CR_PAGE_SIZE,
				       .bit0 = seg->bit0 + first,
				       .object = seg->object,
				       .huge = seg->huge};
}

/* What is mapped there stays; it is mapped at `to` as well. The length is what is known of it: it
 * may be more, lazy_object_at() does not ask. */
static void put_shared(struct lazy_seg *w, uint32_t *m, uint64_t cap, const struct lazy_seg *v,
		       uint64_t from, uint64_t to, uint64_t len)
{
	uint64_t end = v->start + v->pages * CR_PAGE_SIZE;
	uint64_t until = len ? from + len : end;
	uint64_t a = from > v->start ? from : v->start, b = until < end ? until : end;

	put(w, m, cap, v, 0, v->pages, v->start);
	if (a < b && (len || (from >= v->start && from < end)))
		put(w, m, cap, v, (a - v->start) / CR_PAGE_SIZE, (b - a) / CR_PAGE_SIZE,
		    to + (a - from));
}

int lazy_unmap(struct lazy_shared *s, struct lazy_space *sp, uint64_t start, uint64_t end)
{
	uint32_t n, m = 0, other = !sp->active;
	struct lazy_seg *v = lazy_segs(s, sp, &n), *w = table(s, sp, other);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t seg_end = v[i].start + v[i].pages * CR_PAGE_SIZE;
		uint64_t a = start > v[i].start ? start : v[i].start;
		uint64_t b = end < seg_end ? end : seg_end;

		if (!v[i].object || a >= b) {
			put(w, &m, s->seg_cap, &v[i], 0, v[i].pages, v[i].start);
			continue;
		}
		put(w, &m, s->seg_cap, &v[i], 0, (a - v[i].start) / CR_PAGE_SIZE, v[i].start);
		put(w, &m, s->seg_cap, &v[i], (b - v[i].start) / CR_PAGE_SIZE,
		    (seg_end - b) / CR_PAGE_SIZE, b);
	}
	if (m > s->seg_cap)
		return -ENOSPC;
	sp->n_segs[other] = m;
	sp->active = other;
	return 0;
}

int lazy_move(struct lazy_shared *s, struct lazy_space *sp, uint64_t from, uint64_t to,
	      uint64_t len)
{
	uint32_t n, m = 0, other = !sp->active;
	struct lazy_seg *v = lazy_segs(s, sp, &n), *w = table(s, sp, other);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t end = v[i].start + v[i].pages * CR_PAGE_SIZE;
		uint64_t a = from > v[i].start ? from : v[i].start;
		uint64_t b = from + len < end ? from + len : end;

		if (v[i].object) {
			put_shared(w, &m, s->seg_cap, &v[i], from, to, len);
			continue;
		}
		if (a >= b || !v[i].pages) {
			put(w, &m, s->seg_cap, &v[i], 0, v[i].pages, v[i].start);
			continue;
		}
		uint64_t before = (a - v[i].start) / CR_PAGE_SIZE;
		uint64_t moved = (b - a) / CR_PAGE_SIZE;
		put(w, &m, s->seg_cap, &v[i], 0, before, v[i].start);
		put(w, &m, s->seg_cap, &v[i], before, moved, to + (a - from));
		put(w, &m, s->seg_cap, &v[i], before + moved, v[i].pages - before - moved, b);
	}
	if (m > s->seg_cap)
		return -ENOSPC;
	sp->n_segs[other] = m;
	sp->active = other;
	return 0;
}

struct lazy_space *lazy_fork(struct lazy_shared *s, const struct lazy_space *parent, int uffd)
{
	uint32_t n;
	const struct lazy_seg *v = lazy_segs(s, parent, &n);

	for (size_t i = 0; i < LAZY_SPACES; i++)
		if (s->spaces[i].used && s->spaces[i].uffd == uffd)
			return &s->spaces[i];
	struct lazy_space *sp = lazy_space_new(s, uffd, parent->origin);
	if (!sp)
		return NULL;
	memcpy(table(s, sp, 0), v, n * sizeof(*v));
	memcpy(bitmap(s, sp), bitmap(s, parent), s->bits / 8);
	sp->n_segs[0] = n;
	sp->used = 1;
	return sp;
}

/* ---- shared memory ---- */

static uint64_t *object_bits(struct lazy_shared *s, const struct lazy_object *o, bool lost)
{
	uint8_t *all = (uint8_t *)s + ALIGN_UP(sizeof(*s), CR_PAGE_SIZE) + LAZY_SPACES * s->stride;

	return (uint64_t *)all + (lost ? s->object_words : 0) + o->word0;
}

int lazy_object_add(struct lazy_shared *s, uint32_t index, int fd, uint64_t pages, uint32_t unit,
		    const uint64_t *missing)
{
	const struct lazy_object *last = s->n_objects ? &s->objects[s->n_objects - 1] : NULL;
	uint64_t word0 = last ? ALIGN_UP(last->word0 + (last->pages + 63) / 64, 8ull) : 0;
	uint64_t words = (pages + 63) / 64;

	if (s->n_objects == LAZY_OBJECTS || word0 + ALIGN_UP(words, 8ull) > s->object_words)
		return -ENOSPC;
	struct lazy_object *o = &s->objects[s->n_objects];
	*o = (struct lazy_object){
	    .index = index, .fd = fd, .pages = pages, .word0 = word0, .unit = unit};
	uint64_t *bits = object_bits(s, o, false);
	for (uint64_t i = 0; i < words; i++)
		if (missing[i]) /* memory is taken where it is touched */
			bits[i] = missing[i];
	if (pages % 64)
		bits[words - 1] &= ~(~0ull << pages % 64);
	s->n_objects++;
	return 0;
}

struct lazy_object *lazy_object_of(struct lazy_shared *s, uint32_t index)
{
	for (uint32_t i = 0; i < s->n_objects; i++)
		if (s->objects[i].index == index)
			return &s->objects[i];
	return NULL;
}

static bool test(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

bool lazy_object_missing(struct lazy_shared *s, const struct lazy_object *o, uint64_t page)
{
	return page < o->pages && test(object_bits(s, o, false), page);
}

bool lazy_object_lost(struct lazy_shared *s, const struct lazy_object *o, uint64_t page)
{
	return page < o->pages && test(object_bits(s, o, true), page);
}

bool lazy_object_waits(struct lazy_shared *s, const struct lazy_object *o, uint64_t page)
{
	uint64_t words[8];

	return o->unit == 1 ? lazy_object_missing(s, o, page)
			    : lazy_object_words(s, o, page - page % o->unit, words);
}

uint32_t lazy_object_run(struct lazy_shared *s, const struct lazy_object *o, uint64_t page,
			 uint32_t most)
{
	uint32_t n = 0;

	while (n < most && lazy_object_missing(s, o, page + n))
		n++;
	return n;
}

bool lazy_object_clear(struct lazy_shared *s, const struct lazy_object *o, uint64_t page)
{
	bool was = lazy_object_missing(s, o, page);

	if (was)
		object_bits(s, o, false)[page / 64] &= ~(1ull << page % 64);
	return was;
}

uint64_t lazy_object_clear_words(struct lazy_shared *s, const struct lazy_object *o, uint64_t first,
				 const uint64_t bits[8])
{
	uint64_t *missing = object_bits(s, o, false), words = (o->pages + 63) / 64, n = 0;

	for (uint64_t i = 0, at = first / 64; i < 8 && at < words; i++, at++) {
		n += (uint64_t)__builtin_popcountll(missing[at] & bits[i]);
		missing[at] &= ~bits[i];
	}
	return n;
}

void lazy_object_lose(struct lazy_shared *s, const struct lazy_object *o, uint64_t page)
{
	object_bits(s, o, true)[page / 64] |= 1ull << page % 64;
}

void lazy_object_found(struct lazy_shared *s, const struct lazy_object *o, uint64_t page)
{
	object_bits(s, o, true)[page / 64] &= ~(1ull << page % 64);
}

bool lazy_object_words(struct lazy_shared *s, const struct lazy_object *o, uint64_t first,
		       uint64_t ret[8])
{
	const uint64_t *bits = object_bits(s, o, false);
	uint64_t any = 0, words = (o->pages + 63) / 64;

	for (unsigned int i = 0; i < 8; i++) {
		ret[i] = first / 64 + i < words ? bits[first / 64 + i] : 0;
		any |= ret[i];
	}
	return any;
}

static uint64_t count_bits(struct lazy_shared *s, bool lost)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < s->n_objects; i++) {
		const uint64_t *bits = object_bits(s, &s->objects[i], lost);

		for (uint64_t k = 0; k < (s->objects[i].pages + 63) / 64; k++)
			n += (uint64_t)__builtin_popcountll(bits[k]);
	}
	return n;
}

uint64_t lazy_objects_count(struct lazy_shared *s)
{
	return count_bits(s, false);
}

bool lazy_objects_any_lost(struct lazy_shared *s)
{
	return count_bits(s, true) > 0;
}

struct lazy_object *lazy_object_at(struct lazy_shared *s, const struct lazy_space *sp, uint64_t va,
				   uint64_t *page, uint64_t *until)
{
	const struct lazy_seg *best = NULL;
	uint64_t next = UINT64_MAX;
	uint32_t n;
	const struct lazy_seg *v = lazy_segs(s, sp, &n);

	for (uint32_t i = 0; i < n; i++) {
		if (!v[i].object)
			continue;
		if (v[i].start > va)
			next = v[i].start < next ? v[i].start : next;
		else if (!best || v[i].start > best->start)
			best = &v[i];
	}
	if (!best)
		return NULL;
	uint64_t end = best->start + best->pages * CR_PAGE_SIZE;
	if (until)
		*until = end < next ? end : next;
	*page = (best->src + (va - best->start)) / CR_PAGE_SIZE;
	return *page < s->objects[best->object - 1].pages ? &s->objects[best->object - 1] : NULL;
}

struct lazy_object *lazy_huge_object_at(struct lazy_shared *s, const struct lazy_space *sp,
					uint64_t va, uint64_t *page)
{
	uint32_t n;
	const struct lazy_seg *v = lazy_segs(s, sp, &n);

	for (uint32_t i = 0; i < n; i++) {
		struct lazy_object *o = v[i].object ? &s->objects[v[i].object - 1] : NULL;
		uint64_t k = (va - v[i].start) / CR_PAGE_SIZE;

		if (!o || o->unit == 1 || va < v[i].start || k >= v[i].pages)
			continue;
		*page = v[i].src / CR_PAGE_SIZE + k;
		return o;
	}
	return NULL;
}

/* ---- latencies ---- */

unsigned int lazy_bucket(uint64_t us)
{
	if (us < 8)
		return (unsigned int)us;
	unsigned int log = 63 - (unsigned int)__builtin_clzll(us);
	unsigned int b = (log - 2) * 8 + (unsigned int)(us >> (log - 3) & 7);

	return b < LAZY_BUCKETS ? b : LAZY_BUCKETS - 1;
}

uint64_t lazy_bucket_us(unsigned int bucket)
{
	if (bucket < 8)
		return bucket;
	return (8ull + bucket % 8) << (bucket / 8 - 1);
}

uint64_t lazy_percentile(const struct lazy_stats *st, unsigned int percent)
{
	uint64_t all = 0, seen = 0;

	for (unsigned int i = 0; i < LAZY_BUCKETS; i++)
		all += st->buckets[i];
	for (unsigned int i = 0; i < LAZY_BUCKETS; i++) {
		seen += st->buckets[i];
		if (all && seen * 100 >= all * percent)
			return lazy_bucket_us(i);
	}
	return 0;
}
