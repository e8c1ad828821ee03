/* Files that come along, because the destination does not have them (resource/carried.h): regular
 * files that the tasks have open, mapped, or as their program, with --copy-files; POSIX shared
 * memory in any case. They are sent whole beside the running tasks, and once more at the stop what
 * changed of them since, block by block; shared memory that is tracked page by page, and in each
 * round (carry_track.c). With --copy-files also the directories that tasks work in
 * or have open, and those of their named pipes and sockets, which need a place. */
#include "source/carry.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include "base/clock.h"
#include "kernel/filemark.h"
#include "resource/carried.h"
#include "source/carry_track.h"
#include "source/source.h"

enum {
	BLOCK = 128 * 1024,
	ASK_PATHS = 150, /* of PATH_MAX bytes, in one message */
	LOOK_BLOCKS = 64,
	MS_PER_MIB = 20,
	XATTR_BYTES = 65536,
	/* A change within this time of the last one may show no other time: a tick of the slowest
	 * clock, and some more */
	SAME_TIME_NS = 20 * 1000 * 1000,
};

static uint64_t ns_of(struct timespec t)
{
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void source_carry_done(struct source *s)
{
	vec_foreach (f, &s->files) {
		carry_track_free(f->track);
		free(f->path);
		vec_done(&f->blocks);
	}
	vec_done(&s->files);
}

/* ---- which ---- */

static struct source_file *find(struct source *s, const char *path)
{
	vec_foreach (f, &s->files)
		if (!strcmp(f->path, path))
			return f;
	return NULL;
}

/* One that was not asked for yet is added. The inode of a name that was used again is the new one.
 */
static int note(struct source *s, const char *path, uint64_t dev, uint64_t ino, struct cr_err *err)
{
	struct source_file *f = find(s, path);
	bool shm = false;

	if (f) {
		f->in_tree = true;
		f->dev = dev;
		f->ino = ino;
		return 0;
	}
	if (!carried_can(path, &shm) || (!shm && !s->rq->opts.copy_files))
		return 0;
	char *copy = strdup(path);
	f = copy ? vec_push(&s->files) : NULL;
	if (!f) {
		free(copy);
		return cr_err_oom(err);
	}
	*f =
	    (struct source_file){.path = copy, .dev = dev, .ino = ino, .shm = shm, .in_tree = true};
	return 0;
}

/* path: NULL, the root, no directory, or one that cannot be made elsewhere: nothing to note. */
static int note_directory(struct source *s, const char *path, struct cr_err *err)
{
	if (!path || !path[1] || !s->rq->opts.copy_files || !carried_can_directory(path))
		return 0;
	struct source_file *f = find(s, path);
	char *copy = f ? NULL : strdup(path);

	if (!f && !(f = copy ? vec_push(&s->files) : NULL)) {
		free(copy);
		return cr_err_oom(err);
	}
	if (copy)
		*f = (struct source_file){.path = copy, .directory = true};
	f->in_tree = true;
	return 0;
}

/* The directory that the destination has to have for f: its own, or where it has its name. false:
 * none. */
static bool directory_of(const struct file *f, char *ret, size_t size)
{
	bool is_one = f->kind == FILE_REGULAR && S_ISDIR(f->mode);
	bool is_name =
	    f->kind == FILE_PIPE || f->kind == FILE_UNIX_LISTEN || f->kind == FILE_UNIX_CONN;

	if ((!is_one && !is_name) || !f->path || *f->path != '/' ||
	    snprintf(ret, size, "%s", f->path) >= (int)size)
		return false;
	if (is_name)
		*strrchr(ret, '/') = '\0';
	return *ret; /* the root is everywhere */
}

static int list_directories(struct source *s, const struct tree *t, struct cr_err *err)
{
	char path[PATH_MAX];
	int r = 0;

	for (size_t i = 0; i < t->n_files && !r; i++)
		if (directory_of(&t->files[i], path, sizeof(path)))
			r = note_directory(s, path, err);
	for (size_t i = 0; i < t->n_procs && !r; i++)
		r = note_directory(s, t->procs[i].cwd, err);
	return r;
}

static int list(struct source *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	vec_foreach (f, &s->files)
		f->in_tree = f->mapped = false;
	for (size_t i = 0; i < t->n_files && !r; i++)
		if (t->files[i].kind == FILE_REGULAR && S_ISREG(t->files[i].mode))
			r = note(s, t->files[i].path, t->files[i].dev, t->files[i].ino, err);
	for (size_t i = 0; i < t->n_mapped_files && !r; i++) {
		const struct mapped_file *m = &t->mapped_files[i];

		r = note(s, m->path, m->st_dev, m->ino, err);
		struct source_file *f = find(s, m->path);
		if (f)
			f->mapped |= m->writable;
	}
	return r ? r : list_directories(s, t, err);
}

static int ask_some(struct source *s, size_t first, size_t n, struct cr_err *err)
{
	const char *paths[ASK_PATHS];
	struct msg m = msg_of(MSG_FILES), reply;

	for (size_t i = 0; i < n; i++)
		paths[i] = s->files.v[first + i].path;
	m.files = (struct msg_files){paths, n};
	int r = link_call(s->peer, &m, MSG_FILES_OK, source_patience_ms(s, 0), &reply, err);
	if (r)
		return cr_err_ctx(err, "asking which files are missing");
	for (size_t i = 0; i < reply.files_ok.n; i++)
		if (reply.files_ok.wanted[i] < n)
			s->files.v[first + reply.files_ok.wanted[i]].wanted = true;
	msg_free(&reply);
	return 0;
}

static int ask(struct source *s, size_t first, struct cr_err *err)
{
	int r = 0;

	for (size_t i = first; i < s->files.n && !r; i += ASK_PATHS)
		r = ask_some(s, i, s->files.n - i < ASK_PATHS ? s->files.n - i : ASK_PATHS, err);
	return r;
}

static bool is_carried(struct source *s, const char *path)
{
	const struct source_file *f = find(s, path);

	return f && f->wanted;
}

static void mark(struct source *s, struct file *f)
{
	char path[PATH_MAX];

	if (f->kind == FILE_REGULAR && S_ISREG(f->mode))
		f->carried = is_carried(s, f->path);
	else
		f->carried = directory_of(f, path, sizeof(path)) && is_carried(s, path);
}

int source_carry_look(struct source *s, struct tree *t, bool exact, struct cr_err *err)
{
	size_t had = s->files.n;

	if (s->image)
		return 0;
	int r = list(s, t, err);
	if (!r)
		r = ask(s, had, err);
	for (size_t i = had; i < s->files.n && !r; i++)
		if (s->files.v[i].wanted && s->files.v[i].shm)
			carried_refuse_shared(t, exact, s->files.v[i].path, s->files.v[i].dev,
					      s->files.v[i].ino, &s->notes);
	for (size_t i = 0; i < t->n_files; i++)
		mark(s, &t->files[i]);
	for (size_t i = 0; i < t->n_procs; i++)
		t->procs[i].cwd_carried = t->procs[i].cwd && is_carried(s, t->procs[i].cwd);
	for (size_t i = 0; i < t->n_mapped_files; i++)
		t->mapped_files[i].carried = is_carried(s, t->mapped_files[i].path);
	if (!r && s->tree && s->notes.list.n) /* later than the preflight, nobody else looks */
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "%s: %s",
				  s->notes.list.v[0].what, s->notes.list.v[0].why);
	return r;
}

