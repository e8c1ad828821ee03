/* Listening unix sockets (stream and seqpacket), by path or abstract name.
 *
 * Path. The destination may see the same file system, where the source's socket stands at the path
 * and serves until the switch-over. So the new socket is bound in a directory of our own beside it
 * and renamed over it at launch; undone, the directory is removed and the path is as it was. The
 * name that getsockname(2) returns is what bind(2) was given, so bind gets exactly that: it runs in
 * a thread that has our directory as its root (or, for a relative name, as its working directory),
 * with the directories of the name made below it.
 *
 * Credentials. What clients read by SO_PEERCRED is who called listen(2), so that call is made in
 * the task (fileset_install), for a moment under the listener's effective ids. */
#include "resource/file_kind.h"
#include "resource/unix_diag.h"

#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE 0x89e0 /* 4.12: O_PATH descriptor of what a socket is bound to */
#endif
enum { NAME_OFF = offsetof(struct sockaddr_un, sun_path), DIR_DEPTH = 8 };

static bool match(const struct fd_probe *p)
{
	return p->so_domain == AF_UNIX && p->so_listening &&
	       (p->so_type == SOCK_STREAM || p->so_type == SOCK_SEQPACKET);
}

static bool is_abstract(const struct file *f)
{
	return f->sockaddr_len > NAME_OFF && !f->sockaddr[NAME_OFF];
}

/* ---- capture ---- */

/* Where the socket's inode is: the name may be relative, or the file may have been renamed. */
static int capture_path(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			struct cr_err *err)
{
	char path[64], link[PATH_MAX];
	struct stat st, there;
	_cleanup_fd_ int fd = ioctl(p->local, SIOCUNIXFILE, 0);

	if (fd < 0 || fstat(fd, &st))
		return cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return cr_err_sys(err, "path of a unix socket");
	link[n] = '\0';
	if (stat(link, &there) || there.st_dev != st.st_dev || there.st_ino != st.st_ino) {
		files_refuse(x, p->pid, p->fd,
			     "listening unix socket %.120s: its path is not there any more: not "
			     "supported",
			     link);
		return 0;
	}
	f->path = arena_strdup(x->c->tree->arena, link);
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	f->mode = st.st_mode;
	f->uid = st.st_uid;
	f->gid = st.st_gid;
	return f->path ? 0 : cr_err_oom(err);
}

static int capture_creds(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	if (getsockopt(p->local, SOL_SOCKET, SO_PEERCRED, &uc, &len))
		return cr_err_sys(err, "SO_PEERCRED");
	f->cred_pid = uc.pid;
	f->cred_uid = uc.uid;
	f->cred_gid = uc.gid;
	if (!tree_find_process(x->c->tree, uc.pid)) {
		files_warn(
		    x, p->pid, p->fd,
		    "listening unix socket: clients that ask who serves it (SO_PEERCRED) get "
		    "%d instead of %d, which is not in the tree",
		    p->pid, uc.pid);
		f->cred_pid = p->pid;
	}
	return 0;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct sockaddr_un un = {0};
	socklen_t len = sizeof(un);
	struct unix_diag_info diag = {0};

	if (getsockname(p->local, (struct sockaddr *)&un, &len))
		return cr_err_sys(err, "getsockname");
	struct fd_watch w = {.dev = p->st.st_dev,
			     .ino = p->st.st_ino,
			     .file = (uint32_t)x->c->tree->n_files,
			     .kind = WATCH_WARN};
	f->kind = FILE_UNIX_LISTEN;
	f->sock_family = AF_UNIX;
	f->sock_type = p->so_type;
	f->sockaddr_len = len > sizeof(un) ? sizeof(un) : len;
	f->sockaddr = arena_memdup(x->c->tree->arena, &un, f->sockaddr_len);
	if (!f->sockaddr)
		return cr_err_oom(err);
	int r = is_abstract(f) ? 0 : capture_path(x, p, f, err);
	if (r == 0)
		r = unix_diag_get(p->st.st_ino, &diag, err);
	if (r == 0)
		r = capture_creds(x, p, f, err);
	if (r == 0)
		r = sockopts_capture(x, p, f, err);
	f->backlog = (int32_t)diag.queue_max;
	if (diag.queued && x->c->tcp != TCP_MODE_REFUSE)
		files_warn(x, p->pid, p->fd,
			   "unix listener: %u connections that wait to be accepted are closed by "
			   "the move",
			   diag.queued);
	else if (diag.queued)
		files_refuse(x, p->pid, p->fd,
			     "unix listener: %u connections wait to be accepted: not supported",
			     diag.queued);
	return r < 0 ? r : files_watch(x, &w, err);
}

/* ---- check ---- */

