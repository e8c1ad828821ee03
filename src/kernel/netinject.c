/* The programs are few instructions and written out here. They say that they may be had under the
 * GPL too, without which the kernel lets no program call what the second one calls. */
#include "kernel/netinject.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include "base/clock.h"
#include "base/vec.h"
#include "kernel/bpf_iter.h"

enum {
	TCX_INGRESS = 46, /* enum bpf_attach_type, 6.6 */
	TCX_NEXT = -1,
	TO_INGRESS = 1, /* BPF_F_INGRESS */
	KFUNC_CALL = 2, /* BPF_PSEUDO_KFUNC_CALL */
	TUPLE_V4_BYTES = 12,
	TUPLE_V6_BYTES = 36,
	SEEN_MS = 100,
	UNSEEN = 1, /* a result that is none */
};

#define LICENSE "Dual BSD/GPL"
/* Tells our packets from others on the way from the one program to the other. */
#define MARK 0x63726d67
/* First byte of the source's address in the Ethernet header, which nobody reads but our program:
 * locally administered, and with this one the packet is marked. */
enum { PLAIN_BYTE = 0x02, MARKED_BYTE = 0x06 };

/* What the second program reads: struct bpf_tcp_req_attrs (net/tcp.h) and struct bpf_sock_tuple. */
struct handshake_value {
	uint32_t rcv_tsval, rcv_tsecr;
	uint16_t mss;
	uint8_t rcv_wscale, snd_wscale, ecn_ok, wscale_ok, sack_ok, tstamp_ok, usec_ts_ok,
	    reserved[3];
	uint32_t v6;
	int32_t result; /* of the program */
	uint8_t tuple[TUPLE_V6_BYTES];
};
enum { ATTRS_BYTES = offsetof(struct handshake_value, v6) };
_Static_assert(ATTRS_BYTES == 20, "as the kernel has it");

struct netinject {
	char dev[IFNAMSIZ];
	int ifindex;
	uint8_t mac[6];
	int tap;
	int forward, forward_link;          /* the program at the tap */
	int map, handshake, handshake_link; /* the one at the device; -1: not possible */
};

void netinject_free(struct netinject *n)
{
	if (!n)
		return;
	close_fdp(&n->handshake_link);
	close_fdp(&n->handshake);
	close_fdp(&n->map);
	close_fdp(&n->forward_link);
	close_fdp(&n->forward);
	close_fdp(&n->tap);
	free(n);
}

const char *netinject_device(const struct netinject *n)
{
	return n->dev;
}

bool netinject_knows_handshakes(const struct netinject *n)
{
	return n->handshake_link >= 0;
}

/* ---- programs ---- */

#define INSN(c, d, s, o, i)                                                                        \
	(struct bpf_insn)                                                                          \
	{                                                                                          \
		.code = (c), .dst_reg = (d), .src_reg = (s), .off = (int16_t)(o), .imm = (int)(i)  \
	}
#define MOV(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_K(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD_K(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define LOAD_W(d, s, o) INSN(BPF_LDX | BPF_MEM | BPF_W, d, s, o, 0)
#define STORE_W(d, s, o) INSN(BPF_STX | BPF_MEM | BPF_W, d, s, o, 0)
#define STORE_K(d, i, o) INSN(BPF_ST | BPF_MEM | BPF_W, d, 0, o, i)
#define LOAD_BYTE(at) INSN(BPF_LD | BPF_ABS | BPF_B, 0, 0, 0, at) /* of the packet; R6, to R0 */
#define JUMP_EQ(d, i, o) INSN(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, i)
#define JUMP_NE(d, i, o) INSN(BPF_JMP | BPF_JNE | BPF_K, d, 0, o, i)
#define CALL(f) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define EXIT() INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

static int load(const struct bpf_insn *code, size_t n, int *ret, struct cr_err *err)
{
	LIBBPF_OPTS(bpf_prog_load_opts, opts);
	int fd = bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "cr_inject", LICENSE, code, n, &opts);

	if (fd < 0)
		return cr_err_sys(err, "BPF program");
	*ret = fd;
	return 0;
}