/* ---- one file ---- */

struct pass {
	struct source *s;
	struct source_file *f;
	int fd;
	uint64_t size;
	bool fresh;          /* the destination has nothing of it: holes are there already */
	uint64_t data, hole; /* where the next data begins, and the hole after it */
	uint64_t sent_bytes;
	uint8_t *buf;
};

static int send_piece(struct pass *p, uint64_t offset, uint64_t hole, const uint8_t *data,
		      size_t len, struct cr_err *err)
{
	struct msg m = msg_of(MSG_FILE_DATA);

	m.file_data =
	    (struct msg_file_data){.offset = offset, .hole = hole, .data = data, .len = len};
	p->sent_bytes += len;
	return link_send(p->s->peer, &m, err);
}

/* lseek(2) SEEK_DATA: from at on. */
static void seek_data(struct pass *p, uint64_t at)
{
	if (at < p->hole)
		return;
	off_t d = lseek(p->fd, (off_t)at, SEEK_DATA);
	off_t h = d < 0 ? -1 : lseek(p->fd, d, SEEK_HOLE);

	p->data = d < 0 ? p->size : (uint64_t)d;
	p->hole = h < 0 ? p->size : (uint64_t)h;
	if (d < 0)
		p->hole = UINT64_MAX; /* no more */
}

struct segment {
	uint64_t start, end;
};

