/* Socket options: a table that capture walks with getsockopt(2) and rebuild replays with
 * setsockopt(2).
 *
 * Only what differs from a socket freshly made here is recorded: what nobody set is the
 * destination's default there. */
#include "resource/file_kind.h"
#include "base/parallel.h"
#include "resource/sock_filter.h"

#include <arpa/inet.h>
#include <linux/in6.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

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

enum { OPT_MAX_BYTES = 64 };

static const struct opt {
	int32_t level, name;
	const char *text;
	int halve;    /* the kernel doubles what is set: socket(7) */
	int set_name; /* another name to set it by; 0: the same */
	int lock_bit; /* recorded if this bit of SO_BUF_LOCK is set; 0: if it differs */
	bool ifindex; /* of an interface: recorded by its name */
} opts[] = {
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

/* Neither of a stream socket, which they would be asked of in vain ten thousand times. */
static bool of_datagrams(const struct opt *o)
{
	switch (o->level) {
	case SOL_SOCKET:
		return o->name == SO_BROADCAST || o->name == SO_NO_CHECK;
	case IPPROTO_IP:
		return (o->name >= IP_MULTICAST_IF && o->name <= IP_MULTICAST_LOOP) ||
		       o->name == IP_MULTICAST_ALL || o->name == IP_CHECKSUM ||
		       o->name == IP_RECVFRAGSIZE || o->name == IP_RETOPTS;
	case IPPROTO_IPV6:
		return (o->name >= IPV6_MULTICAST_IF && o->name <= IPV6_MULTICAST_LOOP) ||
		       o->name == IPV6_MULTICAST_ALL || o->name == IPV6_RECVFRAGSIZE ||
		       o->name == IPV6_RECVPATHMTU;
	default:
		return o->level == IPPROTO_UDP;
	}
}

static bool applies(const struct opt *o, const struct fd_probe *p)
{
	bool ip = p->so_domain == AF_INET || p->so_domain == AF_INET6;

	if (p->so_type == SOCK_STREAM && of_datagrams(o))
		return false;
	switch (o->level) {
	case SOL_SOCKET:
		if (o->name == SO_PEEK_OFF) /* of unix sockets: file_unix_conn.c uses it itself */
			return ip;
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
		return ip && p->so_protocol == o->level;
	case IPPROTO_UDP:
		return ip && p->so_protocol == o->level;
	default:
		return ip;
	}
}

/* ---- capture ---- */

/* What options read of a socket that nobody has set any of. len 0: none could be had; then it
 * counts as set. */
struct sockopt_defaults {
	struct {
		uint8_t value[OPT_MAX_BYTES];
		socklen_t len;
		bool unknown; /* to all such sockets */
	} of[ARRAY_SIZE(opts)];
};

static struct sockopt_defaults *read_defaults(const struct fd_probe *p)
{
	struct sockopt_defaults *d = calloc(1, sizeof(*d));
	_cleanup_fd_ int fd = socket(p->so_domain, p->so_type | SOCK_CLOEXEC, p->so_protocol);

	for (size_t i = 0; d && fd >= 0 && i < ARRAY_SIZE(opts); i++) {
		d->of[i].len = OPT_MAX_BYTES;
		d->of[i].unknown = !applies(&opts[i], p);
		if (d->of[i].unknown ||
		    getsockopt(fd, opts[i].level, opts[i].name, d->of[i].value, &d->of[i].len)) {
			d->of[i].unknown |= errno == ENOPROTOOPT || errno == EOPNOTSUPP;
			d->of[i].len = 0;
		}
	}
	return d;
}

/* Once for each kind of socket: there may be thousands. NULL when memory is out. */
static const struct sockopt_defaults *defaults_of(struct files_ctx *x, const struct fd_probe *p)
{
	vec_foreach (r, &x->references)
		if (r->domain == p->so_domain && r->type == p->so_type &&
		    r->protocol == p->so_protocol)
			return r->defaults;
	struct reference_socket *r = vec_push(&x->references);
	if (!r)
		return NULL;
	*r = (struct reference_socket){p->so_domain, p->so_type, p->so_protocol, read_defaults(p)};
	return r->defaults;
}

static int buf_lock(int fd)
{
	int bits = 0;
	socklen_t len = sizeof(bits);

	return getsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &bits, &len) ? 0 : bits;
}

