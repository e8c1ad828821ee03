/* System V semaphore sets and message queues: refused. A process that uses one holds nothing of it;
 * what tells is who did something with a semaphore or queue last. */
#include "kernel/sysv_ipc.h"

#include <stdio.h>
#include "resource/file_kind.h"

struct looking {
	struct capture *c;
	const struct sysv_ipc *at;
};

static int look_at_user(pid_t pid, void *arg)
{
	struct looking *l = arg;
	char what[64];

	if (!files_pid_in_tree(l->c->tree, pid, false))
		return 0;
	snprintf(what, sizeof(what), "System V %s %d",
		 l->at->kind == SYSV_SEM ? "semaphore set" : "message queue", l->at->id);
	refuse(l->c->refused, pid, what, "used by this process (key %#x): not supported",
	       (unsigned int)l->at->key);
	return 1;
}

static int look_at(const struct sysv_ipc *i, void *arg)
{
	struct looking *l = arg;

	l->at = i;
	sysv_ipc_users(i, look_at_user, l); /* one is enough */
	return 0;
}

int sysv_ipc_capture(struct capture *c, struct cr_err *err)
{
	struct looking l = {.c = c};

	return sysv_ipc_each(look_at, &l, err);
}
