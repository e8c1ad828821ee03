/* Control and peer messages as plain data, to bytes and back (proto/control.proto).
 *
 * Who says what to whom, and in which state, is in proto/PROTOCOL.md; in short:
 *
 *   any connection      HELLO -> HELLO | ERROR
 *   cr-migrate -> dest  RECEIVE -> RECEIVE_READY | ERROR; the link then stays open: its end undoes
 *   cr-migrate -> src   MIGRATE -> EVENT*, ROUND*, WARNING*, REFUSED?, DONE; ABORT at any time
 *   src -> cr-migrate   RUN_HOOK -> OK | ERROR
 *   cr-migrate -> any   STATUS -> STATUS_LIST, RESOLVE -> RESOLVED | ERROR, QUERY -> STATE
 *   src -> dest (peer)  TREE -> TREE_OK, RESET -> OK, CLOCK -> CLOCK_REPLY, VERIFY -> VERIFY_OK,
 *                       PREPARE_COMMIT -> PREPARED, (WAITING,) COMMIT -> RUNNING, PACKETS
 *                       (no answer), ABORT -> ABORTED,
 *                       QUERY -> STATE, PING -> PONG, FILES -> FILES_OK; FILE, FILE_DATA*,
 *                       FILE_END -> OK; each may be answered by ERROR instead
 *   src -> dest (lazy)  LAZY -> OK; then wire/lazy_stream.h
 *   src -> page-server  in dir mode, besides: IMAGE -> IMAGE_OK, KNOWN -> KNOWN_OK, KEEP -> OK
 *
 * Ownership: a message to be sent borrows all that it points to, and needs no msg_free(). A message
 * that was received owns all that it points to, until msg_free(). Strings are never NULL in a
 * received message; to be sent, NULL means "". Arrays are (pointer, n). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/arena.h"
#include "base/err.h"
#include "base/devaddr.h"
#include "model/refusal.h"
#include "wire/ident.h"

enum {
	MSG_VERSION = 1, /* a party talks to its own version and to the one before and after it */
	MSG_BYTES = 1 << 20,        /* longest frame of any message … */
	MSG_TREE_BYTES = 512 << 20, /* … but TREE and WAITING, which carry what is queued in
				     * connections */
};

enum msg_type { /* the field numbers of Envelope's body in control.proto */
		MSG_HELLO = 1,
		MSG_ERROR,
		MSG_OK,
		MSG_RECEIVE,
		MSG_RECEIVE_READY,
		MSG_MIGRATE,
		MSG_EVENT,
		MSG_ROUND,
		MSG_REFUSED,
		MSG_WARNING,
		MSG_DONE,
		MSG_STATUS,
		MSG_STATUS_LIST,
		MSG_RESOLVE,
		MSG_RESOLVED,
		MSG_ABORT,
		MSG_ABORTED,
		MSG_TREE,
		MSG_TREE_OK,
		MSG_RESET,
		MSG_CLOCK,
		MSG_CLOCK_REPLY,
		MSG_VERIFY,
		MSG_VERIFY_OK,
		MSG_PREPARE_COMMIT,
		MSG_PREPARED,
		MSG_COMMIT,
		MSG_RUNNING,
		MSG_QUERY,
		MSG_STATE,
		MSG_PING,
		MSG_PONG,
		MSG_LAZY,
		MSG_IMAGE = 40,
		MSG_IMAGE_OK,
		MSG_KNOWN,
		MSG_KNOWN_OK,
		MSG_KEEP,
		MSG_RUN_HOOK,
		MSG_FILES = 60,
		MSG_FILES_OK,
		MSG_FILE,
		MSG_FILE_DATA,
		MSG_FILE_END,
		MSG_WAITING = 200,
		MSG_PACKETS,
		MSG_TYPE_END,
};

/* What the user can have commands run at: --hook. */
enum msg_hook {
	MSG_HOOK_PRE_DUMP,       /* the preflight found nothing; nothing has been touched */
	MSG_HOOK_POST_DUMP,      /* all is complete at the other side; nothing is decided */
	MSG_HOOK_NETWORK_LOCK,   /* the tasks have just been stopped */
	MSG_HOOK_NETWORK_UNLOCK, /* they are about to go on where they were */
	MSG_HOOK_PRE_RESTORE,    /* before anything is built */
	MSG_HOOK_POST_RESTORE,   /* the end, all is settled */
	MSG_HOOK_PRE_RESUME,     /* all is built, nothing has run */
	MSG_HOOK_POST_RESUME,    /* the tasks run */
	MSG_HOOK_NETWORK_SWITCH, /* before PRE_RESUME: addresses that others move */
	MSG_HOOK_END,
};
const char *msg_hook_name(enum msg_hook h); /* "pre-dump"; "?" */

