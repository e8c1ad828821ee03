#include "resource/multicast.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { SOURCES_MAX = 64 };

void multicast_host_done(struct multicast_host *h)
{
	vec_done(&h->list);
}

/* ---- what this host has joined ---- */

static int add(struct multicast_host *h, const char *dev, int family, const void *group,
	       struct cr_err *err)
{
	struct membership *m = vec_push(&h->list);

	if (!m)
		return cr_err_oom(err);
	snprintf(m->dev, sizeof(m->dev), "%s", dev);
	m->family = family;
	memcpy(m->group, group, family == AF_INET ? 4 : 16);
	return 0;
}

/* "4	eth0      :     1      V3", then "				010000E0     1 0:00000000
 * 0" */
static int read_v4(struct multicast_host *h, struct cr_err *err)
{
	_cleanup_file_ FILE *f = fopen("/proc/net/igmp", "re");
	char line[256], dev[IF_NAMESIZE] = "";
	int r = 0;

	while (f && !r && fgets(line, sizeof(line), f)) {
		unsigned int group, users;

		if (line[0] != '\t' && line[0] != ' ') {
			if (sscanf(line, "%*u %15[^: \t]", dev) != 1)
				dev[0] = '\0';
		} else if (dev[0] && sscanf(line, " %8x %u", &group, &users) == 2) {
			r = add(h, dev, AF_INET, &group, err); /* in network order as it is */
		}
	}
	return r;
}

/* "4    eth0            ff020000000000000000000000000001     1 0000000C 0" */
static int read_v6(struct multicast_host *h, struct cr_err *err)
{
	_cleanup_file_ FILE *f = fopen("/proc/net/igmp6", "re");
	char line[256], dev[IF_NAMESIZE], hex[33];
	int r = 0;

	while (f && !r && fgets(line, sizeof(line), f)) {
		uint8_t group[16];

		if (sscanf(line, "%*u %15s %32[0-9a-f]", dev, hex) != 2 || strlen(hex) != 32)
			continue;
		for (int i = 0; i < 16; i++)
			if (sscanf(hex + 2 * i, "%2hhx", &group[i]) != 1)
				return 0;
		r = add(h, dev, AF_INET6, group, err);
	}
	return r;
}

/* ---- what a socket has ---- */

static int level_of(const struct membership *m)
{
	return m->family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
}

static void put_address(struct sockaddr_storage *sa, int family, const uint8_t *address)
{
	struct sockaddr_in *in = (void *)sa;
	struct sockaddr_in6 *in6 = (void *)sa;

	memset(sa, 0, sizeof(*sa));
	sa->ss_family = (sa_family_t)family;
	if (family == AF_INET)
		memcpy(&in->sin_addr, address, 4);
	else
		memcpy(&in6->sin6_addr, address, 16);
}

static const uint8_t *address_of(const struct sockaddr_storage *sa)
{
	return sa->ss_family == AF_INET
		   ? (const uint8_t *)&((const struct sockaddr_in *)sa)->sin_addr
		   : ((const struct sockaddr_in6 *)sa)->sin6_addr.s6_addr;
}

/* 1: it has. */
static int ask(int fd, struct membership *m, struct arena *a, struct cr_err *err)
{
	socklen_t len = GROUP_FILTER_SIZE(SOURCES_MAX);
	_cleanup_free_ struct group_filter *g = calloc(1, len);

	if (!g)
		return cr_err_oom(err);
	g->gf_interface = if_nametoindex(m->dev);
	put_address(&g->gf_group, m->family, m->group);
	g->gf_numsrc = SOURCES_MAX;
	if (!g->gf_interface || getsockopt(fd, level_of(m), MCAST_MSFILTER, g, &len))
		return 0;
	if (g->gf_numsrc > SOURCES_MAX)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG,
				  "a multicast group with more than %d sources", SOURCES_MAX);
	m->include = g->gf_fmode == MCAST_INCLUDE;
	m->n_sources = g->gf_numsrc;
	uint8_t *sources = arena_array(a, uint8_t, 16 * (m->n_sources + 1));
	if (!sources)
		return cr_err_oom(err);
	for (size_t i = 0; i < m->n_sources; i++)
		memcpy(sources + 16 * i, address_of(&g->gf_slist[i]),
		       m->family == AF_INET ? 4 : 16);
	m->sources = (const uint8_t(*)[16])sources;
	return 1;
}

int multicast_get(int fd, int family, struct multicast_host *h, struct arena *a,
		  struct membership **ret, size_t *n, struct cr_err *err)
{
	int r = 0;

	*n = 0;
	if (!h->read) {
		h->read = true;
		r = read_v4(h, err);
		if (!r)
			r = read_v6(h, err);
	}
	*ret = r ? NULL : arena_array(a, struct membership, h->list.n + 1);
	if (r || !*ret)
		return r ? r : cr_err_oom(err);
	vec_foreach (m, &h->list) {
		struct membership mine = *m;

		if (m->family == AF_INET6 && family != AF_INET6)
			continue;
		r = ask(fd, &mine, a, err);
		if (r < 0)
			return r;
		if (r)
			(*ret)[(*n)++] = mine;
	}
	return 0;
}

/* ---- the same again ---- */

bool multicast_is_possible(const struct membership *m)
{
	return if_nametoindex(m->dev) != 0;
}

int multicast_join(int fd, const struct membership *m, struct cr_err *err)
{
	struct group_req rq = {.gr_interface = if_nametoindex(m->dev)};
	_cleanup_free_ struct group_filter *g = NULL;

	if (m->n_sources > SOURCES_MAX)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%zu sources of a multicast group",
				  m->n_sources);
	put_address(&rq.gr_group, m->family, m->group);
	if (setsockopt(fd, level_of(m), MCAST_JOIN_GROUP, &rq, sizeof(rq)) && errno != EADDRINUSE)
		return cr_err_sys(err, "joining a multicast group over %s", m->dev);
	if (!m->include && !m->n_sources)
		return 0;
	g = calloc(1, GROUP_FILTER_SIZE(SOURCES_MAX));
	if (!g)
		return cr_err_oom(err);
	g->gf_interface = rq.gr_interface;
	g->gf_group = rq.gr_group;
	g->gf_fmode = m->include ? MCAST_INCLUDE : MCAST_EXCLUDE;
	g->gf_numsrc = (uint32_t)m->n_sources;
	for (size_t i = 0; i < m->n_sources; i++)
		put_address(&g->gf_slist[i], m->family, m->sources[i]);
	return setsockopt(fd, level_of(m), MCAST_MSFILTER, g, GROUP_FILTER_SIZE(m->n_sources))
		   ? cr_err_sys(err, "sources of a multicast group over %s", m->dev)
		   : 0;
}
