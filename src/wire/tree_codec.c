/* The process tree to bytes and back: the whole, and the tables of files and objects. Processes are
 * in tree_process.c, address spaces in tree_mm.c, open files in tree_file.c; what must hold of a
 * tree, whoever made it, is in tree_check.c.
 *
 * To add a field to tree.h: give it the next number in its message in proto/tree.proto, under the
 * same name. A plain number is then one word in the list of its struct (X(name) below or in the
 * other files); anything else a line in its put and one in its get function. What must hold of it
 * goes to tree_check.c. tests/unit/test_tree_codec.c fills and compares every field: add it there;
 * its count of bytes per struct fails when a field was forgotten. */
#include "wire/tree_codec.h"
#include "wire/tree_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	TREE_BYTES_MAX = 511 << 20, /* leaves room for the rest of a TREE message */
	PROCS_MAX = 32768,          /* a few bytes there are 3 KiB here */
	MOVED_MAX = 64,
};

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

static void tree_freep(struct tree **t)
{
	tree_free(*t);
}

int tree_bad(struct cr_err *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	err->kind = CR_ERR_PEER;
	err->code = EPROTO;
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	return -EPROTO;
}

int tree_get_bytes(struct arena *a, const ProtobufCBinaryData *pb, const uint8_t **ret,
		   size_t *ret_len, struct cr_err *err)
{
	if (!pb->len)
		return 0;
	*ret = arena_memdup(a, pb->data, pb->len);
	*ret_len = pb->len;
	return *ret ? 0 : cr_err_oom(err);
}

int tree_get_string(struct arena *a, const char *pb, const char **ret, struct cr_err *err)
{
	if (!*pb)
		return 0;
	*ret = arena_strdup(a, pb);
	return *ret ? 0 : cr_err_oom(err);
}

/* ---- tables ---- */

/* clang-format off */
#define MAPPED_FILE_NUMBERS(X) \
	X(size) X(ino) X(dev) X(mtime_ns) X(writable) X(st_dev) X(carried)
/* clang-format on */
/* clang-format off */
#define OBJECT_NUMBERS(X) \
	X(size) X(seals) X(ino) X(dev) X(ipc_id) X(ipc_key) X(uid) X(gid) X(mode) \
	X(ipc_removed) X(ipc_cpid) X(page_bytes) X(in_memory)
/* clang-format on */

static Tree__MappedFile *put_mapped_file(struct arena *a, const struct mapped_file *in)
{
	Tree__MappedFile *pb = pb_new(a, &tree__mapped_file__descriptor);

	if (!pb)
		return NULL;
	MAPPED_FILE_NUMBERS(TREE_PUT)
	pb->path = pb_string(in->path);
	pb->build_id = pb_bytes(in->build_id, in->build_id_len);
	return pb;
}

static int get_mapped_file(struct arena *a, const Tree__MappedFile *pb, struct mapped_file *out,
			   struct cr_err *err)
{
	if (pb->build_id.len > sizeof(out->build_id))
		return tree_bad(err, "mapped file: build-id of %zu bytes", pb->build_id.len);
	MAPPED_FILE_NUMBERS(TREE_GET)
	out->build_id_len = (uint8_t)pb->build_id.len;
	if (out->build_id_len)
		memcpy(out->build_id, pb->build_id.data, pb->build_id.len);
	return tree_get_string(a, pb->path, &out->path, err);
}

static Tree__SharedObject *put_object(struct arena *a, const struct shared_object *in)
{
	Tree__SharedObject *pb = pb_new(a, &tree__shared_object__descriptor);

	if (!pb)
		return NULL;
	OBJECT_NUMBERS(TREE_PUT)
	pb->kind = in->kind;
	pb->name = pb_string(in->name);
	return pb;
}

static int get_object(struct arena *a, const Tree__SharedObject *pb, struct shared_object *out,
		      struct cr_err *err)
{
	OBJECT_NUMBERS(TREE_GET)
	out->kind = (enum object_kind)pb->kind;
	if (out->kind != OBJ_MEMFD && out->kind != OBJ_UNLINKED)
		return 0;
	out->name = arena_strdup(a, pb->name); /* may be empty, but is there */
	return out->name ? 0 : cr_err_oom(err);
}

static Tree__SeccompFilter *put_seccomp(struct arena *a, const struct seccomp_filter *in)
{
	Tree__SeccompFilter *pb = pb_new(a, &tree__seccomp_filter__descriptor);

	if (!pb)
		return NULL;
	pb->insns = pb_bytes(in->insns, in->insns_len);
	pb->flags = in->flags;
	return pb;
}

