/* inotify(7) instances: their watches, with the numbers that they have.
 *
 * /proc/PID/fdinfo shows of a watch its number, its mask and a handle of the inode (3.8); a path
 * comes of that by open_by_handle_at(2). Events that wait cannot be had without taking them away,
 * so a switch-over at which there are some is undone. In struct file, opts has a watch an entry:
 * level is its number, name its mask, value the path. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

enum {
	HANDLE_BYTES = 128,   /* MAX_HANDLE_SZ, open_by_handle_at(2) */
	WATCH_MAX = 200000,   /* numbers: each that is not used has to be made and given up */
	WATCHES_MAX = 100000, /* in one instance */
	MASK = IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT,
};

static bool match(const struct fd_probe *p)
{
	return !strcmp(p->link, "anon_inode:inotify");
}

/* ---- capture ---- */

struct watch {
	uint32_t wd, mask, type;
	uint64_t ino, sdev;
	uint8_t handle[HANDLE_BYTES];
	uint32_t handle_len;
};

static bool parse_handle(const char *hex, struct watch *w)
{
	if (w->handle_len > HANDLE_BYTES || strlen(hex) < 2 * (size_t)w->handle_len)
		return false;
	for (uint32_t i = 0; i < w->handle_len; i++) {
		unsigned int byte;

		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return false;
		w->handle[i] = (uint8_t)byte;
	}
	return true;
}

/* "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1
 * f_handle:7e9e0000640d1b6d" */
static bool parse_watch(const char *line, struct watch *w)
{
	unsigned long long ino, sdev;
	int at = 0;

	*w = (struct watch){0};
	if (sscanf(line,
		   "inotify wd:%x ino:%llx sdev:%llx mask:%x ignored_mask:%*x fhandle-bytes:%x "
		   "fhandle-type:%x f_handle:%n",
		   &w->wd, &ino, &sdev, &w->mask, &w->handle_len, &w->type, &at) != 6 ||
	    !at)
		return false;
	w->ino = ino;
	w->sdev = sdev;
	return parse_handle(line + at, w);
}

/* By a mount of that file system. 0: found, in path. */
static int try_mount(const char *mount, const struct watch *w, char path[PATH_MAX])
{
	union {
		struct file_handle h;
		uint8_t room[sizeof(struct file_handle) + HANDLE_BYTES];
	} u = {0};
	char name[48];
	struct stat st;
	_cleanup_fd_ int dir = open(mount, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		return -errno;
	u.h.handle_bytes = w->handle_len;
	u.h.handle_type = (int)w->type;
	memcpy(u.h.f_handle, w->handle, w->handle_len);
	_cleanup_fd_ int fd = open_by_handle_at(dir, &u.h, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(name, path, PATH_MAX - 1);
	if (n < 0)
		return -errno;
	path[n] = '\0';
	return path[0] == '/' && !lstat(path, &st) && st.st_ino == w->ino ? 0 : -ENOENT;
}

/* Octal escapes, proc_pid_mountinfo(5). */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; s++, to++) {
		unsigned int c;

		*to = *s;
		if (*s == '\\' && sscanf(s + 1, "%3o", &c) == 1) {
			*to = (char)c;
			s += 3;
		}
	}
	*to = '\0';
}

/* sdev is as the kernel keeps it: 12 bits of major, 20 of minor. */
static int find_path(const struct watch *w, char path[PATH_MAX])
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t cap = 0;
	int r = -ENOENT;

	while (f && r && getline(&line, &cap, f) > 0) {
		unsigned int major, minor;
		char mount[PATH_MAX];

		if (sscanf(line, "%*d %*d %u:%u %*s %4095s", &major, &minor, mount) == 3 &&
		    major == w->sdev >> 20 && minor == (w->sdev & 0xfffff)) {
			unescape(mount);
			r = try_mount(mount, w, path);
		}
	}
	free(line);
	if (f)
		fclose(f);
	return r;
}

/* The path of before, if it still leads there. */
static const char *path_before(const struct file *before, const struct watch *w)
{
	struct stat st;

	for (size_t i = 0; before && before->kind == FILE_INOTIFY && i < before->n_opts; i++) {
		const struct sockopt_rec *o = &before->opts[i];

		if (o->level == (int32_t)w->wd)
			return !lstat((const char *)o->value, &st) && st.st_ino == w->ino
				   ? (const char *)o->value
				   : NULL;
	}
	return NULL;
}

static int add_watch(struct files_ctx *x, const struct fd_probe *p, const struct watch *w,
		     struct sockopt_rec *o, struct cr_err *err)
{
	char buf[PATH_MAX];
	const char *path = path_before(files_before(x, p), w);

	if (!path && !find_path(w, buf))
		path = buf;
	if (!path || w->wd > WATCH_MAX) {
		files_refuse(x, p->pid, p->fd, "inotify: watch %u %s: not supported", w->wd,
			     path ? "has too high a number"
				  : "is of a file that was removed, or "
				    "whose path cannot be found");
		path = "/";
	}
	*o = (struct sockopt_rec){.level = (int32_t)w->wd,
				  .name = (int32_t)(w->mask & MASK),
				  .len = (uint32_t)strlen(path) + 1};
	o->value = arena_memdup(x->c->tree->arena, path, o->len);
	return o->value ? 0 : cr_err_oom(err);
}

