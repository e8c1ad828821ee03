#include "kernel/reqview.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/bpf_iter.h"

enum {
	NEW_SYN_RECV = 12, /* TCP_NEW_SYN_RECV, include/net/tcp_states.h */
	REQUEST_MAX = 440, /* the stack of a program has 512 bytes */
};

/* What is wanted of struct tcp_request_sock, which begins with the other three. */
enum member {
	FAMILY,
	STATE,
	PEER_PORT,
	OUR_PORT,
	PEER4,
	US4,
	PEER6,
	US6,
	LISTENER,
	MSS,
	ANSWERS,
	SND_WSCALE,
	RCV_WSCALE,
	TIMESTAMPS,
	SACK,
	WSCALE,
	ECN,
	MPTCP,
	FAST_OPEN,
	USEC,
	RCV_ISN,
	SND_ISN,
	CLOCK_OFFSET,
	N_MEMBERS,
};

static const struct {
	const char *type, *name;
} members[N_MEMBERS] = {
    [FAMILY] = {"sock_common", "skc_family"},
    [STATE] = {"sock_common", "skc_state"},
    [PEER_PORT] = {"sock_common", "skc_dport"},
    [OUR_PORT] = {"sock_common", "skc_num"},
    [PEER4] = {"sock_common", "skc_daddr"},
    [US4] = {"sock_common", "skc_rcv_saddr"},
    [PEER6] = {"sock_common", "skc_v6_daddr"},
    [US6] = {"sock_common", "skc_v6_rcv_saddr"},
    [LISTENER] = {"sock_common", "skc_listener"},
    [MSS] = {"request_sock", "mss"},
    [ANSWERS] = {"request_sock", "num_retrans"},
    [SND_WSCALE] = {"inet_request_sock", "snd_wscale"},
    [RCV_WSCALE] = {"inet_request_sock", "rcv_wscale"},
    [TIMESTAMPS] = {"inet_request_sock", "tstamp_ok"},
    [SACK] = {"inet_request_sock", "sack_ok"},
    [WSCALE] = {"inet_request_sock", "wscale_ok"},
    [ECN] = {"inet_request_sock", "ecn_ok"},
    [MPTCP] = {"tcp_request_sock", "is_mptcp"},
    [FAST_OPEN] = {"tcp_request_sock", "tfo_listener"},
    [USEC] = {"tcp_request_sock", "req_usec_ts"},
    [RCV_ISN] = {"tcp_request_sock", "rcv_isn"},
    [SND_ISN] = {"tcp_request_sock", "snt_isn"},
    [CLOCK_OFFSET] = {"tcp_request_sock", "ts_off"},
};

struct reqview {
	struct bpf_view view;
	size_t bytes; /* of a record: the request, and its listener's cookie */
	uint32_t bits[N_MEMBERS];
};

/* ---- the program ---- */

static void emit_copy(struct bpf_code *p, int to, size_t bytes)
{
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, to);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, (int32_t)bytes);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel);
}

/* The record is { all of the request; u64 cookie }. */
static void emit_all(struct bpf_code *p, const struct reqview *v, int32_t cookie_off)
{
	int record = -(int)v->bytes;

	bpf_emit_begin(p, 1); /* struct bpf_iter__tcp { meta; sk_common; uid; } */
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->bits[STATE] / 8, 1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 2, NEW_SYN_RECV);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_6, 0, 0);
	emit_copy(p, record, v->bytes - 8);
	bpf_emit_load(p, BPF_REG_3, BPF_REG_10, record + (int)v->bits[LISTENER] / 8, 8);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, cookie_off);
	emit_copy(p, -8, 8);
	bpf_emit_write(p, v->bytes);
}

static int find_all(struct reqview *v, const struct btf *btf, int32_t *cookie_off,
		    struct cr_err *err)
{
	size_t size;
	int id = btf__find_by_name_kind(btf, "tcp_request_sock", BTF_KIND_STRUCT);
	const struct btf_type *t = id > 0 ? btf__type_by_id(btf, (uint32_t)id) : NULL;
	int r = bpf_find_member(btf, "sock_common", "skc_cookie", cookie_off, &size, err);

