/* The tree codec: every field goes round, and nothing that a peer may send is believed. */
#include "tree_fill.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "proto/tree.pb-c.h"
#include "wire/tree_codec.h"

static void encode(const struct tree *t, uint8_t **data, size_t *len)
{
	struct cr_err err = {0};

	if (tree_encode(t, data, len, &err) < 0)
		fail_msg("%s", err.msg);
}

static struct tree *decode(const uint8_t *data, size_t len)
{
	struct cr_err err = {0};
	struct tree *t = NULL;

	if (tree_decode(data, len, &t, &err) < 0)
		fail_msg("%s", err.msg);
	return t;
}

static void test_sizes(void **state)
{
	(void)state;
#define X(type, bytes)                                                                             \
	if (sizeof(type) != (bytes))                                                               \
		fail_msg(#type " has %zu bytes, not " #bytes ": see tests/unit/tree_fill.h",       \
			 sizeof(type));
	TREE_SIZES(X)
#undef X
}

static void test_round_trip(void **state)
{
	(void)state;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct tree *t = fill_tree();

	encode(t, &data, &len);
	struct tree *u = decode(data, len);
	same_tree(t, u);
	tree_free(t);
	tree_free(u);
}

static void test_truncation(void **state)
{
	(void)state;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct tree *t = fill_tree();

	encode(t, &data, &len);
	/* every cut, each in a buffer of its own so that a sanitizer sees a read beyond it; the
	 * long runs of register bytes in steps */
	for (size_t cut = 0; cut < len; cut += cut % 64 < 16 ? 1 : 7) {
		_cleanup_free_ uint8_t *part = malloc(cut ? cut : 1);
		struct cr_err err = {0};
		struct tree *u = NULL;

		memcpy(part, data, cut);
		assert_true(tree_decode(part, cut, &u, &err) < 0);
		assert_null(u);
		assert_int_equal(err.kind, CR_ERR_PEER);
	}
	tree_free(t);
}

static void test_unknown_fields(void **state)
{
	(void)state;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct tree *t = fill_tree();

	encode(t, &data, &len);
	_cleanup_free_ uint8_t *more = malloc(len + 8);
	memcpy(more, data, len);
	/* field 2000, length-delimited, "new": of a version to come */
	memcpy(more + len, "\x82\x7d\x03new", 6);
	struct tree *u = decode(more, len + 6);
	same_tree(t, u);
	tree_free(t);
	tree_free(u);
}

/* The smallest tree: what a program of another make must be able to read. */
static struct tree *small_tree(void)
{
	struct tree *t = tree_new();
	struct process *p;

	t->root_pid = 42;
	t->n_procs = t->n_mapped_files = 1;
	t->procs = p = arena_new_of(t->arena, struct process);
	t->mapped_files = arena_new_of(t->arena, struct mapped_file);
	t->mapped_files->path = "/bin/true";
	p->pid = p->pgid = p->sid = 42;
	p->ppid = 1;
	p->cwd = p->root = "/";
	p->n_threads = p->mm.n_vmas = 1;
	p->threads = arena_new_of(t->arena, struct thread);
	p->threads->tid = 42;
	strcpy(p->threads->comm, "true");
	p->mm.vmas = arena_new_of(t->arena, struct vma);
	*p->mm.vmas = (struct vma){.start = 0x400000,
				   .end = 0x402000,
				   .prot = 5,
				   .kind = VMA_FILE_PRIVATE,
				   .object = UINT32_MAX,
				   .ino = 300};
	strcpy(t->hostname, "alpha");
	return t;
}

static void append(char *text, size_t size, const char *fmt, unsigned int v)
{
	size_t n = strlen(text);

	snprintf(text + n, size - n, fmt, v);
}

