/* cr-migrate as a user runs it, against agents that play a part: outcomes, exit codes, output. */
#include "cli_stage.h"

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
	assert_int_equal(number_of(done, "stop_pages"), 1234);
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
	HAS(r.err, "failed: nothing moved, alpha is as before\n");
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
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
