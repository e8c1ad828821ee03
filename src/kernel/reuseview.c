#include "kernel/reuseview.h"

#include <linux/filter.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/bpf_iter.h"
#include "kernel/kread.h"

enum { GROUP_MAX = 4096 };

enum place {
	GROUP_N,
	GROUP_PROG,
	GROUP_SOCKS,
	CLASSIC,
	CLASSIC_LEN,
	CLASSIC_CODE,
	FILTER_PROG,
	PROG_AUX,
	AUX_ID,
	N_PLACES
};
static const struct {
	const char *type, *name;
} places[N_PLACES] = {
    [GROUP_N] = {"sock_reuseport", "num_socks"},
    [GROUP_PROG] = {"sock_reuseport", "prog"},
    [GROUP_SOCKS] = {"sock_reuseport", "socks"},
    [CLASSIC] = {"bpf_prog", "orig_prog"}, /* as it was attached; NULL: it was no classic one */
    [CLASSIC_LEN] = {"sock_fprog_kern", "len"},
    [CLASSIC_CODE] = {"sock_fprog_kern", "filter"},
    [FILTER_PROG] = {"sk_filter", "prog"},
    [PROG_AUX] = {"bpf_prog", "aux"},
    [AUX_ID] = {"bpf_prog_aux", "id"}, /* 0: of a classic one */
};

struct reuseview {
	int prog;
	int32_t at[N_PLACES];
};

struct record { /* what the program writes for each descriptor */
	uint64_t fd, sock, group, filter;
};

/* ---- the program ---- */

static void store(struct bpf_code *p, unsigned int reg, size_t member)
{
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, reg,
		 (int)member - (int)sizeof(struct record), 0);
}

/* struct bpf_iter__task_file { meta; task; u32 fd; file; } */
static int emit(const struct btf *btf, struct bpf_code *p, struct cr_err *err)
{
	enum { AFTER_SOCK = 5, AFTER_CALL = AFTER_SOCK + 2 };
	int32_t sk = 0, group = 0, filter = 0;
	size_t size;
	int r = bpf_find_member(btf, "socket", "sk", &sk, &size, err);

	if (!r)
		r = bpf_find_member(btf, "sock", "sk_reuseport_cb", &group, &size, err);
	if (!r)
		r = bpf_find_member(btf, "sock", "sk_filter", &filter, &size, err);
	if (r)
		return r;
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_9, BPF_REG_1, 0, 0);
	bpf_emit_begin(p, 3);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_9, 16, 4);
	store(p, BPF_REG_2, offsetof(struct record, fd));
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, 0);
	store(p, BPF_REG_2, offsetof(struct record, sock));
	store(p, BPF_REG_2, offsetof(struct record, group));
	store(p, BPF_REG_2, offsetof(struct record, filter));
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_sock_from_file);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, AFTER_CALL, 0);
	bpf_emit_load(p, BPF_REG_8, BPF_REG_0, sk, 8);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_8, 0, AFTER_SOCK, 0);
	store(p, BPF_REG_8, offsetof(struct record, sock));
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, group, 8);
	store(p, BPF_REG_2, offsetof(struct record, group));
	bpf_emit_load(p, BPF_REG_2, BPF_REG_8, filter, 8);
	store(p, BPF_REG_2, offsetof(struct record, filter));
	bpf_emit_write(p, sizeof(struct record));
	return 0;
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct reuseview *v = arg;
	struct bpf_code p = {.n = 0};
	int r = emit(btf, &p, err);

	for (size_t i = 0; i < N_PLACES && !r; i++) {
		size_t size;

		r = bpf_find_member(btf, places[i].type, places[i].name, &v->at[i], &size, err);
	}
	return r ? r : bpf_iter_load(btf, "task_file", &p, &v->prog, err);
}

/* Which needs more than the iterator does. */
static int try_kread(struct cr_err *err)
{
	struct kread *k;
	int r = kread_bytes_new(&k, err);

	if (!r)
		kread_free(k);
	return r;
}

int reuseview_new(struct reuseview **ret, struct cr_err *err)
{
	struct reuseview *v = calloc(1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	v->prog = -1;
	int r = bpf_with_types(load, v, err);
	if (!r)
		r = try_kread(err);
	if (!r)
		*ret = v;
	else
		reuseview_free(v);
	return r;
}

void reuseview_free(struct reuseview *v)
{
	if (!v)
		return;
	close_fdp(&v->prog);
	free(v);
}

/* ---- reading ---- */

struct reading {
	const struct reuseview *v;
	struct kread *k;
};

static int read_at(const struct reading *rd, uint64_t base, enum place what, void *buf, size_t len,
		   struct cr_err *err)
{
	return kread_at(rd->k, base + (uint64_t)rd->v->at[what], buf, len, err);
}

static uint64_t encode(const struct sock_filter *f)
{
	return f->code | (uint64_t)f->jt << 16 | (uint64_t)f->jf << 24 | (uint64_t)f->k << 32;
}

static int read_code(const struct reading *rd, uint64_t classic, struct chosen_socket *s,
		     struct cr_err *err)
{
	struct sock_filter code[BPF_MAXINSNS];
	uint16_t n = 0;
	uint64_t at = 0;
	int r = read_at(rd, classic, CLASSIC_LEN, &n, sizeof(n), err);

	if (!r)
		r = read_at(rd, classic, CLASSIC_CODE, &at, sizeof(at), err);
	if (!r && (!n || n > BPF_MAXINSNS))
		r = cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "a program of %u instructions", n);
	if (!r)
		r = kread_at(rd->k, at, code, n * sizeof(*code), err);
	if (r)
		return r;
	s->code = calloc(n, sizeof(*s->code));
	if (!s->code)
		return cr_err_oom(err);
	for (s->n_code = 0; s->n_code < n; s->n_code++)
		s->code[s->n_code] = encode(&code[s->n_code]);
	return 0;
}

