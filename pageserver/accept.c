/* Connections as they come, and what keeps one of them from harming the others: limits on how many
 * there are, on those that have not said who they are, on how long a frame may take, on how fast
 * all of them together are read. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/log.h"
#include "pageserver/stream_priv.h"
#include "wire/addr.h"

enum {
	HELLO_TIMEOUT_MS = 5000,
	DEAD_PEER_MS = 5000, /* unacknowledged for so long: the connection is lost */
	SWEEP_MS = 1000,
	FRAME_TIMEOUT_US = 120 * 1000000, /* from its first byte to its last */
};

static void name_peer(struct stream *st)
{
	struct addr a = {0};
	char text[ADDR_TEXT] = "?";
	int len = sizeof(a.un);

	if (!uv_tcp_getpeername(&st->tcp, &a.sa, &len)) {
		a.len = (socklen_t)len;
		addr_format(&a, text);
		if (a.sa.sa_family == AF_INET6)
			memcpy(st->peer_ip, &a.v6.sin6_addr, sizeof(a.v6.sin6_addr));
		else if (a.sa.sa_family == AF_INET)
			memcpy(st->peer_ip, &a.v4.sin_addr, sizeof(a.v4.sin_addr));
	}
	snprintf(st->peer_name, sizeof(st->peer_name), "stream from %.48s", text);
}

static void set_options(struct stream *st)
{
	static const struct {
		int name, value;
	} options[] = {
	    {TCP_NODELAY, 1},
	    {TCP_KEEPIDLE, 1},
	    {TCP_KEEPINTVL, 1},
	    {TCP_KEEPCNT, 5},
	    {TCP_USER_TIMEOUT, DEAD_PEER_MS},
	};
	int fd, one = 1;

	/* none of these is needed for a right result, only for a soon one */
	if (uv_fileno((uv_handle_t *)&st->tcp, &fd))
		return;
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		setsockopt(fd, IPPROTO_TCP, options[i].name, &options[i].value, sizeof(int));
}

/* ---- too many ---- */

/* At most one line a second: a flood shall not fill the log. */
static void complain(struct server *sv, const char *what, const char *peer)
{
	sv->turned_away++;
	if (sv->now_us - sv->complained_us < 1000000)
		return;
	log_warn("%s: %s (%u such things since the last line)", peer, what, sv->turned_away);
	sv->complained_us = sv->now_us;
	sv->turned_away = 0;
}

void stream_complain(struct stream *st, const char *what)
{
	st->sv->now_us = now_us();
	complain(st->sv, what, st->peer_name);
}

static bool is_half_open(const struct stream *st)
{
	return !st->greeted && !st->known && !st->over;
}

static unsigned int half_open_of(const struct server *sv, const uint8_t ip[16])
{
	unsigned int n = 0;

	for (struct stream *st = sv->streams; st; st = st->next)
		n += is_half_open(st) && !memcmp(st->peer_ip, ip, 16);
	return n;
}

/* Of those who have not said who they are, the oldest of the address that has most of them: who
 * floods us hurts himself. */
static struct stream *who_gives_way(struct server *sv)
{
	struct stream *found = NULL;
	unsigned int most = 0;

	/* the list begins with the youngest */
	for (struct stream *st = sv->streams; st; st = st->next) {
		unsigned int n = is_half_open(st) ? half_open_of(sv, st->peer_ip) : 0;

		if (n && n >= most) {
			most = n;
			found = st;
		}
	}
	return found;
}

/* False: no room for one more. Who has said who he is stays. */
static bool make_room(struct server *sv, struct stream *newcomer)
{
	while (sv->half_open > sv->max_half_open || sv->nstreams > sv->max_connections) {
		struct stream *st = who_gives_way(sv);

		if (!st || st == newcomer)
			return false;
		stream_complain(st, "has not said who it is, and gives way to others");
		stream_close(st);
	}
	return true;
}