/* ---- options of a migration ---- */

enum msg_compress { MSG_COMPRESS_AUTO, MSG_COMPRESS_LZ4, MSG_COMPRESS_NONE };
enum msg_verify { MSG_VERIFY_STREAM, MSG_VERIFY_FULL };
enum msg_launch { MSG_LAUNCH_REGSETS, MSG_LAUNCH_SIGRETURN };

enum msg_mode {
	MSG_MODE_PRECOPY,
	MSG_MODE_HYBRID,   /* rounds first, then what is left after the switch-over */
	MSG_MODE_POSTCOPY, /* all of it after the switch-over */
};
enum msg_no_convergence { /* the tasks write as fast as is sent */
			  MSG_NO_CONVERGENCE_SWITCH,
			  MSG_NO_CONVERGENCE_THROTTLE,
			  MSG_NO_CONVERGENCE_POSTCOPY,
			  MSG_NO_CONVERGENCE_ABORT,
};
/* Connections: AUTO keeps those that can go on and closes the others; ESTABLISHED refuses what
 * cannot. */
enum msg_tcp { MSG_TCP_AUTO, MSG_TCP_ESTABLISHED, MSG_TCP_CLOSE, MSG_TCP_REFUSE };
enum { MSG_MOVES_MAX = 16 };

struct msg_opts {
	uint64_t downtime_limit_us;
	uint32_t max_rounds;
	uint64_t max_bandwidth; /* bytes/s, 0: no limit */
	uint32_t streams;       /* 1…16 */
	enum msg_compress compress;
	enum msg_verify verify;
	enum msg_launch launch;
	bool leave_running; /* the source goes on as well: a copy, for tests */
	bool rehearse;      /* up to PREPARED, then undone */
	bool no_hw_breakpoints;
	bool no_bpf; /* ask every thread itself */
	enum msg_mode mode;
	enum msg_no_convergence no_convergence;
	uint32_t postcopy_timeout_ms; /* how long a lost source is waited for */
	enum msg_tcp tcp;
	uint32_t n_move; /* addresses that move along, "ADDR/LEN%DEV" */
	char move[MSG_MOVES_MAX][DEVADDR_TEXT];
	bool copy_files;   /* regular files that the destination does not have come along … */
	bool copy_replace; /* … also where it has what was left behind when they last went away */
};
void msg_opts_default(struct msg_opts *o);

/* ---- any connection ---- */

enum msg_role { MSG_ROLE_MIGRATE = 1, MSG_ROLE_PEER, MSG_ROLE_QUERY, MSG_ROLE_AGENT /* answers */ };

#define MSG_MAGIC "cr-migrate" /* in every HELLO; checked by msg_decode() */

struct msg_hello {
	uint32_t version; /* checked by msg_decode() against MSG_VERSION */
	enum msg_role role;
	struct mig_id id;       /* zero if none: role QUERY */
	struct mig_token token; /* likewise */
	const char *host;       /* what the speaker's host is called, for messages to the user */
	uint64_t capabilities;  /* none defined yet */
};

/* ---- cr-migrate and the agents ---- */

struct msg_receive {
	struct mig_id id;
	struct mig_token token;
	const char *source_name; /* as the user called it */
	struct msg_opts opts;
};
struct msg_receive_ready {
	const char *peer_address;  /* "IP:PORT" or "unix:/PATH", for the source agent's peer link */
	const char *pages_address; /* the same for its page streams */
	const char *host;
};
struct msg_migrate {
	struct mig_id id;
	struct mig_token token;
	const char *peer_address, *pages_address;
	const char *dest_name;
	pid_t pid;                 /* root of the tree; 0: the whole cgroup */
	const char *cgroup;        /* "" if none */
	const char *freeze_cgroup; /* "" if none */
	struct msg_opts opts;
	uint32_t hooks; /* stages that RUN_HOOK is to be sent for: bits by enum msg_hook */
};
/* From the engine to who asked for the migration. */
struct msg_run_hook {
	enum msg_hook stage;
	pid_t pid; /* the root of the tree */
	bool undo; /* what it did before is to be undone */
};
/* Sent by the source before it stops the tasks for good: until then nothing can have been
 * committed. */
