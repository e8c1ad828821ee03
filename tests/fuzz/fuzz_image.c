/* libFuzzer target: image directories, as image_input.h says, opened, read, gone on from, saved. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "image/image.h"
#include "proto/image.pb-c.h"
#include "tests/fuzz/image_input.h"
#include "wire/le.h"
#include "wire/tree_codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct part {
	const uint8_t *bytes;
	size_t n;
	bool raw, there;
	uint64_t file_bytes;
	XXH128_hash_t digest;
};

struct input {
	uint8_t how;
	struct part manifest, tree, index[IN_INDEX_MAX];
};

static void parse(struct input *in, const uint8_t *b, size_t n)
{
	in->how = *b++;
	n--;
	while (n >= 3) {
		unsigned int which = b[0] & ~IN_RAW & 0xff;
		size_t len = le_get16(b + 1);
		struct part *p = which == IN_MANIFEST ? &in->manifest
				 : which == IN_TREE   ? &in->tree
						    : &in->index[(which - IN_INDEX) % IN_INDEX_MAX];

		len = len < n - 3 ? len : n - 3;
		*p = (struct part){.bytes = b + 3, .n = len, .raw = b[0] & IN_RAW, .there = true};
		b += 3 + len;
		n -= 3 + len;
	}
}

/* ---- the directory ---- */

static const char *base_dir(void)
{
	static char dir[64];

	if (!*dir) {
		snprintf(dir, sizeof(dir), "/dev/shm/cr-fuzz-image.XXXXXX");
		if (!mkdtemp(dir))
			abort();
	}
	return dir;
}

static void remove_base_dir(void)
{
	char cmd[96];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", base_dir());
	if (system(cmd))
		perror(cmd);
}

static void write_part(int dirfd, const char *file, enum image_record kind, struct part *p)
{
	struct cr_err err = {0};

	if (!p->there)
		return;
	if (!p->raw) {
		if (image_record_write(dirfd, file, kind, p->bytes, p->n, false, &p->file_bytes,
				       &p->digest, &err))
			abort();
		return;
	}
	_cleanup_fd_ int fd = openat(dirfd, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, p->bytes, p->n) != (ssize_t)p->n)
		abort();
}

/* As long as the index says, if that can be. */
static void make_pages(int dirfd, unsigned int i, const struct part *index)
{
	static const char some[] = "these are no pages";
	uint64_t slots = index->n >= 8 ? le_get32(index->bytes + 4) : 0;
	char file[32];

	snprintf(file, sizeof(file), "pages-%u", i);
	_cleanup_fd_ int fd = openat(dirfd, file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, some, sizeof(some)) != sizeof(some) ||
	    ftruncate(fd, (off_t)((slots < 1 << 26 ? slots : 1) * IMAGE_CHUNK_BYTES)))
		abort();
}

static ProtobufCBinaryData digest_bytes(uint8_t b[16], XXH128_hash_t h)
{
	le_put64(b, h.low64);
	le_put64(b + 8, h.high64);
	return (ProtobufCBinaryData){16, b};
}

static void count_pages(const struct part *p, uint64_t *data, uint64_t *zero)
{
	struct image_pages pages;
	struct cr_err err = {0};

	image_pages_init(&pages, -1, 0, NULL);
	if (!image_pages_decode(&pages, p->bytes, p->n, "index", &err)) {
		*data = pages.n_data;
		*zero = pages.n_zero;
	}
	image_pages_done(&pages);
}

/* Writes it, too. */
static void mend_manifest(int dirfd, struct input *in)
{
	Image__Manifest *m = image__manifest__unpack(NULL, in->manifest.n, in->manifest.bytes);
	uint8_t digests[IN_INDEX_MAX + 1][16];
	ProtobufCBinaryData keep_tree, keep[IN_INDEX_MAX];

	if (!m)
		return;
	keep_tree = m->tree_digest;
	m->tree_bytes = in->tree.file_bytes;
	m->tree_digest = digest_bytes(digests[IN_INDEX_MAX], in->tree.digest);
	for (size_t i = 0; i < m->n_pages && i < IN_INDEX_MAX; i++) {
		Image__Pages *p = m->pages[i];
		const struct part *index = &in->index[p->target % IN_INDEX_MAX];

		p->index_bytes = index->file_bytes;
		if (index->there)
			count_pages(index, &p->data_pages, &p->zero_pages);
		keep[i] = p->index_digest;
		p->index_digest = digest_bytes(digests[i], index->digest);
	}
	_cleanup_free_ uint8_t *b = malloc(image__manifest__get_packed_size(m));
	if (b) {
		struct part p = {.bytes = b, .n = image__manifest__pack(m, b), .there = true};

		write_part(dirfd, "manifest", IMAGE_MANIFEST, &p);
	}
	m->tree_digest = keep_tree;
	for (size_t i = 0; i < m->n_pages && i < IN_INDEX_MAX; i++)
		m->pages[i]->index_digest = keep[i];
	image__manifest__free_unpacked(m, NULL);
}

