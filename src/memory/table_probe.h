/* Is there still a page table where pages were sent? One page of every 2 MiB tells. It costs a
 * system call each, 0.6 ms for a GiB: a thread of its own asks while the last round scans, and
 * then whoever has scanned helps. */
#pragma once
#include "base/err.h"
#include "memory/sentmap.h"

struct table_probe {
	uint64_t va;    /* a page that was sent, the first of its chunk */
	uint64_t entry; /* of /proc/PID/pagemap */
};

struct table_probes;

/* The process is stopped, and pagemap stays open until the end or table_probes_free(). */
int table_probes_begin(struct table_probes **ret, int pagemap, const struct sentmap *m,
		       struct cr_err *err) must_check;
/* Waits for the answers; *ret_v is valid until table_probes_free(). */
int table_probes_end(struct table_probes *p, const struct table_probe **ret_v, size_t *ret_n,
		     struct cr_err *err) must_check;
void table_probes_free(struct table_probes *p); /* waits too; NULL is fine */
