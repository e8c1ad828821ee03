/* The peer link of a source agent, in dir mode: frames of messages (proto/PROTOCOL.md), one
 * question at a time. What a question takes, disk and all, is done by a thread of the pool;
 * meanwhile nothing is read. */
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "pageserver/server.h"
#include "wire/le.h"

enum {
	FRAME_HEAD = 4,
	STRANGER_BYTES = 4096, /* a frame's most before the token was shown */
	ROOM_BYTES = 64 * 1024,
};

struct peer {
	struct stream *st;
	struct session *session;
	bool greeted, over;
	struct mig_id id;
	struct mig_token token;
	/* what has come: memory is taken only as bytes arrive */
	uint8_t *buf;
	size_t have, cap;
	uint64_t paid; /* of --max-memory, for buf */
	/* the question under way */
	uv_work_t work;
	struct msg question;
	uint8_t *out;
	size_t out_len;
	struct cr_err err;
	int result;
};

struct peer *peer_new(struct stream *st)
{
	struct peer *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->st = st;
	p->cap = STRANGER_BYTES + FRAME_HEAD;
	p->buf = malloc(p->cap);
	if (!p->buf) {
		free(p);
		return NULL;
	}
	return p;
}

void peer_free(struct peer *p)
{
	if (!p)
		return;
	msg_free(&p->question);
	free(p->buf);
	free(p->out);
	explicit_bzero(&p->token, sizeof(p->token));
	free(p);
}

/* Not while a thread is at it. */
static void end_session(struct peer *p)
{
	if (p->session && p->session->image)
		notify_image(&stream_server(p->st)->notify, dir_image_name(p->session->image),
			     dir_image_state(p->session->image));
	session_end(stream_server(p->st), p->session);
	p->session = NULL;
}

void peer_closed(struct peer *p)
{
	if (!p)
		return;
	p->over = true;
	if (!p->question.type)
		end_session(p);
}

void peer_room(struct peer *p, char **ret, size_t *ret_len)
{
	*ret = (char *)p->buf + p->have;
	*ret_len = p->cap - p->have;
}

bool peer_in_message(const struct peer *p)
{
	return p->have && !p->question.type;
}

bool peer_is_deciding(const struct peer *p)
{
	return p->question.type ||
	       (p->session && p->session->image && dir_image_is_prepared(p->session->image));
}

struct session *peer_session(const struct peer *p)
{
	return p ? p->session : NULL;
}

/* ---- frames ---- */

static int frame_of(const struct msg *m, uint8_t **ret, size_t *ret_len, struct cr_err *err)
{
	_cleanup_free_ uint8_t *body = NULL;
	size_t n;
	int r = msg_encode(m, &body, &n, err);

	if (r)
		return r;
	uint8_t *b = malloc(FRAME_HEAD + n);
	if (!b)
		return cr_err_oom(err);
	le_put32(b, (uint32_t)n);
	memcpy(b + FRAME_HEAD, body, n);
	*ret = b;
	*ret_len = FRAME_HEAD + n;
	return 0;
}

void peer_error(const struct cr_err *why, uint8_t **ret, size_t *n)
{
	struct msg m = msg_of(MSG_ERROR);
	struct cr_err ignored = {0};

	m.error = *why;
	if (frame_of(&m, ret, n, &ignored))
		*ret = NULL;
}

static int send_msg(struct peer *p, const struct msg *m, struct cr_err *err)
{
	uint8_t *b;
	size_t n;
	int r = frame_of(m, &b, &n, err);

	if (!r)
		stream_send(p->st, b, n);
	return r;
}

/* ---- messages that the loop answers itself ---- */

static int on_hello(struct peer *p, const struct msg *m, struct cr_err *err)
{
	struct msg mine = msg_of(MSG_HELLO);
	struct server *sv = stream_server(p->st);

	if (m->type != MSG_HELLO || m->hello.role != MSG_ROLE_PEER)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "only source agents talk here");
	if (!mig_token_equal(&m->hello.token, &sv->dir->token))
		return cr_err_set(err, CR_ERR_PEER, EACCES,
				  "wrong token: give both sides the same --token-file");
	p->id = m->hello.id;
	p->token = m->hello.token;
	p->greeted = true;
	stream_greeted(p->st);
	mine.hello = (struct msg_hello){
	    .version = MSG_VERSION, .role = MSG_ROLE_AGENT, .id = p->id, .host = "page-server"};
	return send_msg(p, &mine, err);
}

static int on_image(struct peer *p, const struct msg *m, struct cr_err *err)
{
	struct server *sv = stream_server(p->st);
	struct ps_request rq = {.type = PS_SESSION};
	struct msg ok = msg_of(MSG_IMAGE_OK);
	struct dir_image *di;

	if (p->session)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "IMAGE for the second time");
	memcpy(rq.id, p->id.b, sizeof(rq.id));
	memcpy(rq.token, p->token.b, sizeof(rq.token));
	int r = session_new(&p->session, sv, &rq, err);
	if (!r)
		r = dir_image_new(&di, sv->dir, m->image.name, &p->id, &ok.image_ok, err);
	if (r)
		return r;
	p->session->image = di;
	notify_image(&sv->notify, m->image.name, "receiving");
	log_info("%s: image %s", stream_peer(p->st), m->image.name);
	return send_msg(p, &ok, err);
}

/* From here on the connection is another's. */
static int on_lazy(struct peer *p, const struct msg *m, struct cr_err *err)
{
	struct server *sv = stream_server(p->st);
	const struct msg ok = msg_of(MSG_OK);
	uint8_t *b;
	size_t n;
	int r = frame_of(&ok, &b, &n, err);

	if (r)
		return r;
	r = serving_take(sv, &m->lazy, &p->id, stream_peer(p->st), stream_fd(p->st), b, n, err);
	free(b);
	if (!r)
		stream_close(p->st);
	return r;
}

