/* The destination's half of what the network sees of a move, beside what is done to each socket:
 * packets that came to the source while its sockets took none are put in here, and connections that
 * nobody had accepted there wait to be accepted here. */
#include "base/log.h"
#include "dest/dest.h"
#include "base/clock.h"
#include "resource/net_closed.h"
#include "resource/net_ways.h"
#include "wire/tree_codec.h"

void dest_open_ways(struct dest *d, const struct tree *t)
{
	struct cr_err why = {0};

	/* of what others move, it is not known yet where it will be */
	if (d->ways || !t->n_moved || t->switched || d->from_image)
		return;
	if (net_ways_open(&d->ways, t->moved, t->n_moved, &why))
		log_warn("%s", why.msg);
	fileset_set_ways(d->files, d->ways);
}

void dest_open_switched_ways(struct dest *d)
{
	struct cr_err why = {0};

	if (!d->tree->switched || !d->files)
		return;
	if (net_ways_open_for(&d->ways, d->tree, &why))
		log_warn("%s", why.msg);
	fileset_set_ways(d->files, d->ways);
}

void dest_check_ways(const struct tree *t, struct refusals *notes)
{
	struct net_ways *w = NULL;
	struct cr_err why = {0};

	if (!t->n_moved)
		return;
	if (net_ways_open(&w, t->moved, t->n_moved, &why))
		refuse_warn(notes, 0, "the network",
			    "clients may wait for 200 ms or more, and connections that nobody has "
			    "accepted are lost: %s",
			    why.msg);
	else if (!net_ways_know_handshakes(w))
		refuse_warn(notes, 0, "the network",
			    "connections that nobody has accepted are lost: Linux 6.9 is needed");
	net_ways_free(w);
}

int dest_on_waiting(struct dest *d, const struct msg_waiting *w, struct cr_err *err)
{
	if (d->state != DEST_PREPARED && d->state != DEST_RUNNING)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "connections in a wrong state");
	if (d->state == DEST_RUNNING || d->waiting_arena)
		return 0; /* told again after a broken link */
	d->waiting_arena = arena_new();
	if (!d->waiting_arena)
		return cr_err_oom(err);
	return waiting_decode(w->list, w->len, d->waiting_arena, &d->waiting, err);
}

void dest_tell_waiting(struct dest *d)
{
	if (d->files)
		fileset_tell_waiting(d->files, d->tree, &d->waiting);
}

void dest_build_closed(struct dest *d)
{
	if (!d->closed)
		d->closed = net_closed_rebuild(&d->waiting);
}

void dest_launch_closed(struct dest *d)
{
	net_closed_launch(d->closed, d->tree, d->ways,
			  clock_ns(CLOCK_MONOTONIC) + (uint64_t)d->clock_offset_ns);
	d->closed = NULL;
}

int dest_on_packets(struct dest *d, const struct msg_packets *list)
{
	for (size_t i = 0; i < list->n && d->ways; i++) {
		const struct msg_packet *m = &list->v[i];
		struct net_packet p = {m->flags,      m->gso_type,    m->hdr_len, m->gso_size,
				       m->csum_start, m->csum_offset, m->data,    m->len};
		struct cr_err why = {0};

		/* it is sent again by whoever sent it */
		if (net_ways_put(d->ways, &p, &why))
			log_warn("%s", why.msg);
	}
	return list->n == 0;
}

void dest_close_ways(struct dest *d)
{
	if (d->files)
		fileset_set_ways(d->files, NULL);
	net_closed_free(d->closed);
	d->closed = NULL;
	net_ways_free(d->ways);
	close_fdp(&d->announce_fd);
	d->ways = NULL;
	arena_free(d->waiting_arena);
	d->waiting_arena = NULL;
	d->waiting = (struct waiting){0};
}
