/* Translation of the messages between source agent and destination agent. */
#include "wire/msg_priv.h"

#include <string.h>

/* "None" is UINT32_MAX in our structs, and 0 on the wire, where an index counts from 1. */
static uint32_t put_index(uint32_t i)
{
	return i + 1;
}

static uint32_t get_index(uint32_t i)
{
	return i - 1;
}

static int put_digests(struct arena *a, const struct msg_digests *in, Wire__Digests *pb)
{
	pb->list = arena_array(a, Wire__Digest *, in->n);
	if (!pb->list)
		return -ENOMEM;
	for (size_t i = 0; i < in->n; i++) {
		Wire__Digest *d = pb_new(a, &wire__digest__descriptor);

		if (!d)
			return -ENOMEM;
		d->pid = (uint32_t)in->v[i].pid;
		d->object = put_index(in->v[i].object);
		d->pages = in->v[i].pages;
		d->digest = pb_bytes(in->v[i].digest, sizeof(in->v[i].digest));
		pb->list[pb->n_list++] = d;
	}
	return 0;
}

static int get_digests(struct arena *a, struct msg_digests *out, const Wire__Digests *pb,
		       struct cr_err *err)
{
	if (!pb)
		return 0;
	out->v = arena_array(a, struct msg_digest, pb->n_list);
	if (!out->v)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_list; i++) {
		const Wire__Digest *d = pb->list[i];
		struct msg_digest *o = &out->v[out->n++];

		if (d->digest.len != sizeof(o->digest))
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "digest of %zu bytes",
					  d->digest.len);
		o->pid = (pid_t)d->pid;
		o->object = get_index(d->object);
		o->pages = d->pages;
		memcpy(o->digest, d->digest.data, sizeof(o->digest));
	}
	return 0;
}

int msg_put_tree(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_tree *in = &m->tree;
	Wire__Tree *pb = p;

	pb->stage = (Wire__Stage)in->stage;
	pb->tree = pb_bytes(in->tree, in->tree_len);
	pb->in_turns = in->in_turns;
	(void)a;
	return 0;
}

int msg_get_tree(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_tree *out = &m->tree;
	Wire__Tree *pb = p;

	out->stage = (enum msg_stage)pb->stage;
	out->tree = pb->tree.data;
	out->tree_len = pb->tree.len;
	out->in_turns = pb->in_turns;
	(void)a, (void)err;
	return 0;
}

static int put_targets(struct arena *a, const struct msg_tree_ok *in, Wire__TreeOk *pb)
{
	pb->targets = arena_array(a, Wire__Target *, in->n_targets);
	if (!pb->targets)
		return -ENOMEM;
	for (size_t i = 0; i < in->n_targets; i++) {
		Wire__Target *t = pb_new(a, &wire__target__descriptor);

		if (!t)
			return -ENOMEM;
		t->pid = (uint32_t)in->targets[i].pid;
		t->object = put_index(in->targets[i].object);
		t->target = in->targets[i].target;
		t->copy_of = (uint32_t)in->targets[i].copy_of;
		pb->targets[pb->n_targets++] = t;
	}
	return 0;
}

int msg_put_tree_ok(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_tree_ok *in = &m->tree_ok;
	Wire__TreeOk *pb = p;

	pb->hole_start = in->hole_start;
	pb->hole_end = in->hole_end;
	pb->more = in->more;
	pb->lazy_objects = in->lazy_objects;
	pb->lazy_huge = in->lazy_huge;
	pb->lazy_memfds = in->lazy_memfds;
	pb->lazy_huge_objects = in->lazy_huge_objects;
	pb->lazy_unlinked = in->lazy_unlinked;
	pb->lazy_clean = in->lazy_clean;
	pb->lazy_holes = in->lazy_holes;
	pb->refusals = pb_new(a, &wire__notes__descriptor);
	pb->warnings = pb_new(a, &wire__notes__descriptor);
	if (!pb->refusals || msg_put_notes(a, &in->refusals, pb->refusals) < 0)
		return -ENOMEM;
	if (!pb->warnings || msg_put_notes(a, &in->warnings, pb->warnings) < 0)
		return -ENOMEM;
	return put_targets(a, in, pb);
}

