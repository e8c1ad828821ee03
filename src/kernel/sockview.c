#include "kernel/sockview.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "kernel/bpf_iter.h"

enum {
	KFUNC_CALL = 2,   /* BPF_PSEUDO_KFUNC_CALL */
	LOCKED_SIZES = 3, /* SOCK_SNDBUF_LOCK | SOCK_RCVBUF_LOCK, include/net/sock.h */
};

struct sockview {
	struct bpf_view view;
};

/* What the program writes for each descriptor; pointers are told apart, not followed. */
struct record {
	uint64_t fd, flags, pos, owner, ino, mode, uid, gid, locks;
	uint64_t cloexec; /* the word of the table that has its bit */
	/* the rest: of a TCP socket, or zero */
	uint64_t state, family, daddr, saddr, dport, sport, userlocks, window_clamp, hop_limit,
	    flow_label, mptcp;
	uint64_t daddr6[2], saddr6[2];
	uint64_t congestion, net, upper, signatures, filter, ip_options, keys;
	uint64_t digest;
};

#define RECORD_AT(member) ((int)offsetof(struct record, member) - (int)sizeof(struct record))

struct member {
	const char *type, *name;
	size_t to; /* in struct record */
};

#define OF_FILE(name, to)                                                                          \
	{                                                                                          \
		"file", name, offsetof(struct record, to)                                          \
	}
#define OF_INODE(name, to)                                                                         \
	{                                                                                          \
		"inode", name, offsetof(struct record, to)                                         \
	}
static const struct member of_file[] = {
    OF_FILE("f_flags", flags), OF_FILE("f_pos", pos),
    OF_FILE("f_owner", owner), /* a pointer since 6.12 */
};
static const struct member of_inode[] = {
    OF_INODE("i_ino", ino), OF_INODE("i_mode", mode),   OF_INODE("i_uid", uid),
    OF_INODE("i_gid", gid), OF_INODE("i_flctx", locks),
};

/* A tcp_sock begins with all the others. */
static const struct member of_socket[] = {
    {"sock_common", "skc_state", offsetof(struct record, state)},
    {"sock_common", "skc_family", offsetof(struct record, family)},
    {"sock_common", "skc_daddr", offsetof(struct record, daddr)},
    {"sock_common", "skc_rcv_saddr", offsetof(struct record, saddr)},
    {"sock_common", "skc_dport", offsetof(struct record, dport)},
    {"inet_sock", "inet_sport", offsetof(struct record, sport)},
    {"sock", "sk_userlocks", offsetof(struct record, userlocks)},
    {"sock", "sk_filter", offsetof(struct record, filter)},
    {"sock_common", "skc_net", offsetof(struct record, net)},
    {"inet_sock", "inet_opt", offsetof(struct record, ip_options)},
    {"inet_connection_sock", "icsk_ca_ops", offsetof(struct record, congestion)},
    {"inet_connection_sock", "icsk_ulp_ops", offsetof(struct record, upper)},
    {"tcp_sock", "md5sig_info", offsetof(struct record, signatures)},
    {"tcp_sock", "is_mptcp", offsetof(struct record, mptcp)},
    {"tcp_sock", "window_clamp", offsetof(struct record, window_clamp)},
};

/* The same for what a kernel may lack. */
static const struct member of_some_sockets[] = {
    {"tcp_sock", "ao_info", offsetof(struct record, keys)}, /* CONFIG_TCP_AO, 6.7 */
};

