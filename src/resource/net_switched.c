/* Addresses that somebody else moves, --hook network-switch: nobody tells which they are, but the
 * sockets have them, and the host that has them by now says at which device. */
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include "base/vec.h"
#include "resource/net_ways.h"
#include "resource/resource.h"

typedef VEC(struct devaddr) addresses;

static bool is_listed(const addresses *l, const struct file *f)
{
	vec_foreach (a, l)
		if (devaddr_matches(a, f->sockaddr, f->sockaddr_len))
			return true;
	return false;
}

static bool from_ifaddr(const struct ifaddrs *i, struct devaddr *ret)
{
	int family = i->ifa_addr ? i->ifa_addr->sa_family : AF_UNSPEC;

	*ret = (struct devaddr){.family = family};
	if (family == AF_INET)
		memcpy(ret->addr, &((const struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr, 4);
	else if (family == AF_INET6)
		memcpy(ret->addr, &((const struct sockaddr_in6 *)(void *)i->ifa_addr)->sin6_addr,
		       16);
	else
		return false;
	snprintf(ret->dev, sizeof(ret->dev), "%s", i->ifa_name);
	return !(i->ifa_flags & IFF_LOOPBACK);
}

static bool is_any(const struct file *f)
{
	const struct sockaddr_in *in = (const void *)f->sockaddr;
	const struct sockaddr_in6 *in6 = (const void *)f->sockaddr;

	if (f->sockaddr_len < sizeof(*in))
		return false;
	return in->sin_family == AF_INET
		   ? !in->sin_addr.s_addr
		   : f->sockaddr_len >= sizeof(*in6) && IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
}

static int list_one(addresses *l, const struct ifaddrs *all, const struct file *f, bool any,
		    struct cr_err *err)
{
	any = any && f->kind == FILE_TCP_LISTEN && is_any(f);
	if ((f->kind != FILE_TCP_CONN && f->kind != FILE_UDP && f->kind != FILE_TCP_LISTEN) ||
	    (!any && is_listed(l, f)))
		return 0;
	for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
		struct devaddr a;

		if (!from_ifaddr(i, &a) ||
		    (!any && !devaddr_matches(&a, f->sockaddr, f->sockaddr_len)))
			continue;
		struct devaddr *slot = vec_push(l);
		if (!slot)
			return cr_err_oom(err);
		*slot = a;
	}
	return 0;
}

int net_list_addresses(const struct tree *t, bool any, struct devaddr **ret, size_t *n,
		       struct cr_err *err)
{
	struct ifaddrs *all = NULL;
	addresses l = {0};
	int r = 0;

	if (t->switched && getifaddrs(&all))
		return cr_err_sys(err, "listing addresses");
	for (size_t i = 0; i < t->n_moved && !r; i++) {
		struct devaddr *slot = vec_push(&l);

		if (slot)
			*slot = t->moved[i];
		else
			r = cr_err_oom(err);
	}
	for (size_t i = 0; t->switched && i < t->n_files && !r; i++)
		r = list_one(&l, all, &t->files[i], any, err);
	freeifaddrs(all);
	if (r) {
		vec_done(&l);
		return r;
	}
	*ret = l.v;
	*n = l.n;
	return 0;
}

int net_ways_open_for(struct net_ways **ret, const struct tree *t, struct cr_err *err)
{
	_cleanup_free_ struct devaddr *v = NULL;
	size_t n = 0;
	int r = net_list_addresses(t, true, &v, &n, err);

	*ret = NULL;
	return r || !n ? r : net_ways_open(ret, v, n, err);
}