static int link_to(int prog, int ifindex, int *ret, struct cr_err *err)
{
	int fd = bpf_link_create(prog, ifindex, (enum bpf_attach_type)TCX_INGRESS, NULL);

	if (fd < 0)
		return cr_err_sys(err, "BPF program at a network device");
	*ret = fd;
	return 0;
}

/* Whatever comes to the tap has come over the device. */
static int start_forwarding(struct netinject *n, int tap_index, struct cr_err *err)
{
	const struct bpf_insn code[] = {
	    MOV(BPF_REG_6, BPF_REG_1),
	    LOAD_BYTE(ETH_ALEN),
	    JUMP_NE(BPF_REG_0, MARKED_BYTE, 2),
	    MOV_K(BPF_REG_1, MARK),
	    STORE_W(BPF_REG_6, BPF_REG_1, offsetof(struct __sk_buff, mark)),
	    MOV_K(BPF_REG_1, n->ifindex),
	    MOV_K(BPF_REG_2, TO_INGRESS),
	    CALL(BPF_FUNC_redirect),
	    EXIT(),
	};
	int r = load(code, ARRAY_SIZE(code), &n->forward, err);

	return r ? r : link_to(n->forward, tap_index, &n->forward_link, err);
}

/* A marked packet becomes the last of the handshake that the map tells of. kfunc: the number of
 * bpf_sk_assign_tcp_reqsk(). */
static int load_handshake(struct netinject *n, int kfunc, struct cr_err *err)
{
	enum { VALUE_TUPLE = offsetof(struct handshake_value, tuple) };
	const struct bpf_insn code[] = {
	    MOV(BPF_REG_6, BPF_REG_1),
	    LOAD_W(BPF_REG_1, BPF_REG_6, offsetof(struct __sk_buff, mark)),
	    JUMP_NE(BPF_REG_1, MARK, 31), /* to the end */
	    MOV_K(BPF_REG_1, 0),
	    STORE_W(BPF_REG_6, BPF_REG_1, offsetof(struct __sk_buff, mark)),
	    STORE_K(BPF_REG_10, 0, -4),
	    INSN(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, n->map),
	    INSN(0, 0, 0, 0, 0),
	    MOV(BPF_REG_2, BPF_REG_10),
	    ADD_K(BPF_REG_2, -4),
	    CALL(BPF_FUNC_map_lookup_elem),
	    JUMP_EQ(BPF_REG_0, 0, 22),
	    MOV(BPF_REG_7, BPF_REG_0),
	    STORE_K(BPF_REG_7, -ENOENT, offsetof(struct handshake_value, result)),
	    /* who listens there? */
	    MOV(BPF_REG_1, BPF_REG_6),
	    MOV(BPF_REG_2, BPF_REG_7),
	    ADD_K(BPF_REG_2, VALUE_TUPLE),
	    MOV_K(BPF_REG_3, TUPLE_V4_BYTES),
	    LOAD_W(BPF_REG_8, BPF_REG_7, offsetof(struct handshake_value, v6)),
	    JUMP_EQ(BPF_REG_8, 0, 1),
	    MOV_K(BPF_REG_3, TUPLE_V6_BYTES),
	    MOV_K(BPF_REG_4, BPF_F_CURRENT_NETNS),
	    MOV_K(BPF_REG_5, 0),
	    CALL(BPF_FUNC_sk_lookup_tcp),
	    JUMP_EQ(BPF_REG_0, 0, 9),
	    MOV(BPF_REG_9, BPF_REG_0),
	    MOV(BPF_REG_1, BPF_REG_6),
	    MOV(BPF_REG_2, BPF_REG_9),
	    MOV(BPF_REG_3, BPF_REG_7),
	    MOV_K(BPF_REG_4, ATTRS_BYTES),
	    INSN(BPF_JMP | BPF_CALL, 0, KFUNC_CALL, 0, kfunc),
	    STORE_W(BPF_REG_7, BPF_REG_0, offsetof(struct handshake_value, result)),
	    MOV(BPF_REG_1, BPF_REG_9),
	    CALL(BPF_FUNC_sk_release),
	    MOV_K(BPF_REG_0, TCX_NEXT),
	    EXIT(),
	};

	return load(code, ARRAY_SIZE(code), &n->handshake, err);
}

