#include "migrate/options.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "migrate/cli.h"
#include "migrate/units.h"

enum option_id {
	OPT_PID = 256,
	OPT_CGROUP,
	OPT_FREEZE_CGROUP,
	OPT_HOSTS,
	OPT_JSON,
	OPT_DOWNTIME_LIMIT,
	OPT_MAX_ROUNDS,
	OPT_MAX_BANDWIDTH,
	OPT_STREAMS,
	OPT_COMPRESS,
	OPT_VERIFY,
	OPT_LAUNCH,
	OPT_LEAVE_RUNNING,
	OPT_REHEARSE,
	OPT_NO_HW_BREAKPOINTS,
	OPT_NO_BPF,
	OPT_MODE,
	OPT_NO_CONVERGENCE,
	OPT_POSTCOPY_TIMEOUT,
	OPT_TCP,
	OPT_MOVE_ADDRESS,
	OPT_HOOK,
	OPT_COPY_FILES,
	OPT_HELP,
	OPT_VERSION,
};

static const struct option longopts[] = {
    {"pid", required_argument, NULL, OPT_PID},
    {"cgroup", required_argument, NULL, OPT_CGROUP},
    {"freeze-cgroup", required_argument, NULL, OPT_FREEZE_CGROUP},
    {"hosts", required_argument, NULL, OPT_HOSTS},
    {"json", no_argument, NULL, OPT_JSON},
    {"downtime-limit", required_argument, NULL, OPT_DOWNTIME_LIMIT},
    {"max-rounds", required_argument, NULL, OPT_MAX_ROUNDS},
    {"max-bandwidth", required_argument, NULL, OPT_MAX_BANDWIDTH},
    {"streams", required_argument, NULL, OPT_STREAMS},
    {"compress", required_argument, NULL, OPT_COMPRESS},
    {"verify", required_argument, NULL, OPT_VERIFY},
    {"launch", required_argument, NULL, OPT_LAUNCH},
    {"leave-running", no_argument, NULL, OPT_LEAVE_RUNNING},
    {"rehearse", no_argument, NULL, OPT_REHEARSE},
    {"no-hw-breakpoints", no_argument, NULL, OPT_NO_HW_BREAKPOINTS},
    {"no-bpf", no_argument, NULL, OPT_NO_BPF},
    {"mode", required_argument, NULL, OPT_MODE},
    {"on-no-convergence", required_argument, NULL, OPT_NO_CONVERGENCE},
    {"postcopy-timeout", required_argument, NULL, OPT_POSTCOPY_TIMEOUT},
    {"tcp", required_argument, NULL, OPT_TCP},
    {"move-address", required_argument, NULL, OPT_MOVE_ADDRESS},
    {"hook", required_argument, NULL, OPT_HOOK},
    {"copy-files", optional_argument, NULL, OPT_COPY_FILES},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0},
};

static int bad(struct cr_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int bad(struct cr_err *err, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return cr_err_set(err, CR_ERR_INPUT, EINVAL, "%s", text);
}

/* One of names, which end with NULL; *ret is its index. */
static int parse_choice(const char *text, const char *const *names, int *ret, struct cr_err *err)
{
	char all[200] = "";

	for (int i = 0; names[i]; i++) {
		if (!strcmp(text, names[i])) {
			*ret = i;
			return 0;
		}
		snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s", i ? ", " : "",
			 names[i]);
	}
	return bad(err, "'%s' is none of %s", text, all);
}

static int parse_u32(const char *text, uint32_t max, uint32_t *ret, struct cr_err *err)
{
	uint64_t v;
	int r = units_parse_number(text, 1, max, &v, err);

	if (r == 0)
		*ret = (uint32_t)v;
	return r;
}

static int parse_path(const char *text, const char **ret, struct cr_err *err)
{
	if (text[0] != '/')
		return bad(err, "'%s' must begin with '/'", text);
	*ret = text;
	return 0;
}

static int add_address(struct msg_opts *o, const char *text, struct cr_err *err)
{
	struct devaddr a;
	int r = devaddr_parse(text, &a, err);

	if (r)
		return r;
	if (o->n_move == MSG_MOVES_MAX)
		return bad(err, "more than %d addresses", MSG_MOVES_MAX);
	devaddr_text(&a, o->move[o->n_move++]);
	return 0;
}

