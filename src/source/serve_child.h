/* The page-server at the source: a process of its own, which the agent starts and gives what it
 * needs. It has no privilege, and is all that parses what the destination says while pages are
 * fetched. It ends with us; one that ends earlier is replaced by another. */
#pragma once
#include "source/serve.h"
#include "wire/ps_child.h"

struct serve_child {
	struct ps_child ps;
	bool told; /* it is ready, and knows the tasks */
};

/* Does nothing if there is one. Returns at once: what it takes to be ready, it does beside us. */
int serve_child_start(struct serve_child *c, struct cr_err *err) must_check;
/* Waits until it is ready; of sv it is told the tasks, their memories, the limit and what is
 * recent, once. If this fails there is none any more. */
int serve_child_tell(struct serve_child *c, const struct serve *sv, struct cr_err *err) must_check;
/* As serve_on(), by the child. -EPROTO: the destination spoke nonsense. If this fails there is none
 * any more, unless it was just that the connections broke. */
int serve_child_serve(struct serve_child *c, struct serve *sv, struct serve_links *links,
		      struct cr_err *err) must_check;
void serve_child_stop(struct serve_child *c);
