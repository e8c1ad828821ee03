/* Addresses of this host's network interfaces: rtnetlink(7), and the packets that tell neighbours
 * where an address is. In the network namespace of the caller. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "base/devaddr.h"

/* There already: fine. IPv6 without duplicate address detection, which would take a second. */
int netdev_add_address(const struct devaddr *a, struct cr_err *err) must_check;
/* Not there: fine. */
int netdev_del_address(const struct devaddr *a, struct cr_err *err) must_check;
/* Is it on its device? *ret (may be NULL) with the prefix that it has there. Errors: INPUT for a
 * device that does not exist. */
int netdev_has_address(const struct devaddr *a, bool *ret_has, struct devaddr *ret,
		       struct cr_err *err) must_check;
/* Its removal would take other addresses along: of a primary IPv4 address with secondary ones,
 * unless promote_secondaries is on (Documentation/networking/ip-sysctl.rst). */
int netdev_is_burdened(const struct devaddr *a, bool *ret, struct cr_err *err) must_check;
/* Gratuitous ARP (RFC 5227, 3), unsolicited neighbour advertisement (RFC 4861, 7.2.6). Devices that
 * have no neighbours: nothing to do. *fd: a socket for it, made if it is -1, which the caller
 * closes when it has time: that takes some 10 ms, a grace period of the kernel's. */
int netdev_announce(const struct devaddr *a, int *fd, struct cr_err *err) must_check;