static int find_kfunc(const struct btf *btf, void *ret, struct cr_err *err)
{
	(void)err;
	*(int *)ret = btf__find_by_name_kind(btf, "bpf_sk_assign_tcp_reqsk", BTF_KIND_FUNC);
	return 0;
}

/* Older kernels: not possible, and no error. */
static int start_handshakes(struct netinject *n, struct cr_err *err)
{
	struct cr_err ignored = {0};
	int kfunc = -1;

	if (bpf_with_types(find_kfunc, &kfunc, &ignored) || kfunc < 0)
		return 0;
	n->map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "cr_handshake", sizeof(int),
				sizeof(struct handshake_value), 1, NULL);
	if (n->map < 0)
		return cr_err_sys(err, "BPF map");
	int r = load_handshake(n, kfunc, err);
	return r ? r : link_to(n->handshake, n->ifindex, &n->handshake_link, err);
}

/* ---- the tap ---- */

static int learn_device(struct netinject *n, const char *dev, struct cr_err *err)
{
	struct ifreq rq = {0};
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(n->dev, sizeof(n->dev), "%s", dev);
	snprintf(rq.ifr_name, sizeof(rq.ifr_name), "%s", dev);
	n->ifindex = (int)if_nametoindex(dev);
	if (fd < 0 || !n->ifindex || ioctl(fd, SIOCGIFHWADDR, &rq))
		return cr_err_sys(err, "hardware address of %s", dev);
	if (rq.ifr_hwaddr.sa_family != ARPHRD_ETHER && rq.ifr_hwaddr.sa_family != ARPHRD_LOOPBACK)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EOPNOTSUPP, "%s is no Ethernet device",
				  dev);
	memcpy(n->mac, rq.ifr_hwaddr.sa_data, sizeof(n->mac));
	return 0;
}

/* Nobody is to find a router by it, and nobody to be told that it is there. */
static void no_ipv6(const char *tap)
{
	char path[80];

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", tap);
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "1", 1) != 1)
		return; /* it is deaf in any case */
}

static int make_tap(struct netinject *n, int *ret_index, struct cr_err *err)
{
	struct ifreq rq = {.ifr_name = "crmig%d", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	n->tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || n->tap < 0)
		return cr_err_sys(err, "/dev/net/tun");
	if (ioctl(n->tap, TUNSETIFF, &rq))
		return cr_err_sys(err, "tap device");
	no_ipv6(rq.ifr_name);
	*ret_index = (int)if_nametoindex(rq.ifr_name);
	rq.ifr_flags = IFF_UP | IFF_NOARP;
	if (ioctl(fd, SIOCSIFFLAGS, &rq))
		return cr_err_sys(err, "tap device %s", rq.ifr_name);
	return 0;
}

int netinject_open(struct netinject **ret, const char *dev, struct cr_err *err)
{
	struct netinject *n = calloc(1, sizeof(*n));
	int tap_index = 0, r;

	if (!n)
		return cr_err_oom(err);
	n->tap = n->forward = n->forward_link = n->map = n->handshake = n->handshake_link = -1;
	r = learn_device(n, dev, err);
	if (!r)
		r = make_tap(n, &tap_index, err);
	if (!r)
		r = start_forwarding(n, tap_index, err);
	if (!r)
		r = start_handshakes(n, err);
	if (r)
		netinject_free(n);
	else
		*ret = n;
	return r ? cr_err_ctx(err, "a way in for packets at %s", dev) : 0;
}

