#include "source/serve_child.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* It is there, or it ends, at once, but for a host that is at its limits. */
enum { READY_MS = 20000 };

int serve_child_start(struct serve_child *c, struct cr_err *err)
{
	if (!c->ps.pid)
		c->told = false;
	return ps_child_start(&c->ps, err);
}

void serve_child_stop(struct serve_child *c)
{
	ps_child_stop(&c->ps);
}

/* ---- what it is told ---- */

static int wait_ready(const struct serve_child *c, struct pss_in *in, struct cr_err *err)
{
	struct pollfd p = {.fd = c->ps.socket, .events = POLLIN};
	int n;

	do
		n = poll(&p, 1, READY_MS);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return cr_err_set(err, CR_ERR_IO, ETIMEDOUT, "the page-server does not get ready");
	int r = pss_recv(c->ps.socket, in, err);
	pss_close(in);
	if (!r && in->m.type != PSS_READY)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO, "the page-server is not ready");
	return r;
}

static size_t at_most(size_t n, size_t most)
{
	return n < most ? n : most;
}

static int tell_tasks(const struct serve_child *c, const struct serve *sv, struct pss_in *buf,
		      struct cr_err *err)
{
	int r = 0;

	for (size_t at = 0; at < sv->n_pids && !r; at += PSS_TASKS_MAX) {
		struct pss_msg m = {.type = PSS_TASKS,
				    .ranges = buf->ranges,
				    .n = at_most(sv->n_pids - at, PSS_TASKS_MAX)};

		for (size_t i = 0; i < m.n; i++)
			buf->ranges[i] = (struct serve_range){.pid = sv->pids[at + i]};
		r = pss_send(c->ps.socket, &m, sv->mems + at, m.n, err);
	}
	return r;
}

static int tell_files(const struct serve_child *c, const struct serve *sv, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < sv->n_files && !r; i++) {
		const struct serve_range id = {.pid = sv->files[i].id};
		const struct pss_msg m = {.type = PSS_TASKS, .ranges = &id, .n = 1};

		r = pss_send(c->ps.socket, &m, &sv->files[i].fd, 1, err);
	}
	return r;
}

static int tell_ranges(const struct serve_child *c, enum pss_type type, const struct serve_range *v,
		       size_t n, struct cr_err *err)
{
	int r = 0;

	for (size_t at = 0; at < n && !r; at += PSS_RANGES_MAX) {
		struct pss_msg m = {
		    .type = type, .ranges = v + at, .n = at_most(n - at, PSS_RANGES_MAX)};

		r = pss_send(c->ps.socket, &m, NULL, 0, err);
	}
	return r;
}

static int tell(const struct serve_child *c, const struct serve *sv, struct pss_in *buf,
		struct cr_err *err)
{
	struct pss_msg limit = {.type = PSS_LIMIT, .value = sv->max_bandwidth};
	int r = tell_tasks(c, sv, buf, err);

	if (!r)
		r = tell_files(c, sv, err);
	if (!r)
		r = tell_ranges(c, PSS_HAS, sv->has, sv->n_has, err);
	if (!r)
		r = tell_ranges(c, PSS_RECENT, sv->recent, sv->n_recent, err);
	return r ? r : pss_send(c->ps.socket, &limit, NULL, 0, err);
}

int serve_child_tell(struct serve_child *c, const struct serve *sv, struct cr_err *err)
{
	_cleanup_free_ struct pss_in *in = malloc(sizeof(*in));

	if (c->told)
		return 0;
	int r = in ? wait_ready(c, in, err) : cr_err_oom(err);
	if (!r)
		r = tell(c, sv, in, err);
	if (r)
		serve_child_stop(c);
	c->told = !r;
	return r;
}

/* ---- what it tells ---- */

static int hear(struct serve_child *c, struct serve *sv, struct pss_in *in, struct cr_err *err)
{
	for (;;) {
		int r = pss_recv(c->ps.socket, in, err);

		pss_close(in);
		if (r)
			return r;
		if (in->m.type == PSS_ENDED)
			return 0;
		if (in->m.type != PSS_LEFT)
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "page-server: unexpected");
		if (sv->progress)
			sv->progress(sv->arg, in->m.value);
	}
}

int serve_child_serve(struct serve_child *c, struct serve *sv, struct serve_links *links,
		      struct cr_err *err)
{
	const struct pss_msg m = {.type = PSS_SERVE};
	_cleanup_free_ struct pss_in *in = malloc(sizeof(*in));
	const struct msg_postcopy before = sv->result;
	int fds[1 + LAZY_BULK_MAX] = {links->urgent};

	memcpy(fds + 1, links->bulk, links->n_bulk * sizeof(int));
	int r = in ? pss_send(c->ps.socket, &m, fds, 1 + links->n_bulk, err) : cr_err_oom(err);
	serve_links_close(links);
	if (!r)
		r = hear(c, sv, in, err);
	if (r) {
		serve_child_stop(c);
		return r;
	}
	sv->result = in->m.result;
	sv->result.asked_again += before.asked_again;
	sv->result.asked_clean += before.asked_clean;
	if (in->m.err.kind == CR_ERR_NONE)
		return 0;
	*err = in->m.err;
	/* it ends by itself after nonsense: nothing of it goes on */
	if (err->code == EPROTO)
		serve_child_stop(c);
	return -err->code;
}
