/* The socket options that are moved: a table that capture walks with getsockopt(2) and rebuild
 * replays with setsockopt(2), in its order. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	OPT_MAX_BYTES = 64,
	SOCKOPT_COUNT = 119,
};

struct fd_probe;

struct sockopt {
	int32_t level, name;
	const char *text;
	int halve;    /* the kernel doubles what is set: socket(7) */
	int set_name; /* another name to set it by; 0: the same */
	int lock_bit; /* recorded if this bit of SO_BUF_LOCK is set; 0: if it differs */
	bool ifindex; /* of an interface: recorded by its name */
};

/* i below SOCKOPT_COUNT. */
const struct sockopt *sockopt_at(size_t i);
/* NULL: not in the table. */
const struct sockopt *sockopt_find(int32_t level, int32_t name);
/* Is it one of such a socket? */
bool sockopt_applies(const struct sockopt *o, const struct fd_probe *p);
