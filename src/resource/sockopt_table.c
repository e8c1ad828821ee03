#include "resource/sockopt_table.h"

#include <linux/in6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include "resource/file_kind.h"

/* Names that older headers lack. */
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* 5.14 */
#endif
#ifndef SOCK_SNDBUF_LOCK
#define SOCK_SNDBUF_LOCK 1
#endif
#ifndef SOCK_RCVBUF_LOCK
#define SOCK_RCVBUF_LOCK 2
#endif
#ifndef SO_TXREHASH
#define SO_TXREHASH 74 /* 6.0 */
#endif
#ifndef SO_RCVMARK
#define SO_RCVMARK 75 /* 6.0 */
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76 /* 6.5 */
#endif
#ifndef SO_RCVPRIORITY
#define SO_RCVPRIORITY 82 /* 6.14 */
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83 /* 6.16 */
#endif
#ifndef SO_RESERVE_MEM
#define SO_RESERVE_MEM 73 /* 5.16 */
#endif
#ifndef SO_TIMESTAMP_NEW
#define SO_TIMESTAMP_NEW 63
#endif
#ifndef SO_TIMESTAMPNS_NEW
#define SO_TIMESTAMPNS_NEW 64
#endif
#ifndef SO_TIMESTAMPING_NEW
#define SO_TIMESTAMPING_NEW 65
#endif
#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif
#ifndef SO_TXTIME
#define SO_TXTIME 61
#endif
#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51 /* 6.3 */
#endif
#ifndef IP_RECVERR_RFC4884
#define IP_RECVERR_RFC4884 26
#endif
#ifndef IP_RECVFRAGSIZE
#define IP_RECVFRAGSIZE 25
#endif
#ifndef IPV6_FREEBIND
#define IPV6_FREEBIND 78
#endif
#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif
#ifndef IPV6_MINHOPCOUNT
#define IPV6_MINHOPCOUNT 73
#endif
#ifndef IPV6_RECVORIGDSTADDR
#define IPV6_RECVORIGDSTADDR 74
#endif
#ifndef IPV6_UNICAST_IF
#define IPV6_UNICAST_IF 76
#endif
#ifndef IPV6_RECVFRAGSIZE
#define IPV6_RECVFRAGSIZE 77
#endif
#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif
#ifndef IPV6_RECVERR_RFC4884
#define IPV6_RECVERR_RFC4884 31
#endif
#ifndef IPV6_AUTOFLOWLABEL
#define IPV6_AUTOFLOWLABEL 70
#endif
#ifndef IPV6_ADDR_PREFERENCES
#define IPV6_ADDR_PREFERENCES 72
#endif
#ifndef IPV6_FLOWINFO
#define IPV6_FLOWINFO 11
#endif
#ifndef IPV6_FLOWINFO_SEND
#define IPV6_FLOWINFO_SEND 33
#endif
#ifndef TCP_FASTOPEN_NO_COOKIE
#define TCP_FASTOPEN_NO_COOKIE 34
#endif
#ifndef TCP_TX_DELAY
#define TCP_TX_DELAY 37
#endif
#ifndef TCP_INQ
#define TCP_INQ 36
#endif
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44 /* 6.15 */
#endif
#ifndef TCP_RTO_MIN_US
#define TCP_RTO_MIN_US 45 /* 6.16 */
#endif
#ifndef TCP_DELACK_MAX_US
#define TCP_DELACK_MAX_US 46 /* 6.16 */
#endif
#ifndef UDP_NO_CHECK6_TX
#define UDP_NO_CHECK6_TX 101
#endif
#ifndef UDP_NO_CHECK6_RX
#define UDP_NO_CHECK6_RX 102
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef UDP_CORK
#define UDP_CORK 1
#endif

