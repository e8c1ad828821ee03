#include "kernel/cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "base/clock.h"
#include "base/vec.h"
#include "kernel/cgroup_ops.h"
#include "kernel/procfs.h"

/* ---- files ---- */

ssize_t cgroup_read_at(int dir, const char *name, char *buf, size_t size)
{
	_cleanup_fd_ int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);

	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return n;
}

int cgroup_read_file(const struct cgroup *cg, const char *name, char *buf, size_t size,
		     struct cr_err *err)
{
	ssize_t n = cgroup_read_at(cg->dir, name, buf, size);

	if (n >= 0)
		return 0;
	errno = (int)-n;
	return cr_err_sys(err, "%s/%s", cg->fs_path, name);
}

int cgroup_write_file(const struct cgroup *cg, const char *name, const char *text,
		      struct cr_err *err)
{
	_cleanup_fd_ int fd = openat(cg->dir, name, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd;

	while (n >= 0 && (n = write(fd, text, strlen(text))) < 0 && errno == EINTR)
		n = 0;
	return n < 0 ? cr_err_sys(err, "writing %s to %s/%s", text, cg->fs_path, name) : 0;
}

/* ---- open and close ---- */

static const struct cgroup_ops *ops_of(enum cgroup_version version)
{
	return version == CGROUP_V2 ? &cgroup_v2_ops : &cgroup_v1_ops;
}

/* Takes over what *l holds, on success. */
static int open_location(struct cgroup **ret, struct cgroup_location *l, struct cr_err *err)
{
	_cleanup_(cgroup_closep) struct cgroup *cg = calloc(1, sizeof(*cg));

	if (!cg)
		return cr_err_oom(err);
	cg->ops = ops_of(l->version);
	cg->dir = open(l->fs_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (cg->dir < 0)
		return cr_err_sys(err, "opening cgroup %s", l->fs_path);
	cg->path = take_ptr(l->path);
	cg->fs_path = take_ptr(l->fs_path);
	*ret = take_ptr(cg);
	return 0;
}

static bool has_tasks(const struct cgroup_location *l)
{
	char buf[128], file[PATH_MAX];

	snprintf(file, sizeof(file), "%s/cgroup.events", l->fs_path);
	return cgroup_read_at(AT_FDCWD, file, buf, sizeof(buf)) > 0 && strstr(buf, "populated 1");
}

static int locate_any(const char *path, struct cgroup_location *ret, struct cr_err *err)
{
	_cleanup_(cgroup_location_done) struct cgroup_location v1 = {0};
	struct cr_err err1;
	int r = cgroup_locate(CGROUP_V2, path, ret, err);

	if (r < 0 && r != -ENOENT)
		return r;
	if (r == 0 && has_tasks(ret))
		return 0;
	/* Managers of mixed systems make the same path in both hierarchies, one of them unused. */
	int r1 = cgroup_locate(CGROUP_V1, path, &v1, &err1);
	if (r1 < 0 && r == 0)
		return 0;
	if (r1 < 0 && r1 != -ENOENT) {
		*err = err1;
		return r1;
	}
	if (r1 < 0)
		return cr_err_set(err, CR_ERR_INPUT, ENOENT,
				  "no cgroup %s in cgroup v2 or in the v1 freezer", path);
	cgroup_location_done(ret);
	*ret = v1;
	v1 = (struct cgroup_location){0};
	return 0;
}

int cgroup_open(struct cgroup **ret, enum cgroup_version version, const char *path,
		struct cr_err *err)
{
	_cleanup_(cgroup_location_done) struct cgroup_location l = {0};

	if (path[0] != '/')
		return cr_err_set(
		    err, CR_ERR_INPUT, EINVAL,
		    "cgroup %s: give the path from the root of its hierarchy, as in /web", path);
	int r = cgroup_locate_dir(path, &l, err);
	if (r < 0)
		return r;
	if (r == 0)
		r = version == CGROUP_ANY ? locate_any(path, &l, err)
					  : cgroup_locate(version, path, &l, err);
	if (r < 0)
		return r;
	if (version != CGROUP_ANY && l.version != version)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "%s is not a cgroup v%d", path,
				  version);
	return open_location(ret, &l, err);
}

void cgroup_close(struct cgroup *cg)
{
	if (!cg)
		return;
	close_fdp(&cg->dir);
	free(cg->path);
	free(cg->fs_path);
	free(cg);
}

enum cgroup_version cgroup_version(const struct cgroup *cg)
{
	return cg->ops->version;
}

const char *cgroup_path(const struct cgroup *cg)
{
	return cg->path;
}

const char *cgroup_fs_path(const struct cgroup *cg)
{
	return cg->fs_path;
}

bool cgroup_is_root(const struct cgroup *cg)
{
	return faccessat(cg->dir, cg->ops->freeze_file, F_OK, 0) != 0;
}

/* ---- the cgroups below ---- */

typedef int (*dir_fn)(int dir, const char *rel, bool top, void *arg, struct cr_err *err);

static int each_dir(int parent, const char *name, const char *rel, bool top, dir_fn fn, void *arg,
		    struct cr_err *err)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 && errno == ENOENT && !top) /* removed meanwhile */
		return 0;
	_cleanup_dir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		close_fdp(&fd);
		return cr_err_sys(err, "opening cgroup %s", rel);
	}
	int r = fn(fd, rel, top, arg, err);
	for (const struct dirent *e; r == 0 && (e = readdir(dir));) {
		char sub[PATH_MAX];

		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		snprintf(sub, sizeof(sub), "%s/%s", strcmp(rel, "/") ? rel : "", e->d_name);
		r = each_dir(fd, e->d_name, sub, false, fn, arg, err);
	}
	return r;
}

