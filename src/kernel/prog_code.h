/* eBPF programs as they were before the verifier rewrote them. The kernel shows a loaded program as
 * it runs: loads from the context, old-style loads from the packet, and calls of helpers are
 * replaced by what they mean on this kernel (Documentation/bpf/verifier.rst; convert_ctx_accesses()
 * and do_misc_fixups() of kernel/bpf/verifier.c). What each of them becomes is learned from the
 * kernel itself, by loading programs that have just the one and looking at them. What comes out is
 * proved: loaded, it has to become the very program that was read, byte for byte. */
#pragma once
#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct prog_code {
	struct bpf_insn *insn; /* the caller frees it */
	size_t n;
	char name[BPF_OBJ_NAME_LEN]; /* "": none */
	bool gpl;                    /* its licence lets it call all helpers */
};

/* A socket filter, by its id. UNSUPPORTED: it cannot be had; err says why, as what follows "an eBPF
 * program". Needs CAP_SYS_ADMIN. */
int prog_code_read(uint32_t id, struct prog_code *ret, struct cr_err *err) must_check;
/* The descriptor of a socket filter, or a negative errno. */
int prog_code_load(const struct prog_code *c, struct cr_err *err) must_check;
