/* TCP connections that go on at the destination, in any state but those of a closed socket.
 *
 * Ahead, the destination makes an empty socket for each and puts it into the tasks. The state comes
 * with the tree of the final stop (net_lock_take()); settle gives it to the socket, where it rests
 * in repair mode until launch.
 *
 * A connection can go on if packets for its local address will come to the destination: because the
 * address moves along, because somebody else sees to it (--tcp established), or because both of its
 * ends are in the tree. */
#include "resource/file_kind.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/log.h"
#include "resource/net_ways.h"
#include "resource/sock_filter.h"
#include "resource/sock_program.h"
#include "resource/sockopt_alike.h"
#include "resource/tcp_repair.h"

#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef TCP_ULP
#define TCP_ULP 31
#endif

enum { ADDR_TEXT = 128 };

static bool match(const struct fd_probe *p)
{
	return tcp_is_socket(p) && p->tcp_state != TCP_CLOSE && p->tcp_state != TCP_LISTEN;
}

/* ---- capture ---- */

static int keep(struct files_ctx *x, struct file *f, const struct sockaddr_storage *us,
		const struct sockaddr_storage *peer, struct cr_err *err)
{
	uint32_t len =
	    us->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);

	f->sockaddr = arena_memdup(x->c->tree->arena, us, len);
	f->peeraddr = arena_memdup(x->c->tree->arena, peer, len);
	f->sockaddr_len = f->peeraddr_len = len;
	return f->sockaddr && f->peeraddr ? 1 : cr_err_oom(err);
}

/* 1: it has a peer, 0: none. */
static int addresses(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		     struct cr_err *err)
{
	struct sockaddr_storage us = {0}, peer = {0};
	socklen_t len = sizeof(us), peer_len = sizeof(peer);

	if (p->facts)
		return keep(x, f, &p->facts->us, &p->facts->peer, err);
	if (p->local >= 0 && getsockname(p->local, (struct sockaddr *)&us, &len))
		return cr_err_sys(err, "getsockname");
	if (p->local >= 0 && !getpeername(p->local, (struct sockaddr *)&peer, &peer_len))
		return keep(x, f, &us, &peer, err);
	/* in SYN_SENT, getpeername(2) tells nothing */
	const struct tcp_diag_entry *e = files_connection(x, p);
	return e ? keep(x, f, &e->us, &e->peer, err) : 0;
}

static bool is_link_local(const struct file *f)
{
	const struct sockaddr_in6 *us = (const void *)f->sockaddr,
				  *peer = (const void *)f->peeraddr;

	return f->sock_family == AF_INET6 && (us->sin6_scope_id || peer->sin6_scope_id);
}

/* What keeps a connection from moving, but for its address; NULL: nothing. */
static const char *trouble(struct files_ctx *x, const struct fd_probe *p, const struct file *f)
{
	const struct pending *pend = x->c->exact ? NULL : files_pending(x, p);
	char ulp[16] = "";
	socklen_t len = sizeof(ulp) - 1;

	if (p->facts) /* nothing special */
		return NULL;
	if (p->local < 0)
		snprintf(ulp, sizeof(ulp), "%s", p->diag->ulp);
	else if (getsockopt(p->local, IPPROTO_TCP, TCP_ULP, ulp, &len))
		ulp[0] = '\0';
	if (is_link_local(f))
		return "over a link-local address";
	if (ulp[0])
		return !strcmp(ulp, "tls") ? "with TLS in the kernel (kTLS)"
					   : "with an upper layer protocol (TCP_ULP)";
	if (p->diag && p->diag->md5)
		return "with signed segments (TCP_MD5SIG)";
	if (pend && pend->zerocopied) /* it counts them, and they begin anew with each socket */
		return "that has sent with MSG_ZEROCOPY";
	if (p->local >= 0 && tcp_has_ao_keys(p->local))
		return "with authenticated segments (TCP_AO_ADD_KEY)";
	return NULL; /* filters are looked at with the options */
}

static void refuse_because(struct files_ctx *x, const struct fd_probe *p, const struct file *f,
			   const char *why)
{
	char text[ADDR_TEXT];

	files_refuse(x, p->pid, p->fd, "TCP connection to %s %s: not supported; close it first",
		     sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text)), why);
}

