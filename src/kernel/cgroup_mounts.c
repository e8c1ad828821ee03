/* From a path to a directory of a cgroup hierarchy, by /proc/self/mountinfo. */
#include "kernel/cgroup_ops.h"

#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include "base/vec.h"
#include "kernel/procfs.h"

struct cgroup_mount {
	enum cgroup_version version; /* CGROUP_ANY: a v1 hierarchy without the freezer */
	bool cpu;                    /* v1, with the cpu controller */
	char *root, *point;
};

struct mounts {
	VEC(struct cgroup_mount) list;
};

static void mounts_done(struct mounts *m)
{
	vec_foreach (it, &m->list) {
		free(it->root);
		free(it->point);
	}
	vec_done(&m->list);
}

void cgroup_location_done(struct cgroup_location *l)
{
	free(l->path);
	free(l->fs_path);
	memset(l, 0, sizeof(*l));
}

/* mountinfo writes space, tab, newline and backslash as \ooo. In place. */
static void undo_octal(char *s)
{
	char *w = s;

	for (; *s; s++) {
		unsigned int c;

		if (*s == '\\' && sscanf(s, "\\%3o", &c) == 1 && strspn(s + 1, "01234567") >= 3) {
			*w++ = (char)c;
			s += 3;
		} else {
			*w++ = *s;
		}
	}
	*w = '\0';
}

static bool has_option(const char *options, const char *name)
{
	size_t len = strlen(name);

	for (const char *p = options; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
		if (!strncmp(p, name, len) && (p[len] == ',' || !p[len]))
			return true;
	}
	return false;
}

/* "41 31 0:38 ROOT POINT rw,relatime [optional…] - TYPE SOURCE OPTIONS", proc_pid_mountinfo(5) */
static int take_mount(struct mounts *m, char *line, struct cr_err *err)
{
	char *tail = strstr(line, " - "), *save, *field[5] = {0};

	if (!tail)
		return 0;
	*tail = '\0';
	char *type = strtok_r(tail + 3, " ", &save);
	char *source = type ? strtok_r(NULL, " ", &save) : NULL;
	char *options = source ? strtok_r(NULL, " ", &save) : NULL;
	bool v2 = type && !strcmp(type, "cgroup2");
	if (!v2 && (!type || strcmp(type, "cgroup") != 0))
		return 0;
	for (int i = 0; i < 5; i++) {
		field[i] = strtok_r(i ? NULL : line, " ", &save);
		if (!field[i])
			return 0;
	}
	struct cgroup_mount *cm = vec_push(&m->list);
	if (!cm)
		return cr_err_oom(err);
	cm->version = v2                                          ? CGROUP_V2
		      : options && has_option(options, "freezer") ? CGROUP_V1
								  : CGROUP_ANY;
	cm->cpu = !v2 && options && has_option(options, "cpu");
	cm->root = strdup(field[3]);
	cm->point = strdup(field[4]);
	if (!cm->root || !cm->point)
		return cr_err_oom(err);
	undo_octal(cm->root);
	undo_octal(cm->point);
	return 0;
}

static int read_mounts(struct mounts *m, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	char *save;
	ssize_t n = proc_read(getpid(), "mountinfo", &text, err);

	if (n < 0)
		return (int)n;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		int r = take_mount(m, line, err);

		if (r < 0)
			return r;
	}
	return 0;
}

/* What follows prefix (a directory) in path, with its leading slash, or NULL when path is not below
 * it. */
static const char *below(const char *path, const char *prefix)
{
	size_t len = strlen(prefix);

	if (!strcmp(prefix, "/"))
		return path;
	if (strncmp(path, prefix, len) != 0 || (path[len] && path[len] != '/'))
		return NULL;
	return path[len] ? path + len : "/";
}

static int join(char **ret, const char *dir, const char *rel, struct cr_err *err)
{
	bool root = !strcmp(rel, "/");

	if (asprintf(ret, "%s%s", root || strcmp(dir, "/") ? dir : "", root ? "" : rel) < 0) {
		*ret = NULL;
		return cr_err_oom(err);
	}
	return 0;
}

static bool is_cgroup_dir(const char *path)
{
	struct statfs fs;

	return !statfs(path, &fs) &&
	       (fs.f_type == CGROUP_SUPER_MAGIC || fs.f_type == CGROUP2_SUPER_MAGIC) &&
	       !access(path, X_OK);
}

