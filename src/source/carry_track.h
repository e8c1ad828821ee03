/* Which pages of shared memory with a name (POSIX, shm_overview(7)) were written: memory that comes
 * along as a file (carry.c), and is tracked like other shared memory (objects.c). */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "kernel/shmview.h"
#include "memory/shared_tracker.h"
#include "model/tree.h"

struct source;
struct source_file;

struct carry_track {
	int fd;     /* O_NOATIME */
	bool marks; /* are there, kernel/filemark.h */
	bool hopeless;
	int watch; /* of source.openings */
	bool opened, looked, followed;
	struct shared_look before, now; /* as those of a source_object */
	uint64_t written;               /* pages that the last round had to send */
	uint64_t sent_bytes;            /* so far */
};

void carry_track_free(struct carry_track *c); /* takes NULL */
/* A look at others begins. */
void carry_track_leave_out(struct source *s);
/* Those of which there is to be a look. Returns whether there is one. */
bool carry_track_begin(struct source *s, const struct tree *t, bool final);
/* The look of which that mapping is part; NULL: none. */
struct shared_look *carry_track_look(struct source *s, const struct tree *t, const struct vma *v,
				     const struct shm_mapping *m);
void carry_track_opened(struct source *s, int watch);
void carry_track_judge(struct source *s);
/* Of a file that was looked at: which pages are to be sent, 0 with *ret; 1: all that is others than
 * was sent. */
int carry_track_collect(struct source_file *f, bool final, struct shared_pages *ret);
bool carry_track_any(const struct source *s);
bool carry_track_all_followed(const struct source *s);
uint64_t carry_track_written(const struct source *s);
