/* The manifest to bytes and back (proto/image.proto). */
#include <stdio.h>
#include <string.h>
#include "image/image.h"
#include "proto/image.pb-c.h"
#include "wire/le.h"
#include "wire/page_stream.h"
#include "wire/pb.h"

enum { DIGEST_BYTES = 16, UNPACK_BUDGET = 32 << 20 };

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

static ProtobufCBinaryData put_digest(struct arena *a, XXH128_hash_t h)
{
	uint8_t b[DIGEST_BYTES];

	le_put64(b, h.low64);
	le_put64(b + 8, h.high64);
	void *p = arena_memdup(a, b, sizeof(b));
	return pb_bytes(p, p ? sizeof(b) : 0);
}

static int bad(const char *what, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG, "manifest: damaged: %s", what);
}

static int get_digest(const ProtobufCBinaryData *pb, XXH128_hash_t *ret, struct cr_err *err)
{
	if (pb->len != DIGEST_BYTES)
		return bad("a digest of another length", err);
	*ret = (XXH128_hash_t){.low64 = le_get64(pb->data), .high64 = le_get64(pb->data + 8)};
	return 0;
}

static int put_pages(const struct image *im, struct arena *a, Image__Manifest *m)
{
	m->pages = arena_array(a, Image__Pages *, im->targets.n);
	if (!m->pages)
		return -ENOMEM;
	for (uint32_t i = 0; i < im->targets.n; i++) {
		const struct image_target *t = im->targets.v[i];
		Image__Pages *p = t ? pb_new(a, &image__pages__descriptor) : NULL;

		if (!t)
			continue;
		if (!p)
			return -ENOMEM;
		p->target = i;
		p->pid = (uint32_t)t->pid;
		p->ino = t->ino;
		p->dev = t->dev;
		p->data_pages = t->data_pages;
		p->zero_pages = t->zero_pages;
		p->index_bytes = t->index_bytes;
		p->index_digest = put_digest(a, t->index_digest);
		m->pages[m->n_pages++] = p;
	}
	return 0;
}

int image_manifest_encode(const struct image *im, uint8_t **ret, size_t *n, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();
	Image__Manifest m = IMAGE__MANIFEST__INIT;

	if (!a || put_pages(im, a, &m))
		return cr_err_oom(err);
	m.state = (Image__State)im->state;
	m.name = pb_string(im->name);
	m.migration = pb_bytes(im->migration.b, sizeof(im->migration.b));
	m.host = pb_string(im->host);
	m.kernel = pb_string(im->kernel);
	m.created_ns = im->created_ns;
	m.saved_ns = im->saved_ns;
	m.rounds = im->rounds;
	m.tree_bytes = im->tree_file_bytes;
	if (im->tree_file_bytes)
		m.tree_digest = put_digest(a, im->tree_digest);
	m.complete = true;
	return pb_pack(&m.base, image_record_max(IMAGE_MANIFEST) - IMAGE_RECORD_MIN, ret, n, err);
}

static int get_target(struct image *im, const Image__Pages *p, struct cr_err *err)
{
	if (p->target >= PAGE_TARGETS_MAX || p->target < im->targets.n || p->pid > 4 << 20)
		return bad("a target out of range or twice", err);
	while (im->targets.n <= p->target)
		if (!vec_push(&im->targets))
			return cr_err_oom(err);
	struct image_target *t = calloc(1, sizeof(*t));
	if (!t)
		return cr_err_oom(err);
	image_pages_init(&t->pages, -1, p->target, im->limits);
	im->targets.v[p->target] = t;
	t->pid = (pid_t)p->pid;
	t->ino = p->ino;
	t->dev = p->dev;
	t->data_pages = p->data_pages;
	t->zero_pages = p->zero_pages;
	t->index_bytes = p->index_bytes;
	return get_digest(&p->index_digest, &t->index_digest, err);
}

static int get_manifest(struct image *im, const Image__Manifest *m, struct cr_err *err)
{
	int r = 0;

	if (!m->complete || (int)m->state < (int)IMAGE_RECEIVING ||
	    (int)m->state > (int)IMAGE_SEALED || !image_name_ok(m->name) ||
	    m->migration.len != sizeof(im->migration.b))
		return bad("a field is missing or out of range", err);
	im->state = (enum image_state)m->state;
	memcpy(im->migration.b, m->migration.data, sizeof(im->migration.b));
	snprintf(im->name, sizeof(im->name), "%s", m->name);
	snprintf(im->host, sizeof(im->host), "%.64s", m->host);
	snprintf(im->kernel, sizeof(im->kernel), "%.64s", m->kernel);
	im->created_ns = m->created_ns;
	im->saved_ns = m->saved_ns;
	im->rounds = m->rounds;
	im->tree_file_bytes = m->tree_bytes;
	if (m->tree_bytes)
		r = get_digest(&m->tree_digest, &im->tree_digest, err);
	for (size_t i = 0; i < m->n_pages && !r; i++)
		r = get_target(im, m->pages[i], err);
	return r;
}

int image_manifest_decode(struct image *im, const uint8_t *b, size_t n, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();
	void *m = NULL;

	if (!a)
		return cr_err_oom(err);
	int r = pb_unpack(a, &image__manifest__descriptor, b, n, n + UNPACK_BUDGET, &m, err);
	if (r) {
		err->kind = CR_ERR_INPUT;
		return cr_err_ctx(err, "manifest: damaged");
	}
	return get_manifest(im, m, err);
}
