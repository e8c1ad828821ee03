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

LIE(not_complete, t->complete = 0)
LIE(no_processes, t->n_procs = 0)
LIE(root_missing, t->root_pid = 5)
LIE(vdso_digest_short, t->vdso_digest.len = 15)
LIE(hostname_long,
    t->hostname = (char *)"hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh")
LIE(pid_zero, p->pid = 0; th->tid = 0; t->root_pid = 300)
LIE(pid_huge, p->pid = 1u << 23; th->tid = 1u << 23; t->root_pid = 300)
LIE(pid_negative, p->pid = UINT32_MAX; th->tid = UINT32_MAX; t->root_pid = 300)
LIE(ppid_huge, p->ppid = 1u << 30)
LIE(pgid_huge, p->pgid = 1u << 30)
LIE(sid_huge, p->sid = 1u << 30)
LIE(pid_twice, t->procs[1]->pid = 4242)
LIE(tid_twice, p->threads[1]->tid = 300)
LIE(tid_zero, p->threads[1]->tid = 0)
LIE(leader_missing, th->tid = 77)
LIE(child_first, p->ppid = 300)
LIE(own_parent, p->ppid = 4242)
LIE(no_threads, p->n_threads = 0)
LIE(no_mm, p->mm = NULL)
LIE(no_creds, p->creds = NULL)
LIE(no_cwd, p->cwd = (char *)"")
LIE(relative_root, p->root = (char *)"path")
LIE(sigactions_63, p->n_sig_handler = 63)
LIE(sigactions_masks_none, p->n_sig_mask = 0)
LIE(rlimits_15, p->n_rlim_max = 15)
LIE(itimers_2, p->n_itimer_value_us = 2)
LIE(pending_odd, p->pending.len--)
LIE(thread_pending_odd, th->pending.len -= 3)
LIE(comm_long, th->comm.data = (uint8_t *)(char *)"0123456789abcdef"; th->comm.len = 16)
LIE(registers_short, th->gpregs.len = 208)
LIE(timer_thread, p->timers[0]->notify_tid = 1u << 31)
LIE(fd_columns, p->n_fd_file--)
LIE(fd_flags_column, p->n_fd_cloexec = 0)
LIE(fd_file_none, p->fd_file[1] = 0)
LIE(fd_file_range, p->fd_file[1] = 1 + FILE_UNIX_LISTEN)
LIE(fd_huge, p->fd_gap[1] = UINT32_MAX)
LIE(vma_columns, m->n_prot--)
LIE(vma_columns_more, m->n_gap_pages--)
LIE(vma_empty, m->length_pages[2] = 0)
LIE(vma_wraps, m->length_pages[5] = UINT64_MAX >> 12)
LIE(vma_gap_wraps, m->gap_pages[3] = UINT64_MAX)
LIE(vma_kernel_address, m->kind[5] = VMA_ANON)
LIE(vma_kind_zero, m->kind[0] = 0)
LIE(vma_kind_unknown, m->kind[0] = VMA_VSYSCALL + 1)
LIE(vma_prot, m->prot[0] = 8)
LIE(vma_offset, m->offset_pages[0] = UINT64_MAX)
LIE(vma_file_range, m->file[3] = 3)
LIE(vma_file_none, m->file[3] = 0)
LIE(vma_private_nothing, m->file[2] = 0; m->object[2] = 0)
LIE(vma_object_range, m->object[1] = 3)
LIE(vma_object_none, m->object[1] = 0)
LIE(vma_name_range, m->name[0] = 100)
LIE(guard_columns, m->n_guard_gap_pages--)
LIE(guard_empty, m->guard_length_pages[1] = 0)
LIE(guard_wraps, m->guard_gap_pages[1] = UINT64_MAX)
LIE(exe_none, m->exe_file = 0)
LIE(exe_range, m->exe_file = 3)
LIE(auxv_odd, m->auxv.len = 31)
LIE(mapped_no_path, t->mapped_files[1]->path = (char *)"")
LIE(build_id_long, t->mapped_files[1]->build_id = p->pending; t->mapped_files[1]->build_id.len = 21)
LIE(object_kind, t->objects[0]->kind = 0)
LIE(object_size, t->objects[0]->size = UINT64_MAX)
LIE(file_kind_zero, t->files[0]->kind = 0)
LIE(file_kind_unknown, t->files[0]->kind = FILE_UNIX_LISTEN + 1)
LIE(file_no_path, t->files[0]->path = (char *)"")
LIE(file_relative, t->files[1]->path = (char *)"dev/null")
LIE(target_columns, t->files[4]->n_target_data--)
LIE(target_none, t->files[4]->target_file[0] = 0)
LIE(target_range, t->files[4]->target_file[0] = 1 + FILE_UNIX_LISTEN)
LIE(target_fd, t->files[4]->target_fd[0] = -1)
LIE(memfd_none, t->files[7]->object = 0)
LIE(memfd_range, t->files[7]->object = 3)
LIE(listen_no_address, t->files[8]->sockaddr.len = 0)
LIE(sockaddr_long, t->files[8]->sockaddr = p->pending; t->files[8]->sockaddr.len = 129)

