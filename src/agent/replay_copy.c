#include "agent/replay_copy.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/pagemap.h"
#include "model/layout.h"
#include "model/lazy.h"
#include "wire/page_digest.h"

struct replay_copy {
	const struct process *p;
	const struct image_pages *pages, *of_pages;
	const uint64_t *eager;
	size_t n_eager;
	const uint8_t *of_map;
	int pagemap, of_pagemap;
	uint64_t shared;
};

int replay_copy_new(struct replay_copy **ret, const struct process *p,
		    const struct image_pages *pages, pid_t of, const struct image_pages *of_pages,
		    const uint64_t *eager, size_t n_eager, struct cr_err *err)
{
	struct replay_copy *c = calloc(1, sizeof(*c));

	if (!c)
		return cr_err_oom(err);
	*c = (struct replay_copy){.p = p,
				  .pages = pages,
				  .of_pages = of_pages,
				  .eager = eager,
				  .n_eager = n_eager,
				  .pagemap = -1,
				  .of_pagemap = -1};
	c->pagemap = pagemap_open(p->pid, err);
	if (c->pagemap >= 0)
		c->of_pagemap = pagemap_open(of, err);
	int r = c->pagemap < 0 ? c->pagemap : c->of_pagemap < 0 ? c->of_pagemap : 0;
	if (!r)
		r = replay_map(of_pages, &c->of_map, err);
	if (r)
		replay_copy_free(c);
	else
		*ret = c;
	return r;
}

void replay_copy_free(struct replay_copy *c)
{
	if (!c)
		return;
	replay_unmap(c->of_pages, c->of_map);
	close_fdp(&c->pagemap);
	close_fdp(&c->of_pagemap);
	free(c);
}

uint64_t replay_copy_count(const struct replay_copy *c)
{
	return c->shared;
}

static int entries(int fd, uint64_t va, uint64_t out[IMAGE_CHUNK_PAGES], struct cr_err *err)
{
	size_t want = IMAGE_CHUNK_PAGES * sizeof(*out);

	memset(out, 0, want); /* it ends where addresses do */
	if (pread(fd, out, want, (off_t)(va / CR_PAGE_SIZE * sizeof(*out))) < 0)
		return cr_err_sys(err, "read pagemap");
	return 0;
}

static bool same_frame(uint64_t a, uint64_t b)
{
	return a & b & PAGEMAP_PRESENT && a & PAGEMAP_FRAME && !((a ^ b) & PAGEMAP_FRAME) &&
	       !((a | b) & PAGEMAP_FILE);
}

static bool same_bytes(const struct replay_copy *c, const struct image_chunk *k,
		       const struct image_chunk *of, const uint8_t *map, unsigned int i)
{
	const uint8_t *page = map + image_page_offset(k, i);
	uint64_t va = k->va + i * CR_PAGE_SIZE;

	/* its own digest is checked as that of a page that is placed */
	return !memcmp(page, c->of_map + image_page_offset(of, i), CR_PAGE_SIZE) &&
	       XXH128_isEqual(page_hash(page, c->pages->target, va), k->hash[i]);
}

int replay_copy_shared(struct replay_copy *c, const struct image_chunk *k, const uint8_t *map,
		       uint64_t bits[8], struct cr_err *err)
{
	const struct image_chunk *of = image_pages_find(c->of_pages, k->va);
	uint64_t ours[IMAGE_CHUNK_PAGES], theirs[IMAGE_CHUNK_PAGES];

	if (!of)
		return 0;
	int r = entries(c->pagemap, k->va, ours, err);
	if (!r)
		r = entries(c->of_pagemap, k->va, theirs, err);
	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES && !r; i++) {
		if (!image_bit(bits, i) || !image_bit(of->data, i) ||
		    !same_frame(ours[i], theirs[i]) ||
		    lazy_is_eager(c->eager, c->n_eager, k->va + i * CR_PAGE_SIZE) ||
		    !same_bytes(c, k, of, map, i))
			continue;
		bits[i / 64] &= ~(1ull << (i % 64));
		c->shared++;
	}
	return r;
}

/* ---- pages that it has not ---- */

/* Of the mapping that the shell has there. */
static int read_file(const struct replay_copy *c, const struct vma *v, uint64_t va,
		     uint8_t page[CR_PAGE_SIZE], struct cr_err *err)
{
	char path[80];

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", c->p->pid,
		 (unsigned long long)v->start, (unsigned long long)v->end);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return cr_err_sys(err, "open %s", path);
	memset(page, 0, CR_PAGE_SIZE);
	for (size_t got = 0; got < CR_PAGE_SIZE;) {
		ssize_t n = pread(fd, page + got, CR_PAGE_SIZE - got,
				  (off_t)(v->offset + (va - v->start) + got));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return cr_err_sys(err, "read the file that is mapped at %#llx",
					  (unsigned long long)v->start);
		if (!n)
			break;
		got += (size_t)n;
	}
	return 0;
}

static int stray(struct replay_copy *c, uint64_t va, replay_stray_fn fn, void *arg,
		 struct cr_err *err)
{
	const struct vma *v = layout_find(c->p->mm.vmas, c->p->mm.n_vmas, va);
	uint8_t page[CR_PAGE_SIZE];

	if (!v || !vma_is_copied(v))
		return 0;
	if (v->kind == VMA_ANON)
		return fn(arg, va, NULL, err);
	int r = read_file(c, v, va, page, err);
	return r ? r : fn(arg, va, page, err);
}

int replay_copy_strays(struct replay_copy *c, replay_stray_fn fn, void *arg, struct cr_err *err)
{
	uint64_t ours[IMAGE_CHUNK_PAGES];
	int r = 0;

	vec_foreach (cp, &c->of_pages->chunks) {
		const struct image_chunk *of = *cp, *k = image_pages_find(c->pages, of->va);

		if (!r)
			r = entries(c->pagemap, of->va, ours, err);
		for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES && !r; i++) {
			bool has = k && (image_bit(k->data, i) || image_bit(k->zero, i));
			bool there = ours[i] & PAGEMAP_SWAPPED ||
				     (ours[i] & PAGEMAP_PRESENT && !(ours[i] & PAGEMAP_FILE));

			if (there && !has && (image_bit(of->data, i) || image_bit(of->zero, i)))
				r = stray(c, of->va + i * CR_PAGE_SIZE, fn, arg, err);
		}
	}
	return r;
}
