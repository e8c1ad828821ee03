#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/agent.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/version.h"

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} verbs[] = {
    {"serve", verb_serve, "the daemon that cr-migrate talks to"},
    {"pre-dump", verb_pre_dump, "copy the memory of running tasks into an image"},
    {"dump", verb_dump, "complete the image, and end the tasks"},
    {"restore", verb_restore, "tasks out of an image"},
    {"check", verb_check, "what this kernel offers, and what each missing thing costs"},
};

static int usage(FILE *f)
{
	fputs("usage: cr-agent VERB [OPTION…]\n\n", f);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(f, "  %-8s %s\n", verbs[i].name, verbs[i].help);
	fputs("\n  cr-agent VERB --help tells more.\n", f);
	return f == stdout ? 0 : 2;
}

int main(int argc, char **argv)
{
	fault_init(getenv("CR_FAULT"));
	if (getenv("CR_DEBUG"))
		log_set_level(LOG_LVL_DEBUG);
	if (argc < 2)
		return usage(stderr);
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help"))
		return usage(stdout);
	if (!strcmp(argv[1], "--version")) {
		puts("cr-agent " CR_VERSION);
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	fprintf(stderr, "cr-agent: unknown verb '%s'\n", argv[1]);
	return usage(stderr);
}
