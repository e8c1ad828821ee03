/* What cr-migrate takes from its command line and how it answers; the verbs status and resolve. */
#include "cli_stage.h"

#include <pty.h>

static bool play_listing(struct fake *f, struct link *l, const struct msg *m)
{
	static const pid_t pids[] = {4242, 4250};
	struct msg_status s = {.id = {{0xab}},
			       .role = "destination",
			       .state = "in doubt: prepared",
			       .pids = pids,
			       .n_pids = 2,
			       .peer = "alpha",
			       .since_sec = 1700000000};
	struct msg none = {
	    .type = MSG_ERROR,
	    .error = {.kind = CR_ERR_INPUT, .code = ENOENT, .msg = "nothing is in doubt"}};

	if (m->type == MSG_STATUS)
		return fake_send(l, (struct msg){.type = MSG_STATUS_LIST, .status_list = {&s, 1}});
	if (m->type != MSG_RESOLVE)
		return false;
	f->seen->resolves++;
	f->seen->action = m->resolve.action;
	f->seen->resolve_id = m->resolve.id;
	if (m->resolve.action == MSG_ACTION_ABORT)
		return fake_send(l, none);
	return fake_send(
	    l, (struct msg){.type = MSG_RESOLVED, .resolved.text = "2 processes run here"});
}

static bool play_fetching(struct fake *f, struct link *l, const struct msg *m)
{
	static const pid_t pids[] = {4242};
	static const uint64_t histogram[MSG_HISTOGRAM] = {[6] = 80, [7] = 3, [9] = 1};
	struct msg_status s = {.id = {{0xab}},
			       .role = "destination",
			       .state = "fetching pages",
			       .pids = pids,
			       .n_pids = 1,
			       .peer = "",
			       .since_sec = 1700000000,
			       .postcopying = true,
			       .pages_left = 5,
			       .postcopy = {.pages_lazy = 100, .faults = 84},
			       .histogram = histogram};

	(void)f;
	return m->type == MSG_STATUS &&
	       fake_send(l, (struct msg){.type = MSG_STATUS_LIST, .status_list = {&s, 1}});
}

static bool play_idle(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_STATUS && fake_send(l, msg_of(MSG_STATUS_LIST));
}

#define BAD(says, ...)                                                                             \
	do {                                                                                       \
		struct run r;                                                                      \
		RUN(&r, __VA_ARGS__);                                                              \
		assert_int_equal(r.code, 2);                                                       \
		HAS(r.err, says);                                                                  \
		assert_string_equal(r.text, "");                                                   \
	} while (0)

static void test_options_arrive(void **state)
{
	(void)state;
	struct run r;

	cast(play_source, play_dest);
	RUN(&r, "migrate", "alpha", "beta", "--pid=77", "--freeze-cgroup", "/web/1",
	    "--downtime-limit", "1.5ms", "--max-rounds", "5", "--max-bandwidth", "1Gbit",
	    "--streams", "3", "--compress", "none", "--verify", "full", "--launch", "sigreturn",
	    "--leave-running", "--no-hw-breakpoints", "--no-bpf");
	assert_int_equal(r.code, 0);
	HAS(r.text, "copied process 77 from alpha to beta");
	const struct msg_opts *o = &stage->beta.seen->opts;
	assert_int_equal(o->downtime_limit_us, 1500);
	assert_int_equal(o->max_rounds, 5);
	assert_int_equal(o->max_bandwidth, 125000000);
	assert_int_equal(o->streams, 3);
	assert_int_equal(o->compress, MSG_COMPRESS_NONE);
	assert_int_equal(o->verify, MSG_VERIFY_FULL);
	assert_int_equal(o->launch, MSG_LAUNCH_SIGRETURN);
	assert_true(o->leave_running && o->no_hw_breakpoints && o->no_bpf && !o->rehearse);
	assert_int_equal(stage->alpha.seen->pid, 77);
	assert_string_equal(stage->alpha.seen->freeze_cgroup, "/web/1");
	RUN(&r, "alpha->beta", "--cgroup", "/web");
	assert_int_equal(r.code, 0);
	o = &stage->beta.seen->opts;
	assert_int_equal(o->downtime_limit_us, 20000);
	assert_int_equal(o->max_rounds, 16);
	assert_int_equal(o->max_bandwidth, 0);
	assert_int_equal(o->compress, MSG_COMPRESS_AUTO);
	assert_int_equal(o->verify, MSG_VERIFY_STREAM);
	assert_int_equal(stage->alpha.seen->pid, 0);
	assert_string_equal(stage->alpha.seen->cgroup, "/web");
}

