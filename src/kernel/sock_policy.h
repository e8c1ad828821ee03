/* A lock for sockets whose filter cannot be replaced, not even by root (SO_LOCK_FILTER, socket(7)):
 * a policy of the socket's own for IPsec, which says that nothing that comes in is let through
 * (IP_XFRM_POLICY, net/ipv4/ip_sockglue.c; CONFIG_XFRM_USER). The kernel asks it where it asks the
 * filter, right before. It needs no BPF, belongs to no device, and dies with the socket, not with
 * whoever has set it.
 *
 * It cannot be read back, so whoever cleans up takes it off each socket that may have one: the
 * program's own would go with it. It is of one version of IP: of a socket that hears both (IPv6,
 * not connected, without IPV6_V6ONLY) IPv6 still comes in. */
#pragma once
#include <stdbool.h>
#include "base/err.h"

/* Has this kernel such policies? */
bool sock_policy_is_possible(void);
int sock_policy_lock(int fd, struct cr_err *err) must_check;
/* Nothing to do for sockets of another family than IP, or without a policy. */
int sock_policy_unlock(int fd, struct cr_err *err) must_check;
