/* What the verbs of cr-migrate share. */
#pragma once
#include <stdbool.h>
#include "base/err.h"
#include "wire/msg.h"

enum exit_code { /* as --help says */
		 EXIT_MIGRATED = 0,
		 EXIT_FAILED = 1, /* the source runs on as before */
		 EXIT_USAGE = 2,
		 EXIT_IN_DOUBT = 3,
		 EXIT_REFUSED = 4,
		 EXIT_LOST = 5, /* migrated, but for pages that were lost with the source */
};

/* Each prints what is wrong itself and returns an exit code. argv[0] is the verb (or the program).
 */
int cmd_migrate(int argc, char **argv);
int cmd_resolve(int argc, char **argv);
int cmd_status(int argc, char **argv);

void cli_usage(bool to_stdout);
void cli_version(void);
/* "cr-migrate: …" and a hint at --help on stderr. Returns EXIT_USAGE. */
int cli_bad_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* "cr-migrate: …" on stderr. */
void cli_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
