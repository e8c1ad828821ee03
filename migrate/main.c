/* cr-migrate: what the user runs. It asks the agents of two hosts to move a process tree from one
 * to the other and shows how it goes. It holds no state that matters: if it dies, they finish or
 * undo. */
#include "migrate/cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
} verbs[] = {
    {"migrate", cmd_migrate}, /* may be left out */
    {"status", cmd_status},
    {"resolve", cmd_resolve},
};

static const char usage[] =
    "usage: cr-migrate 'SOURCE->DEST' --pid N|--cgroup PATH [options]\n"
    "       cr-migrate SOURCE DEST --pid N|--cgroup PATH [options]\n"
    "       cr-migrate status [HOST…]\n"
    "       cr-migrate resolve [ID] --commit|--abort|--take-over HOST\n"
    "\n"
    "A host is a name from the hosts file, or an endpoint: local, HOST[:PORT], ssh://[USER@]HOST "
    "or\n"
    "unix:/PATH, the agent's socket. This version reaches agents by unix:/PATH and local only.\n"
    "\n"
    "What moves:\n"
    "  --pid N              the process N of the source host, and all below it\n"
    "  --cgroup PATH        every process in that cgroup and in those below it\n"
    "  --freeze-cgroup PATH with --pid: freeze this cgroup to stop the processes\n"
    "\n"
    "How it moves:\n"
    "  --downtime-limit T   switch over when the stop is predicted to be at most T: 500us, 20ms, "
    "1s (20ms)\n"
    "  --max-rounds N       switch over after N rounds at the latest (16)\n"
    "  --mode MODE          precopy; hybrid: rounds, then what is left is fetched after the\n"
    "                       switch-over; postcopy: all of it is (precopy)\n"
    "  --on-no-convergence WHAT  if rounds do not get the downtime below its limit: switch over\n"
    "                       all the same; throttle: slow the tasks down first, by the quota of\n"
    "                       their cgroup; postcopy; abort (switch)\n"
    "  --postcopy-timeout T how long a lost source is waited for; then what is missing is lost: "
    "SIGBUS (60s)\n"
    "  --max-bandwidth R    per second: 100M, 512KiB (bytes), 1Gbit (bits); no limit if not given\n"
    "  --streams N          connections for pages, 1 to 16 (2)\n"
    "  --compress MODE      auto, lz4, none (auto)\n"
    "  --verify MODE        stream: compare digests of what was sent; full: of all memory "
    "(stream)\n"
    "  --launch WAY         regsets or sigreturn: how the tasks leave the restorer (regsets)\n"
    "  --move-address ADDR/LEN%DEV  an address that moves along; may be repeated\n"
    "  --copy-files         bring regular files along that the tasks have open, mapped or as "
    "their\n"
    "                       program, and that the destination does not have, and make\n"
    "                       directories that they need; with =replace files come along\n"
    "                       also in the place of what was left there when they went away\n"
    "  --tcp HOW           connections: auto (those that can go on do, others are closed; the\n"
    "                      default), established (refuse if one cannot), close, refuse\n"
    "  --hook STAGE=CMD     run CMD here, by sh -c, at a stage: pre-dump, pre-restore,\n"
    "                       network-lock, post-dump, network-switch, pre-resume, post-resume,\n"
    "                       post-restore; network-unlock if it is undone after network-lock.\n"
    "                       One that fails before the decision makes the migration fail.\n"
    "                       Environment: CR_HOOK_STAGE, CR_PID, CR_SOURCE, CR_DESTINATION,\n"
    "                       CR_UNDO (1: undo what you did); may be repeated\n"
    "  --no-hw-breakpoints  park tasks by tracing system calls instead\n"
    "  --no-bpf             ask the tasks at the switch-over instead of the kernel about them:\n"
    "                       slower; connections whose handshake is under way are reset, and some\n"
    "                       of what madvise(2) sets in a large process is seen too late\n"
    "  --leave-running      the source goes on as well: two copies run\n"
    "  --rehearse           do all but the switch-over, then undo it\n"
    "\n"
    "  --hosts FILE         lines of 'NAME ENDPOINT', # for comments (default: $CR_MIGRATE_HOSTS)\n"
    "  --json               one JSON object a line on standard output\n"
    "  --help, --version\n"
    "\n"
    "resolve settles a migration that is in doubt, at the agent of HOST; without ID the only one "
    "there is.\n"
    "  --abort              at the source: the tasks go on there. At the destination: they are "
    "removed\n"
    "  --commit             at the source: the tasks run at the destination, remove them here\n"
    "  --take-over          at the destination: the source is dead for good, run the tasks here\n"
    "\n"
    "Exit: 0 migrated, 1 failed and the source runs on as before, 2 usage, 3 in doubt: see "
    "resolve,\n"
    "4 refused: something cannot move, nothing was touched, 5 migrated, but for pages that were\n"
    "lost with the source.\n";

void cli_usage(bool to_stdout)
{
	fputs(usage, to_stdout ? stdout : stderr);
}

void cli_version(void)
{
	printf("cr-migrate %s (protocol %d)\n", CR_VERSION, MSG_VERSION);
}

void cli_complain(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("cr-migrate: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

int cli_bad_usage(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("cr-migrate: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputs("; see cr-migrate --help\n", stderr);
	va_end(ap);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	/* a reader that goes away must not end a migration half way */
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	return cmd_migrate(argc, argv);
}
