#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "kernel/background.h"
#include "kernel/sched_attr.h"

enum {
	/* a tenth of the time of a processor that one other wants (the weights of nice, sched(7))
	 */
	LESS_NICE = 10,
	FIRST_NICE = -10, /* ten times as much as others */
	NICE_MAX = 19,
	TURN_NS = 100 * 1000, /* the kernel's least */
	/* less than this part of a processor for so long: many want it, or much is waited for */
	LEAST_SHARE = 40,
	IDLE_PATIENCE_US = 2 * 1000 * 1000,
	LESS_PATIENCE_US = 5 * 1000 * 1000,
};

static _Thread_local struct background *mine; /* the thread's, if it gives way */

static int session_nice(int fd)
{
	char text[64];
	int nice = 0;
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return sscanf(text, "/autogroup-%*u nice %d", &nice) == 1 ? nice : 0;
}

/* From one value to another; what is neither is somebody else's. Absent where sessions share
 * nothing. */
static void set_session(int from, int to)
{
	_cleanup_fd_ int fd = -1;

	if (from == to || getsid(0) != getpid())
		return;
	fd = open("/proc/self/autogroup", O_RDWR | O_CLOEXEC);
	if (fd >= 0 && session_nice(fd) == from)
		(void)!dprintf(fd, "%d", to);
}

static int own_session(void)
{
	_cleanup_fd_ int fd = open("/proc/self/autogroup", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? 0 : session_nice(fd);
}

/* turn_ns 0: as the kernel chooses. Also back from SCHED_IDLE. Kernels before 6.12 ignore the
 * length of a turn. */
static void set_normal(int nice, uint64_t turn_ns)
{
	struct sched_attr_v0 a = {
	    .size = sizeof(a),
	    .policy = SCHED_OTHER,
	    .nice = nice,
	    .runtime_ns = turn_ns,
	};

	(void)!syscall(SYS_sched_setattr, 0, &a, 0);
}

static int nice_of(const struct background *b, enum background_depth depth)
{
	int low = b->nice + (depth == BACKGROUND_NONE ? 0 : LESS_NICE);

	return low < NICE_MAX ? low : NICE_MAX;
}

static int session_of(const struct background *b, enum background_depth depth)
{
	return depth == BACKGROUND_IDLE   ? NICE_MAX
	       : depth == BACKGROUND_LESS ? LESS_NICE
					  : b->session;
}

/* Without the privilege to go back it stays where it is. */
static void change(const struct background *b, enum background_depth from, enum background_depth to)
{
	const struct sched_param none = {0};
	bool idle = to == BACKGROUND_IDLE;

	set_normal(nice_of(b, to), idle ? TURN_NS : 0);
	if (idle)
		(void)!sched_setscheduler(0, SCHED_IDLE, &none);
	set_session(session_of(b, from), session_of(b, to));
}

static void go_to(struct background *b, enum background_depth depth)
{
	change(b, b->depth, depth);
	b->depth = depth;
	b->since_us = now_us();
	b->cpu_us = clock_ns(CLOCK_THREAD_CPUTIME_ID) / 1000;
	mine = depth == BACKGROUND_NONE ? NULL : b;
}

void background_never(void)
{
	set_session(0, FIRST_NICE);
}

void background_enter(struct background *b, enum background_depth depth)
{
	*b = (struct background){
	    .nice = getpriority(PRIO_PROCESS, 0),
	    .session = own_session() == FIRST_NICE ? FIRST_NICE : 0,
	};
	if (sched_getscheduler(0) == SCHED_OTHER)
		go_to(b, depth);
}

void background_check(struct background *b)
{
	uint64_t patience = b->depth == BACKGROUND_IDLE ? IDLE_PATIENCE_US : LESS_PATIENCE_US;
	uint64_t passed = b->depth ? now_us() - b->since_us : 0;

	if (passed < patience)
		return;
	uint64_t cpu_us = clock_ns(CLOCK_THREAD_CPUTIME_ID) / 1000;
	if ((cpu_us - b->cpu_us) * LEAST_SHARE < passed) {
		go_to(b, b->depth - 1);
		return;
	}
	b->since_us += passed;
	b->cpu_us = cpu_us;
}

void background_leave(struct background *b)
{
	if (b->depth)
		go_to(b, BACKGROUND_NONE);
}

void background_short_turns(void)
{
	if (sched_getscheduler(0) == SCHED_OTHER)
		set_normal(getpriority(PRIO_PROCESS, 0), TURN_NS);
}

void background_yield(void)
{
	if (mine)
		sched_yield();
}

void background_pause(void)
{
	if (mine)
		change(mine, mine->depth, BACKGROUND_NONE);
}

void background_resume(void)
{
	if (mine)
		change(mine, BACKGROUND_NONE, mine->depth);
}
