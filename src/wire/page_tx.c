#include "wire/page_tx.h"

#include <poll.h>
#include <string.h>
#include "base/clock.h"
#include "kernel/background.h"
#include "wire/addr.h"
#include "wire/page_tx_priv.h"

enum {
	CONNECT_US = 5000000,
	ANSWER_US = 5000000, /* HELLO_OK */
	STALL_US = 30000000, /* a flush without an ACK for so long is an error */
	POLL_CB_US = 100000,
};

/* ---- waiting ---- */

/* Waits for any stream: POLLIN on all, POLLOUT on those in `out` (a bit each). *ret_ready: those
 * that can send. Takes at most timeout_us. */
static int wait_streams(struct page_tx *tx, uint32_t out, uint64_t timeout_us, uint32_t *ret_ready,
			uint32_t *ret_readable, struct cr_err *err)
{
	struct pollfd pfd[PAGE_STREAMS_MAX];
	uint64_t start = now_us();

	if (timeout_us > POLL_CB_US)
		timeout_us = POLL_CB_US;
	for (unsigned int i = 0; i < tx->n; i++)
		pfd[i] = (struct pollfd){
		    .fd = tx->conns[i].fd,
		    .events = (short)(POLLIN | (out >> i & 1 ? POLLOUT : 0)),
		};
	struct timespec ts = {.tv_nsec = (long)timeout_us * 1000};
	int r = ppoll(pfd, tx->n, &ts, NULL);
	if (r < 0 && errno != EINTR)
		return cr_err_sys(err, "poll page streams");
	*ret_ready = *ret_readable = 0;
	for (unsigned int i = 0; r > 0 && i < tx->n; i++) {
		if (pfd[i].revents & (POLLIN | POLLERR | POLLHUP))
			*ret_readable |= 1u << i;
		if (pfd[i].revents & (POLLOUT | POLLERR | POLLHUP))
			*ret_ready |= (out >> i & 1) << i;
	}
	uint64_t now = now_us();
	tx->stats.wait_us += now - start;
	tx->waited_us += now - start;
	if (tx->poll_cb && now - tx->called_us >= POLL_CB_US) {
		tx->called_us = now;
		if (tx->poll_cb(tx->poll_arg))
			return cr_err_set(err, CR_ERR_PEER, ECANCELED,
					  "sending pages was cancelled");
	}
	return 0;
}

