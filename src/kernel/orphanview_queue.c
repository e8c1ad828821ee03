/* One connection. Nothing here is held by a lock, so each is read, its queues are walked, and then
 * it is read once more: if what is acknowledged and what is queued are the same, no segment has
 * been freed in between. What the segments say of their place has to add up to the queue without a
 * gap. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/orphanview_private.h"

enum {
	SEGMENTS_MAX = 1 << 16,
	OUT_MAX = 256 << 20,
	FRAGS_MAX = 64,
	TRIES = 3,
	FIN = 1,     /* TCPHDR_FIN, include/net/tcp.h */
	NET_IOV = 3, /* lowest bits of a netmem_ref that is no page, include/net/netmem.h */
};

static uint64_t field(const struct orphan_reading *r, const uint8_t *p, enum of_rest m,
		      unsigned int n)
{
	return orphan_bits(p, r->v->rest[m], n);
}

static void decode_end(const struct orphan_reading *r, struct sockaddr_storage *sa, enum of_sock v4,
		       enum of_sock v6, uint16_t port)
{
	struct sockaddr_in *in = (void *)sa;
	struct sockaddr_in6 *in6 = (void *)sa;

	memset(sa, 0, sizeof(*sa));
	sa->ss_family = (sa_family_t)r->o->family;
	in->sin_port = port; /* sin6_port is at the same place */
	if (r->o->family == AF_INET)
		memcpy(&in->sin_addr, r->sock + r->v->sock[v4] / 8, 4);
	else
		memcpy(&in6->sin6_addr, r->sock + r->v->sock[v6] / 8, 16);
}

static void decode(struct orphan_reading *r)
{
	const uint8_t *options = r->sock + r->v->sock[OPTIONS] / 8;
	struct orphan *o = r->o;

	o->family = (int)orphan_sock_field(r, FAMILY, 16);
	decode_end(r, &o->us, US4, US6, htons((uint16_t)orphan_sock_field(r, OUR_PORT, 16)));
	decode_end(r, &o->peer, PEER4, PEER6, (uint16_t)orphan_sock_field(r, PEER_PORT, 16));
	o->state = (uint8_t)orphan_sock_field(r, STATE, 8);
	o->timestamps = field(r, options, TIMESTAMPS, 1);
	o->sack = field(r, options, SACK, 1);
	o->wscale = field(r, options, WSCALE, 1);
	o->snd_wscale = (uint32_t)field(r, options, SND_WSCALE, 4);
	o->rcv_wscale = (uint32_t)field(r, options, RCV_WSCALE, 4);
	o->mss = (uint32_t)field(r, options, MSS, 16);
	o->clock_offset = (uint32_t)orphan_sock_field(r, CLOCK_OFFSET, 32);
	o->usec = orphan_sock_field(r, USEC, 1);
	o->snd_una = (uint32_t)orphan_sock_field(r, SND_UNA, 32);
	o->snd_nxt = (uint32_t)orphan_sock_field(r, SND_NXT, 32);
	o->write_seq = (uint32_t)orphan_sock_field(r, WRITE_SEQ, 32);
	o->rcv_nxt = (uint32_t)orphan_sock_field(r, RCV_NXT, 32);
	o->snd_wl1 = (uint32_t)orphan_sock_field(r, SND_WL1, 32);
	o->snd_wnd = (uint32_t)orphan_sock_field(r, SND_WND, 32);
	o->max_window = (uint32_t)orphan_sock_field(r, MAX_WINDOW, 32);
	o->rcv_wnd = (uint32_t)orphan_sock_field(r, RCV_WND, 32);
	o->rcv_wup = (uint32_t)orphan_sock_field(r, RCV_WUP, 32);
	o->sndbuf = (uint32_t)orphan_sock_field(r, SNDBUF, 32);
	o->rcvbuf = (uint32_t)orphan_sock_field(r, RCVBUF, 32);
}

/* ---- its queues: segments that were sent in a tree, others in a list ---- */

static int no_segments(struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "a queue that changes, or is none");
}

