/* TCP sockets: listening, and idle (neither listening nor connected).
 *
 * A listener is bound ahead, which reserves the port, and starts to listen when all is prepared:
 * before, nobody is there to accept. Between the two the port must not be taken by others: a bound
 * socket with SO_REUSEADDR would let another one that has it listen on the port; one without it
 * does not (inet_csk_bind_conflict), but cannot be bound over connections in TIME_WAIT. So the
 * option is on while binding, off until then, and then as it was. */
#include "resource/file_kind.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "resource/reuseport.h"
#include "resource/sock_filter.h"

#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif

enum { ADDR_TEXT = 128 };

bool tcp_is_socket(const struct fd_probe *p)
{
	return (p->so_domain == AF_INET || p->so_domain == AF_INET6) && p->so_type == SOCK_STREAM &&
	       p->so_protocol == IPPROTO_TCP;
}

/* ---- capture ---- */

static bool listen_match(const struct fd_probe *p)
{
	return tcp_is_socket(p) && p->so_listening;
}

/* In state CLOSE, and not because a connection has ended: then it would be readable (end of file).
 */
static bool idle_match(const struct fd_probe *p)
{
	struct pollfd pfd = {.fd = p->local, .events = POLLIN};

	return tcp_is_socket(p) && p->local >= 0 && p->tcp_state == TCP_CLOSE &&
	       poll(&pfd, 1, 0) >= 0 && !(pfd.revents & POLLIN);
}

void tcp_capture_common(const struct fd_probe *p, struct file *f, enum file_kind kind)
{
	f->kind = kind;
	f->sock_family = p->so_domain;
	f->sock_type = p->so_type;
	f->sock_protocol = p->so_protocol;
	f->uid = p->st.st_uid;
	f->gid = p->st.st_gid;
	f->pos = 0;
}

static int capture_address(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			   struct cr_err *err)
{
	struct sockaddr_storage sa = {0};
	const struct sockaddr_in6 *in6 = (const void *)&sa;
	socklen_t len = sizeof(sa);

	if (getsockname(p->local, (struct sockaddr *)&sa, &len))
		return cr_err_sys(err, "getsockname");
	if (sa.ss_family == AF_INET6 && in6->sin6_scope_id)
		files_refuse(x, p->pid, p->fd, "TCP socket on a link-local address: not supported");
	f->sockaddr = arena_memdup(x->c->tree->arena, &sa, len);
	f->sockaddr_len = len;
	return f->sockaddr ? 0 : cr_err_oom(err);
}

bool tree_moves_address(const struct tree *t, const void *sockaddr, size_t len)
{
	for (size_t i = 0; i < t->n_moved; i++)
		if (devaddr_matches(&t->moved[i], sockaddr, len))
			return true;
	return false;
}

static bool keeps_connections(const struct capture *c)
{
	return c->tcp == TCP_MODE_ESTABLISHED || (c->tcp == TCP_MODE_AUTO && c->tree->n_moved);
}

static int idle_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			struct cr_err *err)
{
	tcp_capture_common(p, f, FILE_TCP_IDLE);
	int r = capture_address(x, p, f, err);
	return r < 0 ? r : sockopts_capture(x, p, f, err);
}

#ifndef TCP_AO_GET_KEYS
#define TCP_AO_GET_KEYS 41 /* 6.7 */
#endif

/* struct tcp_ao_getsockopt, include/uapi/linux/tcp.h, Documentation/networking/tcp_ao.rst */
struct ao_keys {
	struct sockaddr_storage addr;
	char alg_name[64];
	uint8_t key[80];
	uint32_t nkeys; /* in: room for so many; out: so many there are */
	uint16_t flags;
	uint8_t sndid, rcvid, prefix, maclen, keyflags, keylen;
	int32_t ifindex;
	uint64_t pkt_good, pkt_bad;
};
_Static_assert(sizeof(struct ao_keys) == 304, "as the kernel has it");

bool tcp_has_ao_keys(int fd)
{
	enum { GET_ALL = 4 };
	struct ao_keys k = {.nkeys = 1, .flags = GET_ALL};
	socklen_t len = sizeof(k);

	return !getsockopt(fd, IPPROTO_TCP, TCP_AO_GET_KEYS, &k, &len) && k.nkeys;
}

