/* Datagrams that wait to be read, out of one socket and into another. */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "model/tree.h"

struct net_packet;
struct net_ways;

/* Of a locked socket of stopped tasks, into f, and the error that waits. They stay where they are.
 */
int udp_dump(int fd, struct arena *a, struct file *f, struct cr_err *err) must_check;
/* f's datagrams, error and groups, once its addresses are here. w: NULL: none. What fails is
 * logged, and lost, as UDP may. */
void udp_launch(int fd, const struct file *f, const struct net_ways *w);
/* A packet for that address, which this host has, into its network stack: by its device if it has
 * moved along, else over the loopback interface. */
int udp_put(const struct net_packet *p, const void *sockaddr, size_t len, const struct net_ways *w,
	    struct cr_err *err) must_check;
