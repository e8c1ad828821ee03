/* The verb that settles a migration in doubt by hand, at one agent. */
#include "migrate/cli.h"

#include <getopt.h>
#include <stdio.h>

#include "migrate/agent.h"

struct resolve_options {
	struct msg_resolve resolve;
	const char *host;
	const char *hosts;
};

enum resolve_option_id { OPT_COMMIT = 256, OPT_ABORT, OPT_TAKE_OVER, OPT_HOSTS, OPT_HELP };

static const struct option longopts[] = {
    {"commit", no_argument, NULL, OPT_COMMIT},       {"abort", no_argument, NULL, OPT_ABORT},
    {"take-over", no_argument, NULL, OPT_TAKE_OVER}, {"hosts", required_argument, NULL, OPT_HOSTS},
    {"help", no_argument, NULL, OPT_HELP},           {0},
};

/* An exit code, or -1 to go on. */
static int parse(int argc, char **argv, struct resolve_options *o)
{
	int id, actions = 0;

	opterr = 0;
	while ((id = getopt_long(argc, argv, ":", longopts, NULL)) != -1) {
		switch (id) {
		case OPT_COMMIT:
			o->resolve.action = MSG_ACTION_COMMIT;
			actions++;
			break;
		case OPT_ABORT:
			o->resolve.action = MSG_ACTION_ABORT;
			actions++;
			break;
		case OPT_TAKE_OVER:
			o->resolve.action = MSG_ACTION_TAKE_OVER;
			actions++;
			break;
		case OPT_HOSTS:
			o->hosts = optarg;
			break;
		case OPT_HELP:
			cli_usage(true);
			return 0;
		default:
			return cli_bad_usage(id == ':' ? "%s needs a value" : "unknown option %s",
					     argv[optind - 1]);
		}
	}
	if (actions != 1)
		return cli_bad_usage("one of --commit, --abort and --take-over");
	if (argc - optind < 1 || argc - optind > 2)
		return cli_bad_usage("expected resolve [ID] --commit|--abort|--take-over HOST");
	if (argc - optind == 2 && !mig_id_parse(argv[optind], &o->resolve.id))
		return cli_bad_usage("'%s' is not the id of a migration (32 hex digits)",
				     argv[optind]);
	o->host = argv[argc - 1];
	return -1;
}

static int find_agent(const struct resolve_options *o, char *address, struct cr_err *err)
{
	struct hosts hosts = {0};
	int r = hosts_read(&hosts, o->hosts, err);

	if (r == 0)
		r = hosts_find(&hosts, o->host, address, err);
	hosts_done(&hosts);
	return r;
}

int cmd_resolve(int argc, char **argv)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct resolve_options o = {0};
	char address[ADDR_TEXT];
	struct cr_err err = {0};
	struct msg m = {.type = MSG_RESOLVE}, reply;
	int code = parse(argc, argv, &o);

	if (code >= 0)
		return code;
	if (find_agent(&o, address, &err) < 0) {
		cli_complain("%s", err.msg);
		return EXIT_USAGE;
	}
	m.resolve = o.resolve;
	if (agent_connect(&l, o.host, address, NULL, NULL, AGENT_TIMEOUT_MS, &err) < 0 ||
	    link_call(l, &m, MSG_RESOLVED, AGENT_TIMEOUT_MS, &reply, &err) < 0) {
		cli_complain("%s", err.msg);
		return EXIT_FAILED;
	}
	printf("%s: %s\n", o.host, reply.resolved.text);
	msg_free(&reply);
	return 0;
}
