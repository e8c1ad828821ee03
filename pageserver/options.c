#include "pageserver/options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "base/version.h"
#include "wire/page_stream.h"
#include "wire/token_file.h"

static const char usage[] =
    "usage: page-server --listen ADDR:PORT --control unix:PATH [OPTION…]\n"
    "       page-server --listen ADDR:PORT --dir DIR [OPTION…]\n"
    "\n"
    "Takes memory pages of migrating processes from the network and puts them into the\n"
    "processes being rebuilt on this host, as the local agent directs; or, with --dir, takes\n"
    "whole migrations (cr-agent pre-dump, cr-agent dump) into images below DIR.\n"
    "\n"
    "  --listen ADDR:PORT     where page streams come in; [ADDR]:PORT for IPv6, port 0: any;\n"
    "                         without it, the socket that a service manager passes\n"
    "  --control unix:PATH    socket for the agents of this host, made with mode 0600\n"
    "  --dir DIR              keep images, each in a directory of its own below this one\n"
    "  --token-file FILE      64 hexadecimal digits that sources must know (--dir); without it\n"
    "                         only connections from this host are taken\n"
    "  --no-token             with --dir: anybody who can connect may write images\n"
    "  --max-connections N    connections at most (default 64)\n"
    "  --max-memory SIZE      for the indices of the images being received (default 512M)\n"
    "  --max-disk SIZE        of pages in the images being received (default: no limit)\n"
    "  --no-sync              do not wait for the disk: images do not survive a crash of the host\n"
    "  --verbose              say more\n"
    "  --version, --help\n"
    "\n"
    "SIZE is in bytes, or with K, M, G, T in powers of 1024.\n";

static bool parse_size(const char *text, uint64_t *ret)
{
	static const char units[] = "KMGT";
	char *end;
	unsigned long long n = strtoull(text, &end, 10);
	const char *u = *end ? strchr(units, *end) : NULL;

	if (end == text || *text == '-' || (*end && (!u || end[1])))
		return false;
	unsigned int shift = u ? 10 * (unsigned int)(u - units + 1) : 0;
	*ret = n << shift;
	return *ret >> shift == n;
}

static int wrong(const char *option, const char *value, const char *needed)
{
	log_error("--%s %s: %s", option, value, needed);
	return 2;
}

static const struct option longopts[] = {
    {"listen", required_argument, NULL, 'l'},
    {"control", required_argument, NULL, 'c'},
    {"dir", required_argument, NULL, 'd'},
    {"token-file", required_argument, NULL, 't'},
    {"no-token", no_argument, NULL, 'n'},
    {"max-connections", required_argument, NULL, 'm'},
    {"max-memory", required_argument, NULL, 'M'},
    {"max-disk", required_argument, NULL, 'D'},
    {"no-sync", no_argument, NULL, 's'},
    {"verbose", no_argument, NULL, 'v'},
    {"version", no_argument, NULL, 'V'},
    {"help", no_argument, NULL, 'h'},
    {0},
};

static int take_number(struct options *o, const char *value)
{
	char *end;

	o->max_connections = (unsigned int)strtoul(value, &end, 10);
	if (*end || !o->max_connections || o->max_connections > 4096)
		return wrong("max-connections", value, "a number from 1 to 4096 is needed");
	return -1;
}

static int take_size(const char *option, const char *value, uint64_t *ret)
{
	return parse_size(value, ret) ? -1 : wrong(option, value, "a size is needed, such as 512M");
}

static int take_token(struct options *o, const char *path)
{
	struct cr_err err = {0};

	o->guarded = true;
	if (!token_file_read(path, &o->token, &err))
		return -1;
	log_error("%s", err.msg);
	return 2;
}

/* Returns -1 to go on, else the exit code. */
static int take_option(struct options *o, int c, const char *value)
{
	switch (c) {
	case 'l':
		o->listen = value;
		return -1;
	case 'c':
		o->control = value;
		return -1;
	case 'd':
		o->dir = value;
		return -1;
	case 't':
		return take_token(o, value);
	case 'n':
		o->guarded = true;
		return -1;
	case 'm':
		return take_number(o, value);
	case 'M':
		return take_size("max-memory", value, &o->max_memory);
	case 'D':
		return take_size("max-disk", value, &o->max_disk);
	case 's':
		o->no_sync = true;
		return -1;
	case 'v':
		log_set_level(LOG_LVL_DEBUG);
		return -1;
	case 'V':
		printf("page-server %s, page stream version %d\n", CR_VERSION, PAGE_STREAM_VERSION);
		return 0;
	case 'h':
		fputs(usage, stdout);
		return 0;
	default:
		fputs(usage, stderr);
		return 2;
	}
}

/* sd_listen_fds(3): the variables are for the process that they name. */
static bool socket_passed(void)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");

	return pid && n && strtol(pid, NULL, 10) == getpid() && !strcmp(n, "1");
}

int options_parse(struct options *o, int argc, char **argv)
{
	int c, r = -1;

	*o = (struct options){.max_connections = 64, .max_memory = 512 << 20};
	token_none(&o->token);
	while (r < 0 && (c = getopt_long(argc, argv, "", longopts, NULL)) != -1)
		r = take_option(o, c, optarg);
	if (r >= 0)
		return r;
	if (optind < argc || (!o->listen && !socket_passed()) || (!o->control == !o->dir) ||
	    (o->control && strncmp(o->control, "unix:", 5))) {
		fputs(usage, stderr);
		return 2;
	}
	if (o->control)
		o->control += 5;
	return -1;
}
