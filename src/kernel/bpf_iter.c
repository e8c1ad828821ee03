#include "kernel/bpf_iter.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- where things are ---- */

static int quiet(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	(void)level;
	(void)fmt;
	(void)ap;
	return 0;
}

int bpf_with_types(bpf_types_fn *fn, void *arg, struct cr_err *err)
{
	libbpf_set_print(quiet);
	struct btf *btf = btf__load_vmlinux_btf();
	if (!btf)
		return cr_err_sys(err, "reading the kernel's BTF");
	int r = fn(btf, arg, err);
	btf__free(btf);
	/* malloc(3) would keep it, for this process and all that it forks: once so much was freed,
	 * it takes as much from the heap, and gives back no less, mallopt(3) M_MMAP_THRESHOLD */
	malloc_trim(0);
	return r;
}

int bpf_view_new(struct bpf_view **ret, size_t size, bpf_types_fn *load, struct cr_err *err)
{
	struct bpf_view *v = calloc(1, size);

	if (!v)
		return cr_err_oom(err);
	v->prog = -1;
	int r = bpf_with_types(load, v, err);
	if (!r)
		*ret = v;
	else
		bpf_view_free(v);
	return r;
}

void bpf_view_free(struct bpf_view *v)
{
	if (!v)
		return;
	close_fdp(&v->prog);
	free(v);
}

/* Also within structures and unions that have no name of their own. */
static const struct btf_member *find_in(const struct btf *btf, const struct btf_type *t,
					const char *name, uint32_t bits_before, uint32_t *ret_bits)
{
	for (uint32_t i = 0; t && btf_is_composite(t) && i < btf_vlen(t); i++) {
		const struct btf_member *m = btf_members(t) + i, *inner = NULL;
		const char *its_name = btf__name_by_offset(btf, m->name_off);
		uint32_t bits = bits_before + btf_member_bit_offset(t, i);

		if (!*its_name)
			inner = find_in(btf, btf__type_by_id(btf, m->type), name, bits, ret_bits);
		if (inner)
			return inner;
		if (!strcmp(its_name, name)) {
			*ret_bits = bits;
			return m;
		}
	}
	return NULL;
}

static const struct btf_member *find(const struct btf *btf, const char *type, const char *name,
				     uint32_t *ret_bits)
{
	int id = btf__find_by_name_kind(btf, type, BTF_KIND_STRUCT);

	return id > 0 ? find_in(btf, btf__type_by_id(btf, (uint32_t)id), name, 0, ret_bits) : NULL;
}

static int has_none(const char *type, const char *name, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "this kernel's struct %s has no %s", type,
			  name);
}

int bpf_find_member(const struct btf *btf, const char *type, const char *name, int32_t *ret_off,
		    size_t *ret_size, struct cr_err *err)
{
	uint32_t bits;
	const struct btf_member *m = find(btf, type, name, &bits);

	if (!m || bits % 8 || bits / 8 > INT16_MAX)
		return has_none(type, name, err);
	*ret_off = (int32_t)(bits / 8);
	*ret_size = (size_t)btf__resolve_size(btf, m->type);
	return 0;
}

int bpf_find_bits(const struct btf *btf, const char *type, const char *name, uint32_t *ret,
		  struct cr_err *err)
{
	return find(btf, type, name, ret) ? 0 : has_none(type, name, err);
}

int bpf_locate_member(const struct btf *btf, const char *type, const char *name,
		      struct bpf_member *ret, struct cr_err *err)
{
	uint32_t bits;
	const struct btf_member *m = find(btf, type, name, &bits);
	/* a structure without bit fields has no offset that large */
	uint32_t width = m ? BTF_MEMBER_BITFIELD_SIZE(m->offset) : 0;

	if (!m || bits / 8 > INT16_MAX || (width ? bits % 8 + width > 8 : bits % 8))
		return has_none(type, name, err);
	*ret = (struct bpf_member){
	    .off = (int32_t)(bits / 8),
	    .bytes = width ? 1 : (size_t)btf__resolve_size(btf, m->type),
	    .mask = width && width < 8 ? ((1 << width) - 1) << bits % 8 : 0,
	};
	return 0;
}

/* ---- code ---- */

void bpf_emit(struct bpf_code *p, uint8_t code, unsigned int dst, unsigned int src, int off,
	      int32_t imm)
{
	if (p->n < ARRAY_SIZE(p->insn))
		p->insn[p->n] = (struct bpf_insn){code, dst & 15, src & 15, (int16_t)off, imm};
	p->n++;
}

