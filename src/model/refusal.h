/* What cannot be moved, collected by the preflight into one list that the user sees whole. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include "base/vec.h"

struct refusal {
	pid_t pid;      /* 0: the host or the whole tree */
	char what[200]; /* the thing: "fd 7 (redis-server)", "mapping 7f00…-7f01…", "pid" */
	char why[300];  /* the reason and what to do about it */
	char host[64];  /* the host that says so; "": this one */
};

struct refusals {
	VEC(struct refusal) list;
	VEC(struct refusal) warnings; /* moved, but not quite as it was: said, not refused */
	bool passing;                 /* some of list may be gone in a moment: look again */
};

/* Append; duplicates (same pid and what) are kept once. Out of memory drops the text, not the
 * count: the last entry then says so. */
void refuse(struct refusals *r, pid_t pid, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void refuse_warn(struct refusals *r, pid_t pid, const char *what, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void refusals_done(struct refusals *r);
