/* Inside of features*.c: a probe returns 0 when the thing is there, else the errno that says why
 * not; it may write a detail of its own. */
#pragma once
#include <stddef.h>

typedef int (*feature_probe_fn)(char *detail, size_t size);

/* fn in a child, for what changes the process that tries it. */
int probe_in_child(int (*fn)(void));

int probe_ptrace(char *detail, size_t size);
int probe_hw_breakpoints(char *detail, size_t size);
int probe_rseq(char *detail, size_t size);
int probe_avx(char *detail, size_t size);
int probe_avx512(char *detail, size_t size);
int probe_amx(char *detail, size_t size);
