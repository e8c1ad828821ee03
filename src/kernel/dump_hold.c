#include "kernel/dump_hold.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <signal.h>
#include "base/cleanup.h"

#define MASK (FAN_OPEN_PERM | FAN_EVENT_ON_CHILD)

/* ---- who may go on ---- */

/* proc_pid_status(5); since 4.15, of the whole process. */
static bool is_dumping(pid_t pid)
{
	char path[64];
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	bool dumping = false;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	_cleanup_file_ FILE *f = fopen(path, "re");
	while (f && !dumping && getline(&line, &room, f) > 0)
		dumping = !strcmp(line, "CoreDumping:\t1\n");
	return dumping;
}

static int let_go(int group, int fd, struct cr_err *err)
{
	const struct fanotify_response r = {.fd = fd, .response = FAN_ALLOW};
	ssize_t n = write(group, &r, sizeof(r));

	/* killed meanwhile */
	if (n < 0 && errno == ENOENT)
		n = sizeof(r);
	close(fd);
	return n == sizeof(r) ? 0 : cr_err_sys(err, "answering fanotify");
}

static bool is_ours(pid_t pid, dump_hold_list list, void *arg)
{
	_cleanup_free_ pid_t *pids = NULL;
	ssize_t n = list(arg, &pids);
	bool is = false;

	for (ssize_t i = 0; i < n && !is; i++)
		is = pids[i] == pid;
	return is;
}

static bool one_is_dumping(dump_hold_list list, void *arg)
{
	_cleanup_free_ pid_t *pids = NULL;
	ssize_t n = list(arg, &pids);
	bool is = false;

	for (ssize_t i = 0; i < n && !is; i++)
		is = is_dumping(pids[i]);
	return is;
}

static bool has_to_wait(const struct fanotify_event_metadata *m, dump_hold_list list, void *arg)
{
	if (m->mask & FAN_OPEN_EXEC_PERM)
		return one_is_dumping(list, arg);
	return is_dumping(m->pid) && is_ours(m->pid, list, arg);
}

int dump_hold_answer(int group, dump_hold_list list, void *arg, struct cr_err *err)
{
	_Alignas(struct fanotify_event_metadata) char buf[4096];
	ssize_t n = read(group, buf, sizeof(buf));
	const struct fanotify_event_metadata *m = (const void *)buf;
	int r = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : cr_err_sys(err, "reading fanotify");
	for (; FAN_EVENT_OK(m, n) && !r; m = FAN_EVENT_NEXT(m, n)) {
		if (m->vers != FANOTIFY_METADATA_VERSION)
			return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "fanotify of version %d",
					  m->vers);
		if (m->fd < 0)
			continue;
		/* the descriptor of who has to wait stays: its number is the event's name */
		if (!has_to_wait(m, list, arg))
			r = let_go(group, m->fd, err);
	}
	return r;
}

/* ---- where cores are made ---- */

bool dump_hold_where(const char *pattern, pid_t pid, char *ret, size_t size)
{
	const char *slash = strrchr(pattern, '/');
	int dirs = slash ? (int)(slash - pattern) : 0;

	if (*pattern == '|' || *pattern == '@' || memchr(pattern, '%', (size_t)dirs))
		return false;
	int n = snprintf(ret, size, "/proc/%d/%s/%.*s", pid, *pattern == '/' ? "root" : "cwd", dirs,
			 pattern);
	return n > 0 && (size_t)n < size;
}

bool dump_hold_program(const char *pattern, char *ret, size_t size)
{
	size_t n;

	if (*pattern++ != '|' || *pattern != '/')
		return false;
	n = strcspn(pattern, " \n");
	if (n >= size || memchr(pattern, '%', n))
		return false;
	memcpy(ret, pattern, n);
	ret[n] = 0;
	return true;
}

/* Where a file is opened with nothing locked: file systems that open as they look up (NFS, FUSE and
 * other remote ones) have the directory locked all the while, and others would have to wait. Cores
 * are not made on the kernel's own, where whoever answers reads files. */
static bool is_local(const char *path)
{
	static const unsigned long LOCAL[] = {
	    EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC,  BTRFS_SUPER_MAGIC,     TMPFS_MAGIC,
	    RAMFS_MAGIC,      F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC,
	};
	struct statfs st;
	bool is = false;

	for (size_t i = 0; i < ARRAY_SIZE(LOCAL) && !statfs(path, &st); i++)
		is |= (unsigned long)st.f_type == LOCAL[i];
	return is;
}