/* ---- messages that a thread answers ---- */

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

/* On a thread of the pool: touches the members for the question under way, and the image. */
static void answer_in_thread(uv_work_t *w)
{
	struct peer *p = w->data;
	_cleanup_(arena_freep) struct arena *a = arena_new();
	struct msg reply = {0};
	struct dir_image *di = p->session ? p->session->image : NULL;

	if (!a)
		p->result = cr_err_oom(&p->err);
	else if (di)
		p->result = dir_image_answer(di, &p->question, a, &reply, &p->err);
	else
		p->result = dir_orphan_answer(stream_server(p->st)->dir, &p->id, &p->question,
					      &reply, &p->err);
	if (p->result >= 0) {
		int r = frame_of(&reply, &p->out, &p->out_len, &p->err);

		p->result = r ? r : p->result;
	}
}

static int handle_frames(struct peer *p, struct cr_err *err);

static void after_answer(uv_work_t *w, int status)
{
	struct peer *p = w->data;
	struct stream *st = p->st;
	struct cr_err err = {0};

	(void)status; /* is never cancelled */
	msg_free(&p->question);
	if (p->session)
		p->session->answering = false;
	if (p->over) {
		end_session(p);
		stream_busy(st, false); /* may free p */
		return;
	}
	stream_busy(st, false);
	if (p->result < 0) {
		stream_fail(st, &p->err);
		return;
	}
	stream_send(st, take_ptr(p->out), p->out_len);
	if (p->over)
		return;
	stream_resume(st);
	if (handle_frames(p, &err) < 0)
		stream_fail(st, &err);
}

static int ask_thread(struct peer *p, struct msg *m, struct cr_err *err)
{
	struct server *sv = stream_server(p->st);

	p->question = *m;
	memset(m, 0, sizeof(*m));
	p->work.data = p;
	int r = uv_queue_work(&sv->loop, &p->work, answer_in_thread, after_answer);
	if (r) {
		msg_free(&p->question);
		return cr_err_set(err, CR_ERR_KERNEL, -r, "hand a message to a thread: %s",
				  uv_strerror(r));
	}
	if (p->session)
		p->session->answering = true;
	stream_busy(p->st, true);
	stream_pause(p->st);
	return 0;
}

/* ---- bytes ---- */

static int handle(struct peer *p, const uint8_t *body, size_t n, struct cr_err *err)
{
	struct msg m;
	int r = msg_decode(body, n, &m, err);

	if (r)
		return r;
	if (!p->greeted)
		r = on_hello(p, &m, err);
	else if (stream_server(p->st)->options.serve)
		r = m.type == MSG_LAZY
			? on_lazy(p, &m, err)
			: cr_err_set(err, CR_ERR_PEER, EPERM,
				     "this page-server gives pages out, it takes none (--serve)");
	else if (m.type == MSG_IMAGE)
		r = on_image(p, &m, err);
	else
		r = ask_thread(p, &m, err);
	msg_free(&m);
	return r;
}

static size_t frame_limit(const struct peer *p)
{
	return p->greeted ? MSG_TREE_BYTES : STRANGER_BYTES;
}

/* For a frame of n bytes: at most twice what has come of it. */
static int make_room(struct peer *p, size_t n, struct cr_err *err)
{
	size_t cap = 2 * p->have + ROOM_BYTES;

	if (cap > n)
		cap = n;
	if (p->cap - p->have > 0 || cap <= p->cap)
		return 0;
	/* of a tree there is also the copy that is kept, and what it decodes to */
	int r = cap > ROOM_BYTES ? stream_pay_memory(p->st, 3 * (cap - p->cap), err) : 0;
	if (r)
		return r;
	p->paid += cap > ROOM_BYTES ? 3 * (cap - p->cap) : 0;
	uint8_t *b = realloc(p->buf, cap);
	if (!b)
		return cr_err_oom(err);
	p->buf = b;
	p->cap = cap;
	return 0;
}

/* A large message is rare. */
static void shrink(struct peer *p)
{
	uint8_t *b =
	    p->cap > 4 * ROOM_BYTES && p->have < ROOM_BYTES ? realloc(p->buf, ROOM_BYTES) : NULL;

	if (b) {
		p->buf = b;
		p->cap = ROOM_BYTES;
		stream_give_memory(p->st, p->paid);
		p->paid = 0;
	}
}

static int handle_frames(struct peer *p, struct cr_err *err)
{
	size_t at = 0;
	int r = 0;

	while (!r && !p->over && !p->question.type && p->have - at >= FRAME_HEAD) {
		size_t n = le_get32(p->buf + at);

		if (n > frame_limit(p))
			return cr_err_set(err, CR_ERR_PEER, EMSGSIZE,
					  "a message of %zu bytes: over the limit", n);
		if (p->have - at < FRAME_HEAD + n)
			break;
		r = handle(p, p->buf + at + FRAME_HEAD, n, err);
		at += FRAME_HEAD + n;
	}
	if (at) {
		memmove(p->buf, p->buf + at, p->have - at);
		p->have -= at;
		shrink(p);
	}
	if (!r && p->have >= FRAME_HEAD)
		r = make_room(p, FRAME_HEAD + le_get32(p->buf), err);
	return r;
}

int peer_advance(struct peer *p, size_t n, struct cr_err *err)
{
	p->have += n;
	return handle_frames(p, err);
}
