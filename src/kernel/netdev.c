#include "kernel/netdev.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { REQUEST_BYTES = 256, LOCAL_TRIES = 4000 };

static void nl_closep(struct mnl_socket **nl)
{
	if (*nl)
		mnl_socket_close(*nl);
}

/* Sends, and hands what comes back to cb. Returns -errno of the kernel's answer. */
static int talk(struct nlmsghdr *nlh, mnl_cb_t cb, void *arg)
{
	_cleanup_(nl_closep) struct mnl_socket *nl = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	_cleanup_free_ char *buf = malloc((size_t)MNL_SOCKET_BUFFER_SIZE);
	int r = MNL_CB_OK;

	if (!nl || !buf || mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0 ||
	    mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		return -errno;
	while (r > MNL_CB_STOP) {
		ssize_t n = mnl_socket_recvfrom(nl, buf, (size_t)MNL_SOCKET_BUFFER_SIZE);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		r = mnl_cb_run(buf, (size_t)n, nlh->nlmsg_seq, mnl_socket_get_portid(nl), cb, arg);
	}
	return r < 0 ? -errno : 0;
}

static int device(const struct devaddr *a, unsigned int *ret, struct cr_err *err)
{
	*ret = if_nametoindex(a->dev);
	if (*ret)
		return 0;
	return cr_err_set(err, CR_ERR_INPUT, ENODEV, "there is no network device %s", a->dev);
}

static struct nlmsghdr *request(char *buf, uint16_t type, uint16_t flags)
{
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);

	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	nlh->nlmsg_seq = (uint32_t)time(NULL);
	return nlh;
}

static struct nlmsghdr *address_request(char *buf, uint16_t type, uint16_t flags,
					const struct devaddr *a, unsigned int dev)
{
	struct nlmsghdr *nlh = request(buf, type, NLM_F_ACK | flags);
	struct ifaddrmsg *ifa = mnl_nlmsg_put_extra_header(nlh, sizeof(*ifa));
	size_t len = a->family == AF_INET ? 4 : 16;

	ifa->ifa_family = (uint8_t)a->family;
	ifa->ifa_prefixlen = a->prefix;
	ifa->ifa_index = dev;
	ifa->ifa_flags = type == RTM_NEWADDR && a->family == AF_INET6 ? IFA_F_NODAD : 0;
	mnl_attr_put(nlh, IFA_LOCAL, len, a->addr);
	mnl_attr_put(nlh, IFA_ADDRESS, len, a->addr);
	return nlh;
}

/* ---- is it in use? ---- */

static int note_type(const struct nlmsghdr *nlh, void *arg)
{
	const struct rtmsg *rt = mnl_nlmsg_get_payload(nlh);

	if (nlh->nlmsg_type == RTM_NEWROUTE)
		*(unsigned char *)arg = rt->rtm_type;
	return MNL_CB_STOP;
}

static bool is_local(const struct devaddr *a)
{
	char buf[REQUEST_BYTES];
	struct nlmsghdr *nlh = request(buf, RTM_GETROUTE, 0);
	struct rtmsg *rt = mnl_nlmsg_put_extra_header(nlh, sizeof(*rt));
	size_t len = a->family == AF_INET ? 4 : 16;
	unsigned char type = RTN_UNSPEC;

	rt->rtm_family = (unsigned char)a->family;
	rt->rtm_dst_len = (unsigned char)(8 * len);
	mnl_attr_put(nlh, RTA_DST, len, a->addr);
	return !talk(nlh, note_type, &type) && type == RTN_LOCAL;
}

/* An IPv6 address gets its route by a work queue, addrconf_dad_start(): until then packets for it
 * are not for this host. */
static int wait_local(const struct devaddr *a, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = 50 * 1000};
	char text[DEVADDR_TEXT];

	for (int i = 0; i < LOCAL_TRIES; i++) {
		if (is_local(a))
			return 0;
		nanosleep(&pause, NULL);
	}
	return cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT, "the address %s does not come into use",
			  devaddr_text(a, text));
}

int netdev_add_address(const struct devaddr *a, struct cr_err *err)
{
	char buf[REQUEST_BYTES], text[DEVADDR_TEXT];
	unsigned int dev;
	int r = device(a, &dev, err);

	if (r)
		return r;
	r = talk(address_request(buf, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, a, dev), NULL, NULL);
	if (!r || r == -EEXIST)
		return a->family == AF_INET6 ? wait_local(a, err) : 0;
	errno = -r;
	return cr_err_sys(err, "adding the address %s", devaddr_text(a, text));
}