/* Somebody here listens under that name? /proc/net/unix: "…: RefCnt Proto Flags Type St Inode
 * Path". */
static bool served_here(const struct sockaddr_un *un, size_t name_len)
{
	char want[sizeof(un->sun_path) + 2] = "", name[256];
	_cleanup_file_ FILE *f = fopen("/proc/net/unix", "re");
	_cleanup_free_ char *line = NULL;
	size_t cap = 0;
	unsigned int flags;

	memcpy(want, un->sun_path, name_len);
	if (!want[0])
		want[0] = '@';
	while (f && getline(&line, &cap, f) > 0)
		if (sscanf(line, "%*s %*x %*x %x %*x %*x %*u %255[^\n]", &flags, name) == 2 &&
		    flags & 0x10000 /* __SO_ACCEPTCON */ && !strcmp(name, want))
			return true;
	return false;
}

static void check(const struct file_check *k, const struct file *f)
{
	const struct sockaddr_un *un = (const void *)f->sockaddr;
	char dir[PATH_MAX];
	struct stat st;

	if (f->sockaddr_len <= NAME_OFF || f->sockaddr_len > sizeof(*un))
		return; /* build says so */
	if (is_abstract(f)) {
		if (served_here(un, f->sockaddr_len - NAME_OFF))
			file_check_refuse(k, "unix socket @%.*s: taken on this host",
					  (int)(f->sockaddr_len - NAME_OFF - 1), un->sun_path + 1);
		return;
	}
	snprintf(dir, sizeof(dir), "%s", f->path);
	char *slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = '\0';
	if (stat(dir, &st) || !S_ISDIR(st.st_mode) || access(dir, W_OK)) {
		file_check_refuse(k,
				  "unix socket %.150s: its directory is missing here or cannot be "
				  "written",
				  f->path);
		return;
	}
	if (stat(f->path, &st))
		return; /* nothing in the way */
	if (!S_ISSOCK(st.st_mode))
		file_check_refuse(k, "unix socket %.150s: another type of file here", f->path);
	else if ((st.st_dev != f->dev || st.st_ino != f->ino ||
		  (k->same_kernel_known && !k->same_kernel)) &&
		 served_here(un, f->sockaddr_len - NAME_OFF))
		file_check_refuse(k, "unix socket %.150s: taken on this host", f->path);
}

/* ---- rebuild ---- */

struct bind_job {
	int fd;
	const struct sockaddr_un *un;
	socklen_t len;
	const char *dir; /* becomes the root directory */
	int error;       /* positive errno */
};

/* Every directory of the name, as the name leads there. */
static void make_dirs(const struct sockaddr_un *un, size_t len)
{
	char path[sizeof(un->sun_path) + 1] = "";

	for (size_t i = 0; i < len && un->sun_path[i]; i++) {
		if (un->sun_path[i] == '/' && i)
			mkdir(path, 0700); /* there already, or bind fails */
		path[i] = un->sun_path[i];
	}
}

static void *bind_thread(void *arg)
{
	struct bind_job *j = arg;

	/* root and cwd of this thread only */
	if (unshare(CLONE_FS) || chroot(j->dir) || chdir("/")) {
		j->error = errno;
		return NULL;
	}
	if (j->un->sun_path[0] != '/') {
		char path[64] = "";

		for (int i = 0; i < DIR_DEPTH; i++) { /* for names that start with ../ */
			strcat(path, "/d");
			mkdir(path, 0700);
		}
		if (chdir(path)) {
			j->error = errno;
			return NULL;
		}
	}
	make_dirs(j->un, j->len - NAME_OFF);
	if (bind(j->fd, (const struct sockaddr *)j->un, j->len))
		j->error = errno;
	return NULL;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	remove(path);
	return 0;
}

void unix_remove_below(const char *dir)
{
	nftw(dir, remove_one, 4, FTW_DEPTH | FTW_PHYS);
}

int unix_bind_below(const char *dir, int fd, const struct file *f, struct cr_err *err)
{
	const struct sockaddr_un *un = (const void *)f->sockaddr;
	struct bind_job j = {.fd = fd, .un = un, .len = f->sockaddr_len, .dir = dir};
	pthread_t th;
	int r = pthread_create(&th, NULL, bind_thread, &j);

	if (r)
		return cr_err_set(err, CR_ERR_KERNEL, r, "a thread to bind a unix socket");
	pthread_join(th, NULL);
	if (j.error)
		return cr_err_set(err, CR_ERR_KERNEL, j.error, "binding unix socket %.*s: %s",
				  (int)(f->sockaddr_len - NAME_OFF), un->sun_path,
				  strerror(j.error));
	return 0;
}

