/* From the tasks' memory to the page streams: reads extents in large pieces, tells zero and
 * unchanged pages, hands the rest to the sender. Fixed buffers: memory does not grow with what is
 * moved. */
#pragma once
#include "base/err.h"
#include "memory/sentmap.h"
#include "wire/page_tx.h"

enum reader_how {
	READ_PROCESS_VM, /* process_vm_readv(2): fastest, but breaks copy-on-write sharing */
	READ_PROC_MEM, /* /proc/PID/mem: leaves sharing alone, reads what has no read permission */
	READ_FILE,     /* pread(2) on a shared object: addresses are offsets */
};

struct reader_stats {
	uint64_t pages_read, pages_sent, pages_zero, pages_same;
};

struct reader;

int reader_new(struct reader **ret, struct page_tx *tx, struct cr_err *err) must_check;
void reader_free(struct reader *r);

/* Whose pages come next. fd: /proc/PID/mem, or the object. Sends what is still buffered of the
 * last. */
int reader_target(struct reader *r, uint32_t target, struct sentmap *sent, enum reader_how how,
		  pid_t pid, int fd, struct cr_err *err) must_check;

/* Of this target: pages that change at the destination by themselves, ascending; not copied. */
void reader_set_unsteady(struct reader *r, const uint64_t *pages, size_t n);

/* Queue pages [start, end) to be read and sent. `fresh`: the destination's page reads as zero
 * unless sent before (anonymous memory): zero pages are then left out. Pages that cannot be read
 * are handed to `unread`, if given, else they are an error. */
int reader_add(struct reader *r, uint64_t start, uint64_t end, bool fresh,
	       struct cr_err *err) must_check;
/* The page is gone at the source and was anonymous: zeros at the destination. */
int reader_zero(struct reader *r, uint64_t va, struct cr_err *err) must_check;
/* What is queued is nobody's any more: the process has ended. */
void reader_drop(struct reader *r);
/* Read and send what is queued. */
int reader_finish(struct reader *r, struct cr_err *err) must_check;

/* The same, and wait until all of it is placed; nothing is done if nothing was sent since the last.
 */
int reader_barrier(struct reader *r, struct cr_err *err) must_check;

typedef int (*reader_unread_fn)(uint64_t va, void *arg);
void reader_set_unread(struct reader *r, reader_unread_fn fn, void *arg);
void reader_stats(const struct reader *r, struct reader_stats *ret);
