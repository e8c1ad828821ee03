/* cr-migrate as a user runs it, against agents that play a part: outcomes, exit codes, output. */
#include "fake_agent.h"

#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <pty.h>
#include <sys/stat.h>

#include "migrate/settle.h"

/* ---- the stage ---- */

struct stage {
	char dir[32], hosts[64], program[256];
	struct fake alpha, beta;
};

static struct stage *stage;

static int stage_up(void **state)
{
	static struct stage s;
	char exe[200] = "";

	(void)state;
	s = (struct stage){.dir = "/tmp/cliXXXXXX"};
	stage = &s;
	if (!mkdtemp(s.dir) || readlink("/proc/self/exe", exe, sizeof(exe) - 1) < 0)
		return -1;
	snprintf(s.program, sizeof(s.program), "%s/../../cr-migrate", dirname(exe));
	snprintf(s.hosts, sizeof(s.hosts), "%s/hosts", s.dir);
	FILE *f = fopen(s.hosts, "w");
	if (!f)
		return -1;
	fprintf(f, "# the stage\nalpha unix:%s/alpha.sock\nbeta unix:%s/beta.sock # there\n", s.dir,
		s.dir);
	fprintf(f, "gamma 10.0.0.3:7710\ndelta ssh://root@delta\n");
	return fclose(f);
}

static int stage_down(void **state)
{
	(void)state;
	fake_stop(&stage->alpha);
	fake_stop(&stage->beta);
	unlink(stage->hosts);
	return rmdir(stage->dir);
}

typedef bool (*part)(struct fake *, struct link *, const struct msg *);

static void cast(part alpha, part beta)
{
	fake_start(&stage->alpha, "alpha", stage->dir, alpha);
	fake_start(&stage->beta, "beta", stage->dir, beta);
}

struct run {
	pid_t pid;
	int out, err_fd;
	char text[16384]; /* of standard output */
	size_t len;
	char err[8192];
	int code;
};

static void begin(struct run *r, char **args)
{
	char *argv[24] = {stage->program};
	int out[2];

	*r = (struct run){0};
	for (int i = 0; args[i]; i++)
		argv[i + 1] = args[i];
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	r->err_fd = memfd_create("stderr", MFD_CLOEXEC);
	r->pid = fork();
	if (r->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setenv("CR_MIGRATE_HOSTS", stage->hosts, 1);
		dup2(out[1], STDOUT_FILENO);
		dup2(r->err_fd, STDERR_FILENO);
		execv(stage->program, argv);
		_exit(127);
	}
	close(out[1]);
	r->out = out[0];
}

/* Reads on until text is there; NULL: to the end. */
static void read_until(struct run *r, const char *text)
{
	while (!text || !strstr(r->text, text)) {
		ssize_t n = read(r->out, r->text + r->len, sizeof(r->text) - 1 - r->len);

		if (n <= 0 && !text)
			return;
		if (n <= 0)
			fail_msg("'%s' never came; but: %s", text, r->text);
		r->len += (size_t)n;
		r->text[r->len] = 0;
	}
}

static void finish(struct run *r)
{
	int status;

	read_until(r, NULL);
	assert_int_equal(waitpid(r->pid, &status, 0), r->pid);
	close(r->out);
	ssize_t n = pread(r->err_fd, r->err, sizeof(r->err) - 1, 0);
	assert_true(n >= 0);
	close(r->err_fd);
	assert_true(WIFEXITED(status));
	r->code = WEXITSTATUS(status);
}

#define ARGS(...)                                                                                  \
	(char *[])                                                                                 \
	{                                                                                          \
		__VA_ARGS__, NULL                                                                  \
	}

#define RUN(r, ...)                                                                                \
	do {                                                                                       \
		begin((r), ARGS(__VA_ARGS__));                                                     \
		finish(r);                                                                         \
	} while (0)

#define HAS(text, part)                                                                            \
	do {                                                                                       \
		if (!strstr((text), (part)))                                                       \
			fail_msg("no '%s' in: %s", (part), (text));                                \
	} while (0)

#define MOVE "alpha->beta", "--pid", "4242"

/* ---- parts ---- */

