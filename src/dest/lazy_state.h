/* What is missing in the tasks' memory, where it survives the process that fetches it.
 *
 * A *space* is an address space with its userfaultfd: one for each process that was moved, and one
 * for each that they fork while pages are missing. Its *segments* say where memory that was at the
 * source at one address is now (mremap(2) moves it), with a bit for each page that is missing.
 *
 * All of it lies in memory shared by the fetcher and its supervisor, and is changed in steps after
 * each of which it is whole: a fetcher may be killed at any time, and the next one goes on. */
#pragma once
#include <stdbool.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "wire/lazy_stream.h"

enum {
	LAZY_SPACES = 1024,
	LAZY_BUCKETS = 256,
	LAZY_TIES = 4096,
	LAZY_OBJECTS = 256,
	LAZY_LOSSES = 32
};

struct lazy_seg {
	uint64_t start; /* here */
	uint64_t pages;
	uint64_t src;    /* at the source; offset in an object */
	uint64_t bit0;   /* of its first page, in the space's bitmap; not of an object */
	uint32_t object; /* a mapping of objects[object - 1], as long as it is mapped; 0: private */
	uint32_t huge;   /* of huge pages: all 512 bits of one are set, or none */
};

/* Shared memory. What is missing of it is there all the same, with old contents or zeros, but in no
 * task's page tables: whoever touches it waits (userfaultfd's minor faults). So the kernel tells it
 * from what a task has removed, madvise(2) MADV_REMOVE: that is there no more, and not missing.
 * What is missing is never made: a page that is not there stays so until a task touches it. Holes
 * that it had at the source are not there, either. */
struct lazy_object {
	uint32_t index; /* at the source */
	int fd;
	uint64_t pages;
	uint64_t word0; /* of its first page, in the objects' bitmaps */
	/* How many pages show in a mapping at once: 1, or LAZY_HUGE_PAGES of a huge one, which is
	 * not shown before nothing of it is missing. */
	uint32_t unit;
};

struct lazy_space {
	uint32_t used;
	int uffd;
	pid_t origin;    /* whose memory it was at the source */
	uint32_t active; /* which of the two tables of segments holds */
	uint32_t n_segs[2];
	uint32_t hint; /* the segment that was found last */
};

enum lazy_phase { LAZY_FETCHING, LAZY_FINISHED /* nothing is missing, or what is is poisoned */ };

/* Pages that are lost with the source. */
struct lazy_loss {
	pid_t pid;
	uint64_t start, end, pages;
};

/* Also read by others, out of a file: the numbers that a user may ask for. */
struct lazy_stats {
	uint64_t pages_lazy, left, faults, pushed, reconnects, connects, lost, max_us;
	/* by the clock of the fetcher, which lives in the tasks' time namespace */
	uint64_t started_us, seen_us, ended_us;
	uint64_t buckets[LAZY_BUCKETS]; /* of fault latencies, see lazy_bucket() */
	uint32_t n_losses;              /* more are in the log, and in `lost` */
	struct lazy_loss losses[LAZY_LOSSES];
	uint32_t guarding; /* see struct lazy_shared: nothing more will come */
	/* of the holder of dumps (lazy_dump.c): counts on for as long as it answers; it has ended
	 * by itself */
	uint32_t dump_beats, dump_over;
};

struct lazy_dumps {  /* the holder of dumps */
	int control; /* it ends with the last who has it; -1: none */
	int pidfd;   /* -1: none */
};

struct lazy_tie { /* see lazy_tie.c */
	pid_t pid;
	int fd; /* -1: none */
};

struct lazy_shared {
	size_t bytes; /* of the whole mapping */
	uint64_t stride, seg_cap, bits;
	uint32_t phase;
	uint32_t committed; /* the tasks may run: until then nothing is lost with the fetcher */
	/* an event that was read and perhaps not acted upon: event 0 for none */
	struct uffd_msg event;
	uint32_t event_space;
	/* of the fetcher, at whose end the supervisor closes them; -1 */
	int urgent_fd, bulk_fds[LAZY_BULK_MAX];
	/* the fetcher's end of the socket to its page-server; the supervisor opens and closes it.
	 * -1: none */
	int page_server;
	/* of the supervisor; here because whoever takes its place needs them. -1: none */
	int supervisor_pidfd, fetcher_pidfd;
	int control, fetcher_control; /* connections go to the fetcher, by number */
	pid_t fetcher;                /* written before it runs */
	int tie_hold, tie_read;       /* of the pipe; -1 */
	struct lazy_tie ties[LAZY_TIES];
	struct lazy_dumps dumps; /* of the supervisor, and whoever takes its place */
	/* Shared memory has pages that are lost with the source: who touches them is to get SIGBUS
	 * for as long as anybody can, and nothing but a userfaultfd sees to that. */
	uint32_t guarding;
	int guard_fds[LAZY_OBJECTS]; /* of the fetcher, at whose end the next one closes them; -1 */
	uint32_t n_objects;
	uint64_t object_words; /* in each of two bitmaps: missing, lost */
	struct lazy_object objects[LAZY_OBJECTS];
	uint32_t top; /* spaces from here on have never been used */
	struct lazy_space spaces[LAZY_SPACES];
};

/* segs, pages: of the largest space; object_pages: of all objects. */
int lazy_state_new(struct lazy_shared **ret, uint64_t segs, uint64_t pages, uint64_t object_pages,
		   uint32_t n_objects, struct cr_err *err) must_check;