/* rel below the root of this mount: 1 when there is such a directory. */
static int try_mount(const struct cgroup_mount *m, const char *rel, struct cgroup_location *ret,
		     struct cr_err *err)
{
	_cleanup_free_ char *fs_path = NULL;
	int r = join(&fs_path, m->point, rel, err);

	if (r < 0)
		return r;
	if (!is_cgroup_dir(fs_path))
		return 0;
	r = join(&ret->path, m->root, rel, err);
	if (r < 0)
		return r;
	ret->version = m->version;
	ret->fs_path = take_ptr(fs_path);
	return 1;
}

int cgroup_locate(enum cgroup_version version, const char *path, struct cgroup_location *ret,
		  struct cr_err *err)
{
	_cleanup_(mounts_done) struct mounts mounts = {0};
	int r = read_mounts(&mounts, err);
	bool mounted = false;

	if (r < 0)
		return r;
	vec_foreach (m, &mounts.list) {
		if (m->version != version)
			continue;
		mounted = true;
		/* A mount may show only a part of the hierarchy (containers): the path is meant
		 * from the hierarchy's root, or else from what the mount shows as its root. */
		const char *rel = below(path, m->root);
		r = rel ? try_mount(m, rel, ret, err) : 0;
		if (r == 0 && rel != path)
			r = try_mount(m, path, ret, err);
		if (r)
			return r < 0 ? r : 0;
	}
	const char *name = version == CGROUP_V2 ? "cgroup v2" : "v1 freezer";
	return cr_err_set(err, CR_ERR_INPUT, ENOENT,
			  mounted ? "no cgroup %s in the %s hierarchy"
				  : "no cgroup %s: the %s hierarchy is not mounted",
			  path, name);
}

int cgroup_locate_dir(const char *path, struct cgroup_location *ret, struct cr_err *err)
{
	_cleanup_free_ char *real = realpath(path, NULL);
	_cleanup_(mounts_done) struct mounts mounts = {0};
	const struct cgroup_mount *best = NULL;

	if (!real || !is_cgroup_dir(real))
		return 0;
	int r = read_mounts(&mounts, err);
	if (r < 0)
		return r;
	vec_foreach (m, &mounts.list) {
		if (below(real, m->point) && (!best || strlen(m->point) >= strlen(best->point)))
			best = m;
	}
	if (!best)
		return 0;
	if (best->version == CGROUP_ANY)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "%s is a cgroup v1 directory without the freezer controller",
				  path);
	return try_mount(best, below(real, best->point), ret, err);
}

/* "4:cpu,cpuacct:/web", or "0::/web" for v2: cgroups(7). */
static bool is_of_cpu(char *line, bool v2, const char **path)
{
	char *list = strchr(line, ':'), *p = list ? strchr(list + 1, ':') : NULL;

	if (!p)
		return false;
	*p = '\0';
	*path = p + 1;
	return v2 ? !list[1] : has_option(list + 1, "cpu");
}

static int path_of_cpu(pid_t pid, bool v2, char **ret, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	char *save;
	ssize_t n = proc_read(pid, "cgroup", &text, err);

	if (n < 0)
		return (int)n;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		const char *path;

		if (!is_of_cpu(line, v2, &path))
			continue;
		*ret = strdup(path);
		return *ret ? 0 : cr_err_oom(err);
	}
	return 0;
}

int cgroup_cpu_dir(pid_t pid, char **ret, bool *v2, struct cr_err *err)
{
	_cleanup_(mounts_done) struct mounts mounts = {0};
	_cleanup_(cgroup_location_done) struct cgroup_location l = {0};
	_cleanup_free_ char *path = NULL;
	int r = read_mounts(&mounts, err);

	*v2 = true;
	vec_foreach (m, &mounts.list)
		*v2 &= !m->cpu;
	if (!r)
		r = path_of_cpu(pid, *v2, &path, err);
	if (r)
		return r;
	vec_foreach (m, &mounts.list) {
		const char *rel =
		    path && (*v2 ? m->version == CGROUP_V2 : m->cpu) ? below(path, m->root) : NULL;

		r = rel ? try_mount(m, rel, &l, err) : 0;
		if (r < 0)
			return r;
		if (r) {
			*ret = take_ptr(l.fs_path);
			return 0;
		}
	}
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOENT,
			  "no cgroup with the cpu controller for process %d", pid);
}
