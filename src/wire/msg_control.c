/* Translation of the messages between cr-migrate and the agents. A plain number is one word in the
 * list of its message, since it has one name in struct and .proto; the rest is written out. */
#include "wire/msg_priv.h"

#include <stdio.h>
#include <string.h>

#define PUT(f) pb->f = in->f;
#define GET(f) out->f = pb->f;

/* ---- empty messages: the type says all ---- */

int msg_put_nothing(struct arena *a, const struct msg *m, void *p)
{
	(void)a, (void)m, (void)p;
	return 0;
}

int msg_get_nothing(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	(void)a, (void)m, (void)p, (void)err;
	return 0;
}

/* ---- parts ---- */

static void put_token(const struct mig_token *t, ProtobufCBinaryData *pb)
{
	static const struct mig_token none;

	*pb = pb_bytes(t->b, mig_token_equal(t, &none) ? 0 : sizeof(t->b));
}

static int get_token(const ProtobufCBinaryData *pb, struct mig_token *t, struct cr_err *err)
{
	if (pb->len && pb->len != sizeof(t->b))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "token of %zu bytes", pb->len);
	if (pb->len)
		memcpy(t->b, pb->data, sizeof(t->b));
	return 0;
}

/* clang-format off */
#define OPTS_NUMBERS(X) \
	X(downtime_limit_us) X(max_rounds) X(max_bandwidth) X(streams) X(leave_running) \
	X(rehearse) X(no_hw_breakpoints) X(postcopy_timeout_ms) X(copy_files) X(copy_replace) \
	X(no_bpf)
/* clang-format on */

static Wire__Opts *put_opts(struct arena *a, const struct msg_opts *in)
{
	Wire__Opts *pb = pb_new(a, &wire__opts__descriptor);

	if (!pb)
		return NULL;
	OPTS_NUMBERS(PUT)
	pb->compress = (Wire__Compress)in->compress;
	pb->verify = (Wire__VerifyMode)in->verify;
	pb->launch = (Wire__LaunchMode)in->launch;
	pb->mode = (Wire__Mode)in->mode;
	pb->no_convergence = (Wire__NoConvergence)in->no_convergence;
	pb->tcp = (Wire__TcpMode)in->tcp;
	pb->move_address = arena_array(a, char *, in->n_move);
	if (!pb->move_address)
		return NULL;
	for (uint32_t i = 0; i < in->n_move; i++)
		pb->move_address[pb->n_move_address++] = (char *)in->move[i];
	return pb;
}

static int get_opts(const Wire__Opts *pb, struct msg_opts *out, struct cr_err *err)
{
	if (!pb)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "options are missing");
	OPTS_NUMBERS(GET)
	out->compress = (enum msg_compress)pb->compress;
	out->verify = (enum msg_verify)pb->verify;
	out->launch = (enum msg_launch)pb->launch;
	out->mode = (enum msg_mode)pb->mode;
	out->no_convergence = (enum msg_no_convergence)pb->no_convergence;
	out->tcp = (enum msg_tcp)pb->tcp;
	if (pb->n_move_address > MSG_MOVES_MAX)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%zu addresses to move",
				  pb->n_move_address);
	for (size_t i = 0; i < pb->n_move_address; i++) {
		if (strlen(pb->move_address[i]) >= sizeof(out->move[i]))
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "an address is too long");
		strcpy(out->move[i], pb->move_address[i]);
		out->n_move++;
	}
	return 0;
}

static void put_err(const struct cr_err *in, Wire__Error *pb)
{
	pb->kind = (Wire__ErrorKind)in->kind;
	pb->code = (uint32_t)in->code;
	pb->pid = (uint32_t)in->pid;
	pb->stage = (char *)in->stage;
	pb->message = (char *)in->msg;
}

static void get_err(const Wire__Error *pb, struct cr_err *out)
{
	out->kind = (enum cr_err_kind)pb->kind;
	out->code = (int)pb->code;
	out->pid = (pid_t)pb->pid;
	snprintf(out->stage, sizeof(out->stage), "%s", msg_text(pb->stage));
	snprintf(out->msg, sizeof(out->msg), "%s", msg_text(pb->message));
}

/* ---- messages ---- */

int msg_put_hello(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_hello *in = &m->hello;
	Wire__Hello *pb = p;

	pb->magic = pb_string(MSG_MAGIC);
	PUT(version)
	PUT(capabilities)
	pb->role = (Wire__Role)in->role;
	pb->host = pb_string(in->host);
	put_token(&in->token, &pb->token);
	return msg_put_id(a, &in->id, &pb->id);
}

