/* Does anybody outside the tree hold what must not be shared across hosts? A pipe with an end
 * outside would be cut, an eventfd or memfd would become two. /proc of every other process is
 * searched, but only when something is there that was not yet in the previous capture: that is, in
 * the preflight.
 *
 * Holders that this pid namespace does not show are not found here; for a pipe whose one end is
 * missing from the tree, its own capture tells them by poll(2). */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include "kernel/procfs.h"
#include "resource/inside.h"

/* Inode numbers are smaller. */
#define PTY_INO(f) (1ull << 63 | (f)->tty)

struct known { /* what the previous capture had */
	uint64_t dev, ino;
};

static int cmp_known(const void *va, const void *vb)
{
	const struct known *a = va, *b = vb;

	if (a->dev != b->dev)
		return a->dev < b->dev ? -1 : 1;
	return (a->ino > b->ino) - (a->ino < b->ino);
}

/* Keeps the watches of what is new. (An eventfd's ino in a tree is its eventfd-id.) */
static int drop_known(struct files_ctx *x, struct cr_err *err)
{
	const struct tree *prev = x->c->prev;
	size_t n = 0, kept = 0;

	if (!prev || !x->watches.n)
		return 0;
	_cleanup_free_ struct known *known = calloc(prev->n_files + 1, sizeof(*known));
	if (!known)
		return cr_err_oom(err);
	for (size_t i = 0; i < prev->n_files; i++) {
		const struct file *f = &prev->files[i];

		/* all masters are of one inode */
		if (f->kind == FILE_PTY_MASTER)
			known[n++] = (struct known){f->dev, PTY_INO(f)};
		/* these have the inode that all anonymous ones share */
		else if (f->kind != FILE_EPOLL && f->kind != FILE_TIMERFD &&
			 f->kind != FILE_SIGNALFD)
			known[n++] = (struct known){f->dev, f->ino};
	}
	qsort(known, n, sizeof(*known), cmp_known);
	for (size_t i = 0; i < x->watches.n; i++) {
		const struct fd_watch *w = &x->watches.v[i];
		const struct file *f = &x->c->tree->files[w->file];
		struct known key = {f->dev, f->kind == FILE_PTY_MASTER ? PTY_INO(f) : f->ino};

		if (!bsearch(&key, known, n, sizeof(key), cmp_known))
			x->watches.v[kept++] = *w;
	}
	x->watches.n = kept;
	return 0;
}

static int cmp_watch(const void *va, const void *vb)
{
	const struct fd_watch *a = va, *b = vb;

	if (a->dev != b->dev)
		return a->dev < b->dev ? -1 : 1;
	if (a->ino != b->ino)
		return a->ino < b->ino ? -1 : 1;
	if (a->eventfd_id != b->eventfd_id)
		return a->eventfd_id < b->eventfd_id ? -1 : 1;
	return (a->pty > b->pty) - (a->pty < b->pty);
}

static const struct fd_watch *find_watch(const struct files_ctx *x, const struct fd_watch *key)
{
	return bsearch(key, x->watches.v, x->watches.n, sizeof(*key), cmp_watch);
}

static void say_held(struct files_ctx *x, const struct fd_watch *w, pid_t pid)
{
	const struct file *f = &x->c->tree->files[w->file];
	const struct fd_seen *h = files_holder(x, w->file);
	char path[64], comm[32] = "";

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, comm, sizeof(comm) - 1);
	comm[n > 0 ? strcspn(comm, "\n") : 0] = '\0';
	if (w->kind == WATCH_WARN)
		files_warn(x, files_holder_pid(x, w->file), h->fd,
			   "listening socket: process %d (%s), which is outside the tree, holds it "
			   "too and keeps it where it is",
			   pid, comm);
	else
		files_refuse(x, files_holder_pid(x, w->file), h->fd,
			     "%s is also held by process %d (%s), which is outside the tree; "
			     "close it there, or move that process as well",
			     f->kind == FILE_PIPE        ? (f->path ? "named pipe" : "pipe")
			     : f->kind == FILE_EVENTFD   ? "eventfd"
			     : f->kind == FILE_UNIX_CONN ? "unix socket"
			     : file_is_terminal(f->kind) ? "terminal"
			     : f->kind == FILE_UNLINKED  ? "unlinked file"
							 : "memory file",
			     pid, comm);
}

static uint64_t fdinfo_number(int fdinfo_dir, const char *name, const char *key)
{
	_cleanup_fd_ int fd = openat(fdinfo_dir, name, O_RDONLY | O_CLOEXEC);
	char text[512];
	uint64_t id = 0;
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return fdinfo_u64(text, key, 10, &id) ? id : 0;
}

