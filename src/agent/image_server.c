#include "agent/image_server.h"

#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "base/program.h"
#include "wire/link.h"

enum { LISTEN_FD = 3, TOKEN_FD = 4 }; /* sd_listen_fds(3): the first is 3 */

/* The token's digits, to be read once. */
static int token_pipe(const struct mig_token *token, struct cr_err *err)
{
	char hex[2 * sizeof(token->b) + 1];
	int p[2];

	for (size_t i = 0; i < sizeof(token->b); i++)
		snprintf(hex + 2 * i, 3, "%02x", token->b[i]);
	if (pipe2(p, O_CLOEXEC))
		return cr_err_sys(err, "pipe");
	ssize_t n = write(p[1], hex, sizeof(hex) - 1);
	explicit_bzero(hex, sizeof(hex));
	close(p[1]);
	if (n == sizeof(hex) - 1)
		return p[0];
	close(p[0]);
	return cr_err_sys(err, "pipe");
}

static void become(const char *program, const char *dir, int listen, int token, pid_t parent)
{
	char pid[16];

	/* both out of the way of the numbers that they are to have */
	listen = fcntl(listen, F_DUPFD, 10);
	token = fcntl(token, F_DUPFD, 10);
	if (listen < 0 || token < 0 || dup2(listen, LISTEN_FD) < 0 || dup2(token, TOKEN_FD) < 0)
		_exit(127);
	close(listen);
	close(token);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(127);
	signal(SIGINT, SIG_IGN);
	snprintf(pid, sizeof(pid), "%d", getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "1", 1);
	execl(program, program, "--dir", dir, "--token-file", "/dev/fd/4", (char *)NULL);
	_exit(127);
}

int image_server_start(struct image_server *s, const char *path, const struct mig_token *token,
		       struct cr_err *err)
{
	char program[600], *copy_dir = strdup(path), *copy_name = strdup(path);
	_cleanup_free_ char *free_dir = copy_dir, *free_name = copy_name;

	if (!copy_dir || !copy_name)
		return cr_err_oom(err);
	snprintf(s->name, sizeof(s->name), "%s", basename(copy_name));
	const char *dir = dirname(copy_dir);
	int r = program_beside("page-server", program, sizeof(program), err);
	if (r)
		return r;
	_cleanup_fd_ int listen = link_listen("127.0.0.1:0", err);
	if (listen < 0)
		return listen;
	r = link_listen_address(listen, s->address, err);
	if (r)
		return r;
	_cleanup_fd_ int fd = token_pipe(token, err);
	if (fd < 0)
		return fd;
	pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		return cr_err_sys(err, "fork");
	if (!pid)
		become(program, dir, listen, fd, parent);
	s->pid = pid;
	return 0;
}

void image_server_stop(struct image_server *s)
{
	if (s->pid <= 0)
		return;
	kill(s->pid, SIGTERM);
	while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
		;
	s->pid = 0;
}
