/* Tracks the writes to one address space and sends what changed.
 *
 * Rounds run beside the task: registered mappings are scanned and write-protected again in one
 * step, then read; what is written meanwhile shows in the next round. The last round runs at the
 * stop and protects nothing. Rules and traps: docs in src/ARCHITECTURE.md, "Tracking". */
#pragma once
#include "base/err.h"
#include "base/vec.h"
#include "memory/ranges.h"
#include "memory/reader.h"
#include "memory/table_probe.h"
#include "model/tree.h"

struct tracker {
	pid_t pid;
	uint32_t target;
	int uffd; /* of the task's mm; -1: not tracked, every round sends all */
	int pagemap, mem;
	bool always_full; /* direct I/O: writes by devices are not seen; the last round compares all
			   */
	bool shared;      /* shared memory is tracked as well, memory/shared_tracker.h */
	bool shares_cow;  /* pages may be shared with a relative: reading must not break that */
	struct sentmap sent;
	struct table_probes *probes; /* asked for by the last round, until the last look */
	struct vma *vmas;            /* as of the last round, names not kept */
	size_t n_vmas;
	struct addr_ranges guards; /* as the last scan saw them */
	struct addr_ranges
	    unsettled;       /* registered, but perhaps protected by who was there before */
	VEC(uint64_t) retry; /* pages that could not be read while the task ran */
	uint64_t rounds;
	/* memory/donor.h; until the first round is over, which has to come before the donor's next
	 */
	const struct tracker *donor;
	uint64_t donor_rounds;
	struct addr_ranges donor_bare; /* what of it is not tracked */
	/* Rounds that leave pages behind: what was written is not sent but noted, to be fetched by
	 * the destination. news: what was noted since the caller last cleared it. */
	bool lazy;
	bool lazy_huge;  /* huge pages as well */
	uint64_t *eager; /* pages that are sent all the same, see lazy_eager_pages() */
	size_t n_eager;
	VEC(struct addr_range) news;
	VEC(struct addr_range)
	again; /* written in the last round, and noted before; not all, perhaps */
	/* The other side is an image: it keeps what was sent, whatever becomes of the mapping,
	 * until it is told. news: what it is to forget; set before the first round. */
	bool keeps;
	uint64_t pages_lazy;    /* noted in all */
	uint64_t pages_written; /* in the last round, as the kernel reported them */
};

/* Opens what is needed. uffd: the task's, becomes the tracker's; -1 for none. */
int tracker_init(struct tracker *t, pid_t pid, uint32_t target, int uffd, size_t *digest_budget,
		 struct cr_err *err) must_check;
/* While the task is stopped: what is mapped now is tracked from here on. */
int tracker_arm(struct tracker *t, struct cr_err *err) must_check;
void tracker_done(struct tracker *t); /* closing the uffd releases every mapping */

/* One round. mm: the layout that the destination has been given; pages outside it wait. Reading and
 * sending go through r; the caller flushes. */
int tracker_round(struct tracker *t, const struct mm *mm, struct reader *r, bool final,
		  struct cr_err *err) must_check;
/* An image has been saved with that layout, and has nothing beside it any more. */
void tracker_pruned(struct tracker *t, const struct mm *mm);
/* After the final round, before the last flush: pages whose page table was freed whole. Apart,
 * since the answers (memory/table_probe.h) may come after the scan, and the destination works
 * meanwhile. */
int tracker_last_look(struct tracker *t, const struct mm *mm, struct reader *r,
		      struct cr_err *err) must_check;
