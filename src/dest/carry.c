/* Files that the source brings along (resource/carried.h): made ahead, mended at the stop. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include "dest/dest.h"
#include "resource/carried.h"

enum { XATTR_NAMES = 65536 };

struct carrying {     /* the file that is being written */
	struct msg m; /* as it was begun */
	const struct journal_carried *at;
	int fd;
};

void carrying_free(struct carrying *c)
{
	if (!c)
		return;
	close_fdp(&c->fd);
	msg_free(&c->m);
	free(c);
}

int dest_files_asked(struct dest *d, const struct msg_files *q, struct cr_err *err)
{
	struct msg m = msg_of(MSG_FILES_OK);
	_cleanup_free_ uint32_t *wanted = calloc(q->n + 1, sizeof(*wanted));
	struct stat st;

	if (!wanted)
		return cr_err_oom(err);
	for (size_t i = 0; i < q->n; i++)
		if ((lstat(q->paths[i], &st) && errno == ENOENT) ||
		    (d->opts.copy_replace && carried_is_left(q->paths[i])))
			wanted[m.files_ok.n++] = (uint32_t)i;
	m.files_ok.wanted = wanted;
	return link_send(d->peer, &m, err);
}

/* ---- making one ---- */

static int make_parent(struct dest *d, const char *path, const struct msg_directory *dir,
		       struct cr_err *err)
{
	int r = journal_add_dir(&d->journal, path, err);

	if (!r)
		r = dest_journal(d, JOURNAL_PREPARING, err);
	if (r)
		return r;
	if (mkdir(path, 0700) || chown(path, dir->uid, dir->gid) || chmod(path, dir->mode))
		return cr_err_sys(err, "making the directory %s", path);
	return 0;
}

static int make_parents(struct dest *d, const struct msg_file *f, struct cr_err *err)
{
	char path[PATH_MAX];
	struct stat st;
	size_t n = 0;
	int r = 0;

	if (snprintf(path, sizeof(path), "%s%s", f->path, f->directory ? "/" : "") >=
	    (int)sizeof(path))
		return cr_err_set(err, CR_ERR_INPUT, ENAMETOOLONG, "path too long: %s", f->path);
	for (char *p = strchr(path + 1, '/'); p && !r; p = strchr(p + 1, '/'), n++) {
		*p = '\0';
		if (stat(path, &st) && n < f->n_parents)
			r = make_parent(d, path, &f->parents[n], err);
		*p = '/';
	}
	return r;
}

static const struct journal_carried *find(const struct dest *d, const char *path)
{
	vec_foreach (c, &d->journal.carried)
		if (!strcmp(c->path, path))
			return c;
	return NULL;
}

/* Noted first, then made. */
static int make_file(struct dest *d, const struct msg_file *f, struct cr_err *err)
{
	char temp[PATH_MAX];
	struct stat st;
	int dir_len = (int)(strrchr(f->path, '/') - f->path);

	if (!d->opts.copy_files && !carried_is_shm(f->path))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "a file that nobody wants: %s",
				  f->path);
	if (!lstat(f->path, &st) && !(d->opts.copy_replace && carried_is_left(f->path)))
		return cr_err_set(err, CR_ERR_INPUT, EEXIST, "%s is here by now", f->path);
	int r = make_parents(d, f, err);
	if (r)
		return r;
	if (snprintf(temp, sizeof(temp), "%.*s/.cr-%.16s-%zu", dir_len, f->path, d->journal.id,
		     d->journal.carried.n) >= (int)sizeof(temp))
		return cr_err_set(err, CR_ERR_INPUT, ENAMETOOLONG, "path too long: %s", f->path);
	r = journal_add_carried(&d->journal, temp, f->path, 0, 0, err);
	if (!r)
		r = dest_journal(d, JOURNAL_PREPARING, err);
	if (r)
		return r;
	int fd = open(temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return fd < 0 ? cr_err_sys(err, "making %s", temp) : fd;
}

static int make_directory(struct dest *d, const struct msg_file *f, struct cr_err *err)
{
	struct msg m = msg_of(MSG_OK);
	int r = d->opts.copy_files ? make_parents(d, f, err)
				   : cr_err_set(err, CR_ERR_PEER, EPROTO,
						"a directory that nobody wants: %s", f->path);

	return r ? r : link_send(d->peer, &m, err);
}