static int get_seccomp(struct arena *a, const Tree__SeccompFilter *pb, struct seccomp_filter *out,
		       struct cr_err *err)
{
	out->flags = pb->flags;
	return tree_get_bytes(a, &pb->insns, &out->insns, &out->insns_len, err);
}

/* clang-format off */
#define TTY_NUMBERS(X) \
	X(number) X(uid) X(gid) X(mode) X(locked) X(packet) X(exclusive) X(opened) X(closed) \
	X(stopped) X(rows) X(cols) X(xpixel) X(ypixel)
/* clang-format on */

static Tree__Tty *put_tty(struct arena *a, const struct tty *in)
{
	Tree__Tty *pb = pb_new(a, &tree__tty__descriptor);

	if (!pb)
		return NULL;
	TTY_NUMBERS(TREE_PUT)
	pb->sid = (uint32_t)in->sid;
	pb->pgrp = (uint32_t)in->pgrp;
	pb->termios = pb_bytes(in->termios, sizeof(in->termios));
	pb->input = pb_bytes(in->input, in->input_len);
	pb->output = pb_bytes(in->output, in->output_len);
	pb->lines = in->lines;
	pb->n_lines = in->n_lines;
	return pb;
}

static int get_tty(struct arena *a, const Tree__Tty *pb, struct tty *out, struct cr_err *err)
{
	TTY_NUMBERS(TREE_GET)
	out->sid = (pid_t)pb->sid;
	out->pgrp = (pid_t)pb->pgrp;
	if (pb->termios.len != sizeof(out->termios))
		return tree_bad(err, "terminal %u: modes of %zu bytes", pb->number,
				pb->termios.len);
	memcpy(out->termios, pb->termios.data, sizeof(out->termios));
	out->n_lines = pb->n_lines;
	out->lines = arena_memdup(a, pb->lines, pb->n_lines * sizeof(*pb->lines));
	if (!out->lines)
		return cr_err_oom(err);
	int r = tree_get_bytes(a, &pb->input, &out->input, &out->input_len, err);
	return r ? r : tree_get_bytes(a, &pb->output, &out->output, &out->output_len, err);
}

static bool put_moved(struct arena *a, const struct tree *in, Tree__Tree *pb)
{
	pb->moved = arena_array(a, char *, in->n_moved);
	for (size_t i = 0; pb->moved && i < in->n_moved; i++) {
		char text[DEVADDR_TEXT];

		pb->moved[i] = arena_strdup(a, devaddr_text(&in->moved[i], text));
		if (!pb->moved[i])
			return false;
		pb->n_moved++;
	}
	return pb->moved;
}

static int get_moved(const Tree__Tree *pb, struct tree *out, struct cr_err *err)
{
	if (pb->n_moved > MOVED_MAX)
		return tree_bad(err, "%zu addresses", pb->n_moved);
	out->moved = arena_array(out->arena, struct devaddr, pb->n_moved);
	if (!out->moved)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_moved; i++) {
		struct cr_err why = {0};

		if (devaddr_parse(pb->moved[i], &out->moved[i], &why))
			return tree_bad(err, "%s", why.msg);
		out->n_moved++;
	}
	return 0;
}

