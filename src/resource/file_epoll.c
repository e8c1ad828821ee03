/* epoll instances. What an instance watches is keyed by (description, number under which it was
 * added), epoll(7); the number may have been closed or reused since. The description is found by
 * kcmp(2) KCMP_EPOLL_TFD (4.13). Rebuilding the entries is fileset_epoll.c's, inside the tasks. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

enum { MINOR_BITS = 20 }; /* as fdinfo has it, not as stat(2) */

static bool match(const struct fd_probe *p)
{
	return !strcmp(p->link, "anon_inode:[eventpoll]");
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	(void)x;
	(void)p;
	(void)err;
	f->kind = FILE_EPOLL;
	return 0;
}

struct tfd_line {
	int tfd;
	uint32_t events, place;
	uint64_t data, ino;
	unsigned int major, minor; /* of the device of ino */
};
struct tfd_lines { /* sorted by number, those of one number in the kernel's order */
	struct tfd_line *v;
	size_t n, cap;
};

/* The number after key, which stands within the line. */
static bool number_after(const char **at, const char *key, int base, uint64_t *ret)
{
	const char *p = strstr(*at, key);
	char *end;

	if (!p)
		return false;
	p += strlen(key);
	*ret = strtoull(p, &end, base);
	*at = end;
	return end != p;
}

/* "tfd: 5 events: 19 data: 7f… pos:0 ino:40e sdev:10", Documentation/filesystems/proc.rst */
static const char *next_line(const char *text, struct tfd_line *out)
{
	uint64_t tfd, events, dev;

	if (strncmp(text, "tfd:", 4))
		text = strstr(text, "\ntfd:");
	if (!text || !number_after(&text, "tfd:", 10, &tfd) ||
	    !number_after(&text, "events:", 16, &events) ||
	    !number_after(&text, "data:", 16, &out->data) ||
	    !number_after(&text, "ino:", 16, &out->ino) || !number_after(&text, "sdev:", 16, &dev))
		return NULL;
	out->major = (unsigned int)(dev >> MINOR_BITS);
	out->minor = (unsigned int)(dev & ((1u << MINOR_BITS) - 1));
	out->tfd = (int)tfd;
	out->events = (uint32_t)events;
	return text;
}

/* Of a socket there is but one description, so its inode tells. kcmp(2) walks through the entries
 * of the instance, which takes a second for ten thousand. */
static bool is_this_socket(const struct files_ctx *x, const struct tfd_line *line,
			   const struct fd_seen *s)
{
	const struct file *f = s->file == UINT32_MAX ? NULL : &x->c->tree->files[s->file];

	return f && S_ISSOCK(f->mode) && s->info.ino && f->ino == line->ino &&
	       major(f->dev) == line->major && minor(f->dev) == line->minor;
}

/* nth: which of the entries with this number, in the order in which fdinfo lists them. */
static bool is_target(struct files_ctx *x, const struct fd_seen *ep, const struct tfd_line *line,
		      unsigned int nth, const struct fd_seen *s)
{
	const struct process *procs = x->c->tree->procs;
	struct kcmp_epoll_slot slot = {
	    .efd = (uint32_t)ep->fd, .tfd = (uint32_t)line->tfd, .toff = nth};

	if (s && s->info.ino == line->ino && is_this_socket(x, line, s))
		return true;
	return s && s->info.ino == line->ino &&
	       syscall(SYS_kcmp, procs[s->proc].pid, procs[ep->proc].pid, KCMP_EPOLL_TFD, s->fd,
		       &slot) == 0;
}

/* Where it most likely is: the same number in the same process, the same number elsewhere,
 * anywhere. */
static const struct fd_seen *find_target(struct files_ctx *x, const struct fd_seen *ep,
					 const struct tfd_line *line, unsigned int nth)
{
	const struct fd_seen *s = files_seen(x, ep->proc, line->tfd);

	if (is_target(x, ep, line, nth, s))
		return s;
	for (uint32_t i = 0; i < x->c->tree->n_procs; i++) {
		s = files_seen(x, i, line->tfd);
		if (i != ep->proc && is_target(x, ep, line, nth, s))
			return s;
	}
	for (uint32_t i = 0; i < x->seen.n; i++)
		if (x->seen.v[i].leader == i && is_target(x, ep, line, nth, &x->seen.v[i]))
			return &x->seen.v[i];
	return NULL;
}

/* Has it been opened since the descriptors were listed? */
static bool is_open_now(pid_t pid, const struct tfd_line *line)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, line->tfd);
	return !stat(path, &st) && st.st_ino == line->ino;
}

