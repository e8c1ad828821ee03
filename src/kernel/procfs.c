#include "kernel/procfs.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

enum { FIRST_READ_BYTES = 16 * 1024, PROC_PATH_MAX = 320 };

/* ---- fetching ---- */

static int proc_path(char path[PROC_PATH_MAX], pid_t pid, const char *rel, struct cr_err *err)
{
	int n = snprintf(path, PROC_PATH_MAX, "/proc/%d/%s", pid, rel);

	if (n < 0 || n >= PROC_PATH_MAX)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "path below /proc/%d too long: %s", pid,
				  rel);
	return 0;
}

/* ENOENT says either that the task is gone or that it lives and has no such file (a closed fd, an
 * option the kernel was built without). The task's own directory tells the two apart. */
static bool task_gone(pid_t pid, const char *rel)
{
	char path[64];
	int tid;

	if (sscanf(rel, "task/%d/", &tid) == 1)
		snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
	else
		snprintf(path, sizeof(path), "/proc/%d", pid);
	return access(path, F_OK) != 0;
}

static int fetch_error(pid_t pid, const char *rel, int code, struct cr_err *err)
{
	if (code == ESRCH || (code == ENOENT && task_gone(pid, rel))) {
		cr_err_set(err, CR_ERR_KERNEL, ESRCH, "/proc/%d/%s: no such task", pid, rel);
	} else {
		errno = code;
		cr_err_sys(err, "/proc/%d/%s", pid, rel);
	}
	err->pid = pid;
	return -err->code;
}

static bool is_maps(const char *rel)
{
	size_t n = strlen(rel);

	return n >= 4 && !strcmp(rel + n - 4, "maps");
}