int msg_get_tree_ok(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_tree_ok *out = &m->tree_ok;
	Wire__TreeOk *pb = p;

	out->hole_start = pb->hole_start;
	out->hole_end = pb->hole_end;
	out->more = pb->more;
	out->lazy_objects = pb->lazy_objects;
	out->lazy_huge = pb->lazy_huge;
	out->lazy_memfds = pb->lazy_memfds;
	out->lazy_huge_objects = pb->lazy_huge_objects;
	out->lazy_unlinked = pb->lazy_unlinked;
	out->lazy_clean = pb->lazy_clean;
	out->lazy_holes = pb->lazy_holes;
	out->targets = arena_array(a, struct msg_target, pb->n_targets);
	if (!out->targets || msg_get_notes(a, &out->refusals, pb->refusals) < 0 ||
	    msg_get_notes(a, &out->warnings, pb->warnings) < 0)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_targets; i++)
		out->targets[out->n_targets++] =
		    (struct msg_target){.pid = (pid_t)pb->targets[i]->pid,
					.object = get_index(pb->targets[i]->object),
					.target = pb->targets[i]->target,
					.copy_of = (pid_t)pb->targets[i]->copy_of};
	return 0;
}

int msg_put_reset(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_reset *in = &m->reset;
	Wire__Reset *pb = p;

	pb->pid = (uint32_t)in->pid;
	pb->object = put_index(in->object);
	pb->taken_back = in->taken_back;
	pb->first_page = arena_array(a, uint64_t, in->n_ranges);
	pb->n_pages = arena_array(a, uint64_t, in->n_ranges);
	if (!pb->first_page || !pb->n_pages)
		return -ENOMEM;
	for (size_t i = 0; i < in->n_ranges; i++) {
		const struct msg_range *r = &in->ranges[i];

		pb->first_page[pb->n_first_page++] = r->start / CR_PAGE_SIZE;
		pb->n_pages[pb->n_n_pages++] = (r->end - r->start) / CR_PAGE_SIZE;
	}
	return 0;
}

int msg_get_reset(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	const uint64_t pages_max = UINT64_MAX / CR_PAGE_SIZE;
	struct msg_reset *out = &m->reset;
	Wire__Reset *pb = p;

	if (pb->n_first_page != pb->n_n_pages)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%zu ranges with %zu lengths",
				  pb->n_first_page, pb->n_n_pages);
	out->pid = (pid_t)pb->pid;
	out->object = get_index(pb->object);
	out->taken_back = pb->taken_back;
	out->ranges = arena_array(a, struct msg_range, pb->n_first_page);
	if (!out->ranges)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_first_page; i++) {
		uint64_t first = pb->first_page[i], n = pb->n_pages[i];

		if (first > pages_max || n > pages_max - first)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "range %zu is out of bounds",
					  i);
		out->ranges[out->n_ranges++] =
		    (struct msg_range){first * CR_PAGE_SIZE, (first + n) * CR_PAGE_SIZE};
	}
	return 0;
}

int msg_put_waiting(struct arena *a, const struct msg *m, void *p)
{
	Wire__Waiting *pb = p;

	(void)a;
	pb->list = pb_bytes(m->waiting.list, m->waiting.len);
	return 0;
}

int msg_get_waiting(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Waiting *pb = p;

	(void)a, (void)err;
	m->waiting.list = pb->list.data;
	m->waiting.len = pb->list.len;
	return 0;
}

/* clang-format off */
#define PACKET_NUMBERS(X) \
	X(flags) X(gso_type) X(hdr_len) X(gso_size) X(csum_start) X(csum_offset)
/* clang-format on */

int msg_put_packets(struct arena *a, const struct msg *m, void *p)
{
	Wire__Packets *pb = p;

	pb->list = arena_array(a, Wire__Packet *, m->packets.n);
	if (!pb->list)
		return -ENOMEM;
	for (size_t i = 0; i < m->packets.n; i++) {
		const struct msg_packet *in = &m->packets.v[i];
		Wire__Packet *out = pb_new(a, &wire__packet__descriptor);

		if (!out)
			return -ENOMEM;
#define COPY(f) out->f = in->f;
		PACKET_NUMBERS(COPY)
		out->data = pb_bytes(in->data, in->len);
		pb->list[pb->n_list++] = out;
	}
	return 0;
}

