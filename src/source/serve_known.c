#include "source/serve_known.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "wire/page_digest.h"

enum { DIGEST_BYTES = sizeof(XXH128_hash_t) };

/* Then a digest for each page, all zero if there is none; then a bit for each that may have been
 * written since, in whole words. */
struct head {
	uint64_t target, pages, tells;
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

static uint64_t words_of(uint64_t pages)
{
	return (pages + 63) / 64;
}

static size_t bytes_of(const struct head *h)
{
	return sizeof(*h) + h->pages * DIGEST_BYTES + words_of(h->pages) * sizeof(uint64_t);
}

/* What lies behind those that are told of may have been written. */
static void copy_written(uint8_t *map, const struct head *h, const struct shared_pages *written)
{
	uint64_t known = h->pages < written->n ? h->pages : written->n;
	uint8_t *to = map + sizeof(*h) + h->pages * DIGEST_BYTES;

	memset(to, 0xff, words_of(h->pages) * sizeof(uint64_t));
	for (uint64_t i = 0; i < words_of(known); i++) {
		bool whole = (i + 1) * 64 <= known;
		uint64_t word = written->bits[i] | (whole ? 0 : ~0ull << known % 64);

		memcpy(to + i * sizeof(word), &word, sizeof(word));
	}
}

int serve_known_make(const struct sentmap *m, uint32_t target, uint64_t pages,
		     const struct shared_pages *written, int *ret, struct cr_err *err)
{
	const struct head h = {target, pages, written != NULL};
	size_t bytes = bytes_of(&h);
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
	if (written)
		copy_written(map, &h, written);
	munmap(map, bytes);
	*ret = take_fd(&fd);
	return 0;
}

int serve_known_open(struct serve_known *k, int fd, struct cr_err *err)
{
	struct head h;

	if (pread(fd, &h, sizeof(h), 0) != (ssize_t)sizeof(h))
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "no digests");
	size_t bytes = bytes_of(&h);
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

static struct head head_of(const struct serve_known *k)
{
	struct head h = {0};

	if (k->map)
		memcpy(&h, k->map, sizeof(h));
	return h;
}

bool serve_known_tells(const struct serve_known *k)
{
	return head_of(k).tells;
}

void serve_known_clean(const struct serve_known *k, uint64_t offset, uint64_t ret[8])
{
	const struct head h = head_of(k);
	const uint8_t *bits = k->map + sizeof(h) + h.pages * DIGEST_BYTES;

	for (uint64_t i = 0, at = offset / CR_PAGE_SIZE / 64; i < 8; i++, at++) {
		uint64_t written = ~0ull;

		if (h.tells && at < words_of(h.pages))
			memcpy(&written, bits + at * sizeof(written), sizeof(written));
		ret[i] = ~written;
	}
}

bool serve_known_same(const struct serve_known *k, uint64_t offset, const void *page)
{
	const struct head h = head_of(k);
	uint64_t at = sizeof(h) + offset / CR_PAGE_SIZE * DIGEST_BYTES;
	XXH128_hash_t sent;

	if (offset / CR_PAGE_SIZE >= h.pages)
		return false;
	memcpy(&sent, k->map + at, DIGEST_BYTES);
	return !XXH128_isEqual(sent, none) &&
	       XXH128_isEqual(sent, page_hash(page, (uint32_t)h.target, offset));
}
