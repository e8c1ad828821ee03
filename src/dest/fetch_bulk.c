/* What is pushed: the page-server reads it, threads of ours put it.
 *
 * It is a process of its own, beside the fetcher and as long as it (lazy_run.c): if one of the two
 * ends, the other does, and the supervisor starts both anew. What was on its way is still missing,
 * and the source is told so. Where none can be had, threads of ours read as it would. */
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include "base/log.h"
#include "dest/fetch.h"
#include "wire/ps_serve.h"

static void wake_urgent(struct fetch *f)
{
	const struct fetch_hand nothing = {.fd = -1};

	if (send(f->wake, &nothing, sizeof(nothing), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("fetching pages: %s", strerror(errno)); /* it looks by itself, too */
}

/* A thread of no priority, anywhere. */
static void be_normal(const struct fetch *f)
{
	const struct sched_param normal = {0};

	near_cpu_leave(&f->near);
	if (sched_setscheduler(0, SCHED_OTHER, &normal))
		log_debug("fetching pages: %s", strerror(errno));
}

/* ---- putting ---- */

static const char *text_of(enum lazy_ring_end why)
{
	switch (why) {
	case LAZY_RING_NONSENSE:
		return "not a frame of ours";
	case LAZY_RING_DAMAGED:
		return "pages were damaged on their way";
	default:
		return "it is closed";
	}
}

/* 1: nothing more comes. */
static int take_one(struct bulk *b)
{
	const uint8_t *payload;
	struct lazy_frame fr;
	enum lazy_ring_end why;
	int r = lazy_ring_take(&b->ring, &fr, &payload, &why);

	if (r > 0)
		return fetch_on_frame(b->f, &fr, payload, true);
	if (r < 0 || !why)
		return r;
	fetch_give_up(b->f, text_of(why));
	return 1;
}

static void *take_main(void *arg)
{
	struct bulk *b = arg;
	struct fetch *f = b->f;
	int r = 0;

	be_normal(f);
	while (!r && !b->stops && !f->lost_why && f->st->left)
		r = take_one(b);
	if (r < 0)
		fetch_give_up(f, strerror(-r));
	if (r == -EPROTO)
		f->page_server_mad = true;
	wake_urgent(f);
	return NULL;
}

/* ---- the page-server ---- */

static void *feed_main(void *arg)
{
	struct bulk *b = arg;
	struct lazy_ring r = b->ring; /* the same memory, and a place of its own in it */

	be_normal(b->f);
	lazy_ring_feed(&r, b->fd);
	return NULL;
}

/* ring_fd: the memory. */
static int have_it_fed(struct bulk *b, int ring_fd, struct cr_err *err)
{
	const struct pss_msg feed = {.type = PSS_FEED};
	const int fds[] = {b->fd, ring_fd};
	int r;

	if (b->f->page_server >= 0) {
		r = pss_send(b->f->page_server, &feed, fds, ARRAY_SIZE(fds), err);
		/* it is not waited for: who does not read what it is told is no page-server */
		if (r && b->f->page_server_ready)
			b->f->page_server_mad = true;
		return r;
	}
	r = pthread_create(&b->feeder, NULL, feed_main, b);
	b->feeds = !r;
	return r ? cr_err_set(err, CR_ERR_KERNEL, r, "a thread: %s", strerror(r)) : 0;
}

int bulk_hear(struct fetch *f)
{
	_cleanup_free_ struct pss_in *in = malloc(sizeof(*in));
	struct cr_err err = {0};
	int r = in ? pss_recv(f->page_server, in, &err) : -ENOMEM;

	if (in)
		pss_close(in);
	if (!r && in->m.type == PSS_READY) {
		f->page_server_ready = true;
		return 0;
	}
	if (f->page_server_ready)
		return r ? r : -EPROTO;
	log_warn("%s; fetching pages without a page-server",
		 r ? err.msg : "the page-server does not get ready");
	f->page_server = -1; /* closed by the supervisor */
	fetch_give_up(f, "nobody reads what is pushed");
	return 0;
}

/* ---- connections ---- */

static int start(struct bulk *b, struct cr_err *err)
{
	_cleanup_fd_ int ring_fd = -1;
	int r = lazy_ring_new(&b->ring, &ring_fd, err);

	if (!r)
		r = have_it_fed(b, ring_fd, err);
	if (r)
		return r;
	r = pthread_create(&b->taker, NULL, take_main, b);
	b->runs = !r;
	return r ? cr_err_set(err, CR_ERR_KERNEL, r, "a thread: %s", strerror(r)) : 0;
}

void bulk_start(struct fetch *f, size_t i)
{
	struct bulk *b = &f->bulks[i];
	struct cr_err err = {0};

	*b = (struct bulk){.f = f, .fd = f->sh->bulk_fds[i]};
	if (!start(b, &err))
		return;
	log_warn("fetching pages: %s", err.msg);
	fetch_give_up(f, "nobody takes what is pushed");
}

void bulk_drop(struct fetch *f, size_t i)
{
	struct bulk *b = &f->bulks[i];

	if (f->sh->bulk_fds[i] < 0)
		return;
	/* who reads it has it in another process */
	shutdown(b->fd, SHUT_RDWR);
	b->stops = true;
	if (b->ring.shared)
		lazy_ring_stop(&b->ring);
	if (b->runs)
		pthread_join(b->taker, NULL);
	if (b->feeds)
		pthread_join(b->feeder, NULL);
	lazy_ring_unmap(&b->ring);
	lazy_close(&f->sh->bulk_fds[i]);
}
