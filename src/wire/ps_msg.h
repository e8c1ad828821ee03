/* Messages between the destination agent and the page-server: one per packet of a SOCK_SEQPACKET
 * unix socket, of fixed size each way, a descriptor attached where the request takes one. Layout in
 * proto/PAGES.md. */
#pragma once
#include "wire/ps_control.h"

enum { PS_REQUEST_BYTES = 80, PS_REPLY_BYTES = 656, PS_REQUEST_TYPE_AT = 4 };

enum ps_request_type {
	PS_SESSION = 1,        /* id, token */
	PS_TARGET_PROCESS = 2, /* index, pid, forbidden range; descriptor: /proc/PID/mem */
	PS_TARGET_OBJECT = 3,  /* index; descriptor: the object */
	PS_TARGET_DEL = 4,     /* index */
	PS_STATS = 5,
	PS_TARGET_UFFD = 6, /* index; descriptor: a userfaultfd of the process */
	PS_CLOSE_UFFDS = 7,
	PS_HURRY = 8,
};

struct ps_request {
	uint8_t type;
	uint32_t index;
	int32_t pid;
	uint64_t forbid_start, forbid_end;
	uint8_t id[PAGE_ID_BYTES];
	uint8_t token[PAGE_TOKEN_BYTES];
};

struct ps_reply {
	uint8_t type;                /* of the request */
	struct cr_err err;           /* kind CR_ERR_NONE: it worked */
	struct ps_session_info info; /* SESSION */
	struct ps_stats stats;       /* STATS */
};

void ps_request_encode(uint8_t out[PS_REQUEST_BYTES], const struct ps_request *rq);
int ps_request_decode(struct ps_request *ret, const void *p, size_t len,
		      struct cr_err *err) must_check;
void ps_reply_encode(uint8_t out[PS_REPLY_BYTES], const struct ps_reply *rp);
int ps_reply_decode(struct ps_reply *ret, const void *p, size_t len, struct cr_err *err) must_check;
