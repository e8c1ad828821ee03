/* Where a process stands: working directory, root, umask, namespaces; and whether it shares its
 * descriptor table with another task, which nothing here can rebuild. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

/* Namespaces that have to be the agent's own: what it opens and binds for the tasks is in those.
 * The time namespace may be another, but must be the same for the whole tree. */
static const char *const ns_names[] = {
    "mnt", "net", "ipc", "uts", "cgroup", "user", "pid", "pid_for_children", "time"};
enum { N_NS = ARRAY_SIZE(ns_names), NS_TIME = N_NS - 1, NS_TEXT = 48 };

struct ns_set {
	char text[N_NS][NS_TEXT];
};

/* Namespaces that this kernel has not read as "". Returns false if the task is gone. */
static bool ns_read(int procfd, const char *dir, struct ns_set *out)
{
	_cleanup_fd_ int fd = openat(procfd, dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

	for (size_t i = 0; i < N_NS; i++) {
		ssize_t n = fd < 0 ? -1 : readlinkat(fd, ns_names[i], out->text[i], NS_TEXT - 1);

		if (n < 0) /* it is ending: they go one after the other */
			return false;
		out->text[i][n] = '\0';
	}
	return true;
}

static void ns_compare(struct capture *c, pid_t pid, pid_t tid, const struct ns_set *ours,
		       const struct ns_set *theirs, bool with_time)
{
	for (size_t i = 0; i < N_NS; i++) {
		char what[64];

		if ((i == NS_TIME && !with_time) || !strcmp(ours->text[i], theirs->text[i]))
			continue;
		if (tid != pid)
			snprintf(what, sizeof(what), "%s namespace of thread %d", ns_names[i], tid);
		else
			snprintf(what, sizeof(what), "%s namespace", ns_names[i]);
		refuse(c->refused, pid, what, "%s is not that of the %s (%s): not supported",
		       theirs->text[i], i == NS_TIME ? "tree's first process" : "agent",
		       ours->text[i]);
	}
}

/* ---- shared tables ---- */

static int kcmp_tasks(pid_t a, pid_t b, int type)
{
	long r = syscall(SYS_kcmp, a, b, type, 0, 0);

	return r < 0 ? -errno : (int)r;
}

/* Every thread has to use its process's tables and namespaces. Asked ahead, and at the stop of the
 * threads that are new. */
static void check_threads(struct capture *c, size_t i, int procfd, const struct ns_set *ours)
{
	const struct process *p = c->procs[i].p, *prev = c->procs[i].prev;

	for (size_t k = 1; k < p->n_threads; k++) {
		pid_t tid = p->threads[k].tid;
		struct ns_set theirs;
		char dir[64], what[64];

		if (c->exact && prev && process_find_thread(prev, tid))
			continue;
		snprintf(what, sizeof(what), "thread %d", tid);
		if (kcmp_tasks(p->pid, tid, KCMP_FILES) > 0)
			refuse(c->refused, p->pid, what,
			       "has a descriptor table of its own: not supported");
		if (kcmp_tasks(p->pid, tid, KCMP_FS) > 0)
			refuse(c->refused, p->pid, what,
			       "has a working directory of its own: not supported");
		snprintf(dir, sizeof(dir), "task/%d/ns", tid);
		if (ns_read(procfd, dir, &theirs))
			ns_compare(c, p->pid, tid, ours, &theirs, true);
	}
}

/* procs before i share nothing among themselves: sorted[] holds them in the kernel's order. */
static size_t place_among(struct capture *c, pid_t *sorted, size_t n, pid_t pid, int type,
			  const char *what, const char *how)
{
	size_t lo = 0, hi = n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		int r = kcmp_tasks(pid, sorted[mid], type);

		if (r == 0)
			refuse(c->refused, pid, what, "shared with process %d%s: not supported",
			       sorted[mid], how);
		c->refused->passing |= r == 0 && type == KCMP_VM; /* vfork(2) */
		if (r <= 0)
			return n;
		if (r == 1)
			hi = mid;
		else
			lo = mid + 1;
	}
	memmove(sorted + lo + 1, sorted + lo, (n - lo) * sizeof(*sorted));
	sorted[lo] = pid;
	return n + 1;
}

struct sharing {
	int type;
	const char *what, *how;
	pid_t *sorted; /* processes of the tree, in the kernel's order */
	size_t n;
};

/* Among the tree's: who has the same? 0: nobody. */
static pid_t who_shares(const struct sharing *s, pid_t pid)
{
	size_t lo = 0, hi = s->n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		int r = kcmp_tasks(pid, s->sorted[mid], s->type);

		if (r < 0)
			return 0; /* gone, or a thread of the kernel */
		if (r == 0)
			return s->sorted[mid];
		if (r == 1)
			hi = mid;
		else
			lo = mid + 1;
	}
	return 0;
}

/* Nobody outside the tree may share with it either: that process would not move. */
static int check_outside(struct files_ctx *x, const struct sharing *list, size_t n,
			 struct cr_err *err)
{
	_cleanup_dir_ DIR *d = opendir("/proc");

	if (!d)
		return cr_err_sys(err, "/proc");
	for (struct dirent *e; (e = readdir(d));) {
		pid_t pid = atoi(e->d_name);

		if (pid <= 0 || tree_find_process(x->c->tree, pid))
			continue;
		for (size_t i = 0; i < n; i++) {
			pid_t other = who_shares(&list[i], pid);

			if (other && !files_is_inside(x, pid))
				refuse(x->c->refused, other, list[i].what,
				       "shared with process %d, which is outside the tree%s: not "
				       "supported",
				       pid, list[i].how);
		}
	}
	return 0;
}

