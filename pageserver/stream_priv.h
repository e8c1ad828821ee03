/* A connection, for stream.c and accept.c. */
#pragma once
#include "pageserver/server.h"

struct stream {
	uv_tcp_t tcp;
	uv_timer_t timer; /* HELLO is due, or the end of the lingering */
	unsigned int open_handles;
	struct server *sv;
	struct stream *prev, *next; /* of the server */
	struct session *session;    /* NULL before HELLO and after the end */
	struct stream *next_in_session;
	uint16_t index;
	bool greeted; /* a page stream past its HELLO: counts in ngreeted */
	bool known;   /* a peer link past its HELLO */
	bool over;    /* what still comes is thrown away */
	bool closing;
	char peer_name[64];
	uint8_t peer_ip[16]; /* IPv4: the rest 0 */
	struct page_rx *rx;
	struct peer *peer; /* this is a peer link instead, in dir mode */
	bool peer_busy;    /* with work under way */
	bool paused;
	int wake_bytes;      /* SO_RCVLOWAT; 0: as it was */
	bool throttled;      /* reads on once the bandwidth's limit allows */
	uint64_t since_us;   /* accepted, or of the frame or message under way: its first byte */
	uint64_t paid_bytes; /* of the memory limit, for its buffers */
	size_t begun;        /* of `begin`, which tells what this is */
	uint8_t begin[4];
	struct page_ack placed;
	/* the batch that a thread is placing */
	bool working;
	uv_work_t work;
	struct session *work_session; /* stays while it has a batch under way */
	struct page_batch work_batch;
	struct page_ack work_placed;
	struct cr_err work_err;
	int work_result;
	uint8_t *work_memory; /* PAGE_BATCH_BYTES, allocated when first needed */
};

/* ---- accept.c ---- */

/* About one that is not known: seldom. */
void stream_complain(struct stream *st, const char *what);
/* n bytes have been taken: pays for them, and tells whether to stop reading for now. */
bool stream_must_wait(struct stream *st, size_t n);

/* ---- stream.c ---- */

extern const struct page_rx_ops stream_rx_ops;
bool stream_is_busy(const struct stream *st);

void stream_read_on(struct stream *st);
void stream_on_timeout(uv_timer_t *timer);
/* Is part of a frame or message there? */
bool stream_in_frame(const struct stream *st);
