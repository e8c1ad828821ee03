#include "image/pages.h"

#include <fcntl.h>
#include <string.h>
#include "image/record.h"
#include "wire/le.h"
#include "wire/page_stream.h"

enum {
	HEAD_BYTES = 8,           /* chunks u32, slots u32 */
	CHUNK_HEAD = 16 + 2 * 64, /* va u64, slot u32, 0 u32, data, zero */
	HASH_BYTES = 16,
};

void image_pages_init(struct image_pages *p, int fd, uint32_t target, struct image_limits *l)
{
	*p = (struct image_pages){.fd = fd, .target = target, .limits = l};
	pthread_mutex_init(&p->lock, NULL);
}

/* ---- limits ---- */

static bool take(_Atomic uint64_t *used, uint64_t max, uint64_t n)
{
	uint64_t before = atomic_fetch_add(used, n);

	if (!max || before + n <= max)
		return true;
	atomic_fetch_sub(used, n);
	return false;
}

int image_limits_take_memory(struct image_limits *l, uint64_t n, struct cr_err *err)
{
	if (!l || take(&l->memory_bytes, l->memory_max, n))
		return 0;
	return cr_err_set(err, CR_ERR_IO, ENOMEM,
			  "the receiver's memory limit (%llu bytes) is reached",
			  (unsigned long long)l->memory_max);
}

static int take_memory(struct image_pages *p, uint64_t n, struct cr_err *err)
{
	return image_limits_take_memory(p->limits, n, err);
}

static int take_disk(struct image_pages *p, uint64_t n, struct cr_err *err)
{
	struct image_limits *l = p->limits;

	if (!l || take(&l->disk_bytes, l->disk_max, n))
		return 0;
	return cr_err_set(err, CR_ERR_IO, ENOSPC,
			  "the receiver's disk limit (%llu bytes) is reached",
			  (unsigned long long)l->disk_max);
}

static void give_back(struct image_pages *p, uint64_t memory, uint64_t disk)
{
	if (!p->limits)
		return;
	atomic_fetch_sub(&p->limits->memory_bytes, memory);
	atomic_fetch_sub(&p->limits->disk_bytes, disk);
}

void image_pages_done(struct image_pages *p)
{
	give_back(p, p->chunks.n * sizeof(struct image_chunk), p->n_data * CR_PAGE_SIZE);
	vec_foreach (c, &p->chunks)
		free(*c);
	vec_done(&p->chunks);
	vec_done(&p->free_slots);
	close_fdp(&p->fd);
	pthread_mutex_destroy(&p->lock);
}

/* ---- the index ---- */