/* Hex, with runs of zero bytes as "(n)". */
static void to_text(const uint8_t *data, size_t len, char *text, size_t size)
{
	text[0] = 0;
	for (size_t i = 0; i < len; i++) {
		size_t run = 0;

		while (i + run < len && !data[i + run])
			run++;
		if (run > 2) {
			append(text, size, "(%u)", (unsigned)run);
			i += run - 1;
		} else {
			append(text, size, "%02x", data[i]);
		}
	}
}

static void test_golden(void **state)
{
	(void)state;
	static const char golden[] =
	    "082a12fe02082a1001182a202a4208082a1204747275654a260a0280081201021a01002201052a01"
	    "033201003a01014201004a01005202ac025a0100d801015240(64)5a40(64)6240(64)6a40(64)7a"
	    "00820110(16)8a0110(16)920103(3)9a0103(3)c201012fca01012f220b0a092f62696e2f747275"
	    "654210(16)6205616c706861c03e01";
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	char text[2048];
	struct tree *t = small_tree();

	encode(t, &data, &len);
	to_text(data, len, text, sizeof(text));
	assert_string_equal(text, golden);
	struct tree *u = decode(data, len);
	same_tree(t, u);
	tree_free(t);
	tree_free(u);
}

/* ---- what a peer may have made up ---- */

struct lie {
	const char *name;
	void (*tell)(Tree__Tree *t);
};

/* Frees nothing: the message's memory is dropped with the test. */
#define LIE(name, ...)                                                                             \
	static void name(Tree__Tree *t)                                                            \
	{                                                                                          \
		Tree__Process *p = t->procs[0];                                                    \
		Tree__Mm *m = p->mm;                                                               \
		Tree__Thread *th = p->threads[0];                                                  \
		(void)p, (void)m, (void)th;                                                        \
		__VA_ARGS__;                                                                       \
	}

