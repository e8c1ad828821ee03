#include "kernel/pendview.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "kernel/bpf_iter.h"
#include "kernel/kread.h"

enum {
	KFUNC_CALL = 2, /* BPF_PSEUDO_KFUNC_CALL */
	BUFFER_MAX = 1024,
	PACKETS_MAX = 1 << 16,
};

/* What the program writes for each socket. */
struct record {
	uint64_t fd, address, level;
	uint64_t family, type, protocol, error, to_read, reading, to_send, notices, zerocopied,
	    multicast_if;
};

#define RECORD_AT(member) ((int)offsetof(struct record, member) - (int)sizeof(struct record))

/* A udp_sock begins with all the others. */
static const struct {
	const char *type, *name;
	bool queue; /* of which the length is wanted */
	int to;
} of_socket[] = {
    {"sock_common", "skc_family", false, RECORD_AT(family)},
    {"sock", "sk_type", false, RECORD_AT(type)},
    {"sock", "sk_protocol", false, RECORD_AT(protocol)},
    {"sock", "sk_err", false, RECORD_AT(error)},
    {"sock", "sk_receive_queue", true, RECORD_AT(to_read)},
    {"udp_sock", "reader_queue", true, RECORD_AT(reading)},
    {"sock", "sk_write_queue", true, RECORD_AT(to_send)},
    {"sock", "sk_error_queue", true, RECORD_AT(notices)},
    {"sock", "sk_zckey", false, RECORD_AT(zerocopied)},
    {"inet_sock", "mc_index", false, RECORD_AT(multicast_if)},
};

/* Where the kernel keeps what is wanted of packets. */
enum of_packet {
	QUEUE,
	NEXT,
	SENDER,
	CONTROL,
	LEN,
	PEEKED,
	PID,
	UID,
	GID,
	RIGHTS,
	NAME,
	NAME_LEN,
	NAME_BYTES,
	LEVEL,
	NUMBERS,
	NUMBER,
	N_OF_PACKET,
};
static const struct {
	const char *type, *name;
} of_packet[N_OF_PACKET] = {
    [QUEUE] = {"sock", "sk_receive_queue"},
    [NEXT] = {"sk_buff", "next"},
    [SENDER] = {"sk_buff", "sk"},
    [CONTROL] = {"sk_buff", "cb"},
    [LEN] = {"sk_buff", "len"},
    [PEEKED] = {"sk_buff", "peeked"},
    [PID] = {"unix_skb_parms", "pid"},
    [UID] = {"unix_skb_parms", "uid"},
    [GID] = {"unix_skb_parms", "gid"},
    [RIGHTS] = {"unix_skb_parms", "fp"},
    [NAME] = {"unix_sock", "addr"},
    [NAME_LEN] = {"unix_address", "len"},
    [NAME_BYTES] = {"unix_address", "name"},
    [LEVEL] = {"pid", "level"},
    [NUMBERS] = {"pid", "numbers"},
    [NUMBER] = {"upid", "nr"},
};

struct pendview {
	struct bpf_view view;
	struct kread *mem; /* NULL: packets cannot be told of */
	struct bpf_member at[N_OF_PACKET];
	size_t buffer, upid; /* sizes */
};

/* ---- the program ---- */

static void store(struct bpf_code *p, unsigned int reg, int at)
{
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, reg, at, 0);
}

/* How deep the process's pid namespace is, which is ours. Register 8 is the context. */
static int emit_level(struct bpf_code *p, const struct btf *btf, struct cr_err *err)
{
	struct bpf_member pid, level;
	int r = bpf_locate_member(btf, "task_struct", "thread_pid", &pid, err);

	if (!r)
		r = bpf_locate_member(btf, "pid", "level", &level, err);
	if (r)
		return r;
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, 8, 8);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 3, 0);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_2, pid.off, 8);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_2, level.off, level.bytes);
	store(p, BPF_REG_2, RECORD_AT(level));
	return 0;
}

/* Register 8 is the socket. */
static int emit_members(struct bpf_code *p, const struct btf *btf, struct cr_err *err)
{
	struct bpf_member length;
	int r = bpf_locate_member(btf, "sk_buff_head", "qlen", &length, err);

	for (size_t i = 0; i < ARRAY_SIZE(of_socket) && !r; i++) {
		struct bpf_member at;

		r = bpf_locate_member(btf, of_socket[i].type, of_socket[i].name, &at, err);
		if (r)
			return r;
		if (of_socket[i].queue) {
			at.off += length.off;
			at.bytes = length.bytes;
		}
		bpf_emit_load(p, BPF_REG_2, BPF_REG_8, at.off, at.bytes);
		store(p, BPF_REG_2, of_socket[i].to);
	}
	return r;
}

