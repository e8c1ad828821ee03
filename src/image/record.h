/* The container of an image's small files: what it is, its version, its length, its digest. Layout
 * in proto/IMAGES.md. A file that is cut off, altered, of another kind or of a newer version is an
 * error that says so: the file, the byte, what is there and what belongs there. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>
#include "base/err.h"

enum {
	IMAGE_VERSION = 1,
	IMAGE_RECORD_HEAD = 16,
	IMAGE_RECORD_TAIL = 16,
	IMAGE_RECORD_MIN = IMAGE_RECORD_HEAD + IMAGE_RECORD_TAIL,
};

enum image_record { IMAGE_MANIFEST = 1, IMAGE_TREE, IMAGE_INDEX };

const char *image_record_name(enum image_record kind);

enum { IMAGE_DIGEST_HEX = 33 };
const char *image_digest_format(XXH128_hash_t h, char buf[IMAGE_DIGEST_HEX]);

/* What a file of that kind may at most have, in bytes: more is not read. */
uint64_t image_record_max(enum image_record kind);

/* Replaces the file at once, by rename(2). sync: it survives the host's crash once the directory is
 * synced. Returns its size and digest through ret_bytes and ret_digest (may be NULL). */
int image_record_write(int dirfd, const char *file, enum image_record kind, const void *payload,
		       size_t n, bool sync, uint64_t *ret_bytes, XXH128_hash_t *ret_digest,
		       struct cr_err *err) must_check;

/* *ret is malloc'ed and holds the whole file; the payload begins at IMAGE_RECORD_HEAD. Errors: IO
 * (as -ENOENT), INPUT with -EBADMSG (damaged) or -EPROTONOSUPPORT (newer), naming the file. */
int image_record_read(int dirfd, const char *file, enum image_record kind, uint8_t **ret,
		      size_t *ret_payload, XXH128_hash_t *ret_digest,
		      struct cr_err *err) must_check;

/* The same on bytes: *ret_payload is the length of what follows the header. file: for the message.
 */
int image_record_check(const uint8_t *bytes, size_t len, const char *file, enum image_record kind,
		       size_t *ret_payload, XXH128_hash_t *ret_digest,
		       struct cr_err *err) must_check;
