/* Which pages of shared memory may have been written since they were looked at last.
 *
 * Writes through a mapping are told by the page tables of whoever has it (userfaultfd,
 * PAGEMAP_SCAN), so writes to an object by those of all mappings of it; if there is no other way to
 * write to it, and nothing came and went between two looks whose marks are gone. Both are read from
 * what the kernel counts itself (kernel/shmview.h):
 *
 * - Each mapping by which it can be written (i_mmap_writable) is one of a process that is tracked,
 *   and registered. No descriptor that was opened for writing leads to it (an open file that
 *   nothing has any more but these mappings is none); or one does, as to a memfd, and neither has
 * anybody written to it by any nor mapped it (kernel/filemark.h).
 * - The address spaces that have it are the same as at the look before, and nothing in them was
 *   mapped, unmapped or moved, nor was any of them inherited by a child (mm_lock_seq). Nobody has
 *   opened it (inotify(7)) or attached it (shm_atime) since.
 * - Pages that were taken out of it show in memory/witness.h.
 *
 * Where one of these does not hold, all of it is compared. A page counts as not written only if the
 * page table of every mapping says so: it is protected there, or has a marker of that. What lost
 * its entry without leaving one counts as written. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/vec.h"
#include "kernel/filemark.h"
#include "kernel/shmview.h"
#include "memory/tracker.h"

struct shared_mapping {
	pid_t pid;
	const struct tracker *tracker; /* NULL: none; not owned, and not looked at later */
	struct shm_mapping m;
};

struct shared_look {           /* at one object, at one moment */
	bool known;            /* there is no way to write to it that leaves no mark */
	bool opened;           /* by somebody, since the look before */
	uint64_t size;         /* bytes */
	uint64_t openings;     /* for writing, by ourselves */
	uint64_t maps_of_ours; /* by which it could be written */
	bool by_descriptor; /* what else leads to it is watched by marks, those before this look */
	struct filemark marks;
	uint64_t attached_s; /* System V: last time of that, seconds since the epoch; else 0 */
	uint64_t when_s;     /* when this look began, likewise */
	VEC(struct shared_mapping) maps; /* by which it can be written */
};

void shared_look_done(struct shared_look *l);
/* All else is filled in: sets known. before: the look before this one. */
void shared_look_judge(struct shared_look *l, const struct shared_look *before);
/* Has everything that was written between the two looks left marks? */
bool shared_look_follows(const struct shared_look *before, const struct shared_look *now);

struct shared_pages { /* a bit for each page of an object */
	uint64_t *bits;
	size_t n;      /* pages */
	size_t marked; /* how many bits are set */
};

/* None of those of an object of that size. */
int shared_pages_init(struct shared_pages *p, uint64_t bytes, struct cr_err *err) must_check;
void shared_pages_done(struct shared_pages *p);
/* Those that are written, by the page tables of all mappings of l, which is known. protect: what is
 * written from here on is told by the next call. Fails with -ESRCH if one of the processes has
 * ended. */
int shared_look_collect(const struct shared_look *l, bool protect, struct shared_pages *ret,
			struct cr_err *err) must_check;
/* One more that has to be looked at. */
void shared_pages_mark(struct shared_pages *p, size_t page);
/* One less. */
void shared_pages_unmark(struct shared_pages *p, size_t page);
/* The next run of marked pages at or behind page *at. Returns false if there is none; *at then. */
bool shared_pages_next(const struct shared_pages *p, size_t *at, size_t *end);
