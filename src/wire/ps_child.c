#include "wire/ps_child.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/program.h"

enum { SOCKET_FD = 3 /* its number there */ };

extern char **environ;

static int spawn(pid_t *ret, const char *program, int socket, struct cr_err *err)
{
	char *const argv[] = {(char *)program, "--tasks", "3", NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none;

	sigemptyset(&none);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setsigmask(&attr, &none);
	/* nothing of ours but where it says what goes wrong: stdin and stdout may be a link */
	int r = posix_spawn_file_actions_adddup2(&files, socket, SOCKET_FD);
	for (int fd = 0; fd < 2 && !r; fd++)
		r = posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
	if (!r)
		r = posix_spawn_file_actions_addclosefrom_np(&files, SOCKET_FD + 1);
	if (!r)
		r = posix_spawn(ret, program, &files, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return r ? cr_err_set(err, CR_ERR_KERNEL, r, "starting %s: %s", program, strerror(r)) : 0;
}

int ps_child_start(struct ps_child *c, struct cr_err *err)
{
	char program[600];
	int pair[2], r = 0;

	if (c->pid)
		return 0;
	if (c->program)
		snprintf(program, sizeof(program), "%s", c->program);
	else
		r = program_beside("page-server", program, sizeof(program), err);
	if (r)
		return r;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return cr_err_sys(err, "socketpair");
	r = spawn(&c->pid, program, pair[1], err);
	close(pair[1]);
	if (r) {
		close(pair[0]);
		c->pid = 0;
		return r;
	}
	c->socket = pair[0];
	return 0;
}

void ps_child_stop(struct ps_child *c)
{
	if (!c->pid)
		return;
	close_fdp(&c->socket);
	kill(c->pid, SIGKILL);
	while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
		;
	c->pid = 0;
}
