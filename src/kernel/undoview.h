/* What the kernel will undo of System V semaphores when a process ends (semop(2), SEM_UNDO), which
 * it shows to nobody. Read by a BPF task iterator, like the rest of what is kept of a thread
 * (kernel/taskview.h); believed once it says of a process of our own what that has done. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"

enum {
	UNDO_SEMS = 64, /* of one set; what is to be undone of those behind is not seen */
	UNDO_SETS = 16, /* of one process */
};

struct undo_fact {
	uint64_t list;         /* whose: threads may share one (CLONE_SYSVSEM, clone(2)) */
	int32_t semid;         /* -1: that set is gone */
	int16_t by[UNDO_SEMS]; /* what is added to each semaphore at the end; beyond its set:
				  anything */
};
struct undo_facts {
	VEC(struct undo_fact) list;
};

struct btf;
struct undoview;
/* Where a thread's list is: the offset of the pointer to it in struct task_struct, and of that to
 * its first entry in the list; one that is empty points to itself. */
int undo_find_list(const struct btf *btf, int32_t *list, int32_t *first,
		   struct cr_err *err) must_check;
int undoview_new(struct undoview **ret, const struct btf *btf, struct cr_err *err) must_check;
void undoview_free(struct undoview *v);
/* Of all threads of a process, each list and set once; the caller ends ret with vec_done(). Exact
 * as far as they are stopped. */
int undoview_read(const struct undoview *v, pid_t pid, struct undo_facts *ret,
		  struct cr_err *err) must_check;
