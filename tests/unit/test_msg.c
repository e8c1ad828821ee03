/* Messages: every kind goes round, golden bytes stay, and nothing that a peer may send is believed.
 */
#include "msg_examples.h"

#include <stdlib.h>

#include "proto/control.pb-c.h"
#include "wire/msg.h"

static void encode(const struct msg *m, uint8_t **data, size_t *len)
{
	struct cr_err err = {0};

	if (msg_encode(m, data, len, &err) < 0)
		fail_msg("%s: %s", msg_type_name(m->type), err.msg);
}

static void test_round_trip(void **state)
{
	(void)state;
	for (int t = MSG_HELLO; t < MSG_TYPE_END; t++) {
		if (!strcmp(msg_type_name((enum msg_type)t), "?"))
			continue; /* numbers that nobody has */
		_cleanup_free_ uint8_t *data = NULL;
		size_t len;
		struct msg m = example((enum msg_type)t), n;
		struct cr_err err = {0};

		encode(&m, &data, &len);
		if (msg_decode(data, len, &n, &err) < 0)
			fail_msg("%s: %s", msg_type_name(m.type), err.msg);
		assert_int_equal(n.type, t);
		same_control(&m, &n);
		same_peer(&m, &n);
		msg_free(&n);
		assert_int_equal(n.type, 0);
		msg_free(&n);
	}
}

static void test_truncation(void **state)
{
	(void)state;
	for (int t = MSG_HELLO; t < MSG_TYPE_END; t++) {
		if (!strcmp(msg_type_name((enum msg_type)t), "?"))
			continue; /* numbers that nobody has */
		_cleanup_free_ uint8_t *data = NULL;
		size_t len;
		struct msg m = example((enum msg_type)t);

		encode(&m, &data, &len);
		for (size_t cut = 0; cut < len; cut++) {
			_cleanup_free_ uint8_t *part = malloc(cut ? cut : 1);
			struct cr_err err = {0};
			struct msg n;

			memcpy(part, data, cut);
			assert_int_equal(msg_decode(part, cut, &n, &err), -EPROTO);
			assert_int_equal(err.kind, CR_ERR_PEER);
			assert_null(n.arena);
		}
	}
}

static void test_unknown_field(void **state)
{
	(void)state;
	/* a PONG with a field 99 in it, and a field 2000 behind it */
	static const uint8_t pong[] = {0x82, 0x02, 0x03, 0x98, 0x06, 0x05, 0x80, 0x7d, 0x01};
	/* field 500 alone: a kind of message that is yet to come */
	static const uint8_t future[] = {0xa2, 0x1f, 0x00};
	struct cr_err err = {0};
	struct msg m;

	assert_int_equal(msg_decode(pong, sizeof(pong), &m, &err), 0);
	assert_int_equal(m.type, MSG_PONG);
	msg_free(&m);
	assert_int_equal(msg_decode(future, sizeof(future), &m, &err), -EPROTO);
	assert_non_null(strstr(err.msg, "unknown kind"));
}

static void to_hex(const uint8_t *data, size_t len, char *text)
{
	for (size_t i = 0; i < len; i++)
		sprintf(text + 2 * i, "%02x", data[i]);
}

