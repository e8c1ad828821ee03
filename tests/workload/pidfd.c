/* pidfds: of a child, of oneself, of a child that has exited; the child has one of its parent. */
#include "workload.h"

#include <poll.h>
#include <sys/wait.h>

static pid_t child, dead;
static int of_child, of_self, of_dead, answers;

static int pid_of(int fd)
{
	char path[64], text[400] = "", *at;
	int info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	wl_check(info >= 0 && read(info, text, sizeof(text) - 1) > 0, "fdinfo: %s",
		 strerror(errno));
	close(info);
	at = strstr(text, "\nPid:");
	return at ? atoi(at + 5) : -2;
}

static bool has_ended(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1;
}

static int open_pidfd(pid_t pid)
{
	int fd = syscall(SYS_pidfd_open, pid, 0);

	wl_must(fd >= 0, "pidfd_open");
	return fd;
}

static void child_main(int out)
{
	int of_parent = open_pidfd(getppid()), sig;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	wl_same("ready", 1, write(out, "r", 1));
	for (;;) {
		if (sigwait(&set, &sig))
			continue;
		wl_same("pid of the child's pidfd", getppid(), pid_of(of_parent));
		wl_check(!syscall(SYS_pidfd_send_signal, of_parent, 0, NULL, 0),
			 "the parent cannot be reached: %s", strerror(errno));
		wl_same("answer", 1, write(out, "a", 1));
	}
}

static void check_all(void)
{
	char c = 0;

	wl_same("pid of the child's", child, pid_of(of_child));
	wl_same("pid of one's own", getpid(), pid_of(of_self));
	wl_same("pid of the dead one's", dead, pid_of(of_dead));
	wl_check(!has_ended(of_child) && !has_ended(of_self), "a living process has ended");
	wl_check(has_ended(of_dead), "a dead process lives");
	wl_must(!syscall(SYS_pidfd_send_signal, of_child, SIGUSR1, NULL, 0), "pidfd_send_signal");
	wl_same("the child's answer", 1, read(answers, &c, 1));
}

int main(int argc, char **argv)
{
	siginfo_t si = {0};
	int out[2];
	char c;

	wl_init(argc, argv);
	wl_must(!pipe2(out, O_CLOEXEC), "pipe2");
	answers = out[0];
	child = fork();
	if (!child)
		child_main(out[1]);
	wl_same("ready", 1, read(answers, &c, 1));
	dead = fork();
	if (!dead)
		_exit(7);
	of_child = open_pidfd(child);
	of_self = open_pidfd(getpid());
	of_dead = open_pidfd(dead);
	wl_must(!waitid(P_PID, dead, &si, WEXITED | WNOWAIT), "waitid");
	check_all();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		check_all();
		wl_sleep_us(3000);
	}
	check_all();
	wl_must(!waitid(P_PIDFD, of_dead, &si, WEXITED), "waitid of the dead one");
	wl_same("its exit status", 7, si.si_status);
	wl_must(!syscall(SYS_pidfd_send_signal, of_child, SIGKILL, NULL, 0), "pidfd_send_signal");
	wl_must(!waitid(P_PIDFD, of_child, &si, WEXITED), "waitid");
	wl_same("the child's end", SIGKILL, si.si_status);
	wl_check(has_ended(of_child), "a dead process lives");
	wl_done();
}