/* Where options are kept. What a kernel has not is an option that it has not. */
static const struct {
	const char *type, *name;
} options[] = {
    {"sock_common", "skc_reuse"},
    {"sock_common", "skc_reuseport"},
    {"sock_common", "skc_ipv6only"},
    {"sock_common", "skc_bound_dev_if"},
    {"sock_common", "skc_flags"},
    {"sock", "sk_peek_off"},
    {"sock", "sk_ll_usec"},
    {"sock", "sk_busy_poll_budget"},
    {"sock", "sk_prefer_busy_poll"},
    {"sock", "sk_userlocks"},
    {"sock", "sk_rcvtimeo"},
    {"sock", "sk_sndtimeo"},
    {"sock", "sk_rcvlowat"},
    {"sock", "sk_tsflags"},
    {"sock", "sk_bind_phc"},
    {"sock", "sk_max_pacing_rate"},
    {"sock", "sk_priority"},
    {"sock", "sk_mark"},
    {"sock", "sk_no_check_tx"},
    {"sock", "sk_no_check_rx"},
    {"sock", "sk_lingertime"},
    {"sock", "sk_txrehash"},
    {"sock", "sk_clockid"},
    {"sock", "sk_txtime_deadline_mode"},
    {"sock", "sk_txtime_report_errors"},
    {"inet_sock", "inet_flags"},
    {"inet_sock", "uc_ttl"},
    {"inet_sock", "tos"},
    {"inet_sock", "min_ttl"},
    {"inet_sock", "mc_ttl"},
    {"inet_sock", "pmtudisc"},
    {"inet_sock", "convert_csum"},
    {"inet_sock", "uc_index"},
    {"inet_sock", "mc_index"},
    {"inet_sock", "mc_addr"},
    {"inet_sock", "local_port_range"},
    {"inet_connection_sock", "icsk_rto_min"},
    {"inet_connection_sock", "icsk_rto_max"},
    {"inet_connection_sock", "icsk_delack_max"},
    {"inet_connection_sock", "icsk_syn_retries"},
    {"inet_connection_sock", "icsk_user_timeout"},
    {"tcp_sock", "nonagle"},
    {"tcp_sock", "notsent_lowat"},
    {"tcp_sock", "recvmsg_inq"},
    {"tcp_sock", "thin_lto"},
    {"tcp_sock", "fastopen_no_cookie"},
    {"tcp_sock", "save_syn"},
    {"tcp_sock", "keepalive_probes"},
    {"tcp_sock", "keepalive_time"},
    {"tcp_sock", "keepalive_intvl"},
    {"tcp_sock", "linger2"},
    {"tcp_sock", "tcp_tx_delay"},
};

/* A member of a member of inet_connection_sock. */
static const char *const in_accept_queue[] = {"rskq_defer_accept", "fastopenq"};

static const char *const options6[] = {
    "pmtudisc",  "tclass", "mcast_hops", "frag_size",    "ucast_oif",
    "mcast_oif", "rxopt",  "srcprefs",   "min_hopcount",
};

/* ---- the program ---- */

struct making {
	struct bpf_code *p;
	const struct btf *btf;
};

static int find(const struct making *m, const char *type, const char *name, struct bpf_member *ret,
		struct cr_err *err)
{
	return bpf_locate_member(m->btf, type, name, ret, err);
}

static void store(struct bpf_code *p, unsigned int reg, int at)
{
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, reg, at, 0);
}

static int emit_members(const struct making *m, const struct member *of, size_t n,
			unsigned int from, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		struct bpf_member at;
		int r = find(m, of[i].type, of[i].name, &at, err);

		if (r)
			return r;
		if (at.mask || (at.bytes != 1 && at.bytes != 2 && at.bytes != 4 && at.bytes != 8))
			return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "%s of %s has %zu bytes",
					  of[i].name, of[i].type, at.bytes);
		bpf_emit_load(m->p, BPF_REG_2, from, at.off, at.bytes);
		store(m->p, BPF_REG_2, (int)of[i].to - (int)sizeof(struct record));
	}
	return 0;
}

static void emit_zeros(struct bpf_code *p)
{
	for (int at = -(int)sizeof(struct record); at < 0; at += 8)
		bpf_emit(p, BPF_ST | BPF_MEM | BPF_DW, BPF_REG_10, 0, at, 0);
}

/* bpf_probe_read_kernel(record + to, bytes, register from + off) */
static void emit_copy(struct bpf_code *p, int to, size_t bytes, unsigned int from, int off)
{
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, to);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, (int32_t)bytes);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, from, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, off);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel);
}

