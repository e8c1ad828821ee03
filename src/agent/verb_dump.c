/* pre-dump and dump: a migration into an image, by a page-server elsewhere or one of our own. */
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "agent/agent.h"
#include "agent/image_server.h"
#include "wire/addr_resolve.h"
#include "agent/track.h"
#include "base/log.h"
#include "base/version.h"
#include "kernel/pendview.h"
#include "kernel/reuseview.h"
#include "kernel/taskview.h"
#include "kernel/vmaview.h"
#include "resource/sockopt_alike.h"
#include "migrate/hooks.h"
#include "migrate/report.h"
#include "migrate/units.h"
#include "source/source.h"
#include "wire/token_file.h"

#define STAGES                                                                                     \
	(hook_bit(MSG_HOOK_PRE_DUMP) | hook_bit(MSG_HOOK_POST_DUMP) |                              \
	 hook_bit(MSG_HOOK_NETWORK_LOCK) | hook_bit(MSG_HOOK_NETWORK_UNLOCK))

enum leave { LEAVE_KILLED, LEAVE_RUNNING, LEAVE_STOPPED };

struct dump {
	struct agent_config cfg;
	struct msg_migrate rq;
	struct source_image image;
	struct hooks hooks;
	const char *page_server, *dir, *token_file;
	char address[ADDR_TEXT];
	bool pre, json, track;
	enum leave leave;
	struct image_server server;
	struct track_request tracked; /* what is asked of who tracks the tasks, if somebody does */
};

static int usage(bool pre, FILE *f)
{
	if (pre)
		fputs("usage: cr-agent pre-dump --pid N --page-server HOST:PORT --id NAME "
		      "[OPTION…]\n"
		      "       cr-agent pre-dump --pid N --dir DIR [OPTION…]\n\n"
		      "Copies the memory of a process and all below it into an image while they "
		      "run; may be\nrepeated: pages that the image has already are not sent "
		      "again. `cr-agent dump` completes it.\n\n",
		      f);
	else
		fputs("usage: cr-agent dump --pid N --page-server HOST:PORT --id NAME [OPTION…]\n"
		      "       cr-agent dump --pid N --dir DIR [OPTION…]\n\n"
		      "Stops a process and all below it, completes the image, and kills them once "
		      "it is sealed.\n\n",
		      f);
	fputs("  --pid N                  the process; or --cgroup /PATH: all in that cgroup\n"
	      "  --freeze-cgroup /PATH    with --pid: stop the tasks by freezing this cgroup\n"
	      "  --page-server HOST:PORT  a page-server that runs with --dir\n"
	      "  --id NAME                of the image there\n"
	      "  --dir DIR                an image on this host, in DIR itself\n"
	      "  --token-file FILE        what the page-server's --token-file holds\n"
	      "  --hook STAGE=CMD         run CMD, by sh -c, at pre-dump, network-lock, post-dump "
	      "or\n"
	      "                           network-unlock (when the tasks go on); its failure "
	      "ends the\n"
	      "                           dump. Environment: CR_HOOK_STAGE, CR_PID, CR_IMAGE\n"
	      "  --streams N              connections for pages (default 2)\n"
	      "  --max-bandwidth RATE     beside the running tasks, such as 100M\n"
	      "  --compress auto|lz4|none\n"
	      "  --tcp auto|close|refuse  established TCP connections: those over the loopback "
	      "interface\n"
	      "                           between two of the tasks stay, others are found reset "
	      "when the\n"
	      "                           image is restored, a warning names each (auto, the "
	      "default);\n"
	      "                           all are found reset; or they are a reason to refuse\n"
	      "  --max-rounds N           copies beside the running tasks (default 1, of dump 3)\n"
	      "  --state DIR              journals (default: /run/cr-agent/state)\n"
	      "  --json                   one object a line\n",
	      f);
	if (pre)
		fputs(
		    "  --track                  leave a process that goes on tracking writes: the "
		    "next pre-dump or\n"
		    "                           dump reads and sends only what was written, and "
		    "need not stop\n"
		    "                           the tasks to begin; it ends with them, or with "
		    "the dump\n",
		    f);
	else
		fputs("  --leave-running          the tasks go on afterwards\n"
		      "  --leave-stopped          they stay, stopped by SIGSTOP\n",
		      f);
	return f == stdout ? 0 : 2;
}