/* Options with a value. */
static int take_value(struct migrate_options *o, int id, const char *text, struct cr_err *err)
{
	static const char *const compress[] = {"auto", "lz4", "none", NULL};
	static const char *const verify[] = {"stream", "full", NULL};
	static const char *const tcp[] = {"auto", "established", "close", "refuse", NULL};
	static const char *const launch[] = {"regsets", "sigreturn", NULL};
	static const char *const mode[] = {"precopy", "hybrid", "postcopy", NULL};
	static const char *const no_convergence[] = {"switch", "throttle", "postcopy", "abort",
						     NULL};
	uint64_t us = 0;
	uint32_t pid = 0;
	int choice = 0, r;

	switch (id) {
	case OPT_PID:
		r = parse_u32(text, 4 << 20, &pid, err); /* proc_sys_kernel(5), pid_max */
		o->pid = (pid_t)pid;
		return r;
	case OPT_CGROUP:
		return parse_path(text, &o->cgroup, err);
	case OPT_FREEZE_CGROUP:
		return parse_path(text, &o->freeze_cgroup, err);
	case OPT_HOSTS:
		o->hosts = text;
		return 0;
	case OPT_DOWNTIME_LIMIT:
		return units_parse_duration(text, &o->opts.downtime_limit_us, err);
	case OPT_MAX_ROUNDS:
		return parse_u32(text, 1000000, &o->opts.max_rounds, err);
	case OPT_MAX_BANDWIDTH:
		return units_parse_rate(text, &o->opts.max_bandwidth, err);
	case OPT_STREAMS:
		return parse_u32(text, 16, &o->opts.streams, err);
	case OPT_COMPRESS:
		r = parse_choice(text, compress, &choice, err);
		o->opts.compress = (enum msg_compress)choice;
		return r;
	case OPT_VERIFY:
		r = parse_choice(text, verify, &choice, err);
		o->opts.verify = (enum msg_verify)choice;
		return r;
	case OPT_TCP:
		r = parse_choice(text, tcp, &choice, err);
		o->opts.tcp = (enum msg_tcp)choice;
		return r;
	case OPT_MOVE_ADDRESS:
		return add_address(&o->opts, text, err);
	case OPT_HOOK:
		return hooks_add(&o->hooks, text, ~0u, err);
	case OPT_COPY_FILES:
		o->opts.copy_files = true;
		o->opts.copy_replace = text && !strcmp(text, "replace");
		return text && !o->opts.copy_replace
			   ? bad(err, "--copy-files: '%s' is not known", text)
			   : 0;
	case OPT_LAUNCH:
		r = parse_choice(text, launch, &choice, err);
		o->opts.launch = (enum msg_launch)choice;
		return r;
	case OPT_MODE:
		r = parse_choice(text, mode, &choice, err);
		o->opts.mode = (enum msg_mode)choice;
		return r;
	case OPT_NO_CONVERGENCE:
		r = parse_choice(text, no_convergence, &choice, err);
		o->opts.no_convergence = (enum msg_no_convergence)choice;
		return r;
	case OPT_POSTCOPY_TIMEOUT:
		r = units_parse_duration(text, &us, err);
		if (r == 0 && us > UINT32_MAX * 1000ull)
			return bad(err, "'%s' is too long", text);
		o->opts.postcopy_timeout_ms = (uint32_t)((us + 999) / 1000);
		return r;
	default:
		return bad(err, "unknown option");
	}
}

static bool take_switch(struct migrate_options *o, int id)
{
	switch (id) {
	case OPT_JSON:
		return o->json = true;
	case OPT_LEAVE_RUNNING:
		return o->opts.leave_running = true;
	case OPT_REHEARSE:
		return o->opts.rehearse = true;
	case OPT_NO_HW_BREAKPOINTS:
		return o->opts.no_hw_breakpoints = true;
	case OPT_NO_BPF:
		return o->opts.no_bpf = true;
	default:
		return false;
	}
}