#define MSG_EVENT_SWITCH_OVER "switch-over"

struct msg_event {
	const char *name; /* of the phase: check, arm, prepare, pre-copy, switch-over … */
	const char *text; /* for the user */
};
struct msg_round {
	uint32_t round; /* from 1 */
	uint64_t pages_written, pages_sent, bytes_wire, duration_us;
	uint64_t rate; /* bytes/s on the wire */
	uint64_t predicted_downtime_us;
};
struct msg_note { /* a refusal or a warning */
	const char *host;
	pid_t pid; /* 0: the host or the whole tree */
	const char *what, *why;
};
struct msg_notes {
	struct msg_note *v;
	size_t n;
};
enum msg_outcome {
	MSG_OUTCOME_MIGRATED = 1,
	MSG_OUTCOME_FAILED, /* the source runs on as before */
	MSG_OUTCOME_REFUSED,
	MSG_OUTCOME_IN_DOUBT,
	MSG_OUTCOME_REHEARSED,
};
struct msg_phases { /* of the downtime, microseconds */
	uint64_t freeze, last_pages, capture, rebuild, launch, commit;
};
/* Of the time after the switch-over, in which the destination fetched pages. */
struct msg_postcopy {
	uint64_t pages_lazy;             /* that were missing at the switch-over */
	uint64_t faults;                 /* of these, those that a task waited for */
	uint64_t p50_us, p99_us, max_us; /* from the fault to the page */
	uint64_t duration_us, reconnects;
	uint64_t asked_again; /* requests for pages that had been delivered: 0 */
	/* requests for pages of shared memory that turned out to be as they were delivered before
	 * the switch-over, before the source could say so */
	uint64_t asked_clean;
	uint64_t pushed; /* pages that came without being asked for */
	uint64_t lost;   /* pages that never came: SIGBUS for who touches them */
};
struct msg_loss { /* pages that never came, by mapping */
	pid_t pid;
	uint64_t start, end, pages;
};
enum { MSG_HISTOGRAM = 32 }; /* by power of two of microseconds */

struct msg_done {
	enum msg_outcome outcome;
	uint64_t downtime_us, total_us;
	struct msg_phases phases;
	uint64_t memory_bytes; /* of the tasks, resident */
	struct cr_err error;   /* kind NONE if there is none */
	uint32_t stops;        /* of the tasks before the switch-over … */
	uint64_t longest_stop_us;
	uint64_t stop_pages; /* that were looked into while the tasks stood still */
	bool postcopied;     /* postcopy says something */
	struct msg_postcopy postcopy;
};

struct msg_status { /* one migration that an agent knows */
	struct mig_id id;
	const char *role;  /* "source", "destination" */
	const char *state; /* for the user */
	const pid_t *pids; /* the processes' */
	size_t n_pids;
	const char *peer;   /* the other host */
	uint64_t since_sec; /* CLOCK_REALTIME */
	bool postcopying;   /* the rest says something */
	struct msg_postcopy postcopy;
	uint64_t pages_left;
	const uint64_t *histogram;     /* MSG_HISTOGRAM of them, or NULL */
	const struct msg_loss *losses; /* the first ones */
	size_t n_losses;
};
struct msg_status_list {
	struct msg_status *v;
	size_t n;
};
enum msg_action { MSG_ACTION_COMMIT = 1, MSG_ACTION_ABORT, MSG_ACTION_TAKE_OVER };
struct msg_resolve {
	struct mig_id id; /* zero: the only one that is in doubt */
	enum msg_action action;
};
struct msg_resolved {
	const char *text; /* what was done, for the user */
};

/* ---- source agent and destination agent ---- */

