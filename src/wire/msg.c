/* Messages to bytes and back: the table of kinds, and what is common to all. The fields of each
 * kind are translated in msg_control.c and msg_peer.c and checked in msg_check.c. */
#include "wire/msg.h"
#include "wire/msg_priv.h"

#include <stdio.h>
#include <string.h>

enum {
	/* What a frame may need when it is unpacked: the worst honest one is a full list of notes.
	 */
	UNPACK_BUDGET = 32 << 20,
	/* Of each list in a message, so that two of them fit a frame at their longest. */
	NOTES_MAX = 800,
};

#define CODEC(NAME, type, fn)                                                                      \
	[MSG_##NAME] = {#NAME, &wire__##type##__descriptor, msg_put_##fn, msg_get_##fn}

static const struct msg_codec codecs[MSG_TYPE_END] = {
    CODEC(HELLO, hello, hello),
    CODEC(ERROR, error, error),
    CODEC(OK, nothing, nothing),
    CODEC(RECEIVE, receive, receive),
    CODEC(RECEIVE_READY, receive_ready, receive_ready),
    CODEC(MIGRATE, migrate, migrate),
    CODEC(EVENT, event, event),
    CODEC(ROUND, round, round),
    CODEC(REFUSED, notes, refused),
    CODEC(WARNING, notes, warning),
    CODEC(DONE, done, done),
    CODEC(STATUS, nothing, nothing),
    CODEC(STATUS_LIST, status_list, status_list),
    CODEC(RESOLVE, resolve, resolve),
    CODEC(RESOLVED, resolved, resolved),
    CODEC(ABORT, nothing, nothing),
    CODEC(ABORTED, nothing, nothing),
    CODEC(TREE, tree, tree),
    CODEC(TREE_OK, tree_ok, tree_ok),
    CODEC(RESET, reset, reset),
    CODEC(CLOCK, nothing, nothing),
    CODEC(CLOCK_REPLY, clock_reply, clock_reply),
    CODEC(VERIFY, digests, verify),
    CODEC(VERIFY_OK, nothing, nothing),
    CODEC(PREPARE_COMMIT, nothing, nothing),
    CODEC(PREPARED, prepared, prepared),
    CODEC(COMMIT, nothing, nothing),
    CODEC(RUNNING, running, running),
    CODEC(QUERY, query, query),
    CODEC(STATE, state, state),
    CODEC(PING, nothing, nothing),
    CODEC(PONG, nothing, nothing),
    CODEC(LAZY, lazy, lazy),
    CODEC(IMAGE, image, image),
    CODEC(IMAGE_OK, image_ok, image_ok),
    CODEC(KNOWN, known, known),
    CODEC(KNOWN_OK, known_ok, known_ok),
    CODEC(KEEP, nothing, nothing),
    CODEC(RUN_HOOK, run_hook, run_hook),
    CODEC(FILES, file_paths, files),
    CODEC(FILES_OK, files_ok, files_ok),
    CODEC(FILE, file, file),
    CODEC(FILE_DATA, file_data, file_data),
    CODEC(FILE_END, nothing, nothing),
    CODEC(WAITING, waiting, waiting),
    CODEC(PACKETS, packets, packets),
};

const struct msg_codec *msg_codec_of(enum msg_type t)
{
	return (unsigned)t < MSG_TYPE_END && codecs[t].name ? &codecs[t] : NULL;
}

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

static size_t frame_limit(enum msg_type t)
{
	return t == MSG_TREE || t == MSG_WAITING ? MSG_TREE_BYTES : MSG_BYTES;
}

int msg_encode(const struct msg *m, uint8_t **ret, size_t *ret_len, struct cr_err *err)
{
	const struct msg_codec *c = msg_codec_of(m->type);
	_cleanup_(arena_freep) struct arena *a = arena_new();
	Wire__Envelope env = WIRE__ENVELOPE__INIT;

	if (!c)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "message of unknown type %d", m->type);
	if (msg_check(m, err) < 0) {
		err->kind = CR_ERR_BUG;
		err->code = EINVAL;
		return cr_err_ctx(err, "not sent");
	}
	void *body = a ? pb_new(a, c->type) : NULL;
	if (!body || c->put(a, m, body) < 0)
		return cr_err_oom(err);
	/* The union of the bodies is one of pointers to messages: any member will do. */
	env.body_case = (Wire__Envelope__BodyCase)m->type;
	env.hello = body;
	return pb_pack(&env.base, frame_limit(m->type), ret, ret_len, err);
}

