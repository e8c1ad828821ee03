/* The pages of shared memory, round by round: those that were written, where that is known
 * (memory/shared_tracker.h), else all of it, compared with what was sent. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "kernel/openwatch.h"
#include "kernel/sysv_shm.h"
#include "kernel/tmpfs.h"
#include "model/layout.h"
#include "resource/inside.h"
#include "wire/page_digest.h"
#include "source/carry_track.h"
#include "source/source.h"

enum {
	LAST_ROUNDS_MAX = 3,
	/* fewer pages than a further look is worth */
	FEW_WRITTEN = 256,
};

/* ---- what is known of it ---- */

static bool has_descriptor(const struct tree *t, uint32_t i)
{
	for (size_t k = 0; k < t->n_files; k++)
		if (t->files[k].object == i)
			return true;
	return false;
}

bool source_tracks_objects(const struct source *s)
{
	/* nobody waits for a dump */
	return s->env->shared && !s->rq->opts.no_bpf && !s->image;
}

/* Nothing of it is sent ahead. */
static bool is_to_stay(const struct source *s, const struct tree *t, uint32_t i)
{
	return s->rq->opts.mode == MSG_MODE_POSTCOPY && source_object_may_be_lazy(s, t, i);
}

/* Memory to which no descriptor and no name leads. */
static bool is_unreachable(const struct tree *t, uint32_t i)
{
	return (t->objects[i].kind == OBJ_SHARED_ANON || t->objects[i].kind == OBJ_SYSV_SHM) &&
	       !has_descriptor(t, i);
}

/* Memory that may be watched by marks: their look is worth it, and no descriptor hides accesses. */
static bool may_be_marked(const struct source *s, const struct tree *t, uint32_t i)
{
	const struct shared_object *so = &t->objects[i];

	for (size_t k = 0; k < t->n_files; k++)
		if (t->files[k].object == i && t->files[k].flags & O_NOATIME)
			return false;
	return (so->kind == OBJ_MEMFD || so->kind == OBJ_UNLINKED) && s->marks_work >= 0 &&
	       !s->objects.v[i].unmarkable && so->size >= SOURCE_MARKED_MIN_BYTES;
}

static bool may_be_tracked(const struct source *s, const struct tree *t, uint32_t i)
{
	return source_tracks_objects(s) && !is_to_stay(s, t, i) && !source_has_direct_io(t) &&
	       !t->objects[i].page_bytes && (is_unreachable(t, i) || may_be_marked(s, t, i));
}

static void on_opened(int watch, void *arg)
{
	struct source *s = arg;

	vec_foreach (o, &s->objects)
		if (watch < 0 || o->watch == watch)
			o->opened = true;
	carry_track_opened(s, watch);
}

bool source_watches(struct source *s, int fd, int *watch)
{
	if (s->openings < 0)
		s->openings = openwatch_new();
	if (!*watch && s->openings >= 0)
		*watch = openwatch_add(s->openings, fd);
	return *watch > 0;
}

/* From here on it shows if pages are taken out. */
static bool has_witness(struct source *s, uint32_t i, uint64_t size)
{
	struct source_object *o = &s->objects.v[i];
	struct cr_err ignored = {0};

	if (o->witness.map && o->witness.bytes == ALIGN_UP(size, CR_PAGE_SIZE))
		return true;
	witness_done(&o->witness);
	o->before.known = false; /* nothing of it was seen */
	return size && !witness_begin(&o->witness, s->object_fds.list.v[i], size, &ignored);
}

static bool marks_work(struct source *s)
{
	struct cr_err ignored = {0};

	if (!s->marks_work)
		s->marks_work = filemark_check(&ignored) ? -1 : 1;
	return s->marks_work > 0;
}

/* Once: whoever outside comes to it later opens it, which is watched already, or is given a
 * descriptor of the tree's. One that he has may hide accesses. */
bool source_can_mark(struct source *s, const struct tree *t, int fd, const char *name)
{
	int how = fcntl(fd, F_GETFL);
	struct stat st;

	/* to read it is an access, too */
	return marks_work(s) && tmpfs_has(fd) && how >= 0 && !fcntl(fd, F_SETFL, how | O_NOATIME) &&
	       !fstat(fd, &st) && !outside_holder(t, false, name, st.st_dev, st.st_ino);
}