static bool is_loopback(const struct file *f)
{
	const struct sockaddr_in *in = (const void *)f->sockaddr;
	const struct sockaddr_in6 *in6 = (const void *)f->sockaddr;
	const uint8_t *v4 = (const uint8_t *)&in->sin_addr;

	if (in->sin_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
		v4 = &in6->sin6_addr.s6_addr[12];
	else if (in->sin_family == AF_INET6)
		return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
	return v4[0] == IN_LOOPBACKNET;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	enum tcp_mode mode = x->c->tcp;
	const char *why;

	if (mode == TCP_MODE_CLOSE || mode == TCP_MODE_REFUSE)
		return tcp_closed_capture(x, p, f, err);
	tcp_capture_common(p, f, FILE_TCP_CONN);
	int r = addresses(x, p, f, err);
	if (r < 0)
		return r;
	bool moves = r && (tree_moves_address(x->c->tree, f->sockaddr, f->sockaddr_len) ||
			   (x->c->tree->switched && !is_loopback(f)));
	if (!r || (mode == TCP_MODE_AUTO && !moves && !is_loopback(f)))
		return tcp_closed_capture(x, p, f, err);
	why = moves || is_loopback(f)
		  ? trouble(x, p, f)
		  : "whose local address does not move (--move-address, --hook network-switch)";
	if (why) {
		refuse_because(x, p, f, why);
		f->kind = 0;
		return 0;
	}
	f->waits_at = UINT32_MAX;
	if (is_loopback(f) || net_is_inside(x->c->tree, f)) {
		uint32_t *u = vec_push(&x->undecided);

		if (!u)
			return cr_err_oom(err);
		*u = (uint32_t)x->c->tree->n_files;
	}
	if (p->facts)
		return sockopts_capture_alike(x, p, err);
	return p->local < 0 ? 0 : sockopts_capture_later(x, p, (uint32_t)x->c->tree->n_files, err);
}

/* ---- both ends in the tree ---- */

struct end { /* a connection as one of its ends sees it */
	uint8_t us[TCP_END_BYTES], peer[TCP_END_BYTES];
};

static int cmp_end(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct end));
}

/* The other end has ended, as when its program has closed it: it is read to its end there, too. */
static int keep_what_came(struct files_ctx *x, struct file *f, uint32_t index, struct cr_err *err)
{
	_cleanup_fd_ int fd = files_getfd(x, index, err);
	struct tcp_info ti = {0};
	socklen_t len = sizeof(ti);

	if (fd < 0)
		return fd;
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len))
		return cr_err_sys(err, "TCP_INFO");
	return ti.tcpi_state == TCP_CLOSE_WAIT ? tcp_ended_capture(x, fd, f, err) : 0;
}

static int other_end_missing(struct files_ctx *x, struct file *f, uint32_t index,
			     struct cr_err *err)
{
	const struct fd_seen *s = files_holder(x, index);
	char text[ADDR_TEXT];
	pid_t pid = files_holder_pid(x, index);

	sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text));
	if (x->c->tcp == TCP_MODE_ESTABLISHED) {
		files_refuse(x, pid, s->fd,
			     "TCP connection to %s over the loopback interface: its other end is "
			     "outside the tree; close it first",
			     text);
		return 0;
	}
	f->kind = FILE_TCP_CLOSED;
	f->n_opts = 0;
	f->sockaddr_len = f->peeraddr_len = 0;
	if (x->c->exact)
		return keep_what_came(x, f, index, err);
	files_warn(x, pid, s->fd, "connection to %s is closed by the move", text);
	return 0;
}

/* A listener of the tree's that connections to that address come to. */
static uint32_t listener_of(const struct tree *t, const uint8_t at[TCP_END_BYTES])
{
	enum { PORT = 16 };
	static const uint8_t any[PORT], any4[PORT] = {[10] = 0xff, [11] = 0xff};
	uint8_t us[TCP_END_BYTES];

	for (uint32_t i = 0; i < t->n_files; i++) {
		if (t->files[i].kind != FILE_TCP_LISTEN)
			continue;
		tcp_end(t->files[i].sockaddr, us);
		if (!memcmp(us + PORT, at + PORT, 2) &&
		    (!memcmp(us, at, PORT) || !memcmp(us, any, PORT) || !memcmp(us, any4, PORT)))
			return i;
	}
	return UINT32_MAX;
}

/* Does the other end wait to be accepted, at a listener that comes along? */
static bool waits(struct files_ctx *x, const struct end *other, struct file *f)
{
	_cleanup_(tcp_unowned_done) struct tcp_unowned_list l = {0};
	struct cr_err ignored = {0};
	uint32_t at = x->c->to_image ? UINT32_MAX : listener_of(x->c->tree, other->us);

	if (at == UINT32_MAX || tcp_diag_unaccepted(&l, &ignored))
		return false;
	vec_foreach (u, &l.list) {
		struct end e;

		tcp_end(&u->us, e.us);
		tcp_end(&u->peer, e.peer);
		if (cmp_end(&e, other))
			continue;
		f->waits_at = at;
		return true;
	}
	return false;
}

/* ---- filters and keys that stay behind ---- */

