/* Nothing here is held by a lock, so each is read, its queues are walked, and then it is read once
 * more: if what is acknowledged and what is queued are the same, no segment has been freed in
 * between. What the segments say of their place has to add up to the queue without a gap. */
#include "kernel/orphanview.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/bpf_iter.h"
#include "kernel/kread.h"

enum {
	SOCK_MAX = 8192,
	SEGMENTS_MAX = 1 << 16,
	OUT_MAX = 256 << 20,
	FRAGS_MAX = 64,
	TRIES = 3,
	SILENCED_MAX = 1 << 16, /* a bucket each, always there; tcp_max_orphans is less, tcp(7) */
	FIN = 1,                /* TCPHDR_FIN, include/net/tcp.h */
	NET_IOV = 3, /* lowest bits of a netmem_ref that is no page, include/net/netmem.h */
};

/* What is wanted of struct tcp_sock, which begins with the others … */
enum of_sock {
	FAMILY,
	STATE,
	PEER_PORT,
	OUR_PORT,
	PORTS,
	PEER4,
	US4,
	PEER6,
	US6,
	SOCKET,
	SNDBUF,
	RCVBUF,
	SENT,
	QUEUE,
	MAX_WINDOW,
	CLOCK_OFFSET,
	USEC,
	SND_WND,
	SND_WL1,
	WRITE_SEQ,
	RCV_NXT,
	SND_NXT,
	SND_UNA,
	RCV_WND,
	RCV_WUP,
	OPTIONS,
	N_OF_SOCK,
};
static const struct place {
	const char *type, *name;
} of_sock[N_OF_SOCK] = {
    [FAMILY] = {"sock_common", "skc_family"},
    [STATE] = {"sock_common", "skc_state"},
    [PEER_PORT] = {"sock_common", "skc_dport"},
    [OUR_PORT] = {"sock_common", "skc_num"},
    [PORTS] = {"sock_common", "skc_portpair"},
    [PEER4] = {"sock_common", "skc_daddr"},
    [US4] = {"sock_common", "skc_rcv_saddr"},
    [PEER6] = {"sock_common", "skc_v6_daddr"},
    [US6] = {"sock_common", "skc_v6_rcv_saddr"},
    [SOCKET] = {"sock", "sk_socket"},
    [SNDBUF] = {"sock", "sk_sndbuf"},
    [RCVBUF] = {"sock", "sk_rcvbuf"},
    [SENT] = {"sock", "tcp_rtx_queue"},
    [QUEUE] = {"sock", "sk_write_queue"},
    [MAX_WINDOW] = {"tcp_sock", "max_window"},
    [CLOCK_OFFSET] = {"tcp_sock", "tsoffset"},
    [USEC] = {"tcp_sock", "tcp_usec_ts"},
    [SND_WND] = {"tcp_sock", "snd_wnd"},
    [SND_WL1] = {"tcp_sock", "snd_wl1"},
    [WRITE_SEQ] = {"tcp_sock", "write_seq"},
    [RCV_NXT] = {"tcp_sock", "rcv_nxt"},
    [SND_NXT] = {"tcp_sock", "snd_nxt"},
    [SND_UNA] = {"tcp_sock", "snd_una"},
    [RCV_WND] = {"tcp_sock", "rcv_wnd"},
    [RCV_WUP] = {"tcp_sock", "rcv_wup"},
    [OPTIONS] = {"tcp_sock", "rx_opt"},
};

