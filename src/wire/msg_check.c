/* What must hold of a message whoever made it: checked before it is sent and after it was received.
 */
#include "wire/msg_priv.h"

#include <limits.h>
#include <string.h>

enum {
	PID_MAX_LIMIT = 4 << 20, /* proc_sys_kernel(5), pid_max */
	STREAMS_MAX = 16,
	PACKET_BYTES_MAX = 65535,
	ROUNDS_MAX = 1000000,
	ERRNO_MAX = 4095,
};

static int bad(struct cr_err *err, const struct msg *m, const char *what)
{
	return cr_err_set(err, CR_ERR_PEER, EPROTO, "%s: %s is missing or out of range",
			  msg_type_name(m->type), what);
}

#define CHECK(cond, what)                                                                          \
	do {                                                                                       \
		if (!(cond))                                                                       \
			return bad(err, m, what);                                                  \
	} while (0)

static bool in_range(unsigned int v, unsigned int lo, unsigned int hi)
{
	return v >= lo && v <= hi;
}

static bool pid_ok(pid_t pid)
{
	return pid > 0 && pid <= PID_MAX_LIMIT;
}

static bool pid_or_none(pid_t pid)
{
	return pid == 0 || pid_ok(pid);
}

/* Of a process, or of an object: one of both. */
static bool owner_ok(pid_t pid, uint32_t object)
{
	return pid ? pid_ok(pid) && object == UINT32_MAX : object != UINT32_MAX;
}

static bool given(const char *s)
{
	return s && *s;
}

static bool token_given(const struct mig_token *t)
{
	static const struct mig_token none;

	return !mig_token_equal(t, &none);
}

static int check_opts(const struct msg *m, const struct msg_opts *o, struct cr_err *err)
{
	CHECK(o->downtime_limit_us > 0, "downtime limit");
	CHECK(in_range(o->max_rounds, 1, ROUNDS_MAX), "number of rounds");
	CHECK(in_range(o->streams, 1, STREAMS_MAX), "number of streams");
	CHECK(in_range(o->compress, 0, MSG_COMPRESS_NONE), "compression");
	CHECK(in_range(o->verify, 0, MSG_VERIFY_FULL), "verification");
	CHECK(in_range(o->launch, 0, MSG_LAUNCH_SIGRETURN), "launch");
	CHECK(in_range(o->mode, 0, MSG_MODE_POSTCOPY), "mode");
	CHECK(in_range(o->no_convergence, 0, MSG_NO_CONVERGENCE_ABORT), "on-no-convergence");
	return 0;
}

static int check_hello(const struct msg *m, struct cr_err *err)
{
	const struct msg_hello *h = &m->hello;
	bool named = !mig_id_is_zero(&h->id) && token_given(&h->token);

	if (!h->version || h->version + 1 < MSG_VERSION || h->version > MSG_VERSION + 1)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "the other side speaks version %u of the protocol, this one %d: "
				  "at most one apart can talk",
				  h->version, MSG_VERSION);
	CHECK(in_range(h->role, MSG_ROLE_MIGRATE, MSG_ROLE_AGENT), "role");
	CHECK(named || h->role == MSG_ROLE_QUERY || h->role == MSG_ROLE_AGENT, "id or token");
	return 0;
}

static int check_error(const struct msg *m, const struct cr_err *e, struct cr_err *err)
{
	CHECK(in_range(e->kind, CR_ERR_UNSUPPORTED, CR_ERR_BUG), "kind of error");
	CHECK(in_range((unsigned)e->code, 1, ERRNO_MAX), "error code");
	CHECK(pid_or_none(e->pid), "pid");
	return 0;
}

static int check_receive(const struct msg *m, struct cr_err *err)
{
	CHECK(!mig_id_is_zero(&m->receive.id), "id");
	CHECK(token_given(&m->receive.token), "token");
	return check_opts(m, &m->receive.opts, err);
}

static int check_migrate(const struct msg *m, struct cr_err *err)
{
	const struct msg_migrate *g = &m->migrate;

	CHECK(!mig_id_is_zero(&g->id), "id");
	CHECK(token_given(&g->token), "token");
	CHECK(given(g->peer_address), "address of the peer");
	CHECK(given(g->pages_address), "address for pages");
	CHECK(pid_or_none(g->pid), "pid");
	CHECK(g->pid || given(g->cgroup), "pid or cgroup");
	CHECK(!(g->hooks >> MSG_HOOK_END), "stage of a hook");
	return check_opts(m, &g->opts, err);
}

