/* The daemon: two listeners and a process for every connection. */
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "agent/agent.h"
#include "base/clock.h"
#include "base/log.h"
#include "kernel/taskview.h"
#include "kernel/orphanview.h"
#include "kernel/pendview.h"
#include "kernel/reqview.h"
#include "kernel/reuseview.h"
#include "kernel/vmaview.h"
#include "kernel/shmview.h"
#include "resource/sockopt_alike.h"

enum {
	RETRY_MS = 2000,   /* while a journal is undecided */
	FORGET_MS = 60000, /* while one is to be forgotten some time */
	PER_PORT = 64,     /* connections at a time */
};

struct port { /* a listener, and the processes of its connections */
	int fd;
	pid_t children[PER_PORT]; /* 0: none */
};

struct daemon {
	const struct agent_config *cfg;
	struct port control, peer; /* strangers on one do not keep anybody off the other */
	int signals;
	int life[2]; /* nobody writes: its end tells the children that we are gone */
	bool stop;
	pid_t settler;   /* looks at the journals; 0: nobody does */
	uint64_t due_us; /* when to look next */
};

typedef int (*child_fn)(const struct daemon *d, int fd);

static int run_control(const struct daemon *d, int fd)
{
	/* an engine's CPU time is shared out on its own: background_enter() */
	setsid();
	return conn_control(d->cfg, fd, d->life[0]);
}

static int run_peer(const struct daemon *d, int fd)
{
	return conn_peer(d->cfg, fd);
}

static int run_settle(const struct daemon *d, int fd)
{
	(void)fd;
	return (int)settle_all(d->cfg);
}

static pid_t spawn(struct daemon *d, child_fn fn, int fd)
{
	pid_t pid = fork();

	if (pid < 0) {
		log_error("fork: %s", strerror(errno));
		return -1;
	}
	if (pid == 0) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		close(d->control.fd);
		close(d->peer.fd);
		close(d->signals);
		close(d->life[1]);
		_exit(fn(d, fd));
	}
	return pid;
}

static pid_t *child_slot(struct port *p, pid_t pid)
{
	for (size_t i = 0; i < ARRAY_SIZE(p->children); i++)
		if (p->children[i] == pid)
			return &p->children[i];
	return NULL;
}

static void accept_one(struct daemon *d, struct port *port, child_fn fn)
{
	int fd = accept4(port->fd, NULL, NULL, SOCK_CLOEXEC);
	pid_t *slot = child_slot(port, 0);

	if (fd < 0)
		return;
	pid_t pid = slot ? spawn(d, fn, fd) : -1;
	if (!slot)
		log_warn("%d connections already: one more refused", PER_PORT);
	if (pid > 0)
		*slot = pid;
	close(fd);
}

/* ---- when to look at the journals: by a deadline, for there may always be something else to do
 * ---- */

static void look_within(struct daemon *d, unsigned int ms)
{
	uint64_t at = now_us() + ms * 1000ull;

	if (at < d->due_us)
		d->due_us = at;
}

static void settler_ended(struct daemon *d, int st)
{
	d->settler = 0;
	if (!WIFEXITED(st) || WEXITSTATUS(st) == SETTLED_NOT)
		look_within(d, RETRY_MS);
	else if (WEXITSTATUS(st) == SETTLED_LATER)
		look_within(d, FORGET_MS);
}

static void child_ended(struct daemon *d, pid_t pid, int st)
{
	pid_t *slot = child_slot(&d->control, pid);

	slot = slot ? slot : child_slot(&d->peer, pid);
	if (slot)
		*slot = 0;
	if (pid == d->settler)
		settler_ended(d, st);
	else if (WIFSIGNALED(st) || WEXITSTATUS(st)) /* it may have left a journal */
		look_within(d, 0);
}

static void on_signal(struct daemon *d)
{
	struct signalfd_siginfo si;
	pid_t pid;
	int st;

	if (read(d->signals, &si, sizeof(si)) != sizeof(si))
		return;
	if (si.ssi_signo != SIGCHLD)
		d->stop = true;
	while ((pid = waitpid(-1, &st, WNOHANG)) > 0)
		child_ended(d, pid, st);
}

/* Milliseconds, for poll(2). While somebody looks, the next look waits for that one's end. */
static int until_due(const struct daemon *d)
{
	uint64_t now = now_us();

	if (d->settler || d->due_us == UINT64_MAX)
		return -1;
	return d->due_us <= now ? 0 : (int)((d->due_us - now + 999) / 1000);
}

static void look_if_due(struct daemon *d)
{
	if (until_due(d) != 0)
		return;
	d->due_us = UINT64_MAX;
	pid_t pid = spawn(d, run_settle, -1);
	if (pid > 0)
		d->settler = pid;
	else
		look_within(d, RETRY_MS);
}