size_t image_pages_lower(const struct image_pages *p, uint64_t va)
{
	size_t lo = 0, hi = p->chunks.n;

	va -= va % IMAGE_CHUNK_BYTES;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (p->chunks.v[mid]->va < va)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

const struct image_chunk *image_pages_find(const struct image_pages *p, uint64_t va)
{
	size_t i = image_pages_lower(p, va);

	return i < p->chunks.n && p->chunks.v[i]->va == va - va % IMAGE_CHUNK_BYTES ? p->chunks.v[i]
										    : NULL;
}

static int new_chunk(struct image_pages *p, size_t at, uint64_t va, struct image_chunk **ret,
		     struct cr_err *err)
{
	int r = take_memory(p, sizeof(**ret), err);

	if (r)
		return r;
	struct image_chunk *c = calloc(1, sizeof(*c));
	if (!c || !vec_push(&p->chunks)) {
		free(c);
		give_back(p, sizeof(*c), 0);
		return cr_err_oom(err);
	}
	memmove(p->chunks.v + at + 1, p->chunks.v + at,
		(p->chunks.n - 1 - at) * sizeof(*p->chunks.v));
	p->chunks.v[at] = c;
	c->va = va - va % IMAGE_CHUNK_BYTES;
	c->slot = p->free_slots.n ? p->free_slots.v[--p->free_slots.n] : p->slots++;
	*ret = c;
	return 0;
}

static int chunk_at(struct image_pages *p, uint64_t va, struct image_chunk **ret,
		    struct cr_err *err)
{
	size_t i = image_pages_lower(p, va);

	if (i < p->chunks.n && p->chunks.v[i]->va == va - va % IMAGE_CHUNK_BYTES) {
		*ret = p->chunks.v[i];
		return 0;
	}
	return new_chunk(p, i, va, ret, err);
}

static void set_bit(uint64_t bits[8], unsigned int i)
{
	bits[i / 64] |= 1ull << (i % 64);
}

static void clear_bit(uint64_t bits[8], unsigned int i)
{
	bits[i / 64] &= ~(1ull << (i % 64));
}

/* ---- the file ---- */

static int write_file(const struct image_pages *p, uint64_t off, const uint8_t *data, size_t bytes,
		      struct cr_err *err)
{
	while (bytes) {
		ssize_t n = pwrite(p->fd, data, bytes, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (!n)
				errno = EIO;
			cr_err_sys(err, "write pages of the image");
			err->kind = CR_ERR_IO;
			return -err->code;
		}
		off += (size_t)n;
		data += n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int punch(const struct image_pages *p, uint64_t off, uint64_t bytes, struct cr_err *err)
{
	if (!fallocate(p->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)bytes))
		return 0;
	return cr_err_sys(err, "make a hole in the pages of the image");
}

/* Pages of one chunk. The bits are set before the bytes are there: nobody reads them meanwhile, and
 * a write that fails ends the migration. */
static int write_chunk(struct image_pages *p, uint64_t addr, size_t n, const uint8_t *data,
		       const XXH128_hash_t *hashes, struct cr_err *err)
{
	unsigned int first = (unsigned int)(addr % IMAGE_CHUNK_BYTES / CR_PAGE_SIZE);
	uint64_t fresh = 0, off = 0;
	struct image_chunk *c;

	pthread_mutex_lock(&p->lock);
	int r = chunk_at(p, addr, &c, err);
	for (size_t i = 0; !r && i < n; i++)
		fresh += !image_bit(c->data, first + (unsigned int)i);
	if (!r)
		r = take_disk(p, fresh * CR_PAGE_SIZE, err);
	for (unsigned int i = first; !r && i < first + n; i++) {
		p->n_zero -= image_bit(c->zero, i);
		set_bit(c->data, i);
		clear_bit(c->zero, i);
		c->hash[i] = hashes[i - first];
	}
	if (!r) {
		p->n_data += fresh;
		off = image_page_offset(c, first);
	}
	pthread_mutex_unlock(&p->lock);
	return r ? r : write_file(p, off, data, n * CR_PAGE_SIZE, err);
}

/* Pages of [addr, …) that are in its chunk, at most n. */
static size_t in_chunk(uint64_t addr, size_t n)
{
	size_t left = IMAGE_CHUNK_PAGES - addr % IMAGE_CHUNK_BYTES / CR_PAGE_SIZE;

	return n < left ? n : left;
}

int image_pages_write(struct image_pages *p, uint64_t addr, size_t n, const uint8_t *data,
		      const XXH128_hash_t *hashes, struct cr_err *err)
{
	int r = 0;

	while (n && !r) {
		size_t k = in_chunk(addr, n);

		r = write_chunk(p, addr, k, data, hashes, err);
		addr += k * CR_PAGE_SIZE;
		data += k * CR_PAGE_SIZE;
		hashes += k;
		n -= k;
	}
	return r;
}

/* Forget the data of pages of one chunk, which becomes holes. Under the lock. */
static int drop_data(struct image_pages *p, struct image_chunk *c, unsigned int first,
		     unsigned int end, struct cr_err *err)
{
	int r = 0;

	for (unsigned int i = first; i < end && !r; i++) {
		unsigned int from = i;

		while (i < end && image_bit(c->data, i))
			clear_bit(c->data, i++);
		if (i == from)
			continue;
		p->n_data -= i - from;
		give_back(p, 0, (i - from) * CR_PAGE_SIZE);
		memset(&c->hash[from], 0, (i - from) * sizeof(c->hash[0]));
		r = punch(p, image_page_offset(c, from), (i - from) * CR_PAGE_SIZE, err);
	}
	return r;
}

int image_pages_zero(struct image_pages *p, uint64_t addr, size_t n, struct cr_err *err)
{
	int r = 0;

	pthread_mutex_lock(&p->lock);
	while (n && !r) {
		size_t k = in_chunk(addr, n);
		unsigned int first = (unsigned int)(addr % IMAGE_CHUNK_BYTES / CR_PAGE_SIZE);
		struct image_chunk *c;

		r = chunk_at(p, addr, &c, err);
		if (!r)
			r = drop_data(p, c, first, first + (unsigned int)k, err);
		for (unsigned int i = first; !r && i < first + k; i++) {
			p->n_zero += !image_bit(c->zero, i);
			set_bit(c->zero, i);
		}
		addr += k * CR_PAGE_SIZE;
		n -= k;
	}
	pthread_mutex_unlock(&p->lock);
	return r;
}

static int drop_from_chunk(struct image_pages *p, struct image_chunk *c, uint64_t start,
			   uint64_t end, struct cr_err *err)
{
	unsigned int from = 0, to = IMAGE_CHUNK_PAGES;

	if (start > c->va)
		from = (unsigned int)((start - c->va) / CR_PAGE_SIZE);
	if (end - c->va < IMAGE_CHUNK_BYTES)
		to = (unsigned int)((end - c->va) / CR_PAGE_SIZE);
	for (unsigned int i = from; i < to; i++) {
		p->n_zero -= image_bit(c->zero, i);
		clear_bit(c->zero, i);
	}
	return drop_data(p, c, from, to, err);
}

int image_pages_drop(struct image_pages *p, uint64_t start, uint64_t end, struct cr_err *err)
{
	int r = 0;

	pthread_mutex_lock(&p->lock);
	for (size_t i = image_pages_lower(p, start);
	     i < p->chunks.n && p->chunks.v[i]->va < end && !r; i++)
		r = drop_from_chunk(p, p->chunks.v[i], start, end, err);
	pthread_mutex_unlock(&p->lock);
	return r;
}

static bool chunk_empty(const struct image_chunk *c)
{
	uint64_t any = 0;

	for (unsigned int i = 0; i < 8; i++)
		any |= c->data[i] | c->zero[i];
	return !any;
}

static int prune_chunk(struct image_pages *p, struct image_chunk *c, image_keep_fn keep, void *arg,
		       struct cr_err *err)
{
	int r = 0;

	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES && !r; i++) {
		uint64_t va = c->va + i * CR_PAGE_SIZE;

		if (image_bit(c->data, i) && !keep(va, false, arg))
			r = drop_data(p, c, i, i + 1, err);
		if (image_bit(c->zero, i) && !keep(va, true, arg)) {
			clear_bit(c->zero, i);
			p->n_zero--;
		}
	}
	return r;
}

int image_pages_prune(struct image_pages *p, image_keep_fn keep, void *arg, struct cr_err *err)
{
	size_t n = 0;
	int r = 0;

	for (size_t i = 0; i < p->chunks.n; i++) {
		struct image_chunk *c = p->chunks.v[i];

		if (!r)
			r = prune_chunk(p, c, keep, arg, err);
		if (!r && chunk_empty(c)) {
			uint32_t *slot = vec_push(&p->free_slots);

			if (slot)
				*slot = c->slot;
			give_back(p, sizeof(*c), 0);
			free(c);
			continue;
		}
		p->chunks.v[n++] = c;
	}
	p->chunks.n = n;
	return r;
}

/* ---- to bytes and back ---- */

static unsigned int popcount(const uint64_t bits[8])
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < 8; i++)
		n += (unsigned int)__builtin_popcountll(bits[i]);
	return n;
}

