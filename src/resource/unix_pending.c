/* What is pending in a unix socket, at the source: what waits to be read, and the error that the
 * next call is to be told.
 *
 * There is one error only: ECONNRESET, of a peer that was closed, or connected elsewhere, before it
 * had read everything. poll(2) tells that one waits; whoever asks by SO_ERROR, or reads a packet,
 * takes it away, socket(7).
 *
 * An empty packet that was looked at once is passed over by whoever looks by SO_PEEK_OFF: so it is
 * read out of the kernel's memory (kernel/pendview.h). */
#include "resource/unix_private.h"

#include <poll.h>
#include <string.h>

/* Credentials of one that is not there cannot be sent again. Where nobody has asked for them they
 * are not missed. */
static void check_creds(struct files_ctx *x, const struct fd_probe *p, const struct file *f,
			struct unix_message *m)
{
	if (!m->has_cred || files_pid_in_tree(x->c->tree, m->cred_pid, false))
		return;
	m->has_cred = false;
	if (sockopt_int(f, SOL_SOCKET, SO_PASSCRED, 0))
		files_refuse(x, p->pid, p->fd,
			     "unix %s socket: credentials of process %d, which is not in the tree, "
			     "wait in it to be received: not supported",
			     unix_type_name(f), m->cred_pid);
}

/* ---- empty packets that were looked at ---- */

static bool is_hidden(const struct pending_packet *k)
{
	return k->peeked && !k->len;
}

static int list_packets(struct files_ctx *x, const struct fd_probe *p, const struct file *f,
			struct pending_packets *ret, struct cr_err *err)
{
	const struct pending *pend = files_pending(x, p);

	if (f->sock_type == SOCK_STREAM || !pend || !pend->to_read)
		return 0;
	return pendview_packets(x->c->pending, pend, ret, err);
}

static int take_hidden(struct files_ctx *x, const struct fd_probe *p, const struct file *f,
		       const struct pending_packet *k, struct unix_message *m, struct cr_err *err)
{
	*m = (struct unix_message){.has_cred = k->pid || k->uid != UINT32_MAX,
				   .cred_pid = k->pid,
				   .from_len = k->from_len > UNIX_NAME_OFF ? k->from_len : 0};
	if (m->has_cred) {
		m->cred_uid = k->uid;
		m->cred_gid = k->gid;
	}
	if (k->rights)
		files_refuse(x, p->pid, p->fd,
			     "unix %s socket: an empty packet with descriptors waits in it, and "
			     "was looked at: not supported; try again once it has been received",
			     unix_type_name(f));
	m->files = arena_array(x->c->tree->arena, uint32_t, 1);
	if (m->from_len)
		m->from = arena_memdup(x->c->tree->arena, &k->from, k->from_len);
	return m->files && (!m->from_len || m->from) ? 0 : cr_err_oom(err);
}

/* ---- what waits ---- */

static int take_message(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			const struct unix_message *m, int *fds, struct cr_err *err)
{
	struct unix_message *slot = &f->messages[f->n_messages++];
	int r = 0;

	*slot = *m;
	check_creds(x, p, f, slot);
	for (size_t i = 0; i < m->n_files && !r; i++) {
		int fd = fds[i];

		fds[i] = -1;
		r = files_in_flight(x, fd, (uint32_t)x->c->tree->n_files, &slot->files[i], err);
	}
	return r;
}

/* In the order of the list, where there is one; what has come since it was made is behind. */
static int merge(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		 const struct pending_packets *l, struct unix_peeked *q, struct cr_err *err)
{
	size_t at = 0, n_fds = 0, listed = 0;
	int r = 0;

	while (!r && (listed < l->list.n || at < q->v.n)) {
		const struct pending_packet *k = listed < l->list.n ? &l->list.v[listed++] : NULL;
		struct unix_message hidden;

		if (k && is_hidden(k)) {
			r = take_hidden(x, p, f, k, &hidden, err);
			if (!r)
				r = take_message(x, p, f, &hidden, q->fds.v + n_fds, err);
			continue;
		}
		if (at >= q->v.n || (k && k->len != q->v.v[at].len))
			return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
					  "packets of a unix socket that changes");
		r = take_message(x, p, f, &q->v.v[at], q->fds.v + n_fds, err);
		n_fds += q->v.v[at++].n_files;
	}
	return r;
}

static int capture_queue(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err)
{
	_cleanup_(unix_peeked_done) struct unix_peeked q = {0};
	_cleanup_(pending_packets_done) struct pending_packets l = {0};
	int r = list_packets(x, p, f, &l, err); /* first: a look hides */

	if (!r)
		r = unix_peek(p->local, f->sock_type, x->c->tree->arena, &q, err);
	if (r)
		return r;
	if (q.urgent)
		files_refuse(
		    x, p->pid, p->fd,
		    "unix stream socket: urgent data (MSG_OOB) waits in it: not supported");
	f->messages = arena_array(x->c->tree->arena, struct unix_message, q.v.n + l.list.n);
	return f->messages ? merge(x, p, f, &l, &q, err) : cr_err_oom(err);
}

/* ---- the error ---- */

static int pending_error(int fd)
{
	struct pollfd p = {.fd = fd};

	return poll(&p, 1, 0) == 1 && p.revents & POLLERR ? ECONNRESET : 0;
}

/* What cannot be had again, or could not be left where it is while the packets are looked at. */
static bool refuse_error(struct files_ctx *x, const struct fd_probe *p, const struct file *f)
{
	const struct pending *pend = NULL;

	if (f->sock_error && f->sock_type == SOCK_SEQPACKET)
		pend = files_pending(x, p);
	if (!f->sock_error || f->sock_type == SOCK_STREAM || (pend && !pend->to_read))
		return false;
	files_refuse(x, p->pid, p->fd,
		     "unix %s socket: its peer has gone before it had read everything, and its "
		     "program has not been told yet%s: not supported; try again once it has",
		     unix_type_name(f),
		     f->sock_type == SOCK_DGRAM ? "" : ", while packets wait to be read");
	return true;
}

int unix_capture_pending(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err)
{
	f->sock_error = pending_error(p->local);
	if (refuse_error(x, p, f) || !x->c->exact ||
	    (!f->connected && f->sock_type != SOCK_DGRAM) ||
	    (f->sock_error && f->sock_type != SOCK_STREAM))
		return 0;
	return capture_queue(x, p, f, err);
}
