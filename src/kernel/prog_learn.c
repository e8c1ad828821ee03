#include "kernel/prog_learn.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"

enum {
	CB_FROM = offsetof(struct __sk_buff, cb),
	CB_END = CB_FROM + sizeof(((struct __sk_buff *)0)->cb),
	INSNS_MAX = 1u << 20, /* the verifier takes no more */
	MOV_X = BPF_ALU64 | BPF_MOV | BPF_X,
	MOV_K = BPF_ALU64 | BPF_MOV | BPF_K,
};

int prog_dump(int fd, struct bpf_insn **ret, size_t *n, struct bpf_prog_info *ret_info)
{
	struct bpf_prog_info info = {0};
	uint32_t len = sizeof(info);

	if (bpf_obj_get_info_by_fd(fd, &info, &len))
		return -errno;
	uint32_t bytes = info.xlated_prog_len;
	*ret_info = info;
	if (!bytes || bytes / sizeof(**ret) > INSNS_MAX)
		return -EPERM;
	struct bpf_insn *code = calloc(1, bytes);
	if (!code)
		return -ENOMEM;
	info =
	    (struct bpf_prog_info){.xlated_prog_len = bytes, .xlated_prog_insns = (uintptr_t)code};
	len = sizeof(info);
	/* it says 0 where it does not show them (kernel.kptr_restrict, bpf_jit_harden) */
	if (bpf_obj_get_info_by_fd(fd, &info, &len) || info.xlated_prog_len != bytes ||
	    !info.xlated_prog_insns) {
		free(code);
		return -EPERM;
	}
	*ret = code;
	*n = bytes / sizeof(*code);
	return 0;
}

/* ---- one instruction ---- */

struct trial {
	struct bpf_insn v[16];
	size_t n;
};

static void put(struct trial *t, uint8_t code, unsigned int dst, unsigned int src, int32_t imm)
{
	t->v[t->n++] = (struct bpf_insn){code, dst & 15, src & 15, 0, imm};
}

/* What makes the registers such that the verifier takes it. */
static void prepare(struct trial *t, const struct bpf_insn *i)
{
	switch (BPF_CLASS(i->code)) {
	case BPF_LD:
		put(t, MOV_X, BPF_REG_6, BPF_REG_1, 0);
		if (BPF_MODE(i->code) == BPF_IND)
			put(t, MOV_K, i->src_reg, 0, 0);
		break;
	case BPF_LDX:
		put(t, MOV_X, i->src_reg, BPF_REG_1, 0);
		break;
	case BPF_STX:
	case BPF_ST:
		put(t, MOV_X, i->dst_reg, BPF_REG_1, 0);
		if (BPF_CLASS(i->code) == BPF_STX)
			put(t, MOV_K, i->src_reg, 0, 0);
		break;
	default: /* a call: context, offset, where to, how much, flags are what most take */
		put(t, MOV_K, BPF_REG_2, 0, 0);
		put(t, MOV_X, BPF_REG_3, BPF_REG_10, 0);
		put(t, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, -8);
		put(t, MOV_K, BPF_REG_4, 0, 4);
		put(t, MOV_K, BPF_REG_5, 0, 0);
	}
}

static void learn(const struct bpf_insn *from, struct prog_pattern *ret)
{
	struct trial t = {.n = 0};
	struct bpf_prog_info info;
	_cleanup_free_ struct bpf_insn *code = NULL;
	size_t before, n = 0;

	*ret = (struct prog_pattern){.from = *from};
	prepare(&t, from);
	before = t.n;
	t.v[t.n++] = *from;
	put(&t, MOV_K, BPF_REG_0, 0, 0);
	put(&t, BPF_JMP | BPF_EXIT, 0, 0, 0);
	_cleanup_fd_ int fd =
	    bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, "cr_learn", "GPL", t.v, t.n, NULL);
	if (fd < 0 || prog_dump(fd, &code, &n, &info) || n < t.n)
		return;
	size_t more = n - t.n + 1;
	if (more > PATTERN_MAX || memcmp(code, t.v, before * sizeof(*code)) ||
	    memcmp(code + before + more, t.v + before + 1, 2 * sizeof(*code)) ||
	    (more == 1 && !memcmp(code + before, from, sizeof(*from))))
		return;
	memcpy(ret->to, code + before, more * sizeof(*code));
	ret->n = more;
}

