#include "migrate/settle.h"

#include <poll.h>
#include <string.h>

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

/* An agent that has settled a migration forgets it, and then says UNKNOWN like one that never heard
 * of it: what it said before tells which. A source that had not committed when its link broke lets
 * its tasks go on; one that had never will. Before the switch-over was announced nothing can have
 * been committed. */
enum msg_outcome settle_decide(const struct settle_view *before, enum msg_peer_state source,
			       enum msg_peer_state dest)
{
	bool source_forgot = source == MSG_STATE_UNKNOWN, dest_forgot = dest == MSG_STATE_UNKNOWN;

	if (source == MSG_STATE_RUNNING || dest == MSG_STATE_RUNNING)
		return MSG_OUTCOME_MIGRATED;
	if (source == MSG_STATE_ABORTED || dest == MSG_STATE_ABORTED)
		return MSG_OUTCOME_FAILED;
	if ((source_forgot && before->source == MSG_STATE_COMMITTED) ||
	    (dest_forgot && before->dest == MSG_STATE_COMMITTED))
		return MSG_OUTCOME_MIGRATED;
	if (source == MSG_STATE_COMMITTED || dest == MSG_STATE_COMMITTED)
		return 0; /* it will run any moment */
	if (source_forgot && before->source)
		return MSG_OUTCOME_FAILED;
	if (!before->switching && (source_forgot || dest_forgot))
		return MSG_OUTCOME_FAILED;
	return 0;
}

static void remember(enum msg_peer_state *last, enum msg_peer_state now)
{
	if (now && now != MSG_STATE_UNKNOWN)
		*last = now;
}

enum msg_outcome settle_ask(const struct mig_id *id, const struct party *source,
			    const struct party *dest, bool switching, int timeout_ms)
{
	uint64_t deadline = now_us() + (uint64_t)timeout_ms * 1000;
	struct settle_view view = {.switching = switching};

	do {
		enum msg_peer_state s = ask(id, source), d = ask(id, dest);
		enum msg_outcome o = settle_decide(&view, s, d);

		if (o)
			return o;
		remember(&view.source, s);
		remember(&view.dest, d);
		poll(NULL, 0, PAUSE_MS);
	} while (now_us() < deadline);
	return MSG_OUTCOME_IN_DOUBT;
}

const struct msg_status *settle_fetched(const struct mig_id *id, const struct party *dest,
					struct msg *reply)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_STATUS);
	struct cr_err err = {0};

	if (agent_connect(&l, dest->name, dest->address, NULL, NULL, ASK_TIMEOUT_MS, &err) < 0 ||
	    link_call(l, &m, MSG_STATUS_LIST, ASK_TIMEOUT_MS, reply, &err) < 0)
		return NULL;
	for (size_t i = 0; i < reply->status_list.n; i++) {
		const struct msg_status *s = &reply->status_list.v[i];

		if (mig_id_equal(&s->id, id) && !strcmp(s->role, "destination") && s->postcopying)
			return s;
	}
	msg_free(reply);
	return NULL;
}