static int walk_sent(struct orphan_reading *r, struct cr_err *err)
{
	VEC(uint64_t) todo = {0};
	uint64_t root = orphan_sock_field(r, SENT, 64);
	uint64_t *first = root ? vec_push(&todo) : NULL;
	int e = root && !first ? cr_err_oom(err) : 0;

	if (first)
		*first = root;
	while (!e && todo.n) {
		uint64_t node = todo.v[--todo.n], next[2] = {0};
		uint64_t *slot = vec_push(&r->segments);
		uint8_t raw[3 * 8];

		if (!slot || r->segments.n > SEGMENTS_MAX) {
			e = slot ? no_segments(err) : cr_err_oom(err);
			break;
		}
		*slot = node - r->v->rest[NODE] / 8;
		e = kread_at(r->mem, node, raw, sizeof(raw), err);
		next[0] = field(r, raw, LEFT, 64);
		next[1] = field(r, raw, RIGHT, 64);
		for (int i = 0; i < 2 && !e; i++) {
			uint64_t *more = next[i] ? vec_push(&todo) : NULL;

			if (more)
				*more = next[i];
			else if (next[i])
				e = cr_err_oom(err);
		}
	}
	vec_done(&todo);
	return e;
}

static int walk_queue(struct orphan_reading *r, struct cr_err *err)
{
	uint64_t head = r->at + r->v->sock[QUEUE] / 8;
	uint64_t at = orphan_bits(r->sock, r->v->sock[QUEUE] + r->v->rest[NEXT], 64);
	int e = 0;

	while (!e && at != head) {
		uint64_t *slot = at ? vec_push(&r->segments) : NULL;

		if (!slot || r->segments.n > SEGMENTS_MAX)
			return at && !slot ? cr_err_oom(err) : no_segments(err);
		*slot = at;
		e = kread_at(r->mem, at + r->v->rest[NEXT] / 8, &at, 8, err);
	}
	return e;
}

/* ---- a segment ---- */

static int read_frags(struct orphan_reading *r, uint64_t shared_at, uint8_t *to, size_t len,
		      struct cr_err *err)
{
	const struct orphanview *v = r->v;
	uint8_t shared[ORPHAN_SOCK_MAX];
	int e = kread_at(r->mem, shared_at, shared, v->size[SHARED], err);
	size_t n = e ? 0 : field(r, shared, N_FRAGS, 8);
	const uint8_t *frag = shared + v->rest[FRAGS] / 8;

	if (!e && (field(r, shared, FRAG_LIST, 64) || n > FRAGS_MAX ||
		   v->rest[FRAGS] / 8 + n * v->size[FRAG] > v->size[SHARED]))
		return no_segments(err);
	for (size_t i = 0; i < n && !e; i++, frag += v->size[FRAG]) {
		uint64_t page = field(r, frag, FRAG_PAGE, 64);
		size_t bytes = field(r, frag, FRAG_LEN, 32);

		if (page & NET_IOV || bytes > len)
			return no_segments(err);
		e = kread_page(r->mem, page, field(r, frag, FRAG_OFFSET, 32), to, bytes, err);
		to += bytes;
		len -= bytes;
	}
	return e || !len ? e : no_segments(err);
}

/* What is acknowledged of it already is not wanted. */
static int read_segment(struct orphan_reading *r, uint64_t at, uint8_t **buf, size_t *room,
			struct cr_err *err)
{
	struct orphan *o = r->o;
	uint8_t raw[ORPHAN_SOCK_MAX];
	int e = kread_at(r->mem, at, raw, r->v->size[SEGMENT], err);
	const uint8_t *control = raw + r->v->rest[CONTROL] / 8;

	if (e)
		return e;
	size_t len = field(r, raw, LEN, 32), paged = field(r, raw, PAGED_LEN, 32);
	uint32_t seq = (uint32_t)field(r, control, SEQ, 32), done = o->snd_una - seq;
	bool fin = field(r, control, FLAGS, 8) & FIN;
	uint64_t head = field(r, raw, HEAD, 64);

	if ((int32_t)done < 0)
		done = 0;
	uint32_t from = seq + done - o->snd_una;
	if (paged > len || done > len + fin || len > OUT_MAX || from > o->out_len ||
	    len - (done > len ? len : done) > o->out_len - from ||
	    (uint32_t)field(r, control, END_SEQ, 32) != seq + (uint32_t)len + fin)
		return no_segments(err);
	r->fin |= fin;
	if (done >= len)
		return 0;
	if (len > *room) {
		free(*buf);
		*room = 0;
		*buf = malloc(len);
		if (!*buf)
			return cr_err_oom(err);
		*room = len;
	}
	e = kread_at(r->mem, field(r, raw, DATA, 64), *buf, len - paged, err);
	if (!e && paged)
		e = read_frags(r, head + field(r, raw, END, 32), *buf + len - paged, paged, err);
	if (e)
		return e;
	struct orphan_span *s = vec_push(&r->filled);
	if (!s)
		return cr_err_oom(err);
	*s = (struct orphan_span){from, from + (uint32_t)len - done};
	memcpy(o->out + from, *buf + done, len - done);
	return 0;
}

