/* Inside of cgroup*.c: what the two hierarchies do differently. */
#pragma once
#include <stdint.h>
#include "kernel/cgroup.h"

struct cgroup {
	const struct cgroup_ops *ops;
	int dir;       /* O_PATH */
	char *path;    /* inside the hierarchy */
	char *fs_path; /* of the directory */
};

struct cgroup_ops {
	enum cgroup_version version;
	const char *freeze_file;             /* missing in the root */
	const char *freeze_text, *thaw_text; /* what is written to it */
	const char *threads_file;
	/* Wait until frozen, to the deadline (now_us). -EAGAIN without a message: too late. */
	int (*freeze_wait)(const struct cgroup *cg, uint64_t deadline_us, struct cr_err *err);
	int (*get_state)(const struct cgroup *cg, struct cgroup_state *ret, struct cr_err *err);
	/* Whether a directory of the hierarchy was told to freeze by itself; quiet. */
	bool (*told_to_freeze)(int dir);
	/* How surely a task with this state and wait channel is not frozen: 0 no, 1 perhaps, 2
	 * surely. */
	int (*not_frozen)(char state, const char *wchan);
};
extern const struct cgroup_ops cgroup_v1_ops, cgroup_v2_ops;

/* Small files of a cgroup directory. Return 0 or negative errno with *err filled. */
int cgroup_read_file(const struct cgroup *cg, const char *name, char *buf, size_t size,
		     struct cr_err *err) must_check;
int cgroup_write_file(const struct cgroup *cg, const char *name, const char *text,
		      struct cr_err *err) must_check;
/* The same for any directory, quiet: length or negative errno. buf is NUL-terminated. */
ssize_t cgroup_read_at(int dir, const char *name, char *buf, size_t size);

/* Where the hierarchies are mounted (cgroup_mounts.c). */
struct cgroup_location {
	enum cgroup_version version;
	char *path, *fs_path; /* malloc'd */
};
void cgroup_location_done(struct cgroup_location *l);
/* Where a path of the user's is, in that hierarchy; -ENOENT with an error when it is not. */
int cgroup_locate(enum cgroup_version version, const char *path, struct cgroup_location *ret,
		  struct cr_err *err) must_check;
/* path is itself a directory of a mounted hierarchy: 1 and *ret filled; 0: it is not. */
/* The directory of the cgroup that limits pid's CPU time, malloc'd. */
int cgroup_cpu_dir(pid_t pid, char **ret, bool *v2, struct cr_err *err) must_check;
int cgroup_locate_dir(const char *path, struct cgroup_location *ret, struct cr_err *err) must_check;
