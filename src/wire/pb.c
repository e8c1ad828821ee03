#include "wire/pb.h"

#include <stdbool.h>
#include <stdlib.h>

struct pb_purse {
	struct arena *arena;
	size_t left;
	bool exhausted;
};

static void *purse_alloc(void *data, size_t size)
{
	struct pb_purse *p = data;

	if (size > p->left) {
		p->exhausted = true;
		return NULL;
	}
	p->left -= size;
	return arena_alloc(p->arena, size);
}

static void purse_free(void *data, void *pointer)
{
	(void)data;
	(void)pointer; /* the arena frees it */
}

void *pb_new(struct arena *a, const ProtobufCMessageDescriptor *type)
{
	void *m = arena_alloc(a, type->sizeof_message);

	if (m)
		protobuf_c_message_init(type, m);
	return m;
}

int pb_unpack(struct arena *a, const ProtobufCMessageDescriptor *type, const uint8_t *data,
	      size_t len, size_t budget, void **ret, struct cr_err *err)
{
	struct pb_purse purse = {.arena = a, .left = budget};
	ProtobufCAllocator alloc = {purse_alloc, purse_free, &purse};
	ProtobufCMessage *m = protobuf_c_message_unpack(type, &alloc, len, data);

	if (!m && purse.exhausted)
		return cr_err_set(err, CR_ERR_PEER, EMSGSIZE,
				  "%s of %zu bytes needs too much memory", type->short_name, len);
	if (!m)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "malformed %s of %zu bytes",
				  type->short_name, len);
	*ret = m;
	return 0;
}

int pb_pack(const ProtobufCMessage *m, size_t max, uint8_t **ret, size_t *ret_len,
	    struct cr_err *err)
{
	size_t len = protobuf_c_message_get_packed_size(m);

	if (len > max)
		return cr_err_set(err, CR_ERR_BUG, EMSGSIZE,
				  "%s of %zu bytes: over the limit of %zu",
				  m->descriptor->short_name, len, max);
	uint8_t *buf = malloc(len ? len : 1);
	if (!buf)
		return cr_err_oom(err);
	protobuf_c_message_pack(m, buf);
	*ret = buf;
	*ret_len = len;
	return 0;
}
