/* After the source's link broke: ask both agents anew what became of the migration. */
#pragma once
#include "wire/msg.h"

struct party {
	const char *name; /* as the user called it */
	const char *address;
};

enum { SETTLE_MS = 10000 };

/* Asks until one of them knows, for at most timeout_ms. MIGRATED, FAILED, or IN_DOUBT. */
enum msg_outcome settle_ask(const struct mig_id *id, const struct party *source,
			    const struct party *dest, int timeout_ms);

/* What the two states together mean; 0: nothing yet. An agent that cannot be asked: state 0. */
enum msg_outcome settle_decide(enum msg_peer_state source, enum msg_peer_state dest);
