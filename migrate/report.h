/* What the user sees of a migration: lines for people, or one JSON object a line. */
#pragma once
#include <stdbool.h>
#include <stdio.h>
#include "base/vec.h"
#include "wire/msg.h"

struct report {
	bool json;
	bool terminal; /* rounds as a table */
	const char *source, *dest;
	struct mig_id id;
	VEC(struct msg_round) rounds;
	size_t n_refused;
	bool leave_running;
	pid_t pid;          /* 0: … */
	const char *cgroup; /* … the whole of it */
};

void report_done_with(struct report *r); /* frees what the report holds */

void report_event(struct report *r, const struct msg_event *e);
void report_round(struct report *r, const struct msg_round *m);
void report_refused(struct report *r, const struct msg_notes *n);
void report_warning(struct report *r, const struct msg_notes *n);
void report_loss(struct report *r, const struct msg_loss *l);
/* Something that this program noticed. */
void report_notice(struct report *r, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The last thing said. */
void report_outcome(struct report *r, const struct msg_done *d);
