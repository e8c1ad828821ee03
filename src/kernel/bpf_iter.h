/* BPF iterators (Documentation/bpf/bpf_iterators.rst; 5.8), made without a compiler: a program
 * writes a record for each object, and one read(2) gives them all. Where the members of the
 * kernel's structures lie its BTF tells. Needs CAP_BPF and CAP_PERFMON and a kernel with
 * CONFIG_DEBUG_INFO_BTF. */
#pragma once
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

struct bpf_code {
	struct bpf_insn insn[1024]; /* one too many is not loaded */
	size_t n;
};

/* Calls fn with the kernel's types, which are there as long as it runs: they take 12 MiB. */
typedef int bpf_types_fn(const struct btf *btf, void *arg, struct cr_err *err);
int bpf_with_types(bpf_types_fn *fn, void *arg, struct cr_err *err) must_check;
/* Offset and size of a member in bytes. -ENOTSUP: there is none such. */
int bpf_find_member(const struct btf *btf, const char *type, const char *name, int32_t *ret_off,
		    size_t *ret_size, struct cr_err *err) must_check;

/* The same for one that may be a bit field: where it begins, in bits. */
int bpf_find_bits(const struct btf *btf, const char *type, const char *name, uint32_t *ret,
		  struct cr_err *err) must_check;

/* What may be a bit field, but within one byte, of which mask is what its byte has of it; else mask
 * is 0.
 */
struct bpf_member {
	int32_t off;
	size_t bytes;
	int32_t mask;
};
int bpf_locate_member(const struct btf *btf, const char *type, const char *name,
		      struct bpf_member *ret, struct cr_err *err) must_check;

/* What a program was loaded for; first member of whatever else is to be known for that. */
struct bpf_view {
	int prog; /* -1: none */
};
/* size: of that whole, made of zeros but for this. load is given it, and frees what it has put
 * there if it fails. -ENOMEM, and what load and bpf_with_types() return. */
int bpf_view_new(struct bpf_view **ret, size_t size, bpf_types_fn *load,
		 struct cr_err *err) must_check;
void bpf_view_free(struct bpf_view *v); /* the whole; takes NULL */

struct bpf_jumps { /* whose targets are not known yet */
	size_t at[8], n;
};

void bpf_emit(struct bpf_code *p, uint8_t code, unsigned int dst, unsigned int src, int off,
	      int32_t imm);
/* Register `to` = what lies at `off` from register `from`, zero-extended. */
void bpf_emit_load(struct bpf_code *p, unsigned int to, unsigned int from, int off, size_t bytes);
/* The start of every program: register 7 is the iterator's `meta`, 6 the nth member behind it (1:
 * the first), and it ends where that is NULL. */
void bpf_emit_begin(struct bpf_code *p, int nth);
/* The end: the record is what lies in the last `bytes` of the stack. */
void bpf_emit_write(struct bpf_code *p, size_t bytes);

/* kind: what comes after "bpf_iter_" in the kernel's name of it. */
int bpf_iter_load(const struct btf *btf, const char *kind, const struct bpf_code *p, int *ret,
		  struct cr_err *err) must_check;
/* All that it writes; the caller frees *ret. goes_on, if given, is asked of the last record of
 * record_bytes that came before and the first of what one read(2) gave; where it says no, that was
 * the end, and this read is left out. */
typedef bool (*bpf_goes_on_fn)(const void *last, const void *next);
int bpf_iter_read(int prog, const union bpf_iter_link_info *of, bpf_goes_on_fn goes_on,
		  size_t record_bytes, void **ret, size_t *ret_bytes,
		  struct cr_err *err) must_check;
/* Of one process's mappings, by an iterator "task_vma" whose records, of record_bytes each, begin
 * with where the mapping begins. *ret_n: how many. */
int bpf_iter_read_vmas(int prog, pid_t pid, size_t record_bytes, void **ret, size_t *ret_n,
		       struct cr_err *err) must_check;