void stream_accept(uv_stream_t *listener, int status)
{
	struct server *sv = listener->data;
	struct stream *st = status < 0 ? NULL : calloc(1, sizeof(*st));

	sv->now_us = now_us();
	if (!st) {
		complain(sv, status < 0 ? uv_strerror(status) : "out of memory", "accept");
		return;
	}
	st->sv = sv;
	st->since_us = sv->now_us;
	st->open_handles = 2;
	st->tcp.data = st->timer.data = st;
	uv_timer_init(&sv->loop, &st->timer);
	uv_tcp_init(&sv->loop, &st->tcp);
	st->next = sv->streams;
	if (st->next)
		st->next->prev = st;
	sv->streams = st;
	sv->nstreams++;
	sv->half_open++;
	st->rx = page_rx_new(&stream_rx_ops, st);
	if (!st->rx || uv_accept(listener, (uv_stream_t *)&st->tcp)) {
		stream_close(st);
		return;
	}
	name_peer(st);
	if (!make_room(sv, st)) {
		complain(sv, "refused, there are too many connections", st->peer_name);
		stream_close(st);
		return;
	}
	set_options(st);
	if (uv_timer_start(&st->timer, stream_on_timeout, HELLO_TIMEOUT_MS, 0))
		stream_close(st);
	else
		stream_read_on(st);
}

/* ---- too fast ---- */

static void read_all_on(uv_timer_t *timer)
{
	struct server *sv = timer->data;

	sv->now_us = now_us();
	uint64_t wait = token_bucket_wait_us(&sv->bucket, sv->now_us);
	if (wait) {
		uv_timer_start(&sv->throttle, read_all_on, wait / 1000 + 1, 0);
		return;
	}
	for (struct stream *st = sv->streams, *next; st; st = next) {
		next = st->next;
		if (!st->throttled)
			continue;
		st->throttled = false;
		if (!page_rx_stalled(st->rx))
			stream_read_on(st);
	}
}

bool stream_must_wait(struct stream *st, size_t n)
{
	struct server *sv = st->sv;

	token_bucket_pay(&sv->bucket, n);
	uint64_t wait = token_bucket_wait_us(&sv->bucket, sv->now_us);
	if (!wait)
		return false;
	st->throttled = true;
	if (!uv_is_active((uv_handle_t *)&sv->throttle))
		uv_timer_start(&sv->throttle, read_all_on, wait / 1000 + 1, 0);
	return true;
}

void server_set_bandwidth(struct server *sv, uint64_t bytes_s)
{
	token_bucket_set(&sv->bucket, bytes_s, now_us());
}

/* ---- too slow ---- */

static void fail_late(struct stream *st, const char *what)
{
	struct cr_err why = {0};

	cr_err_set(&why, CR_ERR_PEER, ETIMEDOUT, "%s", what);
	stream_fail(st, &why);
}

static bool is_idle(const struct server *sv, const struct stream *st)
{
	uint64_t heard = st->since_us;

	if (!sv->dir || !sv->idle_timeout_us || !st->known || stream_is_busy(st))
		return false;
	const struct session *s = peer_session(st->peer);
	if (s && s->heard_us > heard)
		heard = s->heard_us;
	return sv->now_us - heard > sv->idle_timeout_us;
}

static void sweep(uv_timer_t *timer)
{
	struct server *sv = timer->data;

	sv->now_us = now_us();
	for (struct stream *st = sv->streams, *next; st; st = next) {
		next = st->next;
		if (st->over || (!st->greeted && !st->known))
			continue;
		if (stream_in_frame(st) && !st->throttled && !st->working && !st->peer_busy &&
		    sv->now_us - st->since_us > FRAME_TIMEOUT_US)
			fail_late(st, "a frame or message was not finished in time");
		else if (is_idle(sv, st))
			fail_late(st, "nothing has come for too long (--idle-timeout)");
	}
}

int server_start_timers(struct server *sv, struct cr_err *err)
{
	int r = uv_timer_init(&sv->loop, &sv->throttle);

	sv->now_us = now_us();
	sv->throttle.data = sv->sweep.data = sv;
	if (!r)
		r = uv_timer_init(&sv->loop, &sv->sweep);
	if (!r)
		r = uv_timer_start(&sv->sweep, sweep, SWEEP_MS, SWEEP_MS);
	return r ? cr_err_set(err, CR_ERR_KERNEL, -r, "timers: %s", uv_strerror(r)) : 0;
}