enum msg_stage {
	MSG_STAGE_CHECK = 1, /* the preflight: nothing is built */
	MSG_STAGE_PREPARE,   /* build shells, mirror the layout */
	MSG_STAGE_MEND,      /* the tree changed between rounds */
	MSG_STAGE_FINAL,     /* of the stop: registers and all */
};
struct msg_digest {      /* of the pages of one process or one shared object, in any order */
	pid_t pid;       /* process; 0: an object … */
	uint32_t object; /* … by index into tree.objects; UINT32_MAX for a process */
	uint64_t pages;
	uint8_t digest[16];
};
struct msg_digests {
	struct msg_digest *v;
	size_t n;
};
struct msg_tree {
	enum msg_stage stage;
	const uint8_t *tree; /* of tree_encode() */
	size_t tree_len;
	/* PREPARE: the source can send pages of some processes before the others are made, and the
	 * tree once more then */
	bool in_turns;
};
struct msg_target {      /* where on the page streams the pages of something go */
	pid_t pid;       /* process; 0: an object … */
	uint32_t object; /* … by index into tree.objects; UINT32_MAX for a process */
	uint32_t target; /* its index on the page streams */
	/* made by this very tree, its memory began as what that process's was; 0: empty */
	pid_t copy_of;
};
struct msg_tree_ok {
	struct msg_notes refusals, warnings;
	uint64_t hole_start, hole_end; /* addresses that the source must keep free; 0, 0: none */
	struct msg_target *targets;
	size_t n_targets;
	/* Some processes are not made yet: they begin as copies of others, whose pages come first.
	 * Then the same tree again. */
	bool more;
	bool lazy_objects;      /* objects may stay behind, see struct msg_reset */
	bool lazy_huge;         /* private huge pages may */
	bool lazy_memfds;       /* of objects, memfds to which no descriptor leads may, too */
	bool lazy_huge_objects; /* objects of huge pages may, memfds among them */
	bool lazy_unlinked;     /* files of a tmpfs that were removed may */
	bool lazy_clean;        /* whoever fetches knows CLEAN and TOLD, lazy_stream.h */
	bool lazy_holes;        /* of objects, what is not a hole alone */
};
struct msg_range {
	uint64_t start, end; /* page aligned, start < end */
};
struct msg_reset { /* pages that the destination must forget: discarded, or unknown what they are;
		    * an object, in one range, or without its holes in several messages: whatever it
		    * holds of it, it asks before a task does */
	pid_t pid; /* process; 0: an object … */
	uint32_t
	    object; /* … by index into tree.objects (ranges: offsets); UINT32_MAX for a process */
	struct msg_range *ranges;
	size_t n_ranges;
	bool taken_back; /* the object is sent after all */
};
struct msg_waiting {         /* with COMMIT, before it: connections that nobody has accepted */
	const uint8_t *list; /* of waiting_encode() */
	size_t len;
};
struct msg_packet { /* as struct net_packet (kernel/netpacket.h) has it */
	uint32_t flags, gso_type, hdr_len, gso_size, csum_start, csum_offset;
	const uint8_t *data;
	size_t len;
};
struct msg_packets { /* after COMMIT: what came for the tasks' addresses meanwhile; none: no more */
	struct msg_packet *v;
	size_t n;
};
struct msg_clock_reply {
	uint64_t monotonic_ns, boottime_ns;
};
struct msg_part {
	const char *name;
	uint64_t us;
};
struct msg_prepared {
	bool takes_closed;      /* connections that their program has closed */
	struct msg_part *parts; /* of the time that it took */
	size_t n_parts;
};
struct msg_running {
	uint64_t us; /* from COMMIT's arrival to the last task's resuming */
};
enum msg_peer_state {
	MSG_STATE_UNKNOWN = 1, /* never heard of it, or forgotten */
	MSG_STATE_PREPARING,
	MSG_STATE_PREPARED,
	MSG_STATE_COMMITTED,
	MSG_STATE_RUNNING, /* the tasks run at the destination */
	MSG_STATE_ABORTED, /* undone: the source has them, running */
};
struct msg_query {
	struct mig_id id;
};
enum msg_lazy_kind { MSG_LAZY_URGENT = 1, MSG_LAZY_BULK };
struct msg_lazy {
	enum msg_lazy_kind kind;
	/* to a page-server that serves images: which, and what the two connections have in common
	 */
	const char *image;
	uint64_t pair;
};
struct msg_state {
	enum msg_peer_state state;
	const char *text; /* for the user, may be "" */
};