int dest_file_begin(struct dest *d, struct msg *m, struct cr_err *err)
{
	const struct journal_carried *at = find(d, m->file.path);

	if (d->state > DEST_BUILT || d->carrying)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "a file in a wrong state");
	if (m->file.directory)
		return make_directory(d, &m->file, err);
	_cleanup_fd_ int fd =
	    at ? open(at->temp, O_RDWR | O_CLOEXEC | O_NOFOLLOW) : make_file(d, &m->file, err);
	if (fd < 0)
		return at ? cr_err_sys(err, "opening %s", at->temp) : fd;
	if (ftruncate(fd, (off_t)m->file.size))
		return cr_err_sys(err, "%s", m->file.path);
	d->carrying = calloc(1, sizeof(*d->carrying));
	if (!d->carrying)
		return cr_err_oom(err);
	*d->carrying = (struct carrying){.m = *m, .fd = take_fd(&fd)};
	d->carrying->at = find(d, m->file.path);
	*m = (struct msg){.type = MSG_FILE}; /* it is ours now */
	return 0;
}

/* ---- its contents ---- */

static int write_at(int fd, const uint8_t *p, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)offset);

		if (n <= 0)
			return -1;
		p += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

/* fallocate(2): not with every file system. */
static int make_hole(int fd, uint64_t offset, uint64_t len)
{
	static const uint8_t zeros[65536];

	if (!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len))
		return 0;
	for (uint64_t n; errno == EOPNOTSUPP && len; offset += n, len -= n) {
		n = len < sizeof(zeros) ? len : sizeof(zeros);
		if (write_at(fd, zeros, n, offset))
			return -1;
		errno = EOPNOTSUPP;
	}
	return len ? -1 : 0;
}

int dest_file_data(struct dest *d, const struct msg_file_data *x, struct cr_err *err)
{
	struct carrying *c = d->carrying;
	uint64_t len = x->hole ? x->hole : x->len;

	if (!c || x->offset > c->m.file.size || len > c->m.file.size - x->offset)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "data of no file, or beyond its end");
	if (x->hole ? make_hole(c->fd, x->offset, len) : write_at(c->fd, x->data, len, x->offset))
		return cr_err_sys(err, "writing %s", c->m.file.path);
	return 0;
}

/* ---- its end ---- */

static bool is_listed(const struct msg_file *f, const char *name)
{
	for (size_t i = 0; i < f->n_xattrs; i++)
		if (!strcmp(f->xattrs[i].name, name))
			return true;
	return false;
}

/* xattr(7): what the host gives to each file by itself may stay. */
static int set_xattrs(int fd, const struct msg_file *f, struct cr_err *err)
{
	_cleanup_free_ char *names = malloc(XATTR_NAMES);
	ssize_t n = names ? flistxattr(fd, names, XATTR_NAMES) : 0;

	if (!names)
		return cr_err_oom(err);
	for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1)
		if (!is_listed(f, name) && strncmp(name, "security.", 9))
			fremovexattr(fd, name);
	for (size_t i = 0; i < f->n_xattrs; i++)
		if (fsetxattr(fd, f->xattrs[i].name, f->xattrs[i].value, f->xattrs[i].len, 0))
			return cr_err_sys(err, "extended attribute %s of %s", f->xattrs[i].name,
					  f->path);
	return 0;
}

static struct timespec time_of(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000),
				 .tv_nsec = (long)(ns % 1000000000)};
}

/* Owner before mode, which a change of owner cuts, chown(2); times last. */
static int finish(const struct dest *d, const struct carrying *c, struct cr_err *err)
{
	const struct msg_file *f = &c->m.file;
	const struct timespec times[2] = {time_of(f->atime_ns), time_of(f->mtime_ns)};
	struct stat ours, there;

	if (fchown(c->fd, f->uid, f->gid) || fchmod(c->fd, f->mode))
		return cr_err_sys(err, "owner of %s", f->path);
	int r = set_xattrs(c->fd, f, err);
	if (r)
		return r;
	if (futimens(c->fd, times) || fstat(c->fd, &ours))
		return cr_err_sys(err, "times of %s", f->path);
	if (!lstat(f->path, &there) && there.st_ino == ours.st_ino && there.st_dev == ours.st_dev)
		return 0;
	if (!link(c->at->temp, f->path))
		return 0;
	if (errno == EEXIST && d->opts.copy_replace && carried_is_left(f->path))
		return carried_replace(c->at->temp, f->path, err);
	return cr_err_sys(err, "putting %s in its place", f->path);
}

int dest_file_end(struct dest *d, struct cr_err *err)
{
	struct msg m = msg_of(MSG_OK);

	if (!d->carrying)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "the end of no file");
	int r = finish(d, d->carrying, err);
	carrying_free(d->carrying);
	d->carrying = NULL;
	return r ? r : link_send(d->peer, &m, err);
}

static bool is_needed(const struct tree *t, const char *path)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].carried && !strcmp(t->files[i].path, path))
			return true;
	for (size_t i = 0; i < t->n_mapped_files; i++)
		if (t->mapped_files[i].carried && !strcmp(t->mapped_files[i].path, path))
			return true;
	return false;
}

void dest_sweep_files(struct dest *d)
{
	vec_foreach (c, &d->journal.carried)
		if (!is_needed(d->tree, c->path))
			carried_drop(c);
}