int msg_get_hello(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_hello *out = &m->hello;
	Wire__Hello *pb = p;

	(void)a;
	if (strcmp(pb->magic, MSG_MAGIC) != 0)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "whoever this is speaks another language");
	GET(version)
	GET(capabilities)
	out->role = (enum msg_role)pb->role;
	out->host = msg_text(pb->host);
	int r = get_token(&pb->token, &out->token, err);
	return r < 0 ? r : msg_get_id(&pb->id, &out->id, err);
}

int msg_put_error(struct arena *a, const struct msg *m, void *p)
{
	(void)a;
	put_err(&m->error, p);
	return 0;
}

int msg_get_error(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	(void)a, (void)err;
	get_err(p, &m->error);
	return 0;
}

int msg_put_receive(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_receive *in = &m->receive;
	Wire__Receive *pb = p;

	pb->source_name = pb_string(in->source_name);
	put_token(&in->token, &pb->token);
	pb->opts = put_opts(a, &in->opts);
	return pb->opts ? msg_put_id(a, &in->id, &pb->id) : -ENOMEM;
}

int msg_get_receive(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_receive *out = &m->receive;
	Wire__Receive *pb = p;
	int r;

	(void)a;
	out->source_name = msg_text(pb->source_name);
	if ((r = get_token(&pb->token, &out->token, err)) < 0)
		return r;
	if ((r = msg_get_id(&pb->id, &out->id, err)) < 0)
		return r;
	return get_opts(pb->opts, &out->opts, err);
}

int msg_put_receive_ready(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_receive_ready *in = &m->receive_ready;
	Wire__ReceiveReady *pb = p;

	(void)a;
	pb->peer_address = pb_string(in->peer_address);
	pb->pages_address = pb_string(in->pages_address);
	pb->host = pb_string(in->host);
	return 0;
}

int msg_get_receive_ready(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_receive_ready *out = &m->receive_ready;
	Wire__ReceiveReady *pb = p;

	(void)a, (void)err;
	GET(peer_address)
	GET(pages_address)
	out->host = msg_text(pb->host);
	return 0;
}

int msg_put_migrate(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_migrate *in = &m->migrate;
	Wire__Migrate *pb = p;

	pb->peer_address = pb_string(in->peer_address);
	pb->pages_address = pb_string(in->pages_address);
	pb->dest_name = pb_string(in->dest_name);
	pb->cgroup = pb_string(in->cgroup);
	pb->freeze_cgroup = pb_string(in->freeze_cgroup);
	pb->pid = (uint32_t)in->pid;
	pb->hooks = in->hooks;
	put_token(&in->token, &pb->token);
	pb->opts = put_opts(a, &in->opts);
	return pb->opts ? msg_put_id(a, &in->id, &pb->id) : -ENOMEM;
}

int msg_get_migrate(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_migrate *out = &m->migrate;
	Wire__Migrate *pb = p;
	int r;

	(void)a;
	GET(peer_address)
	GET(pages_address)
	GET(cgroup)
	GET(freeze_cgroup)
	out->dest_name = msg_text(pb->dest_name);
	out->pid = (pid_t)pb->pid;
	out->hooks = pb->hooks;
	if ((r = get_token(&pb->token, &out->token, err)) < 0)
		return r;
	if ((r = msg_get_id(&pb->id, &out->id, err)) < 0)
		return r;
	return get_opts(pb->opts, &out->opts, err);
}

int msg_put_run_hook(struct arena *a, const struct msg *m, void *p)
{
	Wire__RunHook *pb = p;

	(void)a;
	pb->stage = (uint32_t)m->run_hook.stage;
	pb->pid = (uint32_t)m->run_hook.pid;
	pb->undo = m->run_hook.undo;
	return 0;
}

int msg_get_run_hook(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__RunHook *pb = p;

	(void)a, (void)err;
	m->run_hook.stage = (enum msg_hook)pb->stage;
	m->run_hook.pid = (pid_t)pb->pid;
	m->run_hook.undo = pb->undo;
	return 0;
}

int msg_put_event(struct arena *a, const struct msg *m, void *p)
{
	Wire__Event *pb = p;

	(void)a;
	pb->name = pb_string(m->event.name);
	pb->text = pb_string(m->event.text);
	return 0;
}

int msg_get_event(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Event *pb = p;

	(void)a, (void)err;
	m->event.name = msg_text(pb->name);
	m->event.text = msg_text(pb->text);
	return 0;
}

