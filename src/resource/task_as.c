/* A system call in a shell for which it is somebody else. */
#include "resource/file_kind.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

/* A change of effective ids resets dumpable and the parent-death signal, prctl(2). */
static int parent_death_signal(struct rtask *rt, int *ret, struct cr_err *err)
{
	uint64_t va;
	int *signal = rtask_scratch(rt, sizeof(*signal), &va);

	if (!signal) {
		int r = rtask_run(rt, err);

		if (r)
			return r;
		rtask_scratch_reset(rt);
		signal = rtask_scratch(rt, sizeof(*signal), &va);
	}
	if (!signal)
		return cr_err_set(err, CR_ERR_BUG, E2BIG, "no scratch memory");
	rqueue(rt, "prctl", SYS_prctl, PR_GET_PDEATHSIG, va);
	int r = rtask_run(rt, err);
	*ret = *signal;
	return r;
}

int rtask_queue_as(struct rtask *rt, uint32_t uid, uint32_t gid, const char *what, long nr,
		   const uint64_t args[4], struct cr_err *err)
{
	bool other = uid != geteuid() || gid != getegid(); /* ours: the shell's */
	int signal = 0;

	if (other) {
		int r = parent_death_signal(rt, &signal, err);

		if (r)
			return r;
		rqueue(rt, "setresgid", SYS_setresgid, -1, gid, -1);
		rqueue(rt, "setresuid", SYS_setresuid, -1, uid, -1);
	}
	rqueue(rt, what, nr, args[0], args[1], args[2], args[3]);
	if (other) {
		rqueue(rt, "setresuid", SYS_setresuid, -1, geteuid(), -1);
		rqueue(rt, "setresgid", SYS_setresgid, -1, getegid(), -1);
		rqueue(rt, "prctl", SYS_prctl, PR_SET_PDEATHSIG, signal);
		rqueue(rt, "prctl", SYS_prctl, PR_SET_DUMPABLE, 1);
	}
	return 0;
}