static int copy_name(char *to, size_t size, const char *from, size_t len, struct cr_err *err)
{
	if (!len)
		return bad(err, "which hosts? Expected 'SOURCE->DEST' or SOURCE DEST");
	if (len >= size)
		return bad(err, "the name of a host is too long");
	snprintf(to, size, "%.*s", (int)len, from);
	return 0;
}

/* "SOURCE->DEST", or two words. */
static int take_hosts(struct migrate_options *o, int n, char **words, struct cr_err *err)
{
	const char *arrow = n ? strstr(words[0], "->") : NULL;
	const char *dest = arrow ? arrow + 2 : n > 1 ? words[1] : "";
	size_t source_len = arrow ? (size_t)(arrow - words[0]) : n ? strlen(words[0]) : 0;
	int used = arrow ? 1 : 2, r;

	if (n > used)
		return bad(err, "what is '%s' for?", words[used]);
	if ((r = copy_name(o->source, sizeof(o->source), n ? words[0] : "", source_len, err)) < 0)
		return r;
	/* "a- >b": the shell took the rest for a redirection */
	if (n == 1 && !arrow && words[0][source_len - 1] == '-')
		return bad(err, "write 'SOURCE->DEST' in quotes, or SOURCE DEST");
	if ((r = copy_name(o->dest, sizeof(o->dest), dest, strlen(dest), err)) < 0)
		return r;
	if (!strcmp(o->source, o->dest))
		return bad(err, "source and destination are both %s", o->source);
	return 0;
}

static int check(const struct migrate_options *o, struct cr_err *err)
{
	if (!o->pid && !*o->cgroup)
		return bad(err, "what is to be moved? Expected --pid or --cgroup");
	if (o->pid && *o->cgroup)
		return bad(
		    err,
		    "--pid or --cgroup, not both (--freeze-cgroup says which cgroup to freeze)");
	if (*o->freeze_cgroup && !o->pid)
		return bad(err, "--freeze-cgroup goes with --pid: --cgroup freezes its own");
	if (o->opts.verify == MSG_VERIFY_FULL &&
	    (o->opts.mode != MSG_MODE_PRECOPY ||
	     o->opts.no_convergence == MSG_NO_CONVERGENCE_POSTCOPY))
		return bad(err, "--verify full goes with --mode precopy: at the switch-over the "
				"memory is not yet there to be compared");
	if (o->opts.rehearse && o->opts.leave_running)
		return bad(err, "--rehearse or --leave-running, not both");
	if (o->opts.leave_running && (o->opts.n_move || o->opts.tcp == MSG_TCP_ESTABLISHED))
		return bad(err, "--leave-running makes a copy, and a connection has one end only: "
				"not with --move-address or --tcp established");
	return 0;
}

enum options_result options_parse(int argc, char **argv, struct migrate_options *ret,
				  struct cr_err *err)
{
	struct migrate_options o = {.cgroup = "", .freeze_cgroup = ""};
	int id, index = 0;

	msg_opts_default(&o.opts);
	optind = 0; /* GNU: start anew, also in a process that parsed before, getopt(3) */
	opterr = 0;
	while ((id = getopt_long(argc, argv, ":", longopts, &index)) != -1) {
		if (id == OPT_HELP || id == OPT_VERSION) {
			id == OPT_HELP ? cli_usage(true) : cli_version();
			return OPTIONS_SHOWN;
		}
		if (id == ':')
			bad(err, "%s needs a value", argv[optind - 1]);
		else if (id == '?' && optopt)
			bad(err, "unknown option -%c", optopt);
		else if (id == '?')
			bad(err, "unknown option %s", argv[optind - 1]);
		if (id == ':' || id == '?')
			return OPTIONS_BAD;
		if (take_switch(&o, id))
			continue;
		if (take_value(&o, id, optarg, err) < 0) {
			cr_err_ctx(err, "--%s", longopts[index].name);
			return OPTIONS_BAD;
		}
	}
	if (take_hosts(&o, argc - optind, argv + optind, err) < 0 || check(&o, err) < 0)
		return OPTIONS_BAD;
	*ret = o;
	return OPTIONS_RUN;
}