/* clang-format off */
#define ROUND_NUMBERS(X) \
	X(round) X(pages_written) X(pages_sent) X(bytes_wire) X(duration_us) X(rate) \
	X(predicted_downtime_us)
/* clang-format on */

int msg_put_round(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_round *in = &m->round;
	Wire__Round *pb = p;

	(void)a;
	ROUND_NUMBERS(PUT)
	return 0;
}

int msg_get_round(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_round *out = &m->round;
	Wire__Round *pb = p;

	(void)a, (void)err;
	ROUND_NUMBERS(GET)
	return 0;
}

int msg_put_refused(struct arena *a, const struct msg *m, void *p)
{
	return msg_put_notes(a, &m->refused, p);
}

int msg_get_refused(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	return msg_get_notes(a, &m->refused, p) < 0 ? cr_err_oom(err) : 0;
}

int msg_put_warning(struct arena *a, const struct msg *m, void *p)
{
	return msg_put_notes(a, &m->warning, p);
}

int msg_get_warning(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	return msg_get_notes(a, &m->warning, p) < 0 ? cr_err_oom(err) : 0;
}

/* clang-format off */
#define DONE_NUMBERS(X) \
	X(downtime_us) X(total_us) X(memory_bytes) X(stops) X(longest_stop_us) X(stop_pages)
/* clang-format on */
/* clang-format off */
#define PHASES_NUMBERS(X) \
	X(freeze) X(last_pages) X(capture) X(rebuild) X(launch) X(commit)
/* clang-format on */

static Wire__Phases *put_phases(struct arena *a, const struct msg_phases *in)
{
	Wire__Phases *pb = pb_new(a, &wire__phases__descriptor);

	if (pb) {
		PHASES_NUMBERS(PUT)
	}
	return pb;
}

static void get_phases(const Wire__Phases *pb, struct msg_phases *out)
{
	if (pb) {
		PHASES_NUMBERS(GET)
	}
}

/* clang-format off */
#define POSTCOPY_NUMBERS(X) \
	X(pages_lazy) X(faults) X(p50_us) X(p99_us) X(max_us) X(duration_us) X(reconnects) \
	X(asked_again) X(pushed) X(lost) X(asked_clean)
/* clang-format on */

static Wire__Postcopy *put_postcopy(struct arena *a, const struct msg_postcopy *in)
{
	Wire__Postcopy *pb = pb_new(a, &wire__postcopy__descriptor);

	if (pb) {
		POSTCOPY_NUMBERS(PUT)
	}
	return pb;
}

static bool get_postcopy(const Wire__Postcopy *pb, struct msg_postcopy *out)
{
	if (!pb)
		return false;
	POSTCOPY_NUMBERS(GET)
	return true;
}

int msg_put_done(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_done *in = &m->done;
	Wire__Done *pb = p;

	DONE_NUMBERS(PUT)
	pb->outcome = (Wire__Outcome)in->outcome;
	if (in->error.kind != CR_ERR_NONE) {
		pb->error = pb_new(a, &wire__error__descriptor);
		if (!pb->error)
			return -ENOMEM;
		put_err(&in->error, pb->error);
	}
	if (in->postcopied) {
		pb->postcopy = put_postcopy(a, &in->postcopy);
		if (!pb->postcopy)
			return -ENOMEM;
	}
	pb->phases = put_phases(a, &in->phases);
	return pb->phases ? 0 : -ENOMEM;
}

int msg_get_done(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_done *out = &m->done;
	Wire__Done *pb = p;

	(void)a, (void)err;
	DONE_NUMBERS(GET)
	out->outcome = (enum msg_outcome)pb->outcome;
	if (pb->error)
		get_err(pb->error, &out->error);
	get_phases(pb->phases, &out->phases);
	out->postcopied = get_postcopy(pb->postcopy, &out->postcopy);
	return 0;
}

static int put_losses(struct arena *a, const struct msg_status *in, Wire__Status *pb)
{
	pb->losses = arena_array(a, Wire__Loss *, in->n_losses);
	if (!pb->losses)
		return -ENOMEM;
	for (size_t i = 0; i < in->n_losses; i++) {
		const struct msg_loss *l = &in->losses[i];
		Wire__Loss *p = pb_new(a, &wire__loss__descriptor);

		if (!p)
			return -ENOMEM;
		p->pid = (uint32_t)l->pid;
		p->start = l->start;
		p->end = l->end;
		p->pages = l->pages;
		pb->losses[pb->n_losses++] = p;
	}
	return 0;
}