static uint8_t *encode_chunk(uint8_t *b, const struct image_chunk *c)
{
	le_put64(b, c->va);
	le_put32(b + 8, c->slot);
	le_put32(b + 12, 0);
	for (unsigned int i = 0; i < 8; i++) {
		le_put64(b + 16 + i * 8, c->data[i]);
		le_put64(b + 80 + i * 8, c->zero[i]);
	}
	b += CHUNK_HEAD;
	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++) {
		if (!image_bit(c->data, i))
			continue;
		le_put64(b, c->hash[i].low64);
		le_put64(b + 8, c->hash[i].high64);
		b += HASH_BYTES;
	}
	return b;
}

int image_pages_encode(const struct image_pages *p, uint8_t **ret, size_t *n, struct cr_err *err)
{
	size_t bytes = HEAD_BYTES + p->chunks.n * CHUNK_HEAD + p->n_data * HASH_BYTES;
	uint8_t *b = malloc(bytes), *at = b;

	if (!b)
		return cr_err_oom(err);
	le_put32(at, (uint32_t)p->chunks.n);
	le_put32(at + 4, p->slots);
	at += HEAD_BYTES;
	vec_foreach (c, &p->chunks)
		at = encode_chunk(at, *c);
	*ret = b;
	*n = bytes;
	return 0;
}

