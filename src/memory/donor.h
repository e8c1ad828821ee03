/* Pages that a process still shares with the one it was forked from.
 *
 * Where the destination has made a process as a copy of another's shell, its donor, as fork(2)
 * does, it has all that was sent for the donor until then. A page of which both still have the same
 * frame is there, and shared again; it is not sent.
 *
 * Why that holds. At one moment during the first round of the copy
 *  1. the donor's page lies in a registered mapping and is protected: it has what was sent, since
 *     it was protected before it was read, and nobody has written to it through the donor since;
 *  2. both map the same frame. It is anonymous and shared, so whoever writes to it gets another one
 *     (and of the copy's process that shows in its next round, as all is protected by then).
 * So the frame has what was sent, and is what the process has. The donor must not be gone over
 * between: then another state of it is protected than the one that was copied. */
#pragma once
#include "memory/tracker.h"

/* At the destination t's memory has just begun as a copy of what the donor's is there: all that was
 * sent for the donor, which is where its last round ended, has been placed. volatile_va: addresses
 * that may have been written to there; their pages are sent. t has not been sent anything yet. */
int donor_begin(struct tracker *t, const struct tracker *donor, const uint64_t *volatile_va,
		size_t n_volatile, struct cr_err *err) must_check;
/* The donor is no more, or not as it was. */
void donor_forget(struct tracker *t);

/* Around the first round of t. */
int donor_look(struct tracker *t, struct cr_err *err) must_check;

typedef int (*donor_fn)(uint64_t start, uint64_t end, void *arg, struct cr_err *err);
/* The parts of [start, end) that have to be sent. */
int donor_for_rest(struct tracker *t, uint64_t start, uint64_t end, donor_fn fn, void *arg,
		   struct cr_err *err) must_check;
