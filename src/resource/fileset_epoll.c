/* What epoll instances watch. An entry belongs to a description and the number under which it was
 * added, and a signalfd is watched for the signals of whoever added it: so entries are added in a
 * task, under the right number.
 *
 * Which task: the first in the tree that has the instance and, under that number, the description.
 * If none has (the number was closed or reused, the description lives on elsewhere), the first that
 * has the instance takes the description in under that number for a moment.
 *
 * An instance that changed since it was built is mended: entries of descriptions that are gone went
 * with them; new ones are added, changed ones modified. What cannot be mended so is made anew. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

static int cmp_item(const void *va, const void *vb)
{
	const struct epoll_item *a = va, *b = vb;

	if (a->tfd != b->tfd)
		return a->tfd < b->tfd ? -1 : 1;
	return (a->serial > b->serial) - (a->serial < b->serial);
}

/* ---- plan ---- */

static int wanted_items(const struct fileset *fs, const struct tree *t, uint32_t i,
			struct epoll_items *out, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	for (size_t k = 0; k < f->n_targets; k++) {
		const struct epoll_target *e = &f->targets[k];
		struct epoll_item *it = vec_push(&out->list);

		if (!it)
			return cr_err_oom(err);
		if (e->file >= fs->n_held)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "epoll entries make no sense");
		*it = (struct epoll_item){e->fd, fs->held[e->file].serial, e->events, e->data,
					  ITEM_ADD};
	}
	if (out->list.n)
		qsort(out->list.v, out->list.n, sizeof(*out->list.v), cmp_item);
	return 0;
}

static bool has_under(const struct fileset *fs, const struct process *p, int tfd, uint32_t serial)
{
	const struct fd_entry *e = process_fd(p, tfd);

	return e && fs->held[e->file].serial == serial;
}

/* Some process can add or modify the entry under its own number. */
static bool anybody_has(const struct fileset *fs, const struct tree *t, uint32_t epoll,
			const struct epoll_item *it)
{
	for (size_t i = 0; i < t->n_procs; i++)
		if (has_under(fs, &t->procs[i], it->tfd, it->serial) &&
		    process_fd_of(&t->procs[i], epoll) >= 0)
			return true;
	return false;
}

/* The entry that is in the kernel becomes the one that is wanted, without making the instance anew?
 */
static bool can_modify(const struct fileset *fs, const struct tree *t, uint32_t epoll,
		       const struct epoll_item *was, const struct epoll_item *want)
{
	return !((was->events | want->events) & EPOLLEXCLUSIVE) && /* EINVAL, epoll_ctl(2) */
	       !epoll_is_disarmed(want->events) && anybody_has(fs, t, epoll, want);
}

/* Some entry in the kernel can report something. */
static bool any_armed(const struct epoll_items *items)
{
	for (size_t i = 0; i < items->list.n; i++)
		if (items->list.v[i].todo != ITEM_ADD &&
		    !epoll_is_disarmed(items->list.v[i].events))
			return true;
	return false;
}

/* Sets what is to do in want. false: cannot be mended. alive[serial]: description is there. */
static bool mend(const struct fileset *fs, const struct tree *t, uint32_t epoll,
		 const struct epoll_items *was, struct epoll_items *want, const bool *alive)
{
	for (size_t i = 0; i < was->list.n; i++) {
		const struct epoll_item *o = &was->list.v[i];
		struct epoll_item *n =
		    want->list.n ? bsearch(o, want->list.v, want->list.n, sizeof(*o), cmp_item)
				 : NULL;

		if (o->todo == ITEM_ADD)
			continue; /* never came to be */
		if (!n && alive[o->serial])
			return false; /* was removed, and its description is still there */
		if (!n)
			continue;
		if (n->events == o->events && n->data == o->data)
			n->todo = o->todo;
		else if (can_modify(fs, t, epoll, o, n))
			n->todo = ITEM_MOD;
		else
			return false;
	}
	for (size_t i = 0; i < want->list.n; i++)
		if (want->list.v[i].todo == ITEM_ADD && epoll_is_disarmed(want->list.v[i].events) &&
		    any_armed(was))
			return false; /* has to be there before the others */
	return true;
}

