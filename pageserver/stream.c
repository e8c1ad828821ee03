#include <sched.h>
#include <sys/socket.h>
#include "base/log.h"
#include "pageserver/stream_priv.h"

enum {
	LINGER_MS = 2000,  /* for the peer to read why it failed */
	INLINE_PAGES = 16, /* placed at once: handing it to a thread would take longer */
	/* of one that is past its HELLO: two buffers, one to unpack into, the runs of a batch */
	STREAM_BYTES = 2 * PAGE_RX_BYTES + PAGE_BATCH_BYTES + (256 << 10),
	/* Of a large frame so much is waited for before it is read: waking up for each packet costs
	 * more than reading it. */
	WAKE_BYTES = 256 * 1024,
};

const struct page_ack *stream_placed(const struct stream *st)
{
	return &st->placed;
}

struct stream *stream_next(const struct stream *st)
{
	return st->next;
}

struct stream *stream_next_in_session(const struct stream *st)
{
	return st->next_in_session;
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf);
static void on_read(uv_stream_t *h, ssize_t n, const uv_buf_t *buf);

/* ---- the end ---- */

static void leave_session(struct stream *st)
{
	struct session *s = st->session;

	if (!s)
		return;
	for (struct stream **p = &s->streams; *p; p = &(*p)->next_in_session) {
		if (*p == st) {
			*p = st->next_in_session;
			break;
		}
	}
	s->nstreams--;
	session_add_placed(s, &st->placed);
	st->session = NULL;
	st->next_in_session = NULL;
}

/* The last of: both handles closed, no thread at work. */
static void free_if_unused(struct stream *st)
{
	if (st->open_handles || st->working || st->peer_busy)
		return;
	peer_free(st->peer);
	page_rx_free(st->rx);
	free(st->work_memory);
	free(st);
}

static void on_closed(uv_handle_t *h)
{
	struct stream *st = h->data;

	st->open_handles--;
	free_if_unused(st);
}

void stream_close(struct stream *st)
{
	if (st->closing)
		return;
	st->closing = true;
	st->over = true;
	st->throttled = false;
	peer_closed(st->peer);
	leave_session(st);
	if (st->prev)
		st->prev->next = st->next;
	else
		st->sv->streams = st->next;
	if (st->next)
		st->next->prev = st->prev;
	st->sv->nstreams--;
	st->sv->ngreeted -= st->greeted;
	st->sv->half_open -= !st->greeted && !st->known;
	if (st->sv->dir)
		st->sv->dir->limits.memory_bytes -= st->paid_bytes;
	uv_close((uv_handle_t *)&st->tcp, on_closed);
	uv_close((uv_handle_t *)&st->timer, on_closed);
}

/* socket(7): what is less than SO_RCVLOWAT does not make poll(2) say readable; an end or an error
 * does. (Since 4.x for TCP, tcp_set_rcvlowat.) */
static void wake_for(struct stream *st, size_t missing)
{
	int bytes = missing < INLINE_PAGES * CR_PAGE_SIZE ? 1
		    : missing < WAKE_BYTES                ? (int)missing
							  : WAKE_BYTES;
	int fd;

	if (bytes != (st->wake_bytes ? st->wake_bytes : 1) &&
	    !uv_fileno((uv_handle_t *)&st->tcp, &fd) &&
	    !setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes)))
		st->wake_bytes = bytes;
}

void stream_read_on(struct stream *st)
{
	if (st->throttled || st->paused)
		return;
	int r = uv_read_start((uv_stream_t *)&st->tcp, on_alloc, on_read);

	if (r && r != UV_EALREADY)
		stream_close(st);
}

void stream_on_timeout(uv_timer_t *timer)
{
	struct stream *st = timer->data;

	if (!st->over)
		stream_complain(st, "said no HELLO in time");
	stream_close(st);
}

/* All frames to the peer are small and few, each an answer that it waits for: what does not fit
 * into the socket's buffer is for a peer that does not read, and nothing is queued for such. */
