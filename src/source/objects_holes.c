/* Shared memory that is mostly holes stays behind without them: the destination is told what lies
 * between, and takes memory for nothing else. What is told is never less than what may differ from
 * zeros there: all that is no hole here, and all that was sent before. More may be told; what turns
 * out to be zeros is made a hole again there.
 *
 * What the tasks fill meanwhile is told in the rounds that follow, and at the stop. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "source/source.h"

enum {
	RANGES_MAX = 32768, /* of one object; then those that are close together become one */
	RANGES_PER_MESSAGE = 32768,
};

/* Bits are kept of all of it, at both ends. */
#define BYTES_MAX (256ull << 30)

bool source_object_is_dense(int fd, uint64_t size)
{
	struct stat st;

	return !fstat(fd, &st) && (uint64_t)st.st_blocks * 512 * 2 >= size;
}

bool source_object_may_leave_holes(const struct source *s, const struct shared_object *so)
{
	return s->lazy_holes && !so->page_bytes && so->size <= BYTES_MAX;
}

/* ---- what is no hole ---- */

struct found {
	struct addr_ranges r; /* ascending */
	uint64_t gap;         /* bytes; holes up to that count as none */
};

static void close_gaps(struct found *f)
{
	size_t n = 0;

	f->gap = f->gap ? 2 * f->gap : 4 * CR_PAGE_SIZE;
	for (size_t i = 1; i < f->r.n; i++)
		if (f->r.v[i].start - f->r.v[n].end <= f->gap)
			f->r.v[n].end = f->r.v[i].end;
		else
			f->r.v[++n] = f->r.v[i];
	f->r.n = n + 1;
}

static int add(struct found *f, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct addr_range *last = f->r.n ? &f->r.v[f->r.n - 1] : NULL;

	if (last && start - last->end <= f->gap) {
		last->end = end;
		return 0;
	}
	while (f->r.n >= RANGES_MAX)
		close_gaps(f);
	struct addr_range *g = vec_push(&f->r);
	if (!g)
		return cr_err_oom(err);
	*g = (struct addr_range){start, end};
	return 0;
}

/* Of a hole, what was sent when it was none. */
static int find_sent(struct source_object *o, uint64_t start, uint64_t end, struct found *f,
		     struct cr_err *err)
{
	int r = 0;

	for (uint64_t va = start; va < end && !r; va += CR_PAGE_SIZE) {
		const struct sent_chunk *c = sentmap_chunk(&o->sent, va, false);

		if (!c)
			va = va - va % CHUNK_SIZE + CHUNK_SIZE - CR_PAGE_SIZE;
		else if (chunk_test(c->sent, chunk_index(va)))
			r = add(f, va, va + CR_PAGE_SIZE, err);
	}
	return r;
}

static int find(struct source_object *o, int fd, uint64_t end, struct found *f, struct cr_err *err)
{
	int r = 0;

	for (uint64_t at = 0, data, hole; at < end && !r; at = hole) {
		off_t next = lseek(fd, (off_t)at, SEEK_DATA);
		off_t then = next < 0 ? -1 : lseek(fd, next, SEEK_HOLE);

		if (next < 0 && errno != ENXIO) /* that there is none, lseek(2) */
			return cr_err_sys(err, "looking for the holes of shared memory");
		data = next < 0 ? end : (uint64_t)next & ~(CR_PAGE_SIZE - 1);
		hole = then < 0 ? end : ALIGN_UP((uint64_t)then, CR_PAGE_SIZE);
		hole = hole < end ? hole : end;
		if (!o->told) /* later all that was sent has been told */
			r = find_sent(o, at, data, f, err);
		if (!r && data < hole)
			r = add(f, data, hole, err);
	}
	return r;
}

/* ---- telling ---- */

struct telling {
	struct source *s;
	struct msg_reset m;
	struct msg_range *ranges;
};

static int flush(struct telling *t, struct cr_err *err)
{
	struct msg m = msg_of(MSG_RESET), reply;
	uint64_t bytes = 0;

	if (!t->m.n_ranges)
		return 0;
	m.reset = t->m;
	m.reset.ranges = t->ranges;
	for (size_t i = 0; i < t->m.n_ranges; i++)
		bytes += t->ranges[i].end - t->ranges[i].start;
	t->m.n_ranges = 0;
	/* memory may have to be found there */
	int r =
	    link_call(t->s->peer, &m, MSG_OK, source_patience_ms(t->s, bytes >> 20), &reply, err);
	if (!r)
		msg_free(&reply);
	return r;
}

static int tell(struct telling *t, uint64_t start, uint64_t end, struct cr_err *err)
{
	t->ranges[t->m.n_ranges++] = (struct msg_range){start, end};
	return t->m.n_ranges == RANGES_PER_MESSAGE ? flush(t, err) : 0;
}

/* Those of now that are not in old; both ascend. */
static int tell_new(struct telling *t, const struct addr_ranges *old, const struct addr_ranges *now,
		    struct cr_err *err)
{
	size_t k = 0;
	int r = 0;

	for (size_t i = 0; i < now->n && !r; i++) {
		uint64_t at = now->v[i].start, end = now->v[i].end;

		while (k < old->n && old->v[k].end <= at)
			k++;
		for (; k < old->n && old->v[k].start < end && !r; k++) {
			if (old->v[k].start > at)
				r = tell(t, at, old->v[k].start, err);
			at = old->v[k].end;
			if (at >= end)
				break;
		}
		if (!r && at < end)
			r = tell(t, at, end, err);
	}
	return r ? r : flush(t, err);
}

int source_tell_between_holes(struct source *s, uint32_t i, struct cr_err *err)
{
	struct source_object *o = &s->objects.v[i];
	const uint64_t end = ALIGN_UP(s->tree->objects[i].size, CR_PAGE_SIZE);
	struct telling t = {.s = s, .m = {.object = i}};
	struct found f = {0};

	t.ranges = calloc(RANGES_PER_MESSAGE, sizeof(*t.ranges));
	int r = t.ranges ? find(o, s->object_fds.list.v[i], end, &f, err) : cr_err_oom(err);
	if (!r)
		r = tell_new(&t, &o->left, &f.r, err);
	for (size_t k = 0; k < f.r.n && !r; k++) {
		struct addr_range *g = vec_push(&o->left);

		if (!g)
			r = cr_err_oom(err);
		else
			*g = f.r.v[k];
	}
	addr_ranges_tidy(&o->left);
	vec_done(&f.r);
	free(t.ranges);
	return r;
}
