/* A connection to an agent. */
#pragma once
#include "migrate/hosts.h"
#include "wire/link.h"

enum { AGENT_TIMEOUT_MS = 10000 };

/* Connects to an address of hosts_find() and says HELLO. id and token NULL: only to ask (role
 * QUERY). Errors: IO, PEER; they name the host. */
int agent_connect(struct link **ret, const char *host, const char *address, const struct mig_id *id,
		  const struct mig_token *token, int timeout_ms, struct cr_err *err) must_check;
