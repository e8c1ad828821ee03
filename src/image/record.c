#include "image/record.h"

#include <fcntl.h>
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
	if (renameat(dirfd, tmp, dirfd, file) < 0)
		return cr_err_sys(err, "rename %s", tmp);
	if (ret_bytes)
		*ret_bytes = IMAGE_RECORD_MIN + n;
	if (ret_digest)
		*ret_digest = h;
	return 0;
}

int image_record_check(const uint8_t *b, size_t len, const char *file, enum image_record kind,
		       size_t *ret_payload, XXH128_hash_t *ret_digest, struct cr_err *err)
{
	uint8_t tail[IMAGE_RECORD_TAIL];

	if (len < IMAGE_RECORD_MIN || memcmp(b, MAGIC, sizeof(MAGIC)))
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "%s: not a file of an image (%zu bytes)", file, len);
	unsigned int version = le_get16(b + 4);
	if (version > IMAGE_VERSION)
		return cr_err_set(
		    err, CR_ERR_INPUT, EPROTONOSUPPORT,
		    "%s: version %u of the format, this program knows %d; use a newer one", file,
		    version, IMAGE_VERSION);
	if (!version || b[7] || b[6] != (uint8_t)kind)
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "%s: damaged at byte %d: not the header of a %s", file,
				  version ? 6 : 4, image_record_name(kind));
	uint64_t n = le_get64(b + 8);
	if (n != len - IMAGE_RECORD_MIN)
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "%s: damaged: %zu bytes long where %llu are announced", file, len,
				  (unsigned long long)n + IMAGE_RECORD_MIN);
	XXH128_hash_t h = digest_of(b, b + IMAGE_RECORD_HEAD, n);
	put_digest(tail, h);
	if (memcmp(tail, b + IMAGE_RECORD_HEAD + n, sizeof(tail)))
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "%s: damaged: its digest does not fit its %zu bytes", file, len);
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
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG, "%s: not a regular file", file);
	if ((uint64_t)sb.st_size > image_record_max(kind))
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG, "%s: %lld bytes: too long for a %s",
				  file, (long long)sb.st_size, image_record_name(kind));
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
