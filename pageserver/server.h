/* What the rooms of the page-server share. One loop, whose thread owns everything; handles are
 * owned by the one struct that embeds them and freed only when their close callbacks have run.
 *
 * Placing, which can take long, is done by threads of libuv's pool, at most one batch of a stream
 * at a time, while the loop reads the next; where there are no processors for both, by the loop, as
 * handing a batch over and back takes a sixth of the time. The threads use what their batch needs
 * and read the session's targets, so these are changed only while no batch of the session is being
 * placed. */
#pragma once
#include <dirent.h>
#include <uv.h>
#include "pageserver/dir.h"
#include "pageserver/notify.h"
#include "pageserver/options.h"
#include "pageserver/place.h"
#include "wire/ps_msg.h"
#include "wire/token_bucket.h"

struct serving;
struct stream;
struct control;
struct peer;

enum {
	SERVER_STREAMS_MOST = 32, /* live, past their HELLO: at most 1.8 MiB of memory each */
	SERVER_CONTROLS_MOST = 64,
};

/* One migration: what its control connection said. */
struct session {
	struct session *next;
	uint8_t id[PAGE_ID_BYTES];
	uint8_t token[PAGE_TOKEN_BYTES];
	struct targets targets;  /* live: tasks being rebuilt … */
	struct dir_image *image; /* … or an image on disk; owned */
	struct stream *streams;
	unsigned int nstreams;
	unsigned int placing;     /* batches under way; under the server's lock */
	struct page_ack placed;   /* by streams that are gone */
	struct cr_err last_error; /* of a stream */
	uint64_t heard_us;        /* when something last came on one of its streams */
	bool hurried;
	bool answering; /* a thread is at the image: to place may be to wait for it */
};

struct server {
	uv_loop_t loop;
	uv_tcp_t listener;
	struct control *control_listener;
	uv_signal_t sigterm, sigint, sighup;
	struct ps_session_info info;
	const char *control_path;
	struct dir_sink *dir; /* NULL: not in dir mode */
	struct serving *half_served;
	unsigned int n_half_served;
	_Atomic unsigned int n_serving; /* threads */
	struct session *sessions;
	struct stream *streams; /* all TCP connections */
	struct control *controls;
	unsigned int nstreams, ngreeted, half_open, ncontrols, max_connections, max_half_open;
	unsigned int nhurried; /* sessions whose tasks stand still */
	DIR *threads;          /* ours; nothing can be opened any more when it is needed */
	bool stopping;
	/* a loop's now, as of its last event; of lines in the log about too many connections */
	uint64_t now_us, complained_us;
	unsigned int turned_away;
	struct token_bucket bucket; /* of what is read, all together */
	uv_timer_t throttle, sweep, stop_timer;
	uint64_t idle_timeout_us;
	struct notify notify;
	struct options options;
	const char *first_listen;
	uint64_t stopped_us;
	int argc;
	char **argv;
	bool by_threads;                 /* large batches are placed by threads of the pool */
	uv_mutex_t lock;                 /* of `placing` of the sessions */
	uv_cond_t idle;                  /* one of them went to zero */
	char discard[64 * 1024];         /* what nobody wants to know */
	uint8_t zeros[PAGE_BATCH_BYTES]; /* never written */
};

/* session.c */

/* NULL unless id and token are those of a session; takes the same time whatever the token is. */
struct session *session_find(struct server *sv, const uint8_t *id, const uint8_t *token);
int session_new(struct session **ret, struct server *sv, const struct ps_request *rq,
		struct cr_err *err) must_check;
/* Fails its streams with a text that says so. Takes NULL. */
void session_end(struct server *sv, struct session *s);
/* Keeps the count of a stream that leaves. */
void session_add_placed(struct session *s, const struct page_ack *placed);
void session_stats(const struct session *s, struct ps_stats *ret);
/* Puts the pages of a batch where the session wants them; from any thread. acc as place_batch(). */
int session_place(struct session *s, const struct page_batch *b, const struct place_memory *mem,
		  struct page_ack *acc, struct cr_err *err) must_check;
/* What its streams may do, of what the peer can. */
uint32_t session_caps(const struct session *s, uint32_t caps);
/* A batch begins or ends to be placed; the latter from any thread. */
void session_placing(struct server *sv, struct session *s);
void session_placed(struct server *sv, struct session *s);
/* Answers one request about targets; takes fd (may be -1). */
int session_request(struct server *sv, struct session *s, const struct ps_request *rq, int fd,
		    struct cr_err *err) must_check;