static int cmp_span(const void *va, const void *vb)
{
	const struct orphan_span *a = va, *b = vb;

	return (a->from > b->from) - (a->from < b->from);
}

static int check_filled(struct orphan_reading *r, struct cr_err *err)
{
	uint32_t at = 0;

	if (r->filled.n)
		qsort(r->filled.v, r->filled.n, sizeof(*r->filled.v), cmp_span);
	vec_foreach (s, &r->filled) {
		if (s->from != at)
			return no_segments(err);
		at = s->to;
	}
	return at == r->o->out_len && r->fin ? 0 : no_segments(err);
}

static int read_out(struct orphan_reading *r, struct cr_err *err)
{
	struct orphan *o = r->o;
	uint32_t queued = o->write_seq - o->snd_una; /* the FIN is the last of it */
	uint8_t *buf = NULL;
	size_t room = 0;

	if (!queued || queued > OUT_MAX)
		return no_segments(err);
	o->out_len = queued - 1;
	o->out = malloc(queued);
	int e = o->out ? walk_sent(r, err) : cr_err_oom(err);
	if (!e)
		e = walk_queue(r, err);
	for (size_t i = 0; i < r->segments.n && !e; i++)
		e = read_segment(r, r->segments.v[i], &buf, &room, err);
	free(buf);
	return e ? e : check_filled(r, err);
}

static bool is_ending(const struct orphan_reading *r)
{
	uint64_t state = orphan_sock_field(r, STATE, 8);

	return !orphan_sock_field(r, SOCKET, 64) &&
	       (state == TCP_FIN_WAIT1 || state == TCP_CLOSING || state == TCP_LAST_ACK);
}

/* Is it as it was? What the peer has said of its window meanwhile is news. */
static int read_again(struct orphan_reading *r, struct cr_err *err)
{
	const struct orphan before = *r->o, *now = r->o;
	int e = kread_at(r->mem, r->at, r->sock, r->v->size[SOCK], err);

	if (e)
		return e;
	decode(r);
	return is_ending(r) && before.state == now->state && before.snd_una == now->snd_una &&
		       before.snd_nxt == now->snd_nxt && before.write_seq == now->write_seq &&
		       before.rcv_nxt == now->rcv_nxt &&
		       !memcmp(&before.us, &now->us, sizeof(now->us)) &&
		       !memcmp(&before.peer, &now->peer, sizeof(now->peer))
		   ? 0
		   : no_segments(err);
}

int orphan_look(struct orphan_reading *r, orphan_wanted_fn wanted, void *arg, struct cr_err *err)
{
	int e = kread_at(r->mem, r->at, r->sock, r->v->size[SOCK], err);

	if (e || !is_ending(r))
		return e;
	decode(r);
	return (r->o->family == AF_INET || r->o->family == AF_INET6) && wanted(r->o, arg);
}

static int read_once(struct orphan_reading *r, orphan_wanted_fn wanted, void *arg,
		     struct cr_err *err)
{
	int e = orphan_look(r, wanted, arg, err);

	if (e != 1)
		return e;
	e = read_out(r, err);
	if (!e)
		e = read_again(r, err);
	return e ? e : 1;
}

int orphan_read_one(const struct orphanview *v, struct kread *mem, uint64_t at,
		    orphan_wanted_fn wanted, void *arg, struct orphans *ret, struct cr_err *err)
{
	struct orphan o = {0};
	int e = -EAGAIN;

	for (int i = 0; i < TRIES && e < 0 && e != -ENOMEM; i++) {
		struct orphan_reading r = {.v = v, .mem = mem, .at = at, .o = &o};

		free(o.out);
		o = (struct orphan){0};
		e = read_once(&r, wanted, arg, err);
		vec_done(&r.segments);
		vec_done(&r.filled);
	}
	struct orphan *slot = e == 1 ? vec_push(&ret->list) : NULL;
	if (slot)
		*slot = o;
	else
		free(o.out);
	if (e == -ENOMEM || (e == 1 && !slot))
		return cr_err_oom(err);
	ret->unread += e < 0;
	return 0;
}