static bool can_be_marked(struct source *s, const struct tree *t, uint32_t i)
{
	const struct shared_object *so = &t->objects[i];
	char name[PATH_MAX + 8];

	snprintf(name, sizeof(name), "%s%s", so->kind == OBJ_MEMFD ? "/memfd:" : "", so->name);
	return source_can_mark(s, t, s->object_fds.list.v[i], name);
}

/* From here on it shows if it is written or mapped by a descriptor. */
static bool has_marks(struct source *s, const struct tree *t, uint32_t i)
{
	struct source_object *o = &s->objects.v[i];

	if (!o->marked && !o->unmarkable) {
		o->marked = can_be_marked(s, t, i);
		o->unmarkable = !o->marked;
	}
	if (!o->marked || !filemark_look(s->object_fds.list.v[i], &o->now.marks))
		return o->marked;
	filemark_remove(s->object_fds.list.v[i]);
	o->unmarkable = true;
	o->marked = false;
	return false;
}

/* Is everything else that could be done to it watched? What does not depend on who has it. */
static bool is_guarded(struct source *s, const struct tree *t, uint32_t i)
{
	if (!source_watches(s, s->object_fds.list.v[i], &s->objects.v[i].watch))
		return false;
	return is_unreachable(t, i) ? has_witness(s, i, t->objects[i].size) : has_marks(s, t, i);
}

static void begin_look(struct source *s, const struct tree *t, uint32_t i)
{
	struct source_object *o = &s->objects.v[i];
	const struct shared_object *so = &t->objects[i];
	struct sysv_shm seg = {0};
	struct cr_err ignored = {0};
	bool asked = so->kind != OBJ_SYSV_SHM || !sysv_shm_stat(so->ipc_id, &seg, &ignored);
	int how = fcntl(s->object_fds.list.v[i], F_GETFL);

	o->now = (struct shared_look){
	    .size = so->size,
	    .openings = how >= 0 && (how & O_ACCMODE) != O_RDONLY,
	    .maps_of_ours = o->witness.map != NULL,
	    .by_descriptor = o->marked,
	    .marks = o->now.marks,
	    .attached_s = asked ? seg.attached_s : UINT64_MAX,
	    .when_s = (uint64_t)time(NULL),
	};
	o->looked = true;
}

/* Of what that is a mapping; NULL: of nothing that is looked at. */
static struct shared_look *look_of(struct source *s, const struct tree *t, const struct process *p,
				   const struct shm_mapping *m)
{
	const struct vma *v = layout_find(p->mm.vmas, p->mm.n_vmas, m->start);

	if (!v || v->start != m->start || v->end != m->end || !shm_mapping_can_write(m))
		return NULL;
	if (v->kind != VMA_SHARED_OBJ)
		return carry_track_look(s, t, v, m);
	if (v->object >= s->objects.n || !s->objects.v[v->object].looked)
		return NULL;
	return &s->objects.v[v->object].now;
}

static bool has_one(const struct source *s, const struct process *p)
{
	for (size_t i = 0; i < p->mm.n_vmas; i++) {
		const struct vma *v = &p->mm.vmas[i];

		if (v->kind == VMA_FILE_SHARED ||
		    (v->kind == VMA_SHARED_OBJ && v->object < s->objects.n &&
		     s->objects.v[v->object].looked))
			return true;
	}
	return false;
}

/* A process of which nothing can be told has ended: its mappings are missed. */
static int look_at_process(struct source *s, const struct tree *t, const struct process *p,
			   struct cr_err *err)
{
	const struct source_proc *sp = source_find(s, p->pid);
	_cleanup_free_ struct shm_mapping *list = NULL;
	struct cr_err ignored = {0};
	size_t n = 0;

	if (shmview_read(s->env->shared, p->pid, &list, &n, &ignored))
		return 0;
	for (size_t k = 0; k < n; k++) {
		struct shared_look *l = look_of(s, t, p, &list[k]);
		struct shared_mapping *slot = l ? vec_push(&l->maps) : NULL;

		if (l && !slot)
			return cr_err_oom(err);
		if (slot)
			*slot = (struct shared_mapping){
			    .pid = p->pid,
			    .tracker = sp && sp->has_tracker ? &sp->tracker : NULL,
			    .m = list[k]};
	}
	return 0;
}

static bool is_looked_at(const struct source_object *o, enum source_look which)
{
	switch (which) {
	case SOURCE_LOOK_ROUND:
		return !o->behind;
	case SOURCE_LOOK_BEHIND:
		return o->behind;
	default:
		return o->before.known;
	}
}

