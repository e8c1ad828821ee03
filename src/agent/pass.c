#include "agent/pass.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static int address(struct sockaddr_un *sa, const char *path, struct cr_err *err)
{
	*sa = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(sa->sun_path))
		return cr_err_set(err, CR_ERR_INPUT, ENAMETOOLONG, "path too long for a socket: %s",
				  path);
	strcpy(sa->sun_path, path);
	return 0;
}

int pass_listen(const char *path, struct cr_err *err)
{
	struct sockaddr_un sa;
	int r = address(&sa, path, err);

	if (r)
		return r;
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, 8))
		return cr_err_sys(err, "listening on %s", path);
	return take_fd(&fd);
}

int pass_send(const char *path, int fd, const struct mig_token *token, struct cr_err *err)
{
	struct sockaddr_un sa;
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)token->b, sizeof(token->b)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	int r = address(&sa, path, err);

	if (r)
		return r;
	_cleanup_fd_ int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (s < 0 || connect(s, (struct sockaddr *)&sa, sizeof(sa)))
		return cr_err_sys(err, "no process has this migration");
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(s, &m, MSG_NOSIGNAL) < 0 ? cr_err_sys(err, "handing a connection on") : 0;
}

struct link *pass_accept(int listener, const struct mig_token *want, struct cr_err *err)
{
	struct mig_token token = {0};
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {token.b, sizeof(token.b)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	_cleanup_fd_ int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	struct link *l = NULL;
	int fd = -1;

	ssize_t n = s < 0 ? -1 : recvmsg(s, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	if (fd < 0 || n != (ssize_t)sizeof(token.b)) {
		close_fdp(&fd);
		cr_err_set(err, CR_ERR_PEER, EPROTO, "a connection got lost on its way");
		return NULL;
	}
	if (!mig_token_equal(&token, want)) {
		close_fdp(&fd);
		cr_err_set(err, CR_ERR_PEER, EACCES, "a peer came with a wrong token");
		return NULL;
	}
	return link_new(&l, fd, fd, err) ? NULL : l;
}
