/* The hosts file: which name is which agent. Lines of "NAME ENDPOINT", # starts a comment. */
#pragma once
#include "base/err.h"
#include "base/vec.h"
#include "wire/addr.h"

struct host_entry {
	char name[64];
	struct endpoint endpoint;
};
struct hosts {
	VEC(struct host_entry) list;
	char path[256]; /* "" if there is no file */
};

/* path NULL: what CR_MIGRATE_HOSTS names, or no file at all. Errors: INPUT, with file and line; IO.
 */
int hosts_read(struct hosts *h, const char *path, struct cr_err *err) must_check;
int hosts_parse(struct hosts *h, const char *text, struct cr_err *err) must_check;
void hosts_done(struct hosts *h);

/* The address of an agent, for link_connect(). host: a name of the file, or an endpoint. An
 * endpoint of a kind that this version cannot reach is refused (UNSUPPORTED), saying what to use.
 * buf: ADDR_TEXT. */
int hosts_find(const struct hosts *h, const char *host, char *buf, struct cr_err *err) must_check;
