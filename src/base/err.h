/* What went wrong, carried by value from where it happened to where it is reported, once.
 *
 * A function that can fail takes `struct cr_err *err` last, returns 0 (or a count) on success and a
 * negative errno on failure, and has then filled *err. err is never NULL. Nothing allocates. */
#pragma once
#include <stdarg.h>
#include <sys/types.h>
#include "base/cleanup.h"

enum cr_err_kind {
	CR_ERR_NONE = 0,
	CR_ERR_UNSUPPORTED, /* the thing exists but cannot be moved (yet) */
	CR_ERR_KERNEL,      /* a system call failed where it should not */
	CR_ERR_PEER,        /* the other side said no, spoke nonsense, or went away */
	CR_ERR_IO,          /* file or network */
	CR_ERR_INPUT,       /* what the user asked for is not possible as said */
	CR_ERR_BUG,         /* an invariant of ours broke */
};

struct cr_err {
	int code; /* positive errno */
	enum cr_err_kind kind;
	pid_t pid;      /* the task concerned, 0 if none */
	char stage[24]; /* the step of the migration, "" if unset; filled by the outermost frame */
	char msg[600];
};

/* Fill *err; returns -code, so that `return cr_err_set(…)` is the idiom. code is a positive errno.
 */
int cr_err_set(struct cr_err *err, enum cr_err_kind kind, int code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5), cold));

/* A failed system call: kind KERNEL, ": strerror(errno)" appended. Returns -errno. */
int cr_err_sys(struct cr_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), cold));

/* Put "context: " before the message. Returns -err->code. */
int cr_err_ctx(struct cr_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), cold));

/* Out of memory: an error to undo from. Returns -ENOMEM. */
int cr_err_oom(struct cr_err *err);

const char *cr_err_kind_name(enum cr_err_kind kind);
void cr_err_clear(struct cr_err *err);
