/* Nothing that TCP sends from an IPv6 address gets out of a device, as long as this is open: the
 * kernel sends from an address that a host has no more (over IPv4 it does not). A program at the
 * device that goes with its descriptor (tcx, Linux 6.6), so that nothing is left behind. */
#pragma once
#include "base/devaddr.h"
#include "base/err.h"

/* The descriptor to close. */
int netmute_open(const struct devaddr *a, struct cr_err *err) must_check;
