/* The verb that moves a tree: tells the destination to receive and the source to send, then shows
 * what the source reports. The agents do the work and would finish or undo without us; only the
 * switch to undoing (SIGINT, or our death while the destination still waits) starts here. */
#include "migrate/cli.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "migrate/agent.h"
#include "migrate/options.h"
#include "migrate/report.h"
#include "migrate/settle.h"

struct migration {
	struct migrate_options opt;
	struct mig_id id;
	struct mig_token token;
	char source_address[ADDR_TEXT], dest_address[ADDR_TEXT];
	struct link *source,
	    *dest; /* dest: its end before the switch-over makes the destination undo */
	int signal_fd;
	bool abort_sent;
	bool switching; /* the source has announced the switch-over */
	struct report report;
	struct msg_done done; /* the end, once there is one */
};

static void migration_done(struct migration *m)
{
	link_free(m->source);
	link_free(m->dest);
	close_fdp(&m->signal_fd);
	report_done_with(&m->report);
	vec_done(&m->opt.hooks.list);
}

static void failed(struct migration *m, const struct cr_err *err)
{
	m->done.outcome = MSG_OUTCOME_FAILED;
	m->done.error = *err;
	if (!m->done.error.stage[0])
		snprintf(m->done.error.stage, sizeof(m->done.error.stage), "start");
}

/* ---- starting ---- */

static int take_signals(struct migration *m, struct cr_err *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return cr_err_sys(err, "sigprocmask");
	m->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return m->signal_fd < 0 ? cr_err_sys(err, "signalfd") : 0;
}

static int receive_ready(struct migration *m, struct msg *ready, struct cr_err *err)
{
	struct msg receive = {
	    .type = MSG_RECEIVE,
	    .receive = {
		.id = m->id, .token = m->token, .source_name = m->opt.source, .opts = m->opt.opts}};
	int r = link_call(m->dest, &receive, MSG_RECEIVE_READY, AGENT_TIMEOUT_MS, ready, err);

	return r < 0 ? cr_err_ctx(err, "the agent of %s", m->opt.dest) : 0;
}

static int send_migrate(struct migration *m, const struct msg_receive_ready *ready,
			struct cr_err *err)
{
	struct msg migrate = {.type = MSG_MIGRATE,
			      .migrate = {.id = m->id,
					  .token = m->token,
					  .peer_address = ready->peer_address,
					  .pages_address = ready->pages_address,
					  .dest_name = m->opt.dest,
					  .pid = m->opt.pid,
					  .cgroup = m->opt.cgroup,
					  .freeze_cgroup = m->opt.freeze_cgroup,
					  .opts = m->opt.opts,
					  .hooks = hooks_stages(&m->opt.hooks)}};
	int r = link_send(m->source, &migrate, err);

	return r < 0 ? cr_err_ctx(err, "the agent of %s", m->opt.source) : 0;
}

/* 0 when the source has been told; *told is set once it may have been. */
static int start(struct migration *m, bool *told, struct cr_err *err)
{
	const struct migrate_options *o = &m->opt;
	struct msg ready;
	int r;

	if ((r = take_signals(m, err)) < 0)
		return r;
	if ((r = agent_connect(&m->source, o->source, m->source_address, &m->id, &m->token,
			       AGENT_TIMEOUT_MS, err)) < 0)
		return r;
	if ((r = agent_connect(&m->dest, o->dest, m->dest_address, &m->id, &m->token,
			       AGENT_TIMEOUT_MS, err)) < 0)
		return r;
	if ((r = receive_ready(m, &ready, err)) < 0)
		return r;
	*told = true;
	r = send_migrate(m, &ready.receive_ready, err);
	msg_free(&ready);
	return r;
}

/* ---- listening to the source ---- */

