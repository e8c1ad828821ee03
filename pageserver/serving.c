/* --serve: pages out of images, for tasks that run already. Each restore has two connections, which
 * find each other by what their LAZY says; from then on both belong to a thread. */
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include "base/log.h"
#include "pageserver/lazy_image.h"
#include "pageserver/server.h"

enum { PAIR_TIMEOUT_US = 10 * 1000000 };

struct serving {
	struct serving *next; /* waiting for its other half */
	struct server *sv;
	struct mig_id id;
	uint64_t pair, since_us, bandwidth;
	int urgent, bulk; /* -1: not there yet */
	struct image *im;
	char peer[64];
};

static void serving_free(struct serving *s)
{
	close_fdp(&s->urgent);
	close_fdp(&s->bulk);
	image_free(s->im);
	free(s);
}

/* Of the image's own, so that nothing is shared with other threads. */
static void *serve_in_thread(void *arg)
{
	struct serving *s = arg;
	struct cr_err err = {0};
	int urgent = s->urgent, bulk = s->bulk;

	s->urgent = s->bulk = -1; /* closed by who serves on them */
	if (lazy_image_serve(s->im, urgent, bulk, s->bandwidth, &err))
		log_info("%s: %s", s->peer, err.msg);
	else
		log_info("%s: has all", s->peer);
	atomic_fetch_sub(&s->sv->n_serving, 1);
	serving_free(s);
	return NULL;
}

static int start(struct serving *s, struct cr_err *err)
{
	pthread_attr_t a;
	pthread_t t;

	pthread_attr_init(&a);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	atomic_fetch_add(&s->sv->n_serving, 1);
	int r = pthread_create(&t, &a, serve_in_thread, s);
	pthread_attr_destroy(&a);
	if (!r)
		return 0;
	atomic_fetch_sub(&s->sv->n_serving, 1);
	serving_free(s);
	return cr_err_set(err, CR_ERR_KERNEL, r, "a thread: %s", strerror(r));
}

static int open_image(struct server *sv, const struct msg_lazy *l, const struct mig_id *id,
		      struct image **ret, struct cr_err *err)
{
	_cleanup_(image_freep) struct image *im = NULL;
	char path[PATH_MAX];

	if (!image_name_ok(l->image))
		return cr_err_set(err, CR_ERR_PEER, EINVAL, "no name of an image");
	snprintf(path, sizeof(path), "%s/%s", sv->dir->path, l->image);
	int r = image_open_limited(&im, path, &sv->dir->limits, err);
	if (r)
		return r;
	snprintf(im->name, sizeof(im->name), "%s", l->image);
	if (im->state < IMAGE_PREPARED || !mig_id_equal(&im->migration, id))
		return cr_err_set(err, CR_ERR_PEER, ESTALE,
				  "image %s here is not the one that is being restored", l->image);
	*ret = take_ptr(im);
	return 0;
}

static bool hung_up(const struct serving *s)
{
	char c;

	return recv(s->urgent >= 0 ? s->urgent : s->bulk, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

static void forget(struct server *sv, struct serving **p)
{
	struct serving *s = *p;

	*p = s->next;
	sv->n_half_served--;
	serving_free(s);
}

/* Halves whose other one never came. */
static void forget_old(struct server *sv)
{
	for (struct serving **p = &sv->half_served; *p;) {
		if (sv->now_us - (*p)->since_us < PAIR_TIMEOUT_US && !hung_up(*p))
			p = &(*p)->next;
		else
			forget(sv, p);
	}
}

/* The oldest half gives way to a newcomer: the other one of an honest pair comes at once. */
static bool make_room(struct server *sv)
{
	struct serving **p = &sv->half_served;

	if (sv->n_half_served + atomic_load(&sv->n_serving) < sv->max_connections / 2)
		return true;
	if (!*p)
		return false;
	while ((*p)->next)
		p = &(*p)->next;
	forget(sv, p);
	return true;
}

static struct serving *take_half(struct server *sv, const struct msg_lazy *l,
				 const struct mig_id *id)
{
	for (struct serving **p = &sv->half_served; *p; p = &(*p)->next) {
		struct serving *s = *p;

		if (s->pair != l->pair || !mig_id_equal(&s->id, id) ||
		    (l->kind == MSG_LAZY_URGENT ? s->urgent : s->bulk) >= 0)
			continue;
		*p = s->next;
		sv->n_half_served--;
		return s;
	}
	return NULL;
}

static int first_half(struct server *sv, const struct msg_lazy *l, const struct mig_id *id,
		      const char *peer, struct serving **ret, struct cr_err *err)
{
	if (!make_room(sv))
		return cr_err_set(err, CR_ERR_PEER, EBUSY, "too many are served already");
	struct serving *s = calloc(1, sizeof(*s));
	if (!s)
		return cr_err_oom(err);
	*s = (struct serving){.sv = sv,
			      .id = *id,
			      .pair = l->pair,
			      .since_us = sv->now_us,
			      .bandwidth = sv->options.max_bandwidth,
			      .urgent = -1,
			      .bulk = -1};
	snprintf(s->peer, sizeof(s->peer), "%s", peer);
	int r = open_image(sv, l, id, &s->im, err);
	if (r) {
		serving_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int serving_take(struct server *sv, const struct msg_lazy *l, const struct mig_id *id,
		 const char *peer, int fd, const uint8_t *ok, size_t ok_bytes, struct cr_err *err)
{
	_cleanup_fd_ int owned = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	int r = 0;

	if (owned < 0)
		return cr_err_sys(err, "dup");
	forget_old(sv);
	struct serving *s = take_half(sv, l, id);
	if (!s)
		r = first_half(sv, l, id, peer, &s, err);
	if (r)
		return r;
	/* before anything that the thread says; nobody has sent anything so far, so it fits */
	if (send(owned, ok, ok_bytes, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)ok_bytes) {
		serving_free(s);
		return cr_err_set(err, CR_ERR_IO, EPIPE, "cannot answer");
	}
	if (l->kind == MSG_LAZY_URGENT)
		s->urgent = take_fd(&owned);
	else
		s->bulk = take_fd(&owned);
	if (s->urgent >= 0 && s->bulk >= 0) {
		notify_image(&sv->notify, s->im->name, "serving");
		log_info("%s: image %s is being served", s->peer, s->im->name);
		return start(s, err);
	}
	s->next = sv->half_served;
	sv->half_served = s;
	sv->n_half_served++;
	return 0;
}

/* Threads end when their connections do. */
void serving_stop(struct server *sv)
{
	while (sv->half_served) {
		struct serving *s = sv->half_served;

		sv->half_served = s->next;
		serving_free(s);
	}
	sv->n_half_served = 0;
}
