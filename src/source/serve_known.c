#include "source/serve_known.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "wire/page_digest.h"

enum { DIGEST_BYTES = sizeof(XXH128_hash_t) };

struct head { /* then a digest for each page, all zero if there is none */
	uint64_t target, pages;
};

static const XXH128_hash_t none;

static void copy_digests(uint8_t *map, uint64_t pages, const struct sent_chunk *c)
{
	for (unsigned int i = 0; i < CHUNK_PAGES; i++) {
		uint64_t page = c->start / CR_PAGE_SIZE + i;

		if (page < pages && chunk_test(c->sent, i))
			memcpy(map + sizeof(struct head) + page * DIGEST_BYTES, &c->digests[i],
			       DIGEST_BYTES);
	}
}

int serve_known_make(const struct sentmap *m, uint32_t target, uint64_t pages, int *ret,
		     struct cr_err *err)
{
	const struct head h = {target, pages};
	size_t bytes = sizeof(h) + pages * DIGEST_BYTES;
	_cleanup_fd_ int fd = memfd_create("cr-known", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		return cr_err_sys(err, "memory for digests");
	uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return cr_err_sys(err, "memory for digests");
	memcpy(map, &h, sizeof(h));
	for (size_t i = 0; i < m->cap; i++)
		if (m->slots[i].used && m->slots[i].digests)
			copy_digests(map, pages, &m->slots[i]);
	munmap(map, bytes);
	*ret = take_fd(&fd);
	return 0;
}

int serve_known_open(struct serve_known *k, int fd, struct cr_err *err)
{
	struct head h;

	if (pread(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h))
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "no digests");
	size_t bytes = sizeof(h) + h.pages * DIGEST_BYTES;
	void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return cr_err_sys(err, "mapping digests");
	*k = (struct serve_known){.map = map, .bytes = bytes};
	return 0;
}

void serve_known_done(struct serve_known *k)
{
	if (k->map)
		munmap(k->map, k->bytes);
	*k = (struct serve_known){0};
}

bool serve_known_same(const struct serve_known *k, uint64_t offset, const void *page)
{
	uint64_t at = sizeof(struct head) + offset / CR_PAGE_SIZE * DIGEST_BYTES;
	XXH128_hash_t sent;
	struct head h;

	if (!k->map || at + DIGEST_BYTES > k->bytes)
		return false;
	memcpy(&h, k->map, sizeof(h));
	memcpy(&sent, k->map + at, DIGEST_BYTES);
	return !XXH128_isEqual(sent, none) &&
	       XXH128_isEqual(sent, page_hash(page, (uint32_t)h.target, offset));
}