/* Register 8 is the task, 9 the context. */
static int emit_cloexec(const struct making *m, struct cr_err *err)
{
	struct bpf_member files, table, bits;
	struct bpf_code *p = m->p;
	int r = find(m, "task_struct", "files", &files, err);

	if (!r)
		r = find(m, "files_struct", "fdt", &table, err);
	if (!r)
		r = find(m, "fdtable", "close_on_exec", &bits, err);
	if (r)
		return r;
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, files.off, 8);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_2, table.off, 8);
	bpf_emit_load(p, BPF_REG_4, BPF_REG_2, bits.off, 8);
	bpf_emit_load(p, BPF_REG_5, BPF_REG_9, 16, 4);
	store(p, BPF_REG_5, RECORD_AT(fd));
	bpf_emit(p, BPF_ALU64 | BPF_RSH | BPF_K, BPF_REG_5, 0, 0, 6);
	bpf_emit(p, BPF_ALU64 | BPF_LSH | BPF_K, BPF_REG_5, 0, 0, 3);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_X, BPF_REG_4, BPF_REG_5, 0, 0);
	emit_copy(p, RECORD_AT(cloexec), 8, BPF_REG_4, 0);
	return 0;
}

static int emit_file(const struct making *m, struct cr_err *err)
{
	struct bpf_member inode;
	int r = find(m, "file", "f_inode", &inode, err);

	if (!r)
		r = emit_members(m, of_file, ARRAY_SIZE(of_file), BPF_REG_6, err);
	if (r)
		return r;
	bpf_emit_load(m->p, BPF_REG_8, BPF_REG_6, inode.off, 8);
	return emit_members(m, of_inode, ARRAY_SIZE(of_inode), BPF_REG_8, err);
}

/* Jumps to the end of the program, which are many: their targets are filled in last. */
static void emit_unless(struct bpf_code *p, uint8_t jump, unsigned int reg, int32_t value,
			struct bpf_jumps *to_end)
{
	to_end->at[to_end->n++] = p->n;
	bpf_emit(p, BPF_JMP | jump | BPF_K, reg, 0, 0, value);
}

static void land(struct bpf_code *p, const struct bpf_jumps *j)
{
	for (size_t i = 0; i < j->n; i++)
		p->insn[j->at[i]].off = (int16_t)(p->n - j->at[i] - 1);
}

/* Register 8 becomes the tcp_sock of a stream socket of TCP. */
static int emit_socket(const struct making *m, struct bpf_jumps *to_end, struct cr_err *err)
{
	int cast = btf__find_by_name_kind(m->btf, "bpf_rdonly_cast", BTF_KIND_FUNC); /* 6.2 */
	int type = btf__find_by_name_kind(m->btf, "tcp_sock", BTF_KIND_STRUCT);
	struct bpf_member sk, protocol, kind;
	struct bpf_code *p = m->p;
	int r = find(m, "socket", "sk", &sk, err);

	if (!r)
		r = find(m, "sock", "sk_protocol", &protocol, err);
	if (!r)
		r = find(m, "sock", "sk_type", &kind, err);
	if (!r && (cast < 0 || type < 0))
		r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "this kernel has no bpf_rdonly_cast");
	if (r)
		return r;
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_sock_from_file);
	emit_unless(p, BPF_JEQ, BPF_REG_0, 0, to_end);
	bpf_emit_load(p, BPF_REG_8, BPF_REG_0, sk.off, 8);
	emit_unless(p, BPF_JEQ, BPF_REG_8, 0, to_end);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, protocol.off, protocol.bytes);
	emit_unless(p, BPF_JNE, BPF_REG_2, IPPROTO_TCP, to_end);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, kind.off, kind.bytes);
	emit_unless(p, BPF_JNE, BPF_REG_2, SOCK_STREAM, to_end);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_8, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, type);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, KFUNC_CALL, 0, cast);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_8, BPF_REG_0, 0, 0);
	r = emit_members(m, of_socket, ARRAY_SIZE(of_socket), BPF_REG_8, err);
	for (size_t i = 0; i < ARRAY_SIZE(of_some_sockets) && !r; i++) {
		struct cr_err absent = {0};
		struct bpf_member at;

		if (!find(m, of_some_sockets[i].type, of_some_sockets[i].name, &at, &absent))
			r = emit_members(m, &of_some_sockets[i], 1, BPF_REG_8, err);
	}
	return r;
}

