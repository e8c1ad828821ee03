#include "kernel/netmute.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include "base/cleanup.h"
#include "kernel/bpf_iter.h"

enum {
	TCX_EGRESS = 47, /* BPF_TCX_EGRESS */
	NEXT = -2,       /* TC_ACT_UNSPEC: whatever comes behind */
	HEADER = 40,     /* of IPv6 */
	NEXT_HEADER_AT = 6,
	SOURCE_AT = 8,
};

/* The header lies at the end of the stack. What is not what we look for goes on. */
static void emit(struct bpf_code *p, const uint8_t address[16])
{
	uint32_t word;

	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_6, BPF_REG_1, 0, 0);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, offsetof(struct __sk_buff, protocol), 4);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_2, 0, 20, htons(ETH_P_IPV6));
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, -HEADER);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_4, 0, 0, HEADER);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_5, 0, 0, BPF_HDR_START_NET);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_skb_load_bytes_relative);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_0, 0, 12, 0);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_10, NEXT_HEADER_AT - HEADER, 1);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_2, 0, 10, IPPROTO_TCP);
	for (int i = 0; i < 4; i++) {
		memcpy(&word, address + 4 * (size_t)i, 4);
		bpf_emit_load(p, BPF_REG_2, BPF_REG_10, SOURCE_AT - HEADER + 4 * i, 4);
		bpf_emit(p, BPF_JMP32 | BPF_JNE | BPF_K, BPF_REG_2, 0, 8 - 2 * i, (int32_t)word);
	}
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, TC_ACT_SHOT);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, NEXT);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

int netmute_open(const struct devaddr *a, struct cr_err *err)
{
	unsigned int device = if_nametoindex(a->dev);
	struct bpf_code p = {.n = 0};

	if (!device)
		return cr_err_sys(err, "%s", a->dev);
	emit(&p, a->addr);
	_cleanup_fd_ int prog =
	    bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "cr_mute", "Dual BSD/GPL", p.insn, p.n, NULL);
	if (prog < 0)
		return cr_err_sys(err, "loading a BPF program");
	int link = bpf_link_create(prog, (int)device, (enum bpf_attach_type)TCX_EGRESS, NULL);
	return link >= 0 ? link : cr_err_sys(err, "a program at %s (tcx)", a->dev);
}