void bpf_emit_load(struct bpf_code *p, unsigned int to, unsigned int from, int off, size_t bytes)
{
	uint8_t size = bytes == 8 ? BPF_DW : bytes == 4 ? BPF_W : bytes == 2 ? BPF_H : BPF_B;

	bpf_emit(p, BPF_LDX | BPF_MEM | size, to, from, off, 0);
}

static void emit_return(struct bpf_code *p)
{
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

/* struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }, and so on */
void bpf_emit_begin(struct bpf_code *p, int nth)
{
	bpf_emit_load(p, BPF_REG_7, BPF_REG_1, 0, 8);
	bpf_emit_load(p, BPF_REG_6, BPF_REG_1, 8 * nth, 8);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_6, 0, 2, 0); /* NULL: that was the last */
	emit_return(p);
}

/* bpf_seq_write(meta->seq, record, its size) */
void bpf_emit_write(struct bpf_code *p, size_t bytes)
{
	bpf_emit_load(p, BPF_REG_1, BPF_REG_7, 0, 8);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -(int32_t)bytes);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, (int32_t)bytes);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_seq_write);
	emit_return(p);
}

/* ---- running ---- */

int bpf_iter_load(const struct btf *btf, const char *kind, const struct bpf_code *p, int *ret,
		  struct cr_err *err)
{
	char name[64];

	if (p->n > ARRAY_SIZE(p->insn))
		return cr_err_set(err, CR_ERR_BUG, E2BIG, "a BPF iterator %s of %zu instructions",
				  kind, p->n);
	snprintf(name, sizeof(name), "bpf_iter_%s", kind);
	int id = btf__find_by_name_kind(btf, name, BTF_KIND_FUNC);
	if (id < 0)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "this kernel has no BPF iterator %s",
				  kind);
	struct bpf_prog_load_opts opts = {.sz = sizeof(opts),
					  .expected_attach_type = BPF_TRACE_ITER,
					  .attach_btf_id = (uint32_t)id};
	snprintf(name, sizeof(name), "cr_%.11s", kind); /* BPF_OBJ_NAME_LEN is 16 */
	*ret = bpf_prog_load(BPF_PROG_TYPE_TRACING, name, "Dual BSD/GPL", p->insn, p->n, &opts);
	return *ret < 0 ? cr_err_sys(err, "loading the BPF iterator %s", kind) : 0;
}

int bpf_iter_read(int prog, const union bpf_iter_link_info *of, bpf_goes_on_fn goes_on,
		  size_t record_bytes, void **ret, size_t *ret_bytes, struct cr_err *err)
{
	/* The kernel gives up to eight pages at once, whole records. */
	enum { STEP = 8 * 4096, MOST = 256 << 20 };
	union bpf_iter_link_info info = *of;
	const struct bpf_link_create_opts opts = {
	    .sz = sizeof(opts), .iter_info = &info, .iter_info_len = sizeof(info)};
	_cleanup_fd_ int link = bpf_link_create(prog, 0, BPF_TRACE_ITER, &opts);
	_cleanup_fd_ int it = link < 0 ? -1 : bpf_iter_create(link);
	_cleanup_free_ uint8_t *buf = NULL;
	size_t n = 0;

	for (;;) {
		uint8_t *more = realloc(buf, n + STEP);

		if (!more)
			return cr_err_oom(err);
		buf = more;
		ssize_t got = it < 0 ? -1 : read(it, buf + n, STEP);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return cr_err_sys(err, "reading a BPF iterator");
		if (!got || (n && goes_on && !goes_on(buf + n - record_bytes, buf + n)))
			break;
		n += (size_t)got;
		if (n > MOST)
			return cr_err_set(err, CR_ERR_KERNEL, EOVERFLOW,
					  "a BPF iterator does not come to an end");
	}
	*ret = take_ptr(buf);
	*ret_bytes = n;
	return 0;
}

/* KERNEL 6.18: of one task, what does not fit into one read(2) ends with the last part given again
 * and again. Addresses ascend, so that shows. */
static bool ascends(const void *last, const void *next)
{
	return *(const uint64_t *)next > *(const uint64_t *)last;
}

int bpf_iter_read_vmas(int prog, pid_t pid, size_t record_bytes, void **ret, size_t *ret_n,
		       struct cr_err *err)
{
	/* one thread: the others have the same mappings */
	const union bpf_iter_link_info of = {.task = {.tid = (uint32_t)pid}};
	size_t bytes = 0;
	int r = bpf_iter_read(prog, &of, ascends, record_bytes, ret, &bytes, err);

	*ret_n = bytes / record_bytes;
	return r ? cr_err_ctx(err, "mappings of %d", pid) : 0;
}
