/* Files and cgroups of migrations that are over. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include "agent/agent.h"
#include "dest/lazy.h"
#include "kernel/cgroup.h"

/* ---- cgroups ---- */

static bool is_ours(const char *name)
{
	return !strncmp(name, "cr-", 3) && strspn(name + 3, "0123456789abcdef") == 16 && !name[19];
}

static void sweep_below(const char *path)
{
	_cleanup_dir_ DIR *d = opendir(path);
	struct dirent *e;

	/* somebody makes one just now; the next who sweeps finds what there is */
	if (d && flock(dirfd(d), LOCK_EX | LOCK_NB))
		return;
	while (d && (e = readdir(d))) {
		if (!is_ours(e->d_name))
			continue;
		_cleanup_fd_ int fd =
		    openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		/* fails, and does no harm, as long as there are tasks in it, cgroups(7) */
		if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB))
			unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
	}
}

static const enum cgroup_version versions[] = {CGROUP_V2, CGROUP_V1};
_Static_assert(ARRAY_SIZE(versions) == SWEEP_HIERARCHIES, "one lock for each");

static struct cgroup *own_cgroup(enum cgroup_version version)
{
	_cleanup_free_ char *path = NULL;
	struct cgroup *own = NULL;
	struct cr_err ignored = {0}; /* there need not be such a hierarchy */

	if (cgroup_of_pid(getpid(), version, &path, &ignored) ||
	    cgroup_open(&own, version, path, &ignored))
		return NULL;
	return own;
}

void sweep_cgroups(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(versions); i++) {
		_cleanup_(cgroup_closep) struct cgroup *own = own_cgroup(versions[i]);

		if (own)
			sweep_below(cgroup_fs_path(own));
	}
}

void sweep_keep_off(int ret[SWEEP_HIERARCHIES])
{
	for (size_t i = 0; i < ARRAY_SIZE(versions); i++) {
		_cleanup_(cgroup_closep) struct cgroup *own = own_cgroup(versions[i]);

		ret[i] = own ? open(cgroup_fs_path(own), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
		if (ret[i] >= 0 && flock(ret[i], LOCK_SH))
			close_fdp(&ret[i]);
	}
}

void sweep_again(int fds[SWEEP_HIERARCHIES])
{
	for (size_t i = 0; i < SWEEP_HIERARCHIES; i++) {
		if (fds[i] >= 0) /* a child may have it, too */
			flock(fds[i], LOCK_UN);
		close_fdp(&fds[i]);
	}
}

/* ---- files ---- */

void sweep_locks(const struct agent_config *cfg)
{
	_cleanup_dir_ DIR *d = opendir(cfg->state_dir);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		char path[800], journal[800];
		size_t n = strlen(e->d_name);

		if (n < 6 || strcmp(e->d_name + n - 5, ".lock"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", cfg->state_dir, e->d_name);
		snprintf(journal, sizeof(journal), "%s/%.*s", cfg->state_dir, (int)(n - 5),
			 e->d_name);
		_cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB) && access(journal, F_OK))
			unlink(path);
	}
}

void tidy_up(const struct agent_config *cfg, const struct journal *j)
{
	char path[512];

	if (!strcmp(j->role, "source"))
		return;
	dest_socket_path(cfg, j->id, path, sizeof(path));
	unlink(path);
	if (j->state == JOURNAL_DONE) /* what became of its pages may be asked for */
		return;
	lazy_stats_path(path, sizeof(path), cfg->state_dir, j->id);
	unlink(path);
}

static void remove_with_files(const char *dir)
{
	_cleanup_dir_ DIR *d = opendir(dir);
	struct dirent *e;

	while (d && (e = readdir(d)))
		unlinkat(dirfd(d), e->d_name, 0);
	rmdir(dir);
}

void remove_rename_dirs(const struct journal *j)
{
	vec_foreach (m, &j->renames) {
		_cleanup_free_ char *dir = strdup(m->from);
		char *slash = dir ? strrchr(dir, '/') : NULL;

		if (!slash)
			continue;
		*slash = 0;
		const char *name = strrchr(dir, '/');
		name = name ? name + 1 : dir;
		if (!strncmp(name, ".cr-", 4) && strlen(name) == strlen(".cr-XXXXXX"))
			remove_with_files(dir);
	}
}