/* Returns the length, or -errno without an error text. */
static ssize_t read_whole(int fd, char **ret)
{
	size_t cap = FIRST_READ_BYTES, len = 0;
	_cleanup_free_ char *buf = malloc(cap);

	if (!buf)
		return -ENOMEM;
	for (;;) {
		ssize_t n = read(fd, buf + len, cap - 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
		if (cap - len <
		    8192) { /* seq_file hands out a page a call: keep more than that free */
			char *p = realloc(buf, cap * 2);

			if (!p)
				return -ENOMEM;
			buf = p;
			cap *= 2;
		}
	}
	buf[len] = '\0';
	*ret = take_ptr(buf);
	return (ssize_t)len;
}

ssize_t proc_read(pid_t pid, const char *rel, char **ret, struct cr_err *err)
{
	char path[PROC_PATH_MAX];
	_cleanup_free_ char *text = NULL;
	int r = proc_path(path, pid, rel, err);

	if (r < 0)
		return r;
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fetch_error(pid, rel, errno, err);
	ssize_t n = read_whole(fd, &text);
	if (n == -ENOMEM)
		return cr_err_oom(err);
	if (n < 0)
		return fetch_error(pid, rel, (int)-n, err);
	/* A task without an mm (zombie, exiting) has an empty maps before 6.12, ESRCH since. */
	if (n == 0 && is_maps(rel))
		return fetch_error(pid, rel, ESRCH, err);
	*ret = take_ptr(text);
	return n;
}

int proc_readlink(pid_t pid, const char *rel, char **ret, struct cr_err *err)
{
	char path[PROC_PATH_MAX];
	int r = proc_path(path, pid, rel, err);

	if (r < 0)
		return r;
	for (size_t cap = 256;; cap *= 4) {
		_cleanup_free_ char *buf = malloc(cap);

		if (!buf)
			return cr_err_oom(err);
		ssize_t n = readlink(path, buf, cap);
		if (n < 0)
			return fetch_error(pid, rel, errno, err);
		if ((size_t)n < cap) {
			buf[n] = '\0';
			*ret = take_ptr(buf);
			return 0;
		}
	}
}

static void thread_rel(char rel[64], pid_t tid, const char *file)
{
	if (tid)
		snprintf(rel, 64, "task/%d/%s", tid, file);
	else
		snprintf(rel, 64, "%s", file);
}

int proc_stat_read(pid_t pid, pid_t tid, struct proc_stat *out, struct cr_err *err)
{
	char rel[64];
	_cleanup_free_ char *text = NULL;

	thread_rel(rel, tid, "stat");
	ssize_t n = proc_read(pid, rel, &text, err);
	if (n < 0)
		return (int)n;
	int r = proc_stat_parse(text, out, err);
	return r < 0 ? cr_err_ctx(err, "/proc/%d/%s", pid, rel) : 0;
}

int proc_status_read(pid_t pid, pid_t tid, struct proc_status *out, struct cr_err *err)
{
	char rel[64];
	_cleanup_free_ char *text = NULL;

	thread_rel(rel, tid, "status");
	ssize_t n = proc_read(pid, rel, &text, err);
	if (n < 0)
		return (int)n;
	int r = proc_status_parse(text, out, err);
	return r < 0 ? cr_err_ctx(err, "/proc/%d/%s", pid, rel) : 0;
}

int proc_starttime(pid_t pid, uint64_t *ret, struct cr_err *err)
{
	struct proc_stat st;
	int r = proc_stat_read(pid, 0, &st, err);

	if (r == 0)
		*ret = st.starttime;
	return r;
}

/* ---- lists of numbers ---- */

struct ids {
	VEC(int32_t) list;
};

static void ids_done(struct ids *ids)
{
	vec_done(&ids->list);
}

static int id_compare(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return (x > y) - (x < y);
}

/* Sorts, and hands the array over; never NULL, so that an empty list is not mistaken for none. */
static ssize_t ids_take(struct ids *ids, int32_t **ret, struct cr_err *err)
{
	size_t n = ids->list.n;

	if (!n && !(ids->list.v = malloc(sizeof(*ids->list.v))))
		return cr_err_oom(err);
	qsort(ids->list.v, n, sizeof(*ids->list.v), id_compare);
	*ret = take_ptr(ids->list.v);
	memset(&ids->list, 0, sizeof(ids->list));
	return (ssize_t)n;
}

static int ids_push(struct ids *ids, int32_t id, struct cr_err *err)
{
	int32_t *slot = vec_push(&ids->list);

	if (!slot)
		return cr_err_oom(err);
	*slot = id;
	return 0;
}

/* The entries of a directory that are numbers; rel NULL: of /proc itself. */
static int list_numbers(pid_t pid, const char *rel, struct ids *ids, struct cr_err *err)
{
	char path[PROC_PATH_MAX] = "/proc";
	int r = rel ? proc_path(path, pid, rel, err) : 0;

	if (r < 0)
		return r;
	_cleanup_dir_ DIR *dir = opendir(path);
	if (!dir)
		return rel ? fetch_error(pid, rel, errno, err) : cr_err_sys(err, "/proc");
	for (;;) {
		errno = 0;
		const struct dirent *e = readdir(dir);
		if (!e && errno)
			return rel ? fetch_error(pid, rel, errno, err) : cr_err_sys(err, "/proc");
		if (!e)
			return 0;
		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		r = ids_push(ids, (int32_t)strtol(e->d_name, NULL, 10), err);
		if (r < 0)
			return r;
	}
}

ssize_t proc_threads(pid_t pid, pid_t **ret, struct cr_err *err)
{
	_cleanup_(ids_done) struct ids ids = {0};
	int r = list_numbers(pid, "task", &ids, err);

	if (r < 0)
		return r;
	/* readdir(3) turns the ENOENT of a task reaped meanwhile into an end of directory. */
	if (!ids.list.n)
		return fetch_error(pid, "task", ESRCH, err);
	return ids_take(&ids, ret, err);
}

ssize_t proc_fds(pid_t pid, int **ret, struct cr_err *err)
{
	_cleanup_(ids_done) struct ids ids = {0};
	int r = list_numbers(pid, "fd", &ids, err);

	if (r < 0)
		return r;
	if (!ids.list.n && task_gone(pid, "fd"))
		return fetch_error(pid, "fd", ESRCH, err);
	return ids_take(&ids, ret, err);
}

/* Kernels without CONFIG_PROC_CHILDREN: everyone's parent. */
static int children_by_scan(pid_t pid, struct ids *ids, struct cr_err *err)
{
	_cleanup_(ids_done) struct ids all = {0};
	int r = list_numbers(0, NULL, &all, err);

	if (r < 0)
		return r;
	vec_foreach (p, &all.list) {
		struct proc_stat st;

		r = proc_stat_read(*p, 0, &st, err);
		if (r < 0 && r != -ESRCH)
			return r;
		if (r == 0 && st.ppid == pid) {
			r = ids_push(ids, *p, err);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

static int children_of_thread(pid_t pid, pid_t tid, struct ids *ids, struct cr_err *err)
{
	char rel[64];
	_cleanup_free_ char *text = NULL;

	thread_rel(rel, tid, "children");
	ssize_t n = proc_read(pid, rel, &text, err);
	if (n < 0)
		return (int)n;
	for (char *p = text, *end;; p = end) {
		long id = strtol(p, &end, 10);

		if (end == p)
			return 0;
		int r = ids_push(ids, (int32_t)id, err);
		if (r < 0)
			return r;
	}
}

ssize_t proc_children_of(pid_t pid, const pid_t *tids, size_t n_tids, pid_t **ret,
			 struct cr_err *err)
{
	_cleanup_(ids_done) struct ids ids = {0};

	for (size_t i = 0; i < n_tids; i++) {
		int r = children_of_thread(pid, tids[i], &ids, err);

		if (r == -ENOENT) {
			ids.list.n = 0;
			r = children_by_scan(pid, &ids, err);
			i = n_tids;
		}
		if (r < 0 && r != -ESRCH) /* that thread ended: its children moved to another one */
			return r;
	}
	if (!ids.list.n && task_gone(pid, "task"))
		return fetch_error(pid, "task", ESRCH, err);
	return ids_take(&ids, ret, err);
}

ssize_t proc_children(pid_t pid, pid_t **ret, struct cr_err *err)
{
	_cleanup_free_ pid_t *tids = NULL;
	ssize_t n = proc_threads(pid, &tids, err);

	return n < 0 ? n : proc_children_of(pid, tids, (size_t)n, ret, err);
}