static int renew(struct fileset *fs, const struct tree *t, uint32_t i, bool *alive,
		 struct cr_err *err)
{
	struct held *h = &fs->held[i];

	alive[h->serial] = false;
	close_fdp(&h->fd);
	h->serial = 0;
	h->items.list.n = 0;
	int r = file_ops_of(FILE_EPOLL)->build(fs, t, i, err);
	h->serial = ++fs->next_serial;
	return r;
}

/* Returns 1 if the instance was made anew: others may watch it. */
static int plan_one(struct fileset *fs, const struct tree *t, uint32_t i, bool *alive,
		    struct cr_err *err)
{
	struct epoll_items want = {0};
	struct held *h = &fs->held[i];
	bool mended = true;
	int r = wanted_items(fs, t, i, &want, err);

	if (!r)
		mended = mend(fs, t, i, &h->items, &want, alive);
	if (!r && !mended)
		r = renew(fs, t, i, alive, err);
	if (r < 0) {
		vec_done(&want.list);
		return r;
	}
	for (size_t k = 0; !mended && k < want.list.n; k++)
		want.list.v[k].todo = ITEM_ADD;
	vec_done(&h->items.list);
	h->items = want;
	return !mended;
}

int fileset_epoll_plan(struct fileset *fs, const struct tree *t, struct cr_err *err)
{
	/* a new instance gets a new serial, at most one for each instance and each level of nesting
	 */
	enum { NESTS_MAX = 5 }; /* epoll(7): EP_MAX_NESTS and one */
	size_t n_epolls = 0;
	int r = 0;

	for (size_t i = 0; i < t->n_files; i++)
		n_epolls += t->files[i].kind == FILE_EPOLL;
	if (!n_epolls)
		return 0;
	_cleanup_free_ bool *alive =
	    calloc(fs->next_serial + (n_epolls + 1) * (NESTS_MAX + 1) + 1, sizeof(*alive));
	if (!alive)
		return cr_err_oom(err);
	for (size_t i = 0; i < fs->n_held; i++)
		alive[fs->held[i].serial] = true;
	for (int again = 1, round = 0; again && round <= NESTS_MAX; round++) {
		again = 0;
		for (uint32_t i = 0; i < t->n_files; i++) {
			r = t->files[i].kind == FILE_EPOLL ? plan_one(fs, t, i, alive, err) : 0;
			if (r < 0)
				return r;
			again |= r;
		}
	}
	return 0;
}

/* ---- install ---- */

static struct held *held_of_serial(struct fileset *fs, const struct tree *t, uint32_t epoll,
				   uint32_t serial)
{
	const struct file *f = &t->files[epoll];

	for (size_t i = 0; i < f->n_targets; i++)
		if (fs->held[f->targets[i].file].serial == serial)
			return &fs->held[f->targets[i].file];
	return NULL;
}

/* Something can be read from it or written to it. A signalfd: depends on who asks. */
static bool is_ready(const struct held *target)
{
	struct pollfd pfd = {.fd = target->fd, .events = POLLIN | POLLOUT};

	return target->id.kind != FILE_SIGNALFD && poll(&pfd, 1, 0) > 0;
}

/* A one-shot entry that has fired listens for nothing; one that is added listens for errors and
 * hang-ups at least, epoll_ctl(2). So it is added listening for all, fires, and is taken from the
 * instance. Kinds that cannot be made ready for that have no errors nor hang-ups either. */
static int queue_disarmed(struct shell_fds *sh, struct held *target, int efd, int tfd,
			  const struct epoll_item *it, struct cr_err *err)
{
	struct epoll_event ev = {.events = it->events, .data.u64 = it->data};
	const struct file_ops *ops = file_ops_of(target->id.kind);
	bool ready = is_ready(target), touched = false;
	uint64_t va;

	if (!ready && ops->make_ready)
		ready = touched = ops->make_ready(target, true);
	if (ready)
		ev.events |= EPOLLIN | EPOLLOUT;
	int r = rtask_put(sh->rt, &ev, sizeof(ev), &va, err);
	if (r < 0)
		return r;
	rqueue(sh->rt, "epoll_ctl", SYS_epoll_ctl, efd, EPOLL_CTL_ADD, tfd, va);
	if (ready)
		rqueue(sh->rt, NULL, SYS_epoll_pwait, efd, va, 1, 0, 0, 8);
	if (touched) {
		r = rtask_run(sh->rt, err);
		ops->make_ready(target, false);
	}
	return r;
}

