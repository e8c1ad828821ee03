/* The dir sink: migrations into image directories.
 *
 * In this mode the page-server is the whole other side of a source agent: it takes the peer link
 * too (peer.c), on the same port as the page streams, and answers as a destination would: TREE with
 * targets, PREPARE_COMMIT once the image is complete on disk, COMMIT by sealing it. */
#pragma once
#include <pthread.h>
#include "image/image.h"
#include "pageserver/page_rx.h"
#include "wire/msg.h"

struct dir_sink { /* of the server; constant but for the limits' counts */
	int fd;   /* of the directory */
	const char *path;
	struct image_limits limits;
	struct mig_token token; /* that migrations must show */
	bool guarded;           /* the token is a secret, or nobody is to be kept out */
	bool sync;              /* images are to survive the host's crash */
};

struct dir_image; /* one migration's image */

/* Name and id as the peer said. Errors: INPUT (-EINVAL, -EEXIST, -EBUSY), IO. */
int dir_image_new(struct dir_image **ret, struct dir_sink *sink, const char *name,
		  const struct mig_id *id, struct msg_image_ok *ret_was,
		  struct cr_err *err) must_check;
/* Keeps what it has: complete pages of a migration that ended are good to go on from. NULL is fine.
 */
void dir_image_free(struct dir_image *di);

const char *dir_image_name(const struct dir_image *di);
/* What it will be once it is freed, for who watches. */
const char *dir_image_state(const struct dir_image *di);
bool dir_image_is_prepared(struct dir_image *di); /* waits for the source's decision */

/* Answers one message. *reply may point into what `arena` holds. From one thread at a time; pages
 * may be placed meanwhile. 1: the conversation is over. */
int dir_image_answer(struct dir_image *di, const struct msg *m, struct arena *arena,
		     struct msg *reply, struct cr_err *err) must_check;

/* A batch, as place_batch() does. From any thread. work: of PAGE_BATCH_BYTES, for what is
 * compressed. */
int dir_image_place(struct dir_image *di, const struct page_batch *b, uint8_t *work,
		    struct page_ack *acc, struct cr_err *err) must_check;

/* A migration that has no link any more (or of an earlier page-server): COMMIT, ABORT and QUERY by
 * its id. */
int dir_orphan_answer(struct dir_sink *sink, const struct mig_id *id, const struct msg *m,
		      struct msg *reply, struct cr_err *err) must_check;