static void unreserve(struct held *h)
{
	if (h->reserved_dir && !h->reserved_stays)
		unix_remove_below(h->reserved_dir);
	free(h->reserved_dir);
	free(h->reserved_path);
	h->reserved_dir = h->reserved_path = NULL;
}

/* From where it was bound to right below our directory, so that the directory and it are all there
 * is to clean up, whoever does it. */
static int settle_reserved(struct held *h, int fd, const char *root, const struct file *f,
			   struct cr_err *err)
{
	char path[64], link[PATH_MAX];
	_cleanup_fd_ int at = ioctl(fd, SIOCUNIXFILE, 0);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", at);
	ssize_t n = at < 0 ? -1 : readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	link[n] = '\0';
	if (asprintf(&h->reserved_path, "%s/socket", h->reserved_dir) < 0) {
		h->reserved_path = NULL;
		return cr_err_oom(err);
	}
	if (rename(link, h->reserved_path) || chown(h->reserved_path, f->uid, f->gid) ||
	    chmod(h->reserved_path, f->mode & 07777))
		return cr_err_sys(err, "owner of %s", h->reserved_path);
	unix_remove_below(root);
	return 0;
}

static int bind_reserved(struct held *h, int fd, const struct file *f, struct cr_err *err)
{
	char dir[PATH_MAX], root[PATH_MAX + 8];

	const char *slash = strrchr(f->path, '/');
	int n = snprintf(dir, sizeof(dir), "%.*s/.cr-XXXXXX", slash ? (int)(slash - f->path) : 0,
			 f->path);
	if (!slash || n >= (int)sizeof(dir) || !mkdtemp(dir))
		return cr_err_sys(err, "a directory beside %s", f->path);
	h->reserved_dir = strdup(dir);
	if (!h->reserved_dir) {
		rmdir(dir);
		return cr_err_oom(err);
	}
	snprintf(root, sizeof(root), "%s/root", dir);
	if (mkdir(root, 0700))
		return cr_err_sys(err, "%s", root);
	int r = unix_bind_below(root, fd, f, err);
	return r ? r : settle_reserved(h, fd, root, f, err);
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	const struct sockaddr_un *un = (const void *)f->sockaddr;

	if (f->sockaddr_len <= NAME_OFF || f->sockaddr_len > sizeof(*un) ||
	    un->sun_family != AF_UNIX || (!is_abstract(f) && !f->path))
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "address of a unix socket makes no sense");
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	int r = sockopts_apply(fd, f, err);
	if (r < 0)
		return r;
	if (!is_abstract(f))
		r = bind_reserved(&fs->held[i], fd, f, err);
	else if (bind(fd, (const struct sockaddr *)un, f->sockaddr_len))
		r = cr_err_sys(err, "binding unix socket @%.*s",
			       (int)(f->sockaddr_len - NAME_OFF - 1), un->sun_path + 1);
	if (r < 0)
		unreserve(&fs->held[i]);
	else
		fs->held[i].fd = take_fd(&fd);
	return r;
}

/* The process whose credentials clients read, if it has the socket; else the first that has it. */
static bool is_the_one(const struct shell_fds *sh, uint32_t file)
{
	pid_t pid = sh->t->files[file].cred_pid;
	const struct process *named = tree_find_process(sh->t, pid);

	if (named && process_fd_of(named, file) >= 0)
		return named == sh->p;
	for (const struct process *p = sh->t->procs; p < sh->p; p++)
		if (process_fd_of(p, file) >= 0)
			return false;
	return true;
}

int fileset_unix_install(struct shell_fds *sh, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < sh->p->n_fds && !r; i++) {
		uint32_t file = sh->p->fds[i].file;
		const struct file *f = &sh->t->files[file];
		struct held *h = &sh->fs->held[file];

		if (f->kind != FILE_UNIX_LISTEN || h->listening || !is_the_one(sh, file))
			continue;
		r = rtask_queue_as(sh->rt, f->cred_uid, f->cred_gid, "listen", SYS_listen,
				   (uint64_t[]){sh->p->fds[i].fd, f->backlog, 0, 0}, err);
		h->listening = true;
	}
	return r;
}

static int launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	struct held *h = &fs->held[i];

	if (!h->reserved_path)
		return 0; /* abstract, or done */
	if (rename(h->reserved_path, t->files[i].path))
		return cr_err_sys(err, "putting a socket at %s", t->files[i].path);
	free(h->reserved_path);
	h->reserved_path = NULL;
	return 0;
}

const struct file_ops file_ops_unix_listen = {
    .name = "unix listener",
    .kind = FILE_UNIX_LISTEN,
    .match = match,
    .capture = capture,
    .check = check,
    .build = build,
    .launch = launch,
    .drop = unreserve,
};
