#include "image/image.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include "base/clock.h"
#include "model/layout.h"
#include "wire/page_stream.h"

bool image_name_ok(const char *name)
{
	size_t n = strlen(name);

	if (!n || n > IMAGE_NAME_MAX || !isalnum((unsigned char)name[0]))
		return false;
	for (size_t i = 1; i < n; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
			return false;
	return true;
}

const char *image_state_name(enum image_state s)
{
	static const char *const names[] = {[IMAGE_RECEIVING] = "receiving",
					    [IMAGE_PARTIAL] = "partial",
					    [IMAGE_PREPARED] = "prepared",
					    [IMAGE_SEALED] = "sealed"};

	return (unsigned)s < ARRAY_SIZE(names) && names[s] ? names[s] : "?";
}

static void target_free(struct image_target *t)
{
	if (!t)
		return;
	image_pages_done(&t->pages);
	free(t);
}

static void drop_targets(struct image *im)
{
	vec_foreach (t, &im->targets)
		target_free(*t);
	vec_done(&im->targets);
}

void image_free(struct image *im)
{
	if (!im)
		return;
	drop_targets(im);
	free(im->tree);
	close_fdp(&im->dirfd);
	free(im);
}

struct image_target *image_target(const struct image *im, uint32_t target)
{
	return target < im->targets.n ? im->targets.v[target] : NULL;
}

struct image_target *image_find(const struct image *im, pid_t pid, uint64_t ino, uint64_t dev)
{
	vec_foreach (t, &im->targets)
		if (*t && (*t)->pid == pid && (pid || ((*t)->ino == ino && (*t)->dev == dev)))
			return *t;
	return NULL;
}

static void file_name(char buf[32], const char *what, uint32_t target)
{
	snprintf(buf, 32, "%s-%u", what, target);
}

/* ---- reading ---- */

static int open_pages(struct image *im, struct image_target *t, bool write, struct cr_err *err)
{
	char name[32];
	struct stat sb;

	file_name(name, "pages", t->pages.target);
	t->pages.fd = openat(im->dirfd, name,
			     (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (t->pages.fd < 0 && im->pages_elsewhere && errno == ENOENT)
		return 0;
	if (t->pages.fd < 0 || fstat(t->pages.fd, &sb))
		return cr_err_sys(err, "open %s", name);
	uint64_t want = t->pages.slots * IMAGE_CHUNK_BYTES;
	if (!S_ISREG(sb.st_mode) || (uint64_t)sb.st_size != want)
		return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
				  "%s: damaged: %lld bytes long where index-%u tells of %llu", name,
				  (long long)sb.st_size, t->pages.target, (unsigned long long)want);
	return write ? image_pages_find_free(&t->pages, err) : 0;
}

/* What the manifest says of another file: its size and digest. */
static int check_against_manifest(const char *name, uint64_t bytes, XXH128_hash_t digest,
				  uint64_t want_bytes, XXH128_hash_t want, struct cr_err *err)
{
	char found[IMAGE_DIGEST_HEX], said[IMAGE_DIGEST_HEX];

	if (bytes == want_bytes && XXH128_isEqual(digest, want))
		return 0;
	return cr_err_set(err, CR_ERR_INPUT, EBADMSG,
			  "%s: not the one that the manifest tells of: %llu bytes with digest %s, "
			  "where it says %llu with %s",
			  name, (unsigned long long)bytes, image_digest_format(digest, found),
			  (unsigned long long)want_bytes, image_digest_format(want, said));
}

static int load_target(struct image *im, struct image_target *t, bool write, struct cr_err *err)
{
	_cleanup_free_ uint8_t *b = NULL;
	XXH128_hash_t digest = {0};
	char name[32];
	size_t n = 0;

	file_name(name, "index", t->pages.target);
	int r = image_record_read(im->dirfd, name, IMAGE_INDEX, &b, &n, &digest, err);
	if (r)
		return r;
	r = check_against_manifest(name, n + IMAGE_RECORD_MIN, digest, t->index_bytes,
				   t->index_digest, err);
	if (r)
		return r;
	r = image_pages_decode(&t->pages, b + IMAGE_RECORD_HEAD, n, name, err);
	if (!r && (t->pages.n_data != t->data_pages || t->pages.n_zero != t->zero_pages))
		r = cr_err_set(
		    err, CR_ERR_INPUT, EBADMSG,
		    "%s: %llu pages and %llu of zeros, where the manifest tells of %llu "
		    "and %llu",
		    name, (unsigned long long)t->pages.n_data, (unsigned long long)t->pages.n_zero,
		    (unsigned long long)t->data_pages, (unsigned long long)t->zero_pages);
	return r ? r : open_pages(im, t, write, err);
}

int image_load_tree(struct image *im, struct cr_err *err)
{
	_cleanup_free_ uint8_t *b = NULL;
	XXH128_hash_t digest = {0};
	size_t n = 0;

	if (!im->tree_file_bytes)
		return 0;
	int r = image_record_read(im->dirfd, "tree", IMAGE_TREE, &b, &n, &digest, err);
	if (r)
		return r;
	r = check_against_manifest("tree", n + IMAGE_RECORD_MIN, digest, im->tree_file_bytes,
				   im->tree_digest, err);
	if (r)
		return r;
	memmove(b, b + IMAGE_RECORD_HEAD, n);
	im->tree = take_ptr(b);
	im->tree_len = n;
	return 0;
}

int image_load_target(struct image *im, struct image_target *t, struct cr_err *err)
{
	return load_target(im, t, false, err);
}

static int load_manifest(struct image *im, struct cr_err *err)
{
	_cleanup_free_ uint8_t *b = NULL;
	size_t n = 0;
	int r = image_record_read(im->dirfd, "manifest", IMAGE_MANIFEST, &b, &n, NULL, err);

	return r ? r : image_manifest_decode(im, b + IMAGE_RECORD_HEAD, n, err);
}

static int load(struct image *im, bool write, struct cr_err *err)
{
	int r = load_manifest(im, err);

	if (r || im->state == IMAGE_RECEIVING)
		return r; /* the rest is older than the pages */
	r = image_load_tree(im, err);
	vec_foreach (t, &im->targets)
		if (!r && *t)
			r = load_target(im, *t, write, err);
	return r;
}

static int lock(struct image *im, int how, const char *what, struct cr_err *err)
{
	if (!flock(im->dirfd, how | LOCK_NB))
		return 0;
	if (errno != EWOULDBLOCK)
		return cr_err_sys(err, "lock the image %s", what);
	return cr_err_set(err, CR_ERR_INPUT, EBUSY, "image %s: %s", what,
			  how == LOCK_SH ? "a migration writes to it just now"
					 : "somebody reads it or writes to it just now");
}

static int open_for_reading(struct image **ret, const char *path, bool whole, bool elsewhere,
			    struct image_limits *l, struct cr_err *err)
{
	_cleanup_(image_freep) struct image *im = calloc(1, sizeof(*im));

	if (!im)
		return cr_err_oom(err);
	im->pages_elsewhere = elsewhere;
	im->limits = l;
	im->dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (im->dirfd < 0)
		return cr_err_sys(err, "image %s", path);
	int r = lock(im, LOCK_SH, path, err);
	if (!r)
		r = whole ? load(im, false, err) : load_manifest(im, err);
	if (r)
		return r == -EBUSY ? r : cr_err_ctx(err, "image %s", path);
	*ret = take_ptr(im);
	return 0;
}

int image_open(struct image **ret, const char *path, struct cr_err *err)
{
	return open_for_reading(ret, path, true, false, NULL, err);
}

int image_open_limited(struct image **ret, const char *path, struct image_limits *l,
		       struct cr_err *err)
{
	return open_for_reading(ret, path, true, false, l, err);
}

int image_open_index(struct image **ret, const char *path, struct cr_err *err)
{
	return open_for_reading(ret, path, true, true, NULL, err);
}

int image_open_parts(struct image **ret, const char *path, struct cr_err *err)
{
	return open_for_reading(ret, path, false, false, NULL, err);
}

int image_open_manifest(struct image **ret, int dirfd, const char *name, struct cr_err *err)
{
	_cleanup_(image_freep) struct image *im = calloc(1, sizeof(*im));

	if (!im)
		return cr_err_oom(err);
	im->dirfd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (im->dirfd < 0)
		return cr_err_sys(err, "image %s", name);
	int r = lock(im, LOCK_EX, name, err);
	if (!r)
		r = load_manifest(im, err);
	if (!r)
		*ret = take_ptr(im);
	return r;
}

/* ---- receiving ---- */

static bool is_ours(const char *name)
{
	return !strncmp(name, "pages-", 6) || !strncmp(name, "index-", 6) ||
	       !strncmp(name, "tree", 4) || !strncmp(name, "manifest", 8);
}

static int remove_files(struct image *im, struct cr_err *err)
{
	int fd = openat(im->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_dir_ DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!d) {
		close_fdp(&fd);
		return cr_err_sys(err, "look into the image %s", im->name);
	}
	while ((e = readdir(d)))
		if (is_ours(e->d_name) && unlinkat(im->dirfd, e->d_name, 0))
			return cr_err_sys(err, "remove %s", e->d_name);
	return 0;
}

static int begin_anew(struct image *im, struct cr_err *err)
{
	drop_targets(im);
	free(take_ptr(im->tree));
	im->tree_file_bytes = 0;
	im->rounds = 0;
	im->migration = (struct mig_id){0};
	im->created_ns = clock_ns(CLOCK_REALTIME);
	return remove_files(im, err);
}

static int go_on_or_begin(struct image *im, struct cr_err *err)
{
	struct stat sb;

	if (fstatat(im->dirfd, "manifest", &sb, AT_SYMLINK_NOFOLLOW) && errno == ENOENT)
		return begin_anew(im, err);
	int r = load(im, true, err);
	if (!r && im->state >= IMAGE_PREPARED)
		return cr_err_set(err, CR_ERR_INPUT, EEXIST,
				  "image %s is %s: take another name, or remove it", im->name,
				  image_state_name(im->state));
	if (!r && im->state == IMAGE_RECEIVING)
		return begin_anew(im, err);
	return r;
}

int image_receive(struct image **ret, int dirfd, const char *name, struct image_limits *l,
		  struct cr_err *err)
{
	_cleanup_(image_freep) struct image *im = calloc(1, sizeof(*im));

	if (!im)
		return cr_err_oom(err);
	im->dirfd = -1;
	im->limits = l;
	if (!image_name_ok(name))
		return cr_err_set(
		    err, CR_ERR_INPUT, EINVAL,
		    "a name of an image has letters, digits, '.', '_' and '-', at most "
		    "%d of them",
		    IMAGE_NAME_MAX);
	snprintf(im->name, sizeof(im->name), "%s", name);
	if (mkdirat(dirfd, name, 0700) && errno != EEXIST)
		return cr_err_sys(err, "make the image %s", name);
	im->dirfd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (im->dirfd < 0)
		return cr_err_sys(err, "image %s", name);
	int r = lock(im, LOCK_EX, name, err);
	if (!r)
		r = go_on_or_begin(im, err);
	snprintf(im->name, sizeof(im->name), "%s", name);
	if (r)
		return r;
	im->rounds++;
	*ret = take_ptr(im);
	return 0;
}

static int new_target(struct image *im, pid_t pid, uint64_t ino, uint64_t dev, uint32_t *ret,
		      struct cr_err *err)
{
	uint32_t n = 0;
	char name[32];

	while (n < im->targets.n && im->targets.v[n])
		n++;
	if (n >= PAGE_TARGETS_MAX)
		return cr_err_set(err, CR_ERR_PEER, E2BIG, "more than %d processes and objects",
				  PAGE_TARGETS_MAX);
	if (n == im->targets.n && !vec_push(&im->targets))
		return cr_err_oom(err);
	struct image_target *t = calloc(1, sizeof(*t));
	if (!t)
		return cr_err_oom(err);
	t->pid = pid;
	t->ino = ino;
	t->dev = dev;
	image_pages_init(&t->pages, -1, n, im->limits);
	im->targets.v[n] = t;
	file_name(name, "pages", n);
	t->pages.fd =
	    openat(im->dirfd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (t->pages.fd < 0)
		return cr_err_sys(err, "make %s", name);
	*ret = n;
	return 0;
}

int image_target_for(struct image *im, pid_t pid, uint64_t ino, uint64_t dev, uint32_t *ret,
		     struct cr_err *err)
{
	const struct image_target *t = image_find(im, pid, ino, dev);

	if (!t)
		return new_target(im, pid, ino, dev, ret, err);
	*ret = t->pages.target;
	return 0;
}

/* ---- what belongs to a tree ---- */

static bool keep_of_process(uint64_t va, bool zero, void *arg)
{
	const struct mm *mm = arg;
	const struct vma *v = layout_find(mm->vmas, mm->n_vmas, va);

	/* anonymous memory reads as zeros anyway; a file's page does not */
	return v && vma_is_copied(v) && !(zero && v->kind == VMA_ANON);
}

static bool keep_of_object(uint64_t va, bool zero, void *arg)
{
	const struct shared_object *o = arg;

	return va < o->size && !zero;
}

static const struct shared_object *find_object(const struct tree *t, const struct image_target *it)
{
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].ino == it->ino && t->objects[i].dev == it->dev)
			return &t->objects[i];
	return NULL;
}

static int drop_target(struct image *im, struct image_target *it, struct cr_err *err)
{
	static const char *const files[] = {"pages", "index"};
	uint32_t n = it->pages.target;
	char name[32];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		file_name(name, files[i], n);
		if (unlinkat(im->dirfd, name, 0) && errno != ENOENT)
			return cr_err_sys(err, "remove %s", name);
	}
	target_free(it);
	im->targets.v[n] = NULL;
	return 0;
}

