/* Control groups: freeze, list, find, make. One interface for the v1 freezer and for v2
 * (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst "cgroup.freeze", 5.2).
 *
 * A path is "the path inside the hierarchy" as /proc/PID/cgroup shows it ("/web"). Pids are those
 * of our own pid namespace. Thawing is up to the caller: closing a cgroup changes nothing. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>
#include "base/err.h"

struct cgroup;

enum cgroup_version { CGROUP_ANY = 0, CGROUP_V1 = 1, CGROUP_V2 = 2 };

/* path: inside the hierarchy ("/web"; v2 is looked at first, then the v1 freezer, and the one with
 * tasks in it wins), or a directory of a mounted hierarchy ("/sys/fs/cgroup/freezer/web"). version
 * restricts it. Errors: CR_ERR_INPUT when there is no such cgroup. */
int cgroup_open(struct cgroup **ret, enum cgroup_version version, const char *path,
		struct cr_err *err) must_check;
void cgroup_close(struct cgroup *cg); /* takes NULL */
static inline void cgroup_closep(struct cgroup **cg)
{
	cgroup_close(*cg);
}

enum cgroup_version cgroup_version(const struct cgroup *cg);
const char *cgroup_path(const struct cgroup *cg);    /* inside the hierarchy */
const char *cgroup_fs_path(const struct cgroup *cg); /* the directory */
bool cgroup_is_root(const struct cgroup *cg);        /* cannot be frozen */

struct cgroup_state {
	bool self_frozen;     /* it was told to freeze itself */
	bool ancestor_frozen; /* a cgroup above it was: thawing this one will not let it run */
	bool frozen;          /* every task in it has stopped by now */
};
int cgroup_get_state(struct cgroup *cg, struct cgroup_state *ret, struct cr_err *err) must_check;
/* *ret: whether a cgroup below was told to freeze by itself; its path goes to name (may be cut). */
int cgroup_frozen_below(struct cgroup *cg, bool *ret, char *name, size_t name_len,
			struct cr_err *err) must_check;

/* Freeze and wait until every task has stopped. -EAGAIN: not within timeout_ms; the message and
 * err->pid name the task that would not, and the cgroup is thawed again unless it was told to
 * freeze before. */
int cgroup_freeze(struct cgroup *cg, unsigned int timeout_ms, struct cr_err *err) must_check;
/* Tell it to freeze and do not wait: for giving tasks back that are about to be let go. */
int cgroup_freeze_start(struct cgroup *cg, struct cr_err *err) must_check;
/* Undo the above; does not wait until the tasks run. */
int cgroup_thaw(struct cgroup *cg, struct cr_err *err) must_check;

/* Processes or threads in it and below it, ascending, each once, malloc'd (never NULL). Returns the
 * count. A task that our pid namespace does not show is an error on v2; v1 does not tell. */
ssize_t cgroup_procs(struct cgroup *cg, pid_t **ret, struct cr_err *err) must_check;
ssize_t cgroup_threads(struct cgroup *cg, pid_t **ret, struct cr_err *err) must_check;

/* The path of pid's cgroup in that hierarchy, malloc'd. -ENOENT: there is no such hierarchy. */
int cgroup_of_pid(pid_t pid, enum cgroup_version version, char **ret,
		  struct cr_err *err) must_check;

/* A child named name (one component), made and opened. */
int cgroup_create_child(struct cgroup **ret, const struct cgroup *parent, const char *name,
			struct cr_err *err) must_check;
int cgroup_move_pid(struct cgroup *cg, pid_t pid, struct cr_err *err) must_check;
/* Remove the directory; waits up to a second for the last tasks to leave it. */
int cgroup_remove(struct cgroup *cg, struct cr_err *err) must_check;