struct msg_files {
	const char **paths;
	size_t n;
};
struct msg_files_ok {
	uint32_t *wanted; /* indices of those that are missing there */
	size_t n;
};
struct msg_xattr {
	const char *name;
	const uint8_t *value;
	size_t len;
};
struct msg_directory {
	uint32_t mode, uid, gid;
};
struct msg_file { /* begins a file, or another pass over it */
	const char *path;
	uint64_t size;
	uint32_t mode, uid, gid;
	uint64_t atime_ns, mtime_ns;
	struct msg_xattr *xattrs;
	size_t n_xattrs;
	struct msg_directory *parents; /* from the root's entry down */
	size_t n_parents;
	bool directory; /* nothing but a directory, the last of the parents. Reply: OK */
};
struct msg_file_data {
	uint64_t offset, hole; /* a hole of that many bytes … */
	const uint8_t *data;   /* … or what is there */
	size_t len;
};

/* ---- source agent and a page-server that keeps images ---- */

struct msg_image {
	const char *name;
};
struct msg_image_ok {
	uint32_t rounds;      /* that it had before … */
	struct mig_id writer; /* … and the migration that was the last of them; zero: none */
};
struct msg_known { /* which pages are there already? */
	uint32_t target;
	uint64_t from;
};
struct msg_known_ok {
	const uint8_t *chunks; /* payload of an index, image/pages.h */
	size_t len;
	uint64_t next; /* to ask from; 0: that was all */
};

struct msg {
	enum msg_type type;
	union {
		struct msg_hello hello;
		struct cr_err error;
		struct msg_receive receive;
		struct msg_receive_ready receive_ready;
		struct msg_migrate migrate;
		struct msg_event event;
		struct msg_round round;
		struct msg_notes refused;
		struct msg_notes warning;
		struct msg_done done;
		struct msg_status_list status_list;
		struct msg_resolve resolve;
		struct msg_resolved resolved;
		struct msg_tree tree;
		struct msg_tree_ok tree_ok;
		struct msg_reset reset;
		struct msg_waiting waiting;
		struct msg_packets packets;
		struct msg_clock_reply clock_reply;
		struct msg_digests verify;
		struct msg_prepared prepared;
		struct msg_running running;
		struct msg_query query;
		struct msg_state state;
		struct msg_lazy lazy;
		struct msg_image image;
		struct msg_image_ok image_ok;
		struct msg_known known;
		struct msg_known_ok known_ok;
		struct msg_run_hook run_hook;
		struct msg_files files;
		struct msg_files_ok files_ok;
		struct msg_file file;
		struct msg_file_data file_data;
		/* OK, STATUS, ABORT, ABORTED, CLOCK, VERIFY_OK, PREPARE_COMMIT, COMMIT, PING, PONG,
		 * KEEP, FILE_END say all by their type */
	};
	struct arena *arena; /* of a received message; NULL otherwise */
};

/* Releases what a received message holds and clears it; fine on a cleared or a borrowed one. */
void msg_free(struct msg *m);

const char *msg_type_name(enum msg_type t); /* "HELLO"; "?" */
const char *msg_state_name(enum msg_peer_state s);
const char *msg_outcome_name(enum msg_outcome o); /* as --json prints it */

/* Bytes of m without the frame's length, malloc'ed. Errors: BUG (-EMSGSIZE too long, -EINVAL
 * nonsense). */
int msg_encode(const struct msg *m, uint8_t **ret, size_t *ret_len, struct cr_err *err) must_check;

/* Checks everything that can be checked without knowing the state: limits, enums, ranges, pids.
 * *ret is cleared on failure. Errors: PEER (-EPROTO, -EMSGSIZE). */
int msg_decode(const uint8_t *data, size_t len, struct msg *ret, struct cr_err *err) must_check;

/* Notes for a message, from a list that they borrow. host: who says what no other host has said.
 * The caller frees ret->v. */
int msg_notes_from(const struct refusal *list, size_t n, const char *host, struct msg_notes *ret,
		   struct cr_err *err) must_check;
/* Append the notes of a message to a list of ours, with the hosts that said so. */
void msg_notes_refuse(const struct msg_notes *notes, struct refusals *to);
void msg_notes_warn(const struct msg_notes *notes, struct refusals *to);

static inline struct msg msg_of(enum msg_type type)
{
	return (struct msg){.type = type};
}