/* Length of the value if it is one to record, else 0. */
static socklen_t differs(size_t i, const struct fd_probe *p, const struct sockopt_defaults *d,
			 int locks, uint8_t value[OPT_MAX_BYTES])
{
	const struct opt *o = &opts[i];
	socklen_t len = OPT_MAX_BYTES;

	if (d->of[i].unknown || (o->lock_bit && !(locks & o->lock_bit)) || !applies(o, p) ||
	    getsockopt(p->local, o->level, o->name, value, &len) || !len)
		return 0;
	if (o->lock_bit)
		return len;
	return d->of[i].len == len && !memcmp(d->of[i].value, value, len) ? 0 : len;
}

/* IP_UNICAST_IF and its like have the number in network order, the multicast ones in the host's; a
 * number that means something in one order means nothing in the other, ip(7), ipv6(7). */
static socklen_t name_of(uint8_t value[OPT_MAX_BYTES])
{
	uint32_t index;
	char name[IF_NAMESIZE] = "";

	memcpy(&index, value, sizeof(index));
	if (!if_indextoname(index, name) && !if_indextoname(ntohl(index), name))
		return 0;
	memcpy(value, name, sizeof(name));
	return sizeof(name);
}

/* Back to a number of this host. 0: none has that name. */
static uint32_t index_of(const struct opt *o, const struct sockopt_rec *rec)
{
	char name[IF_NAMESIZE + 1] = "";

	memcpy(name, rec->value, rec->len < IF_NAMESIZE ? rec->len : IF_NAMESIZE);
	uint32_t index = if_nametoindex(name);
	return o->level == IPPROTO_IPV6 && o->name == IPV6_MULTICAST_IF ? index : htonl(index);
}

/* Classic filters are recorded; what cannot be read back is refused. */
static int read_filter(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       struct cr_err *err)
{
	const char *why = sock_filter_trouble(p->local);

	if (!why)
		return sock_filter_get(p->local, x->c->tree->arena, &f->filter, &f->n_filter, err);
	files_refuse(x, p->pid, p->fd, "socket %s: not supported", why);
	return 0;
}

/* Compact, as there may be ten thousand of them. */
struct sockopt_found {
	bool plain; /* without a filter */
	size_t n, used;
	struct {
		uint16_t opt, len, at;
	} of[ARRAY_SIZE(opts)];
	uint8_t bytes[ARRAY_SIZE(opts) * OPT_MAX_BYTES];
};

static void find_options(const struct fd_probe *p, const struct sockopt_defaults *d,
			 struct sockopt_found *ret)
{
	int locks = buf_lock(p->local);

	ret->plain = sock_filter_is_plain(p->local);
	ret->n = ret->used = 0;
	for (size_t i = 0; i < ARRAY_SIZE(opts); i++) {
		uint8_t *value = ret->bytes + ret->used;

		memset(value, 0, OPT_MAX_BYTES);
		socklen_t len = differs(i, p, d, locks, value);
		if (len && opts[i].ifindex)
			len = name_of(value); /* 0: it has gone: nothing comes or goes that way */
		if (!len)
			continue;
		ret->of[ret->n].opt = (uint16_t)i;
		ret->of[ret->n].len = (uint16_t)len;
		ret->of[ret->n++].at = (uint16_t)ret->used;
		ret->used += len;
	}
}

static int take_found(struct files_ctx *x, const struct fd_probe *p,
		      const struct sockopt_found *found, struct file *f, struct cr_err *err)
{
	struct arena *a = x->c->tree->arena;
	const uint8_t *bytes = arena_memdup(a, found->bytes, found->used);

	f->opts = arena_array(a, struct sockopt_rec, found->n + 1);
	if (!f->opts || !bytes)
		return cr_err_oom(err);
	f->n_opts = found->n;
	for (size_t i = 0; i < found->n; i++) {
		const struct opt *o = &opts[found->of[i].opt];

		f->opts[i] = (struct sockopt_rec){o->level, o->name, bytes + found->of[i].at,
						  found->of[i].len};
	}
	return found->plain ? 0 : read_filter(x, p, f, err);
}