bool files_is_inside(const struct files_ctx *x, pid_t pid)
{
	return inside_tree(x->c->tree, x->c->exact, pid);
}

/* The mode of a link in /proc/PID/fd is the access mode of the descriptor, proc_pid_fd(5). */
static bool holds_end(pid_t pid, const struct file *f, bool writing)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	_cleanup_dir_ DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));) {
		struct stat st, link;

		if (e->d_name[0] != '.' && !fstatat(dirfd(d), e->d_name, &st, 0) &&
		    st.st_dev == f->dev && st.st_ino == f->ino &&
		    !fstatat(dirfd(d), e->d_name, &link, AT_SYMLINK_NOFOLLOW) &&
		    link.st_mode & (writing ? S_IWUSR : S_IRUSR))
			return true;
	}
	return false;
}

bool files_pipe_end_inside(struct files_ctx *x, const struct file *f, bool writing)
{
	_cleanup_dir_ DIR *d = opendir("/proc");

	for (struct dirent *e; d && (e = readdir(d));) {
		pid_t pid = atoi(e->d_name);

		if (pid > 0 && files_is_inside(x, pid) && holds_end(pid, f, writing))
			return true;
	}
	return false;
}

/* Some process on this host has it open. */
bool files_is_open(const struct stat *st)
{
	_cleanup_dir_ DIR *proc = opendir("/proc");

	for (struct dirent *e; proc && (e = readdir(proc));) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/%.20s/fd", e->d_name);
		_cleanup_dir_ DIR *d = atoi(e->d_name) > 0 ? opendir(path) : NULL;
		for (struct dirent *n; d && (n = readdir(d));) {
			struct stat there;

			if (!fstatat(dirfd(d), n->d_name, &there, 0) &&
			    there.st_dev == st->st_dev && there.st_ino == st->st_ino)
				return true;
		}
	}
	return false;
}

/* Who has ended since has no parents any more, and nothing open. */
static bool is_held_outside(const struct files_ctx *x, pid_t pid, int fd_dir, const char *name)
{
	struct stat st;

	return !files_is_inside(x, pid) && !fstatat(fd_dir, name, &st, 0);
}

static void scan_process(struct files_ctx *x, pid_t pid, uint64_t anon_dev, bool masters)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	_cleanup_dir_ DIR *d = opendir(path);
	if (!d)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo", pid);
	_cleanup_fd_ int fdinfo =
	    anon_dev || masters ? open(path, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	for (struct dirent *e; (e = readdir(d));) {
		struct stat st;

		if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, 0))
			continue;
		struct fd_watch key = {.dev = st.st_dev, .ino = st.st_ino};
		if (anon_dev && st.st_dev == anon_dev)
			key = (struct fd_watch){.eventfd_id =
						    fdinfo_number(fdinfo, e->d_name, "eventfd-id")};
		else if (masters && S_ISCHR(st.st_mode) && st.st_rdev == makedev(5, 2)) /* pts(4) */
			key.pty = 1 + (uint32_t)fdinfo_number(fdinfo, e->d_name, "tty-index");
		const struct fd_watch *w = find_watch(x, &key);
		if (w && is_held_outside(x, pid, dirfd(d), e->d_name))
			say_held(x, w, pid);
	}
}

/* Device of the anonymous inodes, if eventfds are looked for. */
static uint64_t anon_device(const struct files_ctx *x)
{
	for (size_t i = 0; i < x->watches.n; i++)
		if (x->watches.v[i].eventfd_id)
			return x->c->tree->files[x->watches.v[i].file].dev;
	return 0;
}

static bool watches_masters(const struct files_ctx *x)
{
	for (size_t i = 0; i < x->watches.n; i++)
		if (x->watches.v[i].pty)
			return true;
	return false;
}

int files_scan_outside(struct files_ctx *x, struct cr_err *err)
{
	int r = drop_known(x, err);

	if (r < 0 || !x->watches.n)
		return r;
	qsort(x->watches.v, x->watches.n, sizeof(*x->watches.v), cmp_watch);
	uint64_t anon_dev = anon_device(x);
	bool masters = watches_masters(x);
	_cleanup_dir_ DIR *d = opendir("/proc");
	if (!d)
		return cr_err_sys(err, "/proc");
	for (struct dirent *e; (e = readdir(d));) {
		pid_t pid = atoi(e->d_name);

		if (pid > 0 && pid != getpid() && !tree_find_process(x->c->tree, pid))
			scan_process(x, pid, anon_dev, masters);
	}
	return 0;
}