static int queue_ctl(struct shell_fds *sh, uint32_t epoll, int efd, int tfd,
		     const struct epoll_item *it, struct cr_err *err)
{
	struct epoll_event ev = {.events = it->events, .data.u64 = it->data};
	struct held *target = held_of_serial(sh->fs, sh->t, epoll, it->serial);
	uint64_t va;

	/* Not where it could take the event of an entry that another task has added already: then
	 * it stays armed for errors and hang-ups. */
	if (epoll_is_disarmed(it->events) && target && !any_armed(&sh->fs->held[epoll].items))
		return queue_disarmed(sh, target, efd, tfd, it, err);
	int r = rtask_put(sh->rt, &ev, sizeof(ev), &va, err);
	if (r < 0)
		return r;
	rqueue(sh->rt, "epoll_ctl", SYS_epoll_ctl, efd,
	       it->todo == ITEM_ADD ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, tfd, va);
	return 0;
}

/* Nobody has the description under that number: put it there, add, and put back what was there. */
static int queue_stale(struct shell_fds *sh, uint32_t epoll, int efd, const struct epoll_item *it,
		       struct cr_err *err)
{
	const struct fd_entry *there = process_fd(sh->p, it->tfd);
	const struct held *target = held_of_serial(sh->fs, sh->t, epoll, it->serial);
	int aside = -1;

	if (it->tfd == efd || it->tfd == sh->slot || !target)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EBUSY,
				  "epoll entry for descriptor %d, which is another one now",
				  it->tfd);
	if (there) {
		aside = shell_fetch(sh, sh->fs->held[there->file].fd);
		shell_use(sh, aside, true);
	}
	int got = shell_fetch(sh, target->fd);
	if (got != it->tfd) {
		rqueue(sh->rt, "dup3", SYS_dup3, got, it->tfd, O_CLOEXEC);
		rqueue(sh->rt, "close", SYS_close, got);
	}
	int r = queue_ctl(sh, epoll, efd, it->tfd, it, err);
	if (there) {
		rqueue(sh->rt, "dup3", SYS_dup3, aside, it->tfd, there->cloexec ? O_CLOEXEC : 0);
		rqueue(sh->rt, "close", SYS_close, aside);
		shell_use(sh, aside, false);
	} else {
		rqueue(sh->rt, "close", SYS_close, it->tfd);
	}
	return r;
}

static bool is_first_holder(const struct shell_fds *sh, uint32_t epoll)
{
	for (const struct process *p = sh->t->procs; p < sh->p; p++)
		if (process_fd_of(p, epoll) >= 0)
			return false;
	return true;
}

static int install_items(struct shell_fds *sh, uint32_t epoll, int efd, bool disarmed,
			 struct cr_err *err)
{
	bool first = is_first_holder(sh, epoll);
	int r = 0;

	vec_foreach (it, &sh->fs->held[epoll].items.list) {
		if (it->todo == ITEM_DONE || epoll_is_disarmed(it->events) != disarmed)
			continue;
		if (has_under(sh->fs, sh->p, it->tfd, it->serial))
			r = queue_ctl(sh, epoll, efd, it->tfd, it, err);
		else if (first && !anybody_has(sh->fs, sh->t, epoll, it))
			r = queue_stale(sh, epoll, efd, it, err);
		else
			continue;
		if (r < 0)
			return r;
		it->todo = ITEM_DONE;
	}
	return 0;
}

int fileset_epoll_install(struct shell_fds *sh, struct cr_err *err)
{
	for (size_t i = 0; i < sh->p->n_fds; i++) {
		const struct fd_entry *e = &sh->p->fds[i];

		if (sh->t->files[e->file].kind != FILE_EPOLL ||
		    process_fd_of(sh->p, e->file) != e->fd)
			continue;
		int r = install_items(sh, e->file, e->fd, true, err);
		if (!r)
			r = install_items(sh, e->file, e->fd, false, err);
		if (r < 0)
			return r;
	}
	return 0;
}
