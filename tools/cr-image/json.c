/* Any message of protobuf-c as JSON, by its descriptor: a field that is new shows by itself. */
#include <string.h>
#include "proto/image.pb-c.h"
#include "proto/tree.pb-c.h"
#include "resource/file_kind.h"
#include "tools/cr-image/cr_image.h"
#include "wire/pb.h"

enum { UNPACK_BUDGET = 1 << 30, NUMBER_EXACT_BITS = 53 };

struct printer {
	bool all;
};

static json_t *json_of_message(const struct printer *pr, const ProtobufCMessage *m);

json_t *json_of_number(uint64_t n)
{
	char hex[24];

	if (n <= 1ull << NUMBER_EXACT_BITS)
		return json_integer((json_int_t)n);
	snprintf(hex, sizeof(hex), "%#llx", (unsigned long long)n);
	return json_string(hex);
}

static json_t *json_of_signed(int64_t n)
{
	const int64_t exact = 1ll << NUMBER_EXACT_BITS;
	char text[24];

	if (n >= -exact && n <= exact)
		return json_integer(n);
	snprintf(text, sizeof(text), "%lld", (long long)n);
	return json_string(text);
}

/* A path may have any bytes, JSON only UTF-8: others become "\xNN". */
static json_t *json_of_text(const char *s, size_t n)
{
	json_t *j = json_stringn(s, n);

	if (j)
		return j;
	_cleanup_free_ char *b = malloc(4 * n + 1);
	char *at = b;
	for (size_t i = 0; b && i < n; i++)
		at += (unsigned char)s[i] >= ' ' && (unsigned char)s[i] < 0x7f
			  ? sprintf(at, "%c", s[i])
			  : sprintf(at, "\\x%02x", (unsigned char)s[i]);
	return b ? json_stringn(b, (size_t)(at - b)) : NULL;
}

static json_t *json_of_bytes(const char *field, const ProtobufCBinaryData *d)
{
	static const char digits[] = "0123456789abcdef";

	if (!strcmp(field, "comm")) /* bytes only because it may be no UTF-8 */
		return json_of_text((const char *)d->data, d->len);
	_cleanup_free_ char *hex = malloc(2 * d->len + 1);
	for (size_t i = 0; hex && i < d->len; i++) {
		hex[2 * i] = digits[d->data[i] >> 4];
		hex[2 * i + 1] = digits[d->data[i] & 15];
	}
	return hex ? json_stringn(hex, 2 * d->len) : NULL;
}

static json_t *json_of_enum(const ProtobufCEnumDescriptor *e, int n)
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(e, n);

	return v ? json_string(v->name) : json_integer(n);
}

/* What kinds are called, where a number is one. NULL: a number. */
static const char *kind_name(const ProtobufCMessageDescriptor *of, const char *field, uint32_t n)
{
	static const char *const objects[] = {[OBJ_SHARED_ANON] = "shared-anonymous",
					      [OBJ_MEMFD] = "memfd",
					      [OBJ_SYSV_SHM] = "sysv-shm",
					      [OBJ_UNLINKED] = "unlinked"};

	if (strcmp(field, "kind") != 0)
		return NULL;
	if (of == &tree__shared_object__descriptor)
		return n < ARRAY_SIZE(objects) ? objects[n] : NULL;
	const struct file_ops *ops =
	    of == &tree__file__descriptor ? file_ops_of((enum file_kind)n) : NULL;
	return ops ? ops->name : NULL;
}

/* An index that counts from 1, 0 being none; shown as it counts in the lists here. */
static bool is_index(const char *field)
{
	static const char *const names[] = {"exe_file", "exe_object", "object", "peer"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(field, names[i]))
			return true;
	return false;
}

static json_t *json_of_unsigned(const ProtobufCMessageDescriptor *of, const char *field, uint32_t n)
{
	const char *name = kind_name(of, field, n);

	if (is_index(field))
		return n ? json_integer((json_int_t)n - 1) : json_null();
	return name ? json_string(name) : json_integer(n);
}

