/* Between an agent and the page-server that it starts while pages are fetched: one message per
 * packet of a SOCK_SEQPACKET socketpair, descriptors attached. Layout in proto/PAGES.md.
 *
 *   agent -> page-server   TASKS…, HAS…, RECENT…, LIMIT; then SERVE each time that it has connected
 *   page-server -> agent   READY once it has given up all that it does not need; LEFT now and then,
 *                          and ENDED for each SERVE
 *
 * That was at the source, where it serves the pages of stopped tasks. At the destination, where the
 * fetcher speaks for the agent:
 *
 *   agent -> page-server   FEED for each connection on which pages are pushed
 *   page-server -> agent   READY
 */
#pragma once
#include "wire/msg.h"

enum {
	PSS_TASKS_MAX = 128,   /* in one message: SCM_MAX_FD is 253 */
	PSS_RANGES_MAX = 2048, /* in one message */
	PSS_BYTES_MAX = 16 + 24 * PSS_RANGES_MAX,
};

enum pss_type {
	PSS_READY = 1,
	PSS_TASKS, /* n pids, or what stands for shared memory (serve.h); descriptors: /proc/PID/mem
		    * of each, or what that says */
	PSS_RECENT, /* n ranges, after those before */
	PSS_LIMIT,  /* value: bytes/s of what is pushed; 0: none */
	PSS_SERVE,  /* descriptors: the connection for requests, and those to push on */
	PSS_LEFT,   /* value: pages that are still to be sent */
	PSS_ENDED,  /* kind CR_ERR_NONE: the destination has all */
	PSS_FEED,   /* descriptors: a connection on which pages are pushed, and the memory of a
		     * lazy_ring to leave them in */
	PSS_HAS,    /* n ranges, after those before: all that can be missing, serve.h */
};

struct serve_range {
	pid_t pid;
	uint64_t start, end;
};

struct pss_msg {
	enum pss_type type;
	uint64_t value;
	const struct serve_range *ranges; /* TASKS: start and end are 0 */
	size_t n;
	struct cr_err err;          /* ENDED: kind, code and message */
	struct msg_postcopy result; /* ENDED */
};

/* fds: to be passed; they stay the caller's. Waits for room. */
int pss_send(int socket, const struct pss_msg *m, const int *fds, size_t n_fds,
	     struct cr_err *err) must_check;

struct pss_in {
	struct pss_msg m;
	int fds[PSS_TASKS_MAX]; /* whose number fits the message */
	size_t n_fds;
	struct serve_range ranges[PSS_RANGES_MAX];
	uint8_t bytes[PSS_BYTES_MAX];
};

/* Waits for one. -EPIPE: the other end is gone. The descriptors that came are the caller's,
 * pss_close(), also if this failed. */
int pss_recv(int socket, struct pss_in *in, struct cr_err *err) must_check;
void pss_close(struct pss_in *in);
