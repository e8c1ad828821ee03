#include "kernel/cgroup_ops.h"

#include <string.h>
#include "base/clock.h"

static int v1_frozen(const struct cgroup *cg, bool *ret, struct cr_err *err)
{
	char buf[32];
	int r = cgroup_read_file(cg, "freezer.state", buf, sizeof(buf), err);

	if (r == 0)
		*ret = !strncmp(buf, "FROZEN", 6);
	return r;
}

/* FREEZING becomes FROZEN only when somebody reads the state: there is no event to wait for. */
static int v1_freeze_wait(const struct cgroup *cg, uint64_t deadline_us, struct cr_err *err)
{
	long wait_us = 20;

	for (int i = 1;; i++) {
		bool frozen = false;
		int r = v1_frozen(cg, &frozen, err);

		if (r < 0 || frozen)
			return r;
		if (now_us() >= deadline_us)
			return -EAGAIN;
		nanosleep(&(struct timespec){.tv_nsec = wait_us * 1000}, NULL);
		wait_us = wait_us < 5000 ? wait_us * 2 : 10000;
		/* a task that was forked, or that swallowed the wake-up: tell all of them again */
		if (i % 4 == 0) {
			r = cgroup_write_file(cg, "freezer.state", "FROZEN", err);
			if (r < 0)
				return r;
		}
	}
}

static bool v1_flag_at(int dir, const char *file)
{
	char buf[16];

	return cgroup_read_at(dir, file, buf, sizeof(buf)) > 0 && buf[0] == '1';
}

static bool v1_told_to_freeze(int dir)
{
	return v1_flag_at(dir, "freezer.self_freezing");
}

static int v1_get_state(const struct cgroup *cg, struct cgroup_state *ret, struct cr_err *err)
{
	int r = v1_frozen(cg, &ret->frozen, err);

	if (r < 0)
		return r;
	ret->self_frozen = v1_told_to_freeze(cg->dir);
	ret->ancestor_frozen = v1_flag_at(cg->dir, "freezer.parent_freezing");
	return 0;
}

/* Frozen tasks show as uninterruptible, in __refrigerator or, since 6.1, in the wait that they were
 * frozen in: a D in a wait that is none of a freezable kind cannot be told from one. */
static int v1_not_frozen(char state, const char *wchan)
{
	if (strchr("TtZX", state))
		return 0;
	if (state != 'D')
		return 2;
	return strcmp(wchan, "__refrigerator") != 0;
}

const struct cgroup_ops cgroup_v1_ops = {
    .version = CGROUP_V1,
    .freeze_file = "freezer.state",
    .freeze_text = "FROZEN",
    .thaw_text = "THAWED",
    .threads_file = "tasks",
    .freeze_wait = v1_freeze_wait,
    .get_state = v1_get_state,
    .told_to_freeze = v1_told_to_freeze,
    .not_frozen = v1_not_frozen,
};
