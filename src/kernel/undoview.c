#include "kernel/undoview.h"

#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernel/bpf_iter.h"

struct undoview {
	int prog;
};

/* What the program writes for each set of each thread. */
enum { WHOLE, NOT_READ, MORE };
struct record {
	uint64_t list;
	int32_t semid;
	uint32_t what;
	int16_t by[UNDO_SEMS];
};

/* Where it takes that from; and its stack, below the record: an address, that of the head, and a
 * copy of struct sem_undo. */
struct places {
	int32_t undo_list;       /* in struct task_struct: &sysvsem.undo_list */
	int32_t head;            /* in struct sem_undo_list: &list_proc.next */
	int32_t link, next;      /* in struct sem_undo: list_proc, list_proc.next */
	int32_t semid, adj, all; /* in struct sem_undo; its size */
	bool adj_inside;         /* an array at its end, not a pointer as it once was */
};
#define RECORD_AT(member) ((int)offsetof(struct record, member) - (int)sizeof(struct record))
enum { AT = -(int)sizeof(struct record) - 8, HEAD = AT - 8 };

/* ---- the program ---- */

int undo_find_list(const struct btf *btf, int32_t *list, int32_t *first, struct cr_err *err)
{
	int32_t sem, inner, head, next;
	size_t size;
	int r = bpf_find_member(btf, "task_struct", "sysvsem", &sem, &size, err);

	if (!r)
		r = bpf_find_member(btf, "sysv_sem", "undo_list", &inner, &size, err);
	if (!r)
		r = bpf_find_member(btf, "sem_undo_list", "list_proc", &head, &size, err);
	if (!r)
		r = bpf_find_member(btf, "list_head", "next", &next, &size, err);
	if (r)
		return r;
	*list = sem + inner;
	*first = head + next;
	return 0;
}

static int find_places(const struct btf *btf, struct places *p, struct cr_err *err)
{
	int32_t next;
	size_t size;
	int r = undo_find_list(btf, &p->undo_list, &p->head, err);

	if (!r)
		r = bpf_find_member(btf, "list_head", "next", &next, &size, err);
	if (!r)
		r = bpf_find_member(btf, "sem_undo", "list_proc", &p->link, &size, err);
	if (!r)
		r = bpf_find_member(btf, "sem_undo", "semid", &p->semid, &size, err);
	if (!r)
		r = bpf_find_member(btf, "sem_undo", "semadj", &p->adj, &size, err);
	if (r)
		return r;
	p->adj_inside = size != sizeof(void *);
	int id = btf__find_by_name_kind(btf, "sem_undo", BTF_KIND_STRUCT);
	int64_t all = id > 0 ? btf__resolve_size(btf, (uint32_t)id) : -1;
	if (all <= 0 || all > 128 || all % 8)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "struct sem_undo is not known");
	p->next = p->link + next;
	p->all = (int32_t)all;
	return 0;
}

/* Register 3 is where from; 0 is not 0 afterwards if that cannot be read. */
static void emit_copy(struct bpf_code *p, int to, size_t bytes)
{
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, to);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_2, 0, 0, (int32_t)bytes);
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel);
}

static void emit_return(struct bpf_code *p)
{
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

static void emit_store(struct bpf_code *p, uint8_t size, int to, int32_t value)
{
	bpf_emit(p, BPF_ST | BPF_MEM | size, BPF_REG_10, 0, to, value);
}

static void emit_record(struct bpf_code *p)
{
	bpf_emit_load(p, BPF_REG_1, BPF_REG_7, 0, 8);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -(int32_t)sizeof(struct record));
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, sizeof(struct record));
	bpf_emit(p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_seq_write);
}

/* Ends where the list does. */
static void emit_end(struct bpf_code *p)
{
	bpf_emit_load(p, BPF_REG_1, BPF_REG_10, AT, 8);
	bpf_emit_load(p, BPF_REG_2, BPF_REG_10, HEAD, 8);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_X, BPF_REG_1, BPF_REG_2, 2, 0);
	emit_return(p);
}

/* One struct sem_undo: list_proc lies at the address in AT. */
static void emit_one(struct bpf_code *p, const struct places *w)
{
	int copy = HEAD - w->all;

	emit_end(p);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, -w->link);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_8, BPF_REG_1, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_1, 0, 0);
	emit_copy(p, copy, (size_t)w->all);
	emit_store(p, BPF_W, RECORD_AT(what), WHOLE);
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 1, 0);
	emit_store(p, BPF_W, RECORD_AT(what), NOT_READ);
	bpf_emit_load(p, BPF_REG_1, BPF_REG_10, copy + w->semid, 4);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_W, BPF_REG_10, BPF_REG_1, RECORD_AT(semid), 0);
	bpf_emit_load(p, BPF_REG_1, BPF_REG_10, copy + w->next, 8);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_1, AT, 0);
	if (w->adj_inside) {
		bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_8, 0, 0);
		bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, w->adj);
	} else {
		bpf_emit_load(p, BPF_REG_3, BPF_REG_10, copy + w->adj, 8);
	}
	emit_copy(p, RECORD_AT(by), sizeof(((struct record *)0)->by));
	bpf_emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 1, 0);
	emit_store(p, BPF_W, RECORD_AT(what), NOT_READ);
	emit_record(p);
}

