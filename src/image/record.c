#include "image/record.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "wire/le.h"

static const char MAGIC[4] = {'C', 'R', 'I', 'M'};

const char *image_record_name(enum image_record kind)
{
	static const char *const names[] = {
	    [IMAGE_MANIFEST] = "manifest", [IMAGE_TREE] = "tree", [IMAGE_INDEX] = "index"};

	return (unsigned)kind < ARRAY_SIZE(names) && names[kind] ? names[kind] : "?";
}

uint64_t image_record_max(enum image_record kind)
{
	/* an index has at most 8.3 KiB for each 2 MiB: this is for 240 GiB */
	return kind == IMAGE_INDEX ? 1ull << 30 : 65ull << 20;
}

static void put_head(uint8_t head[IMAGE_RECORD_HEAD], enum image_record kind, size_t n)
{
	memcpy(head, MAGIC, sizeof(MAGIC));
	le_put16(head + 4, IMAGE_VERSION);
	head[6] = (uint8_t)kind;
	head[7] = 0;
	le_put64(head + 8, n);
}

static int write_all(int fd, const void *p, size_t n)
{
	const char *at = p;

	while (n) {
		ssize_t done = write(fd, at, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return -1;
		at += done;
		n -= (size_t)done;
	}
	return 0;
}

static XXH128_hash_t digest_of(const void *head, const void *payload, size_t n)
{
	XXH3_state_t *st = XXH3_createState();
	XXH128_hash_t h = {0};

	if (!st) /* all zeros match no digest but by chance */
		return h;
	XXH3_128bits_reset(st);
	XXH3_128bits_update(st, head, IMAGE_RECORD_HEAD);
	XXH3_128bits_update(st, payload, n);
	h = XXH3_128bits_digest(st);
	XXH3_freeState(st);
	return h;
}

static void put_digest(uint8_t out[IMAGE_RECORD_TAIL], XXH128_hash_t h)
{
	le_put64(out, h.low64);
	le_put64(out + 8, h.high64);
}

int image_record_write(int dirfd, const char *file, enum image_record kind, const void *payload,
		       size_t n, bool sync, uint64_t *ret_bytes, XXH128_hash_t *ret_digest,
		       struct cr_err *err)
{
	uint8_t head[IMAGE_RECORD_HEAD], tail[IMAGE_RECORD_TAIL];
	char tmp[64];

	put_head(head, kind, n);
	XXH128_hash_t h = digest_of(head, payload, n);
	put_digest(tail, h);
	snprintf(tmp, sizeof(tmp), "%.50s.new", file);
	_cleanup_fd_ int fd =
	    openat(dirfd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return cr_err_sys(err, "make %s", tmp);
	if (write_all(fd, head, sizeof(head)) || write_all(fd, payload, n) ||
	    write_all(fd, tail, sizeof(tail)) || (sync && fsync(fd))) {
		cr_err_sys(err, "write %s", file);
		unlinkat(dirfd, tmp, 0);
		return -err->code;
	}
	if (renameat(dirfd, tmp, dirfd, file) < 0) {
		cr_err_sys(err, "rename %s", tmp);
		unlinkat(dirfd, tmp, 0);
		return -err->code;
	}
	if (ret_bytes)
		*ret_bytes = IMAGE_RECORD_MIN + n;
	if (ret_digest)
		*ret_digest = h;
	return 0;
}

static int damaged(struct cr_err *err, const char *file, const char *fmt, ...)
    __attribute__((format(printf, 3, 4), cold));
static int damaged(struct cr_err *err, const char *file, const char *fmt, ...)
{
	char what[300];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG, "%s: damaged: %s", file, what);
}

static int check_head(const uint8_t *b, size_t len, const char *file, enum image_record kind,
		      struct cr_err *err)
{
	if (len < IMAGE_RECORD_MIN)
		return damaged(err, file, "%zu bytes, where the shortest file of an image has %d",
			       len, IMAGE_RECORD_MIN);
	if (memcmp(b, MAGIC, sizeof(MAGIC)))
		return damaged(err, file,
			       "byte 0 is %02x %02x %02x %02x, where a file of an image has CRIM",
			       b[0], b[1], b[2], b[3]);
	unsigned int version = le_get16(b + 4);
	if (version > IMAGE_VERSION)
		return cr_err_set(err, CR_ERR_INPUT, EPROTONOSUPPORT,
				  "%s: version %u of the format (at byte 4), this program knows "
				  "%d; use a newer one",
				  file, version, IMAGE_VERSION);
	if (!version)
		return damaged(err, file, "byte 4 says version 0, the first is 1");
	if (b[6] != (uint8_t)kind)
		return damaged(err, file, "byte 6 says kind %u (%s), where %d (%s) belongs", b[6],
			       image_record_name((enum image_record)b[6]), kind,
			       image_record_name(kind));
	if (b[7])
		return damaged(err, file, "byte 7 is %u, where 0 belongs", b[7]);
	uint64_t want = le_get64(b + 8);
	if (want > UINT64_MAX - IMAGE_RECORD_MIN || want + IMAGE_RECORD_MIN != len)
		return damaged(err, file, "%zu bytes long, where byte 8 announces %llu and %d", len,
			       (unsigned long long)want, IMAGE_RECORD_MIN);
	return 0;
}

const char *image_digest_format(XXH128_hash_t h, char buf[IMAGE_DIGEST_HEX])
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, h);
	for (size_t i = 0; i < sizeof(c.digest); i++)
		snprintf(buf + 2 * i, 3, "%02x", c.digest[i]);
	return buf;
}

