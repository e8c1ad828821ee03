/* Programs that are run one after the other, without a pause, as a shell's loop does: each is
 * another process, for a moment half of one program and half of the next. By posix_spawn(3), which
 * is a vfork(2), and by fork(2).
 *
 * --fork: by fork alone. --answer N: one of them */
#include "workload.h"
#include <spawn.h>

extern char **environ;

static pid_t run(bool spawn, unsigned int n)
{
	char number[16];
	char *const argv[] = {"runs", "--answer", number, NULL};
	pid_t pid;

	snprintf(number, sizeof(number), "%u", n);
	if (spawn) {
		wl_must(!posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ),
			"posix_spawn");
		return pid;
	}
	pid = fork();
	wl_must(pid >= 0, "fork");
	if (!pid) {
		execv("/proc/self/exe", argv);
		_exit(255);
	}
	return pid;
}

int main(int argc, char **argv)
{
	bool only_fork = false;
	int status;

	if (argc == 3 && !strcmp(argv[1], "--answer"))
		return atoi(argv[2]);
	wl_init(argc, argv);
	only_fork = wl_flag("fork");
	wl_ready();
	for (unsigned int n = 0; !wl_stop(); n = (n + 1) % 200) {
		pid_t pid = run(n % 2 && !only_fork, n);

		while (waitpid(pid, &status, 0) < 0)
			wl_must(errno == EINTR, "waitpid");
		wl_check(WIFEXITED(status), "ended by a signal: status %x", status);
		wl_same("exit status", n, WEXITSTATUS(status));
		wl_tick();
	}
	wl_done();
}