/* True when it was the last message. */
static bool take_message(struct migration *m, const struct msg *msg)
{
	struct cr_err ignored = {0};

	switch (msg->type) {
	case MSG_EVENT:
		m->switching |= !strcmp(msg->event.name, MSG_EVENT_SWITCH_OVER);
		report_event(&m->report, &msg->event);
		return false;
	case MSG_ROUND:
		report_round(&m->report, &msg->round);
		return false;
	case MSG_REFUSED:
		report_refused(&m->report, &msg->refused);
		return false;
	case MSG_WARNING:
		report_warning(&m->report, &msg->warning);
		return false;
	case MSG_RUN_HOOK:
		/* that the link is gone shows at the next message */
		if (hooks_answer(&m->opt.hooks, m->source, &msg->run_hook, &ignored))
			report_notice(&m->report, "hook", "%s", ignored.msg);
		return false;
	case MSG_ERROR: /* it did not even start */
		failed(m, &msg->error);
		return true;
	case MSG_DONE:
		m->done = msg->done;
		return true;
	default: /* of a newer version, to be ignored: ABORTED, PONG and the like */
		return false;
	}
}

/* Everything that the source has sent. 1: that was all there will be; 0: more to come; or an error.
 */
static int take_messages(struct migration *m, struct cr_err *err)
{
	struct msg msg;
	bool last;
	int r;

	do {
		r = link_recv(m->source, 0, &msg, err);
		if (r == -ETIMEDOUT)
			return 0;
		if (r < 0)
			return cr_err_ctx(err, "the agent of %s", m->opt.source);
		last = take_message(m, &msg);
		msg_free(&msg);
	} while (!last);
	return 1;
}

/* The first signal asks the source to undo, a second one ends the wait for its answer. */
static int take_signal(struct migration *m, struct cr_err *err)
{
	struct signalfd_siginfo si;
	struct msg abort_msg = msg_of(MSG_ABORT);

	if (read(m->signal_fd, &si, sizeof(si)) != sizeof(si))
		return 0;
	if (m->abort_sent)
		return cr_err_set(err, CR_ERR_INPUT, EINTR,
				  "interrupted twice: not waiting any longer");
	m->abort_sent = true;
	report_notice(&m->report, "undo", "interrupted by SIG%s: asking the agents to undo",
		      sigabbrev_np((int)si.ssi_signo));
	return link_send(m->source, &abort_msg, err);
}

/* Nothing is expected from the destination but its end, which comes with the migration's or is for
 * the source to notice and to undo from. */
static void watch_dest(struct migration *m)
{
	struct msg msg;
	struct cr_err err = {0};
	int r = link_recv(m->dest, 0, &msg, &err);

	if (r == 0) {
		msg_free(&msg);
	} else if (r != -ETIMEDOUT) {
		link_free(m->dest);
		m->dest = NULL;
	}
}

