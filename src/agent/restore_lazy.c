#include "agent/restore_lazy.h"

#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "base/log.h"
#include "pageserver/lazy_image.h"
#include "wire/addr_resolve.h"
#include "wire/link.h"
#include "wire/token_file.h"

enum {
	CONNECT_MS = 5000,
	ANSWER_MS = 30000,
	LOOK_MS = 200,
	GRACE_US = 1000000, /* for the fetcher to take what it was handed */
	IN_MAX = LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX,
};

int lazy_source_init(struct lazy_source *ls, const struct image *im, const char *dir,
		     const char *address, const char *token_file, const char *host,
		     struct cr_err *err)
{
	char *path = realpath(dir, NULL);

	*ls = (struct lazy_source){.dir = path, .host = host, .id = im->migration};
	ls->urgent = ls->bulk = -1;
	if (!path)
		return cr_err_sys(err, "--dir %s", dir);
	ls->name = strrchr(path, '/') + 1;
	token_none(&ls->token);
	int r = token_file ? token_file_read(token_file, &ls->token, err) : 0;
	return r || !address ? r : addr_resolve(address, ls->address, err);
}

static void end_server(struct lazy_source *ls)
{
	if (ls->server > 0) {
		kill(ls->server, SIGKILL);
		waitpid(ls->server, NULL, 0);
	}
	ls->server = 0;
}

void lazy_source_done(struct lazy_source *ls)
{
	end_server(ls);
	close_fdp(&ls->urgent);
	close_fdp(&ls->bulk);
	vec_done(&ls->in);
	free((char *)ls->dir);
	ls->dir = NULL;
}

/* ---- the directory ---- */

/* It has nothing of ours but two sockets: what else is open would be kept alive by it. */
static void be_server(const struct lazy_source *ls, int urgent, int bulk)
{
	struct image *im = NULL;
	struct cr_err err = {0};
	int a = fcntl(urgent, F_DUPFD_CLOEXEC, 10), b = fcntl(bulk, F_DUPFD_CLOEXEC, 10);

	signal(SIGPIPE, SIG_IGN);
	if (a < 0 || b < 0 || dup2(a, 3) < 0 || dup2(b, 4) < 0 || close_range(5, ~0U, 0))
		_exit(1);
	int r = image_open(&im, ls->dir, &err);
	if (!r)
		r = lazy_image_serve(im, 3, 4, 0, &err);
	if (r)
		log_info("%s", err.msg);
	_exit(r ? 1 : 0);
}

static int start_server(struct lazy_source *ls, int *urgent, int *bulk, struct cr_err *err)
{
	int u[2], b[2];

	end_server(ls);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, u))
		return cr_err_sys(err, "socketpair");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b)) {
		close(u[0]);
		close(u[1]);
		return cr_err_sys(err, "socketpair");
	}
	pid_t pid = fork();
	if (!pid)
		be_server(ls, u[1], b[1]);
	close(u[1]);
	close(b[1]);
	*urgent = u[0];
	*bulk = b[0];
	ls->server = pid > 0 ? pid : 0;
	if (pid > 0)
		return 0;
	close_fdp(urgent);
	close_fdp(bulk);
	return cr_err_sys(err, "fork");
}

/* ---- the page-server ---- */

static int connect_one(const struct lazy_source *ls, enum msg_lazy_kind kind, uint64_t pair,
		       int *ret, struct cr_err *err)
{
	struct msg_hello hello = {.version = MSG_VERSION,
				  .role = MSG_ROLE_PEER,
				  .id = ls->id,
				  .token = ls->token,
				  .host = ls->host};
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_LAZY), reply;
	int r = link_connect(&l, ls->address, CONNECT_MS, err);

	if (!r)
		r = link_hello(l, &hello, ANSWER_MS, &reply, err);
	if (r)
		return cr_err_ctx(err, "page-server %s", ls->address);
	msg_free(&reply);
	m.lazy = (struct msg_lazy){kind, ls->name, pair};
	r = link_call(l, &m, MSG_OK, ANSWER_MS, &reply, err);
	if (r)
		return cr_err_ctx(err, "page-server %s", ls->address);
	msg_free(&reply);
	*ret = fcntl(link_fd(l), F_DUPFD_CLOEXEC, 3);
	return *ret < 0 ? cr_err_sys(err, "dup") : 0;
}

static int open_both(struct lazy_source *ls, int *urgent, int *bulk, struct cr_err *err)
{
	uint64_t pair;

	if (!*ls->address)
		return start_server(ls, urgent, bulk, err);
	if (getrandom(&pair, sizeof(pair), 0) != sizeof(pair))
		return cr_err_sys(err, "getrandom");
	int r = connect_one(ls, MSG_LAZY_URGENT, pair, urgent, err);
	if (!r)
		r = connect_one(ls, MSG_LAZY_BULK, pair, bulk, err);
	if (r)
		close_fdp(urgent);
	return r;
}

int lazy_source_feed(struct lazy_source *ls, struct lazy *l, struct cr_err *err)
{
	int urgent = -1, bulk = -1;
	int r = open_both(ls, &urgent, &bulk, err);

	if (r)
		return r;
	ls->given_us = now_us();
	lazy_connection(l, urgent, MSG_LAZY_URGENT);
	lazy_connection(l, bulk, MSG_LAZY_BULK);
	return 0;
}