/* … and of the others. */
enum of_rest {
	TIMESTAMPS,
	WSCALE,
	SACK,
	SND_WSCALE,
	RCV_WSCALE,
	MSS,
	NEXT,
	NODE,
	CONTROL,
	LEN,
	PAGED_LEN,
	END,
	HEAD,
	DATA,
	LEFT,
	RIGHT,
	SEQ,
	END_SEQ,
	FLAGS,
	N_FRAGS,
	FRAG_LIST,
	FRAGS,
	FRAG_PAGE,
	FRAG_LEN,
	FRAG_OFFSET,
	N_OF_REST,
};
static const struct place of_rest[N_OF_REST] = {
    [TIMESTAMPS] = {"tcp_options_received", "tstamp_ok"},
    [WSCALE] = {"tcp_options_received", "wscale_ok"},
    [SACK] = {"tcp_options_received", "sack_ok"},
    [SND_WSCALE] = {"tcp_options_received", "snd_wscale"},
    [RCV_WSCALE] = {"tcp_options_received", "rcv_wscale"},
    [MSS] = {"tcp_options_received", "mss_clamp"},
    [NEXT] = {"sk_buff", "next"},
    [NODE] = {"sk_buff", "rbnode"},
    [CONTROL] = {"sk_buff", "cb"},
    [LEN] = {"sk_buff", "len"},
    [PAGED_LEN] = {"sk_buff", "data_len"},
    [END] = {"sk_buff", "end"},
    [HEAD] = {"sk_buff", "head"},
    [DATA] = {"sk_buff", "data"},
    [LEFT] = {"rb_node", "rb_left"},
    [RIGHT] = {"rb_node", "rb_right"},
    [SEQ] = {"tcp_skb_cb", "seq"},
    [END_SEQ] = {"tcp_skb_cb", "end_seq"},
    [FLAGS] = {"tcp_skb_cb", "tcp_flags"},
    [N_FRAGS] = {"skb_shared_info", "nr_frags"},
    [FRAG_LIST] = {"skb_shared_info", "frag_list"},
    [FRAGS] = {"skb_shared_info", "frags"},
    [FRAG_PAGE] = {"skb_frag", "netmem"},
    [FRAG_LEN] = {"skb_frag", "len"},
    [FRAG_OFFSET] = {"skb_frag", "offset"},
};

/* sizes of structures */
enum { SOCK, SEGMENT, SHARED, FRAG, N_SIZES };
static const char *const sized[N_SIZES] = {
    [SOCK] = "tcp_sock",
    [SEGMENT] = "sk_buff",
    [SHARED] = "skb_shared_info",
    [FRAG] = "skb_frag",
};

struct orphanview {
	int prog;
	int silence, silenced; /* a program, and whom it is for: by the socket's address */
	struct kread *mem;
	uint32_t sock[N_OF_SOCK], rest[N_OF_REST]; /* in bits */
	size_t size[N_SIZES];
};

/* ---- where things are ---- */

static uint64_t bits_at(const uint8_t *p, uint32_t bit, unsigned int n)
{
	uint64_t value = 0;

	if (bit % 8 == 0) {
		memcpy(&value, p + bit / 8, n / 8);
		if (n >= 8)
			return value;
	}
	value = 0;
	for (unsigned int i = 0; i < n; i++)
		value |= (uint64_t)(p[(bit + i) / 8] >> (bit + i) % 8 & 1) << i;
	return value;
}

static int find_all(struct orphanview *v, const struct btf *btf, struct cr_err *err)
{
	int r = 0;

	for (int i = 0; i < N_OF_SOCK && !r; i++)
		r = bpf_find_bits(btf, of_sock[i].type, of_sock[i].name, &v->sock[i], err);
	for (int i = 0; i < N_OF_REST && !r; i++)
		r = bpf_find_bits(btf, of_rest[i].type, of_rest[i].name, &v->rest[i], err);
	for (int i = 0; i < N_SIZES && !r; i++) {
		int id = btf__find_by_name_kind(btf, sized[i], BTF_KIND_STRUCT);
		const struct btf_type *t = id > 0 ? btf__type_by_id(btf, (uint32_t)id) : NULL;

		v->size[i] = t ? t->size : 0;
		if (!v->size[i] || v->size[i] > SOCK_MAX)
			r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				       "this kernel's struct %s has an unknown size", sized[i]);
	}
	return r;
}

