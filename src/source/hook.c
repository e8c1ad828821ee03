/* Hooks are run by whoever asked for the migration, in the user's own environment; the engine asks
 * and waits. */
#include <poll.h>
#include "source/source.h"

enum { LOOK_MS = 200 };

static int wait_answer(struct source *s, enum msg_hook stage, struct cr_err *err)
{
	struct pollfd life = {.fd = s->env->life_fd, .events = POLLIN};
	struct msg m;
	int r;

	do {
		cr_err_clear(err);
		r = link_recv(s->client, LOOK_MS, &m, err);
		if (r == -ETIMEDOUT && poll(&life, 1, 0) > 0) {
			s->aborted = true;
			return cr_err_set(err, CR_ERR_PEER, ECANCELED, "hook %s: aborted",
					  msg_hook_name(stage));
		}
	} while (r == -ETIMEDOUT);
	if (r) {
		s->aborted = true;
		return cr_err_ctx(err, "hook %s", msg_hook_name(stage));
	}
	if (m.type == MSG_ERROR) {
		*err = m.error;
		r = -err->code;
	} else if (m.type != MSG_OK) {
		s->aborted = true;
		r = cr_err_set(err, CR_ERR_INPUT, ECANCELED, "hook %s: aborted",
			       msg_hook_name(stage));
	}
	msg_free(&m);
	return r;
}

int source_hook(struct source *s, enum msg_hook stage, bool undo, struct cr_err *err)
{
	struct msg m = msg_of(MSG_RUN_HOOK);

	if (!(s->rq->hooks & 1u << stage))
		return 0;
	m.run_hook = (struct msg_run_hook){stage, s->rq->pid, undo};
	int r = link_send(s->client, &m, err);
	return r ? cr_err_ctx(err, "hook %s", msg_hook_name(stage)) : wait_answer(s, stage, err);
}

void source_hook_late(struct source *s, enum msg_hook stage, bool undo)
{
	struct cr_err err = {0};

	/* who has gone away is not asked any more */
	if (!s->aborted && source_hook(s, stage, undo, &err))
		source_event(s, "warning", err.msg);
}
