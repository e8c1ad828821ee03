/* At the destination while pages are fetched: what is pushed is read and checked here, and left in
 * memory out of which the fetcher puts it in place. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pageserver/server.h"
#include "wire/lazy_ring.h"

struct feed {
	int conn;
	struct lazy_ring ring;
};

static void *feed_main(void *arg)
{
	struct feed *f = arg;

	lazy_ring_feed(&f->ring, f->conn);
	lazy_ring_unmap(&f->ring);
	close(f->conn);
	free(f);
	return NULL;
}

int feed_start(int conn, int ring_fd, struct cr_err *err)
{
	struct feed *f = calloc(1, sizeof(*f));
	pthread_attr_t a;
	pthread_t t;

	if (!f)
		return cr_err_oom(err);
	f->conn = conn;
	int r = lazy_ring_map(&f->ring, ring_fd, err);
	if (r) {
		free(f);
		return r;
	}
	pthread_attr_init(&a);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&t, &a, feed_main, f);
	pthread_attr_destroy(&a);
	if (!r)
		return 0;
	lazy_ring_unmap(&f->ring);
	free(f);
	return cr_err_set(err, CR_ERR_KERNEL, r, "a thread: %s", strerror(r));
}
