#include "resource/net_ways.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <string.h>
#include "base/vec.h"
#include "kernel/netinject.h"

struct way {
	struct devaddr address;
	struct netinject *in; /* of its device: several may share one */
};

struct net_ways {
	VEC(struct way) list;
	VEC(struct netinject *) devices;
};

void net_ways_free(struct net_ways *w)
{
	if (!w)
		return;
	vec_foreach (in, &w->devices)
		netinject_free(*in);
	vec_done(&w->devices);
	vec_done(&w->list);
	free(w);
}

static int at_device(struct net_ways *w, const char *dev, struct netinject **ret,
		     struct cr_err *err)
{
	vec_foreach (in, &w->devices)
		if (!strcmp(netinject_device(*in), dev)) {
			*ret = *in;
			return 0;
		}
	struct netinject **slot = vec_push(&w->devices);
	int r = slot ? netinject_open(slot, dev, err) : cr_err_oom(err);
	if (r && slot)
		w->devices.n--;
	if (!r)
		*ret = *slot;
	return r;
}

int net_ways_open(struct net_ways **ret, const struct devaddr *v, size_t n, struct cr_err *err)
{
	struct net_ways *w = calloc(1, sizeof(*w));
	int r = w ? 0 : cr_err_oom(err);

	for (size_t i = 0; i < n && !r; i++) {
		struct way *way = vec_push(&w->list);

		r = way ? at_device(w, v[i].dev, &way->in, err) : cr_err_oom(err);
		if (way)
			way->address = v[i];
	}
	if (r)
		net_ways_free(w);
	else
		*ret = w;
	return r;
}

struct netinject *net_ways_to(const struct net_ways *w, const void *sockaddr, size_t len)
{
	if (w)
		vec_foreach (way, &w->list)
			if (devaddr_matches(&way->address, sockaddr, len))
				return way->in;
	return NULL;
}

bool net_ways_know_handshakes(const struct net_ways *w)
{
	vec_foreach (in, &w->devices)
		if (!netinject_knows_handshakes(*in))
			return false;
	return true;
}

/* From a peer: a header that is not all there, or one for somebody else, is none. */
static const struct way *way_of(const struct net_ways *w, const struct net_packet *p)
{
	int family = p->len && p->data[0] >> 4 == 6 ? AF_INET6 : AF_INET;
	size_t at =
	    family == AF_INET ? offsetof(struct iphdr, daddr) : offsetof(struct ip6_hdr, ip6_dst);
	size_t len = family == AF_INET ? 4 : 16;

	if (p->len < (family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ip6_hdr)) ||
	    (p->data[0] >> 4 != 4 && p->data[0] >> 4 != 6))
		return NULL;
	vec_foreach (way, &w->list)
		if (way->address.family == family && !memcmp(way->address.addr, p->data + at, len))
			return way;
	return NULL;
}

int net_ways_put(const struct net_ways *w, const struct net_packet *p, struct cr_err *err)
{
	const struct way *way = way_of(w, p);

	if (!way)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "a packet that is for nobody here");
	return netinject_packet(way->in, p, err);
}