/* clang-format off */
#define LIES(X) \
	X(not_complete, t->complete = 0) \
	X(no_processes, t->n_procs = 0) \
	X(root_missing, t->root_pid = 5) \
	X(vdso_digest_short, t->vdso_digest.len = 15) \
	X(hostname_long, t->hostname = (char *)"hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh") \
	X(pid_zero, p->pid = 0; th->tid = 0; t->root_pid = 300) \
	X(pid_huge, p->pid = 1u << 23; th->tid = 1u << 23; t->root_pid = 300) \
	X(pid_negative, p->pid = UINT32_MAX; th->tid = UINT32_MAX; t->root_pid = 300) \
	X(ppid_huge, p->ppid = 1u << 30) \
	X(pgid_huge, p->pgid = 1u << 30) \
	X(sid_huge, p->sid = 1u << 30) \
	X(pid_twice, t->procs[1]->pid = 4242) \
	X(tid_twice, p->threads[1]->tid = 300) \
	X(tid_zero, p->threads[1]->tid = 0) \
	X(leader_missing, th->tid = 77) \
	X(child_first, p->ppid = 300) \
	X(own_parent, p->ppid = 4242) \
	X(no_threads, p->n_threads = 0) \
	X(no_mm, p->mm = NULL) \
	X(no_creds, p->creds = NULL) \
	X(no_cwd, p->cwd = (char *)"") \
	X(relative_root, p->root = (char *)"path") \
	X(sigactions_63, p->n_sig_handler = 63) \
	X(sigactions_masks_none, p->n_sig_mask = 0) \
	X(rlimits_15, p->n_rlim_max = 15) \
	X(itimers_2, p->n_itimer_value_us = 2) \
	X(pending_odd, p->pending.len--) \
	X(thread_pending_odd, th->pending.len -= 3) \
	X(comm_long, th->comm.data = (uint8_t *)(char *)"0123456789abcdef"; th->comm.len = 16) \
	X(registers_short, th->gpregs.len = 208) \
	X(timer_thread, p->timers[0]->notify_tid = 1u << 31) \
	X(fd_columns, p->n_fd_file--) \
	X(fd_flags_column, p->n_fd_cloexec = 0) \
	X(fd_file_none, p->fd_file[1] = 0) \
	X(fd_file_range, p->fd_file[1] = 1 + FILL_FILES) \
	X(unix_peer_self, t->files[FILL_OTHER_END]->peer = FILL_OTHER_END + 1) \
	X(unix_peer_other, t->files[FILL_OTHER_END]->peer = 1) \
	X(unix_peer_one_sided, t->files[FILL_OTHER_END]->peer = 0) \
	X(unix_peer_type, t->files[FILL_OTHER_END]->sock_type++) \
	X(fd_huge, p->fd_gap[1] = UINT32_MAX) \
	X(vma_columns, m->n_prot--) \
	X(vma_columns_more, m->n_gap_pages--) \
	X(vma_empty, m->length_pages[2] = 0) \
	X(huge_columns, m->n_huge_own--) \
	X(huge_stays_columns, m->n_huge_stays++) \
	X(huge_of_none, m->huge_vma[0] = 6) \
	X(huge_file, m->huge_vma[0] = 2) \
	X(huge_size, m->huge_page_bytes[0] = 3 * 4096) \
	X(huge_size_none, m->huge_page_bytes[0] = 0) \
	X(huge_size_ordinary, m->huge_page_bytes[0] = 4096) \
	X(huge_unaligned, m->huge_page_bytes[0] = 8 << 20) \
	X(huge_stays_other, m->huge_page_bytes[0] = 1 << 20) \
	X(huge_too_many, m->huge_there[0] = 4) \
	X(huge_own_more, m->huge_own[0] = 3) \
	X(vma_wraps, m->length_pages[5] = UINT64_MAX >> 12) \
	X(vma_gap_wraps, m->gap_pages[3] = UINT64_MAX) \
	X(vma_kernel_address, m->kind[5] = VMA_ANON) \
	X(vma_kind_zero, m->kind[0] = 0) \
	X(vma_kind_unknown, m->kind[0] = VMA_VSYSCALL + 1) \
	X(vma_prot, m->prot[0] = 8) \
	X(vma_offset, m->offset_pages[0] = UINT64_MAX) \
	X(vma_file_range, m->file[3] = 3) \
	X(vma_file_none, m->file[3] = 0) \
	X(vma_private_nothing, m->file[2] = 0; m->object[2] = 0) \
	X(vma_object_range, m->object[1] = 3) \
	X(vma_object_none, m->object[1] = 0) \
	X(vma_name_range, m->name[0] = 100) \
	X(guard_columns, m->n_guard_gap_pages--) \
	X(guard_empty, m->guard_length_pages[1] = 0) \
	X(guard_wraps, m->guard_gap_pages[1] = UINT64_MAX) \
	X(exe_none, m->exe_file = 0) \
	X(exe_range, m->exe_file = 3) \
	X(exe_both, m->exe_object = 1) \
	X(exe_object_range, m->exe_file = 0; m->exe_object = 4) \
	X(exe_object_anon, m->exe_file = 0; m->exe_object = 1; t->objects[0]->kind = OBJ_SHARED_ANON) \
	X(auxv_odd, m->auxv.len = 31) \
	X(mapped_no_path, t->mapped_files[1]->path = (char *)"") \
	X(build_id_long, t->mapped_files[1]->build_id = p->pending; t->mapped_files[1]->build_id.len = 21) \
	X(object_kind, t->objects[0]->kind = 0) \
	X(object_size, t->objects[0]->size = UINT64_MAX) \
	X(file_kind_zero, t->files[0]->kind = 0) \
	X(file_kind_unknown, t->files[0]->kind = FILE_TCP_CONN + 1) \
	X(file_no_path, t->files[0]->path = (char *)"") \
	X(file_relative, t->files[1]->path = (char *)"dev/null") \
	X(target_columns, t->files[4]->n_target_data--) \
	X(target_none, t->files[4]->target_file[0] = 0) \
	X(target_range, t->files[4]->target_file[0] = 1 + FILL_FILES) \
	X(target_fd, t->files[4]->target_fd[0] = -1) \
	X(memfd_none, t->files[7]->object = 0) \
	X(memfd_range, t->files[7]->object = 3) \
	X(undo_columns, t->sets[0]->n_undo_by--) \
	X(undo_unsaid, t->sets[0]->kind = 1) \
	X(undo_of_none, t->sets[1]->kind = 3) \
	X(undo_sem, t->sets[0]->undo_sems[0] = 2) \
	X(undo_nothing, t->sets[0]->undo_by[0] = 0) \
	X(undo_too_much, t->sets[0]->undo_by[0] = -32768) \
	X(undo_nobody, t->sets[0]->undo_pids[0] = 0) \
	X(cred_pid_huge, t->files[9]->cred_pid = 1 << 30) \
	X(boot_id_long, t->boot_id = (char *)"0123456789012345678901234567890123456") \
	X(listen_no_address, t->files[8]->sockaddr.len = 0) \
	X(conn_no_peer, t->files[FILE_TCP_CONN - 1]->peeraddr.len = 0) \
	X(conn_state, t->files[FILE_TCP_CONN - 1]->tcp->state = 12) \
	X(conn_unsent, t->files[FILE_TCP_CONN - 1]->tcp->unsent = 45) \
	X(conn_urgent, t->files[FILE_TCP_CONN - 1]->tcp->urgent_at = 77) \
	X(conn_waits, t->files[FILE_TCP_CONN - 1]->waits_at = FILE_UNIX_LISTEN) \
	X(filter, t->files[0]->filter = long_filter; t->files[0]->n_filter = 4097) \
	X(program, t->files[0]->program = long_filter; t->files[0]->n_program = 4097) \
	X(program_name, t->files[0]->program_name = (char *)"0123456789abcdef") \
	X(reuse_code, t->files[0]->reuse_code = long_filter; t->files[0]->n_reuse_code = 4097) \
	X(reuse_place, t->files[0]->reuse_place = (uint32_t)t->n_files) \
	X(conn_wscale, t->files[FILE_TCP_CONN - 1]->tcp->rcv_wscale = 15) \
	X(conn_sndbuf, t->files[FILE_TCP_CONN - 1]->tcp->sndbuf = 1u << 31) \
	X(moved_nonsense, t->moved[1] = (char *)"192.0.2.7/33%eth0") \
	X(sockaddr_long, t->files[8]->sockaddr = p->pending; t->files[8]->sockaddr.len = 129)