static int decode_into(const uint8_t *data, size_t len, struct msg *m, struct cr_err *err)
{
	void *p = NULL;
	int r = pb_unpack(m->arena, &wire__envelope__descriptor, data, len, len + UNPACK_BUDGET, &p,
			  err);
	if (r < 0)
		return r;
	Wire__Envelope *env = p;

	m->type = (enum msg_type)env->body_case;
	const struct msg_codec *c = msg_codec_of(m->type);
	if (!c || !env->hello)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "message of an unknown kind");
	if (len > frame_limit(m->type))
		return cr_err_set(err, CR_ERR_PEER, EMSGSIZE, "%s of %zu bytes: over the limit",
				  c->name, len);
	r = c->get(m->arena, m, env->hello, err);
	return r < 0 ? r : msg_check(m, err);
}

int msg_decode(const uint8_t *data, size_t len, struct msg *ret, struct cr_err *err)
{
	struct msg m = {.arena = arena_new()};
	int r;

	memset(ret, 0, sizeof(*ret));
	if (!m.arena)
		return cr_err_oom(err);
	if (len > MSG_TREE_BYTES)
		r = cr_err_set(err, CR_ERR_PEER, EMSGSIZE, "message of %zu bytes", len);
	else
		r = decode_into(data, len, &m, err);
	if (r < 0) {
		arena_free(m.arena);
		return r;
	}
	*ret = m;
	return 0;
}

void msg_free(struct msg *m)
{
	arena_free(m->arena);
	memset(m, 0, sizeof(*m));
}

const char *msg_type_name(enum msg_type t)
{
	const struct msg_codec *c = msg_codec_of(t);

	return c ? c->name : "?";
}

const char *msg_state_name(enum msg_peer_state s)
{
	static const char *const names[] = {
	    [MSG_STATE_UNKNOWN] = "unknown",   [MSG_STATE_PREPARING] = "preparing",
	    [MSG_STATE_PREPARED] = "prepared", [MSG_STATE_COMMITTED] = "committed",
	    [MSG_STATE_RUNNING] = "running",   [MSG_STATE_ABORTED] = "aborted",
	};

	return (unsigned)s < ARRAY_SIZE(names) && names[s] ? names[s] : "?";
}

const char *msg_outcome_name(enum msg_outcome o)
{
	static const char *const names[] = {
	    [MSG_OUTCOME_MIGRATED] = "migrated",   [MSG_OUTCOME_FAILED] = "failed",
	    [MSG_OUTCOME_REFUSED] = "refused",     [MSG_OUTCOME_IN_DOUBT] = "in-doubt",
	    [MSG_OUTCOME_REHEARSED] = "rehearsed",
	};

	return (unsigned)o < ARRAY_SIZE(names) && names[o] ? names[o] : "?";
}

const char *msg_hook_name(enum msg_hook h)
{
	static const char *const names[] = {
	    [MSG_HOOK_PRE_DUMP] = "pre-dump",
	    [MSG_HOOK_POST_DUMP] = "post-dump",
	    [MSG_HOOK_NETWORK_LOCK] = "network-lock",
	    [MSG_HOOK_NETWORK_UNLOCK] = "network-unlock",
	    [MSG_HOOK_PRE_RESTORE] = "pre-restore",
	    [MSG_HOOK_POST_RESTORE] = "post-restore",
	    [MSG_HOOK_PRE_RESUME] = "pre-resume",
	    [MSG_HOOK_POST_RESUME] = "post-resume",
	    [MSG_HOOK_NETWORK_SWITCH] = "network-switch",
	};

	return (unsigned)h < ARRAY_SIZE(names) ? names[h] : "?";
}

