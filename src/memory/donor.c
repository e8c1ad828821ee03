#include "memory/donor.h"

#include <string.h>
#include <unistd.h>
#include "kernel/pagemap.h"
#include "memory/register.h"

/* ---- the beginning ---- */

static int copy_sent(struct tracker *t, const struct tracker *donor, struct cr_err *err)
{
	for (size_t i = 0; i < donor->sent.cap; i++) {
		const struct sent_chunk *from = &donor->sent.slots[i];
		struct sent_chunk *to =
		    from->used ? sentmap_chunk(&t->sent, from->start, true) : NULL;

		if (!from->used)
			continue;
		if (!to)
			return cr_err_oom(err);
		memcpy(to->sent, from->sent, sizeof(to->sent));
		/* of a copy that has had no round of its own: what it has from its donor */
		memcpy(to->copied, donor->donor ? from->copied : from->sent, sizeof(to->copied));
	}
	return 0;
}

/* As fork(2) leaves them: madvise(2). */
static int copy_layout(struct tracker *t, const struct tracker *donor, struct cr_err *err)
{
	t->vmas = calloc(donor->n_vmas ? donor->n_vmas : 1, sizeof(*t->vmas));
	if (!t->vmas)
		return cr_err_oom(err);
	for (size_t i = 0; i < donor->n_vmas; i++) {
		const struct vma *v = &donor->vmas[i];

		if (v->flags & (VMA_F_DONTFORK | VMA_F_WIPEONFORK))
			sentmap_forget(&t->sent, v->start, v->end);
		if (!(v->flags & VMA_F_DONTFORK))
			t->vmas[t->n_vmas++] = *v;
	}
	return 0;
}

int donor_begin(struct tracker *t, const struct tracker *donor, const uint64_t *volatile_va,
		size_t n_volatile, struct cr_err *err)
{
	if (t->rounds || t->donor || t->sent.n || t == donor)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "the destination says that %d begins as a copy of %d, too late",
				  t->pid, donor->pid);
	int r = copy_sent(t, donor, err);

	if (!r)
		r = copy_layout(t, donor, err);
	for (size_t i = 0; i < n_volatile && !r; i++) {
		struct sent_chunk *c = sentmap_chunk(&t->sent, volatile_va[i], false);

		if (c)
			chunk_clear(c->copied, chunk_index(volatile_va[i]));
	}
	t->donor = donor->donor ? donor->donor : donor;
	t->donor_rounds = donor->donor ? donor->donor_rounds : donor->rounds;
	return r;
}

void donor_forget(struct tracker *t)
{
	t->donor = NULL;
	vec_done(&t->donor_bare);
}

int donor_look(struct tracker *t, struct cr_err *err)
{
	const struct tracker *d = t->donor;

	if (!d)
		return 0;
	if (d->uffd < 0 || d->rounds != t->donor_rounds) {
		donor_forget(t);
		return 0;
	}
	int r = register_list_bare(d, &t->donor_bare, err);
	if (r != -ESRCH)
		return r;
	donor_forget(t); /* it has ended: nothing is known of it any more */
	cr_err_clear(err);
	return 0;
}

/* ---- page by page ---- */

/* Entries of n pages; what cannot be read is nothing. */
static void read_entries(int pagemap, uint64_t va, uint64_t *v, size_t n)
{
	ssize_t got = pread(pagemap, v, n * sizeof(*v), (off_t)(va / CR_PAGE_SIZE * sizeof(*v)));
	size_t have = got > 0 ? (size_t)got / sizeof(*v) : 0;

	memset(v + have, 0, (n - have) * sizeof(*v));
}

static bool is_same(uint64_t mine, uint64_t donors)
{
	const uint64_t there = PAGEMAP_PRESENT | PAGEMAP_SWAPPED;

	return (mine & there) == PAGEMAP_PRESENT && (donors & there) == PAGEMAP_PRESENT &&
	       donors & PAGEMAP_PROTECTED && donors & PAGEMAP_FRAME &&
	       !((mine ^ donors) & PAGEMAP_FRAME);
}

static bool is_bare(const struct tracker *t, uint64_t va)
{
	size_t lo = 0, hi = t->donor_bare.n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (t->donor_bare.v[mid].end <= va)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->donor_bare.n && t->donor_bare.v[lo].start <= va;
}

/* Pages of one chunk. *ret: a bit for each that need not be sent. */
static void find_same(const struct tracker *t, const struct sent_chunk *c, uint64_t start,
		      uint64_t end, uint64_t ret[8])
{
	uint64_t mine[CHUNK_PAGES], donors[CHUNK_PAGES];
	size_t n = (end - start) / CR_PAGE_SIZE;

	read_entries(t->pagemap, start, mine, n);
	read_entries(t->donor->pagemap, start, donors, n);
	for (size_t k = 0; k < n; k++) {
		uint64_t va = start + k * CR_PAGE_SIZE;
		unsigned int i = chunk_index(va);

		if (chunk_test(c->sent, i) && chunk_test(c->copied, i) &&
		    is_same(mine[k], donors[k]) && !is_bare(t, va))
			chunk_set(ret, i);
	}
}

int donor_for_rest(struct tracker *t, uint64_t start, uint64_t end, donor_fn fn, void *arg,
		   struct cr_err *err)
{
	uint64_t from = start; /* [from, at) has to be sent */
	int r = 0;

	for (uint64_t at = start, next; at < end && !r; at = next) {
		const struct sent_chunk *c = sentmap_chunk(&t->sent, at, false);
		uint64_t same[8] = {0};

		next = at - at % CHUNK_SIZE + CHUNK_SIZE;
		if (next > end)
			next = end;
		if (c)
			find_same(t, c, at, next, same);
		for (uint64_t va = at; c && va < next && !r; va += CR_PAGE_SIZE) {
			if (!chunk_test(same, chunk_index(va)))
				continue;
			if (from < va)
				r = fn(from, va, arg, err);
			from = va + CR_PAGE_SIZE;
		}
	}
	return !r && from < end ? fn(from, end, arg, err) : r;
}