static int check_processes(struct files_ctx *x, struct cr_err *err)
{
	static const char vfork_how[] = " (CLONE_VM, or a vfork that has not called execve yet)";
	struct capture *c = x->c;
	size_t n = c->tree->n_procs, i;
	_cleanup_free_ pid_t *sorted = calloc(3 * n + 1, sizeof(*sorted));

	if (!sorted)
		return cr_err_oom(err);
	for (i = 0; i < n && c->exact && c->procs[i].prev; i++)
		;
	if (i == n && c->exact)
		return 0; /* no new process */
	struct sharing list[] = {
	    {KCMP_FILES, "descriptor table", "", sorted, 0},
	    {KCMP_FS, "working directory and umask", "", sorted + n, 0},
	    {KCMP_VM, "address space", vfork_how, sorted + 2 * n, 0},
	};
	for (i = 0; i < n; i++) {
		const struct process *p = c->procs[i].p;

		for (size_t k = 0; k < ARRAY_SIZE(list) && !p->zombie; k++)
			list[k].n = place_among(c, list[k].sorted, list[k].n, p->pid, list[k].type,
						list[k].what, list[k].how);
	}
	/* in the preflight: later there are only processes that these have forked */
	return c->prev ? 0 : check_outside(x, list, ARRAY_SIZE(list), err);
}

/* ---- cwd, root, umask ---- */

static bool same_inode(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* "cwd" or "root": the path as this process sees it, which leads there. 1: captured; 0: the task is
 * gone. */
static int capture_dir(struct capture *c, struct process *p, int procfd, const char *link,
		       const char *what, const char **ret, struct cr_err *err)
{
	char path[PATH_MAX];
	struct stat there, here;
	ssize_t n = readlinkat(procfd, link, path, sizeof(path) - 1);

	if (n < 0 && (errno == ENOENT || errno == ESRCH))
		return 0;
	if (n < 0)
		return cr_err_sys(err, "/proc/%d/%s", p->pid, link);
	path[n] = '\0';
	*ret = arena_strdup(c->tree->arena, path);
	if (!*ret)
		return cr_err_oom(err);
	if (fstatat(procfd, link, &there, 0))
		return 0;
	if (there.st_nlink == 0)
		refuse(c->refused, p->pid, what, "%.200s: has been removed", path);
	else if (path[0] != '/' || stat(path, &here) || !same_inode(&there, &here))
		refuse(c->refused, p->pid, what, "%.200s: the path leads elsewhere now", path);
	return 1;
}

static int capture_umask(struct process *p, int procfd, struct text_buf *buf, struct cr_err *err)
{
	uint64_t umask;
	size_t off;

	buf->n = 0;
	int r = text_append_file(buf, procfd, "status", &off);
	if (r == -ENOENT || r == -ESRCH)
		return 0;
	if (r < 0 || !fdinfo_u64(buf->v + off, "Umask", 8, &umask))
		return cr_err_set(err, CR_ERR_KERNEL, r < 0 ? -r : EPROTO, "umask of %d", p->pid);
	p->umask = (uint32_t)umask;
	return 0;
}

static int capture_place(struct files_ctx *x, size_t i, const struct ns_set *ours,
			 struct ns_set *first, struct cr_err *err)
{
	struct capture *c = x->c;
	struct process *p = c->procs[i].p;
	struct ns_set theirs;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d", p->pid);
	_cleanup_fd_ int procfd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int r =
	    procfd < 0 ? 0 : capture_dir(c, p, procfd, "cwd", "working directory", &p->cwd, err);
	if (r > 0)
		r = capture_dir(c, p, procfd, "root", "root directory", &p->root, err);
	if (r < 0)
		return r;
	if (!r && c->exact)
		return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "process %d is gone", p->pid);
	if (!r) {
		/* Exited between listing and here, or only its leader has; a tree needs some path.
		 */
		p->cwd = p->root = "/";
		if (procfd >= 0 && p->n_threads > 1)
			refuse(c->refused, p->pid, "main thread",
			       "has exited while others go on: not supported");
		return 0;
	}
	r = capture_umask(p, procfd, &x->text, err);
	if (r < 0 || !ns_read(procfd, "ns", &theirs))
		return r;
	if (!first->text[0][0])
		*first = theirs;
	ns_compare(c, p->pid, p->pid, ours, &theirs, false);
	if (strcmp(first->text[NS_TIME], theirs.text[NS_TIME]))
		ns_compare(c, p->pid, p->pid, first, &theirs, true);
	check_threads(c, i, procfd, &theirs);
	return 0;
}

int files_capture_places(struct files_ctx *x, struct cr_err *err)
{
	struct ns_set ours = {0}, first = {0};
	_cleanup_fd_ int self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (self < 0 || !ns_read(self, "ns", &ours))
		return cr_err_sys(err, "/proc/self/ns");
	for (size_t i = 0; i < x->c->tree->n_procs; i++) {
		struct process *p = &x->c->tree->procs[i];

		if (p->zombie) {
			p->cwd = p->root = "/";
			continue;
		}
		int r = capture_place(x, i, &ours, &first, err);
		if (r < 0)
			return r;
	}
	return check_processes(x, err);
}