static int read_all(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		    struct cr_err *err)
{
	const struct sockopt_defaults *d = defaults_of(x, p);
	_cleanup_free_ struct sockopt_found *found = malloc(sizeof(*found));

	if (!d || !found)
		return cr_err_oom(err);
	find_options(p, d, found);
	return take_found(x, p, found, f, err);
}

/* ---- side by side ---- */

int sockopts_capture_later(struct files_ctx *x, const struct fd_probe *p, struct cr_err *err)
{
	const struct sockopt_defaults *d = defaults_of(x, p);
	struct sockopt_job *j = d ? vec_push(&x->options) : NULL;

	if (!j)
		return cr_err_oom(err);
	*j = (struct sockopt_job){.p = *p, .file = (uint32_t)x->c->tree->n_files, .d = d};
	return 0;
}

bool sockopts_keep(const struct files_ctx *x, int fd)
{
	return x->options.n && x->options.v[x->options.n - 1].p.local == fd;
}

void sockopts_done(struct files_ctx *x)
{
	vec_foreach (j, &x->options) {
		close(j->p.local);
		free(j->found);
	}
	x->options.n = 0;
}

static int find_one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	struct sockopt_job *j = &((struct sockopt_job *)arg)[i];
	_cleanup_free_ struct sockopt_found *found = malloc(sizeof(*found));

	(void)worker;
	if (!found)
		return cr_err_oom(err);
	find_options(&j->p, j->d, found);
	/* what is not used of it is given back */
	j->found = realloc(found, offsetof(struct sockopt_found, bytes) + found->used);
	if (!j->found)
		return cr_err_oom(err);
	found = NULL;
	return 0;
}

int sockopts_read(struct files_ctx *x, struct cr_err *err)
{
	int r = parallel_for(x->options.n, find_one, x->options.v, err);

	for (size_t i = 0; i < x->options.n && !r; i++) {
		const struct sockopt_job *j = &x->options.v[i];

		r = take_found(x, &j->p, j->found, &x->c->tree->files[j->file], err);
	}
	sockopts_done(x);
	return r;
}

/* A server sets its listeners up and leaves them so; two calls for each option are too many at the
 * stop.
 */
static int take_over(struct arena *a, const struct file *before, struct file *f, struct cr_err *err)
{
	f->n_filter = before->n_filter;
	f->filter = arena_memdup(a, before->filter, before->n_filter * sizeof(*f->filter));
	if (f->n_filter && !f->filter)
		return cr_err_oom(err);
	f->opts = arena_memdup(a, before->opts, before->n_opts * sizeof(*f->opts));
	if (!f->opts)
		return cr_err_oom(err);
	f->n_opts = before->n_opts;
	for (size_t i = 0; i < f->n_opts; i++) {
		f->opts[i].value = arena_memdup(a, before->opts[i].value, before->opts[i].len);
		if (!f->opts[i].value)
			return cr_err_oom(err);
	}
	return 0;
}

int sockopts_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		     struct cr_err *err)
{
	const struct file *before = x->c->exact ? files_before(x, p) : NULL;

	if (before && f->kind == FILE_TCP_LISTEN && before->kind == f->kind &&
	    before->ino == f->ino)
		return take_over(x->c->tree->arena, before, f, err);
	return read_all(x, p, f, err);
}

/* ---- rebuild ---- */

static const struct opt *find_opt(const struct sockopt_rec *rec)
{
	for (size_t i = 0; i < ARRAY_SIZE(opts); i++)
		if (opts[i].level == rec->level && opts[i].name == rec->name)
			return &opts[i];
	return NULL;
}

/* The kernel takes it from no socket that is to be connected yet, if it is to number segments. */
static bool is_late(const struct file *f, const struct opt *o)
{
	return f->kind == FILE_TCP_CONN && o->level == SOL_SOCKET && o->name == SO_TIMESTAMPING;
}