static bool play_dest(struct fake *f, struct link *l, const struct msg *m)
{
	if (m->type == MSG_RECEIVE)
		return fake_receive(f, l, m);
	if (m->type == MSG_QUERY)
		return fake_state(l, MSG_STATE_PREPARING);
	return false;
}

static bool play_refusing_dest(struct fake *f, struct link *l, const struct msg *m)
{
	struct msg e = {.type = MSG_ERROR,
			.error = {.kind = CR_ERR_KERNEL,
				  .code = ENOSPC,
				  .stage = "receive",
				  .msg = "cannot start the page-server"}};

	(void)f;
	return m->type == MSG_RECEIVE && fake_send(l, e);
}

static bool play_leaving_dest(struct fake *f, struct link *l, const struct msg *m)
{
	return fake_receive(f, l, m) && false;
}

static bool send_rounds(struct link *l)
{
	for (uint32_t i = 1; i <= 2; i++) {
		struct msg m = {.type = MSG_ROUND,
				.round = {.round = i,
					  .pages_written = 4000 / i,
					  .pages_sent = 3000 / i,
					  .bytes_wire = 12000000 / i,
					  .duration_us = 5000 / i,
					  .rate = 2400000000,
					  .predicted_downtime_us = 900 / i}};

		if (!fake_send(l, m))
			return false;
	}
	return true;
}

static struct msg done_of(enum msg_outcome o)
{
	return (struct msg){.type = MSG_DONE,
			    .done = {.outcome = o,
				     .downtime_us = 2150,
				     .total_us = 84000,
				     .phases = {100, 200, 300, 400, 500, 650},
				     .memory_bytes = 268435456,
				     .stops = 1,
				     .longest_stop_us = 480}};
}

static struct msg failure(enum msg_outcome o)
{
	struct msg m = done_of(o);

	m.done.error = (struct cr_err){.kind = CR_ERR_PEER,
				       .code = ECONNRESET,
				       .stage = "last pages",
				       .pid = 4250,
				       .msg = "the page-server went away"};
	return m;
}

static bool play_source(struct fake *f, struct link *l, const struct msg *m)
{
	static struct msg_note note = {"alpha", 4242, "process 17",
				       "outside of the cgroup; it moves too"};
	struct msg warning = {.type = MSG_WARNING, .warning = {&note, 1}};

	if (m->type != MSG_MIGRATE)
		return false;
	fake_note_migrate(f, m);
	return fake_event(l, "check", "1 process, 5 threads") && fake_send(l, warning) &&
	       send_rounds(l) && fake_event(l, "commit", "") &&
	       fake_send(l, done_of(MSG_OUTCOME_MIGRATED));
}

static bool play_rehearsing(struct fake *f, struct link *l, const struct msg *m)
{
	fake_note_migrate(f, m);
	return send_rounds(l) && fake_send(l, done_of(MSG_OUTCOME_REHEARSED));
}

static bool play_refusing(struct fake *f, struct link *l, const struct msg *m)
{
	static struct msg_note notes[] = {{"alpha", 4242, "fd 7 (redis-server)",
					   "io_uring instance: not supported; close it first"},
					  {"beta", 0, "pid 4242", "taken"}};
	struct msg refused = {.type = MSG_REFUSED, .refused = {notes, 2}};

	(void)f;
	return m->type == MSG_MIGRATE && fake_send(l, refused) &&
	       fake_send(l, (struct msg){.type = MSG_DONE, .done.outcome = MSG_OUTCOME_REFUSED});
}

static bool play_failing(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_MIGRATE && send_rounds(l) &&
	       fake_send(l, failure(MSG_OUTCOME_FAILED));
}

static bool play_doubtful(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_MIGRATE && fake_send(l, failure(MSG_OUTCOME_IN_DOUBT));
}

static bool play_error(struct fake *f, struct link *l, const struct msg *m)
{
	struct msg e = {
	    .type = MSG_ERROR,
	    .error = {.kind = CR_ERR_INPUT, .code = ESRCH, .pid = 4242, .msg = "no such process"}};

	(void)f;
	return m->type == MSG_MIGRATE && fake_send(l, e);
}