static int by_number(const void *a, const void *b)
{
	const struct sockopt_rec *x = a, *y = b;

	return (x->level > y->level) - (x->level < y->level);
}

static int events_waiting(int fd)
{
	int n = 0;

	return ioctl(fd, FIONREAD, &n) ? 0 : n;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct watch w;
	size_t n = 0;
	int r = 0;

	f->kind = FILE_INOTIFY;
	if (x->c->exact && events_waiting(p->local))
		files_refuse(x, p->pid, p->fd,
			     "inotify: events wait to be read; try again when they are");
	for (const char *l = p->text; l && *l; l = strchr(l, '\n'))
		n += !strncmp(l += *l == '\n', "inotify ", 8);
	if (n > WATCHES_MAX) {
		files_refuse(x, p->pid, p->fd, "inotify: %zu watches: not supported", n);
		return 0;
	}
	f->opts = arena_array(x->c->tree->arena, struct sockopt_rec, n);
	if (!f->opts)
		return cr_err_oom(err);
	for (const char *l = p->text; l && *l && !r; l = strchr(l, '\n')) {
		if (strncmp(l += *l == '\n', "inotify ", 8))
			continue;
		if (!parse_watch(l, &w))
			return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
					  "fdinfo of an inotify is not as expected: %.60s", l);
		r = add_watch(x, p, &w, &f->opts[f->n_opts], err);
		f->n_opts += !r;
	}
	if (f->n_opts)
		qsort(f->opts, f->n_opts, sizeof(*f->opts), by_number);
	return r;
}

int inotify_verify(const struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++) {
			const struct fd_entry *e = &t->procs[i].fds[k];

			if (t->files[e->file].kind != FILE_INOTIFY)
				continue;
			_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, t->procs[i].pid, 0);
			_cleanup_fd_ int fd =
			    pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, e->fd, 0);

			if (fd < 0)
				return cr_err_sys(err, "fd %d of %d", e->fd, t->procs[i].pid);
			if (events_waiting(fd))
				return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
						  "fd %d of %d: an inotify event came during the "
						  "switch-over; try again",
						  e->fd, t->procs[i].pid);
		}
	return 0;
}

/* ---- rebuild ---- */

static bool is_watch(const struct sockopt_rec *o)
{
	const char *path = (const char *)o->value;

	return o->level > 0 && o->level <= WATCH_MAX && o->len > 1 && o->len <= PATH_MAX &&
	       path[0] == '/' && !path[o->len - 1];
}

static void check(const struct file_check *k, const struct file *f)
{
	struct stat st;

	for (size_t i = 0; i < f->n_opts; i++)
		if (!is_watch(&f->opts[i]))
			file_check_refuse(k, "inotify: watch %d makes no sense", f->opts[i].level);
		else if (lstat((const char *)f->opts[i].value, &st))
			file_check_refuse(k, "inotify: %.180s, which it watches: %s here",
					  (const char *)f->opts[i].value, strerror(errno));
}

/* Numbers are given one after the other; those that nobody has are made and given up. */
static int watch(int fd, const struct sockopt_rec *o, struct cr_err *err)
{
	const char *path = (const char *)o->value;
	/* what the path leads to is what is watched, be it a link */
	uint32_t mask = ((uint32_t)o->name & MASK) | IN_DONT_FOLLOW;
	int got;

	if (!is_watch(o))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "inotify: watch %d makes no sense",
				  o->level);
	while ((got = inotify_add_watch(fd, path, mask)) < o->level) {
		if (got < 0)
			return cr_err_sys(err, "watching %s", path);
		if (inotify_rm_watch(fd, got))
			return cr_err_sys(err, "inotify_rm_watch");
	}
	if (got > o->level)
		return cr_err_set(err, CR_ERR_KERNEL, EEXIST,
				  "watching %s: number %d instead of %d", path, got, o->level);
	return 0;
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	_cleanup_fd_ int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	int r = 0;

	if (fd < 0)
		return cr_err_sys(err, "inotify_init1");
	for (size_t k = 0; k < f->n_opts && !r; k++)
		r = watch(fd, &f->opts[k], err);
	if (!r)
		fs->held[i].fd = take_fd(&fd);
	return r;
}

/* What has happened here meanwhile was told at the source, or is looked for there once more before
 * the decision. */
static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	char buf[16384];
	int fd = fs->held[i].fd;

	(void)t;
	while (events_waiting(fd))
		if (read(fd, buf, sizeof(buf)) < 0)
			return cr_err_sys(err, "inotify events");
	return 0;
}

const struct file_ops file_ops_inotify = {
    .name = "inotify instance",
    .kind = FILE_INOTIFY,
    .match = match,
    .capture = capture,
    .check = check,
    .build = build,
    .settle = settle,
};