static const struct prog_pattern *known(struct prog_learned *l, const struct bpf_insn *from)
{
	vec_foreach (p, &l->list)
		if (!memcmp(&p->from, from, sizeof(*from)))
			return p;
	struct prog_pattern *p = vec_push(&l->list);
	if (p)
		learn(from, p);
	else
		l->out_of_memory = true;
	return p;
}

/* ---- what may have become this ---- */

struct search {
	struct prog_learned *l;
	const struct bpf_insn *code;
	size_t n;
	struct prog_pattern best; /* n 0: none */
};

static void consider(struct search *s, const struct prog_pattern *p)
{
	if (p && p->n > s->best.n && p->n <= s->n &&
	    !memcmp(p->to, s->code, p->n * sizeof(*s->code)))
		s->best = *p;
}

static void try(struct search *s, struct bpf_insn from)
{
	consider(s, known(s->l, &from));
}

static void try_packet(struct search *s, uint8_t mode, unsigned int src, int32_t imm)
{
	static const uint8_t sizes[] = {BPF_B, BPF_H, BPF_W};

	for (size_t i = 0; i < sizeof(sizes); i++)
		try(s, (struct bpf_insn){BPF_LD | mode | sizes[i], 0, src & 15, 0, imm});
}

/* Of what is narrower than a word the word's comes first, and then what any program may do. */
static void try_context(struct search *s, struct bpf_insn like)
{
	uint8_t size = BPF_SIZE(like.code), rest = like.code & ~BPF_SIZE(0xff);
	int bytes = size == BPF_DW ? 8 : size == BPF_W ? 4 : size == BPF_H ? 2 : 1;

	for (int off = CB_FROM; off + bytes <= CB_END; off += bytes < 4 ? bytes : 4) {
		like.off = (int16_t)off;
		try(s, like);
	}
	like.code = rest | BPF_W;
	for (int off = 0; BPF_CLASS(rest) == BPF_LDX && off < (int)sizeof(struct __sk_buff);
	     off += 4) {
		like.off = (int16_t)off;
		try(s, like);
	}
}

static void try_calls(struct search *s)
{
	struct prog_learned *l = s->l;

	for (int32_t id = 1; !l->calls_known && id < __BPF_FUNC_MAX_ID; id++) {
		const struct bpf_insn call = {.code = BPF_JMP | BPF_CALL, .imm = id};
		struct prog_pattern p, *its;

		learn(&call, &p);
		/* what any program may do is none */
		if (p.n < 2 && (!p.n || p.to[0].code != call.code))
			continue;
		its = vec_push(&l->calls);
		if (its)
			*its = p;
		else
			l->out_of_memory = true;
	}
	l->calls_known = true;
	vec_foreach (p, &l->calls)
		consider(s, p);
}

bool prog_learn(struct prog_learned *l, const struct bpf_insn *code, size_t n,
		struct prog_pattern *ret)
{
	struct search s = {.l = l, .code = code, .n = n};
	uint8_t class = BPF_CLASS(code->code);

	if (code->code == MOV_K && code->dst_reg == BPF_REG_2)
		try_packet(&s, BPF_ABS, 0, code->imm);
	if (code->code == MOV_X && code->dst_reg == BPF_REG_2 && n > 1)
		try_packet(&s, BPF_IND, code->src_reg,
			   code[1].code == (BPF_ALU64 | BPF_ADD | BPF_K) &&
				   code[1].dst_reg == BPF_REG_2
			       ? code[1].imm
			       : 0);
	if (class == BPF_LDX && BPF_MODE(code->code) == BPF_MEM && code->src_reg != BPF_REG_10)
		try_context(&s, *code);
	if ((class == BPF_STX || class == BPF_ST) && BPF_MODE(code->code) == BPF_MEM &&
	    code->dst_reg != BPF_REG_10)
		try_context(&s, *code);
	try_calls(&s);
	*ret = s.best;
	return s.best.n;
}

void prog_learned_done(struct prog_learned *l)
{
	vec_done(&l->list);
	vec_done(&l->calls);
}