static int apply(int fd, const struct file *f, bool late, struct cr_err *err)
{
	for (size_t i = 0; i < f->n_opts; i++) {
		const struct sockopt_rec *rec = &f->opts[i];
		const struct opt *o = find_opt(rec);
		uint8_t value[OPT_MAX_BYTES];
		int n;

		/* from a peer: only what the table knows is replayed */
		if (!o || rec->len > sizeof(value) || (o->halve && rec->len != sizeof(n)))
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "unknown socket option %d/%d",
					  rec->level, rec->name);
		if (is_late(f, o) != late)
			continue;
		memcpy(value, rec->value, rec->len);
		if (o->ifindex) {
			uint32_t index = index_of(o, rec);

			if (!index)
				return cr_err_set(err, CR_ERR_INPUT, ENODEV,
						  "%s: there is no interface %.*s here", o->text,
						  (int)rec->len, (const char *)rec->value);
			if (setsockopt(fd, o->level, o->name, &index, sizeof(index)))
				return cr_err_sys(err, "setting %s", o->text);
			continue;
		}
		if (o->halve) {
			memcpy(&n, value, sizeof(n));
			n /= 2;
			memcpy(value, &n, sizeof(n));
		}
		if (setsockopt(fd, o->level, o->set_name ? o->set_name : o->name, value, rec->len))
			return cr_err_sys(err, "setting %s", o->text);
	}
	return 0;
}

int sockopts_apply(int fd, const struct file *f, struct cr_err *err)
{
	int r = apply(fd, f, false, err);

	/* of a connection: when it talks to its peer again, which it would keep from what it needs
	 */
	return r || f->kind == FILE_TCP_CONN ? r : sock_filter_set(fd, f->filter, f->n_filter, err);
}

int sockopts_apply_late(int fd, const struct file *f, struct cr_err *err)
{
	int r = apply(fd, f, true, err);

	return r ? r : sock_filter_set(fd, f->filter, f->n_filter, err);
}

int sockopts_cmp(const struct file *a, const struct file *b)
{
	if (a->n_opts != b->n_opts)
		return a->n_opts < b->n_opts ? -1 : 1;
	if (a->n_filter != b->n_filter)
		return a->n_filter < b->n_filter ? -1 : 1;
	if (a->n_filter && memcmp(a->filter, b->filter, a->n_filter * sizeof(*a->filter)))
		return memcmp(a->filter, b->filter, a->n_filter * sizeof(*a->filter));
	for (size_t i = 0; i < a->n_opts; i++) {
		const struct sockopt_rec *x = &a->opts[i], *y = &b->opts[i];

		if (x->level != y->level)
			return x->level < y->level ? -1 : 1;
		if (x->name != y->name)
			return x->name < y->name ? -1 : 1;
		if (x->len != y->len)
			return x->len < y->len ? -1 : 1;
		int r = memcmp(x->value, y->value, x->len);
		if (r)
			return r;
	}
	return 0;
}

int sockopt_int(const struct file *f, int level, int name, int missing)
{
	int v;

	for (size_t i = 0; i < f->n_opts; i++)
		if (f->opts[i].level == level && f->opts[i].name == name &&
		    f->opts[i].len >= sizeof(v)) {
			memcpy(&v, f->opts[i].value, sizeof(v));
			return v;
		}
	return missing;
}

/* ---- names ---- */

const char *sockaddr_text(const void *sa, size_t len, char *buf, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "";
	const struct sockaddr *a = sa;

	if (len < sizeof(a->sa_family)) {
		snprintf(buf, size, "?");
	} else if (a->sa_family == AF_INET && len >= sizeof(struct sockaddr_in)) {
		const struct sockaddr_in *in = sa;

		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(buf, size, "%s:%u", host, ntohs(in->sin_port));
	} else if (a->sa_family == AF_INET6 && len >= sizeof(struct sockaddr_in6)) {
		const struct sockaddr_in6 *in6 = sa;

		if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
			inet_ntop(AF_INET, &in6->sin6_addr.s6_addr[12], host, sizeof(host));
			snprintf(buf, size, "%s:%u", host, ntohs(in6->sin6_port));
			return buf;
		}
		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(buf, size, "[%s]:%u", host, ntohs(in6->sin6_port));
	} else if (a->sa_family == AF_UNIX && len > offsetof(struct sockaddr_un, sun_path)) {
		const struct sockaddr_un *un = sa;
		int n = (int)(len - offsetof(struct sockaddr_un, sun_path));

		if (un->sun_path[0])
			snprintf(buf, size, "%.*s", n, un->sun_path);
		else
			snprintf(buf, size, "@%.*s", n - 1, un->sun_path + 1);
	} else {
		snprintf(buf, size, "an address of family %d", a->sa_family);
	}
	return buf;
}