/* Binds those that the map knows to the loopback device: what its peer sends is not for it then,
 * and what it sends goes nowhere. Of others bpf_setsockopt() of an iterator (6.1) is not called. */
static void emit_silence(struct bpf_code *p, const struct orphanview *v)
{
	enum { LO = 'l' | 'o' << 8 };

	bpf_emit_begin(p, 1);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->sock[STATE] / 8, 1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 4, TCP_FIN_WAIT1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 3, TCP_CLOSING);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 2, TCP_LAST_ACK);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_6, -8, 0);
	bpf_emit(p, BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, v->silenced);
	bpf_emit(p, 0, 0, 0, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -8);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 11, 0);
	bpf_emit_load(p, BPF_REG_1, BPF_REG_0, 0, 4);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->sock[PORTS] / 8, 4);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_X, BPF_REG_1, BPF_REG_2, 8, 0);
	bpf_emit(p, BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -16, LO);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, SOL_SOCKET);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, SO_BINDTODEVICE);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_4, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_4, 0, 0, -16);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_5, 0, 0, 4);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_setsockopt);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static int load_silence(struct orphanview *v, const struct btf *btf, struct cr_err *err)
{
	struct bpf_map_create_opts opts = {.sz = sizeof(opts), .map_flags = BPF_F_NO_PREALLOC};
	struct bpf_code p = {.n = 0};

	v->silenced = bpf_map_create(BPF_MAP_TYPE_HASH, "cr_silenced", 8, 8, SILENCED_MAX, &opts);
	if (v->silenced < 0)
		return cr_err_sys(err, "a BPF map");
	emit_silence(&p, v);
	return bpf_iter_load(btf, "tcp", &p, &v->silence, err);
}

/* The record is the address of the socket. */
static void emit_all(struct bpf_code *p, const struct orphanview *v)
{
	bpf_emit_begin(p, 1); /* struct bpf_iter__tcp { meta; sk_common; uid; } */
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->sock[STATE] / 8, 1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 4, TCP_FIN_WAIT1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 3, TCP_CLOSING);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 2, TCP_LAST_ACK);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_6, -8, 0);
	bpf_emit_write(p, 8);
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct orphanview *v = arg;
	struct bpf_code p = {.n = 0};
	int r = find_all(v, btf, err);

	if (!r) {
		emit_all(&p, v);
		r = bpf_iter_load(btf, "tcp", &p, &v->prog, err);
	}
	if (!r)
		r = load_silence(v, btf, err);
	return r ? r : kread_new(&v->mem, btf, err);
}