static int get_losses(struct arena *a, const Wire__Status *pb, struct msg_status *out,
		      struct cr_err *err)
{
	struct msg_loss *v = arena_array(a, struct msg_loss, pb->n_losses);

	if (!v)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_losses; i++) {
		const Wire__Loss *p = pb->losses[i];

		v[i] = (struct msg_loss){(pid_t)p->pid, p->start, p->end, p->pages};
	}
	out->losses = v;
	out->n_losses = pb->n_losses;
	return 0;
}

static Wire__Status *put_status(struct arena *a, const struct msg_status *in)
{
	Wire__Status *pb = pb_new(a, &wire__status__descriptor);

	if (!pb)
		return NULL;
	pb->pids = arena_array(a, uint32_t, in->n_pids);
	if (!pb->pids)
		return NULL;
	for (size_t i = 0; i < in->n_pids; i++)
		pb->pids[pb->n_pids++] = (uint32_t)in->pids[i];
	PUT(since_sec)
	PUT(pages_left)
	if (in->postcopying) {
		pb->postcopy = put_postcopy(a, &in->postcopy);
		if (!pb->postcopy)
			return NULL;
	}
	if (in->histogram) {
		pb->fault_histogram =
		    arena_memdup(a, in->histogram, MSG_HISTOGRAM * sizeof(*in->histogram));
		if (!pb->fault_histogram)
			return NULL;
		pb->n_fault_histogram = MSG_HISTOGRAM;
	}
	if (put_losses(a, in, pb))
		return NULL;
	pb->role = pb_string(in->role);
	pb->state = pb_string(in->state);
	pb->peer = pb_string(in->peer);
	return msg_put_id(a, &in->id, &pb->id) < 0 ? NULL : pb;
}

static int get_status(struct arena *a, const Wire__Status *pb, struct msg_status *out,
		      struct cr_err *err)
{
	pid_t *pids = arena_array(a, pid_t, pb->n_pids);

	if (!pids)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_pids; i++)
		pids[i] = (pid_t)pb->pids[i];
	out->pids = pids;
	out->n_pids = pb->n_pids;
	GET(since_sec)
	GET(pages_left)
	out->postcopying = get_postcopy(pb->postcopy, &out->postcopy);
	if (pb->n_fault_histogram == MSG_HISTOGRAM) {
		out->histogram =
		    arena_memdup(a, pb->fault_histogram, MSG_HISTOGRAM * sizeof(uint64_t));
		if (!out->histogram)
			return cr_err_oom(err);
	}
	out->role = msg_text(pb->role);
	out->state = msg_text(pb->state);
	out->peer = msg_text(pb->peer);
	int r = get_losses(a, pb, out, err);
	return r ? r : msg_get_id(&pb->id, &out->id, err);
}

int msg_put_status_list(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_status_list *in = &m->status_list;
	Wire__StatusList *pb = p;

	pb->list = arena_array(a, Wire__Status *, in->n);
	if (!pb->list)
		return -ENOMEM;
	for (size_t i = 0; i < in->n; i++) {
		pb->list[i] = put_status(a, &in->v[i]);
		if (!pb->list[i])
			return -ENOMEM;
		pb->n_list++;
	}
	return 0;
}

int msg_get_status_list(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_status_list *out = &m->status_list;
	Wire__StatusList *pb = p;

	out->v = arena_array(a, struct msg_status, pb->n_list);
	if (!out->v)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_list; i++) {
		int r = get_status(a, pb->list[i], &out->v[out->n++], err);

		if (r < 0)
			return r;
	}
	return 0;
}

int msg_put_resolve(struct arena *a, const struct msg *m, void *p)
{
	Wire__Resolve *pb = p;

	pb->action = (Wire__Action)m->resolve.action;
	return msg_put_id(a, &m->resolve.id, &pb->id);
}

int msg_get_resolve(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Resolve *pb = p;

	(void)a;
	m->resolve.action = (enum msg_action)pb->action;
	return msg_get_id(&pb->id, &m->resolve.id, err);
}

int msg_put_resolved(struct arena *a, const struct msg *m, void *p)
{
	Wire__Resolved *pb = p;

	(void)a;
	pb->text = pb_string(m->resolved.text);
	return 0;
}

int msg_get_resolved(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Resolved *pb = p;

	(void)a, (void)err;
	m->resolved.text = msg_text(pb->text);
	return 0;
}
