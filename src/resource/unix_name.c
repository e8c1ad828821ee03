/* Names of unix sockets.
 *
 * The destination may see the same file system, where the source's socket stands at its path and
 * serves until the switch-over. So the new socket is bound in a directory of our own beside it and
 * renamed over it at launch; undone, the directory is removed and the path is as it was. The name
 * that getsockname(2) returns is what bind(2) was given, so bind gets exactly that: it runs in a
 * thread that has our directory as its root (or, for a relative name, as its working directory),
 * with the directories of the name made below it. A path that is not there any more is bound
 * somewhere, and removed. */
#include "resource/unix_private.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

enum { DIR_DEPTH = 8 };

const char *unix_type_name(const struct file *f)
{
	return f->sock_type == SOCK_STREAM      ? "stream"
	       : f->sock_type == SOCK_SEQPACKET ? "seqpacket"
						: "datagram";
}

/* ---- capture ---- */

int unix_capture_name(struct files_ctx *x, int fd, struct file *f, struct cr_err *err)
{
	struct sockaddr_un un = {0};
	socklen_t len = sizeof(un);

	if (getsockname(fd, (struct sockaddr *)&un, &len))
		return cr_err_sys(err, "getsockname");
	f->sockaddr_len = len > sizeof(un) ? sizeof(un) : len;
	f->sockaddr = arena_memdup(x->c->tree->arena, &un, f->sockaddr_len);
	return f->sockaddr ? 0 : cr_err_oom(err);
}

/* The name may be relative, or the file may have been renamed. */
int unix_capture_path(struct files_ctx *x, int socket, struct file *f, struct cr_err *err)
{
	char path[64], link[PATH_MAX];
	struct stat st, there;
	_cleanup_fd_ int fd = ioctl(socket, SIOCUNIXFILE, 0);

	if (fd < 0 || fstat(fd, &st))
		return cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return cr_err_sys(err, "path of a unix socket");
	link[n] = '\0';
	f->path = NULL;
	f->name_dev = st.st_dev;
	f->name_ino = st.st_ino;
	f->mode = st.st_mode;
	f->uid = st.st_uid;
	f->gid = st.st_gid;
	if (stat(link, &there) || there.st_dev != st.st_dev || there.st_ino != st.st_ino)
		return 0;
	f->path = arena_strdup(x->c->tree->arena, link);
	return f->path ? 0 : cr_err_oom(err);
}

/* ---- check ---- */

/* Somebody here listens under that name? /proc/net/unix: "…: RefCnt Proto Flags Type St Inode
 * Path". */
static bool served_here(const struct sockaddr_un *un, size_t name_len, int want_type)
{
	char want[sizeof(un->sun_path) + 2] = "", name[256];
	_cleanup_file_ FILE *f = fopen("/proc/net/unix", "re");
	_cleanup_free_ char *line = NULL;
	size_t cap = 0;
	unsigned int flags, type;

	memcpy(want, un->sun_path, name_len);
	if (!want[0])
		want[0] = '@';
	while (f && getline(&line, &cap, f) > 0)
		if (sscanf(line, "%*s %*x %*x %x %x %*x %*u %255[^\n]", &flags, &type, name) == 3 &&
		    (int)type == want_type &&
		    (type == SOCK_DGRAM || flags & 0x10000 /* __SO_ACCEPTCON */) &&
		    !strcmp(name, want))
			return true;
	return false;
}

void unix_check_name(const struct file_check *k, const struct file *f)
{
	const struct sockaddr_un *un = (const void *)f->sockaddr;
	struct stat st;

	if (f->sockaddr_len <= UNIX_NAME_OFF || f->sockaddr_len > sizeof(*un))
		return; /* build says so */
	if (unix_is_abstract(f)) {
		if (served_here(un, f->sockaddr_len - UNIX_NAME_OFF, f->sock_type))
			file_check_refuse(k, "unix socket @%.*s: taken on this host",
					  (int)(f->sockaddr_len - UNIX_NAME_OFF - 1),
					  un->sun_path + 1);
		return;
	}
	if (!f->path)
		return; /* nobody finds it by that name */
	if (!reserve_check(k, f, "unix socket"))
		return;
	if (stat(f->path, &st))
		return; /* nothing in the way */
	if (!S_ISSOCK(st.st_mode))
		file_check_refuse(k, "unix socket %.150s: another type of file here", f->path);
	else if ((st.st_dev != f->name_dev || st.st_ino != f->name_ino ||
		  (k->same_kernel_known && !k->same_kernel)) &&
		 served_here(un, f->sockaddr_len - UNIX_NAME_OFF, f->sock_type))
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
	make_dirs(j->un, j->len - UNIX_NAME_OFF);
	if (bind(j->fd, (const struct sockaddr *)j->un, j->len))
		j->error = errno;
	return NULL;
}