/* The same as in proto/PROTOCOL.md. */
static void test_golden(void **state)
{
	(void)state;
	static const struct {
		enum msg_type type;
		const char *hex;
	} golden[] = {
	    {MSG_PING, "fa0100"},
	    {MSG_HELLO, "0a4d0a0a63722d6d696772617465100118022210a0a1a2a3a4a5a6a7a8a9aaab"
			"acadaeaf2a20101112131415161718191a1b1c1d1e1f20212223242526272829"
			"2a2b2c2d2e2f3205616c7068613805"},
	    {MSG_ERROR, "12200802101c1a0772656275696c64209221"
			"2a0e706970653a206e6f207370616365"},
	    {MSG_ROUND, "4219080210e807188407208080e10128e05d308080be920138dc0b"},
	    {MSG_RESET, "a2010f0892211a06808080807f0122020202"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(golden); i++) {
		_cleanup_free_ uint8_t *data = NULL;
		size_t len;
		char text[1024];
		struct msg m = example(golden[i].type);

		encode(&m, &data, &len);
		to_hex(data, len, text);
		assert_string_equal(text, golden[i].hex);
	}
}

/* ---- what a peer may have made up, and what we must not send either ---- */

#define REFUSED(type_, change)                                                                     \
	do {                                                                                       \
		struct msg m = example(type_);                                                     \
		uint8_t *data = NULL;                                                              \
		size_t len = 0;                                                                    \
		struct cr_err err = {0};                                                           \
		change;                                                                            \
		if (msg_encode(&m, &data, &len, &err) == 0)                                        \
			fail_msg(#type_ " was sent although " #change);                            \
		assert_int_equal(err.kind, CR_ERR_BUG);                                            \
		assert_null(data);                                                                 \
	} while (0)

static void test_nonsense_is_not_sent(void **state)
{
	(void)state;
	static const struct mig_id no_id;
	static const struct mig_token no_token;
	struct msg_range odd = {0x1001, 0x2000}, empty = {0x2000, 0x2000};
	struct msg_digest both = {4242, 0, 1, {0}}, neither = {0, UINT32_MAX, 1, {0}};
	struct msg_note note = {"alpha", -1, "x", "y"};

	REFUSED(MSG_TYPE_END, (void)0);
	REFUSED((enum msg_type)0, (void)0);
	REFUSED(MSG_HELLO, m.hello.version = 0);
	REFUSED(MSG_HELLO, m.hello.version = MSG_VERSION + 2);
	REFUSED(MSG_HELLO, m.hello.role = 0);
	REFUSED(MSG_HELLO, m.hello.role = MSG_ROLE_AGENT + 1);
	REFUSED(MSG_HELLO, m.hello.id = no_id);
	REFUSED(MSG_HELLO, m.hello.token = no_token);
	REFUSED(MSG_ERROR, m.error.kind = CR_ERR_NONE);
	REFUSED(MSG_ERROR, m.error.code = 0);
	REFUSED(MSG_ERROR, m.error.pid = -1);
	REFUSED(MSG_RECEIVE, m.receive.id = no_id);
	REFUSED(MSG_RECEIVE, m.receive.token = no_token);
	REFUSED(MSG_RECEIVE, m.receive.opts.streams = 0);
	REFUSED(MSG_RECEIVE, m.receive.opts.streams = 17);
	REFUSED(MSG_RECEIVE_READY, m.receive_ready.peer_address = "");
	REFUSED(MSG_RECEIVE_READY, m.receive_ready.pages_address = NULL);
	REFUSED(MSG_MIGRATE, m.migrate.pid = 0; m.migrate.cgroup = "");
	REFUSED(MSG_MIGRATE, m.migrate.pid = -5);
	REFUSED(MSG_MIGRATE, m.migrate.peer_address = "");
	REFUSED(MSG_MIGRATE, m.migrate.opts.max_rounds = 0);
	REFUSED(MSG_MIGRATE, m.migrate.opts.downtime_limit_us = 0);
	REFUSED(MSG_MIGRATE, m.migrate.opts.compress = 3);
	REFUSED(MSG_MIGRATE, m.migrate.opts.verify = 2);
	REFUSED(MSG_MIGRATE, m.migrate.opts.launch = 2);
	REFUSED(MSG_EVENT, m.event.name = "");
	REFUSED(MSG_ROUND, m.round.round = 0);
	REFUSED(MSG_REFUSED, m.refused.v = &note; m.refused.n = 1);
	REFUSED(MSG_DONE, m.done.outcome = 0);
	REFUSED(MSG_DONE, m.done.outcome = MSG_OUTCOME_REHEARSED + 1);
	REFUSED(MSG_DONE, m.done.error.code = 5000);
	REFUSED(MSG_RESOLVE, m.resolve.action = 0);
	REFUSED(MSG_TREE, m.tree.stage = 0);
	REFUSED(MSG_TREE, m.tree.tree_len = 0);
	REFUSED(MSG_TREE_OK, m.tree_ok.hole_start = 1);
	REFUSED(MSG_TREE_OK, m.tree_ok.hole_end = 0x1000);
	REFUSED(MSG_RESET, m.reset.n_ranges = 0);
	REFUSED(MSG_RESET, m.reset.ranges = &odd; m.reset.n_ranges = 1);
	REFUSED(MSG_RESET, m.reset.ranges = &empty; m.reset.n_ranges = 1);
	REFUSED(MSG_RESET, m.reset.object = 0);
	REFUSED(MSG_VERIFY, m.verify.v = &both; m.verify.n = 1);
	REFUSED(MSG_VERIFY, m.verify.v = &neither; m.verify.n = 1);
	REFUSED(MSG_QUERY, m.query.id = no_id);
	REFUSED(MSG_STATE, m.state.state = 0);
}

static void *arena_fn(void *arena, size_t bytes)
{
	return arena_alloc(arena, bytes);
}
static void no_free(void *arena, void *p)
{
	(void)arena, (void)p;
}

/* Decodes m after `change` was made to the Envelope e. */
#define DISBELIEVED(type_, change)                                                                 \
	do {                                                                                       \
		struct msg m = example(type_), n;                                                  \
		_cleanup_free_ uint8_t *data = NULL, *lie = NULL;                                  \
		size_t len = 0;                                                                    \
		struct cr_err err = {0};                                                           \
		struct arena *a = arena_new();                                                     \
		ProtobufCAllocator alloc = {arena_fn, no_free, a};                                 \
		encode(&m, &data, &len);                                                           \
		Wire__Envelope *e = wire__envelope__unpack(&alloc, len, data);                     \
		change;                                                                            \
		lie = malloc(wire__envelope__get_packed_size(e) + 1);                              \
		len = wire__envelope__pack(e, lie);                                                \
		if (msg_decode(lie, len, &n, &err) == 0)                                           \
			fail_msg(#type_ " was believed: " #change);                                \
		assert_int_equal(err.kind, CR_ERR_PEER);                                           \
		assert_int_equal(err.code, EPROTO);                                                \
		arena_free(a);                                                                     \
	} while (0)

static void test_lies(void **state)
{
	(void)state;
	DISBELIEVED(MSG_HELLO, e->hello->magic = (char *)"HTTP/1.1");
	DISBELIEVED(MSG_HELLO, e->hello->version = 3);
	DISBELIEVED(MSG_HELLO, e->hello->id.len = 15);
	DISBELIEVED(MSG_HELLO, e->hello->token.len = 31);
	DISBELIEVED(MSG_HELLO, e->hello->token.len = 0);
	DISBELIEVED(MSG_ERROR, e->error->kind = (Wire__ErrorKind)7);
	DISBELIEVED(MSG_ERROR, e->error->code = 1u << 31);
	DISBELIEVED(MSG_RECEIVE, e->receive->opts = NULL);
	DISBELIEVED(MSG_RECEIVE, e->receive->id.len = 1);
	DISBELIEVED(MSG_MIGRATE, e->migrate->opts = NULL);
	DISBELIEVED(MSG_MIGRATE, e->migrate->pid = 1u << 31);
	DISBELIEVED(MSG_MIGRATE, e->migrate->opts->streams = UINT32_MAX);
	DISBELIEVED(MSG_STATUS_LIST, e->status_list->list[0]->pids[1] = 0);
	DISBELIEVED(MSG_STATUS_LIST, e->status_list->list[0]->id.len = 0);
	DISBELIEVED(MSG_VERIFY, e->verify->list[0]->digest.len = 15);
	DISBELIEVED(MSG_VERIFY, e->verify->list[0]->pid = UINT32_MAX);
	DISBELIEVED(MSG_TREE_OK, e->tree_ok->targets[1]->object = 0);
	DISBELIEVED(MSG_TREE_OK, e->tree_ok->targets[0]->copy_of = 1u << 31);
	DISBELIEVED(MSG_TREE_OK, e->tree_ok->targets[0]->copy_of = 4242);
	DISBELIEVED(MSG_TREE_OK, e->tree_ok->targets[1]->copy_of = 4242);
	DISBELIEVED(MSG_RESET, e->reset->n_n_pages = 1);
	DISBELIEVED(MSG_RESET, e->reset->n_pages[0] = UINT64_MAX);
	DISBELIEVED(MSG_RESET, e->reset->first_page[0] = UINT64_MAX);
	DISBELIEVED(MSG_RESET, e->reset->n_pages[0] = 0);
	DISBELIEVED(MSG_STATE, e->state->state = (Wire__PeerState)99);
}

static void test_neighbour_versions(void **state)
{
	(void)state;
	struct msg m = example(MSG_HELLO), n;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct cr_err err = {0};

	m.hello.version = MSG_VERSION + 1;
	encode(&m, &data, &len);
	assert_int_equal(msg_decode(data, len, &n, &err), 0);
	assert_int_equal(n.hello.version, MSG_VERSION + 1);
	msg_free(&n);
}

static void test_limits(void **state)
{
	(void)state;
	enum { LONG = 2 << 20 };
	_cleanup_free_ char *text = malloc(LONG);
	_cleanup_free_ uint8_t *data = NULL;
	size_t len = 0;
	struct msg m = example(MSG_RESOLVED), n;
	struct cr_err err = {0};

	memset(text, 'x', LONG - 1);
	text[LONG - 1] = 0;
	m.resolved.text = text;
	assert_int_equal(msg_encode(&m, &data, &len, &err), -EMSGSIZE);
	assert_int_equal(err.kind, CR_ERR_BUG);
	m = example(MSG_TREE);
	m.tree.tree = (const uint8_t *)text;
	m.tree.tree_len = LONG;
	encode(&m, &data, &len);
	assert_int_equal(msg_decode(data, len, &n, &err), 0);
	assert_int_equal(n.tree.tree_len, LONG);
	msg_free(&n);
	/* as much of another kind is too long, from the other side as well */
	Wire__Envelope e = WIRE__ENVELOPE__INIT;
	Wire__Resolved r = WIRE__RESOLVED__INIT;
	e.body_case = WIRE__ENVELOPE__BODY_RESOLVED;
	e.resolved = &r;
	r.text = text;
	_cleanup_free_ uint8_t *lie = malloc(wire__envelope__get_packed_size(&e));
	len = wire__envelope__pack(&e, lie);
	assert_int_equal(msg_decode(lie, len, &n, &err), -EMSGSIZE);
	assert_int_equal(err.kind, CR_ERR_PEER);
}

/* Many empty notes are few bytes and would be much memory. */
static void test_bomb(void **state)
{
	(void)state;
	enum { BYTES = 1000000 };
	_cleanup_free_ uint8_t *data = calloc(1, BYTES + 8);
	/* field 9 (REFUSED), 1,000,000 bytes of field 1 with nothing in it */
	static const uint8_t head[] = {0x4a, 0xc0, 0x84, 0x3d};
	struct cr_err err = {0};
	struct msg n;

	memcpy(data, head, sizeof(head));
	for (size_t i = 0; i < BYTES; i += 2)
		data[sizeof(head) + i] = 0x0a;
	assert_int_equal(msg_decode(data, BYTES + sizeof(head), &n, &err), -EMSGSIZE);
}

static void test_text_is_harmless(void **state)
{
	(void)state;
	struct msg m = example(MSG_EVENT), n;
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	struct cr_err err = {0};

	m.event.text = "\033[2Jnothing\nto see\x7f caf\xc3\xa9";
	encode(&m, &data, &len);
	assert_int_equal(msg_decode(data, len, &n, &err), 0);
	assert_string_equal(n.event.text, "?[2Jnothing?to see? caf\xc3\xa9");
	msg_free(&n);
}

static void test_notes(void **state)
{
	(void)state;
	struct refusals r = {0}, s = {0};
	struct msg_notes notes;
	struct cr_err err = {0};
	char what[32];

	for (int i = 0; i < 5000; i++) {
		snprintf(what, sizeof(what), "fd %d", i);
		refuse(&r, 4242, what, "io_uring instance");
	}
	refuse_warn(&r, 7, "cgroup", "outside");
	assert_int_equal(msg_notes_from(r.list.v, r.list.n, "alpha", &notes, &err), 0);
	assert_true(notes.n < 5000);
	assert_string_equal(notes.v[notes.n - 1].why, "too long: there are more");
	msg_notes_refuse(&notes, &s);
	assert_int_equal(s.list.n, notes.n);
	assert_string_equal(s.list.v[3].what, "fd 3");
	free(notes.v);
	assert_int_equal(msg_notes_from(r.warnings.v, r.warnings.n, "alpha", &notes, &err), 0);
	assert_int_equal(notes.n, 1);
	msg_notes_warn(&notes, &s);
	assert_int_equal(s.warnings.v[0].pid, 7);
	free(notes.v);
	/* who said so is kept on the way through another host */
	assert_int_equal(msg_notes_from(s.warnings.v, s.warnings.n, "beta", &notes, &err), 0);
	assert_string_equal(notes.v[0].host, "alpha");
	free(notes.v);
	refusals_done(&r);
	refusals_done(&s);
}

static void test_ids(void **state)
{
	(void)state;
	struct mig_id id, back;
	struct mig_token token;
	struct cr_err err = {0};
	char text[MIG_ID_HEX];

	assert_int_equal(mig_id_new(&id, &token, &err), 0);
	assert_false(mig_id_is_zero(&id));
	mig_id_format(&id, text);
	assert_int_equal(strlen(text), 32);
	assert_true(mig_id_parse(text, &back));
	assert_true(mig_id_equal(&id, &back));
	text[5] = 'g';
	assert_false(mig_id_parse(text, &back));
	assert_false(mig_id_parse("abcd", &back));
	assert_false(mig_id_parse("", &back));
	assert_true(mig_id_parse("A0A1A2A3A4A5A6A7A8A9AAABACADAEAF", &back));
	id = an_id();
	assert_true(mig_id_equal(&id, &back));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_truncation),
	    cmocka_unit_test(test_unknown_field),
	    cmocka_unit_test(test_golden),
	    cmocka_unit_test(test_nonsense_is_not_sent),
	    cmocka_unit_test(test_lies),
	    cmocka_unit_test(test_neighbour_versions),
	    cmocka_unit_test(test_limits),
	    cmocka_unit_test(test_bomb),
	    cmocka_unit_test(test_text_is_harmless),
	    cmocka_unit_test(test_notes),
	    cmocka_unit_test(test_ids),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
