/* cr-migrate when links break, agents die and users lose patience. */
#include "cli_stage.h"

#include "migrate/settle.h"

static bool play_leaving_dest(struct fake *f, struct link *l, const struct msg *m)
{
	return fake_receive(f, l, m) && false;
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

/* Breaks off before the switch-over, and has undone and forgotten it when asked anew. */
static bool play_forgetting(struct fake *f, struct link *l, const struct msg *m)
{
	(void)f;
	return m->type == MSG_QUERY && fake_state(l, MSG_STATE_UNKNOWN);
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

static void test_broken_then_aborted(void **state)
{
	(void)state;
	struct run r;

	cast(play_breaking, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
	HAS(r.text,
	    "settle: the agent of alpha: the other side closed the connection; asking both agents");
	HAS(r.err, "failed: nothing moved, alpha is as before\n");
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

static void test_broken_then_forgotten(void **state)
{
	(void)state;
	struct run r;

	cast(play_forgetting, play_dest);
	RUN(&r, MOVE);
	assert_int_equal(r.code, 1);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
	    STAGED(test_dest_leaves),           STAGED(test_broken_then_aborted),
	    STAGED(test_broken_then_running),   STAGED(test_broken_then_forgotten),
	    STAGED(test_broken_then_committed), STAGED(test_nobody_knows),
	    cmocka_unit_test(test_decide),      STAGED(test_interrupted),
	    STAGED(test_interrupted_twice),     STAGED(test_reader_goes_away),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