struct id_list {
	const char *file;
	VEC(pid_t) ids;
};

static void id_listp(struct id_list *l)
{
	vec_done(&l->ids);
}

static int list_dir(int dir, const char *rel, bool top, void *arg, struct cr_err *err)
{
	struct id_list *l = arg;
	int fd = openat(dir, l->file, O_RDONLY | O_CLOEXEC);
	_cleanup_file_ FILE *f = fd < 0 ? NULL : fdopen(fd, "re");
	int id, r;

	if (!f) {
		close_fdp(&fd);
		return errno == ENOENT && !top ? 0
					       : cr_err_sys(err, "%s of cgroup %s", l->file, rel);
	}
	errno = 0;
	while ((r = fscanf(f, "%d", &id)) == 1) {
		if (id == 0)
			return cr_err_set(
			    err, CR_ERR_UNSUPPORTED, ESRCH,
			    "cgroup %s holds a task that this pid namespace does not show "
			    "(it reads as 0 in %s): run the agent in the namespace above it",
			    rel, l->file);
		pid_t *slot = vec_push(&l->ids);
		if (!slot)
			return cr_err_oom(err);
		*slot = id;
	}
	if (!ferror(f) || (errno == ENODEV && !top)) /* ENODEV: removed while open */
		return 0;
	/* A threaded cgroup lists no processes: they are listed by the domain above it. */
	if (errno == EOPNOTSUPP && !top)
		return 0;
	if (errno == EOPNOTSUPP)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EOPNOTSUPP,
				  "cgroup %s is threaded: name the domain cgroup above it", rel);
	return cr_err_sys(err, "%s of cgroup %s", l->file, rel);
}