static int read_place(const struct reading *rd, const struct record *rec, struct chosen_socket *s,
		      struct cr_err *err)
{
	uint64_t socks[GROUP_MAX];
	uint16_t n = 0;
	int r = read_at(rd, rec->group, GROUP_N, &n, sizeof(n), err);

	if (!r && n > GROUP_MAX)
		r = cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "%u sockets share a port", n);
	if (!r && n)
		r = read_at(rd, rec->group, GROUP_SOCKS, socks, n * sizeof(*socks), err);
	if (r)
		return r;
	s->n = n;
	s->place = UINT32_MAX;
	for (uint32_t i = 0; i < n; i++)
		if (socks[i] == rec->sock)
			s->place = i;
	return 0;
}

static int read_one(const struct reading *rd, const struct record *rec, struct chosen_list *ret,
		    struct cr_err *err)
{
	uint64_t prog = 0, classic = 0;
	int r = read_at(rd, rec->group, GROUP_PROG, &prog, sizeof(prog), err);

	if (r || !prog)
		return r;
	struct chosen_socket *s = vec_push(&ret->list);
	if (!s)
		return cr_err_oom(err);
	*s = (struct chosen_socket){.fd = (int)rec->fd, .group = rec->group};
	r = read_place(rd, rec, s, err);
	if (!r)
		r = read_at(rd, prog, CLASSIC, &classic, sizeof(classic), err);
	s->ebpf = !classic;
	return r || !classic ? r : read_code(rd, classic, s, err);
}

/* KERNEL 6.18: as in sockview.c. */
static bool goes_on(const void *last, const void *next)
{
	return ((const struct record *)next)->fd > ((const struct record *)last)->fd;
}

static int list(const struct reuseview *v, pid_t pid, struct record **ret, size_t *n,
		struct cr_err *err)
{
	const union bpf_iter_link_info of = {.task = {.tid = (uint32_t)pid}};
	void *buf = NULL;
	size_t bytes = 0;
	int r = bpf_iter_read(v->prog, &of, goes_on, sizeof(struct record), &buf, &bytes, err);

	*ret = buf;
	*n = bytes / sizeof(struct record);
	return r;
}

int reuseview_read(const struct reuseview *v, pid_t pid, struct chosen_list *ret,
		   struct cr_err *err)
{
	struct reading rd = {.v = v};
	_cleanup_free_ struct record *rec = NULL;
	size_t n = 0;
	int r = list(v, pid, &rec, &n, err);

	*ret = (struct chosen_list){0};
	for (size_t i = 0; !r && i < n; i++) {
		if (!rec[i].group)
			continue;
		if (!rd.k)
			r = kread_bytes_new(&rd.k, err);
		if (!r)
			r = read_one(&rd, &rec[i], ret, err);
	}
	kread_free(rd.k);
	if (r)
		chosen_done(ret);
	/* freed meanwhile */
	if (r == -EFAULT)
		r = cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "sockets of a group come and go");
	return r ? cr_err_ctx(err, "sockets of %d that share a port", pid) : 0;
}

int reuseview_filter(const struct reuseview *v, int fd, uint32_t *ret, struct cr_err *err)
{
	struct reading rd = {.v = v};
	_cleanup_free_ struct record *rec = NULL;
	size_t n = 0;
	uint64_t at = 0;
	int r = list(v, getpid(), &rec, &n, err);

	*ret = 0;
	for (size_t i = 0; i < n && !r; i++)
		if (rec[i].fd == (uint64_t)fd)
			at = rec[i].filter;
	if (r || !at)
		return r;
	r = kread_bytes_new(&rd.k, err);
	if (!r)
		r = read_at(&rd, at, FILTER_PROG, &at, sizeof(at), err);
	if (!r)
		r = read_at(&rd, at, PROG_AUX, &at, sizeof(at), err);
	if (!r)
		r = read_at(&rd, at, AUX_ID, ret, sizeof(*ret), err);
	kread_free(rd.k);
	return r == -EFAULT ? cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "a filter comes or goes") : r;
}

void chosen_done(struct chosen_list *l)
{
	vec_foreach (s, &l->list)
		free(s->code);
	vec_done(&l->list);
}