	for (int i = 0; i < N_MEMBERS && !r; i++)
		r = bpf_find_bits(btf, members[i].type, members[i].name, &v->bits[i], err);
	if (r)
		return r;
	size = t ? (t->size + 7) / 8 * 8 : 0;
	if (!size || size > REQUEST_MAX)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				  "this kernel's struct tcp_request_sock has an unknown size");
	v->bytes = size + 8;
	return 0;
}

/* ---- reading ---- */

static uint32_t field(const struct reqview *v, const uint8_t *record, enum member m, unsigned int n)
{
	uint32_t bit = v->bits[m], value = 0;

	for (unsigned int i = 0; i < n; i++)
		value |= (uint32_t)(record[(bit + i) / 8] >> (bit + i) % 8 & 1) << i;
	return value;
}

static void address(const struct reqview *v, const uint8_t *record, enum member v4, enum member v6,
		    int family, uint8_t out[16])
{
	bool is_v6 = family == AF_INET6;

	memset(out, 0, 16);
	memcpy(out, record + v->bits[is_v6 ? v6 : v4] / 8, is_v6 ? 16 : 4);
}

static void decode(const struct reqview *v, const uint8_t *record, struct handshake *h)
{
	h->family = (int)field(v, record, FAMILY, 16);
	address(v, record, PEER4, PEER6, h->family, h->peer);
	address(v, record, US4, US6, h->family, h->us);
	h->peer_port = (uint16_t)field(v, record, PEER_PORT, 16);
	h->our_port = htons((uint16_t)field(v, record, OUR_PORT, 16));
	memcpy(&h->listener, record + v->bytes - 8, 8);
	h->rcv_seq = field(v, record, RCV_ISN, 32) + 1;
	h->snd_seq = field(v, record, SND_ISN, 32) + 1;
	h->mss = field(v, record, MSS, 16);
	h->snd_wscale = field(v, record, SND_WSCALE, 4);
	h->rcv_wscale = field(v, record, RCV_WSCALE, 4);
	h->clock_offset = field(v, record, CLOCK_OFFSET, 32);
	h->usec = field(v, record, USEC, 8);
	h->timestamps = field(v, record, TIMESTAMPS, 1);
	h->sack = field(v, record, SACK, 1);
	h->wscale = field(v, record, WSCALE, 1);
	h->ecn = field(v, record, ECN, 1);
	h->answers = field(v, record, ANSWERS, 8);
}

int reqview_read(const struct reqview *v, struct handshakes *ret, struct cr_err *err)
{
	const union bpf_iter_link_info all = {0};
	void *buf = NULL;
	size_t bytes = 0;
	int r = bpf_iter_read(v->view.prog, &all, NULL, 0, &buf, &bytes, err);
	_cleanup_free_ uint8_t *records = buf;

	if (r)
		return cr_err_ctx(err, "handshakes");
	for (size_t at = 0; at + v->bytes <= bytes; at += v->bytes) {
		/* of fast open the connection is there already */
		if (field(v, records + at, MPTCP, 8) || field(v, records + at, FAST_OPEN, 8))
			continue;
		struct handshake *h = vec_push(&ret->list);
		if (!h)
			return cr_err_oom(err);
		decode(v, records + at, h);
	}
	return 0;
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct reqview *v = arg;
	struct bpf_code p = {.n = 0};
	int32_t cookie_off = 0;
	int r = find_all(v, btf, &cookie_off, err);

	if (r)
		return r;
	emit_all(&p, v, cookie_off);
	return bpf_iter_load(btf, "tcp", &p, &v->view.prog, err);
}

int reqview_new(struct reqview **ret, struct cr_err *err)
{
	struct bpf_view *v;
	int r = bpf_view_new(&v, sizeof(**ret), load, err);

	if (!r)
		*ret = (struct reqview *)v;
	return r;
}

void reqview_free(struct reqview *v)
{
	bpf_view_free((struct bpf_view *)v);
}