/* Register 9 is the digest, 5 an odd number: one step is reversible, so that a difference in one
 * member always shows. */
static void emit_mix(struct bpf_code *p, unsigned int from, const struct bpf_member *at,
		     size_t word)
{
	size_t bytes = at->bytes - word < 8 ? at->bytes - word : 8;

	bpf_emit_load(p, BPF_REG_2, from, at->off + (int)word, bytes);
	if (at->mask)
		bpf_emit(p, BPF_ALU64 | BPF_AND | BPF_K, BPF_REG_2, 0, 0, at->mask);
	bpf_emit(p, BPF_ALU64 | BPF_XOR | BPF_X, BPF_REG_9, BPF_REG_2, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MUL | BPF_X, BPF_REG_9, BPF_REG_5, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_9, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_RSH | BPF_K, BPF_REG_3, 0, 0, 32);
	bpf_emit(p, BPF_ALU64 | BPF_XOR | BPF_X, BPF_REG_9, BPF_REG_3, 0, 0);
}

static int emit_mix_member(const struct making *m, unsigned int from, const char *type,
			   const char *name, struct cr_err *err)
{
	struct bpf_member at;
	struct cr_err absent = {0};

	if (find(m, type, name, &at, &absent))
		return 0;
	if (at.bytes != 1 && at.bytes != 2 && at.bytes != 4 && at.bytes != 8)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "%s of %s has %zu bytes", name, type,
				  at.bytes);
	emit_mix(m->p, from, &at, 0);
	return 0;
}

/* How many TCP_FASTOPEN allows, and TCP_DEFER_ACCEPT: of what a listener hands down. */
static int emit_accept_queue(const struct making *m, struct cr_err *err)
{
	struct bpf_member queue, at, fastopen;
	int r = find(m, "inet_connection_sock", "icsk_accept_queue", &queue, err);

	if (!r)
		r = find(m, "request_sock_queue", in_accept_queue[0], &at, err);
	if (r)
		return r;
	at.off += queue.off;
	emit_mix(m->p, BPF_REG_8, &at, 0);
	r = find(m, "request_sock_queue", in_accept_queue[1], &fastopen, err);
	if (!r)
		r = find(m, "fastopen_queue", "max_qlen", &at, err);
	if (r)
		return r;
	at.off += queue.off + fastopen.off;
	emit_mix(m->p, BPF_REG_8, &at, 0);
	return 0;
}

/* Register 4 becomes the part that is IPv6's. */
static int emit_six(const struct making *m, struct cr_err *err)
{
	struct bpf_member own, at;
	int r = find(m, "inet_sock", "pinet6", &own, err);

	if (r)
		return r;
	bpf_emit_load(m->p, BPF_REG_4, BPF_REG_8, own.off, 8);
	for (size_t i = 0; i < ARRAY_SIZE(options6) && !r; i++)
		r = emit_mix_member(m, BPF_REG_4, "ipv6_pinfo", options6[i], err);
	if (!r)
		r = find(m, "ipv6_pinfo", "hop_limit", &at, err);
	if (r)
		return r;
	bpf_emit_load(m->p, BPF_REG_2, BPF_REG_4, at.off, at.bytes);
	store(m->p, BPF_REG_2, RECORD_AT(hop_limit));
	r = find(m, "ipv6_pinfo", "flow_label", &at, err);
	if (r)
		return r;
	bpf_emit_load(m->p, BPF_REG_2, BPF_REG_4, at.off, at.bytes);
	store(m->p, BPF_REG_2, RECORD_AT(flow_label));
	return 0;
}

