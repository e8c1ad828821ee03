/* What the page-server is told on its command line. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "wire/ident.h"

enum { OPTIONS_FIRST_FD = 3 }; /* SD_LISTEN_FDS_START, sd_listen_fds(3) */

struct options {
	const char *listen;  /* NULL: the socket that was passed */
	const char *control; /* NULL: none */
	const char *dir;     /* NULL: not in dir mode */
	unsigned int max_connections;
	uint64_t max_memory, max_disk; /* bytes; 0: no limit */
	struct mig_token token;
	bool guarded, no_sync;
};

/* Returns -1 to go on, else the exit code. */
int options_parse(struct options *o, int argc, char **argv);