int image_pages_encode_part(const struct image_pages *p, uint64_t va, size_t max, uint8_t **ret,
			    size_t *n, uint64_t *next, struct cr_err *err)
{
	size_t first = image_pages_lower(p, va), i = first, bytes = HEAD_BYTES;
	uint8_t *b = malloc(max), *at = b;

	if (!b)
		return cr_err_oom(err);
	at += HEAD_BYTES;
	for (; i < p->chunks.n; i++) {
		const struct image_chunk *c = p->chunks.v[i];
		size_t need = CHUNK_HEAD + popcount(c->data) * (size_t)HASH_BYTES;

		if (bytes + need > max)
			break;
		uint8_t *end = encode_chunk(at, c);
		le_put32(at + 8, (uint32_t)(i - first));
		at = end;
		bytes += need;
	}
	le_put32(b, (uint32_t)(i - first));
	le_put32(b + 4, (uint32_t)(i - first));
	*next = i < p->chunks.n ? p->chunks.v[i]->va : 0;
	*ret = b;
	*n = bytes;
	return 0;
}

struct input {
	const uint8_t *at, *end;
	const char *file;
	const uint8_t *begin;
};

static int bad(const struct input *in, const char *what, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG, "%s: damaged at byte %zu: %s", in->file,
			  (size_t)(in->at - in->begin), what);
}

static int decode_chunk(struct image_chunk *c, struct input *in, struct cr_err *err)
{
	if (in->end - in->at < CHUNK_HEAD)
		return bad(in, "it ends within a chunk", err);
	c->va = le_get64(in->at);
	c->slot = le_get32(in->at + 8);
	if (le_get32(in->at + 12))
		return bad(in, "not zero where zero must be", err);
	for (unsigned int i = 0; i < 8; i++) {
		c->data[i] = le_get64(in->at + 16 + i * 8);
		c->zero[i] = le_get64(in->at + 80 + i * 8);
		if (c->data[i] & c->zero[i])
			return bad(in, "a page that is both data and zero", err);
	}
	if (c->va % IMAGE_CHUNK_BYTES || c->va >= PAGE_ADDR_END)
		return bad(in, "no address of a chunk", err);
	in->at += CHUNK_HEAD;
	if ((size_t)(in->end - in->at) < popcount(c->data) * (size_t)HASH_BYTES)
		return bad(in, "it ends within the hashes of a chunk", err);
	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++) {
		if (!image_bit(c->data, i))
			continue;
		c->hash[i] =
		    (XXH128_hash_t){.low64 = le_get64(in->at), .high64 = le_get64(in->at + 8)};
		in->at += HASH_BYTES;
	}
	return 0;
}

/* A bit for each slot that a chunk has. NULL: out of memory. *twice: one that is not there, or that
 * two have. */
static uint8_t *used_slots(const struct image_pages *p, bool *twice)
{
	uint8_t *used = calloc(1, p->slots / 8 + 1);

	*twice = false;
	if (!used)
		return NULL;
	vec_foreach (cp, &p->chunks) {
		uint32_t slot = (*cp)->slot;

		if (slot >= p->slots || used[slot / 8] & 1 << slot % 8) {
			*twice = true;
			break;
		}
		used[slot / 8] |= (uint8_t)(1 << slot % 8);
	}
	return used;
}