static int emit_addresses6(const struct making *m, struct cr_err *err)
{
	struct bpf_member d, s;
	int r = find(m, "sock_common", "skc_v6_daddr", &d, err);

	if (!r)
		r = find(m, "sock_common", "skc_v6_rcv_saddr", &s, err);
	if (r)
		return r;
	emit_copy(m->p, RECORD_AT(daddr6), 16, BPF_REG_8, d.off);
	emit_copy(m->p, RECORD_AT(saddr6), 16, BPF_REG_8, s.off);
	return 0;
}

static int emit_digest(const struct making *m, struct cr_err *err)
{
	const uint64_t odd = 0x9e3779b97f4a7c15; /* 2^64 by the golden ratio */
	struct bpf_jumps four = {0};
	struct bpf_code *p = m->p;
	int r;

	/* calls first: they keep no register below 6 */
	bpf_emit_load(p, BPF_REG_9, BPF_REG_10, RECORD_AT(family), 8);
	emit_unless(p, BPF_JNE, BPF_REG_9, AF_INET6, &four);
	r = emit_addresses6(m, err);
	land(p, &four);
	bpf_emit(p, BPF_LD | BPF_DW | BPF_IMM, BPF_REG_5, 0, 0, (int32_t)(uint32_t)odd);
	bpf_emit(p, 0, 0, 0, 0, (int32_t)(odd >> 32));
	for (size_t i = 0; i < ARRAY_SIZE(options) && !r; i++)
		r = emit_mix_member(m, BPF_REG_8, options[i].type, options[i].name, err);
	if (!r)
		r = emit_accept_queue(m, err);
	if (r)
		return r;
	four = (struct bpf_jumps){0};
	bpf_emit_load(p, BPF_REG_2, BPF_REG_10, RECORD_AT(family), 8);
	emit_unless(p, BPF_JNE, BPF_REG_2, AF_INET6, &four);
	r = emit_six(m, err);
	land(p, &four);
	store(p, BPF_REG_9, RECORD_AT(digest));
	return r;
}

/* struct bpf_iter__task_file { meta; task; u32 fd; file; } */
static int emit_all(const struct making *m, struct cr_err *err)
{
	struct bpf_code *p = m->p;
	struct bpf_jumps to_end = {0};

	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_9, BPF_REG_1, 0, 0);
	bpf_emit_begin(p, 3);
	emit_zeros(p);
	bpf_emit_load(p, BPF_REG_8, BPF_REG_9, 8, 8);
	emit_unless(p, BPF_JEQ, BPF_REG_8, 0, &to_end);
	int r = emit_cloexec(m, err);
	if (!r)
		r = emit_file(m, err);
	if (!r)
		r = emit_socket(m, &to_end, err);
	if (!r)
		r = emit_digest(m, err);
	land(p, &to_end);
	bpf_emit_write(p, sizeof(struct record));
	return r;
}

/* ---- reading ---- */

/* KERNEL 6.18: of one task, what does not fit into one read(2) may be given again, as with
 * mappings (bpf_iter_read_vmas). Numbers ascend, so that shows. */
static bool goes_on(const void *last, const void *next)
{
	return ((const struct record *)next)->fd > ((const struct record *)last)->fd;
}

static void put4(struct sockaddr_storage *sa, uint64_t addr, uint64_t port)
{
	struct sockaddr_in *in = (void *)sa;

	in->sin_family = AF_INET;
	in->sin_addr.s_addr = (uint32_t)addr;
	in->sin_port = (uint16_t)port;
}

static void put6(struct sockaddr_storage *sa, const uint64_t addr[2], uint64_t port)
{
	struct sockaddr_in6 *in6 = (void *)sa;

	in6->sin6_family = AF_INET6;
	memcpy(&in6->sin6_addr, addr, sizeof(in6->sin6_addr));
	in6->sin6_port = (uint16_t)port;
}

static bool is_link_local(const uint64_t addr[2])
{
	return IN6_IS_ADDR_LINKLOCAL((const struct in6_addr *)addr);
}

