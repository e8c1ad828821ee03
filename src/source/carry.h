/* Files that come along: see carry.c. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <xxhash.h>
#include "base/err.h"
#include "base/vec.h"

struct carry_track;
struct source;
struct tree;

struct source_file {
	char *path;
	uint64_t dev, ino;
	bool wanted, shm;
	bool directory; /* made with no more in it than comes along by itself */
	bool mapped;    /* shared, and may be written so: no time tells of that */
	bool in_tree;   /* of the last look */
	bool sent;      /* whole, at least once */
	struct stat seen;
	uint64_t seen_ns;          /* CLOCK_REALTIME */
	VEC(XXH128_hash_t) blocks; /* as the destination has them; zero: a hole */
	struct carry_track *track; /* NULL: none yet */
};

/* Before t is sent: which of its files does the destination lack? Marks them in t. Refusals to
 * s->notes. */
int source_carry_look(struct source *s, struct tree *t, bool exact, struct cr_err *err) must_check;
/* What was not sent yet of what the last look has found, beside the running tasks. */
int source_carry_ahead(struct source *s, struct cr_err *err) must_check;
/* Shared memory, as the last look at it was (source_look_at_objects()): what was written. */
int source_carry_round(struct source *s, struct cr_err *err) must_check;
/* At the stop: look, and send what changed. */
int source_carry_last(struct source *s, struct tree *t, struct cr_err *err) must_check;
/* After the decision, the tasks being gone. */
void source_carry_left(struct source *s);
void source_carry_done(struct source *s);
