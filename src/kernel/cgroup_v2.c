#include "kernel/cgroup_ops.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"

/* 1 when every task has stopped. */
static int events_frozen(int fd)
{
	char buf[128];
	ssize_t n = pread(fd, buf, sizeof(buf) - 1, 0);

	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return strstr(buf, "frozen 1") != NULL;
}

/* The kernel announces a change of cgroup.events by POLLPRI, but holds the second one within 10 ms
 * back (CGROUP_FILE_NOTIFY_MIN_INTV): so never wait long without looking again. */
static int v2_freeze_wait(const struct cgroup *cg, uint64_t deadline_us, struct cr_err *err)
{
	_cleanup_fd_ int fd = openat(cg->dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	long wait_us = 50;

	if (fd < 0)
		return cr_err_sys(err, "%s/cgroup.events", cg->fs_path);
	for (;;) {
		int r = events_frozen(fd);

		if (r < 0) {
			errno = -r;
			return cr_err_sys(err, "%s/cgroup.events", cg->fs_path);
		}
		if (r)
			return 0;
		if (now_us() >= deadline_us)
			return -EAGAIN;
		struct pollfd p = {.fd = fd, .events = POLLPRI};
		struct timespec ts = {.tv_nsec = wait_us * 1000};
		if (ppoll(&p, 1, &ts, NULL) < 0 && errno != EINTR)
			return cr_err_sys(err, "waiting for %s to freeze", cg->fs_path);
		wait_us = wait_us < 5000 ? wait_us * 2 : 10000;
	}
}

static bool v2_told_to_freeze(int dir)
{
	char buf[16];

	return cgroup_read_at(dir, "cgroup.freeze", buf, sizeof(buf)) > 0 && buf[0] == '1';
}

static bool ancestor_frozen(int dir)
{
	char path[300] = "..", buf[16];

	/* up to the root, which has no cgroup.freeze */
	for (int depth = 0; depth < 64; depth++) {
		char file[320];

		snprintf(file, sizeof(file), "%s/cgroup.freeze", path);
		if (cgroup_read_at(dir, file, buf, sizeof(buf)) <= 0)
			return false;
		if (buf[0] == '1')
			return true;
		strcat(path, "/..");
	}
	return false;
}

static int v2_get_state(const struct cgroup *cg, struct cgroup_state *ret, struct cr_err *err)
{
	_cleanup_fd_ int fd = openat(cg->dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	int r = fd < 0 ? -errno : events_frozen(fd);

	if (r < 0) {
		errno = -r;
		return cr_err_sys(err, "%s/cgroup.events", cg->fs_path);
	}
	ret->frozen = r;
	ret->self_frozen = v2_told_to_freeze(cg->dir);
	/* the second: a frozen ancestor that a container's mount does not show */
	ret->ancestor_frozen = ancestor_frozen(cg->dir) || (ret->frozen && !ret->self_frozen);
	return 0;
}

/* A frozen task sleeps interruptibly in the signal code (do_freezer_trap, inlined into get_signal).
 * A stopped or traced one counts as frozen, and so does a parent in vfork (wait_for_vfork_done, in
 * kernel_clone). */
static int v2_not_frozen(char state, const char *wchan)
{
	static const char *const frozen[] = {"get_signal", "do_freezer_trap", "kernel_clone",
					     "wait_for_vfork_done"};

	if (strchr("TtZX", state))
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(frozen); i++) {
		if (!strcmp(wchan, frozen[i]))
			return 0;
	}
	return state == 'D' || state == 'R' ? 2 : 1;
}

const struct cgroup_ops cgroup_v2_ops = {
    .version = CGROUP_V2,
    .freeze_file = "cgroup.freeze",
    .freeze_text = "1",
    .thaw_text = "0",
    .threads_file = "cgroup.threads",
    .freeze_wait = v2_freeze_wait,
    .get_state = v2_get_state,
    .told_to_freeze = v2_told_to_freeze,
    .not_frozen = v2_not_frozen,
};