static const struct sockopt table[] = {
#define OPT(level, name)                                                                           \
	{                                                                                          \
		level, name, #name                                                                 \
	}
    OPT(IPPROTO_IP, IP_TOS), /* before SO_PRIORITY, which it sets as well */
    OPT(SOL_SOCKET, SO_REUSEADDR),
    OPT(SOL_SOCKET, SO_REUSEPORT),
    OPT(SOL_SOCKET, SO_KEEPALIVE),
    OPT(SOL_SOCKET, SO_OOBINLINE),
    OPT(SOL_SOCKET, SO_DONTROUTE),
    OPT(SOL_SOCKET, SO_LINGER),
    OPT(SOL_SOCKET, SO_PRIORITY),
    OPT(SOL_SOCKET, SO_MARK),
    OPT(SOL_SOCKET, SO_BINDTODEVICE),
    OPT(SOL_SOCKET, SO_RCVLOWAT),
    OPT(SOL_SOCKET, SO_RCVTIMEO),
    OPT(SOL_SOCKET, SO_SNDTIMEO),
    OPT(SOL_SOCKET, SO_PASSCRED),
    OPT(SOL_SOCKET, SO_PASSSEC),
    OPT(SOL_SOCKET, SO_TIMESTAMP),
    OPT(SOL_SOCKET, SO_TIMESTAMPNS),
    OPT(SOL_SOCKET, SO_BUSY_POLL),
    OPT(SOL_SOCKET, SO_MAX_PACING_RATE),
    OPT(SOL_SOCKET, SO_INCOMING_CPU),
    OPT(SOL_SOCKET, SO_DEBUG),
    OPT(SOL_SOCKET, SO_BROADCAST),
    OPT(SOL_SOCKET, SO_NO_CHECK),
    OPT(SOL_SOCKET, SO_RXQ_OVFL),
    OPT(SOL_SOCKET, SO_SELECT_ERR_QUEUE),
    OPT(SOL_SOCKET, SO_PEEK_OFF),
    OPT(SOL_SOCKET, SO_TIMESTAMP_NEW),
    OPT(SOL_SOCKET, SO_TIMESTAMPNS_NEW),
    OPT(SOL_SOCKET, SO_TIMESTAMPING),
    OPT(SOL_SOCKET, SO_PREFER_BUSY_POLL),
    OPT(SOL_SOCKET, SO_BUSY_POLL_BUDGET),
    OPT(SOL_SOCKET, SO_TXREHASH),
    OPT(SOL_SOCKET, SO_RCVMARK),
    OPT(SOL_SOCKET, SO_RCVPRIORITY),
    OPT(SOL_SOCKET, SO_PASSPIDFD),
    OPT(SOL_SOCKET, SO_PASSRIGHTS),
    OPT(SOL_SOCKET, SO_ZEROCOPY),
    {SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF", 1, SO_RCVBUFFORCE, SOCK_RCVBUF_LOCK},
    {SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF", 1, SO_SNDBUFFORCE, SOCK_SNDBUF_LOCK},
    OPT(IPPROTO_IP, IP_TTL),
    OPT(IPPROTO_IP, IP_MTU_DISCOVER),
    OPT(IPPROTO_IP, IP_FREEBIND),
    OPT(IPPROTO_IP, IP_TRANSPARENT),
    OPT(IPPROTO_IP, IP_RECVTOS),
    OPT(IPPROTO_IP, IP_MINTTL),
    OPT(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT),
    OPT(IPPROTO_IP, IP_LOCAL_PORT_RANGE),
    OPT(IPPROTO_IP, IP_OPTIONS),
    OPT(IPPROTO_IP, IP_PKTINFO),
    OPT(IPPROTO_IP, IP_RECVOPTS),
    OPT(IPPROTO_IP, IP_RETOPTS),
    OPT(IPPROTO_IP, IP_RECVERR),
    OPT(IPPROTO_IP, IP_RECVERR_RFC4884),
    OPT(IPPROTO_IP, IP_RECVTTL),
    OPT(IPPROTO_IP, IP_PASSSEC),
    OPT(IPPROTO_IP, IP_RECVORIGDSTADDR),
    OPT(IPPROTO_IP, IP_CHECKSUM),
    OPT(IPPROTO_IP, IP_RECVFRAGSIZE),
    OPT(IPPROTO_IP, IP_MULTICAST_TTL),
    OPT(IPPROTO_IP, IP_MULTICAST_LOOP),
    OPT(IPPROTO_IP, IP_MULTICAST_ALL),
    OPT(IPPROTO_IP, IP_MULTICAST_IF),
    {IPPROTO_IP, IP_UNICAST_IF, "IP_UNICAST_IF", .ifindex = true},
    OPT(IPPROTO_IPV6, IPV6_V6ONLY),
    OPT(IPPROTO_IPV6, IPV6_TCLASS),
    OPT(IPPROTO_IPV6, IPV6_UNICAST_HOPS),
    OPT(IPPROTO_IPV6, IPV6_MTU_DISCOVER),
    OPT(IPPROTO_IPV6, IPV6_FREEBIND),
    OPT(IPPROTO_IPV6, IPV6_TRANSPARENT),
    OPT(IPPROTO_IPV6, IPV6_RECVPKTINFO),
    OPT(IPPROTO_IPV6, IPV6_RECVTCLASS),
    OPT(IPPROTO_IPV6, IPV6_RECVERR),
    OPT(IPPROTO_IPV6, IPV6_RECVERR_RFC4884),
    OPT(IPPROTO_IPV6, IPV6_RECVHOPLIMIT),
    OPT(IPPROTO_IPV6, IPV6_RECVRTHDR),
    OPT(IPPROTO_IPV6, IPV6_RECVHOPOPTS),
    OPT(IPPROTO_IPV6, IPV6_RECVDSTOPTS),
    OPT(IPPROTO_IPV6, IPV6_RECVPATHMTU),
    OPT(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR),
    OPT(IPPROTO_IPV6, IPV6_RECVFRAGSIZE),
    OPT(IPPROTO_IPV6, IPV6_DONTFRAG),
    OPT(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL),
    OPT(IPPROTO_IPV6, IPV6_FLOWINFO),
    OPT(IPPROTO_IPV6, IPV6_FLOWINFO_SEND),
    OPT(IPPROTO_IPV6, IPV6_ADDR_PREFERENCES),
    OPT(IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    OPT(IPPROTO_IPV6, IPV6_MULTICAST_HOPS),
    OPT(IPPROTO_IPV6, IPV6_MULTICAST_LOOP),
    OPT(IPPROTO_IPV6, IPV6_MULTICAST_ALL),
    {IPPROTO_IPV6, IPV6_MULTICAST_IF, "IPV6_MULTICAST_IF", .ifindex = true},
    {IPPROTO_IPV6, IPV6_UNICAST_IF, "IPV6_UNICAST_IF", .ifindex = true},
    OPT(IPPROTO_TCP, TCP_NODELAY),
    OPT(IPPROTO_TCP, TCP_CORK),
    OPT(IPPROTO_TCP, TCP_MAXSEG),
    OPT(IPPROTO_TCP, TCP_KEEPIDLE),
    OPT(IPPROTO_TCP, TCP_KEEPINTVL),
    OPT(IPPROTO_TCP, TCP_KEEPCNT),
    OPT(IPPROTO_TCP, TCP_SYNCNT),
    OPT(IPPROTO_TCP, TCP_LINGER2),
    OPT(IPPROTO_TCP, TCP_DEFER_ACCEPT),
    OPT(IPPROTO_TCP, TCP_WINDOW_CLAMP),
    OPT(IPPROTO_TCP, TCP_CONGESTION),
    OPT(IPPROTO_TCP, TCP_USER_TIMEOUT),
    OPT(IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    OPT(IPPROTO_TCP, TCP_FASTOPEN),
    OPT(IPPROTO_TCP, TCP_FASTOPEN_KEY),
    OPT(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE),
    OPT(IPPROTO_TCP, TCP_SAVE_SYN),
    OPT(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS),
    OPT(IPPROTO_TCP, TCP_TX_DELAY),
    OPT(IPPROTO_TCP, TCP_INQ),
    OPT(IPPROTO_TCP, TCP_RTO_MAX_MS),
    OPT(IPPROTO_TCP, TCP_RTO_MIN_US),
    OPT(IPPROTO_TCP, TCP_DELACK_MAX_US),
    OPT(IPPROTO_UDP, UDP_CORK),
    OPT(IPPROTO_UDP, UDP_NO_CHECK6_TX),
    OPT(IPPROTO_UDP, UDP_NO_CHECK6_RX),
    OPT(IPPROTO_UDP, UDP_SEGMENT),
    OPT(IPPROTO_UDP, UDP_GRO),
#undef OPT
};

_Static_assert(ARRAY_SIZE(table) == SOCKOPT_COUNT, "SOCKOPT_COUNT is how many there are");

const struct sockopt *sockopt_at(size_t i)
{
	return &table[i];
}

const struct sockopt *sockopt_find(int32_t level, int32_t name)
{
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if (table[i].level == level && table[i].name == name)
			return &table[i];
	return NULL;
}

/* Neither of a stream socket, which they would be asked of in vain ten thousand times. */
static bool of_datagrams(const struct sockopt *o)
{
	switch (o->level) {
	case SOL_SOCKET:
		return o->name == SO_BROADCAST || o->name == SO_NO_CHECK;
	case IPPROTO_IP:
		return (o->name >= IP_MULTICAST_IF && o->name <= IP_MULTICAST_LOOP) ||
		       o->name == IP_MULTICAST_ALL || o->name == IP_RECVFRAGSIZE;
	case IPPROTO_IPV6:
		return (o->name >= IPV6_MULTICAST_IF && o->name <= IPV6_MULTICAST_LOOP) ||
		       o->name == IPV6_MULTICAST_ALL || o->name == IPV6_RECVFRAGSIZE ||
		       o->name == IPV6_RECVPATHMTU;
	default:
		return o->level == IPPROTO_UDP;
	}
}

bool sockopt_applies(const struct sockopt *o, const struct fd_probe *p)
{
	bool ip = p->so_domain == AF_INET || p->so_domain == AF_INET6;

	if (p->so_type == SOCK_STREAM && of_datagrams(o))
		return false;
	switch (o->level) {
	case SOL_SOCKET:
		if (o->name == SO_INCOMING_CPU) /* others tell where the last packet came */
			return p->so_listening;
		return p->so_domain == AF_UNIX ||
		       (o->name != SO_PASSPIDFD && o->name != SO_PASSRIGHTS);
	case IPPROTO_IPV6:
		return p->so_domain == AF_INET6;
	case IPPROTO_TCP:
		/* of a connection it tells the size of segments, which may be more than can be set
		 */
		if (o->name == TCP_MAXSEG && p->tcp_state != TCP_CLOSE && !p->so_listening)
			return false;
		if (o->name == TCP_FASTOPEN_KEY && !p->so_listening)
			return false;
		return ip && p->so_protocol == o->level;
	case IPPROTO_UDP:
		return ip && p->so_protocol == o->level;
	default:
		return ip;
	}
}
