/* restore: tasks out of an image. What a destination does, with the image in the source's place. */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "agent/agent.h"
#include "agent/replay.h"
#include "agent/restore_lazy.h"
#include "base/clock.h"
#include "base/log.h"
#include "migrate/hooks.h"
#include "migrate/units.h"
#include "wire/tree_codec.h"

#define STAGES                                                                                     \
	(hook_bit(MSG_HOOK_PRE_RESTORE) | hook_bit(MSG_HOOK_NETWORK_SWITCH) |                      \
	 hook_bit(MSG_HOOK_PRE_RESUME) | hook_bit(MSG_HOOK_POST_RESUME) |                          \
	 hook_bit(MSG_HOOK_POST_RESTORE))

struct restore {
	struct agent_config cfg;
	const char *dir;
	struct hooks hooks;
	bool detach, force, no_hw_breakpoints, lazy;
	const char *lazy_address, *token_file;
	struct lazy_source source; /* of pages that are missing when the tasks run */
	int told_fd;               /* --lazy --detach: to say that they run; else -1 */
	int root_status;           /* as of waitpid(2), -1: has not ended */
	struct image *im;
	struct dest d;
	struct replay_stats pages;
	bool refused;
};

static int usage(FILE *f)
{
	fputs(
	    "usage: cr-agent restore --dir DIR [OPTION…]\n\n"
	    "Makes the tasks of an image run here, under the pids that they had. Files have to be\n"
	    "where they were, as they were; TCP connections between two tasks of the image go on, "
	    "others\n"
	    "are found reset.\n\n"
	    "  --dir DIR            the image's own directory\n"
	    "  --lazy[=HOST:PORT]   run them at once: they fetch their memory as they touch it, "
	    "the\n"
	    "                       rest comes by itself; from DIR, or from a page-server that\n"
	    "                       serves the directory above it (page-server --serve): then DIR\n"
	    "                       need not have the files pages-*\n"
	    "  --token-file FILE    what the page-server's --token-file holds\n"
	    "  --detach             return once they run; else wait for the first, and exit as it "
	    "does\n"
	    "  --hook STAGE=CMD     run CMD, by sh -c, at pre-restore, network-switch, "
	    "pre-resume,\n"
	    "                       post-resume or post-restore; before post-resume its failure\n"
	    "                       ends the restore. Environment: CR_HOOK_STAGE, CR_PID, "
	    "CR_IMAGE,\n"
	    "                       CR_UNDO\n"
	    "  --force              also an image that the source has not confirmed: the tasks "
	    "may\n"
	    "                       still run there\n"
	    "  --no-hw-breakpoints  as of cr-migrate\n"
	    "  --state DIR          journals (default: /run/cr-agent/state)\n\n"
	    "Exit status: that of the first task (128 + signal); with --detach 0. 1: failed, 4: "
	    "refused.\n",
	    f);
	return f == stdout ? 0 : 2;
}

/* -1: go on; else the exit status. */
static int parse(struct restore *rs, int argc, char **argv)
{
	static const struct option options[] = {{"dir", required_argument, NULL, 'd'},
						{"detach", no_argument, NULL, 'b'},
						{"hook", required_argument, NULL, 'k'},
						{"force", no_argument, NULL, 'f'},
						{"state", required_argument, NULL, 's'},
						{"lazy", optional_argument, NULL, 'l'},
						{"token-file", required_argument, NULL, 't'},
						{"no-hw-breakpoints", no_argument, NULL, 'n'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	struct cr_err err = {0};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'd')
			rs->dir = optarg;
		else if (c == 'b')
			rs->detach = true;
		else if (c == 'f')
			rs->force = true;
		else if (c == 'n')
			rs->no_hw_breakpoints = true;
		else if (c == 's')
			rs->cfg.state_dir = optarg;
		else if (c == 'h')
			return usage(stdout);
		else if (c == 't')
			rs->token_file = optarg;
		else if (c == 'l') {
			rs->lazy = true;
			rs->lazy_address = optarg;
		} else if (c != 'k')
			return usage(stderr);
		else if (hooks_add(&rs->hooks, optarg, STAGES, &err))
			log_debug("%s", err.msg);
		if (err.code) {
			fprintf(stderr, "cr-agent: %s\n", err.msg);
			return 2;
		}
	}
	return optind < argc || !rs->dir || (rs->token_file && !rs->lazy_address) ? usage(stderr)
										  : -1;
}

