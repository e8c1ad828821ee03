/* The packets of netdev_announce(), byte by byte. */
#include "kernel/netdev.h"

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip6.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

struct arp_packet {
	struct ether_header eth;
	struct ether_arp arp;
} __attribute__((packed));

struct na_packet {
	struct ether_header eth;
	struct ip6_hdr ip;
	struct nd_neighbor_advert na;
	struct nd_opt_hdr opt;
	uint8_t mac[6];
} __attribute__((packed));

/* 1: an Ethernet device, mac is filled; 0: has no neighbours to tell. */
static int hardware_address(const char *dev, uint8_t mac[6], struct cr_err *err)
{
	struct ifreq rq = {0};
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(rq.ifr_name, sizeof(rq.ifr_name), "%s", dev);
	if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &rq))
		return cr_err_sys(err, "hardware address of %s", dev);
	memcpy(mac, rq.ifr_hwaddr.sa_data, 6);
	return rq.ifr_hwaddr.sa_family == ARPHRD_ETHER;
}

/* op ARPOP_REQUEST and ARPOP_REPLY: some neighbours believe the one, some the other. */
static struct arp_packet gratuitous_arp(const struct devaddr *a, const uint8_t mac[6], uint16_t op)
{
	struct arp_packet p = {
	    .eth.ether_type = htons(ETHERTYPE_ARP),
	    .arp.ea_hdr = {.ar_hrd = htons(ARPHRD_ETHER),
			   .ar_pro = htons(ETHERTYPE_IP),
			   .ar_hln = 6,
			   .ar_pln = 4,
			   .ar_op = htons(op)},
	};

	memset(p.eth.ether_dhost, 0xff, 6);
	memcpy(p.eth.ether_shost, mac, 6);
	memcpy(p.arp.arp_sha, mac, 6);
	memcpy(p.arp.arp_spa, a->addr, 4);
	memcpy(p.arp.arp_tpa, a->addr, 4);
	if (op == ARPOP_REPLY)
		memset(p.arp.arp_tha, 0xff, 6);
	return p;
}

static uint32_t sum16(const void *data, size_t len, uint32_t sum)
{
	const uint8_t *b = data;

	for (size_t i = 0; i + 1 < len; i += 2)
		sum += (uint32_t)(b[i] << 8 | b[i + 1]);
	return sum;
}

static struct na_packet unsolicited_na(const struct devaddr *a, const uint8_t mac[6])
{
	static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
	struct na_packet p = {
	    .eth.ether_type = htons(ETHERTYPE_IPV6),
	    .ip.ip6_nxt = IPPROTO_ICMPV6,
	    .ip.ip6_hlim = 255,
	    .na.nd_na_hdr = {.icmp6_type = ND_NEIGHBOR_ADVERT},
	    .opt = {ND_OPT_TARGET_LINKADDR, 1},
	};
	const uint16_t len = sizeof(p.na) + sizeof(p.opt) + sizeof(p.mac);

	memcpy(p.eth.ether_dhost, all_nodes_mac, 6);
	memcpy(p.eth.ether_shost, mac, 6);
	p.ip.ip6_flow = htonl(6u << 28);
	p.ip.ip6_plen = htons(len);
	memcpy(&p.ip.ip6_src, a->addr, 16);
	inet_pton(AF_INET6, "ff02::1", &p.ip.ip6_dst);
	p.na.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
	memcpy(&p.na.nd_na_target, a->addr, 16);
	memcpy(p.mac, mac, 6);
	/* RFC 4443, 2.3: over the addresses, length, next header, and the message */
	uint32_t sum = sum16((const uint8_t *)&p + offsetof(struct na_packet, ip.ip6_src), 32, 0);
	sum += len + IPPROTO_ICMPV6;
	sum = sum16((const uint8_t *)&p + offsetof(struct na_packet, na), len, sum);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	p.na.nd_na_hdr.icmp6_cksum = htons((uint16_t)~sum);
	return p;
}

int netdev_announce(const struct devaddr *a, int *fd, struct cr_err *err)
{
	struct sockaddr_ll to = {
	    .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(a->dev), .sll_halen = 6};
	uint8_t mac[6];
	int r = hardware_address(a->dev, mac, err);

	if (r <= 0)
		return r;
	if (*fd < 0)
		*fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (*fd < 0)
		return cr_err_sys(err, "packet socket");
	for (int i = 0; i < 2; i++) {
		struct arp_packet arp = gratuitous_arp(a, mac, i ? ARPOP_REQUEST : ARPOP_REPLY);
		struct na_packet na = unsolicited_na(a, mac);
		bool v4 = a->family == AF_INET;
		size_t n = v4 ? sizeof(arp) : sizeof(na);

		if (sendto(*fd, v4 ? (void *)&arp : (void *)&na, n, 0, (struct sockaddr *)&to,
			   sizeof(to)) != (ssize_t)n)
			return cr_err_sys(err, "telling neighbours on %s of an address", a->dev);
	}
	return 0;
}