static void refuse_suspect(struct files_ctx *x, const struct fd_seen *s)
{
	_cleanup_fd_ int fd = files_dup(x, s);
	const char *why = fd < 0 ? NULL : sock_filter_trouble(fd);
	struct file *f = &x->c->tree->files[s->file];
	struct cr_err unmoved = {0};

	/* known then, it takes no time at the stop */
	if (fd >= 0 && !why && sock_program_get(x->c, fd, f, &unmoved) == -ENOTSUP)
		why = unmoved.msg;
	if (fd >= 0 && !why && tcp_has_ao_keys(fd))
		why = "with authenticated segments (TCP_AO_ADD_KEY)";

	if (why)
		refuse_because(
		    x, &(struct fd_probe){.pid = x->c->tree->procs[s->proc].pid, .fd = s->fd}, f,
		    why);
}

/* Ahead no socket of a running task is held, not for a moment, and sock_diag(7) says nothing of
 * filters and of keys of TCP-AO. Only those that BPF says have one are. Without it they are found
 * at the stop. */
static void look_at_suspects(struct files_ctx *x)
{
	const struct tree *t = x->c->tree;

	for (uint32_t proc = 0; !x->c->exact && x->c->socks && proc < t->n_procs; proc++) {
		_cleanup_(sock_facts_done) struct sock_facts_list l = {0};
		struct cr_err ignored = {0};
		bool any = false;

		for (size_t i = x->proc_first[proc]; i < x->proc_first[proc + 1] && !any; i++) {
			uint32_t file = x->seen.v[i].file;

			any = file < t->n_files && t->files[file].kind == FILE_TCP_CONN;
		}
		if (!any || sock_alike_read(x->c->socks, t->procs[proc].pid, &l, &ignored))
			continue;
		vec_foreach (f, &l.list) {
			const struct fd_seen *s = f->suspect ? files_seen(x, proc, f->fd) : NULL;

			if (s && s->file < t->n_files && t->files[s->file].kind == FILE_TCP_CONN)
				refuse_suspect(x, s);
		}
	}
}

static int link_ends(struct files_ctx *x, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	size_t n = 0;

	look_at_suspects(x);
	if (!x->undecided.n)
		return 0;
	_cleanup_free_ struct end *ends = calloc(t->n_files + 1, sizeof(*ends));
	if (!ends)
		return cr_err_oom(err);
	for (size_t i = 0; i < t->n_files; i++) {
		const struct file *f = &t->files[i];

		if (f->kind != FILE_TCP_CONN)
			continue;
		tcp_end(f->sockaddr, ends[n].us);
		tcp_end(f->peeraddr, ends[n++].peer);
	}
	qsort(ends, n, sizeof(*ends), cmp_end);
	vec_foreach (i, &x->undecided) {
		struct file *f = &t->files[*i];
		struct end key;

		tcp_end(f->peeraddr, key.us);
		tcp_end(f->sockaddr, key.peer);
		if (bsearch(&key, ends, n, sizeof(key), cmp_end) || waits(x, &key, f))
			continue;
		if (!is_loopback(f) || tree_moves_address(t, f->sockaddr, f->sockaddr_len))
			continue;
		int r = other_end_missing(x, f, *i, err);
		if (r)
			return r;
	}
	return 0;
}

/* ---- check ---- */

