/* A packet as the IP layer sees it, and how the device handed it on: it may be a long one that is
 * yet to be cut into segments, and its checksum may be left to be filled in (virtio 1.1, 5.1.6). */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { NET_PACKET_MAX = 65535 };

struct net_packet {
	uint32_t flags, gso_type, hdr_len, gso_size, csum_start, csum_offset;
	const uint8_t *data; /* begins with the IP header */
	size_t len;
};
