/* protobuf-c on an arena: for the codecs of this directory and of image/. */
#pragma once
#include <protobuf-c/protobuf-c.h>
#include "base/arena.h"
#include "base/err.h"

/* An initialised message of that type; NULL when memory is out. */
void *pb_new(struct arena *a, const ProtobufCMessageDescriptor *type);

/* All that the message needs is taken from the arena, and never more than budget bytes: what a
 * peer's few bytes blow up to is bounded. Errors: PEER (-EPROTO, -EMSGSIZE). */
int pb_unpack(struct arena *a, const ProtobufCMessageDescriptor *type, const uint8_t *data,
	      size_t len, size_t budget, void **ret, struct cr_err *err) must_check;

/* *ret is malloc'ed. -EMSGSIZE (BUG) if it is longer than max. */
int pb_pack(const ProtobufCMessage *m, size_t max, uint8_t **ret, size_t *ret_len,
	    struct cr_err *err) must_check;

/* protobuf-c wants non-const pointers also for what it only reads. */
static inline ProtobufCBinaryData pb_bytes(const void *p, size_t len)
{
	return (ProtobufCBinaryData){.len = len, .data = (uint8_t *)p};
}
static inline char *pb_string(const char *s)
{
	return s ? (char *)s : (char *)"";
}
