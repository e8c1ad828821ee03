#include "pageserver/options.h"

#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "base/version.h"
#include "migrate/units.h"
#include "wire/page_stream.h"
#include "wire/token_file.h"

static const char usage[] =
    "usage: page-server --listen ADDR:PORT --control unix:PATH [OPTION…]\n"
    "       page-server --listen ADDR:PORT --dir DIR [OPTION…]\n"
    "       page-server --serve --dir DIR [--listen ADDR:PORT] [OPTION…]\n"
    "       page-server --tasks N (by cr-agent)\n"
    "\n"
    "Takes memory pages of migrating processes from the network and puts them into the\n"
    "processes being rebuilt on this host, as the local agent directs; or, with --dir, takes\n"
    "whole migrations (cr-agent pre-dump, cr-agent dump) into images below DIR; or, with\n"
    "--serve, gives pages out of these images to tasks that run already (cr-agent restore\n"
    "--lazy=HOST:PORT). With --dir it needs no privilege at all. With --tasks it serves pages\n"
    "of tasks that stand still at the source, or takes what is pushed at the destination, for\n"
    "the agent that starts it.\n"
    "\n"
    "  --listen ADDR:PORT     where connections come in; a name, an address, [ADDR]:PORT for\n"
    "                         IPv6; port 0: any. Without it the socket that a service manager\n"
    "                         passes (sd_listen_fds(3)), or of --serve 127.0.0.1:7711\n"
    "  --control unix:PATH    socket for the agents of this host, made with mode 0600\n"
    "  --dir DIR              images, each in a directory of its own below this one\n"
    "  --serve                only read them\n"
    "  --tasks N              an agent's socket, descriptor N, by which it hands over all else\n"
    "  --token-file FILE      with --dir: 64 hexadecimal digits that others must know\n"
    "  --no-token             with --dir: anybody who can connect is welcome\n"
    "  --threads WHEN         place pages by threads of their own: yes, no or auto (default), "
    "where\n"
    "                         there are more than two processors, or a disk to wait for\n"
    "  --user NAME            with --dir, started by root: run as that user\n"
    "  --no-sandbox           leave out the filter of system calls, to look for a fault\n"
    "  --status-fd N          write to descriptor N what happens, one JSON object a line\n"
    "  --config FILE          more options: lines of NAME = VALUE (or NAME alone), named as\n"
    "                         here, # for comments; the command line goes before\n"
    "  --version, --help\n"
    "\n"
    "SIGTERM or SIGINT: migrations that are about to be decided are waited for (10 s), the others\n"
    "are told; what they have sent is kept. SIGHUP reads the file again; these then take effect:\n"
    "\n"
    "  --max-connections N    connections at most, 1 to 4096 (default 256)\n"
    "  --max-half-open N      of them, that have not yet said who they are, 1 to 512 (default\n"
    "                         64): one of the address that has most gives way; each has 5 s\n"
    "  --max-memory SIZE      with --dir: for pages on their way, trees and the indices of\n"
    "                         images being received (default 512M)\n"
    "  --max-disk SIZE        with --dir: of pages in images being received (default: no limit)\n"
    "  --max-bandwidth RATE   that is taken from the network, all together, such as 100M or\n"
    "                         1Gbit (default: no limit); of --serve, for each restore, of\n"
    "                         what was not asked for\n"
    "  --idle-timeout T       with --dir: a migration from which nothing has come for that long\n"
    "                         is ended (default 900s)\n"
    "  --no-sync              do not wait for the disk: images do not survive a crash of the host\n"
    "  --verbose              say more\n"
    "  --token-file           is read again, too\n"
    "\n"
    "SIZE is in bytes, or with K, M, G, T in powers of 1024.\n";