/* A number noted here that is closed may be another's at once: first it is forgotten. */
void lazy_close(int *fd);
void lazy_state_free(struct lazy_shared *s); /* takes NULL */

struct lazy_seg *lazy_segs(struct lazy_shared *s, const struct lazy_space *sp, uint32_t *n);
/* NULL: no room. Not used before the caller sets `used`. */
struct lazy_space *lazy_space_new(struct lazy_shared *s, int uffd, pid_t origin);
void lazy_space_drop(struct lazy_space *sp); /* closes its userfaultfd */
/* Room for the bits of a segment that begins at bit0 is the caller's to keep apart. */
int lazy_space_add(struct lazy_shared *s, struct lazy_space *sp, const struct lazy_seg *seg);

bool lazy_test(struct lazy_shared *s, const struct lazy_space *sp, uint64_t bit);
/* bit: a multiple of 64. */
void lazy_mark_words(struct lazy_shared *s, const struct lazy_space *sp, uint64_t bit,
		     const uint64_t words[8]);
/* Returns whether it was missing. */
bool lazy_clear(struct lazy_shared *s, const struct lazy_space *sp, uint64_t bit);
/* The missing page at va here, or at src at the source: its segment, and its index in it. NULL: it
 * is not missing. */
struct lazy_seg *lazy_find_here(struct lazy_shared *s, struct lazy_space *sp, uint64_t va,
				uint64_t *page);
struct lazy_seg *lazy_find_src(struct lazy_shared *s, struct lazy_space *sp, uint64_t src,
			       uint64_t *page);
uint64_t lazy_count(struct lazy_shared *s, const struct lazy_space *sp);

/* ---- shared memory ---- */

/* missing: a bit for each of its pages; fd becomes the state's. -ENOSPC. */
int lazy_object_add(struct lazy_shared *s, uint32_t index, int fd, uint64_t pages, uint32_t unit,
		    const uint64_t *missing) must_check;
/* NULL: there is none. */
struct lazy_object *lazy_object_of(struct lazy_shared *s, uint32_t index);
bool lazy_object_missing(struct lazy_shared *s, const struct lazy_object *o, uint64_t page);
bool lazy_object_lost(struct lazy_shared *s, const struct lazy_object *o, uint64_t page);
/* Is anything of the unit missing that the page belongs to? */
bool lazy_object_waits(struct lazy_shared *s, const struct lazy_object *o, uint64_t page);
/* How many pages are missing in a row from that one on, at most `most`. */
uint32_t lazy_object_run(struct lazy_shared *s, const struct lazy_object *o, uint64_t page,
			 uint32_t most);
/* Returns whether it was missing. */
bool lazy_object_clear(struct lazy_shared *s, const struct lazy_object *o, uint64_t page);
/* The same of those of the 512 from first on, a multiple of 512, that are set in bits: how many. */
uint64_t lazy_object_clear_words(struct lazy_shared *s, const struct lazy_object *o, uint64_t first,
				 const uint64_t bits[8]);
void lazy_object_lose(struct lazy_shared *s, const struct lazy_object *o, uint64_t page);
void lazy_object_found(struct lazy_shared *s, const struct lazy_object *o, uint64_t page);
/* The missing ones among the 512 from first on, a multiple of 512. Returns whether there are any.
 */
bool lazy_object_words(struct lazy_shared *s, const struct lazy_object *o, uint64_t first,
		       uint64_t ret[8]);
/* Of all objects. */
uint64_t lazy_objects_count(struct lazy_shared *s);
bool lazy_objects_any_lost(struct lazy_shared *s);
/* What is mapped at va, if it is shared memory, and which page of it; up to where it goes on so, as
 * far as is known (until may be NULL). A mapping may have grown: it is the one that begins closest
 * to va. NULL: none. */
struct lazy_object *lazy_object_at(struct lazy_shared *s, const struct lazy_space *sp, uint64_t va,
				   uint64_t *page, uint64_t *until);
/* The same of huge pages, whose mappings do not grow: NULL also if they do not reach as far. */
struct lazy_object *lazy_huge_object_at(struct lazy_shared *s, const struct lazy_space *sp,
					uint64_t va, uint64_t *page);

/* What a task did. Each may be applied twice. */
uint64_t lazy_forget(struct lazy_shared *s, struct lazy_space *sp, uint64_t start, uint64_t end);
/* Mappings of shared memory: gone. -ENOSPC: nothing was changed. */
int lazy_unmap(struct lazy_shared *s, struct lazy_space *sp, uint64_t start,
	       uint64_t end) must_check;
/* Of shared memory what was there stays until lazy_unmap(): mremap(2) may leave it, or only make
 * another mapping (len 0). -ENOSPC: nothing was changed. */
int lazy_move(struct lazy_shared *s, struct lazy_space *sp, uint64_t from, uint64_t to,
	      uint64_t len) must_check;
/* NULL: no room. */
struct lazy_space *lazy_fork(struct lazy_shared *s, const struct lazy_space *parent, int uffd);

/* Latencies are counted in eighths of powers of two. */
unsigned int lazy_bucket(uint64_t us);
uint64_t lazy_bucket_us(unsigned int bucket);
uint64_t lazy_percentile(const struct lazy_stats *st, unsigned int percent);
