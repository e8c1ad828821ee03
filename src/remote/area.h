/* The blob and its slots: one memfd, mapped here and in the tasks that run the blob. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "remote/batch.h"
#include "pie/slot.h"

struct rarea {
	int memfd;
	uint8_t *local;  /* our mapping */
	uint64_t remote; /* the tasks' address of the same memory */
	size_t bytes;    /* blob page and slots */
	unsigned int n_slots, next_slot;
};

size_t rarea_bytes(unsigned int n_slots);
/* Take over a memfd (closed by rarea_done, also on failure): size it, map it (at fixed_va; 0:
 * anywhere, and with all its pages, as every slot is used at once), copy the blob in. */
int rarea_init(struct rarea *a, int memfd, unsigned int n_slots, uint64_t fixed_va,
	       struct cr_err *err) must_check;
void rarea_done(struct rarea *a);

uint64_t rarea_entry_va(const struct rarea *a);
uint64_t rarea_sigreturn_va(const struct rarea *a);
uint64_t rarea_syscall_va(const struct rarea *a);

struct rtask {
	pid_t tid;
	struct rarea *area;
	struct blob_slot *slot;
	uint64_t slot_va;
	const char *what[SLOT_CALLS]; /* names of the queued calls */
	struct rcall calls[SLOT_CALLS];
	unsigned int queued;  /* calls[] filled and not yet collected */
	unsigned int started; /* of these, handed to the blob */
	size_t scratch_used;
	bool dead;   /* died or does not answer: every call fails */
	bool traced; /* we are its tracer: stops are looked for while waiting */
	struct cr_err
	    pending_err; /* a batch run implicitly failed: reported by the next rtask_run */
	bool has_pending_err;
};

/* Give a thread the next free slot. -ENOSPC when none is left. */
int rtask_init(struct rtask *t, struct rarea *a, pid_t tid, struct cr_err *err) must_check;
uint64_t rtask_stack_va(const struct rtask *t);
/* The slot's data area, as sigframe_build wants it. */
uint8_t *rtask_data(struct rtask *t, uint64_t *ret_va);
/* A frame built there, SLOT_RESCUE_BYTES at most, is what the task goes back to by itself if this
 * process dies while it is in the executor, or parked. Before the task starts. */
uint8_t *rtask_rescue_area(struct rtask *t, uint64_t *ret_va);
void rtask_arm_rescue(struct rtask *t, uint64_t frame_sp);
uint64_t rtask_rescue_sp(const struct rtask *t); /* 0: none */
/* System calls that the task makes on that way, before all else. Kept in scratch memory. False: no
 * room. */
bool rtask_arm_rescue_calls(struct rtask *t, const struct rcall *calls, size_t n);
bool rtask_has_rescue_calls(const struct rtask *t);
void rtask_disarm_rescue_calls(struct rtask *t);
/* A new user of the same slot (the former one is gone): counts start anew. */
void rtask_reset(struct rtask *t, pid_t tid);
/* Queue the way out. Not collected: park_at_sigreturn() sees the task arrive. */
void rtask_queue_sigreturn(struct rtask *t, uint64_t frame_va);
/* The task is back in the executor's loop after a park. */
void rtask_unqueue_sigreturn(struct rtask *t);