int msg_get_packets(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Packets *pb = p;

	m->packets.v = arena_array(a, struct msg_packet, pb->n_list);
	if (!m->packets.v)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_list; i++) {
		const Wire__Packet *in = pb->list[i];
		struct msg_packet *out = &m->packets.v[m->packets.n++];

		PACKET_NUMBERS(COPY)
#undef COPY
		out->data = in->data.data;
		out->len = in->data.len;
	}
	return 0;
}

int msg_put_clock_reply(struct arena *a, const struct msg *m, void *p)
{
	Wire__ClockReply *pb = p;

	(void)a;
	pb->monotonic_ns = m->clock_reply.monotonic_ns;
	pb->boottime_ns = m->clock_reply.boottime_ns;
	return 0;
}

int msg_get_clock_reply(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__ClockReply *pb = p;

	(void)a, (void)err;
	m->clock_reply.monotonic_ns = pb->monotonic_ns;
	m->clock_reply.boottime_ns = pb->boottime_ns;
	return 0;
}

int msg_put_verify(struct arena *a, const struct msg *m, void *p)
{
	return put_digests(a, &m->verify, p);
}

int msg_get_verify(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	return get_digests(a, &m->verify, p, err);
}

int msg_put_prepared(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_prepared *in = &m->prepared;
	Wire__Prepared *pb = p;

	pb->takes_closed = in->takes_closed;
	pb->parts = arena_array(a, Wire__Part *, in->n_parts);
	if (!pb->parts)
		return -ENOMEM;
	for (size_t i = 0; i < in->n_parts; i++) {
		Wire__Part *part = pb_new(a, &wire__part__descriptor);

		if (!part)
			return -ENOMEM;
		part->name = pb_string(in->parts[i].name);
		part->us = in->parts[i].us;
		pb->parts[pb->n_parts++] = part;
	}
	return 0;
}

int msg_get_prepared(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_prepared *out = &m->prepared;
	Wire__Prepared *pb = p;

	out->takes_closed = pb->takes_closed;
	out->parts = arena_array(a, struct msg_part, pb->n_parts);
	if (!out->parts)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_parts; i++)
		out->parts[out->n_parts++] =
		    (struct msg_part){msg_text(pb->parts[i]->name), pb->parts[i]->us};
	return 0;
}

int msg_put_running(struct arena *a, const struct msg *m, void *p)
{
	Wire__Running *pb = p;

	(void)a;
	pb->us = m->running.us;
	return 0;
}

int msg_get_running(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Running *pb = p;

	(void)a, (void)err;
	m->running.us = pb->us;
	return 0;
}

int msg_put_query(struct arena *a, const struct msg *m, void *p)
{
	Wire__Query *pb = p;

	return msg_put_id(a, &m->query.id, &pb->id);
}

int msg_get_query(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Query *pb = p;

	(void)a;
	return msg_get_id(&pb->id, &m->query.id, err);
}

int msg_put_state(struct arena *a, const struct msg *m, void *p)
{
	Wire__State *pb = p;

	(void)a;
	pb->state = (Wire__PeerState)m->state.state;
	pb->text = pb_string(m->state.text);
	return 0;
}

int msg_get_state(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__State *pb = p;

	(void)a, (void)err;
	m->state.state = (enum msg_peer_state)pb->state;
	m->state.text = msg_text(pb->text);
	return 0;
}

int msg_put_lazy(struct arena *a, const struct msg *m, void *p)
{
	Wire__Lazy *pb = p;

	(void)a;
	pb->kind = (uint32_t)m->lazy.kind;
	pb->image = pb_string(m->lazy.image);
	pb->pair = m->lazy.pair;
	return 0;
}

int msg_get_lazy(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Lazy *pb = p;

	(void)a, (void)err;
	m->lazy.kind = (enum msg_lazy_kind)pb->kind;
	m->lazy.image = msg_text(pb->image);
	m->lazy.pair = pb->pair;
	return 0;
}
