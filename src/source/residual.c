/* What is left behind for the destination to fetch (hybrid, post-copy): rounds in which nothing is
 * sent but which pages were written since. A page is told once, however often it is written, so
 * these rounds get short whatever the tasks do, and with them what is left to be told at the stop.
 */
#include <string.h>
#include "base/log.h"
#include "model/lazy.h"
#include "source/source.h"

enum {
	RANGES_PER_MESSAGE = 50000, /* ten bytes each at most, of MSG_BYTES */
	RECENT_MAX = 32768,         /* ranges */
	ROUNDS_MAX = 8,
	LAST_ROUNDS_MAX = 4,
	FEW_PAGES = 256,
	FEW_WRITTEN = 1024,
	SHRINK_NUM = 4, /* as in rounds.c */
	SHRINK_DEN = 5,
};

int source_note_eager(struct source_proc *sp, const struct process *p, struct cr_err *err)
{
	free(sp->tracker.eager);
	sp->tracker.eager = NULL;
	sp->tracker.n_eager = 0;
	return lazy_eager_pages(p, &sp->tracker.eager, &sp->tracker.n_eager) ? cr_err_oom(err) : 0;
}

static int tell_some(struct source *s, pid_t pid, struct msg_range *v, size_t n, struct cr_err *err)
{
	struct msg m = msg_of(MSG_RESET), reply;

	m.reset = (struct msg_reset){.pid = pid, .object = UINT32_MAX, .ranges = v, .n_ranges = n};
	int r = link_call(s->peer, &m, MSG_OK, source_patience_ms(s, 0), &reply, err);
	if (!r)
		msg_free(&reply);
	return r;
}

static int tell_process(struct source *s, struct source_proc *sp, struct cr_err *err)
{
	struct tracker *t = &sp->tracker;
	_cleanup_free_ struct msg_range *v = calloc(RANGES_PER_MESSAGE, sizeof(*v));
	int r = v ? 0 : cr_err_oom(err);

	for (size_t at = 0; at < t->news.n && !r;) {
		size_t n = 0;

		for (; n < RANGES_PER_MESSAGE && at < t->news.n; at++, n++)
			v[n] = (struct msg_range){t->news.v[at].start, t->news.v[at].end};
		r = tell_some(s, sp->pid, v, n, err);
	}
	t->news.n = 0;
	return r;
}

/* Before those of earlier rounds: what was written last is what is written most. */
static int note_recent(struct source *s, size_t *n, pid_t pid, const struct addr_range *v,
		       size_t count, struct cr_err *err)
{
	if (*n >= RECENT_MAX)
		return 0;
	if (count > RECENT_MAX - *n)
		count = RECENT_MAX - *n;
	for (size_t i = 0; i < count; i++)
		if (!vec_push(&s->recent))
			return cr_err_oom(err);
	memmove(s->recent.v + *n + count, s->recent.v + *n,
		(s->recent.n - *n - count) * sizeof(*s->recent.v));
	for (size_t i = 0; i < count; i++)
		s->recent.v[(*n)++] = (struct serve_range){pid, v[i].start, v[i].end};
	if (s->recent.n > RECENT_MAX)
		s->recent.n = RECENT_MAX;
	return 0;
}

static int note_round(struct source *s, struct cr_err *err)
{
	size_t n = 0;
	int r = 0;

	vec_foreach (spp, &s->procs) {
		const struct tracker *t = &(*spp)->tracker;

		if ((*spp)->has_tracker && !r)
			r = note_recent(s, &n, (*spp)->pid, t->again.v, t->again.n, err);
		if ((*spp)->has_tracker && !r)
			r = note_recent(s, &n, (*spp)->pid, t->news.v, t->news.n, err);
	}
	return r;
}

/* ---- shared memory ---- */

/* All of an object stays behind, whatever the destination has of it: what of it was written is
 * found out when the tasks run there (objects_behind.c). */

static int tell_object(struct source *s, uint32_t i, bool taken_back, struct cr_err *err)
{
	struct msg_range all = {0, ALIGN_UP(s->tree->objects[i].size, CR_PAGE_SIZE)};
	struct msg m = msg_of(MSG_RESET), reply;

	m.reset = (struct msg_reset){
	    .object = i, .ranges = &all, .n_ranges = 1, .taken_back = taken_back};
	/* memory for all of it may have to be found there */
	int r = link_call(s->peer, &m, MSG_OK, source_patience_ms(s, all.end >> 20), &reply, err);
	if (!r)
		msg_free(&reply);
	return r;
}

