#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "kernel/background.h"

enum {
	/* a tenth of the time of a processor that one other wants (the weights of nice, sched(7))
	 */
	BACKGROUND_NICE = 10,
	FIRST_NICE = -10, /* ten times as much as others */
	NICE_MAX = 19,
	/* less than this part of a processor for so long: many want it, or much is waited for */
	LEAST_SHARE = 20,
	PATIENCE_US = 5 * 1000 * 1000,
};

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

void background_never(void)
{
	set_session(0, FIRST_NICE);
}

void background_enter(struct background *b)
{
	*b = (struct background){.on = true,
				 .nice = getpriority(PRIO_PROCESS, 0),
				 .session = own_session() == FIRST_NICE ? FIRST_NICE : 0,
				 .since_us = now_us(),
				 .cpu_us = clock_ns(CLOCK_THREAD_CPUTIME_ID) / 1000};
	int low = b->nice + BACKGROUND_NICE;

	(void)!setpriority(PRIO_PROCESS, 0, low < NICE_MAX ? low : NICE_MAX);
	set_session(b->session, BACKGROUND_NICE);
}

void background_check(struct background *b)
{
	uint64_t passed = b->on ? now_us() - b->since_us : 0;

	if (passed >= PATIENCE_US &&
	    (clock_ns(CLOCK_THREAD_CPUTIME_ID) / 1000 - b->cpu_us) * LEAST_SHARE < passed)
		background_leave(b);
}

void background_leave(struct background *b)
{
	if (!b->on)
		return;
	b->on = false;
	/* without the privilege to go back it stays */
	(void)!setpriority(PRIO_PROCESS, 0, b->nice);
	set_session(BACKGROUND_NICE, b->session);
}
