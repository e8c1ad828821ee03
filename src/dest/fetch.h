/* What the parts of the fetcher share: fetch.c (connections, frames, the end), fetch_bulk.c (what
 * is pushed), fetch_tasks.c (what the tasks do), fetch_put.c (pages into place), fetch_huge.c (huge
 * pages).
 *
 * A thread of high priority reads faults and events, asks for pages and puts those in place that
 * were asked for. Others, one for each connection, take what is pushed. Nobody looks at what is
 * missing, reads an event or puts a page without the lock; so nothing changes between looking and
 * putting: an event that happens in between makes the kernel refuse the page (EAGAIN) until it was
 * read.
 *
 * Shared memory (fetch_objects.c) is written through a mapping of the fetcher's own, in which a
 * page that a task has removed is not made again (uffd_guard()), and then let show in the tasks'.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/vec.h"
#include "dest/lazy.h"
#include "kernel/near_cpu.h"
#include "wire/lazy_ring.h"

struct in { /* what came over the urgent connection */
	uint8_t *buf;
	size_t n;
};

struct staged { /* a huge page of which not all has come */
	pid_t origin;
	uint64_t src;
	uint8_t *mem;
	uint64_t have[8]; /* a bit for each 4 KiB */
};

struct waiter { /* a fault that was asked for */
	struct lazy_space *space;
	uint64_t va;
	pid_t origin;
	uint64_t src;
	uint32_t npages;
	uint64_t since_us;
};

enum fill { FILL_DATA, FILL_ZEROS, FILL_POISON, FILL_UNCHANGED };

struct fetch;
struct bulk { /* what is pushed over a connection */
	struct fetch *f;
	struct lazy_ring ring;
	pthread_t taker, feeder; /* feeder: only if no page-server is to be had */
	bool runs, feeds;
	atomic_bool stops;
	int fd;
};

struct fetch {
	uint8_t *guards[LAZY_OBJECTS]; /* mappings of the objects */
	pthread_mutex_t
	    lock; /* of sh and st, the userfaultfds, the waiters, what is staged, forks, lost_why */
	struct lazy_shared *sh;
	struct lazy_stats *st;
	VEC(struct waiter) waiters;
	VEC(struct staged) staged;
	uint64_t forks;       /* that were heard of: a look at all spaces may have missed one */
	const char *lost_why; /* the connection is to be given up */
	/* the rest is the urgent thread's own */
	int control, wake;
	pid_t supervisor;
	uint64_t timeout_us, alone_since_us, swept_us; /* alone: without the source; 0: is not */
	bool started, told, complete_sent, bye;
	bool holds; /* no shared memory is asked for before the source has said what is clean */
	int page_server; /* its socket; -1: we go on without */
	bool page_server_ready;
	atomic_bool page_server_mad; /* it does what none does: another one, please */
	struct near_cpu near;
	struct in urgent;
	struct bulk bulks[LAZY_BULK_MAX];
	VEC(uint8_t) out; /* to the source */
	size_t out_done;
};

/* ---- fetch.c ---- */

/* Asks for pages, or will once the source is there. 0 or a negative errno. */
int fetch_want(struct fetch *f, pid_t origin, uint64_t src, uint32_t npages) must_check;
/* The connections are to be given up, by the urgent thread. */
void fetch_give_up(struct fetch *f, const char *why);
/* A frame of the source's that was checked. pushed: by another than the urgent thread. */
int fetch_on_frame(struct fetch *f, const struct lazy_frame *fr, const uint8_t *payload,
		   bool pushed) must_check;

/* ---- fetch_bulk.c, by the urgent thread, without the lock ---- */

/* A connection, f->sh->bulk_fds[i], on which pages are pushed: the page-server reads it, a thread
 * of its own puts them. */
void bulk_start(struct fetch *f, size_t i);
/* Does nothing if there is none. */
void bulk_drop(struct fetch *f, size_t i);
/* The page-server's socket is readable. -EPIPE: it has ended. */
int bulk_hear(struct fetch *f) must_check;

