/* Images: what is written comes back, nothing damaged is believed, nothing is stored twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "image/image.h"
#include "wire/le.h"

static char dir[64];
static int dirfd_;

static int make_dir(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/cr-image.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	dirfd_ = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dirfd_ < 0;
}

static int remove_dir(void **state)
{
	char cmd[128];

	(void)state;
	close(dirfd_);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static int temp_file(void)
{
	int fd = openat(dirfd_, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

/* A page that says which it is. */
static void fill(uint8_t *page, uint64_t va, unsigned int generation)
{
	for (size_t i = 0; i < CR_PAGE_SIZE; i += 16) {
		le_put64(page + i, va + i);
		le_put64(page + i + 8, generation + 1);
	}
}

static void write_pages(struct image_pages *p, uint64_t va, size_t n, unsigned int generation)
{
	struct cr_err err = {0};

	for (size_t i = 0; i < n; i++) {
		uint8_t page[CR_PAGE_SIZE];
		uint64_t at = va + i * CR_PAGE_SIZE;

		fill(page, at, generation);
		XXH128_hash_t h = page_hash(page, p->target, at);
		assert_int_equal(image_pages_write(p, at, 1, page, &h, &err), 0);
	}
}

static void check_page(const struct image_pages *p, uint64_t va, unsigned int generation)
{
	uint8_t want[CR_PAGE_SIZE], got[CR_PAGE_SIZE];
	struct cr_err err = {0};
	bool there;

	fill(want, va, generation);
	assert_int_equal(image_pages_read(p, va, got, &there, &err), 0);
	assert_true(there);
	assert_memory_equal(got, want, CR_PAGE_SIZE);
}

static uint64_t disk_bytes(int fd)
{
	struct stat sb;

	fsync(fd); /* some file systems allocate late */
	assert_int_equal(fstat(fd, &sb), 0);
	return (uint64_t)sb.st_blocks * 512;
}

/* ---- records ---- */

static void make_record(uint8_t **b, size_t *len)
{
	static const char payload[] = "what a record says";
	struct cr_err err = {0};
	struct stat sb;

	assert_int_equal(image_record_write(dirfd_, "tree", IMAGE_TREE, payload, sizeof(payload),
					    false, NULL, NULL, &err),
			 0);
	int fd = openat(dirfd_, "tree", O_RDONLY);
	assert_int_equal(fstat(fd, &sb), 0);
	*len = (size_t)sb.st_size;
	*b = malloc(*len);
	assert_int_equal(read(fd, *b, *len), *len);
	close(fd);
}

static void test_record(void **state)
{
	_cleanup_free_ uint8_t *b = NULL, *again = NULL;
	struct cr_err err = {0};
	size_t len, n;

	(void)state;
	make_record(&b, &len);
	assert_int_equal(image_record_check(b, len, "tree", IMAGE_TREE, &n, NULL, &err), 0);
	assert_int_equal(n, len - IMAGE_RECORD_MIN);
	assert_int_equal(image_record_read(dirfd_, "tree", IMAGE_TREE, &again, &n, NULL, &err), 0);
	assert_memory_equal(again, b, len);
	assert_int_equal(image_record_check(b, len, "tree", IMAGE_INDEX, &n, NULL, &err), -EBADMSG);
	assert_int_equal(image_record_read(dirfd_, "none", IMAGE_TREE, &again, &n, NULL, &err),
			 -ENOENT);
}