static int pid_compare(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

static ssize_t list_ids(struct cgroup *cg, const char *file, pid_t **ret, struct cr_err *err)
{
	_cleanup_(id_listp) struct id_list l = {.file = file};
	int r = each_dir(cg->dir, ".", cg->path, true, list_dir, &l, err);
	size_t n = 0;

	if (r < 0)
		return r;
	if (!l.ids.n && !(l.ids.v = malloc(sizeof(*l.ids.v))))
		return cr_err_oom(err);
	qsort(l.ids.v, l.ids.n, sizeof(*l.ids.v), pid_compare);
	for (size_t i = 0; i < l.ids.n; i++) {
		if (!n || l.ids.v[n - 1] != l.ids.v[i])
			l.ids.v[n++] = l.ids.v[i];
	}
	*ret = take_ptr(l.ids.v);
	return (ssize_t)n;
}

ssize_t cgroup_procs(struct cgroup *cg, pid_t **ret, struct cr_err *err)
{
	return list_ids(cg, "cgroup.procs", ret, err);
}

ssize_t cgroup_threads(struct cgroup *cg, pid_t **ret, struct cr_err *err)
{
	return list_ids(cg, cg->ops->threads_file, ret, err);
}

struct frozen_search {
	const struct cgroup_ops *ops;
	char *name;
	size_t name_len;
	bool found;
};

static int look_frozen(int dir, const char *rel, bool top, void *arg, struct cr_err *err)
{
	struct frozen_search *s = arg;

	(void)err;
	if (!top && !s->found && s->ops->told_to_freeze(dir)) {
		s->found = true;
		snprintf(s->name, s->name_len, "%s", rel);
	}
	return 0;
}

int cgroup_frozen_below(struct cgroup *cg, bool *ret, char *name, size_t name_len,
			struct cr_err *err)
{
	struct frozen_search s = {.ops = cg->ops, .name = name, .name_len = name_len};
	int r = each_dir(cg->dir, ".", cg->path, true, look_frozen, &s, err);

	if (r == 0)
		*ret = s.found;
	return r;
}

/* ---- freeze and thaw ---- */

static int refuse_root(const struct cgroup *cg, struct cr_err *err)
{
	if (!cgroup_is_root(cg))
		return 0;
	return cr_err_set(err, CR_ERR_INPUT, EINVAL,
			  "cgroup %s is the root of its hierarchy and cannot be frozen",
			  cg->fs_path);
}

/* Freezing ourselves would be for ever. */
static int refuse_own(const struct cgroup *cg, struct cr_err *err)
{
	_cleanup_free_ char *own = NULL;
	size_t len = strlen(cg->path);
	int r = cgroup_of_pid(getpid(), cg->ops->version, &own, err);

	if (r < 0)
		return r;
	if (strncmp(own, cg->path, len) != 0 || (own[len] && own[len] != '/'))
		return 0;
	return cr_err_set(err, CR_ERR_INPUT, EINVAL,
			  "cgroup %s holds this agent itself: move one of the two elsewhere",
			  cg->path);
}

static int write_freeze(const struct cgroup *cg, const char *text, struct cr_err *err)
{
	return cgroup_write_file(cg, cg->ops->freeze_file, text, err);
}

int cgroup_get_state(struct cgroup *cg, struct cgroup_state *ret, struct cr_err *err)
{
	int r = refuse_root(cg, err);

	return r < 0 ? r : cg->ops->get_state(cg, ret, err);
}

int cgroup_freeze_start(struct cgroup *cg, struct cr_err *err)
{
	int r = refuse_root(cg, err);

	if (r == 0)
		r = refuse_own(cg, err);
	return r < 0 ? r : write_freeze(cg, cg->ops->freeze_text, err);
}

int cgroup_thaw(struct cgroup *cg, struct cr_err *err)
{
	return write_freeze(cg, cg->ops->thaw_text, err);
}

/* Who holds the freeze up: the task whose state says so most clearly. */
struct culprit {
	int score; /* 0: none found */
	struct proc_stat st;
	char wchan[64];
};

static void find_culprit(struct cgroup *cg, struct culprit *ret)
{
	_cleanup_free_ pid_t *tids = NULL;
	struct cr_err ignored;
	ssize_t n = cgroup_threads(cg, &tids, &ignored);

	memset(ret, 0, sizeof(*ret));
	for (ssize_t i = 0; i < n && ret->score < 2; i++) {
		_cleanup_free_ char *wchan = NULL;
		struct proc_stat st;

		if (proc_stat_read(tids[i], 0, &st, &ignored) < 0 ||
		    proc_read(tids[i], "wchan", &wchan, &ignored) < 0)
			continue;
		int score = cg->ops->not_frozen(st.state, wchan);
		if (score > ret->score) {
			ret->score = score;
			ret->st = st;
			snprintf(ret->wchan, sizeof(ret->wchan), "%s", wchan);
		}
	}
}

static int freeze_timeout(const struct cgroup *cg, const struct culprit *c, uint64_t us,
			  struct cr_err *err)
{
	unsigned long ms = (unsigned long)(us / 1000);

	err->pid = c->st.pid;
	if (!c->score)
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
				  "cgroup %s did not freeze within %lu ms", cg->path, ms);
	return cr_err_set(
	    err, CR_ERR_KERNEL, EAGAIN,
	    "cgroup %s did not freeze within %lu ms: task %d (%s) would not (state %c, in %s)",
	    cg->path, ms, c->st.pid, c->st.comm, c->st.state,
	    c->wchan[0] && strcmp(c->wchan, "0") ? c->wchan : "user code");
}

