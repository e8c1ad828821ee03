/* What the source does to the network: addresses that move along, and the sockets whose state is
 * taken while nothing reaches them. */
#include "source/source.h"

#include <string.h>
#include "base/fault.h"
#include "kernel/netdev.h"
#include "resource/resource.h"

enum tcp_mode source_tcp_mode(const struct source *s)
{
	if (s->image) /* who knows when that will be read */
		return TCP_MODE_CLOSE;
	switch (s->rq->opts.tcp) {
	case MSG_TCP_ESTABLISHED:
		return TCP_MODE_ESTABLISHED;
	case MSG_TCP_CLOSE:
		return TCP_MODE_CLOSE;
	case MSG_TCP_REFUSE:
		return TCP_MODE_REFUSE;
	default:
		return TCP_MODE_AUTO;
	}
}

int source_list_addresses(struct source *s, struct tree *t, struct cr_err *err)
{
	const struct msg_opts *o = &s->rq->opts;

	t->moved = arena_array(t->arena, struct devaddr, o->n_move);
	if (!t->moved)
		return cr_err_oom(err);
	for (uint32_t i = 0; i < o->n_move; i++) {
		int r = devaddr_parse(o->move[i], &t->moved[i], err);

		if (r)
			return r;
		t->n_moved++;
	}
	return 0;
}

static int check_address(struct source *s, const struct devaddr *a, struct cr_err *err)
{
	struct devaddr here;
	char text[DEVADDR_TEXT];
	bool has, burdened = false;
	int r = netdev_has_address(a, &has, &here, err);

	devaddr_text(a, text);
	if (!r && has)
		r = netdev_is_burdened(&here, &burdened, err);
	if (r == -ENODEV || (!r && !has)) {
		refuse(&s->notes, 0, text, "this host does not have that address on %s", a->dev);
		return 0;
	}
	if (r)
		return r;
	if (burdened)
		refuse(&s->notes, 0, text,
		       "other addresses on %s would go with it, being secondary to it: set "
		       "net.ipv4.conf.%s.promote_secondaries",
		       a->dev, a->dev);
	struct devaddr *slot = vec_push(&s->journal.moved);
	if (!slot)
		return cr_err_oom(err);
	*slot = here; /* as it is put back, should it come to that */
	return 0;
}

int source_check_addresses(struct source *s, struct cr_err *err)
{
	int r = 0;

	for (uint32_t i = 0; i < s->rq->opts.n_move && !r; i++) {
		struct devaddr a;

		r = devaddr_parse(s->rq->opts.move[i], &a, err);
		if (!r)
			r = check_address(s, &a, err);
	}
	return r;
}

static bool has_connections(const struct tree *t)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_TCP_CONN)
			return true;
	return t->n_moved > 0;
}

int source_hold(struct source *s, struct cr_err *err)
{
	if (s->held)
		return 0;
	/* the journal first: a SIGCONT that nobody needs is better than a SIGSTOP that stays */
	int r = source_journal(s, JOURNAL_PREPARED, err);
	if (r)
		return r;
	s->held = true;
	return seizure_hold(s->seizure, err);
}

int source_lock_network(struct source *s, struct tree *t, struct cr_err *err)
{
	if (!has_connections(t))
		return 0;
	/* should this process die with sockets out of the network, no task may find them so */
	int r = source_hold(s, err);
	if (r)
		return r;
	s->net_lock = net_lock_new();
	if (!s->net_lock)
		return cr_err_oom(err);
	r = net_lock_take(s->net_lock, t, t->n_moved || source_tcp_mode(s) == TCP_MODE_ESTABLISHED,
			  err);
	fault_point("source-locked");
	return r;
}

int source_verify_network(struct source *s, struct cr_err *err)
{
	return s->net_lock ? net_lock_verify(s->net_lock, err) : 0;
}

int source_unlock_network(struct source *s, struct cr_err *err)
{
	int r = s->net_lock ? net_lock_undo(s->net_lock, err) : 0;

	net_lock_free(s->net_lock);
	s->net_lock = NULL;
	return r;
}

/* What cannot be removed is said: the destination will have it, too, and neighbours believe who
 * spoke last. */
void source_leave_addresses(struct source *s)
{
	vec_foreach (a, &s->journal.moved) {
		struct cr_err err = {0};

		if (netdev_del_address(a, &err))
			source_event(s, "warning", err.msg);
	}
}
