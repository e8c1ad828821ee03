#include "resource/udp_error.h"

#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "resource/file_kind.h"
#include "resource/tcp_segment.h"
#include "resource/udp_queue.h"

/* What the kernel makes of them: icmp_err_convert[], net/ipv4/icmp.c; tab_unreach[],
 * net/ipv6/icmp.c. Of each error one that is told to sockets without IP_RECVERR. */
static const struct {
	int error;
	bool v4;
	uint8_t type, code;
} messages[] = {
    {ECONNREFUSED, true, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH},
    {ENOPROTOOPT, true, ICMP_DEST_UNREACH, ICMP_PROT_UNREACH},
    {ENETUNREACH, true, ICMP_DEST_UNREACH, ICMP_NET_UNKNOWN},
    {EHOSTDOWN, true, ICMP_DEST_UNREACH, ICMP_HOST_UNKNOWN},
    {ENONET, true, ICMP_DEST_UNREACH, ICMP_HOST_ISOLATED},
    {EHOSTUNREACH, true, ICMP_DEST_UNREACH, ICMP_PKT_FILTERED},
    {EPROTO, true, ICMP_PARAMETERPROB, 0},
    {ECONNREFUSED, false, ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOPORT},
    {EACCES, false, ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADMIN},
    {EPROTO, false, ICMP6_PARAM_PROB, 0},
};

static bool is_v4(const struct file *f)
{
	const struct sockaddr_in6 *in6 = (const void *)f->peeraddr;

	return f->sock_family == AF_INET || IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
}

/* One that is not connected is told of no error otherwise. */
bool udp_keeps_errors(const struct file *f)
{
	if (!f->connected)
		return true;
	return is_v4(f) ? sockopt_int(f, IPPROTO_IP, IP_RECVERR, 0)
			: sockopt_int(f, IPPROTO_IPV6, IPV6_RECVERR, 0);
}

void udp_tell_error(const struct file *f, const struct net_ways *w)
{
	struct segment_buf *buf = malloc(sizeof(*buf));
	const struct segment s = {.from = f->peeraddr, .to = f->sockaddr};
	struct cr_err err = {0};
	struct net_packet p;

	for (size_t i = 0; buf && f->connected && i < ARRAY_SIZE(messages); i++) {
		if (messages[i].error != f->sock_error || messages[i].v4 != is_v4(f))
			continue;
		unreachable_make(&s, messages[i].type, messages[i].code, buf, &p);
		if (!udp_put(&p, f->sockaddr, f->sockaddr_len, w, &err)) {
			free(buf);
			return;
		}
		break;
	}
	log_warn("the error of a UDP socket (%s) is lost%s%s", strerror(f->sock_error),
		 err.code ? ": " : "", err.msg);
	free(buf);
}
