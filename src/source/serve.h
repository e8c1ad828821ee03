/* Pages out of stopped tasks: what the destination asks for at once, everything else in between. */
#pragma once
#include "base/err.h"
#include "wire/msg.h"

struct serve_range {
	pid_t pid;
	uint64_t start, end;
};

struct serve {
	const char *peer_address; /* of the destination's agent */
	struct mig_id id;
	struct mig_token token;
	const char *host;
	const pid_t *pids; /* those whose memory may be asked for; stopped */
	size_t n_pids;
	uint64_t max_bandwidth; /* bytes/s of what is pushed; 0: no limit */
	uint32_t streams;       /* connections to push on; 0: one */
	const struct serve_range
	    *recent; /* what was written last, the latest first: pushed first */
	size_t n_recent;
	uint32_t timeout_ms; /* how long a destination that is gone is waited for */
	/* NULL, or told about once a second */
	void (*progress)(void *arg, uint64_t left);
	void *arg;
	/* NULL: the tasks' own memory. Else where the pages are; returns how many of n it has read
	 */
	uint32_t (*read)(void *arg, pid_t pid, uint64_t va, uint32_t n, uint8_t *buf);
	struct msg_postcopy result; /* as the destination has it */
};

/* 0: the destination has everything. -ETIMEDOUT: it was away for too long. Needs nothing but the
 * tasks: what is missing, the destination says. */
int serve_run(struct serve *sv, struct cr_err *err) must_check;
/* The same on connections that are there, until they break: of what sv says, the pids, the limit
 * and read. Both become ours. */
int serve_on(struct serve *sv, int urgent, int bulk, struct cr_err *err) must_check;
