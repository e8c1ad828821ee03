#include "resource/net_closed.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/parallel.h"
#include "kernel/orphanview.h"
#include "kernel/tcp_diag.h"
#include "resource/file_kind.h"
#include "resource/net_handshakes.h"
#include "resource/net_ways.h"
#include "resource/tcp_repair.h"

enum { LOOPBACK = 1 }; /* index of that device, to which they are bound */

static socklen_t length(const struct sockaddr_storage *sa)
{
	return sa->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

bool net_loses_address(const struct tree *t, const struct sockaddr_storage *us)
{
	const struct sockaddr_in *in = (const void *)us;
	const struct sockaddr_in6 *in6 = (const void *)us;
	const uint8_t *v4 = (const uint8_t *)&in->sin_addr;

	if (tree_moves_address(t, us, length(us)))
		return true;
	if (us->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
		v4 = &in6->sin6_addr.s6_addr[12];
	else if (us->ss_family == AF_INET6)
		return t->switched && !IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
	return t->switched && v4[0] != IN_LOOPBACKNET;
}

bool net_has_closed(void)
{
	_cleanup_file_ FILE *f = fopen("/proc/net/sockstat", "re");
	char line[256];
	unsigned long n = 1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "TCP: inuse %*u orphan %lu", &n) == 1)
			break;
	return n > 0;
}

/* ---- at the source ---- */

static bool is_wanted(const struct orphan *o, void *arg)
{
	return net_loses_address(arg, &o->us);
}

/* As a server's connections have it from their listener, which is to listen beside them. */
static int reuse_address(struct arena *a, struct file *f, struct cr_err *err)
{
	const int one = 1;

	f->opts = arena_array(a, struct sockopt_rec, 1);
	if (!f->opts)
		return cr_err_oom(err);
	f->opts[0] = (struct sockopt_rec){.level = SOL_SOCKET,
					  .name = SO_REUSEADDR,
					  .value = arena_memdup(a, &one, sizeof(one)),
					  .len = sizeof(one)};
	f->n_opts = 1;
	return f->opts[0].value ? 0 : cr_err_oom(err);
}