int source_look_at_objects(struct source *s, const struct tree *t, enum source_look which,
			   struct cr_err *err)
{
	bool any = false;
	int r = 0;

	if (which == SOURCE_LOOK_BEHIND)
		carry_track_leave_out(s);
	else
		any = carry_track_begin(s, t, which == SOURCE_LOOK_STOP);
	for (uint32_t i = 0; i < s->objects.n && i < t->n_objects; i++) {
		struct source_object *o = &s->objects.v[i];

		shared_look_done(&o->now);
		o->looked = false;
		if (is_looked_at(o, which) && may_be_tracked(s, t, i) && is_guarded(s, t, i))
			begin_look(s, t, i);
		any |= o->looked;
	}
	if (!any)
		return 0;
	/* before the rest: who opens it from here on does so after this look */
	openwatch_read(s->openings, on_opened, s);
	for (size_t k = 0; k < t->n_procs && !r; k++)
		if (!t->procs[k].zombie && has_one(s, &t->procs[k]))
			r = look_at_process(s, t, &t->procs[k], err);
	vec_foreach (o, &s->objects)
		if (o->looked) {
			o->now.opened = o->opened;
			o->opened = false;
			shared_look_judge(&o->now, &o->before);
		}
	carry_track_judge(s);
	return r;
}

/* ---- sending ---- */

/* The destination cuts pages at the end of the object as it knew it: of a page that lies across
 * that end, it may have less than was sent. What it has cut off is gone; but an image keeps it. */
static void follow_size(struct source_object *o, uint64_t size, bool kept)
{
	uint64_t edge = o->size < size ? o->size : size;

	if (o->size == size)
		return;
	sentmap_doubt(&o->sent, edge & ~(CR_PAGE_SIZE - 1));
	if (size < o->size && !kept)
		sentmap_forget(&o->sent, ALIGN_UP(size, CR_PAGE_SIZE),
			       ALIGN_UP(o->size, CR_PAGE_SIZE));
	o->size = size;
}

static int send_whole(struct source *s, struct source_object *o, int fd, uint64_t size, bool final,
		      struct cr_err *err)
{
	uint64_t end = ALIGN_UP(size, CR_PAGE_SIZE);
	int r = 0;

	for (uint64_t at = 0; at < end && !r;) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);
		uint64_t next = data < 0 ? end : (uint64_t)data & ~(CR_PAGE_SIZE - 1);

		/* a hole: zeros, where something else was sent before */
		for (uint64_t va = at; va < next && !r; va += CR_PAGE_SIZE)
			if (sentmap_chunk(&o->sent, va, false) == NULL)
				va = va - va % CHUNK_SIZE + CHUNK_SIZE - CR_PAGE_SIZE;
			else if (sentmap_test(&o->sent, va))
				r = reader_add(s->reader, va, va + CR_PAGE_SIZE, true, err);
		if (r || next >= end)
			break;
		off_t hole = lseek(fd, (off_t)next, SEEK_HOLE);
		at = hole < 0 ? end : ALIGN_UP((uint64_t)hole, CR_PAGE_SIZE);
		if (at > end)
			at = end;
		if (!final)
			witness_see(&o->witness, next, at);
		r = reader_add(s->reader, next, at, true, err);
	}
	return r ? r : reader_finish(s->reader, err);
}

struct missing {
	struct source_object *o;
	struct shared_pages *pages;
};

/* Zeros are zeros, whether they were taken out or not. */
static bool was_zero(const struct source_object *o, const struct sent_chunk *c, uint64_t va)
{
	return c->digests &&
	       XXH128_isEqual(c->digests[chunk_index(va)], page_hash_zero(o->target, va));
}

static int mark_missing(const struct page_extent *e, void *arg, struct cr_err *err)
{
	const struct missing *m = arg;

	(void)err;
	for (uint64_t va = e->start; va < e->end; va += CR_PAGE_SIZE) {
		const struct sent_chunk *c = sentmap_chunk(&m->o->sent, va, false);

		if (!c) /* nothing was sent there, and nothing written since */
			va = va - va % CHUNK_SIZE + CHUNK_SIZE - CR_PAGE_SIZE;
		else if (chunk_test(c->sent, chunk_index(va)) && !was_zero(m->o, c, va))
			shared_pages_mark(m->pages, va / CR_PAGE_SIZE);
	}
	return 0;
}

int source_object_written(struct source_object *o, bool protect, struct shared_pages *ret,
			  struct cr_err *err)
{
	struct missing m = {o, ret};
	int r = shared_look_collect(&o->now, protect, ret, err);

