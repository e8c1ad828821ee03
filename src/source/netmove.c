/* What the source does to the network: addresses that move along, and the sockets whose state is
 * taken while nothing reaches them. */
#include "source/source.h"

#include <stdio.h>
#include <string.h>
#include "base/fault.h"
#include "kernel/netcap.h"
#include "kernel/netdev.h"
#include "kernel/netmute.h"
#include "resource/net_closed.h"
#include "resource/net_ways.h"
#include "resource/resource.h"
#include "wire/tree_codec.h"

enum {
	PACKETS_MAX = 1000,
	PACKETS_BYTES = MSG_BYTES / 2, /* of a message */
	PACKET_OVERHEAD = 64,
};

enum tcp_mode source_tcp_mode(const struct source *s)
{
	switch (s->rq->opts.tcp) {
	case MSG_TCP_ESTABLISHED:
		if (s->image) /* who knows when that will be read: no peer waits for so long */
			return TCP_MODE_AUTO;
		return TCP_MODE_ESTABLISHED;
	case MSG_TCP_CLOSE:
		return TCP_MODE_CLOSE;
	case MSG_TCP_REFUSE:
		return TCP_MODE_REFUSE;
	default:
		return TCP_MODE_AUTO;
	}
}

int source_list_addresses(struct source *s, struct tree *t, struct cr_err *err)
{
	const struct msg_opts *o = &s->rq->opts;

	t->moved = arena_array(t->arena, struct devaddr, o->n_move);
	if (!t->moved)
		return cr_err_oom(err);
	for (uint32_t i = 0; i < o->n_move; i++) {
		int r = devaddr_parse(o->move[i], &t->moved[i], err);

		if (r)
			return r;
		t->n_moved++;
	}
	t->switched = s->rq->hooks & 1u << MSG_HOOK_NETWORK_SWITCH &&
		      source_tcp_mode(s) == TCP_MODE_ESTABLISHED;
	return 0;
}

static int check_address(struct source *s, const struct devaddr *a, struct cr_err *err)
{
	struct devaddr here;
	char text[DEVADDR_TEXT];
	bool has, burdened = false;
	int r = netdev_has_address(a, &has, &here, err);

	devaddr_text(a, text);
	if (!r && has)
		r = netdev_is_burdened(&here, &burdened, err);
	if (r == -ENODEV || (!r && !has)) {
		refuse(&s->notes, 0, text, "this host does not have that address on %s", a->dev);
		return 0;
	}
	if (r)
		return r;
	if (burdened)
		refuse(&s->notes, 0, text,
		       "other addresses on %s would go with it, being secondary to it: set "
		       "net.ipv4.conf.%s.promote_secondaries",
		       a->dev, a->dev);
	struct devaddr *slot = vec_push(&s->journal.moved);
	if (!slot)
		return cr_err_oom(err);
	*slot = here; /* as it is put back, should it come to that */
	return 0;
}

int source_check_addresses(struct source *s, struct cr_err *err)
{
	int r = 0;

	for (uint32_t i = 0; i < s->rq->opts.n_move && !r; i++) {
		struct devaddr a;

		r = devaddr_parse(s->rq->opts.move[i], &a, err);
		if (!r)
			r = check_address(s, &a, err);
	}
	return r;
}

static bool has_connections(const struct tree *t)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_TCP_CONN || t->files[i].kind == FILE_UDP ||
		    (t->files[i].kind == FILE_UNIX_CONN && t->files[i].waits_at != UINT32_MAX))
			return true;
	return t->n_moved > 0 || t->switched;
}

int source_hold(struct source *s, struct cr_err *err)
{
	if (s->held)
		return 0;
	/* the journal first: a SIGCONT that nobody needs is better than a SIGSTOP that stays */
	int r = source_journal(s, JOURNAL_PREPARED, err);
	if (r)
		return r;
	s->held = true;
	return seizure_hold(s->seizure, err);
}

int source_lock_network(struct source *s, struct tree *t, struct cr_err *err)
{
	if (!has_connections(t))
		return 0;
	/* should this process die with sockets out of the network, no task may find them so */
	int r = source_hold(s, err);
	if (r)
		return r;
	bool goes = !s->image && !s->rq->opts.leave_running;
	s->net_lock = net_lock_new(goes && !s->rq->opts.no_bpf ? s->env->requests : NULL);
	if (!s->net_lock)
		return cr_err_oom(err);
	/* first: what no socket takes any more has to be in there */
	r = net_list_addresses(t, false, &s->heard, &s->n_heard, err);
	if (!r && s->n_heard)
		r = netcap_open(&s->packets, s->heard, s->n_heard, err);
	if (r)
		return r;
	r = net_lock_take(s->net_lock, t, t->n_moved || source_tcp_mode(s) == TCP_MODE_ESTABLISHED,
			  err);
	fault_point("source-locked");
	return r;
}

int source_verify_network(struct source *s, struct cr_err *err)
{
	return s->net_lock ? net_lock_verify(s->net_lock, err) : 0;
}

int source_unlock_network(struct source *s, struct cr_err *err)
{
	int r = s->net_lock ? net_lock_undo(s->net_lock, err) : 0;

	net_lock_free(s->net_lock);
	s->net_lock = NULL;
	return r;
}

/* ---- what came meanwhile ---- */

struct batch {
	struct source *s;
	struct msg_packet v[PACKETS_MAX];
	size_t n, bytes;
	uint8_t data[PACKETS_BYTES + NET_PACKET_MAX];
};