/* Keys of TCP_MD5SIG show nowhere but in sock_diag(7). */
static int refuse_signed(struct files_ctx *x, const struct fd_probe *p, struct cr_err *err)
{
	if (tcp_has_ao_keys(p->local))
		files_refuse(x, p->pid, p->fd,
			     "TCP listener with authenticated segments (TCP_AO_ADD_KEY): not "
			     "supported; close it first");
	if (x->c->exact)
		return 0;
	if (!x->listeners_listed) {
		int r = tcp_diag_listeners(&x->listeners, err);

		if (r)
			return r;
		x->listeners_listed = true;
	}
	const struct tcp_diag_entry *e = tcp_diag_find(&x->listeners, p->st.st_ino);
	if (e && e->md5)
		files_refuse(x, p->pid, p->fd,
			     "TCP listener with signed segments (TCP_MD5SIG): not supported; close "
			     "it first");
	return 0;
}

static int listen_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			  struct cr_err *err)
{
	struct fd_watch w = {.dev = p->st.st_dev,
			     .ino = p->st.st_ino,
			     .file = (uint32_t)x->c->tree->n_files,
			     .kind = WATCH_WARN};
	struct tcp_info ti = {0};
	socklen_t len = sizeof(ti);

	tcp_capture_common(p, f, FILE_TCP_LISTEN);
	/* of a listener, tcp_get_info(): the longest queue allowed, and what is queued now */
	if (getsockopt(p->local, IPPROTO_TCP, TCP_INFO, &ti, &len))
		return cr_err_sys(err, "TCP_INFO");
	f->backlog = (int32_t)ti.tcpi_sacked;
	int r = refuse_signed(x, p, err);
	if (r)
		return r;
	if (keeps_connections(x->c))
		; /* those that nobody has accepted when the tasks stop are seen to then */
	else if (ti.tcpi_unacked && x->c->tcp != TCP_MODE_REFUSE)
		files_warn(
		    x, p->pid, p->fd,
		    "TCP listener: %u connections that wait to be accepted are closed by the "
		    "move",
		    ti.tcpi_unacked);
	else if (ti.tcpi_unacked)
		files_refuse(x, p->pid, p->fd,
			     "TCP listener: %u connections wait to be accepted: not supported",
			     ti.tcpi_unacked);
	r = capture_address(x, p, f, err);
	if (r == 0)
		r = sockopts_capture(x, p, f, err);
	return r < 0 ? r : files_watch(x, &w, err);
}

/* ---- check ---- */

static int new_socket(const struct file *f)
{
	return socket(f->sock_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
}

static int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

static bool is_bound(const struct file *f)
{
	const struct sockaddr_in *in = (const void *)f->sockaddr;

	/* sin_port and sin6_port are at one place */
	return f->sockaddr_len >= sizeof(*in) && in->sin_port;
}

static bool address_valid(const struct file *f)
{
	const struct sockaddr *sa = (const void *)f->sockaddr;

	if (f->sock_family == AF_INET)
		return f->sockaddr_len == sizeof(struct sockaddr_in) && sa->sa_family == AF_INET;
	return f->sock_family == AF_INET6 && f->sockaddr_len == sizeof(struct sockaddr_in6) &&
	       sa->sa_family == AF_INET6;
}

/* An address that moves along is not here yet. Off again: as the program had it. */
static int bind_free(int fd, const struct tree *t, const struct file *f, bool on)
{
	bool v4 = f->sock_family == AF_INET;
	int level = v4 ? IPPROTO_IP : IPPROTO_IPV6, name = v4 ? IP_FREEBIND : IPV6_FREEBIND;

	if (!t->switched && !tree_moves_address(t, f->sockaddr, f->sockaddr_len))
		return 0;
	return set_int(fd, level, name, on || sockopt_int(f, level, name, 0));
}

/* Without SO_REUSEPORT: joining the listeners of another service would be no better than finding
 * the port taken. The test socket is closed before the next one is tried. */
static void bind_check(const struct file_check *k, const struct file *f)
{
	char text[ADDR_TEXT];
	struct cr_err err = {0};
	_cleanup_fd_ int fd = new_socket(f);

	sockaddr_text(f->sockaddr, f->sockaddr_len, text, sizeof(text));
	if (fd < 0) {
		file_check_refuse(k, "TCP socket on %s: no such sockets here: %s", text,
				  strerror(errno));
		return;
	}
	if (sockopts_apply(fd, f, &err) < 0) {
		file_check_refuse(k, "TCP socket on %s: %.150s", text, err.msg);
		return;
	}
	if (!is_bound(f))
		return;
	if (bind_free(fd, k->t, f, true) || set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1) ||
	    set_int(fd, SOL_SOCKET, SO_REUSEPORT, 0) ||
	    bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len))
		file_check_refuse(k, "TCP socket on %s: %s", text,
				  errno == EADDRNOTAVAIL ? "this host does not have that address"
				  : errno == EADDRINUSE  ? "taken on this host"
							 : strerror(errno));
}