/* ---- what is there ---- */

struct looking {
	const struct devaddr *want;
	unsigned int dev;
	bool found, secondary, others; /* others: secondary ones, in the subnet of the wanted one */
	uint8_t prefix;
};

static bool same_subnet(const uint8_t *a, const uint8_t *b, unsigned int prefix)
{
	uint32_t x, y, mask = prefix ? htonl(~0u << (32 - prefix)) : 0;

	memcpy(&x, a, 4);
	memcpy(&y, b, 4);
	return (x & mask) == (y & mask);
}

static int look_at(const struct nlmsghdr *nlh, void *arg)
{
	const struct ifaddrmsg *ifa = mnl_nlmsg_get_payload(nlh);
	struct looking *l = arg;
	const struct nlattr *attr;
	const uint8_t *addr = NULL;
	size_t len = l->want->family == AF_INET ? 4 : 16;
	bool local = false;

	if (nlh->nlmsg_type != RTM_NEWADDR || ifa->ifa_family != l->want->family ||
	    ifa->ifa_index != l->dev)
		return MNL_CB_OK;
	mnl_attr_for_each(attr, nlh, sizeof(*ifa))
	{
		uint16_t type = mnl_attr_get_type(attr);

		/* of a point-to-point link IFA_ADDRESS is the other end's, rtnetlink(7) */
		if ((type == IFA_LOCAL || (type == IFA_ADDRESS && !local)) &&
		    mnl_attr_get_payload_len(attr) == len) {
			addr = mnl_attr_get_payload(attr);
			local |= type == IFA_LOCAL;
		}
	}
	if (addr && !memcmp(addr, l->want->addr, len)) {
		l->found = true;
		l->prefix = ifa->ifa_prefixlen;
		l->secondary = ifa->ifa_flags & IFA_F_SECONDARY;
	} else if (addr && len == 4 && ifa->ifa_flags & IFA_F_SECONDARY &&
		   same_subnet(addr, l->want->addr, ifa->ifa_prefixlen)) {
		l->others = true;
	}
	return MNL_CB_OK;
}

static int look(const struct devaddr *a, struct looking *l, struct cr_err *err)
{
	char buf[REQUEST_BYTES];

	*l = (struct looking){.want = a};
	int r = device(a, &l->dev, err);
	if (r)
		return r;
	struct nlmsghdr *nlh = request(buf, RTM_GETADDR, NLM_F_DUMP);
	struct ifaddrmsg *ifa = mnl_nlmsg_put_extra_header(nlh, sizeof(*ifa));
	ifa->ifa_family = (uint8_t)a->family;
	r = talk(nlh, look_at, l);
	if (!r)
		return 0;
	errno = -r;
	return cr_err_sys(err, "listing the addresses of %s", a->dev);
}

int netdev_has_address(const struct devaddr *a, bool *ret_has, struct devaddr *ret,
		       struct cr_err *err)
{
	struct looking l;
	int r = look(a, &l, err);

	if (r)
		return r;
	*ret_has = l.found;
	if (ret) {
		*ret = *a;
		ret->prefix = l.found ? l.prefix : a->prefix;
	}
	return 0;
}

static bool promotes(const char *dev)
{
	char path[80], c = '0';

	snprintf(path, sizeof(path), "/proc/sys/net/ipv4/conf/%s/promote_secondaries", dev);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && read(fd, &c, 1) == 1 && c != '0';
}

int netdev_is_burdened(const struct devaddr *a, bool *ret, struct cr_err *err)
{
	struct looking l;
	int r = look(a, &l, err);

	if (!r)
		*ret = l.found && !l.secondary && l.others && l.prefix < 32 && !promotes(a->dev) &&
		       !promotes("all");
	return r;
}

int netdev_del_address(const struct devaddr *a, struct cr_err *err)
{
	char buf[REQUEST_BYTES], text[DEVADDR_TEXT];
	struct looking l;
	int r = look(a, &l, err);

	if (r || !l.found)
		return r;
	struct devaddr there = *a;
	there.prefix = l.prefix;
	r = talk(address_request(buf, RTM_DELADDR, 0, &there, l.dev), NULL, NULL);
	if (!r || r == -EADDRNOTAVAIL)
		return 0;
	errno = -r;
	return cr_err_sys(err, "removing the address %s", devaddr_text(&there, text));
}