static void emit_return(struct bpf_code *p)
{
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

/* struct bpf_iter__task_file { meta; task; u32 fd; file; } */
static int emit_all(struct bpf_code *p, const struct btf *btf, struct cr_err *err)
{
	int cast = btf__find_by_name_kind(btf, "bpf_rdonly_cast", BTF_KIND_FUNC); /* 6.2 */
	int type = btf__find_by_name_kind(btf, "udp_sock", BTF_KIND_STRUCT);
	struct bpf_member sk;
	int r = bpf_locate_member(btf, "socket", "sk", &sk, err);

	if (!r && (cast < 0 || type < 0))
		r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "this kernel has no bpf_rdonly_cast");
	if (r)
		return r;
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_8, BPF_REG_1, 0, 0);
	bpf_emit_begin(p, 3);
	for (int at = -(int)sizeof(struct record); at < 0; at += 8)
		bpf_emit(p, BPF_ST | BPF_MEM | BPF_DW, BPF_REG_10, 0, at, 0);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, 16, 4);
	store(p, BPF_REG_2, RECORD_AT(fd));
	r = emit_level(p, btf, err);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_sock_from_file);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_0, 0, 2, 0);
	emit_return(p);
	bpf_emit_load(p, BPF_REG_8, BPF_REG_0, sk.off, 8);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_8, 0, 2, 0);
	emit_return(p);
	store(p, BPF_REG_8, RECORD_AT(address));
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_8, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, type);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, KFUNC_CALL, 0, cast);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_8, BPF_REG_0, 0, 0);
	if (!r)
		r = emit_members(p, btf, err);
	bpf_emit_write(p, sizeof(struct record));
	return r;
}

static int find_all(struct pendview *v, const struct btf *btf, struct cr_err *err)
{
	int buffer = btf__find_by_name_kind(btf, "sk_buff", BTF_KIND_STRUCT);
	int upid = btf__find_by_name_kind(btf, "upid", BTF_KIND_STRUCT);
	int r = 0;

	for (int i = 0; i < N_OF_PACKET && !r; i++)
		r = bpf_locate_member(btf, of_packet[i].type, of_packet[i].name, &v->at[i], err);
	if (r)
		return r;
	v->buffer = buffer > 0 ? (size_t)btf__resolve_size(btf, (uint32_t)buffer) : 0;
	v->upid = upid > 0 ? (size_t)btf__resolve_size(btf, (uint32_t)upid) : 0;
	return v->buffer && v->buffer <= BUFFER_MAX
		   ? 0
		   : cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				"this kernel's struct sk_buff has an unknown size");
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct pendview *v = arg;
	struct bpf_code p = {.n = 0};
	int r = emit_all(&p, btf, err);

	if (!r)
		r = bpf_iter_load(btf, "task_file", &p, &v->view.prog, err);
	if (!r)
		r = find_all(v, btf, err);
	return r ? r : kread_new(&v->mem, btf, err);
}

int pendview_new(struct pendview **ret, struct cr_err *err)
{
	struct bpf_view *v;
	int r = bpf_view_new(&v, sizeof(**ret), load, err);

	if (!r)
		*ret = (struct pendview *)v;
	return r;
}

void pendview_free(struct pendview *v)
{
	if (v)
		kread_free(v->mem);
	bpf_view_free((struct bpf_view *)v);
}

/* ---- sockets ---- */

/* KERNEL 6.18: of one task, what does not fit into one read(2) may be given again, as with
 * mappings (vmaview.c). Numbers ascend, so that shows. */
static bool goes_on(const void *last, const void *next)
{
	return ((const struct record *)next)->fd > ((const struct record *)last)->fd;
}

static struct pending pending_of(const struct record *r)
{
	bool ip = r->family == AF_INET || r->family == AF_INET6, udp = ip && r->type == SOCK_DGRAM;

	return (struct pending){
	    .fd = (int)r->fd,
	    .address = r->address,
	    .family = (int)r->family,
	    .type = (int)r->type,
	    .protocol = (int)r->protocol,
	    .error = (int)r->error,
	    .to_read = (uint32_t)(r->to_read + (udp ? r->reading : 0)),
	    .to_send = udp ? (uint32_t)r->to_send : 0,
	    .notices = (uint32_t)r->notices,
	    .zerocopied = (uint32_t)r->zerocopied,
	    .multicast_if = udp ? (uint32_t)r->multicast_if : 0,
	};
}

int pendview_read(const struct pendview *v, pid_t pid, struct pending_list *ret, struct cr_err *err)
{
	const union bpf_iter_link_info of = {.task = {.tid = (uint32_t)pid}};
	_cleanup_free_ void *buf = NULL;
	size_t bytes = 0;
	int r = bpf_iter_read(v->view.prog, &of, goes_on, sizeof(struct record), &buf, &bytes, err);

	*ret = (struct pending_list){0};
	if (r)
		return cr_err_ctx(err, "sockets of %d", pid);
	for (size_t i = 0; i < bytes / sizeof(struct record); i++) {
		const struct record *rec = (struct record *)buf + i;

		if (rec->family != AF_UNIX && rec->family != AF_INET && rec->family != AF_INET6)
			continue;
		struct pending *p = vec_push(&ret->list);
		if (!p)
			return cr_err_oom(err);
		*p = pending_of(rec);
		p->level = (uint32_t)rec->level;
	}
	return 0;
}