static int open_image(struct restore *rs, struct cr_err *err)
{
	int r = rs->lazy_address ? image_open_index(&rs->im, rs->dir, err)
				 : image_open(&rs->im, rs->dir, err);

	if (r)
		return r;
	if (rs->im->state == IMAGE_SEALED || (rs->im->state == IMAGE_PREPARED && rs->force))
		return 0;
	return cr_err_set(
	    err, CR_ERR_INPUT, EINVAL, "image %s is %s, not sealed: %s", rs->dir,
	    image_state_name(rs->im->state),
	    rs->im->state == IMAGE_PREPARED
		? "it is complete, but the source has not said that it gave the tasks "
		  "up; if you know that they run nowhere, use --force"
		: "cr-agent dump completes it");
}

static void print_notes(const struct refusal *list, size_t n, const char *prefix)
{
	for (size_t i = 0; i < n; i++) {
		fprintf(stderr, "%s", prefix);
		if (list[i].pid)
			fprintf(stderr, "pid %d: ", list[i].pid);
		fprintf(stderr, "%s: %s\n", list[i].what, list[i].why);
	}
}

/* Refused before anything is built. Fills d.notes. */
static int check(struct restore *rs, const struct tree *t, struct cr_err *err)
{
	struct refusals *n = &rs->d.notes;

	dest_check(t, n);
	print_notes(n->list.v, n->list.n, "");
	print_notes(n->warnings.v, n->warnings.n, "warning: ");
	rs->refused = n->list.n > 0;
	if (!rs->refused)
		return 0;
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
			  "refused: %zu thing%s in the way; nothing was touched", n->list.n,
			  n->list.n == 1 ? " is" : "s are");
}

static int decode(const struct restore *rs, struct tree **ret, struct cr_err *err)
{
	int r = tree_decode(rs->im->tree, rs->im->tree_len, ret, err);

	return r ? cr_err_ctx(err, "image %s: tree", rs->dir) : 0;
}

/* Takes the tree over. */
static int build(struct restore *rs, struct tree *t, const struct dest_build_opts *how,
		 bool *ret_more, struct cr_err *err)
{
	int r = dest_build(&rs->d, t, how, ret_more, err);

	if (r)
		tree_free(t);
	return r ? r : dest_journal_built(&rs->d, err);
}

/* All of it, or what the tasks cannot do without. */
static int place_pages(struct restore *rs, bool more, struct cr_err *err)
{
	struct replay_from from = {.more = more};
	char path[256];
	int r = 0;

	if (rs->lazy) {
		lazy_stats_path(path, sizeof(path), rs->cfg.state_dir, rs->d.journal.id);
		r = lazy_new(&rs->d.lazy, path, rs->d.journal.cgroup,
			     rs->d.opts.postcopy_timeout_ms, err);
		from.lazy = rs->d.lazy;
	}
	if (rs->lazy_address) {
		from.read = lazy_source_read;
		from.arg = &rs->source;
	}
	return r ? r : replay_pages(&rs->d, rs->im, &from, &rs->pages, err);
}

/* Processes that others were forked from have their pages before those are made, as copies of them:
 * so they share again what the image has twice. Not lazily, where pages are missing. Takes the tree
 * over. */
static int build_and_place(struct restore *rs, struct tree *t, struct cr_err *err)
{
	const struct dest_build_opts how = {.in_turns = !rs->lazy && t->n_procs > 1};
	bool more = false;
	int r = build(rs, t, &how, &more, err);

	while (!r && more) {
		r = place_pages(rs, true, err);
		if (!r)
			r = decode(rs, &t, err);
		if (!r)
			r = build(rs, t, &how, &more, err);
	}
	return r ? r : place_pages(rs, false, err);
}

