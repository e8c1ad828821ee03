/* The open files of a process, and of those that are TCP connections all that a stop needs to know,
 * by one BPF iterator (task_file; Documentation/bpf/bpf_iterators.rst): without touching a
 * descriptor. Ten thousand connections take some 10 ms, where /proc and getsockopt(2) take 400.
 *
 * What options are set is told as a number only: of two sockets with the same one they are the
 * same, since it is made of all members of the kernel's structures that options are kept in.
 * Whether all are covered shows by setting them: resource/sockopt_alike.c. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include "base/err.h"
#include "base/vec.h"

struct sockview;

struct sock_facts {
	int fd;
	/* All of it, if it is one, and nothing special; else what is said of a socket of TCP is …
	 */
	bool connection;
	/* … this: it has a lock, SIGIO, a filter, an upper protocol, signatures, IP options, or
	 * buffer sizes of its own … */
	bool special;
	uint64_t options;      /* … and that: equal, they are the same, … */
	uint32_t window_clamp; /* … but for these two */
	int32_t hop_limit;     /* IPV6_UNICAST_HOPS; -1: not set */
	bool suspect; /* a connection that has a filter, or keys of TCP-AO, special for that */
	bool cloexec;
	uint32_t flags; /* as F_GETFL */
	uint64_t pos, ino;
	uint32_t mode, uid, gid;
	int family;
	uint8_t state; /* TCP_ESTABLISHED…; never of one that is not connected */
	struct sockaddr_storage us, peer; /* not link-local */
};

struct sock_facts_list {
	VEC(struct sock_facts) list; /* by fd, ascending; all descriptors of the process */
};

/* -ENOTSUP: not to be had here, or not to be believed; err says why. The result may be used by
 * processes forked since. */
int sockview_new(struct sockview **ret, struct cr_err *err) must_check;
void sockview_free(struct sockview *v);
/* Of a process that is stopped; of one that runs, of any moment. The caller calls
 * sock_facts_done(). */
int sockview_read(const struct sockview *v, pid_t pid, struct sock_facts_list *ret,
		  struct cr_err *err) must_check;
void sock_facts_done(struct sock_facts_list *l);