enum { OPT_STATE = 256, OPT_LEAVE_RUNNING, OPT_LEAVE_STOPPED, OPT_TRACK, OPT_TCP };
static const struct option options[] = {
    {"pid", required_argument, NULL, 'p'},
    {"cgroup", required_argument, NULL, 'c'},
    {"freeze-cgroup", required_argument, NULL, 'f'},
    {"page-server", required_argument, NULL, 'g'},
    {"id", required_argument, NULL, 'i'},
    {"dir", required_argument, NULL, 'd'},
    {"token-file", required_argument, NULL, 't'},
    {"hook", required_argument, NULL, 'k'},
    {"streams", required_argument, NULL, 's'},
    {"max-bandwidth", required_argument, NULL, 'b'},
    {"compress", required_argument, NULL, 'z'},
    {"max-rounds", required_argument, NULL, 'r'},
    {"state", required_argument, NULL, OPT_STATE},
    {"json", no_argument, NULL, 'j'},
    {"leave-running", no_argument, NULL, OPT_LEAVE_RUNNING},
    {"leave-stopped", no_argument, NULL, OPT_LEAVE_STOPPED},
    {"track", no_argument, NULL, OPT_TRACK},
    {"tcp", required_argument, NULL, OPT_TCP},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static int take_number(const char *text, uint64_t max, uint32_t *ret, struct cr_err *err)
{
	uint64_t n;
	int r = units_parse_number(text, 1, max, &n, err);

	*ret = r ? 0 : (uint32_t)n;
	return r;
}

static int take_compress(struct dump *d, const char *text, struct cr_err *err)
{
	static const char *const names[] = {"auto", "lz4", "none"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(text, names[i])) {
			d->rq.opts.compress = (enum msg_compress)i;
			return 0;
		}
	}
	return cr_err_set(err, CR_ERR_INPUT, EINVAL, "--compress %s: auto, lz4 or none", text);
}

static int take_tcp(struct dump *d, const char *text, struct cr_err *err)
{
	if (strcmp(text, "auto") != 0 && strcmp(text, "close") != 0 && strcmp(text, "refuse") != 0)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "--tcp %s: auto, close or refuse",
				  text);
	d->rq.opts.tcp = *text == 'a'   ? MSG_TCP_AUTO
			 : *text == 'c' ? MSG_TCP_CLOSE
					: MSG_TCP_REFUSE;
	return 0;
}

static int take_option(struct dump *d, int c, const char *text, struct cr_err *err)
{
	uint32_t pid;
	int r;

	switch (c) {
	case 'p':
		r = take_number(text, 4 << 20, &pid, err); /* proc_sys_kernel(5), pid_max */
		d->rq.pid = (pid_t)pid;
		return r;
	case 'c':
		d->rq.cgroup = text;
		return 0;
	case 'f':
		d->rq.freeze_cgroup = text;
		return 0;
	case 'g':
		d->page_server = text;
		return 0;
	case 'i':
		d->image.name = text;
		return 0;
	case 'd':
		d->dir = text;
		return 0;
	case 't':
		d->token_file = text;
		return 0;
	case 'k':
		return hooks_add(&d->hooks, text, STAGES, err);
	case 's':
		return take_number(text, 16, &d->rq.opts.streams, err);
	case 'b':
		return units_parse_rate(text, &d->rq.opts.max_bandwidth, err);
	case 'z':
		return take_compress(d, text, err);
	case 'r':
		return take_number(text, 1000000, &d->rq.opts.max_rounds, err);
	case OPT_STATE:
		d->cfg.state_dir = text;
		return 0;
	case 'j':
		d->json = true;
		return 0;
	case OPT_LEAVE_RUNNING:
		d->leave = LEAVE_RUNNING;
		return 0;
	case OPT_LEAVE_STOPPED:
		d->leave = LEAVE_STOPPED;
		return 0;
	case OPT_TRACK:
		d->track = true;
		return 0;
	case OPT_TCP:
		return take_tcp(d, text, err);
	default:
		return -EINVAL;
	}
}

static bool complete(const struct dump *d)
{
	bool remote = d->page_server && d->image.name, local = d->dir && !d->token_file;

	return (d->rq.pid || *d->rq.cgroup) && remote != local && !(d->page_server && d->dir) &&
	       (d->pre ? d->leave == LEAVE_KILLED : !d->track);
}