static int answer(struct stream *st, uint8_t type, uint64_t seq, const uint8_t *body, size_t bytes)
{
	uint8_t out[PAGE_HDR_BYTES + PAGE_ERROR_MAX_BYTES];
	struct page_frame f = {.type = type, .seq = seq, .wire_bytes = (uint32_t)bytes};

	page_frame_encode(out, &f);
	memcpy(out + PAGE_HDR_BYTES, body, bytes);
	uv_buf_t buf = uv_buf_init((char *)out, (unsigned int)(PAGE_HDR_BYTES + bytes));
	int n = uv_try_write((uv_stream_t *)&st->tcp, &buf, 1);
	return n == (int)buf.len ? 0 : -EPIPE;
}

static int say_why(struct stream *st, const struct cr_err *why)
{
	uint8_t body[PAGE_ERROR_MAX_BYTES];
	_cleanup_free_ uint8_t *bytes = NULL;
	size_t n = 0;

	if (!st->peer)
		return answer(st, PAGE_FRAME_ERROR, 0, body, page_error_encode(body, why));
	peer_error(why, &bytes, &n);
	uv_buf_t buf = uv_buf_init((char *)bytes, (unsigned int)n);
	return bytes && uv_try_write((uv_stream_t *)&st->tcp, &buf, 1) == (int)n ? 0 : -EPIPE;
}

void stream_fail(struct stream *st, const struct cr_err *why)
{
	int fd;

	if (st->over)
		return;
	if (st->session || (st->peer && peer_session(st->peer)))
		log_warn("%s: %s", st->peer_name, why->msg);
	else
		stream_complain(st, why->msg);
	if (st->session)
		st->session->last_error = *why;
	leave_session(st);
	st->over = true;
	if (say_why(st, why) || uv_fileno((uv_handle_t *)&st->tcp, &fd) ||
	    shutdown(fd, SHUT_WR) < 0 ||
	    uv_timer_start(&st->timer, stream_on_timeout, LINGER_MS, 0)) {
		stream_close(st);
		return;
	}
	wake_for(st, 1);
	/* A close with bytes unread would be a reset, which can overtake the text: read on, drop
	 * all. */
	stream_read_on(st);
}

/* ---- frames ---- */

static void replace_same_index(struct session *s, uint16_t index)
{
	for (struct stream *st = s->streams; st; st = st->next_in_session) {
		if (st->index == index) {
			log_info("%s: stream %u connected anew, old connection closed",
				 st->peer_name, index);
			stream_close(st);
			return;
		}
	}
}

static int on_hello(void *arg, const struct page_hello *h, struct cr_err *err)
{
	struct stream *st = arg;
	struct server *sv = st->sv;
	struct page_hello_ok ok = {.version = PAGE_STREAM_VERSION};
	uint8_t body[PAGE_HELLO_OK_BYTES];

	if (h->version_min > PAGE_STREAM_VERSION || h->version < PAGE_STREAM_VERSION_MIN)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EPROTONOSUPPORT,
				  "page stream versions %u to %u are not ours (%d to %d)",
				  h->version_min, h->version, PAGE_STREAM_VERSION_MIN,
				  PAGE_STREAM_VERSION);
	if (h->version < ok.version)
		ok.version = h->version;
	struct session *s = session_find(sv, h->id, h->token);
	if (!s)
		return cr_err_set(err, CR_ERR_PEER, EACCES, "unknown migration or wrong token");
	ok.caps = session_caps(s, h->caps);
	replace_same_index(s, h->stream);
	if (s->nstreams >= PAGE_STREAMS_MAX || (!sv->dir && sv->ngreeted >= SERVER_STREAMS_MOST))
		return cr_err_set(err, CR_ERR_PEER, EBUSY, "the page-server has %u streams already",
				  sv->ngreeted);
	int r = stream_pay_memory(st, STREAM_BYTES, err);
	if (r)
		return r;
	if (answer(st, PAGE_FRAME_HELLO_OK, 0, body, page_hello_ok_encode(body, &ok)))
		return cr_err_set(err, CR_ERR_IO, EPIPE, "cannot answer");
	uv_timer_stop(&st->timer);
	st->index = h->stream;
	st->greeted = true;
	sv->ngreeted++;
	sv->half_open--;
	st->session = s;
	st->next_in_session = s->streams;
	s->streams = st;
	s->nstreams++;
	return 0;
}

