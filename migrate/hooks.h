/* Commands that the user has run at stages of a migration, a dump or a restore: --hook STAGE=CMD.
 *
 * Each runs by /bin/sh -c where the user called, in the order given, and is waited for. One that
 * fails makes the stage fail. Its environment says CR_HOOK_STAGE, CR_PID (the root of the tree, 0
 * where there is none: --cgroup), CR_IMAGE (the image's name or directory, "" without one),
 * CR_SOURCE and CR_DESTINATION (as the user called the hosts, "" without one), and CR_UNDO: 1 if
 * what the same hook did before is to be undone, else 0. */
#pragma once
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"
#include "wire/msg.h"

struct link;

struct hook {
	enum msg_hook stage;
	const char *command; /* borrowed of the command line */
};

struct hooks {
	VEC(struct hook) list;
	const char *image, *source, *dest; /* NULL: "" */
	pid_t pid;
};

/* "STAGE=CMD". may: the stages that there are here, bits. Errors: INPUT, naming them. */
int hooks_add(struct hooks *h, const char *text, uint32_t may, struct cr_err *err) must_check;
/* Stages for which there is a command, bits. */
uint32_t hooks_stages(const struct hooks *h);
/* All of that stage. Errors: INPUT, -ECANCELED. */
int hooks_run(const struct hooks *h, enum msg_hook stage, bool undo, struct cr_err *err) must_check;
/* Run what the engine asks for, and answer it. */
int hooks_answer(struct hooks *h, struct link *engine, const struct msg_run_hook *rq,
		 struct cr_err *err) must_check;

static inline uint32_t hook_bit(enum msg_hook stage)
{
	return 1u << stage;
}