/* What is data in [at, end): read into buf at its place; a digest of it and of where it is. */
static int read_block(struct pass *p, uint64_t at, uint64_t end, struct segment *segs, size_t max,
		      size_t *n, XXH128_hash_t *ret, struct cr_err *err)
{
	XXH3_state_t *st = XXH3_createState();

	if (!st)
		return cr_err_oom(err);
	XXH3_128bits_reset(st);
	*n = 0;
	for (uint64_t pos = at; pos < end && *n < max;) {
		struct segment g;

		seek_data(p, pos);
		g.start = p->data > pos ? p->data : pos;
		g.end = p->hole < end ? p->hole : end;
		if (g.start >= end)
			break;
		ssize_t got =
		    pread(p->fd, p->buf + (g.start - at), g.end - g.start, (off_t)g.start);
		if (got <= 0)
			break; /* shorter by now: there is another pass */
		g.end = g.start + (uint64_t)got;
		XXH3_128bits_update(st, &g, sizeof(g));
		XXH3_128bits_update(st, p->buf + (g.start - at), (size_t)got);
		segs[(*n)++] = g;
		pos = g.end;
	}
	*ret = *n ? XXH3_128bits_digest(st) : (XXH128_hash_t){0, 0};
	XXH3_freeState(st);
	return 0;
}

/* Pages are what holes consist of: no block has more pieces than that. */
static int send_block(struct pass *p, size_t i, struct cr_err *err)
{
	struct segment segs[BLOCK / 4096];
	uint64_t at = (uint64_t)i * BLOCK, end = at + BLOCK < p->size ? at + BLOCK : p->size;
	XXH128_hash_t digest;
	size_t n = 0;
	int r = read_block(p, at, end, segs, ARRAY_SIZE(segs), &n, &digest, err);

	if (r || XXH128_isEqual(digest, p->f->blocks.v[i]))
		return r;
	if (!p->fresh)
		r = send_piece(p, at, end - at, NULL, 0, err);
	for (size_t k = 0; k < n && !r; k++)
		r = send_piece(p, segs[k].start, 0, p->buf + (segs[k].start - at),
			       segs[k].end - segs[k].start, err);
	p->f->blocks.v[i] = digest;
	return r;
}

/* Only those pages: what is in blocks with one of them is not known by a digest any more. */
static int send_pages(struct pass *p, const struct shared_pages *pages, struct cr_err *err)
{
	int r = 0;

	for (size_t at = 0, end; !r && shared_pages_next(pages, &at, &end);) {
		size_t block = at * CR_PAGE_SIZE / BLOCK;
		size_t most = (block + 1) * (BLOCK / CR_PAGE_SIZE);
		uint64_t from = at * CR_PAGE_SIZE;

		end = end < most ? end : most;
		ssize_t n = pread(p->fd, p->buf, (end - at) * CR_PAGE_SIZE, (off_t)from);
		if (n < 0)
			return cr_err_sys(err, "reading %s", p->f->path);
		if (n)
			r = send_piece(p, from, 0, p->buf, (size_t)n, err);
		if (block < p->f->blocks.n)
			memset(&p->f->blocks.v[block], 0xff, sizeof(*p->f->blocks.v));
		at = end;
	}
	return r;
}

static int send_blocks(struct pass *p, struct cr_err *err)
{
	size_t n = (size_t)((p->size + BLOCK - 1) / BLOCK);
	int r = 0;

	/* what was cut off there is a hole when the file grows again */
	if (p->f->blocks.n > n)
		p->f->blocks.n = n;
	if (n && p->f->blocks.n == n && p->f->sent && p->size < (uint64_t)p->f->seen.st_size)
		memset(&p->f->blocks.v[n - 1], 0xff, sizeof(*p->f->blocks.v));
	while (p->f->blocks.n < n)
		if (!vec_push(&p->f->blocks))
			return cr_err_oom(err);
	for (size_t i = 0; i < n && !r; i++) {
		static const XXH128_hash_t hole;
		uint64_t at = (uint64_t)i * BLOCK;

		seek_data(p, at);
		if (p->data >= at + BLOCK && XXH128_isEqual(p->f->blocks.v[i], hole))
			continue;
		r = send_block(p, i, err);
		if (!r && i % LOOK_BLOCKS == LOOK_BLOCKS - 1)
			r = source_check_abort(p->s, err);
	}
	return r;
}

static int read_xattrs(struct pass *p, struct arena *a, struct msg_file *m, struct cr_err *err)
{
	char *names = arena_alloc(a, XATTR_BYTES);
	ssize_t n = names ? flistxattr(p->fd, names, XATTR_BYTES) : 0;

	if (!names)
		return cr_err_oom(err);
	for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1)
		m->n_xattrs++;
	m->xattrs = arena_array(a, struct msg_xattr, m->n_xattrs + 1);
	if (!m->xattrs)
		return cr_err_oom(err);
	m->n_xattrs = 0;
	for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1) {
		ssize_t len = fgetxattr(p->fd, name, p->buf, BLOCK);
		uint8_t *value = len < 0 ? NULL : arena_memdup(a, p->buf, (size_t)len + 1);

		if (len < 0 || carried_is_mark(name) || filemark_is(name, p->buf, (size_t)len))
			continue; /* gone meanwhile */
		if (!value)
			return cr_err_oom(err);
		m->xattrs[m->n_xattrs++] = (struct msg_xattr){name, value, (size_t)len};
	}
	return 0;
}