/* A table is an array of structs here, an array of pointers to messages there. */
#define PUT_TABLE(field, put)                                                                      \
	do {                                                                                       \
		pb->field = arena_alloc(a, sizeof(*pb->field) * in->n_##field);                    \
		for (size_t i = 0; pb->field && i < in->n_##field; i++) {                          \
			pb->field[i] = put(a, &in->field[i]);                                      \
			if (!pb->field[i])                                                         \
				return NULL;                                                       \
			pb->n_##field++;                                                           \
		}                                                                                  \
		if (!pb->field)                                                                    \
			return NULL;                                                               \
	} while (0)

#define GET_TABLE(field, get)                                                                      \
	do {                                                                                       \
		out->field = arena_alloc(a, sizeof(*out->field) * pb->n_##field);                  \
		if (!out->field)                                                                   \
			return cr_err_oom(err);                                                    \
		for (size_t i = 0; i < pb->n_##field; i++) {                                       \
			int r = get(a, pb->field[i], &out->field[i], err);                         \
			if (r < 0)                                                                 \
				return r;                                                          \
			out->n_##field++;                                                          \
		}                                                                                  \
	} while (0)

/* ---- the whole ---- */

/* clang-format off */
#define TREE_NUMBERS(X) \
	X(xfeatures) X(xcr0) X(clock_monotonic_ns) X(clock_boottime_ns) \
	X(task_monotonic_offset_ns) X(task_boottime_offset_ns) X(switched)
/* clang-format on */

static Tree__Tree *put_tree(struct arena *a, const struct tree *in)
{
	Tree__Tree *pb = pb_new(a, &tree__tree__descriptor);

	if (!pb)
		return NULL;
	TREE_NUMBERS(TREE_PUT)
	pb->root_pid = (uint32_t)in->root_pid;
	pb->vdso_digest = pb_bytes(in->vdso_digest, sizeof(in->vdso_digest));
	pb->kernel_release = pb_string(in->kernel_release);
	pb->hostname = pb_string(in->hostname);
	pb->boot_id = pb_string(in->boot_id);
	PUT_TABLE(procs, tree_put_process);
	PUT_TABLE(files, tree_put_file);
	PUT_TABLE(mapped_files, put_mapped_file);
	PUT_TABLE(objects, put_object);
	PUT_TABLE(seccomp, put_seccomp);
	PUT_TABLE(ttys, put_tty);
	PUT_TABLE(sets, tree_put_set);
	if (!put_moved(a, in, pb))
		return NULL;
	pb->complete = true;
	return pb;
}

static int get_tree(struct arena *a, const Tree__Tree *pb, struct tree *out, struct cr_err *err)
{
	/* a message that is cut off between two fields is well formed: the last field tells */
	if (!pb->complete)
		return tree_bad(err, "cut off");
	TREE_NUMBERS(TREE_GET)
	out->root_pid = (pid_t)pb->root_pid;
	if (pb->vdso_digest.len != sizeof(out->vdso_digest))
		return tree_bad(err, "digest of the vdso of %zu bytes", pb->vdso_digest.len);
	memcpy(out->vdso_digest, pb->vdso_digest.data, sizeof(out->vdso_digest));
	if (strlen(pb->kernel_release) >= sizeof(out->kernel_release) ||
	    strlen(pb->hostname) >= sizeof(out->hostname) ||
	    strlen(pb->boot_id) >= sizeof(out->boot_id))
		return tree_bad(err, "name of host, kernel or boot is too long");
	strcpy(out->kernel_release, pb->kernel_release);
	strcpy(out->hostname, pb->hostname);
	strcpy(out->boot_id, pb->boot_id);
	if (pb->n_procs > PROCS_MAX)
		return tree_bad(err, "%zu processes: more than %d", pb->n_procs, PROCS_MAX);
	GET_TABLE(procs, tree_get_process);
	GET_TABLE(files, tree_get_file);
	GET_TABLE(mapped_files, get_mapped_file);
	GET_TABLE(objects, get_object);
	GET_TABLE(seccomp, get_seccomp);
	GET_TABLE(ttys, get_tty);
	GET_TABLE(sets, tree_get_set);
	return get_moved(pb, out, err);
}

int tree_encode(const struct tree *t, uint8_t **ret, size_t *ret_len, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();

	if (tree_check(t, err) < 0) {
		err->kind = CR_ERR_BUG;
		err->code = EINVAL;
		return cr_err_ctx(err, "the captured tree");
	}
	Tree__Tree *pb = a ? put_tree(a, t) : NULL;
	if (!pb)
		return cr_err_oom(err);
	return pb_pack(&pb->base, TREE_BYTES_MAX, ret, ret_len, err);
}

/* What protobuf-c may take for so many bytes: a packed number takes 1 byte there and 8 here, a
 * message some 10 there and 500 here, but of those there are few. */
static size_t unpack_budget(size_t len)
{
	return (16 << 20) + (len > (16 << 20) ? 2 * len : 16 * len);
}

int tree_decode(const uint8_t *data, size_t len, struct tree **ret, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();
	_cleanup_(tree_freep) struct tree *t = tree_new();
	void *pb = NULL;

	if (!a || !t)
		return cr_err_oom(err);
	int r = pb_unpack(a, &tree__tree__descriptor, data, len, unpack_budget(len), &pb, err);
	if (r == 0)
		r = get_tree(t->arena, pb, t, err);
	if (r == 0)
		r = tree_check(t, err);
	if (r < 0)
		return cr_err_ctx(err, "the other side's process tree");
	*ret = take_ptr(t);
	return 0;
}
