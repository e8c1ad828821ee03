/* What is pending in a socket beside the data that can be looked at: its error, which asking for
 * would clear (SO_ERROR, socket(7)), and how much waits in its queues. A BPF iterator (task_file;
 * Documentation/bpf/bpf_iterators.rst) tells it of all sockets of a process without touching one;
 * what the packets of a unix socket are is read where the kernel keeps them (kernel/kread.h). */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>
#include "base/err.h"
#include "base/vec.h"

struct pendview;

struct pending {
	int fd;
	uint64_t address; /* of the kernel's struct sock, as long as the socket is open */
	uint32_t level;   /* of the process's pid namespace */
	int family, type, protocol;
	int error;        /* errno: what the next call is to be told */
	uint32_t to_read; /* packets; of a stream, pieces */
	uint32_t to_send; /* UDP: parts of a datagram that is being put together */
	uint32_t notices; /* in the error queue, recv(2) MSG_ERRQUEUE */
	uint32_t
	    zerocopied; /* what was sent with MSG_ZEROCOPY, and will be told of by this number */
	/* IPv4: what IP_MULTICAST_IF chose, which getsockopt(2) tells only if it was by an
	 * address; 0: none */
	uint32_t multicast_if;
};

struct pending_list {
	VEC(struct pending) list; /* sockets, unix and IP; ascending by fd */
};

/* One packet of a unix seqpacket or datagram socket. */
struct pending_packet {
	size_t len;
	bool peeked; /* empty, and was looked at: passed over where SO_PEEK_OFF is set */
	bool rights; /* with descriptors */
	/* As it was sent; pid 0: without credentials */
	pid_t pid;
	uint32_t uid, gid;
	struct sockaddr_un from; /* of whom it came */
	socklen_t from_len;      /* 0: without a name */
};

struct pending_packets {
	VEC(struct pending_packet) list;
};

/* -ENOTSUP: not to be had here; err says why. The result may be used by processes forked since. */
int pendview_new(struct pendview **ret, struct cr_err *err) must_check;
void pendview_free(struct pendview *v); /* takes NULL */
/* Of a process that is stopped; of one that runs, of any moment. The caller calls pending_done(),
 * also after an error. */
int pendview_read(const struct pendview *v, pid_t pid, struct pending_list *ret,
		  struct cr_err *err) must_check;
void pending_done(struct pending_list *l);
/* NULL: it is no such socket. */
const struct pending *pending_find(const struct pending_list *l, int fd);
/* What waits in a unix socket whose owners are stopped, in order. -EAGAIN: it changes meanwhile.
 * The caller calls pending_packets_done(), also after an error. */
int pendview_packets(const struct pendview *v, const struct pending *of,
		     struct pending_packets *ret, struct cr_err *err) must_check;
void pending_packets_done(struct pending_packets *l);
