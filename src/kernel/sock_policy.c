#include "kernel/sock_policy.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <linux/netlink.h>
#include <linux/xfrm.h> /* after what it has in common with the C library */
#include "base/cleanup.h"

#ifndef IP_XFRM_POLICY
#define IP_XFRM_POLICY 17
#endif
#ifndef IPV6_XFRM_POLICY
#define IPV6_XFRM_POLICY 35
#endif

static int get_int(int fd, int level, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, name, &v, &len) ? 0 : v;
}

static bool is_ip(int domain)
{
	return domain == AF_INET || domain == AF_INET6;
}

/* Which version of IP comes to it. */
static int heard_family(int fd, int domain)
{
	struct sockaddr_in6 us = {0};
	socklen_t len = sizeof(us);

	if (domain == AF_INET || getsockname(fd, (struct sockaddr *)&us, &len))
		return domain;
	if (IN6_IS_ADDR_V4MAPPED(&us.sin6_addr))
		return AF_INET;
	return IN6_IS_ADDR_UNSPECIFIED(&us.sin6_addr) && !get_int(fd, IPPROTO_IPV6, IPV6_V6ONLY)
		   ? AF_INET
		   : AF_INET6;
}

/* NULL, 0: all policies are taken off. */
static int set(int fd, int domain, const struct xfrm_userpolicy_info *p, socklen_t len)
{
	return domain == AF_INET ? setsockopt(fd, IPPROTO_IP, IP_XFRM_POLICY, p, len)
				 : setsockopt(fd, IPPROTO_IPV6, IPV6_XFRM_POLICY, p, len);
}

static int block(int fd, int domain)
{
	/* a selector of zeros selects all */
	const struct xfrm_userpolicy_info p = {
	    .sel.family = (uint16_t)heard_family(fd, domain),
	    .lft = {XFRM_INF, XFRM_INF, XFRM_INF, XFRM_INF},
	    .dir = XFRM_POLICY_IN,
	    .action = XFRM_POLICY_BLOCK,
	};

	return set(fd, domain, &p, sizeof(p));
}

bool sock_policy_is_possible(void)
{
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return false;
	if (!block(fd, AF_INET))
		return true;
	/* what understands policies may be a module, which comes when it is asked for */
	_cleanup_fd_ int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM);
	return netlink >= 0 && !block(fd, AF_INET);
}

int sock_policy_lock(int fd, struct cr_err *err)
{
	return block(fd, get_int(fd, SOL_SOCKET, SO_DOMAIN)) ? cr_err_sys(err, "IP_XFRM_POLICY")
							     : 0;
}

int sock_policy_unlock(int fd, struct cr_err *err)
{
	int domain = get_int(fd, SOL_SOCKET, SO_DOMAIN);

	return is_ip(domain) && set(fd, domain, NULL, 0) ? cr_err_sys(err, "IP_XFRM_POLICY") : 0;
}
