/* The command line and the configuration file of the page-server. */
#pragma once
#include "base/vec.h"
#include "wire/ident.h"

enum { OPTIONS_FIRST_FD = 3 /* of a socket that was passed, sd_listen_fds(3) */ };

struct options {
	/* as it starts */
	const char *listen; /* NULL: a socket was passed */
	const char *control, *dir, *user, *config, *token_file;
	bool serve, no_sandbox, no_token;
	enum { THREADS_AUTO, THREADS_YES, THREADS_NO } threads;
	int tasks;     /* -1: none; the socket of an agent whose tasks are served */
	int status_fd; /* -1: none */
	/* these may change while it runs */
	struct mig_token token;
	bool guarded; /* a token was given, or nobody is to be kept out */
	bool no_sync, verbose;
	unsigned int max_connections, max_half_open;
	uint64_t max_memory, max_disk, max_bandwidth; /* bytes, bytes, bytes/s; 0: no limit */
	uint64_t idle_timeout_us;
	VEC(char *) strings; /* that the configuration file gave */
};

/* Returns -1 to go on, else the exit status: what there is to say has been said. Options on the
 * command line go before those of the file that --config names. May be called again, to reload. */
int options_parse(struct options *o, int argc, char **argv);
void options_done(struct options *o);