/* stream.c */

/* A connection waits on the listener. */
void stream_accept(uv_stream_t *listener, int status);
/* Tells the peer why, lets go of the session and closes once the peer has read it, or after 2 s. */
void stream_fail(struct stream *st, const struct cr_err *why);
/* At once, with nothing said. */
void stream_close(struct stream *st);
const struct page_ack *stream_placed(const struct stream *st);
struct stream *stream_next(const struct stream *st);            /* of the server */
struct stream *stream_next_in_session(const struct stream *st); /* of its session */

/* For the peer link that came on the port of the streams: frames to the peer (takes bytes,
 * malloc'ed), no more reading until it is asked for, and work under way that needs the stream. */
void stream_send(struct stream *st, uint8_t *bytes, size_t n);
int stream_fd(const struct stream *st); /* negative: none */
void stream_pause(struct stream *st);
void stream_resume(struct stream *st);
void stream_busy(struct stream *st, bool busy);
void stream_greeted(struct stream *st); /* said who it is: it may stay */
/* Of --max-memory, until the stream closes or it is given back. */
int stream_pay_memory(struct stream *st, uint64_t bytes, struct cr_err *err) must_check;
void stream_give_memory(struct stream *st, uint64_t bytes);
/* A peer link that waits for its source's decision, or whose question is being answered. */
bool stream_is_deciding(const struct stream *st);
/* A page stream of such a migration. */
bool stream_has_decider(const struct stream *st);
struct server *stream_server(const struct stream *st);
const char *stream_peer(const struct stream *st);

/* accept.c */

void server_set_bandwidth(struct server *sv, uint64_t bytes_s); /* 0: no limit */
int server_start_timers(struct server *sv, struct cr_err *err) must_check;

/* peer.c: the peer link of a source agent, in dir mode */

struct peer *peer_new(struct stream *st);
void peer_room(struct peer *p, char **ret, size_t *ret_len);
int peer_advance(struct peer *p, size_t n, struct cr_err *err) must_check;
/* The bytes that tell why; *ret malloc'ed, NULL when memory is out. */
void peer_error(const struct cr_err *why, uint8_t **ret, size_t *n);
void peer_closed(struct peer *p); /* the stream goes: ends its session. NULL is fine. */
bool peer_in_message(const struct peer *p);
bool peer_is_deciding(const struct peer *p);
struct session *peer_session(const struct peer *p); /* NULL: none yet; p too */
void peer_free(struct peer *p);                     /* once nothing is under way. NULL is fine. */

/* serving.c */

/* A connection that has said LAZY; fd stays the caller's. ok: what to answer if all is well. */
int serving_take(struct server *sv, const struct msg_lazy *l, const struct mig_id *id,
		 const char *peer, int fd, const uint8_t *ok, size_t ok_bytes,
		 struct cr_err *err) must_check;
void serving_stop(struct server *sv);

/* tasks.c */

/* The whole life of one that serves stopped tasks, or feeds a fetcher; socket: of wire/ps_serve.h.
 * Returns the exit status. */
int tasks_serve(int socket, bool sandbox);

/* feed.c */

/* What comes over conn, into the ring in ring_fd, by a thread; conn becomes its own. */
int feed_start(int conn, int ring_fd, struct cr_err *err) must_check;

/* control.c */

int control_listen(struct server *sv, const char *path, struct cr_err *err) must_check;
void control_close_all(struct server *sv); /* the listener too; removes the socket's file */

/* priority.c */

/* Of all threads: as any program's. */
void priority_lower(struct server *sv);

/* privilege.c */

/* Gives up every capability for good; trace: but CAP_SYS_PTRACE, if it is there. user: who to be
 * from now on; NULL: who we are. */
int privilege_drop(bool trace, const char *user, struct cr_err *err) must_check;
/* That one too, and what files and processes root has. */
int privilege_drop_all(struct cr_err *err) must_check;

/* sandbox.c */

enum sandbox_for {                /* what is left to be done */
		   SANDBOX_LIVE,  /* write into tasks */
		   SANDBOX_TAKE,  /* write images */
		   SANDBOX_GIVE,  /* read images */
		   SANDBOX_TASKS, /* what is handed over alone */
};

/* From here on only the system calls that are needed. */
int sandbox_enter(enum sandbox_for what, struct cr_err *err) must_check;