/* Nothing but an error may come while pages are being sent. */
static int check_readable(struct page_tx *tx, uint32_t readable, struct cr_err *err)
{
	for (unsigned int i = 0; i < tx->n; i++) {
		int r = readable >> i & 1 ? page_conn_receive(&tx->conns[i], err) : 0;

		if (r > 0)
			r = cr_err_set(err, CR_ERR_PEER, EPROTO,
				       "page stream %u: %s answered what was not asked", i,
				       tx->address);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- bandwidth limit ---- */

void page_tx_set_bandwidth(struct page_tx *tx, uint64_t bytes_s)
{
	token_bucket_set(&tx->bucket, bytes_s, now_us());
}

static uint64_t bandwidth_wait_us(struct page_tx *tx)
{
	return tx->bucket.bytes_s ? token_bucket_wait_us(&tx->bucket, now_us()) : 0;
}

/* ---- submit ---- */

static int check_run(const struct page_run *run, struct cr_err *err)
{
	bool same = run->kind == PAGE_SAME;

	if ((run->kind != PAGE_DATA && run->kind != PAGE_ZERO && !same) || !run->npages ||
	    run->addr % CR_PAGE_SIZE || run->addr >= PAGE_ADDR_END ||
	    run->npages > (PAGE_ADDR_END - run->addr) / CR_PAGE_SIZE)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "bad run: kind %d, %u pages at %#llx",
				  run->kind, run->npages, (unsigned long long)run->addr);
	if (same && (!run->hashes || run->src_target >= PAGE_TARGETS_MAX ||
		     run->src_addr % CR_PAGE_SIZE || run->src_addr >= PAGE_ADDR_END ||
		     run->npages > (PAGE_ADDR_END - run->src_addr) / CR_PAGE_SIZE))
		return cr_err_set(err, CR_ERR_BUG, EINVAL,
				  "bad source of a run: %#llx of target %u",
				  (unsigned long long)run->src_addr, run->src_target);
	return 0;
}

/* Streams with a frame under way, and those that could take one. */
static uint32_t busy_streams(const struct page_tx *tx)
{
	uint32_t busy = 0;

	for (unsigned int i = 0; i < tx->n; i++)
		busy |= (uint32_t)(tx->conns[i].left > 0) << i;
	return busy;
}

/* Gives each stream that is ready something to do, beginning with the one whose turn it is. */
static int feed_streams(struct page_tx *tx, uint32_t ready, struct cursor *cur, struct cr_err *err)
{
	unsigned int first = tx->next;

	for (unsigned int k = 0; k < tx->n; k++) {
		unsigned int i = (first + k) % tx->n;
		struct page_conn *c = &tx->conns[i];

		if (!(ready >> i & 1))
			continue;
		if (!c->left) {
			bool some = cur->at < cur->nruns || page_pack_owes(c, cur);

			if (!some || bandwidth_wait_us(tx))
				continue;
			page_pack(tx, c, cur);
			tx->next = (i + 1) % tx->n;
		}
		background_yield();
		ssize_t n = page_conn_send(c, err);
		if (n < 0)
			return (int)n;
	}
	return 0;
}

static bool is_more(const struct page_tx *tx, const struct cursor *cur)
{
	bool more = cur->at < cur->nruns;

	for (unsigned int i = 0; i < tx->n && cur->drain && !more; i++)
		more = tx->conns[i].owed.n > 0;
	return more;
}

static int send_all(struct page_tx *tx, struct cursor *cur, struct cr_err *err)
{
	uint32_t all = (1u << tx->n) - 1, ready, readable;

	for (;;) {
		uint32_t busy = busy_streams(tx);
		bool more = is_more(tx, cur);

		if (!busy && !more)
			return 0;
		uint64_t pause = more ? bandwidth_wait_us(tx) : 0;
		int r = wait_streams(tx, more && !pause ? all : busy, pause ? pause : POLL_CB_US,
				     &ready, &readable, err);
		if (!r && readable)
			r = check_readable(tx, readable, err);
		if (!r && ready)
			r = feed_streams(tx, ready, cur, err);
		if (r)
			return r;
	}
}

static int check_usable(const struct page_tx *tx, struct cr_err *err)
{
	if (tx->broken)
		return cr_err_set(err, CR_ERR_IO, EPIPE, "page streams to %s: failed before",
				  tx->address);
	return 0;
}

int page_tx_submit(struct page_tx *tx, uint32_t target, const struct page_run *runs, size_t nruns,
		   const void *buf, struct cr_err *err)
{
	struct cursor cur = {.target = target, .runs = runs, .nruns = nruns, .buf = buf};
	int r = check_usable(tx, err);

	if (r)
		return r;
	if (target >= PAGE_TARGETS_MAX)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "target %u is out of range", target);
	for (size_t i = 0; i < nruns; i++) {
		r = check_run(&runs[i], err);
		if (r)
			return r;
	}
	r = send_all(tx, &cur, err);
	tx->broken = r < 0;
	return r;
}

/* ---- flush ---- */

static int check_ack(const struct page_conn *c, struct cr_err *err)
{
	struct page_ack a;
	int r;

	if (c->in_frame.type != PAGE_FRAME_ACK || c->in_frame.seq != c->seq)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "page stream %u: %s answered what was not asked", c->index,
				  c->address);
	r = page_ack_decode(&a, c->in + PAGE_HDR_BYTES, c->in_frame.wire_bytes, err);
	if (r)
		return r;
	if (a.status)
		return cr_err_set(err, CR_ERR_PEER, EIO, "page stream %u: %s placed with status %u",
				  c->index, c->address, a.status);
	if (a.data_pages != c->sent.data_pages || a.zero_pages != c->sent.zero_pages ||
	    a.same_pages != c->sent.same_pages || !page_digest_equal(a.digest, c->sent.digest))
		return cr_err_set(
		    err, CR_ERR_PEER, EBADMSG,
		    "page stream %u: what %s placed (%llu data, %llu zero, %llu same pages, "
		    "digest %016llx%016llx) is not what was sent (%llu, %llu, %llu, "
		    "%016llx%016llx)",
		    c->index, c->address, (unsigned long long)a.data_pages,
		    (unsigned long long)a.zero_pages, (unsigned long long)a.same_pages,
		    (unsigned long long)a.digest.hi, (unsigned long long)a.digest.lo,
		    (unsigned long long)c->sent.data_pages, (unsigned long long)c->sent.zero_pages,
		    (unsigned long long)c->sent.same_pages, (unsigned long long)c->sent.digest.hi,
		    (unsigned long long)c->sent.digest.lo);
	return 0;
}

