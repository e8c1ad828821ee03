/* The agent's half of serving pages: connects to the destination, for as long as it takes. */
#pragma once
#include "source/serve_child.h"

struct serve_peer { /* the destination's agent */
	const char *address;
	struct mig_id id;
	struct mig_token token;
	const char *host;    /* what we are called */
	uint32_t streams;    /* connections to push on; 0: one */
	uint32_t timeout_ms; /* how long it is waited for once it is gone */
};

/* By a page-server: child, if it was started ahead; it is ended at the end. Where none can be had
 * we serve by ourselves. 0: the destination has everything. -ETIMEDOUT: it was away for too long.
 * The memories of sv are opened here; all that it needs is the tasks. */
int serve_run(struct serve *sv, const struct serve_peer *peer, struct serve_child *child,
	      struct cr_err *err) must_check;
