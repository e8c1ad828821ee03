#include "base/devaddr.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

static int bad(struct cr_err *err, const char *text)
{
	return cr_err_set(err, CR_ERR_INPUT, EINVAL,
			  "'%s' is no address: expected ADDR/LEN%%DEV, as 192.0.2.7/24%%eth0",
			  text);
}

int devaddr_parse(const char *text, struct devaddr *ret, struct cr_err *err)
{
	char host[INET6_ADDRSTRLEN], dev[IFNAMSIZ];
	struct devaddr a = {0};
	unsigned int prefix;
	int end = 0;

	if (sscanf(text, "%45[0-9a-fA-F:.]/%3u%%%15[^/ \t\n]%n", host, &prefix, dev, &end) != 3 ||
	    text[end])
		return bad(err, text);
	a.family = strchr(host, ':') ? AF_INET6 : AF_INET;
	if (inet_pton(a.family, host, a.addr) != 1 || prefix > (a.family == AF_INET ? 32 : 128))
		return bad(err, text);
	a.prefix = (uint8_t)prefix;
	snprintf(a.dev, sizeof(a.dev), "%s", dev);
	*ret = a;
	return 0;
}

const char *devaddr_text(const struct devaddr *a, char buf[DEVADDR_TEXT])
{
	char host[INET6_ADDRSTRLEN] = "?";

	inet_ntop(a->family, a->addr, host, sizeof(host));
	snprintf(buf, DEVADDR_TEXT, "%s/%u%%%s", host, a->prefix, a->dev);
	return buf;
}

bool devaddr_matches(const struct devaddr *a, const void *sockaddr, size_t len)
{
	const struct sockaddr_in *in = sockaddr;
	const struct sockaddr_in6 *in6 = sockaddr;

	if (len >= sizeof(*in) && in->sin_family == AF_INET)
		return a->family == AF_INET && !memcmp(a->addr, &in->sin_addr, 4);
	if (len < sizeof(*in6) || in6->sin6_family != AF_INET6)
		return false;
	if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
		return a->family == AF_INET && !memcmp(a->addr, &in6->sin6_addr.s6_addr[12], 4);
	return a->family == AF_INET6 && !memcmp(a->addr, &in6->sin6_addr, 16);
}
