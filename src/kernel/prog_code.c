#include "kernel/prog_code.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "kernel/prog_learn.h"

static int refuse(struct cr_err *err, const char *why)
{
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "%s", why);
}

int prog_code_load(const struct prog_code *c, struct cr_err *err)
{
	int fd = bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, c->name[0] ? c->name : NULL,
			       c->gpl ? "GPL" : "Proprietary", c->insn, c->n, NULL);

	return fd < 0 ? cr_err_sys(err, "loading an eBPF socket filter") : fd;
}

/* ---- what is refused at once ---- */

static const char *trouble(const struct bpf_prog_info *info, const struct bpf_insn *code, size_t n)
{
	if (info->type != BPF_PROG_TYPE_SOCKET_FILTER || info->ifindex)
		return "of another kind";
	if (info->nr_map_ids)
		return "that has maps";
	for (size_t i = 0; i < n; i++) {
		bool wide = code[i].code == (BPF_LD | BPF_IMM | BPF_DW);

		if (code[i].code == (BPF_JMP | BPF_CALL) && code[i].src_reg == BPF_PSEUDO_CALL)
			return "that has functions of its own";
		if (code[i].code == (BPF_JMP | BPF_CALL) && code[i].src_reg)
			return "that calls functions of the kernel";
		if (code[i].code == (BPF_JMP | BPF_CALL) && !code[i].imm)
			return "whose calls this kernel does not show";
		if (wide && code[i].src_reg)
			return "that has addresses of the kernel";
		i += wide; /* its second half has no code */
	}
	return NULL;
}

/* ---- back ---- */

enum { INSIDE = -1, NO_JUMP = -1 };

struct turning {
	const struct bpf_insn *old;
	size_t n_old;
	int32_t *new_at; /* of each old one, and of the end; INSIDE: of what became several */
	int32_t *old_at; /* of each new one; NO_JUMP: nothing to mend */
	struct prog_code *to;
};

static bool is_jump(const struct bpf_insn *i)
{
	uint8_t class = BPF_CLASS(i->code), op = BPF_OP(i->code);

	return (class == BPF_JMP || class == BPF_JMP32) && op != BPF_CALL && op != BPF_EXIT;
}

static int32_t *distance_is_wide(struct bpf_insn *i)
{
	return i->code == (BPF_JMP32 | BPF_JA) ? &i->imm : NULL;
}

static bool mend_jumps(const struct turning *t)
{
	for (size_t i = 0; i < t->to->n; i++) {
		struct bpf_insn *jump = &t->to->insn[i];
		int32_t *wide = distance_is_wide(jump);

		if (t->old_at[i] == NO_JUMP)
			continue;
		int64_t target = (int64_t)t->old_at[i] + 1 + (wide ? *wide : jump->off);
		if (target < 0 || (size_t)target >= t->n_old || t->new_at[target] == INSIDE)
			return false;
		int64_t off = t->new_at[target] - ((int64_t)i + 1);
		if (wide)
			*wide = (int32_t)off;
		else
			jump->off = (int16_t)off; /* shorter than it was */
	}
	return true;
}

static void add(struct turning *t, const struct bpf_insn *i, int32_t old_at)
{
	t->old_at[t->to->n] = old_at;
	t->to->insn[t->to->n++] = *i;
}

static int turn(struct turning *t, struct prog_learned *l, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_old;) {
		const struct bpf_insn *old = &t->old[i];
		struct prog_pattern p;
		bool rewritten = prog_learn(l, old, t->n_old - i, &p);

		if (l->out_of_memory)
			return cr_err_oom(err);
		t->new_at[i] = (int32_t)t->to->n;
		if (rewritten)
			add(t, &p.from, NO_JUMP);
		else
			add(t, old, is_jump(old) ? (int32_t)i : NO_JUMP);
		i += rewritten ? p.n : 1;
		if (!rewritten && old->code == (BPF_LD | BPF_IMM | BPF_DW) && i < t->n_old)
			add(t, &t->old[i++], NO_JUMP);
	}
	return mend_jumps(t) ? 0 : refuse(err, "that jumps into what the verifier made");
}

static int turn_back(const struct bpf_insn *code, size_t n, struct prog_code *ret,
		     struct cr_err *err)
{
	struct prog_learned l = {0};
	_cleanup_free_ int32_t *new_at = malloc((n + 1) * sizeof(*new_at));
	_cleanup_free_ int32_t *old_at = malloc((n + 1) * sizeof(*old_at));

	ret->insn = calloc(n + 1, sizeof(*ret->insn));
	if (!new_at || !old_at || !ret->insn)
		return cr_err_oom(err);
	for (size_t i = 0; i <= n; i++)
		new_at[i] = INSIDE;
	struct turning t = {code, n, new_at, old_at, ret};
	int r = turn(&t, &l, err);
	prog_learned_done(&l);
	return r;
}

static int prove(const struct prog_code *c, const struct bpf_insn *code, size_t n,
		 struct cr_err *err)
{
	_cleanup_free_ struct bpf_insn *its = NULL;
	struct bpf_prog_info info;
	struct cr_err ignored = {0};
	size_t n_its = 0;
	_cleanup_fd_ int fd = prog_code_load(c, &ignored);

	if (fd >= 0 && !prog_dump(fd, &its, &n_its, &info) && n_its == n &&
	    !memcmp(its, code, n * sizeof(*code)))
		return 0;
	return refuse(err, "that is not understood as the verifier has rewritten it");
}

int prog_code_read(uint32_t id, struct prog_code *ret, struct cr_err *err)
{
	_cleanup_free_ struct bpf_insn *code = NULL;
	struct bpf_prog_info info;
	const char *why;
	size_t n = 0;

	*ret = (struct prog_code){0};
	_cleanup_fd_ int fd = bpf_prog_get_fd_by_id(id);
	if (fd < 0)
		return refuse(err, "that this kernel does not give");
	int r = prog_dump(fd, &code, &n, &info);
	if (r == -ENOMEM)
		return cr_err_oom(err);
	if (r)
		return refuse(err, "that this kernel does not show");
	if ((why = trouble(&info, code, n)))
		return refuse(err, why);
	memcpy(ret->name, info.name, sizeof(ret->name));
	ret->name[sizeof(ret->name) - 1] = '\0';
	ret->gpl = info.gpl_compatible;
	r = turn_back(code, n, ret, err);
	if (!r)
		r = prove(ret, code, n, err);
	if (r) {
		free(ret->insn);
		*ret = (struct prog_code){0};
	}
	return r;
}