static void test_bad_usage(void **state)
{
	(void)state;
	struct run none;

	cast(play_source, play_dest);
	begin(&none, (char *[]){NULL});
	finish(&none);
	assert_int_equal(none.code, 2);
	BAD("which hosts?", "--pid", "1");
	BAD("which hosts?", "alpha", "--pid", "1");
	BAD("unknown option ->", "->beta", "--pid", "1");
	BAD("which hosts?", "alpha->", "--pid", "1");
	BAD("in quotes", "alpha-", "--pid", "1");
	BAD("what is 'gamma' for?", "alpha", "beta", "gamma", "--pid", "1");
	BAD("what is 'gamma' for?", "alpha->beta", "gamma", "--pid", "1");
	BAD("both alpha", "alpha->alpha", "--pid", "1");
	BAD("what is to be moved?", "alpha->beta");
	BAD("not both", MOVE, "--cgroup", "/web");
	BAD("--freeze-cgroup goes with --pid", "alpha->beta", "--cgroup", "/web", "--freeze-cgroup",
	    "/w");
	BAD("not both", MOVE, "--rehearse", "--leave-running");
	BAD("--pid: '0' is not a number", "alpha->beta", "--pid", "0");
	BAD("--pid: '-5' is not a number", "alpha->beta", "--pid=-5");
	BAD("--pid: '12x' is not a number", "alpha->beta", "--pid", "12x");
	BAD("--pid needs a value", "alpha->beta", "--pid");
	BAD("--cgroup: 'web' must begin with '/'", "alpha->beta", "--cgroup", "web");
	BAD("--downtime-limit: '20' has no unit: say 20us, 20ms or 20s", MOVE, "--downtime-limit",
	    "20");
	BAD("unknown unit 'min'", MOVE, "--downtime-limit", "1min");
	BAD("is not from 1us", MOVE, "--downtime-limit", "0ms");
	BAD("is not a duration", MOVE, "--downtime-limit", "fast");
	BAD("is not a rate", MOVE, "--max-bandwidth", "100");
	BAD("is none of auto, lz4, none", MOVE, "--compress", "zstd");
	BAD("is none of stream, full", MOVE, "--verify", "yes");
	BAD("is none of regsets, sigreturn", MOVE, "--launch", "x");
	BAD("from 1 to 16", MOVE, "--streams", "17");
	BAD("unknown option --frobnicate", MOVE, "--frobnicate");
	BAD("unknown option -x", MOVE, "-x");
	BAD("gamma: agents over TLS (HOST:PORT) are not supported yet", "alpha->gamma", "--pid",
	    "1");
	BAD("epsilon is not in the hosts file", "alpha->epsilon", "--pid", "1");
	BAD("over ssh are not supported yet", "delta->beta", "--pid", "1");
	BAD("cannot read the hosts file /nonexistent", MOVE, "--hosts", "/nonexistent");
	BAD("one of --commit, --abort and --take-over", "resolve", "alpha");
	BAD("one of --commit", "resolve", "--commit", "--abort", "alpha");
	BAD("expected resolve", "resolve", "--commit");
	BAD("'xyz' is not the id", "resolve", "xyz", "--commit", "alpha");
	assert_int_equal(stage->alpha.seen->hellos_migrate, 0);
	assert_int_equal(stage->beta.seen->hellos_migrate, 0);
}

static void test_help(void **state)
{
	(void)state;
	struct run r;

	RUN(&r, "--help");
	assert_int_equal(r.code, 0);
	HAS(r.text, "usage: cr-migrate");
	HAS(r.text, "Exit: 0 migrated");
	RUN(&r, "--version");
	assert_int_equal(r.code, 0);
	assert_int_equal(strncmp(r.text, "cr-migrate ", 11), 0);
}

static void test_unix_endpoints(void **state)
{
	(void)state;
	struct run r;

	cast(play_source, play_dest);
	char *args[] = {stage->alpha.address, stage->beta.address, "--pid", "4242", NULL};
	begin(&r, args);
	finish(&r);
	assert_int_equal(r.code, 0);
}

