#include "resource/net_handshakes.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/arena.h"
#include "base/clock.h"
#include "base/parallel.h"
#include "kernel/reqview.h"

/* By default the answer is sent again after one second and after three, tcp_synack_retries. */
enum { AGAIN_MOST = 1 };

struct net_handshakes {
	const struct reqview *view;
	struct handshakes found;
	pthread_t thread;
	bool started;
	int result;
	struct cr_err err;
};

static void *thread_main(void *arg)
{
	struct net_handshakes *h = arg;

	h->result = reqview_read(h->view, &h->found, &h->err);
	return NULL;
}

struct net_handshakes *net_handshakes_begin(const struct reqview *view)
{
	struct net_handshakes *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->view = view;
	h->started = !parallel_thread(&h->thread, thread_main, h);
	if (!h->started)
		h->result = reqview_read(view, &h->found, &h->err);
	return h;
}

static void join(struct net_handshakes *h)
{
	if (h->started)
		pthread_join(h->thread, NULL);
	h->started = false;
}

void net_handshakes_free(struct net_handshakes *h)
{
	if (!h)
		return;
	join(h);
	vec_done(&h->found.list);
	free(h);
}

/* ---- as connections ---- */

struct file *waiting_push(struct waiting *w, size_t *cap, struct arena *a)
{
	if (w->n == *cap) {
		size_t more = *cap ? 2 * *cap : 64;
		struct file *list = arena_array(a, struct file, more);

		if (!list)
			return NULL;
		if (w->n)
			memcpy(list, w->list, w->n * sizeof(*list));
		w->list = list;
		*cap = more;
	}
	w->list[w->n] = (struct file){0};
	return &w->list[w->n++];
}

/* An address as a socket of that family has it; an IPv4 one at an IPv6 socket is a mapped one. */
static uint32_t put(struct sockaddr_storage *sa, int family, const struct handshake *h,
		    const uint8_t address[16], uint16_t port)
{
	struct sockaddr_in *v4 = (void *)sa;
	struct sockaddr_in6 *v6 = (void *)sa;

	memset(sa, 0, sizeof(*sa));
	sa->ss_family = (sa_family_t)family;
	v4->sin_port = port; /* sin6_port is at the same place */
	if (family == AF_INET) {
		memcpy(&v4->sin_addr, address, 4);
		return sizeof(*v4);
	}
	if (h->family == AF_INET) {
		v6->sin6_addr.s6_addr[10] = v6->sin6_addr.s6_addr[11] = 0xff;
		memcpy(v6->sin6_addr.s6_addr + 12, address, 4);
	} else {
		memcpy(&v6->sin6_addr, address, 16);
	}
	return sizeof(*v6);
}

static bool is_at(const uint8_t *sockaddr, uint32_t len, const struct sockaddr_storage *sa)
{
	const struct sockaddr_in *a4 = (const void *)sockaddr, *b4 = (const void *)sa;
	const struct sockaddr_in6 *a6 = (const void *)sockaddr, *b6 = (const void *)sa;

	if (len < sizeof(*a4) || a4->sin_family != b4->sin_family || a4->sin_port != b4->sin_port)
		return false;
	return a4->sin_family == AF_INET
		   ? a4->sin_addr.s_addr == b4->sin_addr.s_addr
		   : len >= sizeof(*a6) && !memcmp(&a6->sin6_addr, &b6->sin6_addr, 16);
}

static bool is_there(const struct waiting *w, const struct sockaddr_storage *us,
		     const struct sockaddr_storage *peer)
{
	for (size_t i = 0; i < w->n; i++)
		if (w->list[i].kind == FILE_TCP_CONN &&
		    is_at(w->list[i].peeraddr, w->list[i].peeraddr_len, peer) &&
		    is_at(w->list[i].sockaddr, w->list[i].sockaddr_len, us))
			return true;
	return false;
}

uint32_t net_timestamp(uint32_t clock_offset, bool usec)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC);

	return usec ? ((uint32_t)(now / 1000) + clock_offset) | 1
		    : ((uint32_t)(now / 1000000) + clock_offset) & ~1u;
}

static int add(const struct handshake *h, int family, int64_t clock_offset_ns, struct arena *a,
	       struct waiting *w, size_t *cap, struct cr_err *err)
{
	struct sockaddr_storage us, peer;
	uint32_t len = put(&us, family, h, h->us, h->our_port);

	put(&peer, family, h, h->peer, h->peer_port);
	if (is_there(w, &us, &peer))
		return 0;
	struct tcp_conn *c = arena_array(a, struct tcp_conn, 1);
	struct file *f = c ? waiting_push(w, cap, a) : NULL;
	if (!f)
		return cr_err_oom(err);
	*c = (struct tcp_conn){
	    .state = TCP_ESTABLISHED,
	    .options = (h->timestamps ? TCPI_OPT_TIMESTAMPS : 0u) | (h->sack ? TCPI_OPT_SACK : 0u) |
		       (h->wscale ? TCPI_OPT_WSCALE : 0u) | (h->ecn ? TCPI_OPT_ECN : 0u),
	    .snd_wscale = h->snd_wscale,
	    .rcv_wscale = h->rcv_wscale,
	    .mss = h->mss,
	    .rcv_seq = h->rcv_seq,
	    .snd_seq = h->snd_seq,
	    .timestamp = net_timestamp(h->clock_offset, h->usec),
	    .timestamp_ns = clock_ns(CLOCK_MONOTONIC) + (uint64_t)clock_offset_ns,
	};
	*f = (struct file){.kind = FILE_TCP_CONN,
			   .object = UINT32_MAX,
			   .peer = UINT32_MAX,
			   .waits_at = UINT32_MAX,
			   .sock_family = (uint32_t)family,
			   .sock_type = SOCK_STREAM,
			   .sock_protocol = IPPROTO_TCP,
			   .sockaddr = arena_memdup(a, &us, len),
			   .peeraddr = arena_memdup(a, &peer, len),
			   .sockaddr_len = len,
			   .peeraddr_len = len,
			   .tcp = c};
	if (!f->sockaddr || !f->peeraddr) {
		w->n--;
		return cr_err_oom(err);
	}
	return 0;
}

int net_handshakes_add(struct net_handshakes *h, uint64_t cookie, int family,
		       int64_t clock_offset_ns, struct arena *a, struct waiting *w, size_t *cap,
		       struct cr_err *err)
{
	join(h);
	if (h->result) {
		*err = h->err;
		return h->result;
	}
	vec_foreach (i, &h->found.list) {
		int r = i->listener == cookie && i->answers <= AGAIN_MOST
			    ? add(i, family, clock_offset_ns, a, w, cap, err)
			    : 0;

		if (r)
			return r;
	}
	return 0;
}
