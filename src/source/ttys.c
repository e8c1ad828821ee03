/* What waits in the terminals of the stopped tasks, and who sees to it if this process dies. */
#include "source/source.h"

#include "base/fault.h"
#include "resource/resource.h"
#include "wire/tree_codec.h"

static bool any_taken(const struct tree *t)
{
	for (size_t i = 0; i < t->n_ttys; i++)
		if (t->ttys[i].input_len || t->ttys[i].n_lines || t->ttys[i].output_len)
			return true;
	return false;
}

/* Beside the journal: whoever settles it puts that back. */
static int keep(struct source *s, const struct tree *t, struct cr_err *err)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	size_t len;
	int r = tree_encode(t, &bytes, &len, err);

	return r ? r : journal_keep(s->env->state_dir, &s->journal, bytes, len, err);
}

int source_drain_ttys(struct source *s, struct tree *t, struct cr_err *err)
{
	if (!t->n_ttys)
		return 0;
	/* should this process die, none may read before that is back */
	int r = source_hold(s, err);
	if (r)
		return r;
	s->ttys_drained = true;
	r = ttys_drain(t, err);
	if (!r && any_taken(t))
		r = keep(s, t, err);
	fault_point("source-drained");
	if (!r && (s->image || s->rq->opts.leave_running)) /* these tasks keep it */
		r = source_put_back_ttys(s, t, err);
	return r ? cr_err_ctx(err, "what waits in terminals") : 0;
}

int source_put_back_ttys(struct source *s, const struct tree *t, struct cr_err *err)
{
	if (!s->ttys_drained)
		return 0;
	s->ttys_drained = false;
	int r = ttys_put_back(t, err);
	if (!r)
		journal_forget_kept(s->env->state_dir, &s->journal);
	return r;
}
