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
#include "base/log.h"

enum { RETRY_MS = 2000, MAX_CHILDREN = 256 };

struct daemon {
	const struct agent_config *cfg;
	int control, peer, signals;
	int life[2]; /* nobody writes: its end tells the children that we are gone */
	unsigned int children;
	bool stop;
	int undecided; /* journals to look at again */
	bool look;     /* a child has ended: it may have left one */
};

typedef int (*child_fn)(const struct daemon *d, int fd);

static int run_control(const struct daemon *d, int fd)
{
	return conn_control(d->cfg, fd, d->life[0]);
}

static int run_peer(const struct daemon *d, int fd)
{
	return conn_peer(d->cfg, fd);
}

static int run_settle(const struct daemon *d, int fd)
{
	(void)fd;
	return settle_all(d->cfg) ? 1 : 0;
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
		close(d->control);
		close(d->peer);
		close(d->signals);
		close(d->life[1]);
		_exit(fn(d, fd));
	}
	d->children++;
	return pid;
}

static void accept_one(struct daemon *d, int listener, child_fn fn)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (d->children >= MAX_CHILDREN)
		log_warn("%d connections already: one more refused", MAX_CHILDREN);
	else
		spawn(d, fn, fd);
	close(fd);
}

static void on_signal(struct daemon *d)
{
	struct signalfd_siginfo si;
	int st;

	if (read(d->signals, &si, sizeof(si)) != sizeof(si))
		return;
	if (si.ssi_signo != SIGCHLD)
		d->stop = true;
	while (waitpid(-1, &st, WNOHANG) > 0) {
		d->children--;
		/* a settler says by its status that something is left; a migration that ended by a signal
		 * left a journal */
		if (WIFSIGNALED(st) || WEXITSTATUS(st))
			d->look = true;
	}
}

static int run_loop(struct daemon *d)
{
	d->look = true;
	while (!d->stop) {
		struct pollfd p[3] = {{.fd = d->control, .events = POLLIN},
				      {.fd = d->peer, .events = POLLIN},
				      {.fd = d->signals, .events = POLLIN}};
		int n = poll(p, 3, d->look ? RETRY_MS : -1);

		if (n == 0 && d->look) {
			d->look = false;
			spawn(d, run_settle, -1);
		}
		if (p[2].revents)
			on_signal(d);
		if (p[0].revents)
			accept_one(d, d->control, run_control);
		if (p[1].revents)
			accept_one(d, d->peer, run_peer);
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
	d->control = link_listen(d->cfg->control, err);
	if (d->control < 0)
		return d->control;
	d->peer = link_listen(d->cfg->peer_listen, err);
	return d->peer < 0 ? d->peer : 0;
}

static int usage(FILE *f)
{
	fputs("usage: cr-agent serve --peer-listen IP:PORT [OPTION…]\n\n"
	      "  --name HOST             what this host is called (default: its host name)\n"
	      "  --control unix:PATH     for cr-migrate (default: unix:/run/cr-agent/agent.sock)\n"
	      "  --peer-listen IP:PORT   for the other hosts' agents\n"
	      "  --page-server unix:PATH control socket of this host's page-server\n"
	      "                          (default: unix:/run/cr-agent/page-server.sock)\n"
	      "  --state DIR             journals, on a file system that does not outlive the host\n"
	      "                          (default: /run/cr-agent/state)\n", f);
	return f == stdout ? 0 : 2;
}

static int parse(int argc, char **argv, struct agent_config *cfg)
{
	static const struct option options[] = {
		{"name", required_argument, NULL, 'n'},	  {"control", required_argument, NULL, 'c'},
		{"peer-listen", required_argument, NULL, 'p'},
		{"page-server", required_argument, NULL, 'g'},
		{"state", required_argument, NULL, 's'},  {"help", no_argument, NULL, 'h'},
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
	struct daemon d = {.cfg = &cfg, .control = -1, .peer = -1, .signals = -1};
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
	log_info("%s: control %s, peers %s", cfg.host, cfg.control, cfg.peer_listen);
	return run_loop(&d);
}