static bool is_v6(const struct sockaddr_storage *sa)
{
	return sa->ss_family == AF_INET6 &&
	       !IN6_IS_ADDR_V4MAPPED(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

/* Over IPv6 one that has lost its address goes on sending, as far as the peer has said that it may:
 * if that acknowledged what has not been sent here, it would not be believed. */
static uint32_t may_be_sent(const struct orphan *o)
{
	uint32_t edge = o->snd_una + o->snd_wnd;

	if (!is_v6(&o->us) || (int32_t)(edge - o->snd_nxt) <= 0)
		return o->snd_nxt;
	return (int32_t)(o->write_seq - edge) < 0 ? o->write_seq : edge;
}

/* As tcp_dump() tells it of one that has a descriptor. */
static int fill(const struct orphan *o, const struct tree *t, struct file *f, struct cr_err *err)
{
	struct tcp_conn *c = arena_array(t->arena, struct tcp_conn, 1);
	uint32_t unsent = o->write_seq - may_be_sent(o);
	bool fin_came = o->state != TCP_FIN_WAIT1;

	if (!c)
		return cr_err_oom(err);
	*c = (struct tcp_conn){
	    .state = o->state,
	    .options = (o->timestamps ? TCPI_OPT_TIMESTAMPS : 0u) | (o->sack ? TCPI_OPT_SACK : 0u) |
		       (o->wscale ? TCPI_OPT_WSCALE : 0u),
	    .snd_wscale = o->snd_wscale,
	    .rcv_wscale = o->rcv_wscale,
	    .mss = o->mss,
	    .snd_seq = o->snd_una,
	    .rcv_seq = o->rcv_nxt - fin_came,
	    .out_len = o->out_len,
	    .unsent = unsent - (unsent > 0), /* the last of it is our end */
	    .has_window = true,
	    .snd_wl1 = o->snd_wl1,
	    .snd_wnd = o->snd_wnd,
	    .max_window = o->max_window,
	    .rcv_wnd = o->rcv_wnd,
	    .rcv_wup = o->rcv_wup,
	    .sndbuf = o->sndbuf,
	    .rcvbuf = o->rcvbuf,
	    .timestamp = net_timestamp(o->clock_offset, o->usec),
	    .timestamp_ns = clock_ns(CLOCK_MONOTONIC) + (uint64_t)t->task_monotonic_offset_ns,
	};
	*f = (struct file){.kind = FILE_TCP_CONN,
			   .object = UINT32_MAX,
			   .peer = UINT32_MAX,
			   .waits_at = UINT32_MAX,
			   .sock_family = o->family,
			   .sock_type = SOCK_STREAM,
			   .sock_protocol = IPPROTO_TCP,
			   .sockaddr = arena_memdup(t->arena, &o->us, length(&o->us)),
			   .peeraddr = arena_memdup(t->arena, &o->peer, length(&o->peer)),
			   .sockaddr_len = length(&o->us),
			   .peeraddr_len = length(&o->peer),
			   .tcp = c};
	c->out = arena_memdup(t->arena, o->out, o->out_len);
	return f->sockaddr && f->peeraddr && (c->out || !o->out_len)
		   ? reuse_address(t->arena, f, err)
		   : cr_err_oom(err);
}

int net_closed_collect(const struct orphanview *v, const struct tree *t, struct waiting *w,
		       size_t *ret_lost, struct cr_err *err)
{
	struct orphans found = {0};
	int r = orphanview_read(v, true, is_wanted, (void *)t, &found, err);

	if (!r && found.list.n)
		w->closed = arena_array(t->arena, struct file, found.list.n);
	if (!r && found.list.n && !w->closed)
		r = cr_err_oom(err);
	for (size_t i = 0; i < found.list.n && !r; i++) {
		r = fill(&found.list.v[i], t, &w->closed[i], err);
		w->n_closed = i + !r;
	}
	*ret_lost = found.unread + (r ? found.list.n - w->n_closed : 0);
	orphans_done(&found);
	return r;
}

void net_closed_end(const struct file *list, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct sockaddr_storage us = {0}, peer = {0};
		struct cr_err why = {0};

		memcpy(&us, list[i].sockaddr, list[i].sockaddr_len);
		memcpy(&peer, list[i].peeraddr, list[i].peeraddr_len);
		if (tcp_diag_destroy(&us, &peer, LOOPBACK, &why) && why.code != ENOENT) {
			log_warn("%s", why.msg);
			return;
		}
	}
}

/* ---- at the destination ---- */

struct net_closed {
	const struct waiting *w;
	int *fds; /* -1: none */
};

static void say(const struct file *f, const struct cr_err *why)
{
	char text[128];

	log_warn("connection of %s, which its program has closed: %s",
		 sockaddr_text(f->peeraddr, f->peeraddr_len, text, sizeof(text)), why->msg);
}

static int rebuild_one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	struct net_closed *c = arg;
	const struct file *f = &c->w->closed[i];
	_cleanup_fd_ int fd = socket(f->sock_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct cr_err why = {0};

	(void)worker;
	(void)err;
	if (fd < 0)
		cr_err_sys(&why, "TCP socket");
	else if (!tcp_rebuild(fd, f, &why))
		c->fds[i] = take_fd(&fd);
	if (c->fds[i] < 0)
		say(f, &why);
	return 0;
}

void net_closed_free(struct net_closed *c)
{
	for (size_t i = 0; c && c->fds && i < c->w->n_closed; i++)
		close_fdp(&c->fds[i]);
	if (c)
		free(c->fds);
	free(c);
}

struct net_closed *net_closed_rebuild(const struct waiting *w)
{
	struct net_closed *c = w->n_closed ? calloc(1, sizeof(*c)) : NULL;
	struct cr_err why = {0};

	if (!c)
		return NULL;
	c->w = w;
	c->fds = calloc(w->n_closed, sizeof(*c->fds));
	if (!c->fds) {
		net_closed_free(c);
		return NULL;
	}
	for (size_t i = 0; i < w->n_closed; i++)
		c->fds[i] = -1;
	if (parallel_for(w->n_closed, rebuild_one, c, &why))
		log_warn("connections that their program has closed: %s", why.msg);
	return c;
}

void net_closed_launch(struct net_closed *c, const struct tree *t, const struct net_ways *ways,
		       uint64_t now_ns)
{
	for (size_t i = 0; c && i < c->w->n_closed; i++) {
		const struct file *f = &c->w->closed[i];
		struct netinject *in =
		    net_is_inside(t, f) ? NULL : net_ways_to(ways, f->sockaddr, f->sockaddr_len);
		struct cr_err why = {0};

		if (c->fds[i] >= 0 && tcp_launch(c->fds[i], f, now_ns, in, &why))
			say(f, &why);
	}
	net_closed_free(c);
}