static int check_run_hook(const struct msg *m, struct cr_err *err)
{
	CHECK(in_range(m->run_hook.stage, 0, MSG_HOOK_END - 1), "stage of a hook");
	CHECK(pid_or_none(m->run_hook.pid), "pid");
	return 0;
}

static int check_notes(const struct msg *m, const struct msg_notes *n, struct cr_err *err)
{
	for (size_t i = 0; i < n->n; i++)
		CHECK(pid_or_none(n->v[i].pid), "pid");
	return 0;
}

static int check_done(const struct msg *m, struct cr_err *err)
{
	const struct msg_done *d = &m->done;

	CHECK(in_range(d->outcome, MSG_OUTCOME_MIGRATED, MSG_OUTCOME_REHEARSED), "outcome");
	return d->error.kind == CR_ERR_NONE ? 0 : check_error(m, &d->error, err);
}

static int check_status_list(const struct msg *m, struct cr_err *err)
{
	for (size_t i = 0; i < m->status_list.n; i++) {
		const struct msg_status *s = &m->status_list.v[i];

		CHECK(!mig_id_is_zero(&s->id), "id");
		for (size_t j = 0; j < s->n_pids; j++)
			CHECK(pid_ok(s->pids[j]), "pid");
	}
	return 0;
}

static int check_digests(const struct msg *m, const struct msg_digests *d, struct cr_err *err)
{
	for (size_t i = 0; i < d->n; i++)
		CHECK(owner_ok(d->v[i].pid, d->v[i].object), "owner of a digest");
	return 0;
}

static int check_tree(const struct msg *m, struct cr_err *err)
{
	CHECK(in_range(m->tree.stage, MSG_STAGE_CHECK, MSG_STAGE_FINAL), "stage");
	CHECK(m->tree.tree_len > 0, "tree");
	return 0;
}

static int check_tree_ok(const struct msg *m, struct cr_err *err)
{
	const struct msg_tree_ok *t = &m->tree_ok;
	int r;

	CHECK(!((t->hole_start | t->hole_end) % CR_PAGE_SIZE), "hole");
	CHECK(t->hole_start < t->hole_end || (!t->hole_start && !t->hole_end), "hole");
	for (size_t i = 0; i < t->n_targets; i++)
		CHECK(owner_ok(t->targets[i].pid, t->targets[i].object), "owner of a target");
	for (size_t i = 0; i < t->n_targets; i++)
		CHECK(!t->targets[i].copy_of ||
			  (t->targets[i].pid && pid_ok(t->targets[i].copy_of) &&
			   t->targets[i].copy_of != t->targets[i].pid),
		      "what a target is a copy of");
	if ((r = check_notes(m, &t->refusals, err)) < 0)
		return r;
	return check_notes(m, &t->warnings, err);
}

static int check_reset(const struct msg *m, struct cr_err *err)
{
	const struct msg_reset *s = &m->reset;

	CHECK(owner_ok(s->pid, s->object), "owner of the ranges");
	CHECK(s->n_ranges > 0, "range");
	CHECK(!s->taken_back || !s->pid, "owner of the ranges");
	for (size_t i = 0; i < s->n_ranges; i++) {
		CHECK(!((s->ranges[i].start | s->ranges[i].end) % CR_PAGE_SIZE), "range");
		CHECK(s->ranges[i].start < s->ranges[i].end, "range");
	}
	return 0;
}

/* Whoever makes it takes the path for what it says. */
static bool path_ok(const char *path)
{
	size_t len = path ? strlen(path) : 0;

	return len > 1 && len < PATH_MAX && path[0] == '/' && path[len - 1] != '/' &&
	       !strstr(path, "//") && !strstr(path, "/../") && !strstr(path, "/./") &&
	       !strpbrk(path, "\t\n") && strcmp(path + len - 2, "/.") &&
	       (len < 3 || strcmp(path + len - 3, "/.."));
}

static size_t count_parents(const char *path)
{
	size_t n = 0;

	for (const char *p = path + 1; (p = strchr(p, '/')); p++)
		n++;
	return n;
}

