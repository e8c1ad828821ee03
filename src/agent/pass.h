/* Hand a peer's connection to the process that has its migration: over a unix socket, with the
 * token that the peer showed. unix(7), SCM_RIGHTS. */
#pragma once
#include "base/err.h"
#include "wire/link.h"

int pass_listen(const char *path, struct cr_err *err) must_check; /* returns the descriptor */
/* -ENOENT, -ECONNREFUSED: nobody has that migration. fd stays the caller's. */
int pass_send(const char *path, int fd, const struct mig_token *token,
	      struct cr_err *err) must_check;
/* NULL with *err: the token was wrong, or nobody was there after all. */
struct link *pass_accept(int listener, const struct mig_token *want, struct cr_err *err);