static int run_loop(struct daemon *d)
{
	d->due_us = 0; /* what a daemon before us left */
	while (!d->stop) {
		look_if_due(d);
		struct pollfd p[3] = {{.fd = d->control.fd, .events = POLLIN},
				      {.fd = d->peer.fd, .events = POLLIN},
				      {.fd = d->signals, .events = POLLIN}};
		if (poll(p, 3, until_due(d)) < 0)
			continue;
		if (p[2].revents)
			on_signal(d);
		if (p[0].revents)
			accept_one(d, &d->control, run_control);
		if (p[1].revents)
			accept_one(d, &d->peer, run_peer);
	}
	return 0;
}

static int setup(struct daemon *d, struct cr_err *err)
{
	sigset_t set;

	if (mkdir(d->cfg->state_dir, 0700) && errno != EEXIST)
		return cr_err_sys(err, "making %s", d->cfg->state_dir);
	if (pipe2(d->life, O_CLOEXEC))
		return cr_err_sys(err, "pipe");
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d->signals = signalfd(-1, &set, SFD_CLOEXEC);
	if (d->signals < 0)
		return cr_err_sys(err, "signalfd");
	d->control.fd = link_listen(d->cfg->control, err);
	if (d->control.fd < 0)
		return d->control.fd;
	d->peer.fd = link_listen(d->cfg->peer_listen, err);
	return d->peer.fd < 0 ? d->peer.fd : 0;
}

static int usage(FILE *f)
{
	fputs(
	    "usage: cr-agent serve --peer-listen IP:PORT [OPTION…]\n\n"
	    "  --name HOST             what this host is called (default: its host name)\n"
	    "  --control unix:PATH     for cr-migrate (default: unix:/run/cr-agent/agent.sock)\n"
	    "  --peer-listen IP:PORT   for the other hosts' agents\n"
	    "  --page-server unix:PATH control socket of this host's page-server\n"
	    "                          (default: unix:/run/cr-agent/page-server.sock)\n"
	    "  --state DIR             journals, on a file system that does not outlive the host\n"
	    "                          (default: /run/cr-agent/state)\n",
	    f);
	return f == stdout ? 0 : 2;
}

static int parse(int argc, char **argv, struct agent_config *cfg)
{
	static const struct option options[] = {
	    {"name", required_argument, NULL, 'n'},
	    {"control", required_argument, NULL, 'c'},
	    {"peer-listen", required_argument, NULL, 'p'},
	    {"page-server", required_argument, NULL, 'g'},
	    {"state", required_argument, NULL, 's'},
	    {"help", no_argument, NULL, 'h'},
	    {NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'n':
			cfg->host = optarg;
			break;
		case 'c':
			cfg->control = optarg;
			break;
		case 'p':
			cfg->peer_listen = optarg;
			break;
		case 'g':
			cfg->page_server = !strncmp(optarg, "unix:", 5) ? optarg + 5 : optarg;
			break;
		case 's':
			cfg->state_dir = optarg;
			break;
		case 'h':
			exit(usage(stdout));
		default:
			return usage(stderr);
		}
	}
	if (optind < argc || !cfg->peer_listen)
		return usage(stderr);
	return 0;
}

int verb_serve(int argc, char **argv)
{
	static char hostname[65]; /* outlives the parse, like optarg's strings */
	struct agent_config cfg = {
	    .host = hostname,
	    .control = "unix:/run/cr-agent/agent.sock",
	    .page_server = "/run/cr-agent/page-server.sock",
	    .state_dir = "/run/cr-agent/state",
	};
	struct daemon d = {.cfg = &cfg, .control.fd = -1, .peer.fd = -1, .signals = -1};
	struct cr_err err = {0};

	gethostname(hostname, sizeof(hostname) - 1);
	int r = parse(argc, argv, &cfg);
	if (r)
		return r;
	signal(SIGPIPE, SIG_IGN);
	if (setup(&d, &err)) {
		log_error("%s", err.msg);
		return 1;
	}
	if (taskview_new(&cfg.view, &err))
		log_info("threads are asked one by one at the switch-over: %s", err.msg);
	if (vmaview_new(&cfg.vmas, &err))
		log_info("what madvise(2) sets meanwhile is looked for in small processes only: %s",
			 err.msg);
	if (reqview_new(&cfg.requests, &err))
		log_info("connections that are just being made are lost by a move: %s", err.msg);
	if (orphanview_new(&cfg.orphans, &err))
		log_info("connections that their program has closed are lost by a move, unless "
			 "their peer has acknowledged everything: %s",
			 err.msg);
	if (sock_alike_new(&cfg.socks, &err))
		log_info("the options of connections are asked one by one at the switch-over: %s",
			 err.msg);
	if (pendview_new(&cfg.pending, &err))
		log_info("what waits in sockets beside data is not seen: %s", err.msg);
	if (reuseview_new(&cfg.reuse, &err))
		log_info("programs that choose among sockets that share a port are lost by a move: "
			 "%s",
			 err.msg);
	if (shmview_new(&cfg.shared, &err))
		log_info("shared memory is compared as a whole at the switch-over: %s", err.msg);
	log_info("%s: control %s, peers %s", cfg.host, cfg.control, cfg.peer_listen);
	return run_loop(&d);
}