static int check_file(const struct msg *m, const struct msg_file *f, struct cr_err *err)
{
	CHECK(path_ok(f->path), "path");
	CHECK(f->size <= INT64_MAX, "size");
	CHECK(!(f->mode & ~07777u), "mode");
	CHECK(f->n_parents ? f->n_parents == count_parents(f->path) + f->directory : !f->directory,
	      "parent directory");
	for (size_t i = 0; i < f->n_parents; i++)
		CHECK(!(f->parents[i].mode & ~07777u), "mode of a directory");
	for (size_t i = 0; i < f->n_xattrs; i++)
		CHECK(given(f->xattrs[i].name), "name of an attribute");
	return 0;
}

static int check_file_data(const struct msg *m, const struct msg_file_data *d, struct cr_err *err)
{
	CHECK(d->offset <= INT64_MAX && d->hole <= INT64_MAX - d->offset, "offset");
	CHECK(d->len <= INT64_MAX - d->offset, "length");
	CHECK(!d->hole != !d->len, "data");
	return 0;
}

static int check_packets(const struct msg *m, struct cr_err *err)
{
	for (size_t i = 0; i < m->packets.n; i++) {
		const struct msg_packet *p = &m->packets.v[i];

		CHECK(in_range(p->len, 1, PACKET_BYTES_MAX), "length of a packet");
		CHECK(p->flags <= 1 && p->gso_type <= UINT8_MAX && p->gso_size <= UINT16_MAX,
		      "kind of a packet");
		CHECK(p->hdr_len <= p->len && p->csum_start < p->len &&
			  p->csum_offset < p->len - p->csum_start,
		      "offset in a packet");
	}
	return 0;
}

int msg_check(const struct msg *m, struct cr_err *err)
{
	switch (m->type) {
	case MSG_HELLO:
		return check_hello(m, err);
	case MSG_ERROR:
		return check_error(m, &m->error, err);
	case MSG_RECEIVE:
		return check_receive(m, err);
	case MSG_RECEIVE_READY:
		CHECK(given(m->receive_ready.peer_address), "address of the peer");
		CHECK(given(m->receive_ready.pages_address), "address for pages");
		return 0;
	case MSG_MIGRATE:
		return check_migrate(m, err);
	case MSG_RUN_HOOK:
		return check_run_hook(m, err);
	case MSG_EVENT:
		CHECK(given(m->event.name), "name");
		return 0;
	case MSG_ROUND:
		CHECK(m->round.round > 0, "round");
		return 0;
	case MSG_REFUSED:
		return check_notes(m, &m->refused, err);
	case MSG_WARNING:
		return check_notes(m, &m->warning, err);
	case MSG_DONE:
		return check_done(m, err);
	case MSG_STATUS_LIST:
		return check_status_list(m, err);
	case MSG_RESOLVE:
		CHECK(in_range(m->resolve.action, MSG_ACTION_COMMIT, MSG_ACTION_TAKE_OVER),
		      "action");
		return 0;
	case MSG_TREE:
		return check_tree(m, err);
	case MSG_TREE_OK:
		return check_tree_ok(m, err);
	case MSG_RESET:
		return check_reset(m, err);
	case MSG_WAITING:
		CHECK(m->waiting.len > 0, "list");
		return 0;
	case MSG_PACKETS:
		return check_packets(m, err);
	case MSG_VERIFY:
		return check_digests(m, &m->verify, err);
	case MSG_QUERY:
		CHECK(!mig_id_is_zero(&m->query.id), "id");
		return 0;
	case MSG_STATE:
		CHECK(in_range(m->state.state, MSG_STATE_UNKNOWN, MSG_STATE_ABORTED), "state");
		return 0;
	case MSG_IMAGE:
		CHECK(given(m->image.name), "name");
		return 0;
	case MSG_KNOWN:
		CHECK(!(m->known.from % CR_PAGE_SIZE), "address");
		return 0;
	case MSG_LAZY:
		CHECK(in_range(m->lazy.kind, MSG_LAZY_URGENT, MSG_LAZY_BULK), "kind");
		return 0;
	case MSG_FILES:
		for (size_t i = 0; i < m->files.n; i++)
			CHECK(path_ok(m->files.paths[i]), "path");
		return 0;
	case MSG_FILE:
		return check_file(m, &m->file, err);
	case MSG_FILE_DATA:
		return check_file_data(m, &m->file_data, err);
	default: /* nothing to be wrong */
		return 0;
	}
}
