#include "wire/ps_control.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include "wire/ps_msg.h"

enum { TIMEOUT_S = 10 };

struct ps_client {
	int fd;
	bool broken; /* a call was not answered: answers and requests no longer match */
};

int ps_connect(struct ps_client **ret, const char *path, struct cr_err *err)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct timeval tv = {.tv_sec = TIMEOUT_S};

	if (strlen(path) >= sizeof(sa.sun_path))
		return cr_err_set(err, CR_ERR_INPUT, ENAMETOOLONG,
				  "page-server control socket %s: path is too long", path);
	memcpy(sa.sun_path, path, strlen(path));
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return cr_err_sys(err, "socket for the page-server");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
		return cr_err_sys(err, "socket timeouts");
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return cr_err_set(err, CR_ERR_IO, errno,
				  "connect to the page-server at unix:%s: %s; is it running?", path,
				  strerror(errno));
	struct ps_client *ps = calloc(1, sizeof(*ps));
	if (!ps)
		return cr_err_oom(err);
	ps->fd = take_fd(&fd);
	*ret = ps;
	return 0;
}

static int send_request(struct ps_client *ps, const struct ps_request *rq, int fd,
			struct cr_err *err)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = {0};
	uint8_t bytes[PS_REQUEST_BYTES];
	struct iovec iov = {.iov_base = bytes, .iov_len = sizeof(bytes)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	ps_request_encode(bytes, rq);
	if (fd >= 0) {
		mh.msg_control = ctl.buf;
		mh.msg_controllen = sizeof(ctl.buf);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	ssize_t n;
	do
		n = sendmsg(ps->fd, &mh, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return cr_err_set(err, CR_ERR_IO, errno, "request to the page-server: %s",
				  errno == EAGAIN ? "no room within 10 s" : strerror(errno));
	return 0;
}

static int receive_reply(struct ps_client *ps, uint8_t type, struct ps_reply *rp,
			 struct cr_err *err)
{
	uint8_t bytes[PS_REPLY_BYTES];
	ssize_t n;

	do
		n = recv(ps->fd, bytes, sizeof(bytes), 0);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return cr_err_set(err, CR_ERR_IO, ETIMEDOUT,
				  "no answer from the page-server for %d s", TIMEOUT_S);
	if (n <= 0)
		return cr_err_set(err, CR_ERR_IO, n ? errno : EPIPE, "the page-server is gone%s%s",
				  n ? ": " : "", n ? strerror(errno) : "");
	int r = ps_reply_decode(rp, bytes, (size_t)n, err);
	if (!r && rp->type != type)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO,
			       "page-server control: answer to something else");
	return r;
}

static int call(struct ps_client *ps, const struct ps_request *rq, int fd, struct ps_reply *rp,
		struct cr_err *err)
{
	*rp = (struct ps_reply){0};
	if (!ps) /* nobody to tell: whoever builds places the pages too */
		return 0;
	if (ps->broken)
		return cr_err_set(err, CR_ERR_IO, EPIPE,
				  "the connection to the page-server is broken");
	int r = send_request(ps, rq, fd, err);
	if (!r)
		r = receive_reply(ps, rq->type, rp, err);
	if (r) {
		ps->broken = true;
		return r;
	}
	if (rp->err.kind) {
		*err = rp->err;
		return cr_err_ctx(err, "page-server");
	}
	return 0;
}

int ps_session(struct ps_client *ps, const uint8_t id[PAGE_ID_BYTES],
	       const uint8_t token[PAGE_TOKEN_BYTES], struct ps_session_info *ret,
	       struct cr_err *err)
{
	struct ps_request rq = {.type = PS_SESSION};
	struct ps_reply rp;

	memcpy(rq.id, id, PAGE_ID_BYTES);
	memcpy(rq.token, token, PAGE_TOKEN_BYTES);
	int r = call(ps, &rq, -1, &rp, err);
	if (!r && ret)
		*ret = rp.info;
	return r;
}

int ps_target_process(struct ps_client *ps, uint32_t index, pid_t pid, uint64_t forbid_start,
		      uint64_t forbid_end, struct cr_err *err)
{
	struct ps_request rq = {
	    .type = PS_TARGET_PROCESS,
	    .index = index,
	    .pid = pid,
	    .forbid_start = forbid_start,
	    .forbid_end = forbid_end,
	};
	struct ps_reply rp;
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	_cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		err->pid = pid;
		return cr_err_sys(err, "open %s for the page-server", path);
	}
	return call(ps, &rq, fd, &rp, err);
}

int ps_target_uffd(struct ps_client *ps, uint32_t index, int uffd, struct cr_err *err)
{
	struct ps_request rq = {.type = PS_TARGET_UFFD, .index = index};
	struct ps_reply rp;

	return call(ps, &rq, uffd, &rp, err);
}

int ps_close_uffds(struct ps_client *ps, struct cr_err *err)
{
	struct ps_request rq = {.type = PS_CLOSE_UFFDS};
	struct ps_reply rp;

	return call(ps, &rq, -1, &rp, err);
}

static void raise_all(pid_t pid, int priority)
{
	const struct sched_param p = {.sched_priority = priority};
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	_cleanup_dir_ DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));)
		if (e->d_name[0] != '.' && sched_setscheduler(atoi(e->d_name), SCHED_FIFO, &p))
			break;
}

/* The page-server knows of it first: it is to come down whenever we go. */
int ps_hurry(struct ps_client *ps, int priority, struct cr_err *err)
{
	struct ps_request rq = {.type = PS_HURRY};
	struct ps_reply rp;
	struct ucred cred;
	socklen_t len = sizeof(cred);

	int r = call(ps, &rq, -1, &rp, err);
	if (!r && ps && !getsockopt(ps->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) && cred.pid > 0)
		raise_all(cred.pid, priority);
	return r;
}

int ps_target_object(struct ps_client *ps, uint32_t index, int fd, struct cr_err *err)
{
	struct ps_request rq = {.type = PS_TARGET_OBJECT, .index = index};
	struct ps_reply rp;

	return call(ps, &rq, fd, &rp, err);
}

int ps_target_del(struct ps_client *ps, uint32_t index, struct cr_err *err)
{
	struct ps_request rq = {.type = PS_TARGET_DEL, .index = index};
	struct ps_reply rp;

	return call(ps, &rq, -1, &rp, err);
}

int ps_stats(struct ps_client *ps, struct ps_stats *ret, struct cr_err *err)
{
	struct ps_request rq = {.type = PS_STATS};
	struct ps_reply rp;
	int r = call(ps, &rq, -1, &rp, err);

	if (!r)
		*ret = rp.stats;
	return r;
}

int ps_fd(const struct ps_client *ps)
{
	return ps->fd;
}

void ps_close(struct ps_client *ps)
{
	uint8_t bytes[PS_REPLY_BYTES];

	if (!ps)
		return;
	/* the page-server closes its end when the session is over */
	if (shutdown(ps->fd, SHUT_WR) == 0)
		while (recv(ps->fd, bytes, sizeof(bytes), 0) > 0)
			;
	close_fdp(&ps->fd);
	free(ps);
}