static int rebuild(struct restore *rs, struct cr_err *err)
{
	const struct dest_build_opts final = {.final = true};
	struct tree *t, *last = NULL;
	bool more;
	int r = decode(rs, &t, err);

	if (r)
		return r;
	rs->hooks.pid = t->root_pid;
	r = check(rs, t, err);
	if (!r)
		r = hooks_run(&rs->hooks, MSG_HOOK_PRE_RESTORE, false, err);
	if (r) {
		tree_free(t);
		return r;
	}
	r = build_and_place(rs, t, err);
	if (!r)
		r = decode(rs, &last, err);
	if (!r)
		r = build(rs, last, &final, &more, err);
	if (!r)
		r = dest_prepare(&rs->d, err);
	if (!r && rs->lazy) /* whoever cannot be reached now would not be later */
		r = lazy_source_feed(&rs->source, rs->d.lazy, err);
	return r;
}

static int launch(struct restore *rs, struct cr_err *err)
{
	struct cr_err ignored = {0};
	int r = hooks_run(&rs->hooks, MSG_HOOK_NETWORK_SWITCH, false, err);

	if (!r)
		r = hooks_run(&rs->hooks, MSG_HOOK_PRE_RESUME, false, err);
	if (!r)
		r = dest_let_go(&rs->d, err);
	if (r && hooks_run(&rs->hooks, MSG_HOOK_NETWORK_SWITCH, true, &ignored))
		fprintf(stderr, "cr-agent: undoing: %s\n", ignored.msg);
	return r ? r : dest_launch(&rs->d, err);
}

/* Nobody has to settle anything any more. */
static void remove_lock(const struct restore *rs)
{
	char path[512];

	journal_lock_path(path, sizeof(path), rs->cfg.state_dir, rs->d.journal.id, "destination");
	unlink(path);
}

/* They run: nothing is undone any more. */
static void after(struct restore *rs)
{
	static const enum msg_hook stages[] = {MSG_HOOK_POST_RESUME, MSG_HOOK_POST_RESTORE};
	struct cr_err err = {0};

	for (size_t i = 0; i < ARRAY_SIZE(stages); i++)
		if (hooks_run(&rs->hooks, stages[i], false, &err))
			fprintf(stderr, "cr-agent: %s; the tasks run\n", err.msg);
}

/* Until then it says that pages are missing: should this process die, the tasks may not run on. */
static void forget_journal(struct restore *rs)
{
	struct cr_err err = {0};

	if (journal_remove(rs->cfg.state_dir, &rs->d.journal, &err))
		log_warn("%s", err.msg);
	else
		remove_lock(rs);
}

/* Whoever called need not wait any more. */
static void tell_caller(struct restore *rs)
{
	const char ok = 0;

	fflush(stdout);
	if (rs->told_fd < 0)
		return;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3 && null >= 0; i++)
		dup2(null, i);
	close_fdp(&null);
	if (write(rs->told_fd, &ok, 1) < 0 || chdir("/"))
		log_debug("%s", strerror(errno));
	close_fdp(&rs->told_fd);
}

static int fetch_rest(struct restore *rs, struct cr_err *err)
{
	const struct lazy_stats *st = rs->d.lazy->stats;
	uint64_t lazy = st->pages_lazy;

	tell_caller(rs);
	dest_release(&rs->d);
	int r = lazy_source_supervise(&rs->source, rs->d.lazy, rs->d.journal.cgroup,
				      rs->detach ? 0 : rs->hooks.pid, &rs->root_status, err);
	if (!r && st->lost)
		log_error("restored process %d: %llu of %llu pages could not be had: SIGBUS for "
			  "who touches them",
			  rs->hooks.pid, (unsigned long long)st->lost, (unsigned long long)lazy);
	return r;
}

