#include "kernel/timens.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80 /* 5.6 */
#endif

#define NS_PER_S 1000000000ll

int timens_read(pid_t pid, struct timens_offsets *ret, struct cr_err *err)
{
	char path[64] = "/proc/self/timens_offsets", name[32];
	long long sec, nsec;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/timens_offsets", pid);
	*ret = (struct timens_offsets){0};
	_cleanup_file_ FILE *f = fopen(path, "re");
	if (!f)
		return cr_err_sys(err, "reading %s", path);
	while (fscanf(f, "%31s %lld %lld", name, &sec, &nsec) == 3) {
		if (!strcmp(name, "monotonic"))
			ret->monotonic = sec * NS_PER_S + nsec;
		if (!strcmp(name, "boottime"))
			ret->boottime = sec * NS_PER_S + nsec;
	}
	return 0;
}

static void split(int64_t ns, long long *sec, long long *rest)
{
	*sec = ns / NS_PER_S;
	*rest = ns % NS_PER_S;
	if (*rest < 0) {
		*rest += NS_PER_S;
		(*sec)--;
	}
}

int timens_enter(const struct timens_offsets *o, struct cr_err *err)
{
	char text[160];
	long long ms, mn, bs, bn;

	if (unshare(CLONE_NEWTIME))
		return cr_err_sys(err, "making a time namespace");
	split(o->monotonic, &ms, &mn);
	split(o->boottime, &bs, &bn);
	int n = snprintf(text, sizeof(text), "monotonic %lld %lld\nboottime %lld %lld\n", ms, mn,
			 bs, bn);
	_cleanup_fd_ int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		return cr_err_sys(err, "setting the clocks of a time namespace");
	return 0;
}