static int bind_below(const char *dir, int fd, const struct sockaddr_un *un, size_t len,
		      struct cr_err *err)
{
	struct bind_job j = {.fd = fd, .un = un, .len = (socklen_t)len, .dir = dir};
	pthread_t th;
	int r = pthread_create(&th, NULL, bind_thread, &j);

	if (r)
		return cr_err_set(err, CR_ERR_KERNEL, r, "a thread to bind a unix socket");
	pthread_join(th, NULL);
	if (j.error)
		return cr_err_set(err, CR_ERR_KERNEL, j.error, "binding unix socket %.*s: %s",
				  (int)(len - UNIX_NAME_OFF), un->sun_path, strerror(j.error));
	return 0;
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
	if (rename(link, h->reserved_path) || chown(h->reserved_path, f->uid, f->gid) ||
	    chmod(h->reserved_path, f->mode & 07777))
		return cr_err_sys(err, "owner of %s", h->reserved_path);
	reserve_remove(root);
	return 0;
}

static int bind_reserved(struct held *h, int fd, const struct file *f, struct cr_err *err)
{
	char root[PATH_MAX + 8];
	int r = reserve_dir(h, f->path, err);

	if (r)
		return r;
	snprintf(root, sizeof(root), "%s/root", h->reserved_dir);
	if (mkdir(root, 0700))
		return cr_err_sys(err, "%s", root);
	r = bind_below(root, fd, (const void *)f->sockaddr, f->sockaddr_len, err);
	return r ? r : settle_reserved(h, fd, root, f, err);
}

int unix_bind_nowhere(int fd, const struct sockaddr_un *un, size_t len, struct cr_err *err)
{
	char dir[] = "/tmp/.cr-XXXXXX";

	if (!mkdtemp(dir))
		return cr_err_sys(err, "%s", dir);
	int r = bind_below(dir, fd, un, len, err);
	reserve_remove(dir);
	return r;
}

static bool makes_sense(const struct file *f)
{
	const struct sockaddr_un *un = (const void *)f->sockaddr;

	return unix_has_name(f) && f->sockaddr_len <= sizeof(*un) && un->sun_family == AF_UNIX;
}

int unix_bind_name(struct held *h, int fd, const struct file *f, struct cr_err *err)
{
	const struct sockaddr_un *un = (const void *)f->sockaddr;

	if (!makes_sense(f))
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "address of a unix socket makes no sense");
	if (!unix_is_abstract(f) && !f->path)
		return unix_bind_nowhere(fd, un, f->sockaddr_len, err);
	if (!unix_is_abstract(f)) {
		int r = bind_reserved(h, fd, f, err);

		if (r < 0)
			reserve_drop(h);
		return r;
	}
	return bind(fd, (const struct sockaddr *)un, f->sockaddr_len)
		   ? cr_err_sys(err, "binding unix socket @%.*s",
				(int)(f->sockaddr_len - UNIX_NAME_OFF - 1), un->sun_path + 1)
		   : 0;
}

int unix_way_to(int fd, const struct file *f, struct sockaddr_un *un, socklen_t *len, int *ret_at,
		struct cr_err *err)
{
	*ret_at = -1;
	*un = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (!makes_sense(f))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "a unix socket has no name");
	if (unix_is_abstract(f)) {
		memcpy(un, f->sockaddr, f->sockaddr_len);
		*len = f->sockaddr_len;
		return 0;
	}
	*ret_at = ioctl(fd, SIOCUNIXFILE, 0);
	if (*ret_at < 0)
		return cr_err_sys(err, "path of a unix socket (SIOCUNIXFILE)");
	snprintf(un->sun_path, sizeof(un->sun_path), "/proc/self/fd/%d", *ret_at);
	*len = sizeof(*un);
	return 0;
}