/* ---- rebuild ---- */

static int listen_build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	char text[ADDR_TEXT];

	if (!address_valid(f))
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "address of a TCP socket makes no sense");
	_cleanup_fd_ int fd = new_socket(f);
	if (fd < 0)
		return cr_err_sys(err, "TCP socket");
	/* sockets that share a port by SO_REUSEPORT have to have one owner */
	if ((f->uid || f->gid) && fchown(fd, f->uid, f->gid))
		return cr_err_sys(err, "owner of a TCP socket");
	int r = sockopts_apply(fd, f, err);
	if (r < 0)
		return r;
	if (is_bound(f)) {
		sockaddr_text(f->sockaddr, f->sockaddr_len, text, sizeof(text));
		if (bind_free(fd, t, f, true) || set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1) ||
		    bind(fd, (const struct sockaddr *)f->sockaddr, f->sockaddr_len) ||
		    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 0) || bind_free(fd, t, f, false))
			return cr_err_sys(err, "binding %s", text);
	}
	fs->held[i].fd = take_fd(&fd);
	return 0;
}

/* The socket that takes its place has to get the port while tasks still hold this one. */
static void listen_drop(struct held *h)
{
	if (!h->launched)
		set_int(h->fd, SOL_SOCKET, SO_REUSEADDR, 1);
}

static int listen_now(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	int fd = fs->held[i].fd, reuse = sockopt_int(f, SOL_SOCKET, SO_REUSEADDR, 0);
	char text[ADDR_TEXT];

	if (set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1) ||
	    (f->kind == FILE_TCP_LISTEN && listen(fd, f->backlog)) ||
	    (!reuse && set_int(fd, SOL_SOCKET, SO_REUSEADDR, 0)))
		return cr_err_sys(err, "listening on %s",
				  sockaddr_text(f->sockaddr, f->sockaddr_len, text, sizeof(text)));
	return 0;
}

/* A listener comes into its group when it listens: those that have a lower place come first. */
static int listen_in_order(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	int r = 0;

	for (uint32_t place = 0; f->reuse_group && place < f->reuse_place && !r; place++) {
		uint32_t before = reuseport_member(t, f->reuse_group, place);

		if (before != UINT32_MAX && t->files[before].kind == FILE_TCP_LISTEN)
			r = listen_now(fs, t, before, err);
	}
	return r ? r : listen_now(fs, t, i, err);
}

static int listen_prepare(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	int fd = fs->held[i].fd, r = listen_in_order(fs, t, i, err);

	if (!r)
		r = reuseport_attach(fd, f, err);
	if (r)
		return r;
	/* its address comes before the decision does: for connections that are not here yet it
	 * would say that there are none */
	return t->switched && f->kind == FILE_TCP_LISTEN ? sock_lock(fd, SOCK_LOCK_ALL, err)
							 : sockopts_lock_filter(fd, f, err);
}

static int listen_launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	int fd = fs->held[i].fd;

	if (!t->switched || fs->held[i].launched)
		return 0;
	int r = sock_unlock(fd, err);
	return r ? r : sockopts_lock_filter(fd, &t->files[i], err);
}

const struct file_ops file_ops_tcp_listen = {
    .name = "TCP listener",
    .kind = FILE_TCP_LISTEN,
    .match = listen_match,
    .capture = listen_capture,
    .check = bind_check,
    .build = listen_build,
    .prepare = listen_prepare,
    .launch = listen_launch,
    .drop = listen_drop,
};

const struct file_ops file_ops_tcp_idle = {
    .name = "TCP socket",
    .kind = FILE_TCP_IDLE,
    .match = idle_match,
    .capture = idle_capture,
    .check = bind_check,
    .build = listen_build,
    .prepare = listen_prepare,
    .drop = listen_drop,
};
