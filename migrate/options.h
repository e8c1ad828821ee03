/* The command line of a migration. */
#pragma once
#include "migrate/hooks.h"
#include "migrate/hosts.h"
#include "wire/msg.h"

struct migrate_options {
	char source[320], dest[320]; /* as the user named them */
	pid_t pid;                   /* 0: the whole cgroup */
	const char *cgroup;          /* "" if none */
	const char *freeze_cgroup;   /* "" if none */
	const char *hosts;           /* file; NULL: from the environment */
	bool json;
	struct hooks hooks; /* for the caller to free its list */
	struct msg_opts opts;
};

enum options_result { OPTIONS_RUN, OPTIONS_SHOWN /* --help, --version */, OPTIONS_BAD };

/* Strings borrow from argv. OPTIONS_BAD: *err (INPUT) says why. */
enum options_result options_parse(int argc, char **argv, struct migrate_options *ret,
				  struct cr_err *err);