void msg_opts_default(struct msg_opts *o)
{
	*o = (struct msg_opts){.downtime_limit_us = 20000,
			       .max_rounds = 16,
			       .streams = 2,
			       .postcopy_timeout_ms = 60000};
}

const char *msg_text(char *s)
{
	for (char *c = s; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return s;
}

/* ---- parts that several messages have ---- */

int msg_put_id(struct arena *a, const struct mig_id *id, ProtobufCBinaryData *pb)
{
	(void)a;
	*pb = pb_bytes(id->b, mig_id_is_zero(id) ? 0 : sizeof(id->b));
	return 0;
}

int msg_get_id(const ProtobufCBinaryData *pb, struct mig_id *id, struct cr_err *err)
{
	if (pb->len && pb->len != sizeof(id->b))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "migration id of %zu bytes", pb->len);
	if (pb->len)
		memcpy(id->b, pb->data, sizeof(id->b));
	return 0;
}

int msg_put_notes(struct arena *a, const struct msg_notes *n, Wire__Notes *pb)
{
	pb->list = arena_array(a, Wire__Note *, n->n);
	if (!pb->list)
		return -ENOMEM;
	for (size_t i = 0; i < n->n; i++) {
		Wire__Note *e = pb_new(a, &wire__note__descriptor);

		if (!e)
			return -ENOMEM;
		e->host = pb_string(n->v[i].host);
		e->pid = (uint32_t)n->v[i].pid;
		e->what = pb_string(n->v[i].what);
		e->why = pb_string(n->v[i].why);
		pb->list[pb->n_list++] = e;
	}
	return 0;
}

int msg_get_notes(struct arena *a, struct msg_notes *n, const Wire__Notes *pb)
{
	if (!pb)
		return 0;
	n->v = arena_array(a, struct msg_note, pb->n_list);
	if (!n->v)
		return -ENOMEM;
	for (size_t i = 0; i < pb->n_list; i++) {
		const Wire__Note *e = pb->list[i];

		n->v[n->n++] = (struct msg_note){.host = msg_text(e->host),
						 .pid = (pid_t)e->pid,
						 .what = msg_text(e->what),
						 .why = msg_text(e->why)};
	}
	return 0;
}

int msg_notes_from(const struct refusal *list, size_t n, const char *host, struct msg_notes *ret,
		   struct cr_err *err)
{
	size_t take = n > NOTES_MAX ? NOTES_MAX - 1 : n;
	struct msg_note *v = calloc(take + 1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	for (size_t i = 0; i < take; i++)
		v[i] = (struct msg_note){.host = list[i].host[0] ? list[i].host : host,
					 .pid = list[i].pid,
					 .what = list[i].what,
					 .why = list[i].why};
	*ret = (struct msg_notes){v, take};
	if (take < n) /* rather than a message that is too long to be sent */
		v[ret->n++] = (struct msg_note){host, 0, "the list", "too long: there are more"};
	return 0;
}

void msg_notes_refuse(const struct msg_notes *notes, struct refusals *to)
{
	for (size_t i = 0; i < notes->n; i++) {
		const struct msg_note *n = &notes->v[i];
		size_t before = to->list.n;

		refuse(to, n->pid, n->what, "%s", n->why);
		if (to->list.n > before)
			snprintf(to->list.v[before].host, sizeof(to->list.v->host), "%s", n->host);
	}
}

void msg_notes_warn(const struct msg_notes *notes, struct refusals *to)
{
	for (size_t i = 0; i < notes->n; i++) {
		const struct msg_note *n = &notes->v[i];
		size_t before = to->warnings.n;

		refuse_warn(to, n->pid, n->what, "%s", n->why);
		if (to->warnings.n > before)
			snprintf(to->warnings.v[before].host, sizeof(to->warnings.v->host), "%s",
				 n->host);
	}
}