/* -1: go on; else the exit status. */
static int parse(struct dump *d, int argc, char **argv)
{
	struct cr_err err = {0};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h')
			return usage(d->pre, stdout);
		if (take_option(d, c, optarg, &err)) {
			if (!err.code)
				return usage(d->pre, stderr);
			fprintf(stderr, "cr-agent: %s\n", err.msg);
			return 2;
		}
	}
	return optind < argc || !complete(d) ? usage(d->pre, stderr) : -1;
}

/* ---- the two ends: an engine in a process of its own, and this one, which tells the user ---- */

/* In a session of its own, and with no descriptor that is not ours: it may outlive the caller. */
static void stand_alone(int *client, int *life)
{
	setsid();
	int a = fcntl(*client, F_DUPFD_CLOEXEC, 10), b = fcntl(*life, F_DUPFD_CLOEXEC, 10);

	if (a < 0 || b < 0 || dup3(a, 3, O_CLOEXEC) < 0 || dup3(b, 4, O_CLOEXEC) < 0 ||
	    close_range(5, ~0U, 0))
		_exit(1);
	*client = 3;
	*life = 4;
}

static void be_engine(struct dump *d, int client, int life)
{
	struct cr_err err = {0};
	struct link *l;

	/* what ends this program by the terminal is not to hit it in the middle of something: it
	 * sees the end of its client, and undoes */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (d->track)
		stand_alone(&client, &life);
	if (link_new(&l, client, client, &err))
		_exit(1);
	if (taskview_new(&d->cfg.view, &err)) /* every thread is asked then */
		log_debug("%s", err.msg);
	if (vmaview_new(&d->cfg.vmas, &err))
		log_debug("%s", err.msg);
	if (sock_alike_new(&d->cfg.socks, &err))
		log_debug("%s", err.msg);
	if (pendview_new(&d->cfg.pending, &err))
		log_debug("%s", err.msg);
	if (reuseview_new(&d->cfg.reuse, &err))
		log_debug("%s", err.msg);
	if (d->track) {
		track_engine(&d->cfg, l, &d->rq, &d->tracked, life);
		_exit(0);
	}
	work_source(&d->cfg, l, &d->rq, &d->image, life);
	link_free(l);
	_exit(0);
}

static const char *outcome_word(const struct msg_done *done)
{
	if (done->outcome == MSG_OUTCOME_MIGRATED)
		return "dumped";
	return done->outcome == MSG_OUTCOME_REHEARSED ? "pre-dumped"
						      : msg_outcome_name(done->outcome);
}

static void say_json(const struct msg_done *done)
{
	char text[2 * sizeof(done->error.msg)];
	size_t n = 0;

	for (const char *c = done->error.msg; *c && n < sizeof(text) - 2; c++) {
		if (*c == '"' || *c == '\\')
			text[n++] = '\\';
		text[n++] = (unsigned char)*c < ' ' ? ' ' : *c;
	}
	text[n] = 0;
	printf("{\"event\":\"done\",\"outcome\":\"%s\",\"downtime_us\":%llu,\"total_us\":%llu,"
	       "\"memory_bytes\":%llu,\"error\":",
	       outcome_word(done), (unsigned long long)done->downtime_us,
	       (unsigned long long)done->total_us, (unsigned long long)done->memory_bytes);
	if (done->error.kind)
		printf("{\"code\":%d,\"message\":\"%s\"}}\n", done->error.code, text);
	else
		puts("null}");
}

static void say_text(const struct dump *d, const struct msg_done *done)
{
	static const char *const left[] = {[LEAVE_KILLED] = "",
					   [LEAVE_RUNNING] = "; they run on",
					   [LEAVE_STOPPED] = "; they are left stopped"};
	char bytes[UNITS_TEXT], time[UNITS_TEXT], down[UNITS_TEXT];

	if (done->outcome == MSG_OUTCOME_REFUSED)
		fprintf(stderr, "cr-agent: refused; nothing was touched\n");
	else if (done->outcome == MSG_OUTCOME_IN_DOUBT)
		fprintf(stderr, "cr-agent: in doubt: %s\n", done->error.msg);
	else if (done->outcome == MSG_OUTCOME_FAILED)
		fprintf(stderr, "cr-agent: failed: %s; the tasks run on as before\n",
			done->error.msg);
	else
		printf("%s to image %s: %s of memory in %s", outcome_word(done), d->image.name,
		       units_format_bytes(done->memory_bytes, bytes),
		       units_format_us(done->total_us, time));
	if (done->outcome == MSG_OUTCOME_MIGRATED)
		printf(", stopped for %s%s", units_format_us(done->downtime_us, down),
		       left[d->leave]);
	if (done->outcome == MSG_OUTCOME_MIGRATED || done->outcome == MSG_OUTCOME_REHEARSED)
		putchar('\n');
}

