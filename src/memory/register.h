/* Keeps the mappings of one address space registered with the tracker's userfaultfd, without ever
 * making two VMAs out of what is one for the task: its mremap(2) of two fails with EFAULT. */
#pragma once
#include "base/err.h"
#include "memory/tracker.h"

/* While the task is stopped: all that is private. */
int register_all(struct tracker *t, struct cr_err *err) must_check;
/* Beside the running task, before each scan: what is not registered yet (new mappings, and those
 * that mremap or a merge has taken out), and no page of it is left protected by what was there
 * before. Mappings of mm that are not copied page by page do not need it. */
int register_new(struct tracker *t, const struct mm *mm, struct cr_err *err) must_check;
/* Whose scan for writes says nothing: not registered, or protected by nobody knows whom. Ascending
 * and disjoint; the caller frees. */
int register_list_bare(const struct tracker *t, struct addr_ranges *ret,
		       struct cr_err *err) must_check;