static int prune(struct image *im, const struct tree *t, struct image_target *it,
		 struct cr_err *err)
{
	if (it->pid) {
		struct process *p = tree_find_process(t, it->pid);

		return p && !p->zombie ? image_pages_prune(&it->pages, keep_of_process, &p->mm, err)
				       : drop_target(im, it, err);
	}
	const struct shared_object *o = find_object(t, it);
	return o ? image_pages_prune(&it->pages, keep_of_object, (void *)o, err)
		 : drop_target(im, it, err);
}

int image_adopt_tree(struct image *im, const struct tree *t, const uint8_t *bytes, size_t len,
		     struct cr_err *err)
{
	uint8_t *copy = malloc(len);
	int r = 0;

	if (!copy)
		return cr_err_oom(err);
	memcpy(copy, bytes, len);
	free(im->tree);
	im->tree = copy;
	im->tree_len = len;
	snprintf(im->host, sizeof(im->host), "%s", t->hostname);
	snprintf(im->kernel, sizeof(im->kernel), "%s", t->kernel_release);
	for (size_t i = 0; i < im->targets.n && !r; i++)
		if (im->targets.v[i])
			r = prune(im, t, im->targets.v[i], err);
	return r;
}

/* ---- saving ---- */

static int save_target(struct image *im, struct image_target *t, bool sync, struct cr_err *err)
{
	_cleanup_free_ uint8_t *b = NULL;
	char name[32];
	size_t n;
	int r = image_pages_encode(&t->pages, &b, &n, err);

	if (r)
		return r;
	/* what holes the end of the file has are of no use; the reader expects whole slots */
	if (ftruncate(t->pages.fd, (off_t)(t->pages.slots * IMAGE_CHUNK_BYTES)))
		return cr_err_sys(err, "set the size of the pages");
	if (sync && fdatasync(t->pages.fd))
		return cr_err_sys(err, "write the pages to disk");
	t->data_pages = t->pages.n_data;
	t->zero_pages = t->pages.n_zero;
	file_name(name, "index", t->pages.target);
	return image_record_write(im->dirfd, name, IMAGE_INDEX, b, n, sync, &t->index_bytes,
				  &t->index_digest, err);
}

