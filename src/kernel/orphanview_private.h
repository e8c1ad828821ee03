/* What the parts of orphanview share: orphanview.c (which there are), orphanview_layout.c (where
 * the kernel keeps what), orphanview_queue.c (one of them, with what it has still to send). */
#pragma once
#include "kernel/bpf_iter.h"
#include "kernel/kread.h"
#include "kernel/orphanview.h"

enum { ORPHAN_SOCK_MAX = 8192 /* bytes of any structure */ };

/* What is wanted of struct tcp_sock, which begins with the others … */
enum of_sock {
	FAMILY,
	STATE,
	PEER_PORT,
	OUR_PORT,
	PORTS,
	PEER4,
	US4,
	PEER6,
	US6,
	SOCKET,
	SNDBUF,
	RCVBUF,
	SENT,
	QUEUE,
	MAX_WINDOW,
	CLOCK_OFFSET,
	USEC,
	SND_WND,
	SND_WL1,
	WRITE_SEQ,
	RCV_NXT,
	SND_NXT,
	SND_UNA,
	RCV_WND,
	RCV_WUP,
	OPTIONS,
	N_OF_SOCK,
};

/* … and of the others. */
enum of_rest {
	TIMESTAMPS,
	WSCALE,
	SACK,
	SND_WSCALE,
	RCV_WSCALE,
	MSS,
	NEXT,
	NODE,
	CONTROL,
	LEN,
	PAGED_LEN,
	END,
	HEAD,
	DATA,
	LEFT,
	RIGHT,
	SEQ,
	END_SEQ,
	FLAGS,
	N_FRAGS,
	FRAG_LIST,
	FRAGS,
	FRAG_PAGE,
	FRAG_LEN,
	FRAG_OFFSET,
	N_OF_REST,
};

/* sizes of structures */
enum { SOCK, SEGMENT, SHARED, FRAG, N_SIZES };

struct orphanview {
	int prog;
	int silence, silenced; /* a program, and whom it is for: by the socket's address */
	struct kread *mem;
	uint32_t sock[N_OF_SOCK], rest[N_OF_REST]; /* in bits */
	size_t size[N_SIZES];
};

struct orphan_span {
	uint32_t from, to;
};

/* One that is being read. */
struct orphan_reading {
	const struct orphanview *v;
	struct kread *mem;
	uint64_t at; /* the socket */
	uint8_t sock[ORPHAN_SOCK_MAX];
	struct orphan *o;
	VEC(uint64_t) segments;
	VEC(struct orphan_span) filled; /* of the queue */
	bool fin;
};

/* ---- orphanview_layout.c ---- */

/* Fills sock, rest and size. Errors: KERNEL, ENOTSUP. */
int orphan_find_all(struct orphanview *v, const struct btf *btf, struct cr_err *err) must_check;
/* n bits of p, from the bit of that number on. */
uint64_t orphan_bits(const uint8_t *p, uint32_t bit, unsigned int n);
static inline uint64_t orphan_sock_field(const struct orphan_reading *r, enum of_sock m,
					 unsigned int n)
{
	return orphan_bits(r->sock, r->v->sock[m], n);
}

/* ---- orphanview_queue.c ---- */

/* 1: it is there, and in r->o but for its queue; 0: it is not wanted, or none any more. */
int orphan_look(struct orphan_reading *r, orphan_wanted_fn wanted, void *arg,
		struct cr_err *err) must_check;
/* The socket at that address, if it is wanted, into ret: also if it cannot be told. */
int orphan_read_one(const struct orphanview *v, struct kread *mem, uint64_t at,
		    orphan_wanted_fn wanted, void *arg, struct orphans *ret,
		    struct cr_err *err) must_check;