int image_record_check(const uint8_t *b, size_t len, const char *file, enum image_record kind,
		       size_t *ret_payload, XXH128_hash_t *ret_digest, struct cr_err *err)
{
	char found[IMAGE_DIGEST_HEX], said[IMAGE_DIGEST_HEX];
	int r = check_head(b, len, file, kind, err);

	if (r)
		return r;
	size_t n = len - IMAGE_RECORD_MIN;
	const uint8_t *tail = b + IMAGE_RECORD_HEAD + n;
	XXH128_hash_t h = digest_of(b, b + IMAGE_RECORD_HEAD, n);
	XXH128_hash_t want = {.low64 = le_get64(tail), .high64 = le_get64(tail + 8)};
	if (!XXH128_isEqual(h, want))
		return damaged(err, file,
			       "the digest of bytes 0 to %zu is %s, where byte %zu says %s",
			       IMAGE_RECORD_HEAD + n - 1, image_digest_format(h, found),
			       IMAGE_RECORD_HEAD + n, image_digest_format(want, said));
	*ret_payload = n;
	if (ret_digest)
		*ret_digest = h;
	return 0;
}

static int read_all(int fd, uint8_t *p, size_t n)
{
	while (n) {
		ssize_t got = read(fd, p, n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			if (!got)
				errno = ENODATA;
			return -1;
		}
		p += got;
		n -= (size_t)got;
	}
	return 0;
}

int image_record_read(int dirfd, const char *file, enum image_record kind, uint8_t **ret,
		      size_t *ret_payload, XXH128_hash_t *ret_digest, struct cr_err *err)
{
	_cleanup_fd_ int fd = openat(dirfd, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat sb;

	if (fd < 0) {
		cr_err_sys(err, "open %s", file);
		err->kind = CR_ERR_IO;
		return -err->code;
	}
	if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode))
		return damaged(err, file, "not a regular file");
	if ((uint64_t)sb.st_size > image_record_max(kind))
		return damaged(err, file,
			       "%lld bytes, where a file of this kind (%s) has at most %llu",
			       (long long)sb.st_size, image_record_name(kind),
			       (unsigned long long)image_record_max(kind));
	_cleanup_free_ uint8_t *b = malloc(sb.st_size ? (size_t)sb.st_size : 1);
	if (!b)
		return cr_err_oom(err);
	if (read_all(fd, b, (size_t)sb.st_size))
		return cr_err_sys(err, "read %s", file);
	int r = image_record_check(b, (size_t)sb.st_size, file, kind, ret_payload, ret_digest, err);
	if (!r)
		*ret = take_ptr(b);
	return r;
}
