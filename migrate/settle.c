#include "migrate/settle.h"

#include <poll.h>

#include "base/clock.h"
#include "migrate/agent.h"

enum { ASK_TIMEOUT_MS = 2000, PAUSE_MS = 200 };

/* 0 if it does not answer. */
static enum msg_peer_state ask(const struct mig_id *id, const struct party *p)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = {.type = MSG_QUERY, .query.id = *id}, reply;
	struct cr_err err = {0};

	if (agent_connect(&l, p->name, p->address, NULL, NULL, ASK_TIMEOUT_MS, &err) < 0)
		return 0;
	if (link_call(l, &m, MSG_STATE, ASK_TIMEOUT_MS, &reply, &err) < 0)
		return 0;
	enum msg_peer_state s = reply.state.state;
	msg_free(&reply);
	return s;
}

/* The destination decides what runs there; what it has undone or never prepared it will never run,
 * and the source lets its tasks go on then. A source that was restarted and knows nothing never got
 * as far as PREPARED, since that is journalled. */
enum msg_outcome settle_decide(enum msg_peer_state source, enum msg_peer_state dest)
{
	if (dest == MSG_STATE_RUNNING || source == MSG_STATE_RUNNING)
		return MSG_OUTCOME_MIGRATED;
	if (dest == MSG_STATE_ABORTED || source == MSG_STATE_ABORTED)
		return MSG_OUTCOME_FAILED;
	if (dest == MSG_STATE_COMMITTED || source == MSG_STATE_COMMITTED)
		return 0; /* it will run any moment */
	if (dest == MSG_STATE_UNKNOWN || (source == MSG_STATE_UNKNOWN && dest != 0))
		return MSG_OUTCOME_FAILED;
	return 0;
}

enum msg_outcome settle_ask(const struct mig_id *id, const struct party *source,
			    const struct party *dest, int timeout_ms)
{
	uint64_t deadline = now_us() + (uint64_t)timeout_ms * 1000;

	do {
		enum msg_outcome o = settle_decide(ask(id, source), ask(id, dest));

		if (o)
			return o;
		poll(NULL, 0, PAUSE_MS);
	} while (now_us() < deadline);
	return MSG_OUTCOME_IN_DOUBT;
}
