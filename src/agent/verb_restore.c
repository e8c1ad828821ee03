/* restore: tasks out of an image. What a destination does, with the image in the source's place. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "agent/agent.h"
#include "agent/replay.h"
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
	bool detach, force, no_hw_breakpoints;
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
	    "where they were, as they were; established TCP connections are found reset.\n\n"
	    "  --dir DIR            the image's own directory\n"
	    "  --detach             return once they run; else wait for the first, and exit as it "
	    "does\n"
	    "  --hook STAGE=CMD     run CMD at pre-restore, network-switch, pre-resume,\n"
	    "                       post-resume or post-restore\n"
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
		else if (c == 'l')
			cr_err_set(&err, CR_ERR_UNSUPPORTED, ENOTSUP, "--lazy: not supported yet");
		else if (c != 'k')
			return usage(stderr);
		else if (hooks_add(&rs->hooks, optarg, STAGES, &err))
			log_debug("%s", err.msg);
		if (err.code) {
			fprintf(stderr, "cr-agent: %s\n", err.msg);
			return 2;
		}
	}
	return optind < argc || !rs->dir ? usage(stderr) : -1;
}

static int open_image(struct restore *rs, struct cr_err *err)
{
	int r = image_open(&rs->im, rs->dir, err);

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
static int build(struct restore *rs, struct tree *t, bool final, struct cr_err *err)
{
	int r = dest_build(&rs->d, t, final, err);

	if (r)
		tree_free(t);
	return r ? r : dest_journal_built(&rs->d, err);
}

static int rebuild(struct restore *rs, struct cr_err *err)
{
	struct tree *t, *last = NULL;
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
	r = build(rs, t, false, err);
	if (!r)
		r = replay_pages(&rs->d, rs->im, &rs->pages, err);
	if (!r)
		r = decode(rs, &last, err);
	if (!r)
		r = build(rs, last, true, err);
	if (!r)
		r = dest_prepare(&rs->d, err);
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

/* They run: nothing is undone any more. */
static void after(struct restore *rs)
{
	static const enum msg_hook stages[] = {MSG_HOOK_POST_RESUME, MSG_HOOK_POST_RESTORE};
	struct cr_err err = {0};

	for (size_t i = 0; i < ARRAY_SIZE(stages); i++)
		if (hooks_run(&rs->hooks, stages[i], false, &err))
			fprintf(stderr, "cr-agent: %s; the tasks run\n", err.msg);
	if (journal_remove(rs->cfg.state_dir, &rs->d.journal, &err))
		log_warn("%s", err.msg);
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
		if (rs->d.state < DEST_COMMITTED)
			dest_undo(&rs->d);
		return r;
	}
	after(rs);
	printf("restored process %d from image %s: %s of memory in %s\n", rs->hooks.pid, rs->dir,
	       units_format_bytes(rs->pages.data_pages * CR_PAGE_SIZE, bytes),
	       units_format_us(now_us() - t0, time));
	return 0;
}

/* As a shell would say it. */
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
			return WIFSIGNALED(st) ? 128 + WTERMSIG(st) : WEXITSTATUS(st);
	}
}

int verb_restore(int argc, char **argv)
{
	static char hostname[65];
	struct restore rs = {.cfg = {.host = hostname, .state_dir = "/run/cr-agent/state"}};
	struct cr_err err = {0};

	gethostname(hostname, sizeof(hostname) - 1);
	int status = parse(&rs, argc, argv);
	if (status >= 0)
		return status;
	signal(SIGPIPE, SIG_IGN);
	rs.hooks.image = rs.dir;
	status = verb_prepare_state(&rs.cfg, &err);
	if (!status)
		status = open_image(&rs, &err);
	/* the first task's parent, once those that forked it are gone */
	if (!status && !rs.detach && prctl(PR_SET_CHILD_SUBREAPER, 1))
		status = cr_err_sys(&err, "PR_SET_CHILD_SUBREAPER");
	if (!status)
		status = restore(&rs, &err);
	pid_t root = rs.hooks.pid;
	image_free(rs.im); /* what it locks may be read by others */
	if (status) {
		fprintf(stderr, "cr-agent: %s\n", err.msg);
		return rs.refused ? 4 : 1;
	}
	dest_done(&rs.d);
	sweep_cgroups();
	vec_done(&rs.hooks.list);
	return rs.detach ? 0 : wait_root(root);
}