/* Undoes when asked to. */
static bool play_patient(struct fake *f, struct link *l, const struct msg *m)
{
	struct msg d = failure(MSG_OUTCOME_FAILED);

	if (m->type == MSG_MIGRATE)
		return fake_event(l, "freeze", "now");
	if (m->type != MSG_ABORT)
		return false;
	f->seen->aborts++;
	d.done.error =
	    (struct cr_err){.kind = CR_ERR_INPUT, .code = EINTR, .msg = "aborted by the user"};
	return fake_send(l, d);
}

/* Takes no notice. */
static bool play_deaf(struct fake *f, struct link *l, const struct msg *m)
{
	if (m->type == MSG_MIGRATE)
		return fake_event(l, "freeze", "now");
	if (m->type == MSG_QUERY)
		return fake_state(l, MSG_STATE_ABORTED);
	f->seen->aborts++;
	return m->type == MSG_ABORT && fake_event(l, "busy", "still");
}

/* Breaks off, and says what became of it when asked anew: aborted. */
static bool play_breaking(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	if (m->type == MSG_QUERY)
		return fake_state(l, MSG_STATE_ABORTED);
	return send_rounds(l) && false;
}

/* Breaks off and knows nothing when asked anew. */
static bool play_vanishing(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_QUERY && fake_state(l, MSG_STATE_COMMITTED);
}

/* COMMITTED at first, RUNNING when asked a third time. */
static bool play_running_dest(struct fake *f, struct link *l, const struct msg *m)
{
	if (m->type == MSG_QUERY)
		return fake_state(l, ++f->asked < 3 ? MSG_STATE_COMMITTED : MSG_STATE_RUNNING);
	return play_dest(f, l, m);
}

/* ---- outcomes ---- */

static void test_migrated(void **state)
{
	(void)state;
	struct run r;

	cast(play_source, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 0);
	HAS(r.text, "check: 1 process, 5 threads\n");
	HAS(r.text, "round 1: 4000 pages written, 3000 sent, 12.0 MB in 5.00 ms, 2.4 GB/s, "
		    "predicted downtime 900 us\n");
	HAS(r.text, "round 2: ");
	HAS(r.text, "migrated process 4242 from alpha to beta: 268.4 MB of memory in 84.00 ms\n");
	HAS(r.text, "stopped before the switch-over: 1 time, 480 us at the longest\n");
	HAS(r.text, "downtime 2.15 ms, of it\n");
	HAS(r.text, "  last pages     200 us\n");
	HAS(r.text, "  commit         650 us\n");
	HAS(r.err, "warning: alpha: pid 4242: process 17: outside of the cgroup; it moves too\n");
	struct seen *s = stage->alpha.seen;
	assert_true(s->ids_agree);
	assert_false(mig_id_is_zero(&s->id));
	assert_true(mig_id_equal(&s->id, &stage->beta.seen->id));
	assert_string_equal(s->peer_address, "10.0.0.2:1");
	assert_string_equal(s->pages_address, "10.0.0.2:2");
	assert_string_equal(s->dest_name, "beta");
	assert_string_equal(stage->beta.seen->source_name, "alpha");
	assert_int_equal(s->pid, 4242);
	assert_string_equal(s->cgroup, "");
}

static json_t *last_line(const char *text)
{
	_cleanup_free_ char *copy = strdup(text);
	json_t *last = NULL;
	char *save;

	for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		json_error_t e;

		json_decref(last);
		last = json_loads(line, JSON_REJECT_DUPLICATES, &e);
		if (!last)
			fail_msg("%s: %s", e.text, line);
		assert_true(json_is_string(json_object_get(last, "event")));
	}
	return last;
}

/* The keys, in this order and no others. */
static void has_keys(json_t *object, const char *const *keys)
{
	const char *key;
	json_t *value;
	size_t i = 0;

	json_object_foreach(object, key, value)
	{
		assert_non_null(keys[i]);
		assert_string_equal(key, keys[i]);
		i++;
	}
	assert_null(keys[i]);
}