static int new_socket(const struct file *f, int type)
{
	return socket(f->sock_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

static bool addresses_valid(const struct file *f)
{
	const struct sockaddr *us = (const void *)f->sockaddr, *peer = (const void *)f->peeraddr;
	size_t len = f->sock_family == AF_INET    ? sizeof(struct sockaddr_in)
		     : f->sock_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						  : SIZE_MAX;

	return f->sockaddr_len == len && f->peeraddr_len == len &&
	       us->sa_family == f->sock_family && peer->sa_family == f->sock_family;
}

/* NULL: the kernel would know where to send what goes to the peer. */
static const char *no_route(const struct file *f)
{
	const int one = 1;
	_cleanup_fd_ int fd = new_socket(f, SOCK_DGRAM);
	bool v4 = f->sock_family == AF_INET;
	struct sockaddr_storage us = {0};

	memcpy(&us, f->sockaddr, f->sockaddr_len);
	((struct sockaddr_in *)&us)->sin_port = 0; /* sin6_port is at the same place */
	if (fd < 0 ||
	    setsockopt(fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT,
		       &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&us, f->sockaddr_len) ||
	    connect(fd, (const struct sockaddr *)f->peeraddr, f->peeraddr_len))
		return strerror(errno);
	return NULL;
}

static bool address_is_here(const struct file *f)
{
	_cleanup_fd_ int fd = new_socket(f, SOCK_DGRAM);
	struct sockaddr_storage us = {0};

	memcpy(&us, f->sockaddr, f->sockaddr_len);
	((struct sockaddr_in *)&us)->sin_port = 0;
	return fd >= 0 && !bind(fd, (struct sockaddr *)&us, f->sockaddr_len);
}

static void check(const struct file_check *k, const struct file *f)
{
	char us[ADDR_TEXT], peer[ADDR_TEXT];
	struct cr_err err = {0};
	const char *why;

	if (!addresses_valid(f)) {
		file_check_refuse(k, "TCP connection: its addresses make no sense");
		return;
	}
	sockaddr_text(f->sockaddr, f->sockaddr_len, us, sizeof(us));
	sockaddr_text(f->peeraddr, f->peeraddr_len, peer, sizeof(peer));
	if (!k->t->switched && !tree_moves_address(k->t, f->sockaddr, f->sockaddr_len) &&
	    !address_is_here(f))
		file_check_refuse(k,
				  "TCP connection from %s to %s: this host does not have that "
				  "address; say --move-address, or --tcp close",
				  us, peer);
	else if ((why = no_route(f)))
		file_check_refuse(k, "TCP connection to %s: no way there from here: %s", peer, why);
	_cleanup_fd_ int fd = new_socket(f, SOCK_STREAM);
	if (fd < 0 || sockopts_apply(fd, f, &err) < 0)
		file_check_refuse(k, "TCP connection to %s: %.150s", peer,
				  fd < 0 ? strerror(errno) : err.msg);
}

/* ---- rebuild ---- */

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	if (!addresses_valid(f))
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "addresses of a TCP connection make no sense");
	_cleanup_fd_ int fd = new_socket(f, SOCK_STREAM);
	if (fd < 0)
		return cr_err_sys(err, "TCP socket");
	if ((f->uid || f->gid) && fchown(fd, f->uid, f->gid))
		return cr_err_sys(err, "owner of a TCP socket");
	fs->held[i].fd = take_fd(&fd);
	return 0;
}

static struct netinject *way_in(const struct fileset *fs, const struct tree *t,
				const struct file *f)
{
	return net_is_inside(t, f) ? NULL : net_ways_to(fs->ways, f->sockaddr, f->sockaddr_len);
}

/* A connection whose other end is here hears its end from there. */
static bool can_tell(const struct fileset *fs, const struct tree *t, const struct file *f)
{
	/* of what others move, the way is known once they have */
	return t->switched || way_in(fs, t, f) || (net_is_inside(t, f) && !f->tcp->has_urgent);
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	char us[ADDR_TEXT], peer[ADDR_TEXT];

	if (!f->tcp)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "a TCP connection came without its state");
	int r = tcp_rebuild(fs->held[i].fd, f, err);
	/* here, and not after the decision */
	if (!r && tcp_needs_telling(f->tcp) && !can_tell(fs, t, f))
		r = cr_err_set(
		    err, CR_ERR_UNSUPPORTED, ENOTSUP,
		    f->tcp->has_urgent
			? "urgent data that waits cannot be handed on here"
			: "the peer has shut its side down, which it cannot be told here");
	/* what comes before the decision is not to be acknowledged: it may be against us */
	if (!r && t->switched && f->waits_at == UINT32_MAX)
		r = sock_lock(fs->held[i].fd, SOCK_LOCK_ALL, err);
	if (!r)
		return 0;
	sockaddr_text(f->sockaddr, f->sockaddr_len, us, sizeof(us));
	return cr_err_ctx(err, "%s to %s", us,
			  sockaddr_text(f->peeraddr, f->peeraddr_len, peer, sizeof(peer)));
}

/* After the decision nothing may stand in the way of the tasks: one connection that fails is one
 * that fails, not a workload. */
static int launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct cr_err why = {0};
	uint64_t now = clock_ns(CLOCK_MONOTONIC) + (uint64_t)fs->monotonic_off_ns;

	(void)err;
	if (fs->held[i].launched || f->waits_at != UINT32_MAX) /* fileset_tell_waiting() */
		return 0;
	if ((t->switched && sock_unlock(fs->held[i].fd, &why)) ||
	    tcp_launch(fs->held[i].fd, f, now, way_in(fs, t, f), &why))
		log_warn("a TCP connection: %s", why.msg);
	return 0;
}

/* What is told through a way in, is told one after the other. */
static bool apart(const struct file *f)
{
	return f->tcp && !tcp_needs_telling(f->tcp);
}

const struct file_ops file_ops_tcp_conn = {
    .name = "TCP connection",
    .kind = FILE_TCP_CONN,
    .match = match,
    .capture = capture,
    .link = link_ends,
    .check = check,
    .build = build,
    .settle = settle,
    .launch = launch,
    .apart = apart,
};