static void test_record_damaged(void **state)
{
	_cleanup_free_ uint8_t *b = NULL;
	struct cr_err err = {0};
	size_t len, n;

	(void)state;
	make_record(&b, &len);
	for (size_t cut = 0; cut < len; cut++) {
		_cleanup_free_ uint8_t *part = malloc(cut ? cut : 1);

		memcpy(part, b, cut);
		assert_int_equal(image_record_check(part, cut, "tree", IMAGE_TREE, &n, NULL, &err),
				 -EBADMSG);
	}
	for (size_t bit = 0; bit < 8 * len; bit++) {
		b[bit / 8] ^= (uint8_t)(1 << bit % 8);
		int r = image_record_check(b, len, "tree", IMAGE_TREE, &n, NULL, &err);
		/* some of the version's bits make a newer one of it */
		assert_true(r == -EBADMSG ||
			    (r == -EPROTONOSUPPORT && (bit / 8 == 4 || bit / 8 == 5)));
		assert_non_null(strstr(err.msg, "tree: "));
		b[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

static void test_record_newer(void **state)
{
	_cleanup_free_ uint8_t *b = NULL;
	struct cr_err err = {0};
	size_t len, n;

	(void)state;
	make_record(&b, &len);
	le_put16(b + 4, IMAGE_VERSION + 1);
	assert_int_equal(image_record_check(b, len, "tree", IMAGE_TREE, &n, NULL, &err),
			 -EPROTONOSUPPORT);
	assert_non_null(strstr(err.msg, "use a newer one"));
}

/* ---- pages ---- */

static bool keep_even(uint64_t va, bool zero, void *arg)
{
	(void)arg;
	return !zero && va / CR_PAGE_SIZE % 2 == 0;
}

static void test_pages(void **state)
{
	struct image_limits limits = {0};
	struct image_pages p;
	struct cr_err err = {0};
	const uint64_t at = 0x7f0000000000 - 3 * CR_PAGE_SIZE; /* over the end of a chunk */

	(void)state;
	image_pages_init(&p, temp_file(), 5, &limits);
	write_pages(&p, at, 6, 0);
	write_pages(&p, 0x1000, 1, 0);
	assert_int_equal(p.chunks.n, 3);
	assert_int_equal(p.n_data, 7);
	uint64_t before = disk_bytes(p.fd);
	for (unsigned int round = 1; round < 10; round++)
		write_pages(&p, at, 6, round);
	assert_int_equal(disk_bytes(p.fd), before); /* in place */
	for (size_t i = 0; i < 6; i++)
		check_page(&p, at + i * CR_PAGE_SIZE, 9);
	check_page(&p, 0x1000, 0);
	assert_int_equal(image_pages_zero(&p, at, 2, &err), 0);
	assert_int_equal(p.n_data, 5);
	assert_int_equal(p.n_zero, 2);
	assert_int_equal(disk_bytes(p.fd), before - 2 * CR_PAGE_SIZE); /* holes */
	assert_int_equal(limits.disk_bytes, 5 * CR_PAGE_SIZE);
	assert_int_equal(image_pages_prune(&p, keep_even, NULL, &err), 0);
	assert_int_equal(p.n_zero, 0);
	assert_int_equal(p.free_slots.n, 2); /* of 0x1000, and of the pages before the end */
	uint32_t slots = p.slots;
	write_pages(&p, 0x600000, 1, 0);
	assert_int_equal(p.slots, slots); /* used again */
	check_page(&p, 0x600000, 0);
	/* from the middle of one chunk to the middle of the last, and what lies between */
	write_pages(&p, 0x3fe000, 4, 0);
	assert_int_equal(image_pages_zero(&p, 0x402000, 1, &err), 0);
	uint64_t data = p.n_data;
	assert_int_equal(image_pages_drop(&p, 0x3ff000, 0x403000, &err), 0);
	assert_int_equal(p.n_data, data - 3);
	assert_int_equal(p.n_zero, 0);
	check_page(&p, 0x3fe000, 0);
	check_page(&p, 0x600000, 0);
	assert_int_equal(image_pages_drop(&p, 0, 0x7ffffffff000, &err), 0);
	assert_int_equal(p.n_data, 0);
	assert_int_equal(disk_bytes(p.fd), 0);
	image_pages_done(&p);
	assert_int_equal(limits.disk_bytes, 0);
	assert_int_equal(limits.memory_bytes, 0);
}

static void test_pages_limits(void **state)
{
	struct image_limits limits = {.memory_max = 2 * sizeof(struct image_chunk),
				      .disk_max = 3 * CR_PAGE_SIZE};
	struct image_pages p;
	struct cr_err err = {0};
	uint8_t page[CR_PAGE_SIZE] = {1};
	XXH128_hash_t h = {0};

	(void)state;
	image_pages_init(&p, temp_file(), 0, &limits);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(image_pages_write(&p, i * CR_PAGE_SIZE, 1, page, &h, &err), 0);
	assert_int_equal(image_pages_write(&p, 0x3000, 1, page, &h, &err), -ENOSPC);
	assert_int_equal(image_pages_write(&p, 0x1000, 1, page, &h, &err), 0); /* in place */
	assert_int_equal(image_pages_zero(&p, 0x200000, 1, &err), 0);
	assert_int_equal(image_pages_zero(&p, 0x400000, 1, &err), -ENOMEM);
	image_pages_done(&p);
	assert_int_equal(limits.disk_bytes, 0);
	assert_int_equal(limits.memory_bytes, 0);
}

static void encode(uint8_t **b, size_t *n)
{
	struct image_pages p;
	struct cr_err err = {0};

	image_pages_init(&p, temp_file(), 5, NULL);
	write_pages(&p, 0x1000, 3, 0);
	write_pages(&p, 0x7f0000000000, 1, 0);
	assert_int_equal(image_pages_zero(&p, 0x5000, 2, &err), 0);
	assert_int_equal(image_pages_encode(&p, b, n, &err), 0);
	image_pages_done(&p);
}

static int decode(const uint8_t *b, size_t n, struct cr_err *err)
{
	struct image_pages p;
	_cleanup_free_ uint8_t *again = NULL;
	size_t m;

	image_pages_init(&p, -1, 5, NULL);
	int r = image_pages_decode(&p, b, n, "index-5", err);
	if (!r) {
		assert_int_equal(image_pages_encode(&p, &again, &m, err), 0);
		assert_int_equal(m, n);
		assert_memory_equal(again, b, n);
	}
	image_pages_done(&p);
	return r;
}

static void test_index(void **state)
{
	_cleanup_free_ uint8_t *b = NULL;
	struct cr_err err = {0};
	size_t n;

	(void)state;
	encode(&b, &n);
	assert_int_equal(decode(b, n, &err), 0);
	for (size_t cut = 0; cut < n; cut++) {
		_cleanup_free_ uint8_t *part = malloc(cut ? cut : 1);

		memcpy(part, b, cut);
		assert_int_equal(decode(part, cut, &err), -EBADMSG);
		assert_non_null(strstr(err.msg, "index-5: damaged at byte"));
	}
	for (size_t i = 0; i < n; i++) { /* some are other, good indices; none does harm */
		b[i] ^= 0x41;
		int r = decode(b, n, &err);
		assert_true(r == 0 || r == -EBADMSG);
		b[i] ^= 0x41;
	}
}

static void test_index_parts(void **state)
{
	struct image_pages p, q;
	struct cr_err err = {0};
	uint64_t next = 0;
	size_t parts = 0, chunks = 0;

	(void)state;
	image_pages_init(&p, temp_file(), 5, NULL);
	for (uint64_t c = 0; c < 20; c++)
		write_pages(&p, c * IMAGE_CHUNK_BYTES, 3, 0);
	do {
		_cleanup_free_ uint8_t *b = NULL;
		size_t n;

		assert_int_equal(image_pages_encode_part(&p, next, 1000, &b, &n, &next, &err), 0);
		image_pages_init(&q, -1, 5, NULL);
		assert_int_equal(image_pages_decode(&q, b, n, "part", &err), 0);
		chunks += q.chunks.n;
		image_pages_done(&q);
		parts++;
	} while (next);
	assert_int_equal(chunks, 20);
	assert_true(parts > 1);
	image_pages_done(&p);
}

/* ---- the whole ---- */

static struct image *receive(const char *name)
{
	struct cr_err err = {0};
	struct image *im;

	if (image_receive(&im, dirfd_, name, NULL, &err))
		fail_msg("%s", err.msg);
	return im;
}

/* One with process 42 and three pages of it; its tree is the bytes of nothing in particular. */
static void make_image(const char *name, enum image_state state)
{
	struct image *im = receive(name);
	struct cr_err err = {0};
	uint32_t n;

	assert_int_equal(image_target_for(im, 42, 0, 0, &n, &err), 0);
	write_pages(&image_target(im, n)->pages, 0x1000, 3, 0);
	assert_int_equal(image_target_for(im, 0, 7, 8, &n, &err), 0);
	assert_int_equal(n, 1);
	free(im->tree); /* of one that is gone on from */
	im->tree = (uint8_t *)strdup("tree");
	im->tree_len = 4;
	assert_int_equal(image_save(im, state, true, &err), 0);
	image_free(im);
}

static int open_image(const char *name, struct image **ret, struct cr_err *err)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return image_open(ret, path, err);
}

static void test_image(void **state)
{
	struct cr_err err = {0};
	struct image *im, *other;

	(void)state;
	make_image("web", IMAGE_PARTIAL);
	assert_int_equal(open_image("web", &im, &err), 0);
	assert_int_equal(im->state, IMAGE_PARTIAL);
	assert_string_equal(im->name, "web");
	assert_int_equal(im->rounds, 1);
	assert_memory_equal(im->tree, "tree", 4);
	assert_int_equal(image_data_pages(im), 3);
	check_page(&image_find(im, 42, 0, 0)->pages, 0x2000, 0);
	assert_non_null(image_find(im, 0, 7, 8));
	assert_null(image_find(im, 43, 0, 0));
	assert_int_equal(image_receive(&other, dirfd_, "web", NULL, &err), -EBUSY);
	image_free(im);
	im = receive("web"); /* goes on */
	assert_int_equal(im->rounds, 2);
	assert_int_equal(image_data_pages(im), 3);
	assert_int_equal(open_image("web", &other, &err), -EBUSY);
	assert_int_equal(image_set_state(im, IMAGE_RECEIVING, &err), 0);
	image_free(im);
	im = receive("web"); /* nobody knows what was in it */
	assert_int_equal(im->rounds, 1);
	assert_int_equal(image_data_pages(im), 0);
	image_free(im);
	make_image("web", IMAGE_SEALED);
	assert_int_equal(image_receive(&other, dirfd_, "web", NULL, &err), -EEXIST);
}

static void test_image_names(void **state)
{
	static const char *const bad[] = {"", ".", "..", "a/b", "-x", "a b", "../x"};
	struct cr_err err = {0};
	struct image *im;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(image_receive(&im, dirfd_, bad[i], NULL, &err), -EINVAL);
	assert_true(image_name_ok("web-1.2_b"));
}

/* ---- damage: of every file, anywhere ---- */

static const char *const records[] = {"manifest", "tree", "index-0", "index-1"};

static int open_victim(const char *file)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/victim/%s", dir, file);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static off_t length(int fd)
{
	struct stat sb;

	assert_int_equal(fstat(fd, &sb), 0);
	return sb.st_size;
}

/* Neither a reader nor a receiver takes it; both name the file, and leave it as it is. */
static void is_refused(const char *file, int error)
{
	struct cr_err err = {0};
	struct image *im;
	int fd = open_victim(file);
	off_t before = length(fd);

	assert_int_equal(open_image("victim", &im, &err), -error);
	assert_non_null(strstr(err.msg, file));
	memset(&err, 0, sizeof(err));
	assert_int_equal(image_receive(&im, dirfd_, "victim", NULL, &err), -error);
	assert_non_null(strstr(err.msg, file));
	assert_int_equal(length(fd), before);
	close(fd);
}

static void is_sound(void)
{
	struct cr_err err = {0};
	struct image *im;

	if (open_image("victim", &im, &err))
		fail_msg("%s", err.msg);
	image_free(im);
}

static void test_damaged_bits(void **state)
{
	(void)state;
	make_image("victim", IMAGE_PARTIAL);
	for (size_t i = 0; i < ARRAY_SIZE(records); i++) {
		int fd = open_victim(records[i]);

		for (off_t bit = 0; bit < 8 * length(fd); bit++) {
			uint8_t c, d;

			assert_int_equal(pread(fd, &c, 1, bit / 8), 1);
			d = c ^ (uint8_t)(1 << bit % 8);
			assert_int_equal(pwrite(fd, &d, 1, bit / 8), 1);
			/* bits of the version, but its lowest, make a newer one of it */
			bool newer = bit / 8 == 5 || (bit / 8 == 4 && bit % 8);
			is_refused(records[i], newer ? EPROTONOSUPPORT : EBADMSG);
			assert_int_equal(pwrite(fd, &c, 1, bit / 8), 1);
		}
		close(fd);
		is_sound();
	}
}

/* Every length but the right one, and bytes after the end. */
static void test_damaged_lengths(void **state)
{
	(void)state;
	make_image("victim", IMAGE_PARTIAL);
	for (size_t i = 0; i < ARRAY_SIZE(records); i++) {
		int fd = open_victim(records[i]);
		off_t n = length(fd);
		uint8_t *b = malloc((size_t)n);

		assert_int_equal(pread(fd, b, (size_t)n, 0), n);
		assert_int_equal(ftruncate(fd, n + 1), 0);
		is_refused(records[i], EBADMSG);
		for (off_t cut = n - 1; cut >= 0; cut--) {
			assert_int_equal(ftruncate(fd, cut), 0);
			is_refused(records[i], EBADMSG);
		}
		assert_int_equal(pwrite(fd, b, (size_t)n, 0), n);
		free(b);
		close(fd);
		is_sound();
	}
}

/* With a right digest, as a newer program would write it. */
static void test_newer(void **state)
{
	(void)state;
	make_image("victim", IMAGE_PARTIAL);
	for (size_t i = 0; i < ARRAY_SIZE(records); i++) {
		int fd = open_victim(records[i]);
		size_t n = (size_t)length(fd);
		uint8_t *b = malloc(n), *newer = malloc(n);

		assert_int_equal(pread(fd, b, n, 0), n);
		memcpy(newer, b, n);
		le_put16(newer + 4, IMAGE_VERSION + 1);
		XXH128_hash_t h = XXH3_128bits(newer, n - IMAGE_RECORD_TAIL);
		le_put64(newer + n - 16, h.low64);
		le_put64(newer + n - 8, h.high64);
		assert_int_equal(pwrite(fd, newer, n, 0), n);
		is_refused(records[i], EPROTONOSUPPORT);
		assert_int_equal(pwrite(fd, b, n, 0), n);
		free(b);
		free(newer);
		close(fd);
		is_sound();
	}
}

/* A good record that is not the one that the manifest tells of, or one that is not there. */
static void test_mixed(void **state)
{
	(void)state;
	make_image("victim", IMAGE_PARTIAL);
	for (size_t i = 1; i < ARRAY_SIZE(records); i++) {
		char path[128], away[140];
		struct cr_err err = {0};
		struct image *im;
		enum image_record kind = i == 1 ? IMAGE_TREE : IMAGE_INDEX;

		snprintf(path, sizeof(path), "%s/victim/%s", dir, records[i]);
		snprintf(away, sizeof(away), "%s/away", dir);
		assert_int_equal(rename(path, away), 0);
		assert_int_equal(open_image("victim", &im, &err), -ENOENT);
		assert_non_null(strstr(err.msg, records[i]));
		int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		assert_int_equal(image_record_write(fd, "other", kind, "\0\0\0\0\1\0\0", 8, false,
						    NULL, NULL, &err),
				 0);
		assert_int_equal(renameat(fd, "other", AT_FDCWD, path), 0);
		close(fd);
		is_refused(records[i], EBADMSG);
		assert_int_equal(rename(away, path), 0);
		is_sound();
	}
}

/* A page: named by file, byte and address. */
static void test_damaged_pages(void **state)
{
	struct cr_err err = {0};
	struct image *im;
	uint8_t page[CR_PAGE_SIZE], c, d;

	(void)state;
	make_image("victim", IMAGE_SEALED);
	int fd = open_victim("pages-0");
	assert_int_equal(open_image("victim", &im, &err), 0);
	const struct image_pages *p = &image_find(im, 42, 0, 0)->pages;
	for (off_t at = 0x1000; at < 0x4000; at += 61) {
		uint64_t va = (uint64_t)at & ~0xfffull;
		char what[40];

		assert_int_equal(pread(fd, &c, 1, at), 1);
		d = c ^ (uint8_t)(1 << at % 8);
		assert_int_equal(pwrite(fd, &d, 1, at), 1);
		assert_int_equal(image_pages_read(p, va, page, NULL, &err), -EBADMSG);
		snprintf(what, sizeof(what), "pages-0: damaged at byte %d", (int)va);
		assert_non_null(strstr(err.msg, what));
		assert_int_equal(pwrite(fd, &c, 1, at), 1);
		check_page(p, va, 0);
	}
	/* cut off while it is open */
	assert_int_equal(ftruncate(fd, 0x2000), 0);
	assert_int_equal(image_pages_read(p, 0x3000, page, NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.msg, "cut off"));
	image_free(im);
	for (off_t n = 0; n <= 3 << 20; n += n < 0x5000 ? 0x333 : 0x33333) {
		assert_int_equal(ftruncate(fd, n), 0);
		assert_int_equal(open_image("victim", &im, &err), -EBADMSG);
		assert_non_null(strstr(err.msg, "pages-0: damaged"));
	}
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_record),          cmocka_unit_test(test_record_damaged),
	    cmocka_unit_test(test_record_newer),    cmocka_unit_test(test_pages),
	    cmocka_unit_test(test_pages_limits),    cmocka_unit_test(test_index),
	    cmocka_unit_test(test_index_parts),     cmocka_unit_test(test_image),
	    cmocka_unit_test(test_image_names),     cmocka_unit_test(test_damaged_bits),
	    cmocka_unit_test(test_damaged_lengths), cmocka_unit_test(test_newer),
	    cmocka_unit_test(test_mixed),           cmocka_unit_test(test_damaged_pages),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
