/* What the two halves of tcp_repair.h share: tcp_dump.c and tcp_rebuild.c. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* 5.14 */
#endif
#ifndef SO_MEMINFO
#define SO_MEMINFO 55 /* 4.12 */
#endif
#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif

/* As <netinet/tcp.h> has them, which cannot be included beside <linux/tcp.h>. */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
};

static inline int tcp_set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

static inline int tcp_get_int(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, name, &v, &len) ? -1 : v;
}

/* Sizes of both as SO_SNDBUF and SO_RCVBUF tell them, in one call. 0, or -1. */
static inline int tcp_get_buffers(int fd, uint32_t *snd, uint32_t *rcv)
{
	/* include/uapi/linux/sock_diag.h */
	enum { RCVBUF = 1, SNDBUF = 3, VARS = 16 };
	uint32_t v[VARS] = {0};
	socklen_t len = sizeof(v);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, v, &len) || len < (SNDBUF + 1) * sizeof(v[0]))
		return -1;
	*snd = v[SNDBUF];
	*rcv = v[RCVBUF];
	return 0;
}

/* Our FIN has taken a sequence number. */
static inline bool tcp_fin_sent(uint32_t state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_LAST_ACK ||
	       state == TCP_CLOSING;
}

/* The peer's has. */
static inline bool tcp_fin_received(uint32_t state)
{
	return state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;
}

/* Of the queue with that name, which is selected from then on. */
int tcp_queue_seq(int fd, int queue, uint32_t *ret, struct cr_err *err) must_check;
