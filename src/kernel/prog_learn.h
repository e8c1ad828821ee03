/* What the verifier makes of one instruction of a socket filter: for prog_code.c alone. */
#pragma once
#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/vec.h"

enum { PATTERN_MAX = 24 };

struct prog_pattern {
	struct bpf_insn from;
	struct bpf_insn to[PATTERN_MAX];
	size_t n; /* of to; 0: this kernel does not take `from`, or leaves it as it is */
};

struct prog_learned { /* zeroed at first */
	VEC(struct prog_pattern) list;
	VEC(struct prog_pattern) calls; /* of helpers, learned all at once */
	bool calls_known, out_of_memory;
};

/* What a program shows itself as; the caller frees *ret. Negative errno. */
int prog_dump(int fd, struct bpf_insn **ret, size_t *n, struct bpf_prog_info *ret_info);
/* The one instruction that becomes what code, of n, begins with: the longest of that. false: none.
 */
bool prog_learn(struct prog_learned *l, const struct bpf_insn *code, size_t n,
		struct prog_pattern *ret);
void prog_learned_done(struct prog_learned *l);