static int flush(struct batch *b, struct cr_err *err)
{
	struct msg m = msg_of(MSG_PACKETS);

	if (!b->n)
		return 0;
	m.packets = (struct msg_packets){b->v, b->n};
	b->n = b->bytes = 0;
	return link_send(b->s->peer, &m, err);
}

static int add(struct batch *b, const struct net_packet *p, struct cr_err *err)
{
	uint8_t *data = b->data + b->bytes;

	memcpy(data, p->data, p->len);
	b->v[b->n++] = (struct msg_packet){.flags = p->flags,
					   .gso_type = p->gso_type,
					   .hdr_len = p->hdr_len,
					   .gso_size = p->gso_size,
					   .csum_start = p->csum_start,
					   .csum_offset = p->csum_offset,
					   .data = data,
					   .len = p->len};
	b->bytes += p->len + PACKET_OVERHEAD;
	return b->n == PACKETS_MAX || b->bytes >= PACKETS_BYTES ? flush(b, err) : 0;
}

/* A lost packet is sent again by whoever sent it: no failure here is one of the migration. */
void source_send_packets(struct source *s, bool last)
{
	_cleanup_free_ struct batch *b = calloc(1, sizeof(*b));
	struct msg none = msg_of(MSG_PACKETS);
	struct net_packet p;
	struct cr_err why = {0};
	int r = 0;

	if (!s->packets || !b || !s->peer)
		return;
	b->s = s;
	while (!r && netcap_next(s->packets, &p, &why) == 1)
		r = add(b, &p, &why);
	if (!r)
		r = flush(b, &why);
	if (!r && last)
		r = link_send(s->peer, &none, &why);
	if (r)
		source_event(s, "warning", why.msg);
	if (netcap_lost(s->packets) && last)
		source_event(s, "warning",
			     "packets that came meanwhile were too many to be kept: "
			     "they have to be sent again");
}

/* The tasks go on here: so does what came for them. */
static int replay(struct source *s, struct cr_err *err)
{
	struct net_ways *w = NULL;
	struct net_packet p;
	/* what is put in is not to be seen again */
	int r = netcap_stop(s->packets, err);
	int n = r ? r : netcap_next(s->packets, &p, err);

	if (n <= 0)
		return n;
	r = net_ways_open(&w, s->heard, s->n_heard, err);
	while (!r && n == 1) {
		r = net_ways_put(w, &p, err);
		n = r ? r : netcap_next(s->packets, &p, err);
	}
	net_ways_free(w);
	return r ? r : n;
}

void source_replay_packets(struct source *s)
{
	struct cr_err why = {0};

	if (s->packets && replay(s, &why))
		source_event(s, "warning", why.msg);
	netcap_free(s->packets);
	s->packets = NULL;
}

/* ---- what waits to be accepted ---- */

static void collect_closed(struct source *s, const struct tree *t, struct waiting *w)
{
	struct cr_err why = {0};
	char text[160];
	size_t lost = 0;

	if (!source_takes_closed(s, t) || !net_has_closed() ||
	    (!net_closed_collect(s->env->orphans, t, w, &lost, &why) && !lost))
		return;
	if (lost)
		snprintf(text, sizeof(text),
			 "%zu connections that the program has closed are lost: %.80s", lost,
			 why.msg);
	else /* nobody knows whether there are any */
		snprintf(text, sizeof(text),
			 "connections that the program has closed, if any, are lost: %.80s",
			 why.msg);
	source_event(s, "warning", text);
}

int source_collect_waiting(struct source *s, const struct tree *t, struct cr_err *err)
{
	struct waiting w;

	if (!s->net_lock || s->rq->opts.leave_running || s->image)
		return 0;
	int r = net_lock_accept(s->net_lock, t, &w, err);
	collect_closed(s, t, &w);
	s->closed = w.closed;
	s->n_closed = w.n_closed;
	if (r) /* which goes on with what there is */
		source_event(s, "warning", err->msg);
	return !w.n && !w.n_closed ? 0 : waiting_encode(&w, &s->waiting, &s->waiting_len, err);
}

int source_send_waiting(struct source *s, struct cr_err *err)
{
	struct msg m = msg_of(MSG_WAITING);

	m.waiting = (struct msg_waiting){s->waiting, s->waiting_len};
	return s->waiting ? link_send(s->peer, &m, err) : 0;
}

/* What cannot be removed is said: the destination will have it, too, and neighbours believe who
 * spoke last. */
void source_leave_addresses(struct source *s)
{
	vec_foreach (a, &s->journal.moved) {
		struct cr_err err = {0};

		if (netdev_del_address(a, &err))
			source_event(s, "warning", err.msg);
	}
}

/* Where an address is still here, or over IPv6 in any case, their peers would hear of their end. */
static bool may_end(struct source *s)
{
	vec_foreach (a, &s->journal.moved) {
		struct cr_err err = {0};
		bool has = true;

		if (netdev_has_address(a, &has, NULL, &err) || has)
			return false;
	}
	return true;
}

void source_end_closed(struct source *s)
{
	VEC(int) mutes = {0};
	bool quiet = s->n_closed && may_end(s);

	vec_foreach (a, &s->journal.moved) {
		struct cr_err err = {0};
		int *mute = quiet && a->family == AF_INET6 ? vec_push(&mutes) : NULL;

		if (mute && (*mute = netmute_open(a, &err)) < 0) {
			quiet = false;
			source_event(s, "warning", err.msg);
		}
	}
	if (quiet)
		net_closed_end(s->closed, s->n_closed);
	s->n_closed = 0;
	vec_foreach (mute, &mutes)
		close_fdp(mute);
	vec_done(&mutes);
}
