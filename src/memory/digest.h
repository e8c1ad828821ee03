/* Digests of whole memories, for --verify full: what both sides must agree on at the stop. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "model/tree.h"
#include "wire/page_digest.h"

struct memory_digest {
	uint64_t pages; /* not zero */
	struct page_digest sum;
};

/* Of process pid, laid out as p->mm says: private memory, file pages as mapped. Zero pages do not
 * count; threads' rseq areas, which the kernel writes, are left out. Shared objects are not
 * included. */
int memory_digest_process(pid_t pid, const struct process *p, struct memory_digest *ret,
			  struct cr_err *err) must_check;
/* Of a shared object's contents. */
int memory_digest_object(int fd, uint64_t size, struct memory_digest *ret,
			 struct cr_err *err) must_check;