/* Still the same entry on a second look? Ahead, entries come and go while we read. First whether it
 * is open, then whether it is watched: one that is closed meanwhile is neither. */
static bool still_there(struct files_ctx *x, const struct fd_seen *ep, const struct tfd_line *line)
{
	_cleanup_(text_buf_done) struct text_buf b = {0};
	struct tfd_line l;
	char path[64];
	size_t off;

	if (is_open_now(x->c->tree->procs[ep->proc].pid, line))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", x->c->tree->procs[ep->proc].pid, ep->fd);
	if (text_append_file(&b, AT_FDCWD, path, &off) < 0)
		return false;
	const struct fd_seen *s = files_seen(x, ep->proc, line->tfd);
	for (const char *at = b.v; (at = next_line(at, &l));)
		if (l.tfd == line->tfd && l.ino == line->ino && l.data == line->data)
			return !s || s->info.ino != line->ino;
	return false;
}

bool epoll_is_disarmed(uint32_t events)
{
	return events & EPOLLONESHOT &&
	       !(events & ~(EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE));
}

static void add_target(struct files_ctx *x, uint32_t file, const struct tfd_line *line,
		       const struct fd_seen *target)
{
	struct file *f = &x->c->tree->files[file];
	const struct fd_seen *ep = files_holder(x, file);
	pid_t pid = files_holder_pid(x, file);

	if (!target && (x->c->exact || still_there(x, ep, line))) {
		files_refuse(
		    x, pid, ep->fd,
		    "epoll instance: watches a file that was added as descriptor %d, and that "
		    "no process of the tree has open any more; remove it first",
		    line->tfd);
		return;
	}
	if (!target || target->file == UINT32_MAX)
		return; /* gone meanwhile, or refused by its own name */
	f->targets[f->n_targets++] = (struct epoll_target){
	    .fd = line->tfd, .file = target->file, .events = line->events, .data = line->data};
}

static int cmp_line(const void *va, const void *vb)
{
	const struct tfd_line *a = va, *b = vb;

	if (a->tfd != b->tfd)
		return a->tfd < b->tfd ? -1 : 1;
	return (a->place > b->place) - (a->place < b->place);
}

static int read_lines(const char *text, struct tfd_lines *lines, struct cr_err *err)
{
	struct tfd_line line;

	while ((text = next_line(text, &line))) {
		struct tfd_line *slot = vec_push(lines);

		if (!slot)
			return cr_err_oom(err);
		line.place = (uint32_t)lines->n;
		*slot = line;
	}
	if (lines->n)
		qsort(lines->v, lines->n, sizeof(*lines->v), cmp_line);
	return 0;
}

static void lines_done(struct tfd_lines *lines)
{
	vec_done(lines);
}

/* The kernel's order is that of its addresses: not one to compare captures by. */
static int cmp_target(const void *va, const void *vb)
{
	const struct epoll_target *a = va, *b = vb;

	if (a->fd != b->fd)
		return a->fd < b->fd ? -1 : 1;
	return (a->file > b->file) - (a->file < b->file);
}

static int link_one(struct files_ctx *x, uint32_t file, struct cr_err *err)
{
	_cleanup_(lines_done) struct tfd_lines lines = {0};
	const struct fd_seen *ep = files_holder(x, file);
	struct file *f = &x->c->tree->files[file];
	unsigned int nth = 0;

	if (ep->text_off == SIZE_MAX)
		return 0; /* watches nothing */
	int r = read_lines(x->text.v + ep->text_off, &lines, err);
	if (r < 0)
		return r;
	f->targets = arena_array(x->c->tree->arena, struct epoll_target, lines.n + 1);
	if (!f->targets)
		return cr_err_oom(err);
	for (size_t i = 0; i < lines.n; i++) {
		const struct tfd_line *l = &lines.v[i];

		nth = i && l->tfd == l[-1].tfd ? nth + 1 : 0;
		add_target(x, file, l, find_target(x, ep, l, nth));
	}
	qsort(f->targets, f->n_targets, sizeof(*f->targets), cmp_target);
	return 0;
}

static int link_all(struct files_ctx *x, struct cr_err *err)
{
	for (uint32_t i = 0; i < x->c->tree->n_files; i++) {
		int r = x->c->tree->files[i].kind == FILE_EPOLL ? link_one(x, i, err) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	(void)t;
	fs->held[i].fd = epoll_create1(EPOLL_CLOEXEC);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "epoll_create1") : 0;
}

const struct file_ops file_ops_epoll = {
    .name = "epoll instance",
    .kind = FILE_EPOLL,
    .match = match,
    .capture = capture,
    .link = link_all,
    .build = build,
};
