/* The process tree to bytes and back (proto/tree.proto).
 *
 * The bytes come from a peer or from a file: tree_decode() believes nothing. What it returns holds:
 * every index is in range (or UINT32_MAX where tree.h allows "none", and where the kind has no use
 * for it), VMAs are page aligned, ascending and disjoint, descriptors ascending, pids and tids sane
 * and unique, parents before children, arrays as long as tree.h says, kinds known, paths absolute
 * and present. What a number *means* to the kernel is checked by whoever hands it to the kernel. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "model/tree.h"

/* *ret is malloc'ed; the caller frees it. Fails with BUG when t breaks one of the rules above. */
int tree_encode(const struct tree *t, uint8_t **ret, size_t *ret_len,
		struct cr_err *err) must_check;

/* *ret is the caller's, to be freed with tree_free(). Errors: PEER with EPROTO and what is wrong.
 */
int tree_decode(const uint8_t *data, size_t len, struct tree **ret, struct cr_err *err) must_check;

/* In bytes as a message of its own. */
int waiting_encode(const struct waiting *w, uint8_t **ret, size_t *ret_len,
		   struct cr_err *err) must_check;
/* Into the arena. */
int waiting_decode(const uint8_t *data, size_t len, struct arena *a, struct waiting *ret,
		   struct cr_err *err) must_check;
