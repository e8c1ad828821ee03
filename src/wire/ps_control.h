/* The destination agent's control of the page-server on its host, over a unix socket.
 *
 * One connection is one session, i.e. one migration: it says which streams may come in (id, token)
 * and where their pages go (targets). When the connection closes, for whatever reason, the session
 * is over: the page-server closes its streams and forgets its targets.
 *
 * Calls block, for at most 10 s, and return the page-server's own errors. Not thread safe. */
#pragma once
#include <sys/types.h>
#include "wire/page_stream.h"

struct ps_client;

struct ps_session_info {
	char listen[64]; /* the address that streams connect to, "ip:port" or "[ip6]:port"; the ip
			  * is 0.0.0.0 or :: if the page-server listens on all */
	uint16_t port;   /* the same port as a number */
	uint32_t caps;   /* PAGE_CAP_* */
};

struct ps_stats {
	uint32_t streams; /* connected now */
	uint32_t targets;
	struct page_ack
	    placed; /* in this session, over all streams, those that are gone included */
	struct cr_err last_error; /* why a stream last failed; kind CR_ERR_NONE if none did */
};

/* A client that is NULL is one without a page-server: its targets are told to nobody. */

/* path: of the page-server's --control socket. Errors: CR_ERR_IO when nothing listens there. */
int ps_connect(struct ps_client **ret, const char *path, struct cr_err *err) must_check;

/* Must come first, once. -EEXIST if another session has the id. *ret may be NULL. */
int ps_session(struct ps_client *ps, const uint8_t id[PAGE_ID_BYTES],
	       const uint8_t token[PAGE_TOKEN_BYTES], struct ps_session_info *ret,
	       struct cr_err *err) must_check;

/* Pages of target `index` go into the memory of process pid (as seen in the pid namespace that this
 * process and the page-server share). [forbid_start, forbid_end) is never written (both 0: nothing
 * is forbidden); page aligned. Opens /proc/PID/mem here and passes it: the process must not exec
 * afterwards. Replaces an earlier target of that index. Delete the target before reaping the
 * process, else its pid might become another's. */
int ps_target_process(struct ps_client *ps, uint32_t index, pid_t pid, uint64_t forbid_start,
		      uint64_t forbid_end, struct cr_err *err) must_check;

/* Pages of target `index`, a process, that are not there yet may be placed through uffd, a
 * userfaultfd of its memory that the caller keeps. What cannot be, for instance where nothing is
 * registered, is written. */
int ps_target_uffd(struct ps_client *ps, uint32_t index, int uffd, struct cr_err *err) must_check;
/* The page-server closes those of all targets, and only writes from then on. */
int ps_close_uffds(struct ps_client *ps, struct cr_err *err) must_check;

/* The tasks wait for their last pages: the page-server runs at the real-time priority of that
 * number until this session ends. Takes CAP_SYS_NICE; without it nothing happens. */
int ps_hurry(struct ps_client *ps, int priority, struct cr_err *err) must_check;

/* Pages of target `index` go into the file fd (a memfd or such, open for reading and writing), addr
 * being the offset. The page-server gets a duplicate; fd remains the caller's. Pages beyond the end
 * of the file are refused; the last one is cut at the end. */
int ps_target_object(struct ps_client *ps, uint32_t index, int fd, struct cr_err *err) must_check;

/* Forget a target; -ENOENT if there is none. Its pages from then on are an error of their stream.
 */
int ps_target_del(struct ps_client *ps, uint32_t index, struct cr_err *err) must_check;

int ps_stats(struct ps_client *ps, struct ps_stats *ret, struct cr_err *err) must_check;

/* The connection's descriptor, to poll: readable means that the page-server is gone. */
int ps_fd(const struct ps_client *ps);

/* Ends the session: when this returns nothing is written into its targets any more (unless the
 * page-server did not react for 10 s). NULL is fine. */
void ps_close(struct ps_client *ps);
