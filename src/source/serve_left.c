/* What is still to be sent, and in what order. */
#include <stdlib.h>
#include <string.h>
#include "source/serve_state.h"

enum {
	HOT_BEFORE_PAGES = 8, /* pushed around a page that was asked for */
	HOT_BEHIND_PAGES = 64,
	AHEAD_FIRST_PAGES = 4,
	NEAR_PAGES = 64, /* a request that far behind the last may be of the same reading */
};

struct memory *left_memory_of(struct server *s, pid_t pid)
{
	vec_foreach (m, &s->memories)
		if (m->pid == pid)
			return m;
	return NULL;
}

static struct left_chunk *chunk_of(struct memory *m, uint64_t va)
{
	uint64_t start = va - va % LAZY_CHUNK_SPAN;
	size_t lo = 0, hi = m->chunks.n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->chunks.v[mid].start < start)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < m->chunks.n && m->chunks.v[lo].start == start ? &m->chunks.v[lo] : NULL;
}

static unsigned int index_of(uint64_t va)
{
	return (unsigned int)(va / CR_PAGE_SIZE % 512);
}

static bool test(const uint64_t bits[8], unsigned int i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

static bool is_left(const struct left_chunk *c, unsigned int i)
{
	return c && test(c->left, i);
}

static void take(struct server *s, struct left_chunk *c, unsigned int i)
{
	if (!is_left(c, i))
		return;
	c->left[i / 64] &= ~(1ull << (i % 64));
	s->left--;
}

/* ---- what is missing ---- */

void left_allow(struct server *s, const struct serve_range *has, size_t n)
{
	for (size_t i = 0, end; i < n; i = end) {
		struct memory *m = left_memory_of(s, has[i].pid);
		uint64_t bytes = 0;

		for (end = i; end < n && has[end].pid == has[i].pid; end++)
			bytes += has[end].end - has[end].start;
		if (!m)
			continue;
		m->has = has + i;
		m->n_has = end - i;
		m->most = bytes / LAZY_CHUNK_SPAN;
		s->most += m->most;
	}
}

static bool is_there(const struct memory *m, uint64_t va)
{
	size_t lo = 0, hi = m->n_has;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->has[mid].end <= va)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < m->n_has && m->has[lo].start <= va;
}