static const struct option longopts[] = {
    {"listen", required_argument, NULL, 'l'},
    {"control", required_argument, NULL, 'c'},
    {"dir", required_argument, NULL, 'd'},
    {"serve", no_argument, NULL, 'S'},
    {"tasks", required_argument, NULL, 'K'},
    {"token-file", required_argument, NULL, 't'},
    {"no-token", no_argument, NULL, 'n'},
    {"threads", required_argument, NULL, 'T'},
    {"user", required_argument, NULL, 'u'},
    {"no-sandbox", no_argument, NULL, 'x'},
    {"status-fd", required_argument, NULL, 'f'},
    {"config", required_argument, NULL, 'C'},
    {"max-connections", required_argument, NULL, 'm'},
    {"max-half-open", required_argument, NULL, 'H'},
    {"max-memory", required_argument, NULL, 'M'},
    {"max-disk", required_argument, NULL, 'D'},
    {"max-bandwidth", required_argument, NULL, 'B'},
    {"idle-timeout", required_argument, NULL, 'i'},
    {"no-sync", no_argument, NULL, 's'},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static int parse_size(const char *text, uint64_t *ret, struct cr_err *err)
{
	static const char units[] = "KMGT";
	char *end;
	unsigned long long n = strtoull(text, &end, 10);
	const char *u = *end ? strchr(units, *end) : NULL;
	unsigned int shift = u ? 10 * (unsigned int)(u - units + 1) : 0;

	if (end == text || !isdigit((unsigned char)*text) || (*end && (!u || end[1])) ||
	    n << shift >> shift != n)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "'%s' is not a size: expected one like 512M", text);
	*ret = n << shift;
	return 0;
}

static int parse_count(const char *text, unsigned int max, unsigned int *ret, struct cr_err *err)
{
	uint64_t n;
	int r = units_parse_number(text, 1, max, &n, err);

	if (!r)
		*ret = (unsigned int)n;
	return r;
}

static int parse_fd(const char *text, int *ret, struct cr_err *err)
{
	uint64_t n;
	int r = units_parse_number(text, 0, 1 << 20, &n, err);

	if (!r)
		*ret = (int)n;
	return r;
}

static int parse_when(struct options *o, const char *text, struct cr_err *err)
{
	static const char *const names[] = {
	    [THREADS_AUTO] = "auto", [THREADS_YES] = "yes", [THREADS_NO] = "no"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(text, names[i])) {
			o->threads = i;
			return 0;
		}
	return cr_err_set(err, CR_ERR_INPUT, EINVAL, "'%s' is none of auto, yes, no", text);
}

/* One option, wherever it was found. */
static int take_option(struct options *o, int c, const char *value, struct cr_err *err)
{
	switch (c) {
	case 'l':
		o->listen = value;
		return 0;
	case 'c':
		o->control = value;
		return 0;
	case 'd':
		o->dir = value;
		return 0;
	case 'S':
		o->serve = true;
		return 0;
	case 't':
		o->token_file = value;
		return 0;
	case 'n':
		o->no_token = true;
		return 0;
	case 'T':
		return parse_when(o, value, err);
	case 'u':
		o->user = value;
		return 0;
	case 'K':
		return parse_fd(value, &o->tasks, err);
	case 'x':
		o->no_sandbox = true;
		return 0;
	case 'f':
		return parse_fd(value, &o->status_fd, err);
	case 'C':
		o->config = value;
		return 0;
	case 'm':
		return parse_count(value, 4096, &o->max_connections, err);
	case 'H':
		return parse_count(value, 512, &o->max_half_open, err);
	case 'M':
		return parse_size(value, &o->max_memory, err);
	case 'D':
		return parse_size(value, &o->max_disk, err);
	case 'B':
		return units_parse_rate(value, &o->max_bandwidth, err);
	case 'i':
		return units_parse_duration(value, &o->idle_timeout_us, err);
	case 's':
		o->no_sync = true;
		return 0;
	case 'v':
		o->verbose = true;
		return 0;
	default:
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "not an option of ours");
	}
}

/* ---- the configuration file ---- */

static const struct option *find_option(const char *name)
{
	for (const struct option *p = longopts; p->name; p++)
		if (!strcmp(p->name, name))
			return strchr("CVh", p->val) ? NULL : p;
	return NULL;
}

static char *trimmed(char *s)
{
	char *end = s + strlen(s);

	while (end > s && isspace((unsigned char)end[-1]))
		end--;
	*end = 0;
	return s + strspn(s, " \t");
}