static bool is_special(const struct record *r)
{
	return r->owner || r->locks || r->userlocks & LOCKED_SIZES || r->flow_label || r->mptcp ||
	       r->upper || r->signatures || r->filter || r->ip_options || r->keys;
}

static bool is_connected(const struct record *r)
{
	switch (r->state) {
	case TCP_ESTABLISHED:
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:
	case TCP_CLOSE_WAIT:
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		break;
	default:
		return false;
	}
	if (!r->dport || !r->sport)
		return false;
	if (r->family == AF_INET)
		return r->daddr && r->saddr;
	return r->family == AF_INET6 && (r->daddr6[0] | r->daddr6[1]) &&
	       (r->saddr6[0] | r->saddr6[1]) && !is_link_local(r->daddr6) &&
	       !is_link_local(r->saddr6);
}

/* The part that BPF may compare, but not compute with: where the congestion control is, and which
 * network namespace's defaults count. */
static uint64_t options_of(const struct record *r)
{
	const uint64_t odd = 0x9e3779b97f4a7c15;
	uint64_t h = (r->digest ^ r->congestion) * odd;

	h ^= h >> 32;
	h = (h ^ r->net) * odd;
	h = (h ^ h >> 32 ^ r->family) * odd;
	return h ^ h >> 32;
}

static struct sock_facts facts_of(const struct record *r)
{
	struct sock_facts f = {
	    .fd = (int)r->fd,
	    .connection = is_connected(r) && !is_special(r),
	    .special = is_special(r),
	    .suspect = is_connected(r) && (r->filter || r->keys),
	    .cloexec = r->cloexec >> (r->fd % 64) & 1,
	    .flags = (uint32_t)r->flags,
	    .pos = r->pos,
	    .ino = r->ino,
	    .mode = (uint32_t)r->mode,
	    .uid = (uint32_t)r->uid,
	    .gid = (uint32_t)r->gid,
	    .family = (int)r->family,
	    .state = (uint8_t)r->state,
	    .options = options_of(r),
	    .window_clamp = (uint32_t)r->window_clamp,
	    .hop_limit = (int16_t)r->hop_limit,
	};

	if (f.family == AF_INET6) {
		put6(&f.us, r->saddr6, r->sport);
		put6(&f.peer, r->daddr6, r->dport);
	} else {
		put4(&f.us, r->saddr, r->sport);
		put4(&f.peer, r->daddr, r->dport);
	}
	return f;
}

int sockview_read(const struct sockview *v, pid_t pid, struct sock_facts_list *ret,
		  struct cr_err *err)
{
	const union bpf_iter_link_info of = {.task = {.tid = (uint32_t)pid}};
	_cleanup_free_ void *buf = NULL;
	size_t bytes = 0;
	int r = bpf_iter_read(v->view.prog, &of, goes_on, sizeof(struct record), &buf, &bytes, err);

	*ret = (struct sock_facts_list){0};
	if (r)
		return cr_err_ctx(err, "open files of %d", pid);
	for (size_t i = 0; i < bytes / sizeof(struct record); i++) {
		struct sock_facts *f = vec_push(&ret->list);

		if (!f) {
			sock_facts_done(ret);
			return cr_err_oom(err);
		}
		*f = facts_of((struct record *)buf + i);
	}
	return 0;
}

void sock_facts_done(struct sock_facts_list *l)
{
	vec_done(&l->list);
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct sockview *v = arg;
	struct bpf_code p = {.n = 0};
	const struct making m = {&p, btf};
	int r = emit_all(&m, err);

	return r ? r : bpf_iter_load(btf, "task_file", &p, &v->view.prog, err);
}

int sockview_new(struct sockview **ret, struct cr_err *err)
{
	struct bpf_view *v;
	int r = bpf_view_new(&v, sizeof(**ret), load, err);

	if (!r)
		*ret = (struct sockview *)v;
	return r;
}

void sockview_free(struct sockview *v)
{
	bpf_view_free((struct bpf_view *)v);
}
