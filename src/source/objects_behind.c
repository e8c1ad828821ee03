/* Shared memory that stays behind, of which pre-copy has sent what there was: which of its pages
 * are still as they were sent. Where the kernel tells what was written (memory/shared_tracker.h)
 * that is known from its page tables, which are read once the tasks run at the destination: whoever
 * touches a page there waits for the answer, and no downtime is spent on it. Otherwise pages are
 * compared while they are fetched (serve_known.h).
 *
 * Right before the stop what was written since the last round that has sent pages of it is compared
 * with what was sent, and, if somebody came or went since who may have written, all of it. What
 * differs is kept in mind, and what is written from there on is marked in the page tables. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "memory/zero.h"
#include "source/source.h"
#include "wire/page_digest.h"

enum {
	LOOKS_MAX = 3, /* as in objects.c */
	STEP_PAGES = 256,
	FEW_PAGES = 1024,    /* compared in a millisecond */
	ABORT_PAGES = 16384, /* between two looks whether the user has ended it */
};

static bool is_as_sent(struct source_object *o, uint64_t va, const uint8_t *page)
{
	const struct sent_chunk *c = sentmap_chunk(&o->sent, va, false);
	unsigned int i = chunk_index(va);

	if (!c || !chunk_test(c->sent, i)) /* what was never sent is zeros there */
		return page_is_zero(page);
	return c->digests && XXH128_isEqual(c->digests[i], page_hash(page, o->target, va));
}

static int compare_step(struct source_object *o, int fd, uint64_t at, uint64_t end, uint8_t *buf,
			struct cr_err *err)
{
	size_t bytes = end - at;

	/* what is taken out after that shows */
	witness_see(&o->witness, at, end);
	ssize_t n = pread(fd, buf, bytes, (off_t)at);
	if (n < 0)
		return cr_err_sys(err, "reading shared memory");
	memset(buf + n, 0, bytes - (size_t)n);
	for (size_t i = 0; i < bytes; i += CR_PAGE_SIZE)
		if (!is_as_sent(o, at + i, buf + i))
			shared_pages_mark(&o->differs, (at + i) / CR_PAGE_SIZE);
	return 0;
}

/* Which of these pages differ from what was sent. */
static int compare(struct source *s, uint32_t i, const struct shared_pages *pages,
		   struct cr_err *err)
{
	_cleanup_free_ uint8_t *buf = aligned_alloc(CR_PAGE_SIZE, STEP_PAGES * CR_PAGE_SIZE);
	int r = buf ? 0 : cr_err_oom(err);

	for (size_t at = 0, end; !r && shared_pages_next(pages, &at, &end); at = end) {
		end = end - at < STEP_PAGES ? end : at + STEP_PAGES;
		r = compare_step(&s->objects.v[i], s->object_fds.list.v[i], at * CR_PAGE_SIZE,
				 end * CR_PAGE_SIZE, buf, err);
		if (!r && at / ABORT_PAGES != end / ABORT_PAGES)
			r = source_check_abort(s, err);
	}
	return r;
}

/* Of what is mostly holes only what is none, as of now. */
static int mark_all(struct source *s, uint32_t i, struct shared_pages *p, struct cr_err *err)
{
	const struct source_object *o = &s->objects.v[i];
	const struct addr_range whole = {0, p->n * CR_PAGE_SIZE};
	const int r = o->holes ? source_tell_between_holes(s, i, err) : 0;

	for (size_t k = 0; k < (o->holes ? o->left.n : 1) && !r; k++) {
		const struct addr_range *g = o->holes ? &o->left.v[k] : &whole;

		for (uint64_t va = g->start; va < g->end; va += CR_PAGE_SIZE)
			shared_pages_mark(p, va / CR_PAGE_SIZE);
	}
	return r;
}

/* What was written is protected again before it is compared: with what is written from then on,
 * that is all. A page that was written between its protection and its reading, when it was sent, is
 * found to be as it was sent here. */
static int look_into(struct source *s, uint32_t i, bool follows, struct cr_err *err)
{
	struct source_object *o = &s->objects.v[i];
	struct shared_pages pages = {0};
	struct cr_err gone = {0};
	int r = 0;

	if (!follows)
		source_forget_behind(o);
	bool known = o->now.known && o->now.size == o->size &&
		     !source_object_written(o, true, &pages, &gone);
	if (!known)
		source_forget_behind(o);
	if (known && !follows)
		r = mark_all(s, i, &pages, err);
	if (known && !r && !o->differs.bits)
		r = shared_pages_init(&o->differs, o->size, err);
	if (known && !r)
		r = compare(s, i, &pages, err);
	shared_pages_done(&pages);
	if (!known || r)
		return r;
	shared_look_done(&o->before);
	o->before = o->now;
	o->now = (struct shared_look){0};
	return 0;
}

int source_follow_behind(struct source *s, struct cr_err *err)
{
	bool all = !s->lazy_clean;
	int r = 0;

	for (int n = 0; n < LOOKS_MAX && !all && !r; n++) {
		r = source_look_at_objects(s, s->tree, SOURCE_LOOK_BEHIND, err);
		all = true;
		for (uint32_t i = 0; i < s->objects.n && !r; i++) {
			struct source_object *o = &s->objects.v[i];
			bool follows = shared_look_follows(&o->before, &o->now);

			if (!o->looked)
				continue;
			r = look_into(s, i, follows, err);
			/* all was compared: has nothing come and gone meanwhile? */
			all &= follows || !o->before.known;
		}
	}
	return r ? cr_err_ctx(err, "shared memory that stays behind") : 0;
}

void source_forget_behind(struct source_object *o)
{
	shared_look_done(&o->before);
	shared_pages_done(&o->differs);
}

/* A thread that was stopped between the fault of a write and the write itself has left a mark, and
 * written nothing; it will there, and would ask for what it has. */
static int pass_over_unwritten(const struct source *s, uint32_t i, struct shared_pages *p,
			       struct cr_err *err)
{
	struct source_object *o = &s->objects.v[i];
	_cleanup_free_ uint8_t *buf = aligned_alloc(CR_PAGE_SIZE, CR_PAGE_SIZE);
	int r = buf ? 0 : cr_err_oom(err);

	for (size_t at = 0, end; !r && shared_pages_next(p, &at, &end); at++) {
		ssize_t n =
		    pread(s->object_fds.list.v[i], buf, CR_PAGE_SIZE, (off_t)(at * CR_PAGE_SIZE));

		if (n == (ssize_t)CR_PAGE_SIZE && is_as_sent(o, at * CR_PAGE_SIZE, buf))
			shared_pages_unmark(p, at);
	}
	return r;
}

bool source_behind_written(const struct source *s, uint32_t i, struct shared_pages *ret)
{
	struct source_object *o = &s->objects.v[i];
	struct cr_err gone = {0};

	if (!s->lazy_clean || o->now.size != o->size || !shared_look_follows(&o->before, &o->now) ||
	    source_object_written(o, false, ret, &gone))
		return false;
	/* all that was written so late: where it is much, one more does not matter */
	if (ret->marked <= FEW_PAGES && pass_over_unwritten(s, i, ret, &gone)) {
		shared_pages_done(ret);
		return false;
	}
	for (size_t at = 0, end; shared_pages_next(&o->differs, &at, &end); at = end)
		for (size_t page = at; page < end; page++)
			shared_pages_mark(ret, page);
	return true;
}
