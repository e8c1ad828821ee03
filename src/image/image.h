/* An image directory: a process tree and its pages on disk. Layout in proto/IMAGES.md.
 *
 *   manifest   what there is, with sizes and digests; replaced last: never ahead of the rest
 *
 *   tree       the tree, as on a peer link
 *
 *   pages-N    the pages of one process or object, sparse
 *
 *   index-N    which of them are there, and their hashes
 *
 * A receiver takes the directory for itself, flock(2), others look at it together. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/vec.h"
#include "image/pages.h"
#include "image/record.h"
#include "model/tree.h"
#include "wire/ident.h"

enum { IMAGE_NAME_MAX = 63 };

enum image_state {
	IMAGE_RECEIVING = 1, /* a round is under way */
	IMAGE_PARTIAL,       /* rounds of a pre-copy: good to go on from */
	IMAGE_PREPARED,      /* complete, not confirmed by the source */
	IMAGE_SEALED,        /* complete: good to restore */
};

struct image_target {      /* a process or an object */
	pid_t pid;         /* 0: an object … */
	uint64_t ino, dev; /* … that was this at the source */
	struct image_pages pages;
	/* as of the manifest */
	uint64_t data_pages, zero_pages, index_bytes;
	XXH128_hash_t index_digest;
};

struct image {
	char name[IMAGE_NAME_MAX + 1];
	int dirfd;            /* locked */
	bool pages_elsewhere; /* their files need not be here */
	enum image_state state;
	struct mig_id migration;
	char host[65], kernel[65];
	uint64_t created_ns, saved_ns;
	uint32_t rounds;
	uint8_t *tree; /* as encoded; owned; NULL: none yet */
	size_t tree_len;
	uint64_t tree_file_bytes;
	XXH128_hash_t tree_digest;
	VEC(struct image_target *) targets; /* by index: the target on page streams; NULL: gone */
	struct image_limits *limits;
};

/* Letters, digits, '.', '_', '-', the first a letter or digit; at most IMAGE_NAME_MAX. */
bool image_name_ok(const char *name);
const char *image_state_name(enum image_state s);

/* To receive into DIR/name: made if it is not there, gone on from if it is partial. One that was
 * found receiving is emptied: nobody knows what its pages are. Errors: -EEXIST (complete already),
 * -EBUSY (somebody has it). */
int image_receive(struct image **ret, int dirfd, const char *name, struct image_limits *l,
		  struct cr_err *err) must_check;
/* To read. path: the image's own directory. Checks the manifest, and what it says of the other
 * files' digests but for the pages'. */
int image_open(struct image **ret, const char *path, struct cr_err *err) must_check;

/* The same, the memory that its indices take being paid from l. */
int image_open_limited(struct image **ret, const char *path, struct image_limits *l,
		       struct cr_err *err) must_check;
/* The same, but the manifest alone; then tree and targets one by one. */
int image_open_parts(struct image **ret, const char *path, struct cr_err *err) must_check;
int image_load_tree(struct image *im, struct cr_err *err) must_check;
int image_load_target(struct image *im, struct image_target *t, struct cr_err *err) must_check;
/* Its manifest alone, to change its state: DIR/name, for ourselves. The targets have no pages. */
int image_open_manifest(struct image **ret, int dirfd, const char *name,
			struct cr_err *err) must_check;
/* The same without the pages: where their files are not here, the targets have none (fd -1). */
int image_open_index(struct image **ret, const char *path, struct cr_err *err) must_check;
void image_free(struct image *im); /* takes NULL */

/* The target for a process, or for an object (pid 0): the one that is there or a new one. */
int image_target_for(struct image *im, pid_t pid, uint64_t ino, uint64_t dev, uint32_t *ret,
		     struct cr_err *err) must_check;
struct image_target *image_target(const struct image *im, uint32_t target); /* or NULL */
/* NULL if there is none. */
struct image_target *image_find(const struct image *im, pid_t pid, uint64_t ino, uint64_t dev);

/* Takes over a tree as it was encoded. Anything in the image that is not of it goes: processes and
 * objects, and pages that no mapping has. */
int image_adopt_tree(struct image *im, const struct tree *t, const uint8_t *bytes, size_t len,
		     struct cr_err *err) must_check;
/* Writes everything but the pages, and the manifest last. sync: with the pages, so that it survives
 * the host's crash. */
int image_save(struct image *im, enum image_state state, bool sync, struct cr_err *err) must_check;
/* The manifest alone, once all else has been saved. */
int image_set_state(struct image *im, enum image_state state, struct cr_err *err) must_check;

uint64_t image_data_pages(const struct image *im);

/* ---- manifest.c ---- */

int image_manifest_encode(const struct image *im, uint8_t **ret, size_t *n,
			  struct cr_err *err) must_check;
/* Fills all but targets' pages. Errors: INPUT, -EBADMSG. */
int image_manifest_decode(struct image *im, const uint8_t *b, size_t n,
			  struct cr_err *err) must_check;

static inline void image_freep(struct image **im)
{
	image_free(*im);
}
