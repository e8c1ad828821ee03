/* What may be missing of stopped tasks: bounds for what the destination says (serve.h, has). */
#pragma once
#include "source/serve.h"

struct serve_has {
	VEC(struct serve_range) list;
};

/* Has the ith task ended? Its pid may be another's. */
bool serve_is_gone(const struct serve *sv, size_t i);
/* All private mappings of sv->pids (of one that has ended, whatever it may have had), and all that
 * there is of sv->files, in whole chunks. Put where sv says; ret's until serve_has_done(). */
int serve_has_find(struct serve_has *ret, struct serve *sv, struct cr_err *err) must_check;
void serve_has_done(struct serve_has *h); /* of zeros, or half made: too */