static int exit_status(enum msg_outcome o)
{
	static const int of[] = {
	    [MSG_OUTCOME_FAILED] = 1, [MSG_OUTCOME_REFUSED] = 4, [MSG_OUTCOME_IN_DOUBT] = 3};

	return (unsigned)o < ARRAY_SIZE(of) ? of[o] : 0;
}

enum { NOBODY_THERE = -2 };

/* Returns the exit status. NOBODY_THERE: not a word came. */
static int listen_to(struct dump *d, struct link *l)
{
	struct report rep = {.json = d->json, .source = d->cfg.host, .dest = "image"};
	struct cr_err err = {0};
	struct msg m;
	int status = -1;

	for (bool heard = false; status < 0; heard = true) {
		if (link_recv(l, -1, &m, &err)) {
			if (!heard)
				return NOBODY_THERE;
			fprintf(stderr,
				"cr-agent: the engine ended unexpectedly (%s); what it "
				"left is settled by the next call, or by the agent\n",
				err.msg);
			return 3;
		}
		if (m.type == MSG_EVENT)
			report_event(&rep, &m.event);
		else if (m.type == MSG_ROUND)
			report_round(&rep, &m.round);
		else if (m.type == MSG_REFUSED)
			report_refused(&rep, &m.refused);
		else if (m.type == MSG_WARNING)
			report_warning(&rep, &m.warning);
		else if (m.type == MSG_RUN_HOOK && hooks_answer(&d->hooks, l, &m.run_hook, &err))
			log_debug("%s", err.msg); /* the next message will not come */
		if (m.type == MSG_DONE) {
			if (d->json)
				say_json(&m.done);
			else
				say_text(d, &m.done);
			status = exit_status(m.done.outcome);
		}
		msg_free(&m);
	}
	report_done_with(&rep);
	return status;
}

struct ends { /* of the connection to an engine */
	int ours, its, life[2];
};

static void close_ends(struct ends *e)
{
	close_fdp(&e->ours);
	close_fdp(&e->its);
	close_fdp(&e->life[0]);
	close_fdp(&e->life[1]);
}

static int make_ends(struct ends *e, struct cr_err *err)
{
	int sv[2];

	*e = (struct ends){-1, -1, {-1, -1}};
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return cr_err_sys(err, "socketpair");
	e->ours = sv[0];
	e->its = sv[1];
	return pipe2(e->life, O_CLOEXEC) ? cr_err_sys(err, "pipe") : 0;
}

static int talk(struct dump *d, struct ends *e, const struct msg *first, struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = NULL;
	int r = link_new(&l, e->ours, e->ours, err);

	if (r)
		return r;
	e->ours = -1;
	close_fdp(&e->its);
	close_fdp(&e->life[0]);
	if (first && link_send(l, first, err))
		return NOBODY_THERE;
	return listen_to(d, l);
}

/* By who has tracked the tasks since the pre-dump before. NOBODY_THERE: there is none. */
static int run_tracked(struct dump *d, struct cr_err *err)
{
	_cleanup_(close_ends) struct ends e;
	struct msg m = msg_of(MSG_MIGRATE);
	char name[40];
	int r = make_ends(&e, err);

	if (r)
		return r;
	track_name(name, sizeof(name), &d->rq);
	pid_t who = track_ask(d->cfg.state_dir, name, &d->tracked, e.its, e.life[0]);
	if (!who)
		return NOBODY_THERE;
	m.migrate = d->rq;
	r = talk(d, &e, &m, err);
	if (r == NOBODY_THERE || !d->track)
		track_wait_end(who);
	return r;
}

/* By an engine of our own. */
static int run(struct dump *d, struct cr_err *err)
{
	_cleanup_(close_ends) struct ends e;
	int r = make_ends(&e, err);

	if (r)
		return r;
	pid_t engine = fork();
	if (engine < 0)
		return cr_err_sys(err, "fork");
	if (!engine) {
		close(e.ours);
		close(e.life[1]);
		be_engine(d, e.its, e.life[0]);
	}
	r = talk(d, &e, NULL, err);
	close_fdp(&e.life[1]);
	/* one that tracks on stays */
	while ((!d->track || r) && waitpid(engine, NULL, 0) < 0 && errno == EINTR)
		;
	return r == NOBODY_THERE ? cr_err_set(err, CR_ERR_BUG, ECHILD, "the engine ended at once")
				 : r;
}

