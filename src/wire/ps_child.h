/* A page-server of the agent's own: a process with a socket to us, and nothing else of ours. It
 * gives up all its privileges before it takes anything (`page-server --tasks`), says so by READY,
 * and ends with the process that has started it. What it is told then is in ps_serve.h. */
#pragma once
#include <sys/types.h>
#include "base/err.h"

struct ps_child {
	const char *program; /* NULL: the page-server beside our own program */
	pid_t pid;           /* 0: none */
	int socket;
};

/* Does nothing if there is one. Returns at once: what it takes to be ready, it does beside us. By a
 * thread that lives as long as it shall (PR_SET_PDEATHSIG). */
int ps_child_start(struct ps_child *c, struct cr_err *err) must_check;
/* Kills it, and closes our end of the socket. */
void ps_child_stop(struct ps_child *c);