/* On a thread of the pool: touches the work_ members and what they point to, nothing else. */
static void place_in_thread(uv_work_t *w)
{
	struct stream *st = w->data;
	struct place_memory mem = {.zeros = st->sv->zeros, .work = st->work_memory};

	sched_yield(); /* background_short_turns() */
	st->work_result =
	    session_place(st->work_session, &st->work_batch, &mem, &st->work_placed, &st->work_err);
	session_placed(st->sv, st->work_session);
}

static void after_placing(uv_work_t *w, int status)
{
	struct stream *st = w->data;
	struct cr_err err = {0};

	(void)status; /* is never cancelled */
	st->working = false;
	sched_yield();
	if (st->over) {
		free_if_unused(st);
		return;
	}
	if (st->work_result) {
		stream_fail(st, &st->work_err);
		return;
	}
	st->placed = st->work_placed;
	if (page_rx_resume(st->rx, &err) < 0)
		stream_fail(st, &err);
	else if (!page_rx_stalled(st->rx)) {
		wake_for(st, page_rx_missing(st->rx));
		stream_read_on(st);
	}
}

static int on_batch(void *arg, const struct page_batch *b, struct cr_err *err)
{
	struct stream *st = arg;

	sched_yield();
	if (!st->work_memory && place_needs_work(b)) {
		st->work_memory = malloc(PAGE_BATCH_BYTES);
		if (!st->work_memory)
			return cr_err_oom(err);
	}
	struct place_memory mem = {.zeros = st->sv->zeros, .work = st->work_memory};
	bool at_once = !st->sv->by_threads || place_pages(b) <= INLINE_PAGES;
	if (at_once && !st->session->answering)
		return session_place(st->session, b, &mem, &st->placed, err);
	st->work.data = st;
	st->work_session = st->session;
	st->work_batch = *b;
	st->work_placed = st->placed;
	session_placing(st->sv, st->session);
	int r = uv_queue_work(&st->sv->loop, &st->work, place_in_thread, after_placing);
	if (r) {
		session_placed(st->sv, st->session);
		return cr_err_set(err, CR_ERR_KERNEL, -r, "hand a batch to a thread: %s",
				  uv_strerror(r));
	}
	st->working = true;
	return PAGE_RX_BUSY;
}

static int on_flush(void *arg, uint64_t seq, struct cr_err *err)
{
	struct stream *st = arg;
	uint8_t body[PAGE_ACK_BYTES];

	if (answer(st, PAGE_FRAME_ACK, seq, body, page_ack_encode(body, &st->placed)))
		return cr_err_set(err, CR_ERR_IO, EPIPE, "cannot answer");
	return 0;
}

const struct page_rx_ops stream_rx_ops = {.hello = on_hello, .batch = on_batch, .flush = on_flush};

/* ---- bytes ---- */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct stream *st = h->data;
	size_t len = sizeof(st->sv->discard);
	char *p = st->sv->discard;

	(void)suggested;
	if (!st->over && st->peer) {
		peer_room(st->peer, &p, &len);
	} else if (!st->over && st->sv->dir && st->begun < sizeof(st->begin)) {
		p = (char *)st->begin + st->begun;
		len = sizeof(st->begin) - st->begun;
	} else if (!st->over) {
		page_rx_room(st->rx, &p, &len);
	}
	*buf = uv_buf_init(p, (unsigned int)len);
}

/* In dir mode both kinds of connection come on one port: a page stream begins with its magic, which
 * as the length of a message would be over any limit. */
static int take_bytes(struct stream *st, size_t n, struct cr_err *err)
{
	char *p;
	size_t len;

	if (st->peer)
		return peer_advance(st->peer, n, err);
	if (!st->sv->dir || st->begun == sizeof(st->begin))
		return page_rx_advance(st->rx, n, err);
	st->begun += n;
	if (st->begun < sizeof(st->begin))
		return 0;
	if (page_stream_begins(st->begin)) {
		page_rx_room(st->rx, &p, &len);
		memcpy(p, st->begin, sizeof(st->begin));
		return page_rx_advance(st->rx, sizeof(st->begin), err);
	}
	st->peer = peer_new(st);
	if (!st->peer)
		return cr_err_oom(err);
	peer_room(st->peer, &p, &len);
	memcpy(p, st->begin, sizeof(st->begin));
	return peer_advance(st->peer, sizeof(st->begin), err);
}