/* clang-format on */
static uint64_t long_filter[4097];
LIES(LIE)

#define TOLD(name, ...) {#name, name},
static const struct lie lies[] = {LIES(TOLD)};

static void *lie_alloc(void *arena, size_t bytes)
{
	return arena_alloc(arena, bytes);
}
static void lie_free(void *arena, void *p)
{
	(void)arena, (void)p;
}

static void test_lies(void **state)
{
	(void)state;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct tree *t = fill_tree();

	encode(t, &data, &len);
	tree_free(t);
	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		struct arena *a = arena_new();
		ProtobufCAllocator alloc = {lie_alloc, lie_free, a};
		Tree__Tree *pb = tree__tree__unpack(&alloc, len, data);
		struct cr_err err = {0};
		struct tree *u = NULL;

		assert_non_null(pb);
		lies[i].tell(pb);
		size_t n = tree__tree__get_packed_size(pb);
		_cleanup_free_ uint8_t *told = malloc(n);
		tree__tree__pack(pb, told);
		if (tree_decode(told, n, &u, &err) == 0)
			fail_msg("%s was believed", lies[i].name);
		assert_int_equal(err.kind, CR_ERR_PEER);
		assert_int_equal(err.code, EPROTO);
		assert_null(u);
		arena_free(a);
	}
}

