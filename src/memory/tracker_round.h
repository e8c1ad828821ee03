/* What the rounds of a tracker share: tracker.c (beside the running task), tracker_final.c (at the
 * stop). */
#pragma once
#include "kernel/pagemap.h"
#include "memory/tracker.h"

enum { LOWEST_VA = 4096 };

struct round {
	struct tracker *t;
	const struct mm *mm;
	struct reader *r;
	bool final;
	bool all;        /* final: what is examined counts as written, whatever the marks say */
	uint64_t cursor; /* final: up to where [.., cursor) of the current extent has been accounted
			    for */
	/* final: reported and not looked at yet; the mapping in which it ends; of several extents?
	 */
	struct addr_range pending;
	const struct vma *pending_vma;
	bool pending_many;
};

/* ---- tracker.c ---- */

/* Pages that the destination may hold and the source no longer does. */
int round_drop_range(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		     struct cr_err *err) must_check;
/* Do pages of it stay behind? Then they are noted instead of being sent. */
bool round_leaves(const struct round *ro, const struct vma *v);
int round_leave_range(struct round *ro, uint64_t start, uint64_t end,
		      struct cr_err *err) must_check;

typedef int (*piece_fn)(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
			uint64_t categories, struct cr_err *err);
/* Cuts an extent at the mappings that are copied page by page. */
int round_for_pieces(struct round *ro, const struct page_extent *e, piece_fn fn,
		     struct cr_err *err) must_check;
/* A piece_fn: whatever the categories ask for. */
int round_send_range(struct round *ro, const struct vma *v, uint64_t start, uint64_t end,
		     uint64_t categories, struct cr_err *err) must_check;
/* All but what is compared as a whole: that may be large, and is not to be protected. */
int round_walk_copied(struct round *ro, const struct pagemap_query *q, pagemap_fn fn,
		      struct cr_err *err) must_check;
/* What the destination has made anew. */
int round_resend_changed(struct round *ro, struct cr_err *err) must_check;
/* Pages that could not be read while the task ran. */
int round_retry_unread(struct round *ro, struct cr_err *err) must_check;
/* Pages that were sent and are gone. */
int round_drop_absent(struct round *ro, struct cr_err *err) must_check;

/* ---- tracker_final.c ---- */

int round_final(struct round *ro, struct cr_err *err) must_check;
