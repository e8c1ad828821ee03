#include "source/serve_child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/program.h"

enum {
	SOCKET_FD = 3, /* its number there */
	READY_MS =
	    20000, /* it is there, or it ends, at once, but for a host that is at its limits */
};

extern char **environ;

/* ---- the process ---- */

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

int serve_child_start(struct serve_child *c, struct cr_err *err)
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
	c->told = false;
	return 0;
}

void serve_child_stop(struct serve_child *c)
{
	if (!c->pid)
		return;
	close_fdp(&c->socket);
	kill(c->pid, SIGKILL);
	while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
		;
	c->pid = 0;
}

/* ---- what it is told ---- */

static int wait_ready(const struct serve_child *c, struct pss_in *in, struct cr_err *err)
{
	struct pollfd p = {.fd = c->socket, .events = POLLIN};
	int n;

	do
		n = poll(&p, 1, READY_MS);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return cr_err_set(err, CR_ERR_IO, ETIMEDOUT, "the page-server does not get ready");
	int r = pss_recv(c->socket, in, err);
	pss_close(in);
	if (!r && in->m.type != PSS_READY)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO, "the page-server is not ready");
	return r;
}

static size_t at_most(size_t n, size_t most)
{
	return n < most ? n : most;
}

static int tell_tasks(const struct serve_child *c, const struct serve *sv, struct pss_in *buf,
		      struct cr_err *err)
{
	int r = 0;

	for (size_t at = 0; at < sv->n_pids && !r; at += PSS_TASKS_MAX) {
		struct pss_msg m = {.type = PSS_TASKS,
				    .ranges = buf->ranges,
				    .n = at_most(sv->n_pids - at, PSS_TASKS_MAX)};

		for (size_t i = 0; i < m.n; i++)
			buf->ranges[i] = (struct serve_range){.pid = sv->pids[at + i]};
		r = pss_send(c->socket, &m, sv->mems + at, m.n, err);
	}
	return r;
}

static int tell_files(const struct serve_child *c, const struct serve *sv, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < sv->n_files && !r; i++) {
		const struct serve_range id = {.pid = sv->files[i].id};
		const struct pss_msg m = {.type = PSS_TASKS, .ranges = &id, .n = 1};

		r = pss_send(c->socket, &m, &sv->files[i].fd, 1, err);
	}
	return r;
}

static int tell(const struct serve_child *c, const struct serve *sv, struct pss_in *buf,
		struct cr_err *err)
{
	struct pss_msg limit = {.type = PSS_LIMIT, .value = sv->max_bandwidth};
	int r = tell_tasks(c, sv, buf, err);

	if (!r)
		r = tell_files(c, sv, err);

	for (size_t at = 0; at < sv->n_recent && !r; at += PSS_RANGES_MAX) {
		struct pss_msg m = {.type = PSS_RECENT,
				    .ranges = sv->recent + at,
				    .n = at_most(sv->n_recent - at, PSS_RANGES_MAX)};

		r = pss_send(c->socket, &m, NULL, 0, err);
	}
	return r ? r : pss_send(c->socket, &limit, NULL, 0, err);
}

int serve_child_tell(struct serve_child *c, const struct serve *sv, struct cr_err *err)
{
	_cleanup_free_ struct pss_in *in = malloc(sizeof(*in));

	if (c->told)
		return 0;
	int r = in ? wait_ready(c, in, err) : cr_err_oom(err);
	if (!r)
		r = tell(c, sv, in, err);
	if (r)
		serve_child_stop(c);
	c->told = !r;
	return r;
}

/* ---- what it tells ---- */

static int hear(struct serve_child *c, struct serve *sv, struct pss_in *in, struct cr_err *err)
{
	for (;;) {
		int r = pss_recv(c->socket, in, err);

		pss_close(in);
		if (r)
			return r;
		if (in->m.type == PSS_ENDED)
			return 0;
		if (in->m.type != PSS_LEFT)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "page-server: unexpected");
		if (sv->progress)
			sv->progress(sv->arg, in->m.value);
	}
}

int serve_child_serve(struct serve_child *c, struct serve *sv, struct serve_links *links,
		      struct cr_err *err)
{
	const struct pss_msg m = {.type = PSS_SERVE};
	_cleanup_free_ struct pss_in *in = malloc(sizeof(*in));
	const struct msg_postcopy before = sv->result;
	int fds[1 + LAZY_BULK_MAX] = {links->urgent};

	memcpy(fds + 1, links->bulk, links->n_bulk * sizeof(int));
	int r = in ? pss_send(c->socket, &m, fds, 1 + links->n_bulk, err) : cr_err_oom(err);
	serve_links_close(links);
	if (!r)
		r = hear(c, sv, in, err);
	if (r) {
		serve_child_stop(c);
		return r;
	}
	sv->result = in->m.result;
	sv->result.asked_again += before.asked_again;
	sv->result.asked_clean += before.asked_clean;
	if (in->m.err.kind == CR_ERR_NONE)
		return 0;
	*err = in->m.err;
	/* it ends by itself after nonsense: nothing of it goes on */
	if (err->code == EPROTO)
		serve_child_stop(c);
	return -err->code;
}
