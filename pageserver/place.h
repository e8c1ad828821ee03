/* Put pages where they belong: into the memory of a task being rebuilt, or into a file object. */
#pragma once
#include <stdatomic.h>
#include "base/vec.h"
#include "pageserver/page_rx.h"

enum target_kind { TARGET_PROCESS, TARGET_OBJECT };

struct target {
	enum target_kind kind;
	pid_t pid; /* process */
	int pidfd; /* process: tells that pid is still the process that it was; -1 for an object */
	int fd;    /* process: its /proc/PID/mem, else the object. Both owned. */
	int uffd;  /* process: to place pages that are not there yet; -1: none. Owned. */
	_Atomic unsigned int found_present; /* ranges for which uffd served nothing */
	uint64_t forbid_start, forbid_end;  /* never written; equal: none */
};

/* By index; NULL where there is none. */
struct targets {
	VEC(struct target *) at;
	size_t n; /* that are not NULL */
};

struct place_memory {
	const uint8_t *zeros; /* PAGE_BATCH_BYTES of them */
	uint8_t
	    *work; /* PAGE_BATCH_BYTES; may be NULL for a batch that is not place_needs_work() */
};

/* NULL if there is none. */
struct target *targets_get(const struct targets *ts, uint32_t index);
/* Takes t in any case, and frees what was there. -ENOMEM. */
int targets_set(struct targets *ts, uint32_t index, struct target *t,
		struct cr_err *err) must_check;
void targets_done(struct targets *ts);
void target_free(struct target *t); /* closes its descriptors; takes NULL */

/* Writes all runs of the batch: those with DATA first, then the others in their order. The whole
 * batch is checked against its target before anything is written. Adds the pages placed and their
 * hashes to *acc if all went well. */
int place_batch(const struct targets *ts, const struct page_batch *b,
		const struct place_memory *mem, struct page_ack *acc,
		struct cr_err *err) must_check;

/* Whether it has to unpack or to copy from target to target. */
bool place_needs_work(const struct page_batch *b);
/* How many pages it writes in all. */
size_t place_pages(const struct page_batch *b);