/* A task that would freeze if only it got a CPU gets more time: to give up and freeze again later
 * would cost the others more than to wait. */
static int freeze_wait(struct cgroup *cg, unsigned int timeout_ms, struct cr_err *err)
{
	uint64_t start = now_us();
	struct culprit c;

	for (int i = 0; i < 4; i++) {
		int r = cg->ops->freeze_wait(cg, now_us() + timeout_ms * 1000ull, err);

		if (r != -EAGAIN)
			return r;
		find_culprit(cg, &c);
		if (c.st.state != 'R')
			break;
	}
	return freeze_timeout(cg, &c, now_us() - start, err);
}

int cgroup_freeze(struct cgroup *cg, unsigned int timeout_ms, struct cr_err *err)
{
	struct cgroup_state before;
	struct cr_err undo;
	int r = cgroup_get_state(cg, &before, err);

	if (r == 0)
		r = refuse_own(cg, err);
	if (r == 0)
		r = write_freeze(cg, cg->ops->freeze_text, err);
	if (r < 0)
		return r;
	r = freeze_wait(cg, timeout_ms, err);
	if (r == 0)
		return 0;
	if (!before.self_frozen && write_freeze(cg, cg->ops->thaw_text, &undo) < 0)
		return cr_err_ctx(err, "cgroup %s could not be thawed again (%s)", cg->path,
				  undo.msg);
	return r;
}

/* ---- whose, and making ---- */

/* "N:controllers:path"; v2 is "0::path", cgroups(7) */
static char *line_path(char *line, enum cgroup_version version)
{
	char *controllers = strchr(line, ':'),
	     *path = controllers ? strchr(controllers + 1, ':') : NULL;

	if (!path)
		return NULL;
	*controllers++ = '\0';
	*path++ = '\0';
	if (version == CGROUP_V2)
		return !strcmp(line, "0") && !*controllers ? path : NULL;
	for (char *save, *c = strtok_r(controllers, ",", &save); c;
	     c = strtok_r(NULL, ",", &save)) {
		if (!strcmp(c, "freezer"))
			return path;
	}
	return NULL;
}

int cgroup_of_pid(pid_t pid, enum cgroup_version version, char **ret, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	char *save;
	ssize_t n = proc_read(pid, "cgroup", &text, err);

	if (n < 0)
		return (int)n;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		const char *path = line_path(line, version);

		if (!path)
			continue;
		*ret = strdup(path);
		return *ret ? 0 : cr_err_oom(err);
	}
	return cr_err_set(err, CR_ERR_KERNEL, ENOENT, "no %s hierarchy",
			  version == CGROUP_V2 ? "cgroup v2" : "cgroup v1 freezer");
}

int cgroup_create_child(struct cgroup **ret, const struct cgroup *parent, const char *name,
			struct cr_err *err)
{
	_cleanup_(cgroup_location_done) struct cgroup_location l = {.version =
									parent->ops->version};

	if (!*name || strchr(name, '/') || name[0] == '.')
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "cgroup name \"%s\" is not one component", name);
	if (asprintf(&l.path, "%s/%s", strcmp(parent->path, "/") ? parent->path : "", name) < 0 ||
	    asprintf(&l.fs_path, "%s/%s", parent->fs_path, name) < 0)
		return cr_err_oom(err);
	if (mkdirat(parent->dir, name, 0755))
		return cr_err_sys(err, "making cgroup %s", l.fs_path);
	int r = open_location(ret, &l, err);
	if (r < 0)
		unlinkat(parent->dir, name, AT_REMOVEDIR);
	return r;
}

int cgroup_move_pid(struct cgroup *cg, pid_t pid, struct cr_err *err)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", pid);
	return cgroup_write_file(cg, "cgroup.procs", text, err);
}

int cgroup_remove(struct cgroup *cg, struct cr_err *err)
{
	uint64_t deadline = now_us() + 1000000;

	/* the last task is out of it only some time after its parent has reaped it */
	while (rmdir(cg->fs_path)) {
		if (errno != EBUSY || now_us() > deadline)
			return cr_err_sys(err, "removing cgroup %s", cg->fs_path);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	return 0;
}
