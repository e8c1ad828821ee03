#include "source/carry_track.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kernel/filemark.h"
#include "source/source.h"

void carry_track_free(struct carry_track *c)
{
	if (!c)
		return;
	if (c->marks)
		filemark_remove(c->fd);
	shared_look_done(&c->before);
	shared_look_done(&c->now);
	close_fdp(&c->fd);
	free(c);
}

/* ---- looks ---- */

static bool may_be_tracked(const struct source *s, const struct tree *t,
			   const struct source_file *f)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].flags & O_NOATIME && t->files[i].ino == f->ino &&
		    t->files[i].dev == f->dev)
			return false;
	return source_tracks_objects(s) && f->shm && f->wanted && f->sent && f->mapped &&
	       f->in_tree && !source_has_direct_io(t);
}

/* NULL: out of memory. By its name: whether that leads to what the tasks have is asked later. */
static struct carry_track *track_of(struct source_file *f)
{
	if (f->track || !(f->track = calloc(1, sizeof(*f->track))))
		return f->track;
	f->track->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOATIME | O_NONBLOCK);
	f->track->hopeless = f->track->fd < 0;
	return f->track;
}

/* From here on it shows who opens, writes or maps it. The name has to lead to it. */
static bool is_guarded(struct source *s, const struct tree *t, struct source_file *f,
		       struct stat *st, struct filemark *ret)
{
	struct carry_track *c = f->track;
	struct stat named;

	if (c->hopeless || fstat(c->fd, st) || stat(f->path, &named) ||
	    named.st_ino != st->st_ino || named.st_dev != st->st_dev ||
	    st->st_size < SOURCE_MARKED_MIN_BYTES || !source_watches(s, c->fd, &c->watch))
		return false;
	if (!c->marks)
		c->marks = source_can_mark(s, t, c->fd, f->path);
	c->hopeless = !c->marks || filemark_look(c->fd, ret);
	return !c->hopeless;
}

static void begin_look(struct source *s, const struct tree *t, struct source_file *f)
{
	struct carry_track *c = track_of(f);
	struct filemark marks;
	struct stat st;

	if (!c || !is_guarded(s, t, f, &st, &marks))
		return;
	c->now = (struct shared_look){
	    .size = (uint64_t)st.st_size, .by_descriptor = true, .marks = marks};
	c->looked = true;
}

void carry_track_leave_out(struct source *s)
{
	vec_foreach (f, &s->files)
		if (f->track) {
			shared_look_done(&f->track->now);
			f->track->looked = false;
		}
}

bool carry_track_begin(struct source *s, const struct tree *t, bool final)
{
	bool any = false;

	carry_track_leave_out(s);
	vec_foreach (f, &s->files) {
		if (may_be_tracked(s, t, f) && (!final || (f->track && f->track->before.known)))
			begin_look(s, t, f);
		any |= f->track && f->track->looked;
	}
	return any;
}

struct shared_look *carry_track_look(struct source *s, const struct tree *t, const struct vma *v,
				     const struct shm_mapping *m)
{
	if (v->kind != VMA_FILE_SHARED || v->file >= t->n_mapped_files)
		return NULL;
	vec_foreach (f, &s->files)
		if (f->track && f->track->looked && m->ino == f->ino &&
		    !strcmp(f->path, t->mapped_files[v->file].path))
			return &f->track->now;
	return NULL;
}

void carry_track_opened(struct source *s, int watch)
{
	vec_foreach (f, &s->files)
		if (f->track && (watch < 0 || f->track->watch == watch))
			f->track->opened = true;
}

void carry_track_judge(struct source *s)
{
	vec_foreach (f, &s->files) {
		struct carry_track *c = f->track;

		if (!c || !c->looked)
			continue;
		c->now.opened = c->opened;
		c->opened = false;
		shared_look_judge(&c->now, &c->before);
	}
}

/* ---- pages ---- */

int carry_track_collect(struct source_file *f, bool final, struct shared_pages *ret)
{
	struct carry_track *c = f->track;
	bool follows = shared_look_follows(&c->before, &c->now);
	struct cr_err gone = {0};

	*ret = (struct shared_pages){0};
	/* until they are sent, what was collected is known to nobody else */
	c->before.known = false;
	if (c->now.known && (follows || !final) && shared_look_collect(&c->now, !final, ret, &gone))
		c->now.known = follows = false;
	c->followed = follows;
	return follows ? 0 : 1;
}

bool carry_track_any(const struct source *s)
{
	vec_foreach (f, &s->files)
		if (f->track && f->track->before.known)
			return true;
	return false;
}

bool carry_track_all_followed(const struct source *s)
{
	vec_foreach (f, &s->files)
		if (f->track && f->track->before.known && !f->track->followed)
			return false;
	return true;
}

uint64_t carry_track_written(const struct source *s)
{
	uint64_t n = 0;

	vec_foreach (f, &s->files)
		n += f->track ? f->track->written : 0;
	return n;
}
