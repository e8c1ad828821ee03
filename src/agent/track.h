/* pre-dump --track: the engine's process stays after a pre-dump and keeps the userfaultfds, so that
 * the next pre-dump or dump of the same tree into the same image reads only what was written since.
 *
 * It waits on a socket in the state directory for the next command's request, and ends with the
 * tasks, with the dump, with a pre-dump that does not say --track, by SIGTERM, when anything has
 * failed, or after a day. Its end releases the tasks, whatever it comes from. */
#pragma once
#include "agent/agent.h"
#include "source/source.h"

struct track_request { /* with two descriptors: a link on which MIGRATE comes, and life_fd */
	char version[24];
	char key[768]; /* which tree, into which image */
	char name[64]; /* of the image */
	bool pre_dump, leave_stopped, track;
};

/* The name in the state directory under which a tree is tracked. */
void track_name(char *buf, size_t n, const struct msg_migrate *rq);
/* To who tracks it, if there is one: returns his pid, or 0. */
pid_t track_ask(const char *state_dir, const char *name, const struct track_request *rq, int link,
		int life);
/* Waits for the end of who would not take it. */
void track_wait_end(pid_t pid);
/* The engine's whole life: the first request, and those that come after it. */
void track_engine(const struct agent_config *cfg, struct link *client, const struct msg_migrate *rq,
		  const struct track_request *first, int life_fd);