/* `waiting`: streams whose answer is due; each answer is given to `check`. */
static int await_answers(struct page_tx *tx, uint32_t waiting, uint64_t stall_us,
			 int (*check)(const struct page_conn *c, struct cr_err *err),
			 struct cr_err *err)
{
	struct cursor none = {0};
	uint64_t last = now_us();
	uint32_t ready, readable;

	while (waiting) {
		int r = wait_streams(tx, busy_streams(tx), POLL_CB_US, &ready, &readable, err);

		if (!r && ready)
			r = feed_streams(tx, ready, &none, err);
		for (unsigned int i = 0; !r && i < tx->n; i++) {
			if (!(readable >> i & 1))
				continue;
			r = page_conn_receive(&tx->conns[i], err);
			if (r > 0) {
				r = check(&tx->conns[i], err);
				waiting &= ~(1u << i);
				last = now_us();
			}
		}
		if (!r && now_us() - last > stall_us)
			r = cr_err_set(err, CR_ERR_IO, ETIMEDOUT,
				       "no answer from the page-server at %s", tx->address);
		if (r)
			return r;
	}
	return 0;
}

static void add_sent(const struct page_tx *tx, struct page_ack *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (unsigned int i = 0; i < tx->n; i++) {
		const struct page_ack *a = &tx->conns[i].sent;

		ret->data_pages += a->data_pages;
		ret->zero_pages += a->zero_pages;
		ret->same_pages += a->same_pages;
		page_digest_merge(&ret->digest, a->digest);
	}
}

static int flush_all(struct page_tx *tx, struct page_ack *ret, struct cr_err *err)
{
	struct cursor owed = {.drain = true};
	int r = check_usable(tx, err);

	if (r)
		return r;
	r = send_all(tx, &owed, err);
	if (r) {
		tx->broken = true;
		return r;
	}
	for (unsigned int i = 0; i < tx->n; i++) {
		struct page_conn *c = &tx->conns[i];
		struct page_frame f = {.type = PAGE_FRAME_FLUSH, .seq = ++c->seq};

		page_conn_begin(c, &f, PAGE_HDR_BYTES);
		ssize_t n = page_conn_send(c, err);
		if (n < 0) {
			tx->broken = true;
			return (int)n;
		}
	}
	r = await_answers(tx, (1u << tx->n) - 1, STALL_US, check_ack, err);
	tx->broken = r < 0;
	page_policy_restart_window(&tx->policy);
	tx->waited_us = 0;
	if (!r && ret)
		add_sent(tx, ret);
	if (tx->dups)
		page_dups_flushed(tx->dups);
	return r;
}

int page_tx_barrier(struct page_tx *tx, struct cr_err *err)
{
	return flush_all(tx, NULL, err);
}

int page_tx_flush(struct page_tx *tx, struct page_ack *ret, struct cr_err *err)
{
	int r = flush_all(tx, ret, err);

	if (tx->dups)
		page_dups_forget(tx->dups);
	return r;
}

void page_tx_set_same(struct page_tx *tx, bool on)
{
	tx->same = on;
}

void page_tx_stats(const struct page_tx *tx, struct page_tx_stats *ret)
{
	struct page_ack sent;

	add_sent(tx, &sent);
	*ret = tx->stats;
	ret->data_pages = sent.data_pages;
	ret->zero_pages = sent.zero_pages;
	ret->same_pages = sent.same_pages;
}

/* ---- open ---- */

static int check_hello_ok(const struct page_conn *c, struct cr_err *err)
{
	struct page_hello_ok ok;

	if (c->in_frame.type != PAGE_FRAME_HELLO_OK)
		return cr_err_set(err, CR_ERR_PEER, EPROTO,
				  "page stream %u: %s did not answer HELLO", c->index, c->address);
	int r = page_hello_ok_decode(&ok, c->in + PAGE_HDR_BYTES, c->in_frame.wire_bytes, err);
	if (r)
		return r;
	if (ok.version < PAGE_STREAM_VERSION_MIN || ok.version > PAGE_STREAM_VERSION)
		return cr_err_set(err, CR_ERR_PEER, EPROTONOSUPPORT,
				  "page-server at %s chose version %u", c->address, ok.version);
	return 0;
}

