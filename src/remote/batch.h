/* Batches of system calls that run in another task.
 *
 * An rtask is one thread that executes the blob (pie/blob.c) and waits on its slot of a page area
 * shared with this process. Calls are queued, run as one batch, and their results read. The same
 * interface serves the parasite (source) and the restorer (destination). Not thread safe. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

/* An address in another task. Never a pointer. */
struct raddr {
	uint64_t va;
};

struct rtask;

/* A queued call: its result is valid after the rtask_run() that ran it, until the next queueing. */
struct rcall {
	long nr;
	uint64_t args[6];
	long ret; /* as the kernel returned it: -errno on failure */
};

/* The thread's id in this process's pid namespace. */
pid_t rtask_tid(const struct rtask *t);

/* Queue one system call; runs the batch queued so far if the slot is full. `what` (static string)
 * names the call in errors; NULL: the caller looks at ret itself and failure is not an error.
 * Returns NULL only after the task died (rtask_run then reports it). */
struct rcall *rtask_queue(struct rtask *t, const char *what, long nr, uint64_t a0, uint64_t a1,
			  uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5);
/* Up to six arguments, of any integer type; those left out are 0. */
#define RCALL_ARGS_(...) RCALL_CAST_(__VA_ARGS__)
#define RCALL_CAST_(none, a0, a1, a2, a3, a4, a5, ...)                                             \
	(uint64_t)(a0), (uint64_t)(a1), (uint64_t)(a2), (uint64_t)(a3), (uint64_t)(a4),            \
	    (uint64_t)(a5)
#define rqueue(t, what, nr, ...)                                                                   \
	rtask_queue((t), (what), (nr), RCALL_ARGS_(0, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0))

/* Run what is queued and wait for it. Fails when the task died or does not answer within 10 s, or
 * when a call queued with a name returned an error (the message names it). */
int rtask_run(struct rtask *t, struct cr_err *err) must_check;

/* Start what is queued without waiting; rtask_run() or rtask_wait() collects it later. */
void rtask_start(struct rtask *t);
int rtask_wait(struct rtask *t, struct cr_err *err) must_check;

/* One call, run at once. Returns the kernel's result (-errno on failure), or -ESRCH if the task
 * died or does not answer. Frees the scratch area first only if it is called with an empty queue.
 */
long rtask_syscall(struct rtask *t, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		   uint64_t a4, uint64_t a5);
#define rcall_now(t, nr, ...)                                                                      \
	rtask_syscall((t), (nr), RCALL_ARGS_(0, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0))

/* Scratch memory that both sides see: returns our pointer and stores the task's address of it in
 * *ret_va. It stays valid until rtask_scratch_reset(). NULL if over RTASK_SCRATCH_BYTES. 16-byte
 * aligned, zeroed. */
enum { RTASK_SCRATCH_BYTES = 12 * 1024 };
void *rtask_scratch(struct rtask *t, size_t bytes, uint64_t *ret_va);
void *rtask_scratch_copy(struct rtask *t, const void *p, size_t bytes, uint64_t *ret_va);
void rtask_scratch_reset(struct rtask *t);
/* Bytes still free in the scratch area. */
size_t rtask_scratch_room(const struct rtask *t);