/* ---- packets ---- */

static int put(struct netinject *n, const struct net_packet *p, uint8_t kind, struct cr_err *err)
{
	struct virtio_net_hdr vh = {.flags = (uint8_t)p->flags, .gso_type = (uint8_t)p->gso_type};
	struct ether_header eth = {.ether_shost = {kind, 0, 0, 0, 0, 1}};
	struct iovec iov[] = {{&vh, sizeof(vh)}, {&eth, sizeof(eth)}, {(void *)p->data, p->len}};

	if (p->flags) {
		vh.csum_start = (uint16_t)(p->csum_start + sizeof(eth));
		vh.csum_offset = (uint16_t)p->csum_offset;
	}
	if (p->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
		vh.gso_size = (uint16_t)p->gso_size;
		vh.hdr_len = (uint16_t)(p->hdr_len + sizeof(eth));
	}
	memcpy(eth.ether_dhost, n->mac, sizeof(n->mac));
	eth.ether_type = htons(p->len && p->data[0] >> 4 == 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IP);
	if (writev(n->tap, iov, ARRAY_SIZE(iov)) < 0)
		return cr_err_sys(err, "a packet of %zu bytes", p->len);
	return 0;
}

int netinject_packet(struct netinject *n, const struct net_packet *p, struct cr_err *err)
{
	return put(n, p, PLAIN_BYTE, err);
}

static void fill_tuple(const struct netinject_handshake *h, uint8_t *tuple)
{
	size_t len = h->family == AF_INET ? 4 : 16;

	memcpy(tuple, h->peer, len);
	memcpy(tuple + len, h->us, len);
	memcpy(tuple + 2 * len, &h->peer_port, 2);
	memcpy(tuple + 2 * len + 2, &h->our_port, 2);
}

/* At once, as it is, unless the CPU is so busy with what comes that ksoftirqd does the rest, which
 * has to wait for its turn. */
static int wait_seen(const struct netinject *n, struct handshake_value *v, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = 50000};
	uint64_t end = clock_ns(CLOCK_MONOTONIC) + SEEN_MS * 1000000ull;
	const int zero = 0;

	for (;;) {
		if (bpf_map_lookup_elem(n->map, &zero, v))
			return cr_err_sys(err, "BPF map");
		if (v->result != UNSEEN)
			return 0;
		if (clock_ns(CLOCK_MONOTONIC) > end)
			return cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT,
					  "a packet does not come through the tap");
		nanosleep(&pause, NULL);
	}
}

int netinject_handshake(struct netinject *n, const struct netinject_handshake *h,
			const struct net_packet *p, struct cr_err *err)
{
	const int zero = 0;
	struct handshake_value v = {
	    .rcv_tsval = h->peer_clock,
	    .rcv_tsecr = h->our_clock,
	    .mss = (uint16_t)h->mss,
	    .rcv_wscale = (uint8_t)h->rcv_wscale,
	    .snd_wscale = (uint8_t)h->snd_wscale,
	    .ecn_ok = h->ecn,
	    .wscale_ok = h->wscale,
	    .sack_ok = h->sack,
	    .tstamp_ok = h->timestamps,
	    .usec_ts_ok = h->usec,
	    .v6 = h->family == AF_INET6,
	    .result = UNSEEN,
	};

	if (!netinject_knows_handshakes(n))
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EOPNOTSUPP,
				  "connections that wait to be accepted need Linux 6.9");
	fill_tuple(h, v.tuple);
	if (bpf_map_update_elem(n->map, &zero, &v, BPF_ANY))
		return cr_err_sys(err, "BPF map");
	int r = put(n, p, MARKED_BYTE, err);
	if (!r)
		r = wait_seen(n, &v, err);
	if (!r && v.result)
		r = cr_err_set(err, CR_ERR_KERNEL, -v.result, "a handshake from elsewhere: %s",
			       strerror(-v.result));
	return r;
}
