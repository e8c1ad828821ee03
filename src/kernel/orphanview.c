#include "kernel/orphanview.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/orphanview_private.h"

enum { SILENCED_MAX = 1 << 16 /* a bucket each, always there; tcp_max_orphans is less, tcp(7) */ };

/* ---- programs ---- */

/* Binds those that the map knows to the loopback device: what its peer sends is not for it then,
 * and what it sends goes nowhere. Of others bpf_setsockopt() of an iterator (6.1) is not called. */
static void emit_silence(struct bpf_code *p, const struct orphanview *v)
{
	enum { LO = 'l' | 'o' << 8 };

	bpf_emit_begin(p, 1);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->sock[STATE] / 8, 1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 4, TCP_FIN_WAIT1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 3, TCP_CLOSING);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 2, TCP_LAST_ACK);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_6, -8, 0);
	bpf_emit(p, BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, v->silenced);
	bpf_emit(p, 0, 0, 0, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -8);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 11, 0);
	bpf_emit_load(p, BPF_REG_1, BPF_REG_0, 0, 4);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->sock[PORTS] / 8, 4);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_X, BPF_REG_1, BPF_REG_2, 8, 0);
	bpf_emit(p, BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -16, LO);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, SOL_SOCKET);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, SO_BINDTODEVICE);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_4, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_4, 0, 0, -16);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_5, 0, 0, 4);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_setsockopt);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static int load_silence(struct orphanview *v, const struct btf *btf, struct cr_err *err)
{
	struct bpf_map_create_opts opts = {.sz = sizeof(opts), .map_flags = BPF_F_NO_PREALLOC};
	struct bpf_code p = {.n = 0};

	v->silenced = bpf_map_create(BPF_MAP_TYPE_HASH, "cr_silenced", 8, 8, SILENCED_MAX, &opts);
	if (v->silenced < 0)
		return cr_err_sys(err, "a BPF map");
	emit_silence(&p, v);
	return bpf_iter_load(btf, "tcp", &p, &v->silence, err);
}

/* The record is the address of the socket. */
static void emit_all(struct bpf_code *p, const struct orphanview *v)
{
	bpf_emit_begin(p, 1); /* struct bpf_iter__tcp { meta; sk_common; uid; } */
	bpf_emit_load(p, BPF_REG_2, BPF_REG_6, (int)v->sock[STATE] / 8, 1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 4, TCP_FIN_WAIT1);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 3, TCP_CLOSING);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 2, TCP_LAST_ACK);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_6, -8, 0);
	bpf_emit_write(p, 8);
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct orphanview *v = arg;
	struct bpf_code p = {.n = 0};
	int r = orphan_find_all(v, btf, err);

	if (!r) {
		emit_all(&p, v);
		r = bpf_iter_load(btf, "tcp", &p, &v->prog, err);
	}
	if (!r)
		r = load_silence(v, btf, err);
	return r ? r : kread_new(&v->mem, btf, err);
}

int orphanview_new(struct orphanview **ret, struct cr_err *err)
{
	struct orphanview *v = calloc(1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	v->prog = v->silence = v->silenced = -1;
	int r = bpf_with_types(load, v, err);
	if (!r)
		*ret = v;
	else
		orphanview_free(v);
	return r;
}

void orphanview_free(struct orphanview *v)
{
	if (!v)
		return;
	close_fdp(&v->prog);
	close_fdp(&v->silence);
	close_fdp(&v->silenced);
	kread_free(v->mem);
	free(v);
}

void orphans_done(struct orphans *o)
{
	vec_foreach (k, &o->list)
		free(k->out);
	vec_done(&o->list);
}

/* ---- all of them ---- */

/* Of at[], n of them, those that are wanted come first; returns their number. */
static size_t choose(const struct orphanview *v, struct kread *mem, uint64_t *at, uint64_t *ports,
		     size_t n, orphan_wanted_fn wanted, void *arg)
{
	struct cr_err ignored = {0};
	size_t kept = 0;

	for (size_t i = 0; i < n; i++) {
		struct orphan o = {0};
		struct orphan_reading r = {.v = v, .mem = mem, .at = at[i], .o = &o};

		if (orphan_look(&r, wanted, arg, &ignored) != 1)
			continue;
		ports[kept] = orphan_sock_field(&r, PORTS, 32);
		at[kept++] = at[i];
	}
	return kept;
}

static int silence(const struct orphanview *v, const uint64_t *at, const uint64_t *ports, size_t n,
		   struct cr_err *err)
{
	const union bpf_iter_link_info all = {0};
	void *none = NULL;
	size_t bytes = 0;
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		if (bpf_map_update_elem(v->silenced, &at[i], &ports[i], BPF_ANY))
			r = cr_err_sys(err, "a BPF map");
	if (!r)
		r = bpf_iter_read(v->silence, &all, NULL, 0, &none, &bytes, err);
	free(none);
	for (size_t i = 0; i < n; i++)
		if (bpf_map_delete_elem(v->silenced, &at[i]) && !r && errno != ENOENT)
			r = cr_err_sys(err, "a BPF map");
	return r;
}

int orphanview_read(const struct orphanview *v, bool take, orphan_wanted_fn wanted, void *arg,
		    struct orphans *ret, struct cr_err *err)
{
	const union bpf_iter_link_info all = {0};
	struct kread *mem = NULL;
	void *buf = NULL;
	size_t bytes = 0, n = 0;
	int r = bpf_iter_read(v->prog, &all, NULL, 0, &buf, &bytes, err);
	_cleanup_free_ uint64_t *at = buf, *ports = calloc(bytes / 8 + 1, 8);

	if (!r && !ports)
		r = cr_err_oom(err);
	if (!r && bytes)
		r = kread_another(&mem, v->mem, err);
	if (!r && bytes)
		n = choose(v, mem, at, ports, bytes / 8, wanted, arg);
	if (!r && take && n)
		r = silence(v, at, ports, n, err);
	for (size_t i = 0; i < n && !r; i++)
		r = orphan_read_one(v, mem, at[i], wanted, arg, ret, err);
	kread_free(mem);
	return r ? cr_err_ctx(err, "connections that are ending") : 0;
}