static int connect_all(struct page_tx *tx, struct cr_err *err)
{
	struct addr addr;
	uint32_t pending = (1u << tx->n) - 1, ready, readable;
	uint64_t start = now_us();
	int r = addr_parse(tx->address, &addr, err);

	if (!r && addr.sa.sa_family == AF_UNIX)
		r = cr_err_set(err, CR_ERR_INPUT, EINVAL, "page-server at %s: not an IP:PORT",
			       tx->address);

	for (unsigned int i = 0; !r && i < tx->n; i++)
		r = page_conn_connect(&tx->conns[i], &addr, err);
	while (!r && pending) {
		r = wait_streams(tx, pending, POLL_CB_US, &ready, &readable, err);
		for (unsigned int i = 0; !r && i < tx->n; i++)
			if (ready >> i & 1)
				r = page_conn_connected(&tx->conns[i], err);
		pending &= ~ready;
		if (!r && pending && now_us() - start > CONNECT_US)
			r = cr_err_set(err, CR_ERR_IO, ETIMEDOUT,
				       "connect to the page-server at %s: %s", tx->address,
				       strerror(ETIMEDOUT));
	}
	return r;
}

static int greet_all(struct page_tx *tx, const struct page_tx_opts *opts, struct cr_err *err)
{
	for (unsigned int i = 0; i < tx->n; i++) {
		struct page_conn *c = &tx->conns[i];
		struct page_frame f = {.type = PAGE_FRAME_HELLO, .wire_bytes = PAGE_HELLO_BYTES};
		struct page_hello h = {
		    .version = PAGE_STREAM_VERSION,
		    .version_min = PAGE_STREAM_VERSION_MIN,
		    .stream = c->index,
		    .nstreams = (uint16_t)tx->n,
		    .caps = PAGE_CAPS,
		};

		memcpy(h.id, opts->id, PAGE_ID_BYTES);
		memcpy(h.token, opts->token, PAGE_TOKEN_BYTES);
		page_hello_encode(c->head + PAGE_HDR_BYTES, &h);
		page_conn_begin(c, &f, PAGE_HDR_BYTES + PAGE_HELLO_BYTES);
		ssize_t n = page_conn_send(c, err);
		if (n < 0)
			return (int)n;
	}
	int r = await_answers(tx, (1u << tx->n) - 1, ANSWER_US, check_hello_ok, err);
	if (r)
		return r;
	tx->caps = PAGE_CAPS;
	for (unsigned int i = 0; i < tx->n; i++) {
		const uint8_t *body = tx->conns[i].in + PAGE_HDR_BYTES;
		struct page_hello_ok ok;

		r = page_hello_ok_decode(&ok, body, PAGE_HELLO_OK_BYTES, err);
		if (r)
			return r;
		tx->caps &= ok.caps;
		explicit_bzero(tx->conns[i].head + PAGE_HDR_BYTES, PAGE_HELLO_BYTES);
	}
	return 0;
}

static void txp_free(struct page_tx **tx)
{
	page_tx_free(*tx);
}

int page_tx_open(struct page_tx **ret, const struct page_tx_opts *opts, struct cr_err *err)
{
	unsigned int n = opts->streams ? opts->streams : 1;

	if (n > PAGE_STREAMS_MAX)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "%u page streams: at most %d are possible", n, PAGE_STREAMS_MAX);
	_cleanup_(txp_free) struct page_tx *tx = calloc(1, sizeof(*tx));
	if (!tx)
		return cr_err_oom(err);
	tx->address = strdup(opts->address);
	tx->conns = calloc(n, sizeof(*tx->conns));
	if (!tx->address || !tx->conns)
		return cr_err_oom(err);
	tx->n = n;
	for (unsigned int i = 0; i < n; i++) {
		tx->conns[i].fd = -1;
		tx->conns[i].index = (uint16_t)i;
		tx->conns[i].address = tx->address;
	}
	tx->compress = opts->compress;
	tx->poll_cb = opts->poll_cb;
	tx->poll_arg = opts->poll_arg;
	tx->called_us = now_us();
	int r = connect_all(tx, err);
	if (!r)
		r = greet_all(tx, opts, err);
	if (r)
		return r;
	if (tx->caps & PAGE_CAP_SAME)
		tx->dups = page_dups_new(); /* without memory: it goes without */
	page_tx_set_bandwidth(tx, opts->max_bandwidth_bytes_s);
	tx->stats = (struct page_tx_stats){0};
	tx->waited_us = 0;
	*ret = take_ptr(tx);
	return 0;
}

void page_tx_free(struct page_tx *tx)
{
	if (!tx)
		return;
	for (unsigned int i = 0; tx->conns && i < tx->n; i++)
		page_conn_done(&tx->conns[i]);
	free(tx->conns);
	free(tx->gathered);
	page_dups_free(tx->dups);
	free(tx->address);
	free(tx);
}
