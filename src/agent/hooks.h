/* Commands that the user has run at stages of a dump or a restore: --hook STAGE=CMD.
 *
 * Each runs by /bin/sh -c, in the order given, and is waited for. Its environment says CR_STAGE,
 * CR_IMAGE (the image's name or directory) and CR_PID (the root of the tree, 0 where there is
 * none). One that fails makes the stage fail. */
#pragma once
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"

struct hook {
	const char *stage, *command; /* borrowed of the command line; stage: of the table */
};

struct hooks {
	VEC(struct hook) list;
	const char *image;
	pid_t pid;
};

/* "STAGE=CMD". Errors: INPUT, naming the stages. */
int hooks_add(struct hooks *h, const char *text, struct cr_err *err) must_check;
/* All of that stage. arg: struct hooks. Errors: INPUT. */
int hooks_run(void *arg, const char *stage, struct cr_err *err) must_check;