bool source_object_may_be_lazy(const struct source *s, const struct tree *t, uint32_t i)
{
	const struct shared_object *so = &t->objects[i];
	bool can = so->page_bytes ? s->lazy_huge_objects
				  : s->lazy_objects && (s->lazy_memfds || so->kind != OBJ_MEMFD) &&
					(s->lazy_unlinked || so->kind != OBJ_UNLINKED);

	return can && object_is_lazy(t, i);
}

/* To know where its holes are costs time at the stop, too. What is hardly any, and huge pages,
 * whose memory is reserved, stay as a whole. */
static void leave_object(struct source *s, uint32_t i)
{
	const struct shared_object *so = &s->tree->objects[i];
	struct source_object *o = &s->objects.v[i];

	if (o->behind || !source_object_may_be_lazy(s, s->tree, i))
		return;
	o->holes = !so->page_bytes && !source_object_is_dense(s->object_fds.list.v[i], so->size);
	o->behind = !o->holes || source_object_may_leave_holes(s, so);
}

static void leave_objects(struct source *s)
{
	for (uint32_t i = 0; i < s->objects.n && i < s->tree->n_objects; i++)
		leave_object(s, i);
}

static int tell_objects(struct source *s, struct cr_err *err)
{
	int r = 0;

	for (uint32_t i = 0; i < s->objects.n && !r; i++) {
		struct source_object *o = &s->objects.v[i];

		if (!o->behind || (o->told && !o->holes))
			continue;
		r = o->holes ? source_tell_between_holes(s, i, err) : tell_object(s, i, false, err);
		o->told = true;
	}
	return r;
}

int source_take_back_objects(struct source *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	for (uint32_t i = 0; i < s->objects.n && !r; i++) {
		struct source_object *o = &s->objects.v[i];

		if (!o->behind || object_is_lazy(t, i))
			continue;
		o->behind = false;
		source_forget_behind(o);
		if (o->told)
			r = tell_object(s, i, true, err);
	}
	return r ? cr_err_ctx(err, "sending what was to stay behind") : 0;
}

int source_tell_left(struct source *s, struct cr_err *err)
{
	int r = note_round(s, err);

	if (!r)
		r = tell_objects(s, err);

	vec_foreach (spp, &s->procs)
		if (!r && (*spp)->has_tracker)
			r = tell_process(s, *spp, err);
	return r ? cr_err_ctx(err, "telling what stays behind") : 0;
}

uint64_t source_pages_left(const struct source *s)
{
	uint64_t n = 0;

	vec_foreach (spp, &s->procs)
		if ((*spp)->has_tracker)
			n += (*spp)->tracker.pages_lazy;
	return n;
}

int source_drop_rounds(struct source *s, uint32_t first, struct cr_err *err)
{
	uint64_t last = UINT64_MAX, before = 0;

	struct cr_err ignored = {0};

	s->lazy = true;
	/* it gets ready beside the running tasks; should that fail, there is another try later */
	if (serve_child_start(&s->page_server, &ignored))
		log_debug("%s", ignored.msg);
	source_event(s, "post-copy", "leaving what is written at the source");
	for (uint32_t n = 0; n < ROUNDS_MAX; n++) {
		int r = source_check_abort(s, err);

		if (!r && first + n > 1)
			r = source_follow_structure(s, err);
		if (!r)
			leave_objects(s);
		if (!r)
			r = source_one_round(s, first + n, NULL, err);
		if (!r)
			r = source_tell_left(s, err);
		if (r)
			return cr_err_ctx(err, "round %u", first + n);
		uint64_t left = source_pages_left(s), more = left - before;
		if (more < FEW_PAGES || (n >= 2 && more * SHRINK_DEN > last * SHRINK_NUM))
			break;
		last = more;
		before = left;
	}
	return 0;
}

int source_last_drop_rounds(struct source *s, struct cr_err *err)
{
	uint64_t last = UINT64_MAX, written = 0;
	int r = 0;

	for (uint32_t n = 0; n < LAST_ROUNDS_MAX && !r; n++) {
		r = source_quiet_round(s, &written, err);
		if (!r)
			r = source_tell_left(s, err);
		if (written < FEW_WRITTEN || written * SHRINK_DEN > last * SHRINK_NUM)
			break;
		last = written;
	}
	return r ? cr_err_ctx(err, "the last round before the stop") : 0;
}
