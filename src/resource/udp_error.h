/* The error that a connected UDP socket is to be told: what the network has said of something that
 * it sent, udp(7). */
#pragma once
#include "base/err.h"
#include "model/tree.h"

struct net_ways;

/* f->sock_error, which becomes that socket's again: by a message of the network's (ICMP), as if
 * from whom it is connected to. w: NULL: none. Needs f's addresses to be here. What fails is
 * logged, and lost. */
void udp_tell_error(const struct file *f, const struct net_ways *w);
/* Does the socket keep such messages themselves (IP_RECVERR)? They cannot be had again. */
bool udp_keeps_errors(const struct file *f);