#define TOLD(name)                                                                                 \
	{                                                                                          \
#name, name                                                                        \
	}
static const struct lie lies[] = {
    TOLD(not_complete),
    TOLD(no_processes),
    TOLD(root_missing),
    TOLD(vdso_digest_short),
    TOLD(hostname_long),
    TOLD(pid_zero),
    TOLD(pid_huge),
    TOLD(pid_negative),
    TOLD(ppid_huge),
    TOLD(pgid_huge),
    TOLD(sid_huge),
    TOLD(pid_twice),
    TOLD(tid_twice),
    TOLD(tid_zero),
    TOLD(leader_missing),
    TOLD(child_first),
    TOLD(own_parent),
    TOLD(no_threads),
    TOLD(no_mm),
    TOLD(no_creds),
    TOLD(no_cwd),
    TOLD(relative_root),
    TOLD(sigactions_63),
    TOLD(sigactions_masks_none),
    TOLD(rlimits_15),
    TOLD(itimers_2),
    TOLD(pending_odd),
    TOLD(thread_pending_odd),
    TOLD(comm_long),
    TOLD(registers_short),
    TOLD(timer_thread),
    TOLD(fd_columns),
    TOLD(fd_flags_column),
    TOLD(fd_file_none),
    TOLD(fd_file_range),
    TOLD(fd_huge),
    TOLD(vma_columns),
    TOLD(vma_columns_more),
    TOLD(vma_empty),
    TOLD(vma_wraps),
    TOLD(vma_gap_wraps),
    TOLD(vma_kernel_address),
    TOLD(vma_kind_zero),
    TOLD(vma_kind_unknown),
    TOLD(vma_prot),
    TOLD(vma_offset),
    TOLD(vma_file_range),
    TOLD(vma_file_none),
    TOLD(vma_private_nothing),
    TOLD(vma_object_range),
    TOLD(vma_object_none),
    TOLD(vma_name_range),
    TOLD(guard_columns),
    TOLD(guard_empty),
    TOLD(guard_wraps),
    TOLD(exe_none),
    TOLD(exe_range),
    TOLD(auxv_odd),
    TOLD(mapped_no_path),
    TOLD(build_id_long),
    TOLD(object_kind),
    TOLD(object_size),
    TOLD(file_kind_zero),
    TOLD(file_kind_unknown),
    TOLD(file_no_path),
    TOLD(file_relative),
    TOLD(target_columns),
    TOLD(target_none),
    TOLD(target_range),
    TOLD(target_fd),
    TOLD(memfd_none),
    TOLD(memfd_range),
    TOLD(listen_no_address),
    TOLD(sockaddr_long),
};

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
					    .object = UINT32_MAX};
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