/* ---- pages that cannot wait ---- */

static int send_frame(int fd, const struct lazy_frame *f, struct cr_err *err)
{
	uint8_t b[LAZY_HDR_BYTES];

	lazy_frame_encode(b, f); /* small, and the other side reads: it fits */
	return send(fd, b, sizeof(b), MSG_NOSIGNAL) == sizeof(b) ? 0
								 : cr_err_sys(err, "ask for pages");
}

static int receive_exactly(int fd, uint8_t *to, size_t n, struct cr_err *err)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	for (size_t at = 0; at < n;) {
		ssize_t k = recv(fd, to + at, n - at, MSG_DONTWAIT);

		if (k > 0) {
			at += (size_t)k;
			continue;
		}
		if (k == 0)
			return cr_err_set(err, CR_ERR_PEER, ECONNRESET,
					  "the page-server closed the connection");
		if (errno != EAGAIN && errno != EINTR)
			return cr_err_sys(err, "receive pages");
		if (poll(&p, 1, ANSWER_MS) == 0)
			return cr_err_set(err, CR_ERR_PEER, ETIMEDOUT,
					  "the page-server does not answer");
	}
	return 0;
}

static int receive_frame(struct lazy_source *ls, struct lazy_frame *f, struct cr_err *err)
{
	uint8_t head[LAZY_HDR_BYTES];
	int r = receive_exactly(ls->urgent, head, sizeof(head), err);

	if (!r)
		r = lazy_frame_decode(f, head, err);
	if (!r && f->payload > LAZY_PAYLOAD_MAX)
		r = cr_err_set(err, CR_ERR_PEER, EMSGSIZE, "a frame of %u bytes", f->payload);
	if (!r && vec_reserve_((void **)&ls->in.v, &ls->in.cap, f->payload, 1))
		r = cr_err_oom(err);
	return r ? r : receive_exactly(ls->urgent, ls->in.v, f->payload, err);
}

/* Nothing is missing, as far as this connection goes: nothing will be pushed. */
static int open_to_read(struct lazy_source *ls, struct cr_err *err)
{
	const struct lazy_frame none = {.type = LAZY_MISSING_END};
	struct lazy_frame f;
	int r = open_both(ls, &ls->urgent, &ls->bulk, err);

	if (!r)
		r = receive_frame(ls, &f, err);
	if (!r && f.type != LAZY_START)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO, "the page-server does not begin");
	return r ? r : send_frame(ls->urgent, &none, err);
}

int lazy_source_read(void *arg, pid_t pid, uint32_t target, uint64_t va, uint32_t n, uint8_t *buf,
		     struct cr_err *err)
{
	struct lazy_source *ls = arg;
	pid_t key = lazy_image_key(pid, target);
	const struct lazy_frame want = {.type = LAZY_WANT, .pid = key, .npages = n, .addr = va};
	int r = ls->urgent < 0 ? open_to_read(ls, err) : 0;

	if (!r)
		r = send_frame(ls->urgent, &want, err);
	for (uint32_t got = 0; got < n && !r;) {
		struct lazy_frame f;

		r = receive_frame(ls, &f, err);
		if (r)
			break;
		bool due = f.pid == key && f.addr == va + got * CR_PAGE_SIZE && f.npages <= n - got;
		uint8_t *to = buf + got * CR_PAGE_SIZE;

		if (due && f.type == LAZY_PAGES && lazy_digest(ls->in.v, f.payload) == f.digest)
			memcpy(to, ls->in.v, f.payload);
		else if (due && f.type == LAZY_ZEROS)
			memset(to, 0, f.npages * CR_PAGE_SIZE);
		else
			return cr_err_set(err, CR_ERR_PEER, EBADMSG,
					  "the page-server cannot give page %#llx of %d",
					  (unsigned long long)va, key);
		got += f.npages;
	}
	return r;
}

/* ---- while pages are missing ---- */

static void note_end(pid_t root, int *status, bool *ended)
{
	if (root > 0 && !*ended && waitpid(root, status, WNOHANG) == root)
		*ended = true;
}

int lazy_source_supervise(struct lazy_source *ls, struct lazy *l, const char *cgroup, pid_t root,
			  int *status, struct cr_err *err)
{
	bool ended = false;
	int r = 0;

	close_fdp(&ls->urgent);
	close_fdp(&ls->bulk);
	while (!r) {
		bool again = lazy_tie_more(l, cgroup);
		struct pollfd p[2] = {{.fd = lazy_fd(l), .events = POLLIN},
				      {.fd = lazy_notice_fd(l), .events = POLLIN}};
		struct cr_err why = {0};

		lazy_dumps_watch(l, cgroup); /* more often than it asks for */
		if (poll(p, 2, again ? LAZY_LOOK_MS : LOOK_MS) > 0 && p[0].revents) {
			r = lazy_fetcher_ended(l, err);
			ls->given_us = r ? ls->given_us : 0;
		}
		note_end(root, status, &ended);
		if (!r && l->shared->urgent_fd < 0 && l->stats->left &&
		    now_us() - ls->given_us > GRACE_US && lazy_source_feed(ls, l, &why)) {
			log_warn("%s", why.msg);
			ls->given_us = now_us();
		}
	}
	if (r < 0)
		return r;
	if (root > 0 && !ended)
		*status = -1;
	return 0;
}