static int check_slots(const struct image_pages *p, const struct input *in, struct cr_err *err)
{
	bool twice;
	_cleanup_free_ uint8_t *used = used_slots(p, &twice);

	if (!used)
		return cr_err_oom(err);
	return twice ? bad(in, "a slot that is not there or is used twice", err) : 0;
}

int image_pages_find_free(struct image_pages *p, struct cr_err *err)
{
	bool twice;
	_cleanup_free_ uint8_t *used = used_slots(p, &twice);

	if (!used)
		return cr_err_oom(err);
	for (uint32_t i = p->slots; i-- > 0;) {
		uint32_t *slot;

		if (used[i / 8] & 1 << i % 8)
			continue;
		slot = vec_push(&p->free_slots);
		if (!slot)
			return cr_err_oom(err);
		*slot = i;
	}
	return 0;
}

int image_pages_decode(struct image_pages *p, const uint8_t *b, size_t n, const char *file,
		       struct cr_err *err)
{
	struct input in = {b, b + n, file, b};

	if (n < HEAD_BYTES)
		return bad(&in, "too short", err);
	uint32_t chunks = le_get32(b);
	p->slots = le_get32(b + 4);
	/* as many as fit into the address space */
	if (chunks > n / CHUNK_HEAD || chunks > p->slots || p->slots > 1u << 26)
		return bad(&in, "more chunks than it has bytes or slots", err);
	in.at += HEAD_BYTES;
	for (uint32_t i = 0; i < chunks; i++) {
		struct image_chunk **cp, *last = i ? p->chunks.v[i - 1] : NULL;
		int r = take_memory(p, sizeof(**cp), err);

		if (r)
			return r;
		cp = vec_push(&p->chunks);
		if (!cp || !(*cp = calloc(1, sizeof(**cp)))) {
			p->chunks.n -= !!cp;
			give_back(p, sizeof(**cp), 0);
			return cr_err_oom(err);
		}
		r = decode_chunk(*cp, &in, err);
		if (r)
			return r;
		if (last && last->va >= (*cp)->va)
			return bad(&in, "chunks that do not ascend", err);
		uint64_t data = popcount((*cp)->data);
		r = take_disk(p, data * CR_PAGE_SIZE, err);
		if (r)
			return r;
		p->n_data += data;
		p->n_zero += popcount((*cp)->zero);
	}
	if (in.at != in.end)
		return bad(&in, "bytes after its end", err);
	return check_slots(p, &in, err);
}

int image_pages_read(const struct image_pages *p, uint64_t va, uint8_t buf[CR_PAGE_SIZE],
		     bool *ret_there, struct cr_err *err)
{
	const struct image_chunk *c = image_pages_find(p, va);
	unsigned int i = (unsigned int)(va % IMAGE_CHUNK_BYTES / CR_PAGE_SIZE);
	bool data = c && image_bit(c->data, i);

	if (ret_there)
		*ret_there = data || (c && image_bit(c->zero, i));
	memset(buf, 0, CR_PAGE_SIZE);
	if (!data)
		return 0;
	ssize_t n = pread(p->fd, buf, CR_PAGE_SIZE, (off_t)image_page_offset(c, i));
	if (n < 0)
		return cr_err_sys(err, "read a page of the image");
	XXH128_hash_t h = page_hash(buf, p->target, va);
	if (n == CR_PAGE_SIZE && XXH128_isEqual(h, c->hash[i]))
		return 0;
	char found[IMAGE_DIGEST_HEX], said[IMAGE_DIGEST_HEX];
	unsigned long long off = image_page_offset(c, i), at = va;
	if (n != CR_PAGE_SIZE)
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "pages-%u: damaged at byte %llu: cut off within the page of "
				  "address %#llx",
				  p->target, off, at);
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
			  "pages-%u: damaged at byte %llu: the page of address %#llx has hash %s, "
			  "where index-%u says %s",
			  p->target, off, at, image_digest_format(h, found), p->target,
			  image_digest_format(c->hash[i], said));
}
