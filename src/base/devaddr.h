/* An address of a network interface, as text "ADDR/LEN%DEV": what a user says, journals keep and
 * the wire carries. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

enum { DEVADDR_TEXT = 72 }; /* INET6_ADDRSTRLEN, "/128", "%", IFNAMSIZ */

struct devaddr {
	int family; /* AF_INET, AF_INET6 */
	uint8_t addr[16];
	uint8_t prefix; /* bits */
	char dev[16];   /* IFNAMSIZ */
};

/* Errors: INPUT, which says how it is written. */
int devaddr_parse(const char *text, struct devaddr *ret, struct cr_err *err) must_check;
/* Returns buf. */
const char *devaddr_text(const struct devaddr *a, char buf[DEVADDR_TEXT]);
/* Is that the address of this socket address? An IPv4 address may be written as a mapped IPv6 one.
 */
bool devaddr_matches(const struct devaddr *a, const void *sockaddr, size_t len);
