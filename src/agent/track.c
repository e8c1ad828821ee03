#include "agent/track.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <xxhash.h>
#include "base/clock.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/version.h"

enum {
	END_TIMEOUT_MS = 10000,
	REQUEST_TIMEOUT_MS = 5000,
	LOOK_MS = 1000, /* whether any of the tasks still lives */
	IDLE_MAX_S = 24 * 3600,
};

void track_name(char *buf, size_t n, const struct msg_migrate *rq)
{
	if (rq->pid)
		snprintf(buf, n, "track-%d", rq->pid);
	else
		snprintf(buf, n, "track-%016llx",
			 (unsigned long long)XXH3_64bits(rq->cgroup, strlen(rq->cgroup)));
}

/* By the directory's descriptor: a path may be longer than a socket's name can be, unix(7). */
static int socket_address(int dir, const char *name, struct sockaddr_un *a)
{
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	int n = snprintf(a->sun_path, sizeof(a->sun_path), "/proc/self/fd/%d/%s", dir, name);
	return n < (int)sizeof(a->sun_path) ? 0 : -ENAMETOOLONG;
}

static int open_dir(const char *path)
{
	return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* ---- the command's side ---- */

static int send_request(int fd, const struct track_request *rq, int link, int life)
{
	union {
		struct cmsghdr align;
		char b[CMSG_SPACE(2 * sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)rq, sizeof(*rq)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.b,
			    .msg_controllen = sizeof(control.b)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
	const int fds[2] = {link, life};

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(c), fds, sizeof(fds));
	return sendmsg(fd, &mh, MSG_NOSIGNAL) == (ssize_t)sizeof(*rq) ? 0 : -errno;
}

pid_t track_ask(const char *state_dir, const char *name, const struct track_request *rq, int link,
		int life)
{
	_cleanup_fd_ int dir = open_dir(state_dir);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un a;
	struct ucred who;
	socklen_t n = sizeof(who);

	if (dir < 0 || fd < 0 || socket_address(dir, name, &a) ||
	    connect(fd, (struct sockaddr *)&a, sizeof(a)) ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n))
		return 0;
	return send_request(fd, rq, link, life) ? 0 : who.pid;
}

void track_wait_end(pid_t pid)
{
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (fd >= 0 && poll(&p, 1, END_TIMEOUT_MS) == 0)
		log_warn("process %d, which tracks the tasks, does not end", pid);
}

/* ---- the engine's side ---- */

struct tracking {
	const struct agent_config *cfg;
	struct source s;
	struct source_env env;
	struct source_image image;
	struct track_request rq;
	struct msg migrate; /* of the request under way, unless it is the first */
	struct link *client;
	int dir, listener;
	char name[40];
	bool detached;
};

static int listen_here(struct tracking *t, struct cr_err *err)
{
	struct sockaddr_un a;

	t->dir = open_dir(t->cfg->state_dir);
	if (t->dir < 0 || socket_address(t->dir, t->name, &a))
		return cr_err_sys(err, "%s", t->cfg->state_dir);
	t->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	unlinkat(t->dir, t->name, 0);
	if (t->listener < 0 || bind(t->listener, (struct sockaddr *)&a, sizeof(a)) ||
	    fchmodat(t->dir, t->name, 0600, 0) || listen(t->listener, 8))
		return cr_err_sys(err, "tracking on: socket %s in %s", t->name, t->cfg->state_dir);
	return 0;
}

/* Whoever called gets back his terminal, and the end of his pipes. */
static void detach(struct tracking *t)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int i = 0; i < 3 && null >= 0; i++)
		dup2(null, i);
	close_fdp(&null);
	if (chdir("/"))
		log_debug("chdir: %s", strerror(errno));
	t->detached = true;
}

static bool take_request(struct tracking *t, int fd)
{
	union {
		struct cmsghdr align;
		char b[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct track_request rq;
	struct iovec iov = {&rq, sizeof(rq)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.b,
			    .msg_controllen = sizeof(control.b)};
	const struct timeval patience = {.tv_sec = REQUEST_TIMEOUT_MS / 1000};
	struct cr_err err = {0};
	int fds[2];

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	ssize_t n = recvmsg(fd, &mh, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&mh) : NULL;
	if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(fds)))
		return false;
	memcpy(fds, CMSG_DATA(c), sizeof(fds));
	t->env.life_fd = fds[1];
	if (link_new(&t->client, fds[0], fds[0], &err))
		return false;
	if (n != (ssize_t)sizeof(rq) || memcmp(rq.version, t->rq.version, sizeof(rq.version)) ||
	    memcmp(rq.key, t->rq.key, sizeof(rq.key)))
		return false;
	t->rq = rq;
	return !link_recv(t->client, REQUEST_TIMEOUT_MS, &t->migrate, &err) &&
	       t->migrate.type == MSG_MIGRATE;
}

/* False: this is the end. */
static bool wait_next(struct tracking *t)
{
	uint64_t deadline = now_us() + IDLE_MAX_S * 1000000ull;
	struct pollfd p = {.fd = t->listener, .events = POLLIN};

	signal(SIGTERM, SIG_DFL);
	while (poll(&p, 1, LOOK_MS) <= 0)
		if (source_all_ended(&t->s) || now_us() > deadline)
			return false;
	signal(SIGTERM, SIG_IGN);
	_cleanup_fd_ int fd = accept4(t->listener, NULL, NULL, SOCK_CLOEXEC);
	return fd >= 0 && take_request(t, fd);
}

static void set_image(struct tracking *t)
{
	t->image = (struct source_image){
	    .name = t->rq.name, .pre_dump = t->rq.pre_dump, .leave_stopped = t->rq.leave_stopped};
}

/* One request. True: to be tracked on. */
static bool serve_one(struct tracking *t)
{
	struct msg m = msg_of(MSG_DONE);
	struct cr_err err = {0};

	work_source_run(t->cfg, &t->s);
	bool on = t->rq.track && t->s.done.outcome == MSG_OUTCOME_REHEARSED;
	if (on && t->listener < 0 && listen_here(t, &err)) {
		source_event(&t->s, "warning", err.msg);
		on = false;
	}
	if (on) /* before it is told: the next one may come at once */
		source_rest(&t->s);
	m.done = t->s.done;
	if (link_send(t->client, &m, &err))
		log_debug("%s", err.msg);
	link_free(t->client);
	t->client = NULL;
	close_fdp(&t->env.life_fd);
	msg_free(&t->migrate);
	return on;
}

void track_engine(const struct agent_config *cfg, struct link *client, const struct msg_migrate *rq,
		  const struct track_request *first, int life_fd)
{
	struct tracking *t = calloc(1, sizeof(*t));

	if (!t)
		_exit(1);
	*t = (struct tracking){
	    .cfg = cfg,
	    .rq = *first,
	    .client = client,
	    .dir = -1,
	    .listener = -1,
	    .env = {.host = cfg->host, .state_dir = cfg->state_dir, .life_fd = life_fd}};
	track_name(t->name, sizeof(t->name), rq);
	heap_keep();
	set_image(t);
	source_init(&t->s, &t->env, rq, client);
	t->s.image = &t->image;
	while (serve_one(t)) {
		if (!t->detached)
			detach(t);
		if (!wait_next(t))
			break;
		set_image(t);
		source_again(&t->s, &t->migrate.migrate, t->client);
	}
	if (t->listener >= 0)
		unlinkat(t->dir, t->name, 0);
	/* who waits for an answer sees the end of his link only once the tasks are released */
	source_done(&t->s);
	sweep_cgroups();
	link_free(t->client);
}