static int read_parents(struct msg_file *m, struct arena *a, struct cr_err *err)
{
	size_t n = 0, size = strlen(m->path) + 2;
	char *copy = arena_alloc(a, size);

	if (!copy)
		return cr_err_oom(err);
	snprintf(copy, size, "%s%s", m->path, m->directory ? "/" : "");
	for (const char *p = copy + 1; (p = strchr(p, '/')); p++)
		n++;
	m->parents = arena_array(a, struct msg_directory, n + 1);
	if (!m->parents)
		return cr_err_oom(err);
	for (char *p = strchr(copy + 1, '/'); p; p = strchr(p + 1, '/')) {
		struct stat st;

		*p = '\0';
		if (stat(copy, &st))
			return cr_err_sys(err, "%s", copy);
		*p = '/';
		m->parents[m->n_parents++] =
		    (struct msg_directory){st.st_mode & 07777, st.st_uid, st.st_gid};
	}
	return 0;
}

static int begin(struct pass *p, const struct stat *st, struct cr_err *err)
{
	struct arena *a = arena_new();
	struct msg m = msg_of(MSG_FILE);

	if (!a)
		return cr_err_oom(err);
	m.file = (struct msg_file){.path = p->f->path,
				   .size = p->size,
				   .mode = st->st_mode & 07777,
				   .uid = st->st_uid,
				   .gid = st->st_gid,
				   .atime_ns = ns_of(st->st_atim),
				   .mtime_ns = ns_of(st->st_mtim)};
	int r = read_xattrs(p, a, &m.file, err);
	if (!r)
		r = read_parents(&m.file, a, err);
	if (!r)
		r = link_send(p->s->peer, &m, err);
	arena_free(a);
	return r;
}

static int end(struct pass *p, struct cr_err *err)
{
	struct msg m = msg_of(MSG_FILE_END), reply;
	int ms = source_patience_ms(p->s, (p->sent_bytes >> 20) * MS_PER_MIB);
	int r = link_call(p->s->peer, &m, MSG_OK, ms, &reply, err);

	if (!r)
		msg_free(&reply);
	return r;
}

static int open_quietly(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOATIME);

	return fd >= 0 ? fd : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* What is in it comes along by itself, or not at all. */
static int send_directory(struct source *s, struct source_file *f, struct cr_err *err)
{
	struct arena *a = arena_new();
	struct msg m = msg_of(MSG_FILE), reply;

	if (!a)
		return cr_err_oom(err);
	m.file = (struct msg_file){.path = f->path, .directory = true};
	int r = read_parents(&m.file, a, err);
	if (!r)
		r = link_call(s->peer, &m, MSG_OK, source_patience_ms(s, 0), &reply, err);
	arena_free(a);
	if (r)
		return cr_err_ctx(err, "making %s at the destination", f->path);
	msg_free(&reply);
	f->sent = true;
	return 0;
}

/* pages: NULL: all that differs from what was sent. */
static int send_contents(struct source *s, struct source_file *f, const struct shared_pages *pages,
			 struct cr_err *err)
{
	/* who opens one that is tracked is watched */
	_cleanup_fd_ int own = f->track && f->track->looked ? -1 : open_quietly(f->path);
	int fd = f->track && f->track->looked ? f->track->fd : own;
	_cleanup_free_ uint8_t *buf = malloc(BLOCK);
	struct stat st;

	if (!buf)
		return cr_err_oom(err);
	if (fd < 0 && errno == ENOENT)
		return 0; /* the tasks are done with it: so is the destination, at the end */
	if (fd < 0 || fstat(fd, &st))
		return cr_err_sys(err, "opening %s", f->path);
	/* another file under that name: the destination's holes may be where this one has none */
	if (f->sent && (f->seen.st_ino != st.st_ino || f->seen.st_dev != st.st_dev) && f->blocks.n)
		memset(f->blocks.v, 0xff, f->blocks.n * sizeof(*f->blocks.v));
	struct pass p = {
	    .s = s, .f = f, .fd = fd, .size = (uint64_t)st.st_size, .fresh = !f->sent, .buf = buf};
	uint64_t now = clock_ns(CLOCK_REALTIME);
	int r = begin(&p, &st, err);
	if (!r)
		r = pages ? send_pages(&p, pages, err) : send_blocks(&p, err);
	if (!r)
		r = end(&p, err);
	if (r)
		return cr_err_ctx(err, "bringing %s along", f->path);
	if (f->track)
		f->track->sent_bytes += p.sent_bytes;
	f->seen = st;
	f->seen_ns = now;
	f->sent = true;
	return 0;
}