static int restore(struct restore *rs, struct cr_err *err)
{
	const struct dest_env env = {.host = rs->cfg.host, .state_dir = rs->cfg.state_dir};
	struct msg_receive rq = {.source_name = rs->dir};
	uint64_t t0 = now_us();
	char bytes[UNITS_TEXT], time[UNITS_TEXT], id[MIG_ID_HEX];
	int r = mig_id_new(&rq.id, &rq.token, err);

	msg_opts_default(&rq.opts);
	rq.opts.no_hw_breakpoints = rs->no_hw_breakpoints;
	rq.opts.mode = rs->lazy ? MSG_MODE_HYBRID : MSG_MODE_PRECOPY;
	mig_id_format(&rq.id, id);
	if (!r)
		r = journal_lock(rs->cfg.state_dir, id, "destination", HOLDER_WORKS, 0, err);
	if (r < 0)
		return r;
	r = dest_init(&rs->d, &env, &rq, err);
	rs->d.from_image = true;
	if (!r)
		r = rebuild(rs, err);
	if (!r)
		r = launch(rs, err);
	if (r) {
		if (rs->d.state < DEST_COMMITTED) {
			dest_undo(&rs->d);
			remove_lock(rs);
		}
		return r;
	}
	if (!rs->lazy)
		forget_journal(rs);
	after(rs);
	printf("restored process %d from image %s: %s of memory in %s", rs->hooks.pid, rs->dir,
	       units_format_bytes(rs->pages.data_pages * CR_PAGE_SIZE, bytes),
	       units_format_us(now_us() - t0, time));
	if (rs->lazy)
		printf("; %s to be fetched",
		       units_format_bytes(rs->pages.left_pages * CR_PAGE_SIZE, bytes));
	putchar('\n');
	if (rs->lazy)
		r = fetch_rest(rs, err);
	if (rs->lazy)
		forget_journal(rs);
	return r;
}

/* As a shell would say it. */
static int exit_status(int st)
{
	return WIFSIGNALED(st) ? 128 + WTERMSIG(st) : WEXITSTATUS(st);
}

static int wait_root(pid_t pid)
{
	int st;

	fflush(stdout);
	for (;;) {
		pid_t got = waitpid(-1, &st, 0); /* orphans of the tree come to us, too */

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return 1;
		if (got == pid)
			return exit_status(st);
	}
}

static int restore_here(struct restore *rs)
{
	struct cr_err err = {0};
	int r = verb_prepare_state(&rs->cfg, &err);

	if (!r)
		r = open_image(rs, &err);
	if (!r && rs->lazy)
		r = lazy_source_init(&rs->source, rs->im, rs->dir, rs->lazy_address, rs->token_file,
				     rs->cfg.host, &err);
	/* the first task's parent, once those that forked it are gone */
	if (!r && !rs->detach && prctl(PR_SET_CHILD_SUBREAPER, 1))
		r = cr_err_sys(&err, "PR_SET_CHILD_SUBREAPER");
	if (!r)
		r = restore(rs, &err);
	pid_t root = rs->hooks.pid;
	image_free(rs->im); /* what it locks may be read by others */
	lazy_source_done(&rs->source);
	if (r) {
		fprintf(stderr, "cr-agent: %s\n", err.msg);
		return rs->refused ? 4 : 1;
	}
	dest_done(&rs->d);
	sweep_cgroups();
	vec_done(&rs->hooks.list);
	if (rs->detach)
		return 0;
	return rs->root_status != -1 ? exit_status(rs->root_status) : wait_root(root);
}

/* With --detach --lazy somebody has to stay for as long as pages are missing: a child does it, and
 * tells when the tasks run. */
static int restore_behind(struct restore *rs)
{
	int p[2], st = 1;
	char ok;

	if (pipe2(p, O_CLOEXEC)) {
		fprintf(stderr, "cr-agent: pipe: %s\n", strerror(errno));
		return 1;
	}
	pid_t pid = fork();
	if (!pid) {
		setsid();
		close(p[0]);
		rs->told_fd = p[1];
		exit(restore_here(rs));
	}
	close(p[1]);
	ssize_t n = pid > 0 ? read(p[0], &ok, 1) : -1;
	close(p[0]);
	if (n == 1)
		return 0;
	while (pid > 0 && waitpid(pid, &st, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(st) && WEXITSTATUS(st) ? WEXITSTATUS(st) : 1;
}

int verb_restore(int argc, char **argv)
{
	static char hostname[65];
	struct restore rs = {.cfg = {.host = hostname, .state_dir = "/run/cr-agent/state"},
			     .source = {.urgent = -1, .bulk = -1},
			     .told_fd = -1,
			     .root_status = -1};

	gethostname(hostname, sizeof(hostname) - 1);
	int status = parse(&rs, argc, argv);
	if (status >= 0)
		return status;
	signal(SIGPIPE, SIG_IGN);
	rs.hooks.image = rs.dir;
	return rs.detach && rs.lazy ? restore_behind(&rs) : restore_here(&rs);
}