void pending_done(struct pending_list *l)
{
	vec_done(&l->list);
}

const struct pending *pending_find(const struct pending_list *l, int fd)
{
	size_t lo = 0, hi = l->list.n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (l->list.v[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < l->list.n && l->list.v[lo].fd == fd ? &l->list.v[lo] : NULL;
}

/* ---- packets ---- */

static uint64_t member(const struct pendview *v, const uint8_t *p, enum of_packet m)
{
	const struct bpf_member *at = &v->at[m];
	uint64_t value = 0;

	memcpy(&value, p + at->off, at->bytes < sizeof(value) ? at->bytes : sizeof(value));
	return at->mask ? value & (uint64_t)at->mask : value;
}

static int read_member(const struct pendview *v, struct kread *mem, uint64_t from, enum of_packet m,
		       uint64_t *ret, struct cr_err *err)
{
	const struct bpf_member *at = &v->at[m];

	*ret = 0;
	return kread_at(mem, from + (uint64_t)at->off, ret,
			at->bytes < sizeof(*ret) ? at->bytes : sizeof(*ret), err);
}

/* The number that it has in our pid namespace, level deep; 0: none. */
static int read_pid(const struct pendview *v, struct kread *mem, uint64_t pid, uint32_t level,
		    pid_t *ret, struct cr_err *err)
{
	uint64_t depth = 0, number = 0;
	int r = pid ? read_member(v, mem, pid, LEVEL, &depth, err) : 0;

	if (!r && pid && depth >= level)
		r = read_member(v, mem,
				pid + (uint64_t)v->at[NUMBERS].off + (uint64_t)level * v->upid,
				NUMBER, &number, err);
	*ret = (pid_t)number;
	return r;
}

static int read_name(const struct pendview *v, struct kread *mem, uint64_t sender,
		     struct pending_packet *p, struct cr_err *err)
{
	uint64_t name = 0, len = 0;
	int r = sender ? read_member(v, mem, sender, NAME, &name, err) : 0;

	if (!r && name)
		r = read_member(v, mem, name, NAME_LEN, &len, err);
	if (!r && len > sizeof(p->from))
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "a name of %llu bytes",
				  (unsigned long long)len);
	p->from_len = (socklen_t)len;
	return r || !len ? r
			 : kread_at(mem, name + (uint64_t)v->at[NAME_BYTES].off, &p->from,
				    (size_t)len, err);
}

static int read_packet(const struct pendview *v, struct kread *mem, uint64_t at, uint32_t level,
		       struct pending_packet *ret, uint64_t *ret_next, struct cr_err *err)
{
	uint8_t raw[BUFFER_MAX];
	int r = kread_at(mem, at, raw, v->buffer, err);
	const uint8_t *control = raw + v->at[CONTROL].off;

	if (r)
		return r;
	*ret_next = member(v, raw, NEXT);
	ret->len = (size_t)member(v, raw, LEN);
	ret->peeked = member(v, raw, PEEKED) != 0;
	ret->rights = member(v, control, RIGHTS) != 0;
	ret->uid = (uint32_t)member(v, control, UID);
	ret->gid = (uint32_t)member(v, control, GID);
	r = read_pid(v, mem, member(v, control, PID), level, &ret->pid, err);
	return r ? r : read_name(v, mem, member(v, raw, SENDER), ret, err);
}

int pendview_packets(const struct pendview *v, const struct pending *of,
		     struct pending_packets *ret, struct cr_err *err)
{
	uint64_t head = of->address + (uint64_t)v->at[QUEUE].off, at = 0;
	struct kread *mem = NULL;
	int r = kread_another(&mem, v->mem, err);

	*ret = (struct pending_packets){0};
	if (!r)
		r = kread_at(mem, head, &at, sizeof(at), err); /* the first member is `next` */
	while (!r && at != head) {
		struct pending_packet *p = at ? vec_push(&ret->list) : NULL;

		if (!p || ret->list.n > PACKETS_MAX) {
			r = at && !p ? cr_err_oom(err)
				     : cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
						  "a queue that changes, or is none");
			break;
		}
		memset(p, 0, sizeof(*p));
		r = read_packet(v, mem, at, of->level, p, &at, err);
	}
	kread_free(mem);
	return r ? cr_err_ctx(err, "packets of a unix socket") : 0;
}

void pending_packets_done(struct pending_packets *l)
{
	vec_done(&l->list);
}
