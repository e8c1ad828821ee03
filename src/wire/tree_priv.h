/* What the files of the tree codec share: private to tree_*.c in this directory. */
#pragma once
#include "model/tree.h"
#include "wire/pb.h"
#include "proto/tree.pb-c.h"

/* put: NULL when memory is out; the result borrows from the tree and lives in the arena.
 * get: fills *out, allocating from the arena what it points to; nothing borrows from pb. Columns of
 * equal length and sizes of fixed arrays are checked, the rest by tree_check(). */
Tree__Mm *tree_put_mm(struct arena *a, const struct mm *in);
int tree_get_mm(struct arena *a, const Tree__Mm *pb, struct mm *out, struct cr_err *err) must_check;
Tree__Process *tree_put_process(struct arena *a, const struct process *in);
int tree_get_process(struct arena *a, const Tree__Process *pb, struct process *out,
		     struct cr_err *err) must_check;
Tree__File *tree_put_file(struct arena *a, const struct file *in);
int tree_get_file(struct arena *a, const Tree__File *pb, struct file *out,
		  struct cr_err *err) must_check;

/* tree_udp.c: datagrams and groups. put: false when memory is out. */
bool tree_put_udp(struct arena *a, const struct file *in, Tree__File *pb);
int tree_get_udp(struct arena *a, const Tree__File *pb, struct file *out,
		 struct cr_err *err) must_check;
int tree_check_udp(const struct file *f, size_t i, struct cr_err *err) must_check;

/* tree_unix.c: what waits in unix sockets. put: false when memory is out.
 * check_messages: n_files is how many files there are for them to refer to. */
bool tree_put_unix(struct arena *a, const struct file *in, Tree__File *pb);
int tree_get_unix(struct arena *a, const Tree__File *pb, struct file *out,
		  struct cr_err *err) must_check;
int tree_check_unix(const struct tree *t, const struct file *f, size_t i,
		    struct cr_err *err) must_check;
int tree_check_messages(const struct file *f, size_t i, size_t n_files,
			struct cr_err *err) must_check;

/* tree_sysv.c */
Tree__SysvSet *tree_put_set(struct arena *a, const struct sysv_set *in);
int tree_get_set(struct arena *a, const Tree__SysvSet *pb, struct sysv_set *out,
		 struct cr_err *err) must_check;
int tree_check_set(const struct sysv_set *s, size_t i, struct cr_err *err) must_check;

/* What tree_codec.h promises of a tree, whoever made it. Fills *err with PEER, -EPROTO. */
int tree_check(const struct tree *t, struct cr_err *err) must_check;
/* Of f, which is number i of t's. */
int tree_check_file(const struct tree *t, const struct file *f, size_t i,
		    struct cr_err *err) must_check;

/* ---- parts ---- */

/* "None" is UINT32_MAX in the tree, and 0 on the wire, where an index counts from 1. */
static inline uint32_t tree_put_index(uint32_t i)
{
	return i + 1;
}
static inline uint32_t tree_get_index(uint32_t i)
{
	return i - 1;
}

/* A copy of bytes in the arena; none is NULL, 0. */
int tree_get_bytes(struct arena *a, const ProtobufCBinaryData *pb, const uint8_t **ret,
		   size_t *ret_len, struct cr_err *err) must_check;
/* "" is NULL. */
int tree_get_string(struct arena *a, const char *pb, const char **ret,
		    struct cr_err *err) must_check;

int tree_bad(struct cr_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3), cold));

/* For lists of fields that are plain numbers with one name in struct and .proto: see tree_codec.c.
 */
#define TREE_PUT(f) pb->f = in->f;
#define TREE_GET(f) out->f = pb->f;