static void on_read(uv_stream_t *h, ssize_t n, const uv_buf_t *buf)
{
	struct stream *st = h->data;
	struct cr_err err = {0};

	(void)buf;
	if (n < 0) {
		if (n != UV_EOF && !st->over && st->session)
			log_warn("%s: %s", st->peer_name, uv_strerror((int)n));
		stream_close(st);
		return;
	}
	if (n == 0 || st->over)
		return;
	bool had_part = stream_in_frame(st);
	if (st->session)
		st->session->heard_us = st->sv->now_us;
	if (take_bytes(st, (size_t)n, &err) < 0) {
		stream_fail(st, &err);
		return;
	}
	if (!had_part || !stream_in_frame(st))
		st->since_us = st->sv->now_us;
	if (!st->over && !st->peer)
		wake_for(st, page_rx_missing(st->rx));
	if (!st->over && (stream_must_wait(st, (size_t)n) || st->paused || page_rx_stalled(st->rx)))
		uv_read_stop(h);
}

/* ---- for the peer link ---- */

struct server *stream_server(const struct stream *st)
{
	return st->sv;
}

const char *stream_peer(const struct stream *st)
{
	return st->peer_name;
}

void stream_greeted(struct stream *st)
{
	uv_timer_stop(&st->timer);
	st->known = true;
	st->sv->half_open--;
}

bool stream_is_busy(const struct stream *st)
{
	return st->peer_busy || st->working;
}

bool stream_in_frame(const struct stream *st)
{
	return st->peer ? peer_in_message(st->peer) : page_rx_in_frame(st->rx);
}

bool stream_is_deciding(const struct stream *st)
{
	return !st->over && st->peer && peer_is_deciding(st->peer);
}

bool stream_has_decider(const struct stream *st)
{
	return !st->over && st->session && st->session->image && !st->session->placing &&
	       dir_image_is_prepared(st->session->image);
}

int stream_pay_memory(struct stream *st, uint64_t bytes, struct cr_err *err)
{
	struct dir_sink *d = st->sv->dir;

	if (!d)
		return 0;
	int r = image_limits_take_memory(&d->limits, bytes, err);
	if (!r)
		st->paid_bytes += bytes;
	return r;
}

void stream_give_memory(struct stream *st, uint64_t bytes)
{
	if (!st->sv->dir)
		return;
	st->sv->dir->limits.memory_bytes -= bytes;
	st->paid_bytes -= bytes;
}

void stream_busy(struct stream *st, bool busy)
{
	st->peer_busy = busy;
	if (!busy && st->closing)
		free_if_unused(st);
}

void stream_pause(struct stream *st)
{
	st->paused = true;
	uv_read_stop((uv_stream_t *)&st->tcp);
}

void stream_resume(struct stream *st)
{
	st->paused = false;
	if (!st->over)
		stream_read_on(st);
}

struct sending {
	uv_write_t req;
	uint8_t *bytes;
};

static void on_sent(uv_write_t *req, int status)
{
	struct sending *s = req->data;

	(void)status; /* reading tells that the connection is gone */
	free(s->bytes);
	free(s);
}

void stream_send(struct stream *st, uint8_t *bytes, size_t n)
{
	struct sending *s = calloc(1, sizeof(*s));
	uv_buf_t buf = uv_buf_init((char *)bytes, (unsigned int)n);

	if (s && !st->over) {
		s->bytes = bytes;
		s->req.data = s;
		if (!uv_write(&s->req, (uv_stream_t *)&st->tcp, &buf, 1, on_sent))
			return;
	}
	free(s);
	free(bytes);
	if (!st->over)
		stream_close(st);
}

int stream_fd(const struct stream *st)
{
	int fd;

	return uv_fileno((const uv_handle_t *)&st->tcp, &fd) ? -1 : fd;
}
