/* Options of connections that change all the time: what each has to read is known at any moment.
 * Most connections change one option only, each another one, so that they are alike but for that;
 * some change all. */
#pragma once
#include "tcp_stream.h"
#include <limits.h>
#include <linux/filter.h>
#include <linux/in6.h>

static const struct vary {
	int level, name, values[2];
	const char *text;
} vary[] = {
#define VARY(level, name, a, b)                                                                    \
	{                                                                                          \
		level, name, {a, b}, #name                                                         \
	}
    VARY(SOL_SOCKET, SO_KEEPALIVE, 1, 0),
    VARY(SOL_SOCKET, SO_PRIORITY, 3, 5),
    VARY(SOL_SOCKET, SO_OOBINLINE, 1, 0),
    VARY(SOL_SOCKET, SO_MARK, 9, 10),
    VARY(SOL_SOCKET, SO_TIMESTAMP, 1, 0),
    VARY(SOL_SOCKET, SO_RXQ_OVFL, 1, 0),
    VARY(SOL_SOCKET, SO_DONTROUTE, 1, 0),
    VARY(SOL_SOCKET, SO_SELECT_ERR_QUEUE, 1, 0),
    VARY(SOL_SOCKET, SO_BUSY_POLL, 20, 30),
    VARY(SOL_SOCKET, SO_ZEROCOPY, 1, 0),
    VARY(SOL_SOCKET, SO_MAX_PACING_RATE, 800000000, 900000000),
    VARY(SOL_SOCKET, SO_REUSEADDR, 0, 1),
    VARY(IPPROTO_TCP, TCP_NODELAY, 1, 0),
    VARY(IPPROTO_TCP, TCP_KEEPIDLE, 77, 78),
    VARY(IPPROTO_TCP, TCP_KEEPINTVL, 7, 8),
    VARY(IPPROTO_TCP, TCP_KEEPCNT, 4, 5),
    VARY(IPPROTO_TCP, TCP_USER_TIMEOUT, 54321, 54322),
    VARY(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 65536, 65537),
    VARY(IPPROTO_TCP, TCP_LINGER2, 5, 6),
    VARY(IPPROTO_TCP, TCP_SYNCNT, 3, 4),
    VARY(IPPROTO_TCP, TCP_INQ, 1, 0),
    VARY(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1, 0),
    VARY(IPPROTO_TCP, TCP_SAVE_SYN, 1, 0),
    VARY(IPPROTO_IP, IP_TTL, 44, 45),
    VARY(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_WANT),
    VARY(IPPROTO_IP, IP_RECVERR, 1, 0),
    VARY(IPPROTO_IP, IP_RECVTTL, 1, 0),
    VARY(IPPROTO_IP, IP_PKTINFO, 1, 0),
    VARY(IPPROTO_IP, IP_MINTTL, 2, 3),
    VARY(IPPROTO_IP, IP_TOS, 8, 16),
    VARY(IPPROTO_IPV6, IPV6_TCLASS, 8, 16),
    VARY(IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44, -1),
    VARY(IPPROTO_IPV6, IPV6_RECVPKTINFO, 1, 0),
    VARY(IPPROTO_IPV6, IPV6_RECVTCLASS, 1, 0),
    VARY(IPPROTO_IPV6, IPV6_RECVERR, 1, 0),
    VARY(IPPROTO_IPV6, IPV6_DONTFRAG, 1, 0),
    VARY(IPPROTO_IPV6, IPV6_MINHOPCOUNT, 2, 3),
    VARY(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 1, 0),
#undef VARY
};

enum { N_VARY = sizeof(vary) / sizeof(vary[0]), UNSET = INT_MIN };
enum { HAS_LINGER = 1, HAS_TIMEOUT = 2, HAS_RENO = 4, HAS_FILTER = 8, HAS_SIZE = 16, SPECIALS = 5 };

struct varied {
	int value[N_VARY];
	unsigned int special;
};

