/* One piece of work after the other, by as many threads as there are processors. */
#pragma once
#include <pthread.h>
#include <stddef.h>
#include "base/err.h"

enum { PARALLEL_MIN = 256 }; /* fewer are done by the caller */

/* fn(i, arg, err) for each i below n, in any order and side by side; so fn shares nothing that is
 * not its own. worker: which of less than PARALLEL_THREADS_MAX does it. The threads run with the
 * caller's scheduling policy. Returns the first error, after which not all have been called. */
enum { PARALLEL_THREADS_MAX = 8 };
typedef int parallel_fn(size_t i, unsigned int worker, void *arg, struct cr_err *err);
int parallel_for(size_t n, parallel_fn *fn, void *arg, struct cr_err *err) must_check;
/* pthread_create(3), with the caller's scheduling policy. */
int parallel_thread(pthread_t *ret, void *(*fn)(void *), void *arg) must_check;