int orphanview_new(struct orphanview **ret, struct cr_err *err)
{
	struct orphanview *v = calloc(1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	v->prog = v->silence = v->silenced = -1;
	int r = bpf_with_types(load, v, err);
	if (!r)
		*ret = v;
	else
		orphanview_free(v);
	return r;
}

void orphanview_free(struct orphanview *v)
{
	if (!v)
		return;
	close_fdp(&v->prog);
	close_fdp(&v->silence);
	close_fdp(&v->silenced);
	kread_free(v->mem);
	free(v);
}

void orphans_done(struct orphans *o)
{
	vec_foreach (k, &o->list)
		free(k->out);
	vec_done(&o->list);
}

/* ---- one socket ---- */

struct span {
	uint32_t from, to;
};

struct reading {
	const struct orphanview *v;
	struct kread *mem;
	uint64_t at; /* the socket */
	uint8_t sock[SOCK_MAX];
	struct orphan *o;
	VEC(uint64_t) segments;
	VEC(struct span) filled; /* of the queue */
	bool fin;
};

static uint64_t sock_field(const struct reading *r, enum of_sock m, unsigned int n)
{
	return bits_at(r->sock, r->v->sock[m], n);
}

static uint64_t field(const struct reading *r, const uint8_t *p, enum of_rest m, unsigned int n)
{
	return bits_at(p, r->v->rest[m], n);
}

static void decode_end(const struct reading *r, struct sockaddr_storage *sa, enum of_sock v4,
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

static void decode(struct reading *r)
{
	const uint8_t *options = r->sock + r->v->sock[OPTIONS] / 8;
	struct orphan *o = r->o;

	o->family = (int)sock_field(r, FAMILY, 16);
	decode_end(r, &o->us, US4, US6, htons((uint16_t)sock_field(r, OUR_PORT, 16)));
	decode_end(r, &o->peer, PEER4, PEER6, (uint16_t)sock_field(r, PEER_PORT, 16));
	o->state = (uint8_t)sock_field(r, STATE, 8);
	o->timestamps = field(r, options, TIMESTAMPS, 1);
	o->sack = field(r, options, SACK, 1);
	o->wscale = field(r, options, WSCALE, 1);
	o->snd_wscale = (uint32_t)field(r, options, SND_WSCALE, 4);
	o->rcv_wscale = (uint32_t)field(r, options, RCV_WSCALE, 4);
	o->mss = (uint32_t)field(r, options, MSS, 16);
	o->clock_offset = (uint32_t)sock_field(r, CLOCK_OFFSET, 32);
	o->usec = sock_field(r, USEC, 1);
	o->snd_una = (uint32_t)sock_field(r, SND_UNA, 32);
	o->snd_nxt = (uint32_t)sock_field(r, SND_NXT, 32);
	o->write_seq = (uint32_t)sock_field(r, WRITE_SEQ, 32);
	o->rcv_nxt = (uint32_t)sock_field(r, RCV_NXT, 32);
	o->snd_wl1 = (uint32_t)sock_field(r, SND_WL1, 32);
	o->snd_wnd = (uint32_t)sock_field(r, SND_WND, 32);
	o->max_window = (uint32_t)sock_field(r, MAX_WINDOW, 32);
	o->rcv_wnd = (uint32_t)sock_field(r, RCV_WND, 32);
	o->rcv_wup = (uint32_t)sock_field(r, RCV_WUP, 32);
	o->sndbuf = (uint32_t)sock_field(r, SNDBUF, 32);
	o->rcvbuf = (uint32_t)sock_field(r, RCVBUF, 32);
}

/* ---- its queues: segments that were sent in a tree, others in a list ---- */

static int no_segments(struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "a queue that changes, or is none");
}

static int walk_sent(struct reading *r, struct cr_err *err)
{
	VEC(uint64_t) todo = {0};
	uint64_t root = sock_field(r, SENT, 64);
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

static int walk_queue(struct reading *r, struct cr_err *err)
{
	uint64_t head = r->at + r->v->sock[QUEUE] / 8;
	uint64_t at = bits_at(r->sock, r->v->sock[QUEUE] + r->v->rest[NEXT], 64);
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

static int read_frags(struct reading *r, uint64_t shared_at, uint8_t *to, size_t len,
		      struct cr_err *err)
{
	const struct orphanview *v = r->v;
	uint8_t shared[SOCK_MAX];
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
static int read_segment(struct reading *r, uint64_t at, uint8_t **buf, size_t *room,
			struct cr_err *err)
{
	struct orphan *o = r->o;
	uint8_t raw[SOCK_MAX];
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
	struct span *s = vec_push(&r->filled);
	if (!s)
		return cr_err_oom(err);
	*s = (struct span){from, from + (uint32_t)len - done};
	memcpy(o->out + from, *buf + done, len - done);
	return 0;
}

static int cmp_span(const void *va, const void *vb)
{
	const struct span *a = va, *b = vb;

	return (a->from > b->from) - (a->from < b->from);
}

static int check_filled(struct reading *r, struct cr_err *err)
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

static int read_out(struct reading *r, struct cr_err *err)
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

static bool is_ending(const struct reading *r)
{
	uint64_t state = sock_field(r, STATE, 8);

	return !sock_field(r, SOCKET, 64) &&
	       (state == TCP_FIN_WAIT1 || state == TCP_CLOSING || state == TCP_LAST_ACK);
}

/* Is it as it was? What the peer has said of its window meanwhile is news. */
static int read_again(struct reading *r, struct cr_err *err)
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

/* 1: it is there, 0: it is not wanted, or none any more. */
static int look(struct reading *r, orphan_wanted_fn wanted, void *arg, struct cr_err *err)
{
	int e = kread_at(r->mem, r->at, r->sock, r->v->size[SOCK], err);

	if (e || !is_ending(r))
		return e;
	decode(r);
	return (r->o->family == AF_INET || r->o->family == AF_INET6) && wanted(r->o, arg);
}

static int read_once(struct reading *r, orphan_wanted_fn wanted, void *arg, struct cr_err *err)
{
	int e = look(r, wanted, arg, err);

	if (e != 1)
		return e;
	e = read_out(r, err);
	if (!e)
		e = read_again(r, err);
	return e ? e : 1;
}

static int read_one(const struct orphanview *v, struct kread *mem, uint64_t at,
		    orphan_wanted_fn wanted, void *arg, struct orphans *ret, struct cr_err *err)
{
	struct orphan o = {0};
	int e = -EAGAIN;

	for (int i = 0; i < TRIES && e < 0 && e != -ENOMEM; i++) {
		struct reading r = {.v = v, .mem = mem, .at = at, .o = &o};

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

/* ---- all of them ---- */

/* Of at[], n of them, those that are wanted come first; returns their number. */
static size_t choose(const struct orphanview *v, struct kread *mem, uint64_t *at, uint64_t *ports,
		     size_t n, orphan_wanted_fn wanted, void *arg)
{
	struct cr_err ignored = {0};
	size_t kept = 0;

	for (size_t i = 0; i < n; i++) {
		struct orphan o = {0};
		struct reading r = {.v = v, .mem = mem, .at = at[i], .o = &o};

		if (look(&r, wanted, arg, &ignored) != 1)
			continue;
		ports[kept] = sock_field(&r, PORTS, 32);
		at[kept++] = at[i];
	}
	return kept;
}

static int silence(const struct orphanview *v, const uint64_t *at, const uint64_t *ports, size_t n,
		   struct cr_err *err)
{
	const union bpf_iter_link_info all = {0};
	void *none = NULL;
	size_t bytes = 0;
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		if (bpf_map_update_elem(v->silenced, &at[i], &ports[i], BPF_ANY))
			r = cr_err_sys(err, "a BPF map");
	if (!r)
		r = bpf_iter_read(v->silence, &all, NULL, &none, &bytes, err);
	free(none);
	for (size_t i = 0; i < n; i++)
		if (bpf_map_delete_elem(v->silenced, &at[i]) && !r && errno != ENOENT)
			r = cr_err_sys(err, "a BPF map");
	return r;
}

int orphanview_read(const struct orphanview *v, bool take, orphan_wanted_fn wanted, void *arg,
		    struct orphans *ret, struct cr_err *err)
{
	const union bpf_iter_link_info all = {0};
	struct kread *mem = NULL;
	void *buf = NULL;
	size_t bytes = 0, n = 0;
	int r = bpf_iter_read(v->prog, &all, NULL, &buf, &bytes, err);
	_cleanup_free_ uint64_t *at = buf, *ports = calloc(bytes / 8 + 1, 8);

	if (!r && !ports)
		r = cr_err_oom(err);
	if (!r && bytes)
		r = kread_another(&mem, v->mem, err);
	if (!r && bytes)
		n = choose(v, mem, at, ports, bytes / 8, wanted, arg);
	if (!r && take && n)
		r = silence(v, at, ports, n, err);
	for (size_t i = 0; i < n && !r; i++)
		r = read_one(v, mem, at[i], wanted, arg, ret, err);
	kread_free(mem);
	return r ? cr_err_ctx(err, "connections that are ending") : 0;
}