/* Ours to send must be right as well. */
static void test_encode_refuses(void **state)
{
	(void)state;
	uint8_t *data = NULL;
	size_t len;
	struct cr_err err = {0};
	struct tree *t = fill_tree();

	t->procs[0].mm.vmas[1].start++;
	assert_int_equal(tree_encode(t, &data, &len, &err), -EINVAL);
	assert_int_equal(err.kind, CR_ERR_BUG);
	t->procs[0].mm.vmas[1].start--;
	t->procs[0].mm.vmas[0].end = t->procs[0].mm.vmas[1].end;
	assert_int_equal(tree_encode(t, &data, &len, &err), -EINVAL);
	assert_null(data);
	tree_free(t);
}

/* An index that the kind has no use for is none at the other side, whatever it was here. */
static void test_useless_indexes(void **state)
{
	(void)state;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct tree *t = small_tree();

	t->procs[0].mm.vmas[0].kind = VMA_ANON;
	t->procs[0].mm.vmas[0].file = 99;
	t->procs[0].mm.vmas[0].object = 0;
	t->files = arena_new_of(t->arena, struct file);
	t->n_files = 1;
	t->files[0] = (struct file){.kind = FILE_EVENTFD, .object = 3};
	encode(t, &data, &len);
	struct tree *u = decode(data, len);
	assert_true(u->procs[0].mm.vmas[0].file == UINT32_MAX);
	assert_true(u->procs[0].mm.vmas[0].object == UINT32_MAX);
	assert_true(u->files[0].object == UINT32_MAX);
	tree_free(t);
	tree_free(u);
}

static void test_large(void **state)
{
	(void)state;
	enum { N_VMAS = 60000, N_FDS = 10000 };
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct tree *t = small_tree();
	struct process *p = &t->procs[0];

	p->mm.vmas = arena_array(t->arena, struct vma, N_VMAS);
	p->mm.n_vmas = N_VMAS;
	for (uint64_t i = 0; i < N_VMAS; i++)
		p->mm.vmas[i] = (struct vma){.start = 0x7f0000000000 + i * 0x3000,
					     .end = 0x7f0000000000 + i * 0x3000 + 0x2000,
					     .prot = i % 2 ? 3 : 1,
					     .kind = VMA_ANON,
					     .file = UINT32_MAX,
					     .object = UINT32_MAX};
	p->fds = arena_array(t->arena, struct fd_entry, N_FDS);
	t->files = arena_array(t->arena, struct file, N_FDS);
	p->n_fds = t->n_files = N_FDS;
	for (uint32_t i = 0; i < N_FDS; i++) {
		p->fds[i] = (struct fd_entry){(int32_t)i, i, i % 2};
		t->files[i] = (struct file){.kind = FILE_REGULAR,
					    .path = "/some/path/of/usual/length",
					    .ino = 1000000 + i,
					    .object = UINT32_MAX,
					    .peer = UINT32_MAX};
	}
	uint64_t start = now_us();
	encode(t, &data, &len);
	uint64_t mid = now_us();
	struct tree *u = decode(data, len);
	uint64_t end = now_us();
	same_tree(t, u);
	print_message("60000 mappings, 10000 descriptors: %zu bytes, %llu us out, %llu us in\n",
		      len, (unsigned long long)(mid - start), (unsigned long long)(end - mid));
	assert_true(len < 3 << 20);
	tree_free(t);
	tree_free(u);
}

/* A few bytes must not become much memory. */
static void test_bomb(void **state)
{
	(void)state;
	enum { BYTES = 32 << 20 };
	_cleanup_free_ uint8_t *data = calloc(1, BYTES);
	struct cr_err err = {0};
	struct tree *u = NULL;

	for (size_t i = 0; i + 1 < BYTES; i += 2) /* processes without contents */
		data[i] = 0x12;
	assert_int_equal(tree_decode(data, BYTES, &u, &err), -EMSGSIZE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_sizes),          cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_truncation),     cmocka_unit_test(test_unknown_fields),
	    cmocka_unit_test(test_golden),         cmocka_unit_test(test_lies),
	    cmocka_unit_test(test_encode_refuses), cmocka_unit_test(test_useless_indexes),
	    cmocka_unit_test(test_large),          cmocka_unit_test(test_bomb),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