static int send_file(struct source *s, struct source_file *f, struct cr_err *err)
{
	return f->directory ? send_directory(s, f, err) : send_contents(s, f, NULL, err);
}

/* As it was when it was last read? */
static bool unchanged(const struct source_file *f)
{
	struct stat st;

	if (f->directory)
		return f->sent;
	return f->sent && !f->mapped && !stat(f->path, &st) && st.st_ino == f->seen.st_ino &&
	       st.st_dev == f->seen.st_dev && st.st_size == f->seen.st_size &&
	       ns_of(st.st_mtim) == ns_of(f->seen.st_mtim) &&
	       ns_of(st.st_ctim) == ns_of(f->seen.st_ctim) &&
	       ns_of(st.st_ctim) + SAME_TIME_NS < f->seen_ns;
}

/* ---- all of them ---- */

static void announce(struct source *s)
{
	uint64_t bytes = 0;
	size_t n = 0;
	char text[120];

	vec_foreach (f, &s->files) {
		struct stat st;

		if (!f->wanted || f->sent || !f->in_tree || f->directory)
			continue;
		n++;
		if (!stat(f->path, &st))
			bytes += (uint64_t)st.st_size;
	}
	snprintf(text, sizeof(text),
		 "bringing %zu file%s along that the destination does not have: %llu.%llu MB", n,
		 n == 1 ? "" : "s", (unsigned long long)(bytes / 1000000),
		 (unsigned long long)(bytes / 100000 % 10));
	if (n)
		source_event(s, "files", text);
}

int source_carry_ahead(struct source *s, struct cr_err *err)
{
	int r = 0;

	announce(s);
	for (size_t i = 0; i < s->files.n && !r; i++)
		if (s->files.v[i].wanted && s->files.v[i].in_tree && !s->files.v[i].sent)
			r = send_file(s, &s->files.v[i], err);
	return r;
}

/* At the stop. */
static int send_whole(struct source *s, struct source_file *f, struct cr_err *err)
{
	int r = send_file(s, f, err);

	if (f->shm)
		s->done.stop_pages += (uint64_t)f->seen.st_size / CR_PAGE_SIZE;
	return r;
}

/* What was written of one that is tracked, or might have been. */
static int send_tracked(struct source *s, struct source_file *f, bool final, struct cr_err *err)
{
	struct carry_track *c = f->track;
	struct shared_pages pages;
	bool all = carry_track_collect(f, final, &pages);
	uint64_t before = c->sent_bytes;
	int r = 0;

	/* in a round, what cannot be tracked is left for the stop */
	if (all && final)
		r = send_whole(s, f, err);
	else if (all ? c->now.known : final || pages.marked)
		r = send_contents(s, f, all ? NULL : &pages, err);
	c->written = all ? (c->sent_bytes - before) / CR_PAGE_SIZE : pages.marked;
	if (final && !all)
		s->done.stop_pages += pages.marked;
	shared_pages_done(&pages);
	if (r)
		return r;
	shared_look_done(&c->before);
	c->before = c->now;
	c->now = (struct shared_look){0};
	return 0;
}

int source_carry_round(struct source *s, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < s->files.n && !r; i++)
		if (s->files.v[i].track && s->files.v[i].track->looked)
			r = send_tracked(s, &s->files.v[i], false, err);
	return r;
}

int source_carry_last(struct source *s, struct tree *t, struct cr_err *err)
{
	int r = source_carry_look(s, t, true, err);

	for (size_t i = 0; i < s->files.n && !r; i++) {
		struct source_file *f = &s->files.v[i];

		if (!f->wanted || !f->in_tree)
			continue;
		if (f->track && f->track->looked)
			r = send_tracked(s, f, true, err);
		else if (!unchanged(f))
			r = send_whole(s, f, err);
		if (!r && f->shm && !s->rq->opts.leave_running)
			r = journal_add_carried(&s->journal, NULL, f->path, f->dev, f->ino, err);
	}
	return r;
}

void source_carry_left(struct source *s)
{
	vec_foreach (f, &s->files)
		if (f->wanted && f->sent && f->in_tree && !f->shm && !f->directory)
			carried_leave(f->path, (uint64_t)f->seen.st_dev, (uint64_t)f->seen.st_ino);
}
