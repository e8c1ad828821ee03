/* --tasks: while pages are fetched, for the agent that started us. At the source: pages of the
 * tasks that stand still there; at the destination: pages that are pushed, on their way to the
 * fetcher (feed.c). All that is needed is handed over: descriptors of the memories, and
 * connections. What comes on these is the other host's, and may be anything. */
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include "base/log.h"
#include "pageserver/server.h"
#include "source/serve.h"

enum { SERVE_PRIORITY = 30 /* SCHED_FIFO: a task waits for each answer */ };

struct serving_tasks {
	int socket;
	struct serve sv;
	VEC(pid_t) pids;
	VEC(int) mems;
	VEC(struct serve_file) files;
	struct ranges {
		VEC(struct serve_range) list;
	} has, recent;
	struct pss_in in;
};

/* The pushing threads have none of it. */
static void set_priority(void)
{
	struct sched_param sp = {.sched_priority = SERVE_PRIORITY};

	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &sp))
		log_debug("priority: %s", strerror(errno));
}

/* Also if it was killed before this. */
static int end_with_agent(int socket, struct cr_err *err)
{
	struct ucred agent;
	socklen_t len = sizeof(agent);

	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &agent, &len) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL))
		return cr_err_sys(err, "--tasks");
	if (getppid() != agent.pid)
		return cr_err_set(err, CR_ERR_INPUT, ESRCH, "--tasks: who started us is gone");
	return 0;
}

static int get_ready(int socket, bool sandbox, struct cr_err *err)
{
	const struct pss_msg ready = {.type = PSS_READY};
	struct rlimit rl;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN); /* of a terminal: for the agent to act upon */
	if (!getrlimit(RLIMIT_NOFILE, &rl)) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	set_priority();
	int r = privilege_drop_all(err);
	if (!r) /* after that: another user id clears it, prctl(2) */
		r = end_with_agent(socket, err);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* they need more */
	sandbox = false;
#endif
	if (!r && sandbox)
		r = sandbox_enter(SANDBOX_TASKS, err);
	return r ? r : pss_send(socket, &ready, NULL, 0, err);
}

static void tell_left(void *arg, uint64_t left)
{
	const struct serving_tasks *t = arg;
	const struct pss_msg m = {.type = PSS_LEFT, .value = left};
	struct cr_err ignored = {0};

	/* that the agent is gone shows elsewhere */
	if (pss_send(t->socket, &m, NULL, 0, &ignored))
		return;
}

static int add_tasks(struct serving_tasks *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->in.m.n; i++) {
		if (t->in.ranges[i].pid >= LAZY_OBJECT) {
			struct serve_file *f = vec_push(&t->files);

			if (!f)
				return cr_err_oom(err);
			*f = (struct serve_file){t->in.ranges[i].pid, t->in.fds[i]};
			continue;
		}
		pid_t *pid = vec_push(&t->pids);
		int *mem = pid ? vec_push(&t->mems) : NULL;

		if (!mem)
			return cr_err_oom(err);
		*pid = t->in.ranges[i].pid;
		*mem = t->in.fds[i];
	}
	t->in.n_fds = 0;
	return 0;
}

static int add_ranges(struct ranges *to, const struct pss_msg *m, struct cr_err *err)
{
	for (size_t i = 0; i < m->n; i++) {
		struct serve_range *g = vec_push(&to->list);

		if (!g)
			return cr_err_oom(err);
		*g = m->ranges[i];
	}
	return 0;
}

/* Until the connections end. After nonsense on them another process goes on: nobody knows what it
 * has led to in this one. */
static int serve(struct serving_tasks *t, struct cr_err *err)
{
	struct serve_links links = {.urgent = -1};
	struct pss_msg ended = {.type = PSS_ENDED};

	if (t->in.n_fds < 2 || t->in.n_fds > 1 + LAZY_BULK_MAX)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "not the connections to serve on");
	links.urgent = t->in.fds[0];
	links.n_bulk = t->in.n_fds - 1;
	memcpy(links.bulk, t->in.fds + 1, links.n_bulk * sizeof(int));
	t->in.n_fds = 0;
	t->sv.pids = t->pids.v;
	t->sv.mems = t->mems.v;
	t->sv.n_pids = t->pids.n;
	t->sv.files = t->files.v;
	t->sv.n_files = t->files.n;
	t->sv.has = t->has.list.v;
	t->sv.n_has = t->has.list.n;
	t->sv.recent = t->recent.list.v;
	t->sv.n_recent = t->recent.list.n;
	t->sv.result = (struct msg_postcopy){0};
	int r = serve_on(&t->sv, &links, &ended.err);
	ended.result = t->sv.result;
	int told = pss_send(t->socket, &ended, NULL, 0, err);
	if (r == -EPROTO)
		*err = ended.err;
	return r == -EPROTO ? r : told;
}

/* By a thread of normal priority. What the other end says of itself goes to the fetcher. */
static int feed(struct pss_in *in, struct cr_err *err)
{
	if (in->n_fds != 2)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "not a connection and a ring");
	int r = feed_start(in->fds[0], in->fds[1], err);
	if (!r)
		in->fds[0] = in->fds[--in->n_fds]; /* the connection is the thread's now */
	return r;
}

static int take_message(struct serving_tasks *t, struct cr_err *err)
{
	switch (t->in.m.type) {
	case PSS_TASKS:
		return add_tasks(t, err);
	case PSS_HAS:
		return add_ranges(&t->has, &t->in.m, err);
	case PSS_RECENT:
		return add_ranges(&t->recent, &t->in.m, err);
	case PSS_LIMIT:
		t->sv.max_bandwidth = t->in.m.value;
		return 0;
	case PSS_SERVE:
		return serve(t, err);
	case PSS_FEED:
		return feed(&t->in, err);
	default:
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "not a message to a page-server");
	}
}

int tasks_serve(int socket, bool sandbox)
{
	static struct serving_tasks t;
	struct cr_err err = {0};
	int r = get_ready(socket, sandbox, &err);

	t.socket = t.sv.lifeline = socket;
	t.sv.progress = tell_left;
	t.sv.arg = &t;
	while (!r) {
		r = pss_recv(socket, &t.in, &err);
		if (r == -EPIPE) /* the agent has no use for us any more */
			return 0;
		if (!r)
			r = take_message(&t, &err);
		pss_close(&t.in);
	}
	log_error("serving tasks: %s", err.msg);
	return 1;
}