static size_t value_size(ProtobufCType t)
{
	switch (t) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static json_t *json_of_value(const struct printer *pr, const ProtobufCMessageDescriptor *of,
			     const ProtobufCFieldDescriptor *f, const void *at)
{
	const char *text;

	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return json_integer(*(const int32_t *)at);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return json_of_unsigned(of, f->name, *(const uint32_t *)at);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return json_of_signed(*(const int64_t *)at);
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return json_of_number(*(const uint64_t *)at);
	case PROTOBUF_C_TYPE_BOOL:
		return json_boolean(*(const protobuf_c_boolean *)at);
	case PROTOBUF_C_TYPE_ENUM:
		return json_of_enum(f->descriptor, *(const int *)at);
	case PROTOBUF_C_TYPE_STRING:
		text = *(char *const *)at;
		return json_of_text(text ? text : "", text ? strlen(text) : 0);
	case PROTOBUF_C_TYPE_BYTES:
		return json_of_bytes(f->name, at);
	case PROTOBUF_C_TYPE_MESSAGE:
		return json_of_message(pr, *(const ProtobufCMessage *const *)at);
	case PROTOBUF_C_TYPE_FLOAT:
		return json_real((double)*(const float *)at);
	case PROTOBUF_C_TYPE_DOUBLE:
		return json_real(*(const double *)at);
	}
	return NULL;
}

static json_t *json_of_repeated(const struct printer *pr, const ProtobufCMessageDescriptor *of,
				const ProtobufCFieldDescriptor *f, const char *m)
{
	size_t n = *(const size_t *)(m + f->quantifier_offset);
	const char *v = *(const char *const *)(m + f->offset);
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		if (json_array_append_new(list,
					  json_of_value(pr, of, f, v + i * value_size(f->type))))
			break; /* memory is out: what is there says so by being short */
	return list;
}

static bool is_default(const ProtobufCFieldDescriptor *f, const char *m)
{
	static const char zeros[sizeof(ProtobufCBinaryData)];
	const char *at = m + f->offset;

	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		return !*(const size_t *)(m + f->quantifier_offset);
	if (f->type == PROTOBUF_C_TYPE_STRING)
		return !*(char *const *)at || !**(char *const *)at;
	if (f->type == PROTOBUF_C_TYPE_BYTES)
		return !((const ProtobufCBinaryData *)at)->len;
	return !memcmp(at, zeros, value_size(f->type));
}

/* What a newer program wrote, and this one has no name for. */
static json_t *json_of_unknown(const ProtobufCMessage *m)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < m->n_unknown_fields; i++) {
		const ProtobufCMessageUnknownField *u = &m->unknown_fields[i];
		json_t *o = json_object();

		json_object_set_new(o, "number", json_integer(u->tag));
		json_object_set_new(o, "wire_type", json_integer((json_int_t)u->wire_type));
		json_object_set_new(o, "bytes",
				    json_of_bytes("", &(ProtobufCBinaryData){u->len, u->data}));
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *json_of_message(const struct printer *pr, const ProtobufCMessage *m)
{
	json_t *o;

	if (!m)
		return json_null();
	o = json_object();
	for (unsigned int i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		const char *at = (const char *)m;

		if (!pr->all && is_default(f, at))
			continue;
		json_object_set_new(o, f->name,
				    f->label == PROTOBUF_C_LABEL_REPEATED
					? json_of_repeated(pr, m->descriptor, f, at)
					: json_of_value(pr, m->descriptor, f, at + f->offset));
	}
	if (m->n_unknown_fields)
		json_object_set_new(o, "unknown_fields", json_of_unknown(m));
	return o;
}

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

static int json_of(const ProtobufCMessageDescriptor *type, const uint8_t *b, size_t n, bool all,
		   json_t **ret, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();
	struct printer pr = {.all = all};
	void *m;

	if (!a)
		return cr_err_oom(err);
	int r = pb_unpack(a, type, b, n, UNPACK_BUDGET, &m, err);
	if (r) {
		err->kind = CR_ERR_INPUT;
		return r;
	}
	*ret = json_of_message(&pr, m);
	return *ret ? 0 : cr_err_oom(err);
}

int json_of_tree(const struct image *im, bool all, json_t **ret, struct cr_err *err)
{
	int r = json_of(&tree__tree__descriptor, im->tree, im->tree_len, all, ret, err);

	return r ? cr_err_ctx(err, "tree") : 0;
}

int json_of_manifest(const struct image *im, bool all, json_t **ret, struct cr_err *err)
{
	_cleanup_free_ uint8_t *b = NULL;
	size_t n = 0;
	int r = image_record_read(im->dirfd, "manifest", IMAGE_MANIFEST, &b, &n, NULL, err);

	if (!r)
		r = json_of(&image__manifest__descriptor, b + IMAGE_RECORD_HEAD, n, all, ret, err);
	return r;
}