static int watch(int group, const char *path, unsigned int flags, uint64_t mask, struct cr_err *err)
{
	if (!is_local(path) || !fanotify_mark(group, FAN_MARK_ADD | flags, mask, AT_FDCWD, path) ||
	    errno == ENOENT || errno == ESRCH || errno == ENOTDIR)
		return 0;
	return cr_err_sys(err, "watching for core dumps in %s", path);
}

int dump_hold_watch(int group, const pid_t *pids, size_t n, struct cr_err *err)
{
	char pattern[256], path[PATH_MAX]; /* CORENAME_MAX_SIZE is 128 */
	_cleanup_file_ FILE *f = fopen("/proc/sys/kernel/core_pattern", "re");
	int first = 0;

	if (!f || !fgets(pattern, sizeof(pattern), f))
		return cr_err_sys(err, "reading core_pattern");
	if (dump_hold_program(pattern, path, sizeof(path)))
		return watch(group, path, 0, FAN_OPEN_EXEC_PERM, err);
	for (size_t i = 0; i < n && dump_hold_where(pattern, pids[i], path, sizeof(path)); i++) {
		struct cr_err why = {0};
		int r = watch(group, path, FAN_MARK_ONLYDIR, MASK, &why);

		if (r && !first) {
			first = r;
			*err = why;
		}
	}
	return first;
}

/* ---- does it work? ---- */

static ssize_t nobody(void *arg, pid_t **ret)
{
	(void)arg;
	(void)ret;
	return 0;
}

/* Opens path in a process of its own, which may have to wait for us. *ret: whether it had to. */
static int try_open(int group, const char *path, bool *ret, struct cr_err *err)
{
	pid_t pid = fork();
	int r = 0;

	if (pid < 0)
		return cr_err_sys(err, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC) < 0);
	}
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd p[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = group, .events = POLLIN}};
	if (pidfd < 0) {
		r = cr_err_sys(err, "pidfd_open");
		kill(pid, SIGKILL);
	}
	*ret = false;
	while (!r && !p[0].revents) {
		if (poll(p, 2, -1) < 0)
			continue;
		*ret |= p[1].revents != 0;
		if (p[1].revents)
			r = dump_hold_answer(group, nobody, NULL, err);
	}
	if (r)
		kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return r;
}

/* A file's opening is told of, a pipe's is not. */
static int try_in(int group, const char *dir, struct cr_err *err)
{
	char file[64], pipe[64];
	bool told_file = false, told_pipe = true;
	int r = 0;

	snprintf(file, sizeof(file), "%s/file", dir);
	snprintf(pipe, sizeof(pipe), "%s/pipe", dir);
	_cleanup_fd_ int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || mkfifo(pipe, 0600) || fanotify_mark(group, FAN_MARK_ADD, MASK, AT_FDCWD, dir))
		r = cr_err_sys(err, "trying fanotify in %s", dir);
	if (!r)
		r = try_open(group, file, &told_file, err);
	if (!r)
		r = try_open(group, pipe, &told_pipe, err);
	unlink(file);
	unlink(pipe);
	if (r || (told_file && !told_pipe))
		return r;
	return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "this kernel's fanotify %s",
			  told_file ? "opens named pipes as well"
				    : "does not tell who opens files");
}

int dump_hold_open(struct cr_err *err)
{
	char dir[] = "/tmp/cr-dump.XXXXXX";
	_cleanup_fd_ int group =
	    fanotify_init(FAN_CLASS_CONTENT | FAN_UNLIMITED_QUEUE | FAN_CLOEXEC | FAN_NONBLOCK,
			  O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NONBLOCK);

	if (group < 0)
		return cr_err_sys(err, "fanotify_init");
	if (!mkdtemp(dir))
		return cr_err_sys(err, "making %s", dir);
	int r = try_in(group, dir, err);
	rmdir(dir);
	if (!r && fanotify_mark(group, FAN_MARK_FLUSH, 0, AT_FDCWD, NULL))
		r = cr_err_sys(err, "fanotify_mark");
	return r ? r : take_fd(&group);
}