static void emit_all(struct bpf_code *p, const struct places *w)
{
	bpf_emit_begin(p, 1);
	bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_6, 0, 0);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, w->undo_list);
	emit_copy(p, RECORD_AT(list), 8);
	bpf_emit_load(p, BPF_REG_3, BPF_REG_10, RECORD_AT(list), 8);
	bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_3, 0, 2, 0);
	emit_return(p);
	bpf_emit(p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_3, 0, 0, w->head);
	bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_3, HEAD, 0);
	emit_copy(p, AT, 8);
	for (int i = 0; i < UNDO_SETS; i++)
		emit_one(p, w);
	emit_end(p);
	emit_store(p, BPF_W, RECORD_AT(what), MORE);
	emit_record(p);
	emit_return(p);
}

/* ---- reading ---- */

static bool is_known(const struct undo_facts *f, const struct record *r)
{
	vec_foreach (k, &f->list)
		if (k->list == r->list && k->semid == r->semid)
			return true;
	return false;
}

static int take(struct undo_facts *ret, const struct record *r, struct cr_err *err)
{
	if (r->what != WHOLE)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				  r->what == MORE ? "SEM_UNDO in more than %d sets"
						  : "what is to be undone cannot be read (%d)",
				  UNDO_SETS);
	if (is_known(ret, r))
		return 0;
	struct undo_fact *f = vec_push(&ret->list);
	if (!f)
		return cr_err_oom(err);
	*f = (struct undo_fact){.list = r->list, .semid = r->semid};
	memcpy(f->by, r->by, sizeof(f->by));
	return 0;
}

int undoview_read(const struct undoview *v, pid_t pid, struct undo_facts *ret, struct cr_err *err)
{
	const union bpf_iter_link_info of = {.task = {.pid = (uint32_t)pid}};
	_cleanup_free_ void *records = NULL;
	size_t bytes = 0;
	int r = bpf_iter_read(v->prog, &of, NULL, 0, &records, &bytes, err);

	*ret = (struct undo_facts){0};
	for (size_t i = 0; i < bytes / sizeof(struct record) && !r; i++)
		r = take(ret, (const struct record *)records + i, err);
	if (r)
		vec_done(&ret->list);
	return r ? cr_err_ctx(err, "semaphores of %d", pid) : 0;
}

/* ---- is it true? ---- */

static bool is_as_done(const struct undoview *v, int id)
{
	struct undo_facts f = {0};
	struct cr_err ignored = {0};
	bool is = !undoview_read(v, getpid(), &f, &ignored) && f.list.n == 1 &&
		  f.list.v[0].semid == id && !f.list.v[0].by[0] && f.list.v[0].by[1] == -1234 &&
		  f.list.v[0].by[2] == 30;

	vec_done(&f.list);
	return is;
}

/* In a process with semaphores of its own, which go with it. */
static int try_it(const struct undoview *v)
{
	struct sembuf ops[] = {{1, 1234, SEM_UNDO}, {2, 40, 0}, {2, -30, SEM_UNDO}};
	int id = unshare(CLONE_NEWIPC) ? -1 : semget(IPC_PRIVATE, 3, 0600);

	return id >= 0 && !semop(id, ops, ARRAY_SIZE(ops)) && is_as_done(v, id) ? 0 : 1;
}

static int check(const struct undoview *v, struct cr_err *err)
{
	int status = -1;
	pid_t pid = fork();

	if (pid < 0)
		return cr_err_sys(err, "fork");
	if (!pid)
		_exit(try_it(v));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status ? cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				   "BPF says of semaphores what is not so")
		      : 0;
}

int undoview_new(struct undoview **ret, const struct btf *btf, struct cr_err *err)
{
	struct places w;
	struct bpf_code p = {.n = 0};
	struct undoview *v = calloc(1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	v->prog = -1;
	int r = find_places(btf, &w, err);
	if (!r) {
		emit_all(&p, &w);
		r = bpf_iter_load(btf, "task", &p, &v->prog, err);
	}
	if (!r)
		r = check(v, err);
	if (r)
		undoview_free(v);
	else
		*ret = v;
	return r;
}

void undoview_free(struct undoview *v)
{
	if (!v)
		return;
	close_fdp(&v->prog);
	free(v);
}
