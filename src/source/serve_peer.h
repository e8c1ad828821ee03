/* The agent's half of serving pages: connects to the destination, for as long as it takes. */
#pragma once
#include "source/serve.h"

struct serve_peer { /* the destination's agent */
	const char *address;
	struct mig_id id;
	struct mig_token token;
	const char *host;    /* what we are called */
	uint32_t streams;    /* connections to push on; 0: one */
	uint32_t timeout_ms; /* how long it is waited for once it is gone */
};

/* 0: the destination has everything. -ETIMEDOUT: it was away for too long. Of sv the memories are
 * opened here; needs nothing but the tasks. */
int serve_run(struct serve *sv, const struct serve_peer *peer, struct cr_err *err) must_check;
