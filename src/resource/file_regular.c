/* Regular files and directories, by path.
 *
 * Both hosts may see one file system, or each a copy. Where the file at the path is the very file
 * (same kernel, device and inode) nothing needs to agree; a copy has to have the same size and
 * time, in the preflight and again at the switch-over: what a task writes to a file meanwhile would
 * be lost. */
#include "resource/carried.h"
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>

#ifndef PID_FS_MAGIC
#define PID_FS_MAGIC 0x50494446 /* 6.9 */
#endif
enum { MQUEUE_MAGIC = 0x19800202, SOCK_FS_MAGIC = 0x534f434b, CONFIG_FS_MAGIC = 0x62656570 };

static uint64_t mtime_ns(const struct stat *st)
{
	return (uint64_t)st->st_mtim.tv_sec * 1000000000ull + (uint64_t)st->st_mtim.tv_nsec;
}

/* Files without contents of their own: whatever size and time they show says nothing. */
static bool is_pseudo(uint32_t magic)
{
	return magic == PROC_SUPER_MAGIC || magic == SYSFS_MAGIC || magic == CGROUP_SUPER_MAGIC ||
	       magic == CGROUP2_SUPER_MAGIC;
}

/* Opening one of these again does not give the same thing. */
static const char *fs_unsupported(uint32_t magic)
{
	static const struct {
		uint32_t magic;
		const char *name;
	} list[] = {
	    {NSFS_MAGIC, "namespace descriptor"},
	    {PID_FS_MAGIC, "pidfd"},
	    {MQUEUE_MAGIC, "POSIX message queue"},
	    {DEBUGFS_MAGIC, "debugfs file"},
	    {TRACEFS_MAGIC, "tracefs file"},
	    {BPF_FS_MAGIC, "bpf object"},
	    {HUGETLBFS_MAGIC, "hugetlbfs file"},
	    {SECRETMEM_MAGIC, "secret memory"},
	    {SECURITYFS_MAGIC, "securityfs file"},
	    {SELINUX_MAGIC, "selinuxfs file"},
	    {CONFIG_FS_MAGIC, "configfs file"},
	    {BINFMTFS_MAGIC, "binfmt_misc file"},
	    {ANON_INODE_FS_MAGIC, "anonymous inode"},
	    {SOCK_FS_MAGIC, "socket"},
	    {PIPEFS_MAGIC, "pipe"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(list); i++)
		if (list[i].magic == magic)
			return list[i].name;
	return NULL;
}

static bool match(const struct fd_probe *p)
{
	return (S_ISREG(p->st.st_mode) || S_ISDIR(p->st.st_mode)) && p->link[0] == '/' &&
	       strncmp(p->link, "/memfd:", 7) && !fs_unsupported(p->fs_magic);
}

/* What is wrong with a path below /proc/PID; NULL: nothing. */
static const char *proc_path_wrong(const struct tree *t, const char *path)
{
	int pid = 0, len = 0;

	if (sscanf(path, "/proc/%d%n", &pid, &len) != 1 || pid <= 0 ||
	    (path[len] && path[len] != '/'))
		return NULL;
	if (!tree_find_process(t, pid))
		return "is of a process outside the tree: not supported; close it first";
	if (!strncmp(path + len, "/task/", 6))
		return "is of a single thread: not supported; close it first";
	return NULL;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	const char *wrong = NULL;

	if (p->st.st_nlink == 0)
		wrong = "has been unlinked while open: not supported; close it first";
	else if (!p->link_leads_here)
		wrong = "the path does not lead to the open file any more: not supported; close it "
			"first";
	else if (p->fs_magic == PROC_SUPER_MAGIC)
		wrong = proc_path_wrong(x->c->tree, p->link);
	if (wrong) {
		files_refuse(x, p->pid, p->fd, "%.180s: %s", p->link, wrong);
		return 0;
	}
	f->kind = FILE_REGULAR;
	f->path = arena_strdup(x->c->tree->arena, p->link);
	if (!f->path)
		return cr_err_oom(err);
	f->size = (uint64_t)p->st.st_size;
	f->mtime_ns = mtime_ns(&p->st);
	return 0;
}

static bool is_same_file(bool same_kernel, bool known, const struct file *f, const struct stat *st)
{
	return (same_kernel || !known) && f->dev == st->st_dev && f->ino == st->st_ino;
}

/* A copy of what the source has? Says why not, or NULL. */
static const char *copy_differs(const struct file *f, const struct stat *st, char *buf, size_t size)
{
	if (S_ISDIR(st->st_mode)) {
		if (f->pos)
			return "a directory that is being read, and is not the same one here";
		return NULL;
	}
	if ((uint64_t)st->st_size != f->size) {
		snprintf(buf, size, "differs here: %llu bytes instead of %llu",
			 (unsigned long long)st->st_size, (unsigned long long)f->size);
		return buf;
	}
	if (mtime_ns(st) != f->mtime_ns) {
		snprintf(buf, size, "differs here: modified at %lld.%09ld instead of %llu.%09llu",
			 (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
			 (unsigned long long)(f->mtime_ns / 1000000000),
			 (unsigned long long)(f->mtime_ns % 1000000000));
		return buf;
	}
	return NULL;
}

static bool below_tree_proc(const struct tree *t, const char *path)
{
	int pid;

	return sscanf(path, "/proc/%d", &pid) == 1 && tree_find_process(t, pid);
}

static void check(const struct file_check *k, const struct file *f)
{
	char buf[128];
	struct statfs sf;
	struct stat st;

	if (below_tree_proc(k->t, f->path) || f->carried)
		return; /* there once the process is, or once it has been brought */
	if (stat(f->path, &st)) {
		file_check_refuse(k, "%.180s: %s here%s", f->path, strerror(errno),
				  errno == ENOENT && (S_ISREG(f->mode) || S_ISDIR(f->mode))
				      ? "; --copy-files brings it along"
				      : "");
		return;
	}
	if ((st.st_mode & S_IFMT) != (f->mode & S_IFMT)) {
		file_check_refuse(k, "%.180s: another type of file here", f->path);
		return;
	}
	_cleanup_fd_ int fd = open(f->path, (int)file_open_flags(f) | O_NONBLOCK);
	if (fd < 0 || fstatfs(fd, &sf)) {
		file_check_refuse(k, "%.180s: cannot be opened here: %s", f->path, strerror(errno));
		return;
	}
	if (is_pseudo((uint32_t)sf.f_type) ||
	    is_same_file(k->same_kernel, k->same_kernel_known, f, &st))
		return;
	const char *why = copy_differs(f, &st, buf, sizeof(buf));
	if (why)
		file_check_refuse(k, "%.180s: %s%s", f->path, why,
				  carried_is_left(f->path) ? "; it was left behind when such tasks "
							     "went away: --copy-files=replace"
							   : "");
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];
	struct stat st;
	struct statfs sf;

	/* O_NONBLOCK: whatever stands at the path by now, this does not wait; settle clears it */
	_cleanup_fd_ int fd = open(f->path, (int)file_open_flags(f) | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) || fstatfs(fd, &sf))
		return cr_err_sys(err, "opening %s", f->path);
	if ((st.st_mode & S_IFMT) != (f->mode & S_IFMT))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "%s: another type of file here",
				  f->path);
	h->same_file = f->carried || is_pseudo((uint32_t)sf.f_type) ||
		       is_same_file(fs->same_kernel, fs->same_kernel_known, f, &st);
	h->fd = take_fd(&fd);
	return 0;
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];
	char buf[128];
	struct stat st;

	if (!h->same_file) {
		if (fstat(h->fd, &st))
			return cr_err_sys(err, "%s", f->path);
		const char *why = copy_differs(f, &st, buf, sizeof(buf));
		if (why)
			return cr_err_set(err, CR_ERR_INPUT, ESTALE, "%s: %s", f->path, why);
	}
	if (f->pos == h->pos_set)
		return 0;
	if (lseek(h->fd, (off_t)f->pos, SEEK_SET) < 0)
		return cr_err_sys(err, "position %llu in %s", (unsigned long long)f->pos, f->path);
	h->pos_set = f->pos;
	return 0;
}

const struct file_ops file_ops_regular = {
    .name = "regular file",
    .kind = FILE_REGULAR,
    .match = match,
    .capture = capture,
    .check = check,
    .build = build,
    .settle = settle,
};
