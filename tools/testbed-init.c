/* First process of a test host: makes the host's namespaces, then waits as pid 1 in them.
 *
 * `testbed-init switch` makes a network namespace only (the bridge lives there); `testbed-init host
 * NAME MONOTONIC BOOTTIME [KEEP…]` makes net, pid, mount, uts, ipc and time namespaces, the clocks
 * ahead by the seconds given (decimal), with a /proc, a /tmp and a /dev/shm of their own. A KEEP is
 * a directory below /tmp that stays visible in the new one. Prints the pid of the waiting process
 * as the caller sees it, once everything is in place. That process reaps, and leaves on SIGTERM:
 * with pid 1 goes everything in the host (pid_namespaces(7)). */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

struct host {
	const char *name;
	const char *monotonic,
	    *boottime; /* seconds ahead, with a decimal fraction of nine digits */
	char **keep;   /* NULL-terminated */
};

/* "12.000000345" as the "12 345" that timens_offsets wants. */
static int format_offset(char *buf, size_t len, const char *clock, const char *secs)
{
	char *end;
	long sec = strtol(secs, &end, 10), nsec = 0;

	if (*end == '.')
		nsec = strtol(end + 1, &end, 10);
	if (*end || nsec < 0 || nsec > 999999999)
		errx(2, "%s: not a number of seconds", secs);
	return snprintf(buf, len, "%s %ld %ld\n", clock, sec, nsec);
}

/* The offsets are those of the children's namespace, and fixed once the first child is in it
 * (time_namespaces(7), Linux 5.6). */
static void write_clock_offsets(const struct host *h)
{
	char line[80];
	int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "/proc/self/timens_offsets");
	if (write(fd, line, format_offset(line, sizeof(line), "monotonic", h->monotonic)) < 0 ||
	    write(fd, line, format_offset(line, sizeof(line), "boottime", h->boottime)) < 0)
		err(1, "setting the host's clocks");
	close(fd);
}

static void make_dirs(const char *path)
{
	char part[PATH_MAX];

	if (snprintf(part, sizeof(part), "%s/", path) >= (int)sizeof(part))
		errx(1, "%s: too long", path);
	for (char *p = strchr(part + 1, '/'); p; p = strchr(p + 1, '/')) {
		*p = '\0';
		if (mkdir(part, 0755) && errno != EEXIST)
			err(1, "%s", part);
		*p = '/';
	}
}

/* An empty /tmp in which the directories to keep are mounted again at their old places. Their
 * mounts must be cloned first: once /tmp is covered, no path leads there. */
static void mount_tmp(char **keep)
{
	int fds[8], n = 0;

	for (; keep[n]; n++) {
		if (n == 8)
			errx(2, "too many directories to keep");
		fds[n] = open_tree(AT_FDCWD, keep[n],
				   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
		if (fds[n] < 0)
			err(1, "%s", keep[n]);
	}
	if (mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"))
		err(1, "mounting /tmp");
	for (int i = 0; i < n; i++) {
		make_dirs(keep[i]);
		if (move_mount(fds[i], "", AT_FDCWD, keep[i], MOVE_MOUNT_F_EMPTY_PATH))
			err(1, "mounting %s", keep[i]);
		close(fds[i]);
	}
}

static void set_up_host(const struct host *h)
{
	if (sethostname(h->name, strlen(h->name)))
		err(1, "sethostname");
	/* Private before anything is mounted, or it would show on the machine itself. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		err(1, "making the mounts private");
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		err(1, "mounting /proc");
	mount_tmp(h->keep);
	if (mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"))
		err(1, "mounting /dev/shm");
	/* terminals of its own: /dev/ptmx makes them in the pts beside it */
	if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		  "newinstance,ptmxmode=0666,mode=0620,gid=5"))
		err(1, "mounting /dev/pts");
}

/* Signals stay blocked: a blocked signal is queued even for a pid 1 without a handler. */
static void reap_until_term(const sigset_t *set)
{
	for (;;) {
		int sig = sigwaitinfo(set, NULL);

		if (sig == SIGTERM)
			return;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

/* In the new namespaces. Errors still go to the caller's stderr; readiness is a byte in the pipe.
 */
static void run_init(const struct host *h, int ready)
{
	sigset_t set;
	int null;

	sigfillset(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	setsid();
	if (h)
		set_up_host(h);
	null = open("/dev/null", O_RDWR);
	if (chdir("/") || null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		err(1, "/dev/null");
	if (write(ready, "", 1) != 1)
		_exit(1);
	dup2(null, 2);
	close_range(3, ~0U, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	reap_until_term(&set);
	_exit(0);
}

static int start(const struct host *h)
{
	int flags = h ? CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC |
			    CLONE_NEWTIME
		      : CLONE_NEWNET;
	int ready[2];
	char byte;
	pid_t pid;

	if (unshare(flags))
		err(1, "unshare");
	if (h)
		write_clock_offsets(h);
	if (pipe2(ready, O_CLOEXEC))
		err(1, "pipe");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0)
		run_init(h, ready[1]);
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		return 1; /* the child has said why */
	printf("%d\n", pid);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "switch"))
		return start(NULL);
	if (argc >= 5 && !strcmp(argv[1], "host")) {
		struct host h = {
		    .name = argv[2],
		    .monotonic = argv[3],
		    .boottime = argv[4],
		    .keep = argv + 5,
		};

		return start(&h);
	}
	fprintf(stderr, "usage: testbed-init switch | host NAME MONOTONIC BOOTTIME [KEEP…]\n");
	return 2;
}