static inline void vary_begin(struct varied *v)
{
	for (int i = 0; i < N_VARY; i++)
		v->value[i] = UNSET;
	v->special = 0;
}

static inline void vary_special(int fd, struct varied *v, unsigned int bit)
{
	static struct sock_filter pass[] = {{BPF_RET | BPF_K, 0, 0, UINT32_MAX}};
	const struct sock_fprog prog = {1, pass};
	bool on = !(v->special & bit);
	const struct linger l = {on, on ? 9 : 0};
	const struct timeval timeout = {on ? 77 : 0, 0};
	const int size = 100000, zero = 0;
	int r = 0;

	switch (bit) {
	case HAS_LINGER:
		r = setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
		break;
	case HAS_TIMEOUT:
		r = setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
		break;
	case HAS_RENO:
		r = setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, on ? "reno" : "cubic", on ? 4 : 5);
		break;
	case HAS_FILTER:
		r = on ? setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog))
		       : setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &zero, sizeof(zero));
		break;
	default: /* for good */
		on = true;
		r = setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	}
	wl_must(!r, "a special option");
	v->special = on ? v->special | bit : v->special & ~bit;
}

/* IP_TOS sets it, too. */
static inline void vary_note_priority(int fd, struct varied *v)
{
	socklen_t len = sizeof(int);

	for (int i = 0; i < N_VARY; i++)
		if (vary[i].level == SOL_SOCKET && vary[i].name == SO_PRIORITY)
			getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &v->value[i], &len);
}

/* Another value for one option: fd tells which, or any. */
static inline void vary_one(int fd, struct varied *v, uint64_t *state)
{
	int i = (fd % 4 ? (uint64_t)(fd / 4 * 3 + fd % 4) : wl_rand(state)) % (N_VARY + SPECIALS);

	if (i >= N_VARY) {
		/* buffers of its own seldom: they stay */
		if (i - N_VARY < 4 || wl_rand(state) % 16 == 0)
			vary_special(fd, v, 1u << (i - N_VARY));
		return;
	}
	int next = vary[i].values[v->value[i] == vary[i].values[0]];

	if (!setsockopt(fd, vary[i].level, vary[i].name, &next, sizeof(next)))
		v->value[i] = next;
	else
		wl_check(vary[i].level == IPPROTO_IPV6, "setting %s: %s", vary[i].text,
			 strerror(errno)); /* of an IPv4 socket */
	if (vary[i].level == IPPROTO_IP && vary[i].name == IP_TOS)
		vary_note_priority(fd, v);
}

static inline void vary_check(int fd, const struct varied *v)
{
	struct linger l = {0};
	struct timeval timeout = {0};
	char text[16] = "";
	int got = 0;
	socklen_t len = sizeof(l), none = 0;

	for (int i = 0; i < N_VARY; i++) {
		len = sizeof(got);
		if (v->value[i] == UNSET || (vary[i].level == IPPROTO_IPV6 && v->value[i] == -1))
			continue;
		wl_must(!getsockopt(fd, vary[i].level, vary[i].name, &got, &len), vary[i].text);
		wl_same(vary[i].text, v->value[i], got);
	}
	len = sizeof(l);
	getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len);
	wl_same("SO_LINGER", v->special & HAS_LINGER ? 9 : 0, l.l_onoff ? l.l_linger : 0);
	len = sizeof(timeout);
	getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, &len);
	wl_same("SO_SNDTIMEO", v->special & HAS_TIMEOUT ? 77 : 0, timeout.tv_sec);
	len = sizeof(text) - 1;
	getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, text, &len);
	wl_same("TCP_CONGESTION is reno", !!(v->special & HAS_RENO), !strcmp(text, "reno"));
	getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &none);
	wl_same("instructions of a filter", !!(v->special & HAS_FILTER), (int)none);
	len = sizeof(got);
	getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &got, &len);
	if (v->special & HAS_SIZE)
		wl_same("SO_SNDBUF", 200000, got);
}