/* ---- fetch_tasks.c, with the lock ---- */

void tasks_count_left(struct fetch *f);
/* For whoever asks what became of it. */
void tasks_note_loss(struct fetch *f, pid_t pid, uint64_t start, uint64_t end, uint64_t pages);
void tasks_drop_space(struct fetch *f, struct lazy_space *sp);
/* Spaces of processes that have ended or called execve(2), of which nothing tells. */
void tasks_sweep(struct fetch *f);
/* Somebody waits at va, for the pages at src of origin: they are asked for. */
int tasks_wait_for(struct fetch *f, struct lazy_space *sp, uint64_t va, pid_t origin, uint64_t src,
		   uint32_t npages) must_check;
void tasks_note_latency(struct fetch *f, const struct waiter *w);
/* A page is in place: those who waited for it have done so. */
void tasks_arrived(struct fetch *f, const struct lazy_space *sp, uint64_t va);
/* The urgent thread's alone. Returns how many events were read, or a negative errno. */
int tasks_read_events(struct fetch *f, struct lazy_space *sp) must_check;
/* What the fetcher before has read, and perhaps not acted upon. */
int tasks_act_on_left_over(struct fetch *f) must_check;

/* ---- fetch_objects.c, with the lock but for objects_put() and objects_clean() ---- */

/* Before anything else. */
int objects_guard(struct fetch *f, struct cr_err *err) must_check;
/* A touch of shared memory that its mapping does not show. */
int objects_fault(struct fetch *f, struct lazy_space *sp, uint64_t va) must_check;
/* A touch of what is not there, at va: if it is shared memory, it has been removed. */
int objects_removed(struct fetch *f, const struct lazy_space *sp, uint64_t va) must_check;
/* That part of sp's memory is about to be discarded or removed. */
void objects_zeroed(struct fetch *f, const struct lazy_space *sp, uint64_t start, uint64_t end);
/* Those of sp who wait look again: what is mapped where has changed. */
void objects_wake(struct fetch *f, const struct lazy_space *sp);
/* What is missing is lost. Says what. */
void objects_lose_all(struct fetch *f);
/* Nothing is missing any more, and nothing lost: what was a hole at the source is one again. */
void objects_trim(const struct fetch *f);

/* fr, of an object: chunks of pages that are as they were sent before. Without the lock. */
int objects_clean(struct fetch *f, const struct lazy_frame *fr, const uint8_t *payload) must_check;
/* fr: of an object. */
int objects_put(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data, enum fill fill,
		bool pushed) must_check;

/* ---- fetch_huge.c, with the lock ---- */

/* Pages of a huge page that is missing: kept until all of it is there, and put as one. 1: that is
 * what they are; 0: it is not, or nothing is missing there. pages: how many were put. */
int huge_put(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data, enum fill fill,
	     bool pushed, uint64_t *pages) must_check;
/* Where no page can be had the task gets SIGBUS, as it would from the kernel. */
int huge_give_zeros(struct fetch *f, struct lazy_space *sp, uint64_t va) must_check;
/* At the end, and when the source is lost. */
void huge_forget_staged(struct fetch *f);

/* ---- fetch_put.c, without the lock ---- */

/* Wherever they are missing. pushed: by another than the urgent thread. */
int put_pages(struct fetch *f, const struct lazy_frame *fr, const uint8_t *data, enum fill fill,
	      bool pushed) must_check;
/* With the lock, by the urgent thread: an event has to be read before a page is put. */
int put_make_way(struct fetch *f, struct lazy_space *sp, unsigned int *tries) must_check;
/* The same by any thread: others let the urgent one do that, for which the lock is let go. */
int put_make_way_for(struct fetch *f, struct lazy_space *sp, bool pushed,
		     unsigned int *tries) must_check;
/* They are in place here, or will never be. */
void put_done_with(struct fetch *f, struct lazy_space *sp, uint64_t va, uint64_t bit,
		   uint64_t pages);
/* The source is lost: whoever touches what is missing gets SIGBUS. Says what. */
void put_poison_all(struct fetch *f);