/* ---- */

static int make_state_dir(const char *path, struct cr_err *err)
{
	char parent[512];

	snprintf(parent, sizeof(parent), "%s", path);
	if (mkdir(dirname(parent), 0755) && errno != EEXIST)
		return cr_err_sys(err, "making %s", parent);
	return mkdir(path, 0700) && errno != EEXIST ? cr_err_sys(err, "making %s", path) : 0;
}

int verb_prepare_state(const struct agent_config *cfg, struct cr_err *err)
{
	int r = make_state_dir(cfg->state_dir, err);

	if (!r && settle_all(cfg) == SETTLED_NOT)
		log_warn("%s: something is undecided; see cr-migrate status", cfg->state_dir);
	return r;
}

/* What who tracks the tasks has to agree to. */
static int describe(struct dump *d, struct cr_err *err)
{
	struct track_request *t = &d->tracked;
	_cleanup_free_ char *copy = d->dir ? strdup(d->dir) : NULL;
	_cleanup_free_ char *where = copy ? realpath(dirname(copy), NULL) : NULL;

	if (d->dir && !where)
		return cr_err_sys(err, "--dir %s", d->dir);
	snprintf(t->version, sizeof(t->version), "%s", CR_VERSION);
	snprintf(t->name, sizeof(t->name), "%s", d->image.name);
	int n = snprintf(t->key, sizeof(t->key), "%d %s %s %s/%s", d->rq.pid, d->rq.cgroup,
			 d->rq.freeze_cgroup, d->dir ? where : d->address, d->image.name);
	if (n >= (int)sizeof(t->key))
		return cr_err_set(err, CR_ERR_INPUT, ENAMETOOLONG, "--dir or --cgroup: too long");
	t->pre_dump = d->pre;
	t->leave_stopped = d->leave == LEAVE_STOPPED;
	t->track = d->track;
	return 0;
}

static int prepare(struct dump *d, struct cr_err *err)
{
	int r = verb_prepare_state(&d->cfg, err);

	if (!r)
		r = mig_id_new(&d->rq.id, &d->rq.token, err);
	if (!r && d->dir)
		r = image_server_start(&d->server, d->dir, &d->rq.token, err);
	else if (!r && d->token_file)
		r = token_file_read(d->token_file, &d->rq.token, err);
	else if (!r)
		token_none(&d->rq.token);
	if (!r && !d->dir)
		r = addr_resolve(d->page_server, d->address, err);
	if (r)
		return r;
	if (d->dir)
		d->image.name = d->server.name;
	d->rq.peer_address = d->rq.pages_address = d->dir ? d->server.address : d->address;
	d->hooks.image = d->image.name;
	d->hooks.pid = d->rq.pid;
	d->rq.hooks = hooks_stages(&d->hooks);
	d->image.pre_dump = d->pre;
	d->image.leave_stopped = d->leave == LEAVE_STOPPED;
	d->rq.opts.leave_running = d->leave == LEAVE_RUNNING;
	return describe(d, err);
}

static int dump_main(bool pre, int argc, char **argv)
{
	static char hostname[65];
	struct dump d = {.pre = pre,
			 .cfg = {.host = hostname, .state_dir = "/run/cr-agent/state"},
			 .rq = {.cgroup = "", .freeze_cgroup = "", .dest_name = "image"}};
	struct cr_err err = {0};

	gethostname(hostname, sizeof(hostname) - 1);
	msg_opts_default(&d.rq.opts);
	d.rq.opts.max_rounds = pre ? 1 : 3;
	int status = parse(&d, argc, argv);
	if (status >= 0)
		return status;
	signal(SIGPIPE, SIG_IGN);
	status = prepare(&d, &err);
	if (!status)
		status = run_tracked(&d, &err);
	if (status == NOBODY_THERE)
		status = run(&d, &err);
	if (status < 0) {
		fprintf(stderr, "cr-agent: %s\n", err.msg);
		status = 1;
	}
	image_server_stop(&d.server);
	vec_done(&d.hooks.list);
	return status;
}

int verb_dump(int argc, char **argv)
{
	return dump_main(false, argc, argv);
}

int verb_pre_dump(int argc, char **argv)
{
	return dump_main(true, argc, argv);
}