	/* without it, marks tell of what was taken out */
	if (!r && o->witness.map)
		r = witness_missing(&o->witness, mark_missing, &m, err);
	if (r)
		shared_pages_done(ret);
	return r;
}

static int send_marked(struct source *s, const struct source_object *o,
		       const struct shared_pages *pages, bool final, struct cr_err *err)
{
	int r = 0;

	for (size_t at = 0, end; !r && shared_pages_next(pages, &at, &end); at = end) {
		if (!final)
			witness_see(&o->witness, at * CR_PAGE_SIZE, end * CR_PAGE_SIZE);
		r = reader_add(s->reader, at * CR_PAGE_SIZE, end * CR_PAGE_SIZE, true, err);
	}
	return r ? r : reader_finish(s->reader, err);
}

static uint64_t pages_sent(const struct source *s)
{
	struct reader_stats st;

	reader_stats(s->reader, &st);
	return st.pages_sent;
}

/* Protected before it is read: what is written meanwhile is sent again in the next round. */
static int send_object(struct source *s, uint32_t i, uint64_t size, bool final, struct cr_err *err)
{
	struct source_object *o = &s->objects.v[i];
	int fd = s->object_fds.list.v[i];
	bool follows = shared_look_follows(&o->before, &o->now);
	struct shared_pages pages = {0};
	struct cr_err gone = {0};
	uint64_t before = pages_sent(s);

	/* until it is sent, what was collected is known to nobody else */
	o->before.known = false;
	if (o->now.known && (follows || !final) && source_object_written(o, !final, &pages, &gone))
		o->now.known = follows = false;
	int r = reader_target(s->reader, o->target, &o->sent, READ_FILE, 0, fd, err);
	if (!r)
		follow_size(o, size, s->image);
	if (!r)
		r = follows ? send_marked(s, o, &pages, final, err)
			    : send_whole(s, o, fd, size, final, err);
	o->written = follows ? pages.marked : pages_sent(s) - before;
	o->followed = follows;
	shared_pages_done(&pages);
	if (r)
		return r;
	shared_look_done(&o->before);
	o->before = o->now;
	o->now = (struct shared_look){0};
	return 0;
}

int source_send_objects(struct source *s, const struct tree *t, bool final, struct cr_err *err)
{
	/* at the stop that was done before anything was put into the tasks */
	int r = final ? 0 : source_look_at_objects(s, t, SOURCE_LOOK_ROUND, err);

	for (uint32_t i = 0; i < t->n_objects && i < s->objects.n && !r; i++)
		if (!s->objects.v[i].behind)
			r = send_object(s, i, t->objects[i].size, final, err);
	return r || final ? r : source_carry_round(s, err);
}

uint64_t source_objects_written(const struct source *s)
{
	uint64_t n = 0;

	vec_foreach (o, &s->objects)
		if (!o->behind)
			n += o->written;
	return n + carry_track_written(s);
}

/* ---- right before the stop ---- */

static bool any_tracked(const struct source *s)
{
	vec_foreach (o, &s->objects)
		if (o->before.known && !o->behind)
			return true;
	return carry_track_any(s);
}

/* Of those that are tracked, was all that is not marked known to be as it was? */
static bool all_followed(const struct source *s)
{
	vec_foreach (o, &s->objects)
		if (o->before.known && !o->behind && !o->followed)
			return false;
	return carry_track_all_followed(s);
}

int source_last_object_rounds(struct source *s, struct cr_err *err)
{
	int r = 0;

	for (int n = 0; n < LAST_ROUNDS_MAX && any_tracked(s) && !r; n++) {
		r = source_send_objects(s, s->tree, false, err);
		if (!r)
			r = page_tx_flush(s->tx, NULL, err);
		if (all_followed(s) && source_objects_written(s) < FEW_WRITTEN)
			break;
	}
	return r ? cr_err_ctx(err, "shared memory, before the stop") : 0;
}

void source_objects_done(struct source *s)
{
	for (uint32_t i = 0; i < s->objects.n; i++) {
		struct source_object *o = &s->objects.v[i];

		if (o->marked)
			filemark_remove(s->object_fds.list.v[i]);
		sentmap_done(&o->sent);
		shared_look_done(&o->before);
		shared_look_done(&o->now);
		shared_pages_done(&o->differs);
		witness_done(&o->witness);
		vec_done(&o->left);
	}
	vec_done(&s->objects);
	close_fdp(&s->openings);
}
