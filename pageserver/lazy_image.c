#include "pageserver/lazy_image.h"

#include "base/log.h"
#include "source/serve.h"

static const struct image_target *by_key(const struct image *im, pid_t key)
{
	return key < LAZY_IMAGE_OBJECT ? image_find(im, key, 0, 0)
				       : image_target(im, (uint32_t)(key - LAZY_IMAGE_OBJECT));
}

static uint32_t read_pages(void *arg, pid_t key, uint64_t va, uint32_t n, uint8_t *buf)
{
	const struct image *im = arg;
	const struct image_target *t = by_key(im, key);
	uint32_t k = 0;

	for (; t && k < n; k++) {
		struct cr_err err = {0};

		if (image_pages_read(&t->pages, va + k * CR_PAGE_SIZE, buf + k * CR_PAGE_SIZE, NULL,
				     &err)) {
			if (!k)
				log_error("%s: %s", im->name, err.msg);
			break;
		}
	}
	return k;
}

/* Its chunks are the stream's. */
_Static_assert(IMAGE_CHUNK_PAGES * 4096 == LAZY_CHUNK_SPAN, "chunks of an image");

/* As many as there are chunks at most: less than the index itself takes. */
static struct serve_range *list_chunks(const struct image *im, size_t *n)
{
	size_t most = 0;

	vec_foreach (t, &im->targets)
		most += *t ? (*t)->pages.chunks.n : 0;
	struct serve_range *v = calloc(most + 1, sizeof(*v));
	*n = 0;
	vec_foreach (t, &im->targets)
		for (size_t i = 0; v && *t && i < (*t)->pages.chunks.n; i++) {
			uint64_t va = (*t)->pages.chunks.v[i]->va;

			v[(*n)++] =
			    (struct serve_range){lazy_image_key((*t)->pid, (*t)->pages.target), va,
						 va + LAZY_CHUNK_SPAN};
		}
	return v;
}

int lazy_image_serve(const struct image *im, int urgent, int bulk, uint64_t max_bandwidth,
		     struct cr_err *err)
{
	_cleanup_free_ pid_t *keys = calloc(im->targets.n + 1, sizeof(*keys));
	size_t n_has;
	_cleanup_free_ struct serve_range *has = list_chunks(im, &n_has);
	struct serve sv = {.pids = keys,
			   .has = has,
			   .n_has = n_has,
			   .read = read_pages,
			   .arg = (void *)im,
			   .lifeline = -1,
			   .max_bandwidth = max_bandwidth};
	struct serve_links links = {.urgent = urgent, .bulk = {bulk}, .n_bulk = 1};

	if (!keys || !has) {
		serve_links_close(&links);
		return cr_err_oom(err);
	}
	vec_foreach (t, &im->targets)
		if (*t)
			keys[sv.n_pids++] = lazy_image_key((*t)->pid, (*t)->pages.target);
	return serve_on(&sv, &links, err);
}
