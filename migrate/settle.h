/* After the source's link broke: ask both agents anew what became of the migration. */
#pragma once
#include <stdbool.h>
#include "wire/msg.h"

struct party {
	const char *name; /* as the user called it */
	const char *address;
};

enum { SETTLE_MS = 10000 };

/* What is known of a migration. An agent that does not answer: state 0. */
struct settle_view {
	bool switching; /* the source had announced the switch-over: it may have committed */
	/* what each agent said last, but for silence and UNKNOWN: it forgets what it has settled */
	enum msg_peer_state source, dest;
};

/* Asks until they tell, for at most timeout_ms. MIGRATED, FAILED, or IN_DOUBT. */
enum msg_outcome settle_ask(const struct mig_id *id, const struct party *source,
			    const struct party *dest, bool switching, int timeout_ms);

/* What the destination tells of the pages that it fetched. NULL: nothing; else it lives in reply,
 * which the caller frees. */
const struct msg_status *settle_fetched(const struct mig_id *id, const struct party *dest,
					struct msg *reply);

/* What the two answers mean after what was known before; 0: nothing yet. */
enum msg_outcome settle_decide(const struct settle_view *before, enum msg_peer_state source,
			       enum msg_peer_state dest);
