/* What the parts of serving pages share: serve.c (requests), serve_left.c (what is
 * still to be sent, and in what order), serve_push.c (the threads that push). */
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/vec.h"
#include "kernel/near_cpu.h"
#include "source/serve.h"
#include "source/serve_known.h"
#include "wire/lazy_stream.h"
#include "wire/token_bucket.h"

enum {
	PUSH_PAGES = 64, /* in one frame */
	HOT_MAX = 64,
	READS_MAX = 16,
	AHEAD_PAGES_MAX =
	    32, /* sent with a page that was asked for, if it looks like one of many */
};

struct left_chunk {
	uint64_t start; /* multiple of LAZY_CHUNK_SPAN */
	uint64_t left[8], told[8];
};

struct memory {                 /* of one process: what is still to be sent */
	const struct serve *sv; /* who may read it in our place */
	pid_t pid;
	int mem; /* not ours */
	struct serve_known known;
	const struct serve_range *has; /* of sv->has; what is missing lies in them */
	size_t n_has;
	uint64_t most, strays;         /* chunks in them; that were told and are not */
	VEC(struct left_chunk) chunks; /* ascending once all is said */
	size_t at;                     /* chunks before it are empty */
};

struct hot { /* where to push first */
	size_t memory;
	uint64_t va;
	uint32_t pages;
	bool huge, begun;
};

struct reading { /* a task that seems to read in order */
	size_t memory;
	uint64_t next; /* where it would fault next */
	uint32_t ahead;
	uint64_t used; /* by the count of requests: the oldest makes room */
};

struct pusher {
	struct server *s;
	pthread_t thread;
	bool runs;
	int fd;
	uint8_t pages[LAZY_PAYLOAD_MAX];
};

struct server {
	struct serve *sv;
	VEC(struct memory) memories;
	pthread_mutex_t lock; /* of all from here to the bucket, and of the memories' bits */
	struct hot hot[HOT_MAX];
	size_t n_hot;
	size_t recent_at;       /* of sv->recent: those before it have been pushed */
	uint64_t recent_va;     /* and of that one what lies before this address */
	size_t swept, swept_at; /* memories before it, and chunks of it, have been swept */
	struct reading reads[READS_MAX];
	uint64_t requests, left;
	uint64_t most; /* chunks of all memories */
	struct token_bucket bucket;
	/* the rest is the serving thread's own */
	struct pusher *pushers[LAZY_BULK_MAX];
	int urgent;
	struct out {
		VEC(uint8_t) b;
		size_t done;
	} out;
	uint8_t *in;
	size_t n_in;
	bool pushing, complete;
	struct near_cpu near;
	uint64_t told_us;
	uint8_t pages[LAZY_PAYLOAD_MAX];
};

/* ---- serve_left.c; what changes holds the lock ---- */

struct memory *left_memory_of(struct server *s, pid_t pid);
/* Before anything is added, and once: serve.h. has stays the caller's, and in use. */
void left_allow(struct server *s, const struct serve_range *has, size_t n);
/* -EPROTO: so much cannot be missing. What is not there is passed over. */
int left_add(struct server *s, struct memory *m, const struct lazy_chunk *c) must_check;
/* All was said: now it can be looked up. -EPROTO: something was said twice. */
int left_sort(struct server *s) must_check;
void left_done(struct server *s);
/* The next chunk, from *at on, of which pages are known to be as they were sent before: these are
 * taken. */
bool left_take_clean(struct server *s, struct memory *m, size_t *at, struct lazy_chunk *ret);
/* Was it missing when the destination connected? */
bool left_was_told(struct memory *m, uint64_t va);
void left_take(struct server *s, struct memory *m, uint64_t va);
/* A page was asked for, npages of them: what is pushed next, and how many pages behind it are worth
 * being sent at once. */
uint32_t left_asked(struct server *s, struct memory *m, uint64_t va, uint32_t npages);
/* Takes up to most pages that are left from va on; they end where a chunk does. */
uint32_t left_take_run(struct server *s, struct memory *m, uint64_t va, uint32_t most);
/* Pages that are left, of which the destination may have what they hold: the next 512, to be looked
 * at; none is taken. Each comes once. */
bool left_sweep(struct server *s, pid_t *pid, struct lazy_chunk *ret);
/* Takes what is to be pushed next: around what was asked for, then what was written last, then by
 * address. 0: nothing is left. */
uint32_t left_next(struct server *s, struct memory **m, uint64_t *va);

/* ---- serve_push.c ---- */

/* Calls put with frames that hold n pages of m; pages that cannot be read are said to be so.
 * buf: LAZY_PAYLOAD_MAX bytes. Returns what put does, 0 or a negative errno. */
typedef int (*serve_put_fn)(void *arg, const struct lazy_frame *f, const void *payload);
int serve_read_pages(const struct memory *m, uint64_t va, uint32_t n, uint8_t *buf,
		     serve_put_fn put, void *arg);
/* A thread for each connection that there is. Returns 0 or a negative errno. */
int push_start(struct server *s) must_check;
/* Ends them, and closes their connections. */
void push_stop(struct server *s);