static int save_manifest(struct image *im, enum image_state state, bool sync, struct cr_err *err)
{
	_cleanup_free_ uint8_t *b = NULL;
	size_t n;

	im->state = state;
	im->saved_ns = clock_ns(CLOCK_REALTIME);
	int r = image_manifest_encode(im, &b, &n, err);
	if (!r)
		r = image_record_write(im->dirfd, "manifest", IMAGE_MANIFEST, b, n, sync, NULL,
				       NULL, err);
	if (!r && sync && fsync(im->dirfd))
		r = cr_err_sys(err, "write the directory to disk");
	return r;
}

int image_save(struct image *im, enum image_state state, bool sync, struct cr_err *err)
{
	int r = 0;

	vec_foreach (t, &im->targets)
		if (!r && *t)
			r = save_target(im, *t, sync, err);
	if (!r && im->tree)
		r = image_record_write(im->dirfd, "tree", IMAGE_TREE, im->tree, im->tree_len, sync,
				       &im->tree_file_bytes, &im->tree_digest, err);
	if (!r && sync && fsync(im->dirfd)) /* before the manifest that counts on it */
		r = cr_err_sys(err, "write the directory to disk");
	return r ? r : save_manifest(im, state, sync, err);
}

int image_set_state(struct image *im, enum image_state state, struct cr_err *err)
{
	return save_manifest(im, state, state >= IMAGE_PREPARED, err);
}

uint64_t image_data_pages(const struct image *im)
{
	uint64_t n = 0;

	vec_foreach (t, &im->targets)
		if (*t)
			n += (*t)->pages.n_data;
	return n;
}