static void make_dir(struct input *in)
{
	_cleanup_fd_ int base = open(base_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (base < 0 || (mkdirat(base, "image", 0700) && errno != EEXIST))
		abort();
	_cleanup_fd_ int fd = openat(base, "image", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	unlinkat(fd, "manifest", 0);
	unlinkat(fd, "tree", 0);
	write_part(fd, "tree", IMAGE_TREE, &in->tree);
	for (unsigned int i = 0; i < IN_INDEX_MAX; i++) {
		char file[32];

		snprintf(file, sizeof(file), "index-%u", i);
		unlinkat(fd, file, 0);
		if (in->index[i].there)
			make_pages(fd, i, &in->index[i]);
		write_part(fd, file, IMAGE_INDEX, &in->index[i]);
	}
	write_part(fd, "manifest", IMAGE_MANIFEST, &in->manifest);
	if (in->how & IN_MEND && in->manifest.there && !in->manifest.raw)
		mend_manifest(fd, in);
}

/* ---- what is done with it ---- */

static void read_target(const struct image_pages *p)
{
	struct cr_err err = {0};
	uint8_t page[CR_PAGE_SIZE];
	unsigned int budget = 600;

	for (size_t i = 0; i < p->chunks.n; i++) {
		const struct image_chunk *c = p->chunks.v[i];

		if (image_pages_find(p, c->va) != c || image_pages_lower(p, c->va) != i)
			abort();
		for (unsigned int k = 0; k < IMAGE_CHUNK_PAGES && budget; k++, budget--)
			if (image_pages_read(p, c->va + k * CR_PAGE_SIZE, page, NULL, &err))
				cr_err_clear(&err);
	}
}

static void read_all(const struct image *im)
{
	struct cr_err err = {0};
	struct tree *t;

	vec_foreach (it, &im->targets)
		if (*it)
			read_target(&(*it)->pages);
	if (im->tree && !tree_decode(im->tree, im->tree_len, &t, &err))
		tree_free(t);
}

/* What has been saved can be opened. */
static void go_on(struct image *im)
{
	struct cr_err err = {0};
	struct image *again;
	struct tree *t;
	char path[96];

	if (!im->tree || tree_decode(im->tree, im->tree_len, &t, &err)) {
		image_free(im);
		return;
	}
	int r = image_adopt_tree(im, t, im->tree, im->tree_len, &err);
	tree_free(t);
	if (!r)
		r = image_save(im, IMAGE_SEALED, false, &err);
	image_free(im);
	if (r)
		return;
	snprintf(path, sizeof(path), "%s/image", base_dir());
	if (image_open(&again, path, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		abort();
	}
	read_all(again);
	image_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool begun;
	struct image_limits limits = {.memory_max = 64 << 20};
	struct input in = {0};
	struct cr_err err = {0};
	struct image *im;
	char path[96];

	if (!size)
		return 0;
	if (!begun)
		atexit(remove_base_dir);
	begun = true;
	parse(&in, data, size);
	make_dir(&in);
	snprintf(path, sizeof(path), "%s/image", base_dir());
	if (in.how & IN_RECEIVE) {
		_cleanup_fd_ int base = open(base_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (!image_receive(&im, base, "image", &limits, &err))
			go_on(im);
	} else if (!image_open(&im, path, &err)) {
		read_all(im);
		image_free(im);
	}
	if (limits.memory_bytes || limits.disk_bytes)
		abort(); /* all that was taken is given back */
	return 0;
}