static int by_start(const void *a, const void *b)
{
	const struct left_chunk *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

int left_add(struct server *s, struct memory *m, const struct lazy_chunk *c)
{
	/* Destinations of before tell such things, if few: offsets of shared memory, of those who
	 * have it mapped. */
	if (!is_there(m, c->start))
		return m->strays++ < s->most ? 0 : -EPROTO;
	if (m->chunks.n == m->most)
		return -EPROTO;
	struct left_chunk *slot = vec_push(&m->chunks);
	if (!slot)
		return -ENOMEM;
	slot->start = c->start;
	memcpy(slot->left, c->bits, sizeof(c->bits));
	memcpy(slot->told, c->bits, sizeof(c->bits));
	for (int k = 0; k < 8; k++)
		s->left += (uint64_t)__builtin_popcountll(c->bits[k]);
	return 0;
}

int left_sort(struct server *s)
{
	vec_foreach (m, &s->memories) {
		if (!m->chunks.n)
			continue;
		qsort(m->chunks.v, m->chunks.n, sizeof(*m->chunks.v), by_start);
		for (size_t i = 1; i < m->chunks.n; i++)
			if (m->chunks.v[i].start == m->chunks.v[i - 1].start)
				return -EPROTO;
	}
	return 0;
}

void left_done(struct server *s)
{
	vec_foreach (m, &s->memories) {
		serve_known_done(&m->known);
		vec_done(&m->chunks);
	}
	vec_done(&s->memories);
}

bool left_was_told(struct memory *m, uint64_t va)
{
	const struct left_chunk *c = chunk_of(m, va);

	return c && test(c->told, index_of(va));
}

void left_take(struct server *s, struct memory *m, uint64_t va)
{
	take(s, chunk_of(m, va), index_of(va));
}

uint32_t left_take_run(struct server *s, struct memory *m, uint64_t va, uint32_t most)
{
	struct left_chunk *c = chunk_of(m, va);
	unsigned int i = index_of(va);
	uint32_t n = 0;

	while (n < most && i + n < 512 && is_left(c, i + n))
		take(s, c, i + n++);
	return n;
}

/* ---- what was asked for ---- */

/* The last comes first, but for a huge page of which a part has been pushed: it is of no use there
 * before the rest comes, and has to be kept. */
static void heat(struct server *s, struct hot h)
{
	if (s->n_hot == HOT_MAX) {
		memmove(s->hot, s->hot + 1, (HOT_MAX - 1) * sizeof(*s->hot));
		s->n_hot--;
	}
	struct hot *top = s->n_hot ? &s->hot[s->n_hot - 1] : NULL;
	bool below = top && top->huge && top->begun;
	if (below)
		top[1] = *top;
	s->hot[s->n_hot++ - below] = h;
}

/* Requests that follow one another: as long as they do, more and more is sent with each. */
static uint32_t reads_ahead(struct server *s, size_t memory, uint64_t va)
{
	struct reading *r = NULL, *oldest = &s->reads[0];

	s->requests++;
	for (size_t i = 0; i < READS_MAX; i++) {
		struct reading *k = &s->reads[i];

		if (k->next && k->memory == memory && va >= k->next &&
		    va - k->next < NEAR_PAGES * CR_PAGE_SIZE)
			r = k;
		if (k->used < oldest->used)
			oldest = k;
	}
	if (!r) {
		r = oldest;
		*r = (struct reading){.memory = memory};
	} else {
		r->ahead = r->ahead ? r->ahead * 2 : AHEAD_FIRST_PAGES;
		if (r->ahead > AHEAD_PAGES_MAX)
			r->ahead = AHEAD_PAGES_MAX;
	}
	r->used = s->requests;
	r->next = va + (1 + r->ahead) * CR_PAGE_SIZE;
	return r->ahead;
}

uint32_t left_asked(struct server *s, struct memory *m, uint64_t va, uint32_t npages)
{
	const uint64_t before = HOT_BEFORE_PAGES * CR_PAGE_SIZE;
	size_t memory = (size_t)(m - s->memories.v);

	if (npages > LAZY_PAGES_MAX) { /* a huge page: no use in parts of the next */
		heat(s, (struct hot){.memory = memory,
				     .va = va + npages * CR_PAGE_SIZE,
				     .pages = npages,
				     .huge = true});
		return 0;
	}
	heat(s, (struct hot){.memory = memory,
			     .va = va > before ? va - before : 0,
			     .pages = HOT_BEFORE_PAGES + HOT_BEHIND_PAGES});
	return reads_ahead(s, memory, va + (npages - 1) * CR_PAGE_SIZE);
}

/* ---- what is pushed ---- */

static uint32_t next_hot(struct server *s, struct memory **m, uint64_t *va)
{
	while (s->n_hot) {
		struct hot *h = &s->hot[s->n_hot - 1];
		uint32_t n = 0;

		*m = &s->memories.v[h->memory];
		while (h->pages && !n) {
			*va = h->va;
			n = left_take_run(s, *m, h->va,
					  h->pages < PUSH_PAGES ? h->pages : PUSH_PAGES);
			h->va += (n ? n : 1) * CR_PAGE_SIZE;
			h->pages -= n ? n : 1;
			h->begun |= n > 0;
		}
		if (!h->pages)
			s->n_hot--;
		if (n)
			return n;
	}
	return 0;
}

static uint32_t next_recent(struct server *s, struct memory **ret, uint64_t *va)
{
	/* from where the last call ended: what is taken does not come back */
	for (; s->recent_at < s->sv->n_recent; s->recent_at++, s->recent_va = 0) {
		const struct serve_range *g = &s->sv->recent[s->recent_at];
		struct memory *m = left_memory_of(s, g->pid);
		uint64_t from = g->start > s->recent_va ? g->start : s->recent_va;

		for (uint64_t at = from; m && at < g->end; at += CR_PAGE_SIZE) {
			uint64_t pages = (g->end - at) / CR_PAGE_SIZE;
			uint32_t n = left_take_run(
			    s, m, at, pages < PUSH_PAGES ? (uint32_t)pages : PUSH_PAGES);

			if (!n)
				continue;
			*ret = m;
			*va = at;
			s->recent_va = at + n * CR_PAGE_SIZE;
			return n;
		}
	}
	return 0;
}

static uint32_t next_in_order(struct server *s, struct memory **ret, uint64_t *va)
{
	vec_foreach (m, &s->memories)
		for (; m->at < m->chunks.n; m->at++) {
			const struct left_chunk *c = &m->chunks.v[m->at];

			for (unsigned int i = 0; i < 8; i++) {
				if (!c->left[i])
					continue;
				unsigned int bit =
				    i * 64 + (unsigned int)__builtin_ctzll(c->left[i]);
				*ret = m;
				*va = c->start + bit * CR_PAGE_SIZE;
				return left_take_run(s, m, *va, PUSH_PAGES);
			}
		}
	return 0;
}

bool left_sweep(struct server *s, pid_t *pid, struct lazy_chunk *ret)
{
	for (; s->swept < s->memories.n; s->swept++, s->swept_at = 0) {
		const struct memory *m = &s->memories.v[s->swept];

		if (!m->known.map || s->swept_at >= m->chunks.n)
			continue;
		const struct left_chunk *c = &m->chunks.v[s->swept_at++];
		*pid = m->pid;
		ret->start = c->start;
		memcpy(ret->bits, c->left, sizeof(ret->bits));
		return true;
	}
	return false;
}

bool left_take_clean(struct server *s, struct memory *m, size_t *at, struct lazy_chunk *ret)
{
	for (; serve_known_tells(&m->known) && *at < m->chunks.n; ++*at) {
		struct left_chunk *c = &m->chunks.v[*at];
		uint64_t any = 0;

		*ret = (struct lazy_chunk){.start = c->start};
		serve_known_clean(&m->known, c->start, ret->bits);
		for (unsigned int i = 0; i < 8; i++) {
			any |= ret->bits[i] &= c->left[i];
			c->left[i] &= ~ret->bits[i];
			s->left -= (uint64_t)__builtin_popcountll(ret->bits[i]);
		}
		if (any)
			return ++*at, true;
	}
	return false;
}

uint32_t left_next(struct server *s, struct memory **m, uint64_t *va)
{
	uint32_t n = next_hot(s, m, va);

	if (!n)
		n = next_recent(s, m, va);
	return n ? n : next_in_order(s, m, va);
}