static int take_line(struct options *o, char *line, struct cr_err *err)
{
	char *hash = strchr(line, '#'), *eq;

	if (hash)
		*hash = 0;
	eq = strchr(line, '=');
	if (eq)
		*eq = 0;
	char *name = trimmed(line), *value = eq ? trimmed(eq + 1) : NULL;
	if (!*name && !eq)
		return 0;
	const struct option *p = find_option(name);
	if (!p)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "no option '%s'", name);
	if (p->has_arg != (value ? required_argument : no_argument))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  value ? "%s takes no value" : "%s needs a value", name);
	char *copy = value ? strdup(value) : NULL, **slot = copy ? vec_push(&o->strings) : NULL;
	if (value && !slot) {
		free(copy);
		return cr_err_oom(err);
	}
	if (slot)
		*slot = copy;
	return take_option(o, p->val, copy, err);
}

static int read_config(struct options *o, const char *path, struct cr_err *err)
{
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t cap = 0;
	int r = 0;

	if (!f)
		return cr_err_sys(err, "--config %s", path);
	for (int n = 1; !r && getline(&line, &cap, f) >= 0; n++) {
		r = take_line(o, line, err);
		if (r)
			cr_err_ctx(err, "%s, line %d", path, n);
	}
	free(line);
	fclose(f);
	return r;
}

/* ---- all of it ---- */

/* sd_listen_fds(3): the variables are for the process that they name. */
static bool socket_passed(void)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");

	return pid && n && strtol(pid, NULL, 10) == getpid() && !strcmp(n, "1");
}

static int check(struct options *o, struct cr_err *err)
{
	bool passed = socket_passed();

	if (o->tasks >= 0 && (o->listen || o->control || o->dir))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "--tasks is all that there is");
	if (o->tasks >= 0)
		return 0;
	if (o->serve && !o->listen && !passed)
		o->listen = "127.0.0.1:7711";
	if (!o->listen && !passed)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "where to listen? Expected --listen, or one socket by "
				  "sd_listen_fds(3)");
	if (!o->control == !o->dir)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "either --control or --dir");
	if (o->control && (o->serve || o->user || o->token_file || o->no_token))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "--serve, --user and tokens go with --dir");
	if (o->control && strncmp(o->control, "unix:", 5))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "--control unix:PATH");
	if (o->control)
		o->control += 5;
	o->guarded = o->no_token || o->token_file;
	return o->token_file ? token_file_read(o->token_file, &o->token, err) : 0;
}

/* Returns -1 to go on. pass 0: only what the file's name is. */
static int take_command_line(struct options *o, int argc, char **argv, bool all, struct cr_err *err)
{
	int c, index = 0;

	optind = 0; /* GNU: from the start, getopt(3) */
	opterr = all;
	while ((c = getopt_long(argc, argv, "", longopts, &index)) != -1) {
		if (c == 'h') {
			fputs(usage, stdout);
			return 0;
		}
		if (c == 'V') {
			printf("page-server %s, page stream version %d\n", CR_VERSION,
			       PAGE_STREAM_VERSION);
			return 0;
		}
		if (c == '?') {
			cr_err_set(err, CR_ERR_INPUT, EINVAL, "see page-server --help");
			return 2;
		}
		if ((all || c == 'C') && take_option(o, c, optarg, err)) {
			cr_err_ctx(err, "--%s", longopts[index].name);
			return 2;
		}
	}
	if (optind == argc)
		return -1;
	cr_err_set(err, CR_ERR_INPUT, EINVAL, "what is '%s' for?", argv[optind]);
	return 2;
}

int options_parse(struct options *o, int argc, char **argv)
{
	struct cr_err err = {0};

	*o = (struct options){.max_connections = 256,
			      .max_half_open = 64,
			      .max_memory = 512 << 20,
			      .idle_timeout_us = 900 * 1000000ull,
			      .tasks = -1,
			      .status_fd = -1};
	token_none(&o->token);
	int r = take_command_line(o, argc, argv, false, &err);
	if (r < 0 && o->config && read_config(o, o->config, &err))
		r = 2;
	if (r < 0)
		r = take_command_line(o, argc, argv, true, &err);
	if (r < 0 && check(o, &err))
		r = 2;
	if (err.code)
		log_error("%s", err.msg);
	return r;
}

void options_done(struct options *o)
{
	vec_foreach (s, &o->strings)
		free(*s);
	vec_done(&o->strings);
	explicit_bzero(&o->token, sizeof(o->token));
}