static void test_terminal(void **state)
{
	(void)state;
	int master, slave, status;
	char text[4096] = "";
	size_t len = 0;
	struct winsize size = {.ws_row = 24, .ws_col = 120};

	cast(play_source, play_dest);
	assert_int_equal(openpty(&master, &slave, NULL, NULL, &size), 0);
	pid_t pid = fork();
	if (pid == 0) {
		dup2(slave, STDOUT_FILENO);
		dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO);
		execl(stage->program, "cr-migrate", "alpha->beta", "--pid", "4242", "--hosts",
		      stage->hosts, NULL);
		_exit(127);
	}
	/* the slave stays open here, so that nothing is lost when the program ends */
	while (!strstr(text, "  commit")) {
		struct pollfd p = {.fd = master, .events = POLLIN};

		assert_int_equal(poll(&p, 1, 10000), 1);
		ssize_t n = read(master, text + len, sizeof(text) - 1 - len);
		assert_true(n > 0);
		len += (size_t)n;
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(master);
	close(slave);
	assert_int_equal(status, 0);
	HAS(text, "round   written      sent");
	HAS(text,
	    "    1      4000      3000     12.0 MB     5.00 ms      2.4 GB/s           900 us");
}

static void test_status(void **state)
{
	(void)state;
	struct run r;

	cast(play_idle, play_listing);
	RUN(&r, "status", "alpha");
	assert_int_equal(r.code, 0);
	assert_string_equal(r.text, "no migrations\n");
	RUN(&r, "status", "alpha", "beta");
	assert_int_equal(r.code, 0);
	HAS(r.text, "HOST ");
	HAS(r.text, "beta         ab000000000000000000000000000000 destination alpha ");
	HAS(r.text, "4242,4250        in doubt: prepared\n");
	RUN(&r, "status", "--json", "beta");
	assert_int_equal(r.code, 0);
	HAS(r.text, "{\"event\":\"status\",\"host\":\"beta\",\"migration\":"
		    "\"ab000000000000000000000000000000\",\"role\":\"destination\","
		    "\"state\":\"in doubt: prepared\",\"pids\":[4242,4250],\"peer\":\"alpha\","
		    "\"since\":1700000000}\n");
	RUN(&r, "status"); /* gamma and delta of the hosts file cannot be asked */
	assert_int_equal(r.code, 1);
	HAS(r.text, "in doubt: prepared");
	HAS(r.err, "gamma: agents over TLS");
}

static void test_status_histogram(void **state)
{
	(void)state;
	struct run r;

	cast(play_fetching, play_idle);
	RUN(&r, "status", "alpha");
	assert_int_equal(r.code, 0);
	HAS(r.text, "fetching pages: 5 of 100 left; 84 waited for");
	HAS(r.text, "\n  below         64 us         80  ###########################\n"
		    "  below        128 us          3  #\n"
		    "  below        256 us          0  \n"
		    "  below        512 us          1  #\n");
}

static void test_resolve(void **state)
{
	(void)state;
	struct run r;

	cast(play_idle, play_listing);
	RUN(&r, "resolve", "--take-over", "beta");
	assert_int_equal(r.code, 0);
	assert_string_equal(r.text, "beta: 2 processes run here\n");
	assert_int_equal(stage->beta.seen->action, MSG_ACTION_TAKE_OVER);
	assert_true(mig_id_is_zero(&stage->beta.seen->resolve_id));
	RUN(&r, "resolve", "ab000000000000000000000000000001", "--commit", "beta");
	assert_int_equal(r.code, 0);
	assert_int_equal(stage->beta.seen->resolve_id.b[15], 1);
	RUN(&r, "resolve", "--abort", "beta");
	assert_int_equal(r.code, 1);
	HAS(r.err, "RESOLVE: nothing is in doubt\n");
	RUN(&r, "resolve", "--abort", "alpha");
	assert_int_equal(r.code, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    STAGED(test_options_arrive),   STAGED(test_bad_usage), STAGED(test_help),
	    STAGED(test_unix_endpoints),   STAGED(test_terminal),  STAGED(test_status),
	    STAGED(test_status_histogram), STAGED(test_resolve),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