static const char *text_of(json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static json_int_t number_of(json_t *object, const char *key)
{
	assert_true(json_is_integer(json_object_get(object, key)));
	return json_integer_value(json_object_get(object, key));
}

static void has_shape(json_t *done)
{
	static const char *const keys[] = {"event",    "outcome", "migration", "downtime_us",
					   "total_us", "rounds",  "phases_us", "memory_bytes",
					   "error",    NULL};
	static const char *const phases[] = {"freeze", "last_pages", "capture", "rebuild",
					     "launch", "commit",     NULL};
	static const char *const round[] = {"round",      "pages_written", "pages_sent",
					    "bytes_wire", "duration_us",   NULL};
	static const char *const error[] = {"kind", "code", "stage", "pid", "message", NULL};
	json_t *one;
	size_t i;

	has_keys(done, keys);
	has_keys(json_object_get(done, "phases_us"), phases);
	json_array_foreach(json_object_get(done, "rounds"), i, one) has_keys(one, round);
	if (!json_is_null(json_object_get(done, "error")))
		has_keys(json_object_get(done, "error"), error);
	assert_string_equal(text_of(done, "event"), "done");
	assert_int_equal(strlen(text_of(done, "migration")), 32);
}

static void test_json(void **state)
{
	(void)state;
	struct run r;
	char hex[MIG_ID_HEX];

	cast(play_source, play_dest);
	RUN(&r, MOVE, "--json");
	assert_int_equal(r.code, 0);
	assert_string_equal(r.err, "");
	HAS(r.text, "{\"event\":\"phase\",\"name\":\"check\",\"text\":\"1 process, 5 threads\"}\n");
	HAS(r.text,
	    "{\"event\":\"warning\",\"host\":\"alpha\",\"pid\":4242,\"what\":\"process 17\",");
	HAS(r.text, "{\"event\":\"round\",\"round\":2,\"pages_written\":2000,\"pages_sent\":1500,"
		    "\"bytes_wire\":6000000,\"duration_us\":2500,\"rate\":2400000000,"
		    "\"predicted_downtime_us\":450}\n");
	HAS(r.text, "{\"event\":\"stops\",\"count\":1,\"longest_us\":480}\n");
	json_t *done = last_line(r.text);
	has_shape(done);
	assert_string_equal(text_of(done, "outcome"), "migrated");
	mig_id_format(&stage->alpha.seen->id, hex);
	assert_string_equal(text_of(done, "migration"), hex);
	assert_int_equal(number_of(done, "downtime_us"), 2150);
	assert_int_equal(number_of(done, "total_us"), 84000);
	assert_int_equal(number_of(done, "memory_bytes"), 268435456);
	assert_int_equal(number_of(json_object_get(done, "phases_us"), "rebuild"), 400);
	assert_int_equal(json_array_size(json_object_get(done, "rounds")), 2);
	assert_int_equal(
	    number_of(json_array_get(json_object_get(done, "rounds"), 1), "pages_sent"), 1500);
	assert_true(json_is_null(json_object_get(done, "error")));
	json_decref(done);
}

static void test_rehearsed(void **state)
{
	(void)state;
	struct run r;

	cast(play_rehearsing, play_dest);
	RUN(&r, MOVE, "--rehearse");
	assert_int_equal(r.code, 0);
	HAS(r.text, "rehearsed moving process 4242 from alpha to beta");
	HAS(r.text, "undone: process 4242 runs on at alpha\n");
	assert_true(stage->beta.seen->opts.rehearse);
}

static void test_refused(void **state)
{
	(void)state;
	struct run r;

	cast(play_refusing, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 4);
	HAS(r.err, "alpha: pid 4242: fd 7 (redis-server): io_uring instance: not supported; close "
		   "it first\n");
	HAS(r.err, "beta: pid 4242: taken\n");
	HAS(r.err, "refused: 2 things cannot move; nothing was touched\n");
	RUN(&r, MOVE, "--json");
	assert_int_equal(r.code, 4);
	HAS(r.text, "{\"event\":\"refused\",\"host\":\"beta\",\"pid\":0,\"what\":\"pid "
		    "4242\",\"why\":\"taken\"}\n");
	json_t *done = last_line(r.text);
	has_shape(done);
	assert_string_equal(text_of(done, "outcome"), "refused");
	json_decref(done);
}

static void test_failed(void **state)
{
	(void)state;
	struct run r;

	cast(play_failing, play_dest);
	RUN(&r, "alpha", "beta", "--cgroup", "/web");
	assert_int_equal(r.code, 1);
	HAS(r.err, "cr-migrate: last pages: pid 4250: the page-server went away\n");
	HAS(r.err, "failed: cgroup /web runs on at alpha as before\n");
	RUN(&r, MOVE, "--json");
	assert_int_equal(r.code, 1);
	json_t *done = last_line(r.text), *error = json_object_get(done, "error");
	has_shape(done);
	assert_string_equal(text_of(done, "outcome"), "failed");
	assert_string_equal(text_of(error, "kind"), "peer");
	assert_int_equal(number_of(error, "code"), ECONNRESET);
	assert_int_equal(number_of(error, "pid"), 4250);
	assert_string_equal(text_of(error, "stage"), "last pages");
	assert_string_equal(text_of(error, "message"), "the page-server went away");
	json_decref(done);
}

static void test_in_doubt(void **state)
{
	(void)state;
	struct run r;
	char command[100], hex[MIG_ID_HEX];

	cast(play_doubtful, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 3);
	mig_id_format(&stage->alpha.seen->id, hex);
	snprintf(command, sizeof(command), "cr-migrate resolve %s --commit alpha\n", hex);
	HAS(r.err, command);
	snprintf(command, sizeof(command), "cr-migrate resolve %s --take-over beta\n", hex);
	HAS(r.err, command);
	RUN(&r, MOVE, "--json");
	assert_int_equal(r.code, 3);
	json_t *done = last_line(r.text);
	assert_string_equal(text_of(done, "outcome"), "in-doubt");
	json_decref(done);
}

static void test_dest_refuses_to_receive(void **state)
{
	(void)state;
	struct run r;

	cast(play_source, play_refusing_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
	HAS(r.err, "receive: the agent of beta: RECEIVE: cannot start the page-server\n");
	assert_int_equal(stage->alpha.seen->migrates, 0);
}

static void test_source_refuses_to_migrate(void **state)
{
	(void)state;
	struct run r;

	cast(play_error, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
	HAS(r.err, "pid 4242: no such process\n");
}

static void test_hello_breaks(void **state)
{
	(void)state;
	struct run r;

	cast(play_source, play_dest);
	fake_stop(&stage->beta);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
	HAS(r.err, "the agent of beta: cannot connect to unix:");
	assert_int_equal(stage->alpha.seen->migrates, 0);
}

static void test_dest_leaves(void **state)
{
	(void)state;
	struct run r;

	cast(play_patient, play_leaving_dest);
	begin(&r, ARGS(MOVE));
	/* it is for the source to notice: nothing ends here */
	read_until(&r, "freeze: now\n");
	assert_int_equal(kill(r.pid, SIGTERM), 0);
	finish(&r);
	assert_int_equal(r.code, 1);
}

/* ---- the source's link breaks ---- */

static void test_broken_then_aborted(void **state)
{
	(void)state;
	struct run r;

	cast(play_breaking, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
	HAS(r.text,
	    "settle: the agent of alpha: the other side closed the connection; asking both agents");
	HAS(r.err, "failed: process 4242 runs on at alpha as before\n");
	assert_true(stage->alpha.seen->hellos_query >= 1);
}

static void test_broken_then_running(void **state)
{
	(void)state;
	struct run r;

	cast(play_vanishing, play_running_dest);
	RUN(&r, MOVE, "--json");
	assert_int_equal(r.code, 0);
	json_t *done = last_line(r.text);
	has_shape(done);
	assert_string_equal(text_of(done, "outcome"), "migrated");
	assert_true(json_is_null(json_object_get(done, "error")));
	json_decref(done);
	assert_true(stage->beta.seen->hellos_query >= 3);
}

/* Breaks off before the switch-over, and has undone and forgotten it when asked anew. */
static bool play_forgetting(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_QUERY && fake_state(l, MSG_STATE_UNKNOWN);
}

static void test_broken_then_forgotten(void **state)
{
	(void)state;
	struct run r;

	cast(play_forgetting, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
}

/* Announces the switch-over and breaks off; had committed when asked, and forgets it then. */
static bool play_committing(struct fake *f, struct link *l, const struct msg *m)
{
	if (m->type == MSG_QUERY)
		return fake_state(l, f->asked++ ? MSG_STATE_UNKNOWN : MSG_STATE_COMMITTED);
	return fake_event(l, MSG_EVENT_SWITCH_OVER, "") && false;
}

static bool play_forgetting_dest(struct fake *f, struct link *l, const struct msg *m)
{
	return m->type == MSG_QUERY ? fake_state(l, MSG_STATE_UNKNOWN) : fake_receive(f, l, m);
}

static void test_broken_then_committed(void **state)
{
	(void)state;
	struct run r;

	cast(play_committing, play_forgetting_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 0);
}

static void test_nobody_knows(void **state)
{
	(void)state;
	struct mig_id id = {{1}};
	struct party source = {"alpha", stage->alpha.address}, dest = {"beta", stage->beta.address};

	cast(play_vanishing, play_dest);
	assert_int_equal(settle_ask(&id, &source, &dest, true, 300), MSG_OUTCOME_IN_DOUBT);
	fake_stop(&stage->alpha);
	fake_stop(&stage->beta);
	cast(play_forgetting, play_forgetting_dest);
	assert_int_equal(settle_ask(&id, &source, &dest, true, 300), MSG_OUTCOME_IN_DOUBT);
	assert_int_equal(settle_ask(&id, &source, &dest, false, 300), MSG_OUTCOME_FAILED);
	source.address = dest.address = "unix:/nonexistent/agent.sock";
	assert_int_equal(settle_ask(&id, &source, &dest, false, 300), MSG_OUTCOME_IN_DOUBT);
}

static void test_decide(void **state)
{
	(void)state;
	enum { SILENT, UNKNOWN, PREPARING, PREPARED, COMMITTED, RUNNING, ABORTED };
	enum { NOTHING = 0, MOVED = MSG_OUTCOME_MIGRATED, STAYS = MSG_OUTCOME_FAILED };
	static const struct {
		bool switching;
		int source_before, dest_before, source, dest, outcome;
	} cases[] = {
	    /* who says so knows */
	    {true, SILENT, SILENT, SILENT, RUNNING, MOVED},
	    {true, SILENT, SILENT, RUNNING, SILENT, MOVED},
	    {true, SILENT, SILENT, SILENT, ABORTED, STAYS},
	    {true, SILENT, SILENT, ABORTED, PREPARED, STAYS},
	    /* not over yet */
	    {true, SILENT, SILENT, SILENT, SILENT, NOTHING},
	    {true, SILENT, SILENT, PREPARED, PREPARED, NOTHING},
	    {true, SILENT, SILENT, COMMITTED, PREPARED, NOTHING},
	    {true, SILENT, SILENT, COMMITTED, UNKNOWN, NOTHING},
	    {false, SILENT, SILENT, PREPARING, PREPARING, NOTHING},
	    /* nobody remembers, and it may have been committed */
	    {true, SILENT, SILENT, UNKNOWN, UNKNOWN, NOTHING},
	    {true, SILENT, SILENT, SILENT, UNKNOWN, NOTHING},
	    {true, SILENT, PREPARED, SILENT, UNKNOWN, NOTHING},
	    {true, SILENT, SILENT, UNKNOWN, PREPARED, NOTHING},
	    /* it cannot have been */
	    {false, SILENT, SILENT, UNKNOWN, UNKNOWN, STAYS},
	    {false, SILENT, SILENT, SILENT, UNKNOWN, STAYS},
	    {false, SILENT, SILENT, UNKNOWN, SILENT, STAYS},
	    /* forgotten since */
	    {true, PREPARING, SILENT, UNKNOWN, UNKNOWN, STAYS},
	    {true, PREPARED, PREPARED, UNKNOWN, PREPARED, STAYS},
	    {true, COMMITTED, SILENT, UNKNOWN, UNKNOWN, MOVED},
	    {true, COMMITTED, SILENT, UNKNOWN, SILENT, MOVED},
	    {true, SILENT, COMMITTED, SILENT, UNKNOWN, MOVED},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct settle_view before = {.switching = cases[i].switching,
					     .source = (enum msg_peer_state)cases[i].source_before,
					     .dest = (enum msg_peer_state)cases[i].dest_before};
		int o = (int)settle_decide(&before, (enum msg_peer_state)cases[i].source,
					   (enum msg_peer_state)cases[i].dest);

		if (o != cases[i].outcome)
			fail_msg("case %zu: %d", i, o);
	}
}

/* ---- signals ---- */

static void test_interrupted(void **state)
{
	(void)state;
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

	cast(play_patient, play_dest);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		struct run r;

		begin(&r, ARGS(MOVE));
		read_until(&r, "freeze: now\n");
		assert_int_equal(kill(r.pid, signals[i]), 0);
		finish(&r);
		assert_int_equal(r.code, 1);
		HAS(r.text, "undo: interrupted by SIG");
		HAS(r.err, "aborted by the user\n");
		assert_int_equal(stage->alpha.seen->aborts, i + 1);
	}
}

static void test_interrupted_twice(void **state)
{
	(void)state;
	struct run r;

	cast(play_deaf, play_dest);
	begin(&r, ARGS(MOVE));
	read_until(&r, "freeze: now\n");
	assert_int_equal(kill(r.pid, SIGINT), 0);
	read_until(&r, "busy: still\n");
	assert_int_equal(kill(r.pid, SIGINT), 0);
	finish(&r);
	assert_int_equal(r.code, 1); /* since the source says so when it is asked */
	HAS(r.text, "settle: interrupted twice");
	assert_int_equal(stage->alpha.seen->aborts, 1);
}

static void test_reader_goes_away(void **state)
{
	(void)state;
	struct run r;
	int status;

	cast(play_patient, play_dest);
	begin(&r, ARGS(MOVE));
	read_until(&r, "freeze: now\n");
	close(r.out);
	assert_int_equal(kill(r.pid, SIGINT), 0);
	assert_int_equal(waitpid(r.pid, &status, 0), r.pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	close(r.err_fd);
}

/* ---- what is asked for ---- */

static void test_options_arrive(void **state)
{
	(void)state;
	struct run r;

	cast(play_source, play_dest);
	RUN(&r, "migrate", "alpha", "beta", "--pid=77", "--freeze-cgroup", "/web/1",
	    "--downtime-limit", "1.5ms", "--max-rounds", "5", "--max-bandwidth", "1Gbit",
	    "--streams", "3", "--compress", "none", "--verify", "full", "--launch", "sigreturn",
	    "--leave-running", "--no-hw-breakpoints");
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
	assert_true(o->leave_running && o->no_hw_breakpoints && !o->rehearse);
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

#define BAD(says, ...)                                                                             \
	do {                                                                                       \
		struct run r;                                                                      \
		RUN(&r, __VA_ARGS__);                                                              \
		assert_int_equal(r.code, 2);                                                       \
		HAS(r.err, says);                                                                  \
		assert_string_equal(r.text, "");                                                   \
	} while (0)

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

/* ---- the other verbs ---- */

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

static bool play_idle(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_STATUS && fake_send(l, msg_of(MSG_STATUS_LIST));
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

#define STAGED(f) cmocka_unit_test_setup_teardown(f, stage_up, stage_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    STAGED(test_migrated),
	    STAGED(test_json),
	    STAGED(test_rehearsed),
	    STAGED(test_refused),
	    STAGED(test_failed),
	    STAGED(test_in_doubt),
	    STAGED(test_dest_refuses_to_receive),
	    STAGED(test_source_refuses_to_migrate),
	    STAGED(test_hello_breaks),
	    STAGED(test_dest_leaves),
	    STAGED(test_broken_then_aborted),
	    STAGED(test_broken_then_running),
	    STAGED(test_broken_then_forgotten),
	    STAGED(test_broken_then_committed),
	    STAGED(test_nobody_knows),
	    cmocka_unit_test(test_decide),
	    STAGED(test_interrupted),
	    STAGED(test_interrupted_twice),
	    STAGED(test_reader_goes_away),
	    STAGED(test_options_arrive),
	    STAGED(test_bad_usage),
	    STAGED(test_help),
	    STAGED(test_unix_endpoints),
	    STAGED(test_terminal),
	    STAGED(test_status),
	    STAGED(test_resolve),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