/* Until the source's last message. */
static int listen_to_source(struct migration *m, struct cr_err *err)
{
	for (;;) {
		struct pollfd p[] = {{.fd = link_fd(m->source), .events = POLLIN},
				     {.fd = m->signal_fd, .events = POLLIN},
				     {.fd = m->dest ? link_fd(m->dest) : -1, .events = POLLIN}};
		int r = 0;

		if (!link_pending(m->source) && poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
			return cr_err_sys(err, "poll");
		if (link_pending(m->source) || p[0].revents)
			r = take_messages(m, err);
		if (r == 0 && p[1].revents)
			r = take_signal(m, err);
		if (r == 0 && p[2].revents)
			watch_dest(m);
		if (r != 0)
			return r < 0 ? r : 0;
	}
}

/* ---- the verb ---- */

static bool may_fetch(const struct migration *m)
{
	return m->opt.opts.mode != MSG_MODE_PRECOPY ||
	       m->opt.opts.no_convergence == MSG_NO_CONVERGENCE_POSTCOPY;
}

/* The source could not tell of the pages, the destination can. */
static void take_fetched(struct migration *m, const struct party *dest)
{
	struct msg reply;
	const struct msg_status *s = settle_fetched(&m->id, dest, &reply);

	if (!s)
		return;
	m->done.postcopied = true;
	m->done.postcopy = s->postcopy;
	for (size_t i = 0; i < s->n_losses; i++)
		report_loss(&m->report, &s->losses[i]);
	msg_free(&reply);
}

static void settle(struct migration *m, const struct cr_err *why)
{
	struct party source = {m->opt.source, m->source_address};
	struct party dest = {m->opt.dest, m->dest_address};
	const struct cr_err err = *why; /* may be the one that is overwritten */
	int ms = SETTLE_MS;

	/* for so long the destination waits for the source's pages */
	if (may_fetch(m) && m->opt.opts.postcopy_timeout_ms < (uint32_t)(INT_MAX - SETTLE_MS))
		ms += (int)m->opt.opts.postcopy_timeout_ms;
	report_notice(&m->report, "settle", "%s; asking both agents", err.msg);
	m->done.outcome = settle_ask(&m->id, &source, &dest, m->switching, ms);
	m->done.error =
	    m->done.outcome == MSG_OUTCOME_MIGRATED ? (struct cr_err){.kind = CR_ERR_NONE} : err;
	if (m->done.outcome == MSG_OUTCOME_MIGRATED && may_fetch(m))
		take_fetched(m, &dest);
}

/* It serves pages for as long as it is waited for, and then knows no more than that. */
static bool gave_up_serving(const struct migration *m)
{
	return m->done.outcome == MSG_OUTCOME_IN_DOUBT && may_fetch(m);
}

static int exit_code_of(const struct msg_done *d)
{
	switch (d->outcome) {
	case MSG_OUTCOME_MIGRATED:
		return d->postcopied && d->postcopy.lost ? EXIT_LOST : EXIT_MIGRATED;
	case MSG_OUTCOME_REHEARSED:
		return EXIT_MIGRATED;
	case MSG_OUTCOME_FAILED:
		return EXIT_FAILED;
	case MSG_OUTCOME_REFUSED:
		return EXIT_REFUSED;
	case MSG_OUTCOME_IN_DOUBT:
		return EXIT_IN_DOUBT;
	}
	return EXIT_IN_DOUBT;
}

static int run(struct migration *m)
{
	uint64_t began = now_us();
	struct cr_err err = {0};
	bool told = false;
	int r = start(m, &told, &err);

	if (r == 0)
		r = listen_to_source(m, &err);
	if (r < 0 && told)
		settle(m, &err);
	else if (r == 0 && gave_up_serving(m))
		settle(m, &m->done.error);
	else if (r < 0)
		failed(m, &err);
	if (!m->done.total_us)
		m->done.total_us = now_us() - began;
	report_outcome(&m->report, &m->done);
	return exit_code_of(&m->done);
}

static int find_agents(struct migration *m, struct cr_err *err)
{
	struct hosts hosts = {0};
	int r = hosts_read(&hosts, m->opt.hosts, err);

	if (r == 0)
		r = hosts_find(&hosts, m->opt.source, m->source_address, err);
	if (r == 0)
		r = hosts_find(&hosts, m->opt.dest, m->dest_address, err);
	if (r == 0 && !strcmp(m->source_address, m->dest_address))
		r = cr_err_set(err, CR_ERR_INPUT, EINVAL, "%s and %s are the same agent, %s",
			       m->opt.source, m->opt.dest, m->source_address);
	hosts_done(&hosts);
	return r;
}

int cmd_migrate(int argc, char **argv)
{
	_cleanup_(migration_done) struct migration m = {.signal_fd = -1};
	struct cr_err err = {0};

	switch (options_parse(argc, argv, &m.opt, &err)) {
	case OPTIONS_SHOWN:
		return 0;
	case OPTIONS_BAD:
		return cli_bad_usage("%s", err.msg);
	case OPTIONS_RUN:
		break;
	}
	if (find_agents(&m, &err) < 0) {
		cli_complain("%s", err.msg);
		return EXIT_USAGE;
	}
	if (mig_id_new(&m.id, &m.token, &err) < 0) {
		cli_complain("%s", err.msg);
		return EXIT_FAILED;
	}
	m.opt.hooks.pid = m.opt.pid;
	m.opt.hooks.source = m.opt.source;
	m.opt.hooks.dest = m.opt.dest;
	m.report = (struct report){.json = m.opt.json,
				   .terminal = isatty(STDOUT_FILENO),
				   .source = m.opt.source,
				   .dest = m.opt.dest,
				   .id = m.id,
				   .leave_running = m.opt.opts.leave_running,
				   .pid = m.opt.pid,
				   .cgroup = m.opt.cgroup};
	return run(&m);
}
