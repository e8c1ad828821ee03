/* The verb that lists the migrations that agents know. */
#include "migrate/cli.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "migrate/agent.h"
#include "migrate/report_json.h"

#define BAR "########################################"
enum { BAR_WIDTH = sizeof(BAR) - 1 };

struct status_view {
	bool json;
	bool headed; /* the table's first line is out */
};

/* How long tasks waited for pages: a line for each power of two of microseconds. */
static void print_histogram(const uint64_t h[MSG_HISTOGRAM])
{
	unsigned int first = 0, end = MSG_HISTOGRAM;
	uint64_t most = 0;

	while (first < end && !h[first])
		first++;
	while (end > first && !h[end - 1])
		end--;
	for (unsigned int i = first; i < end; i++)
		most = h[i] > most ? h[i] : most;
	const uint64_t unit = most / BAR_WIDTH + 1;
	for (unsigned int i = first; i < end; i++) {
		/* what there is shows, however little it is */
		int bar = (int)(h[i] / unit + (h[i] % unit > 0));
		bool last = i == MSG_HISTOGRAM - 1;

		printf("  %s %10llu us %10llu  %.*s\n", last ? "above" : "below",
		       1ull << (last ? i - 1 : i), (unsigned long long)h[i], bar, BAR);
	}
}

static void print_status(struct status_view *v, const char *host, const struct msg_status *s)
{
	char hex[MIG_ID_HEX], since[32] = "?", pids[64] = "";
	time_t t = (time_t)s->since_sec;
	struct tm tm;

	if (v->json) {
		report_json_status(host, s);
		return;
	}
	mig_id_format(&s->id, hex);
	if (localtime_r(&t, &tm))
		strftime(since, sizeof(since), "%F %T", &tm);
	for (size_t i = 0; i < s->n_pids; i++) {
		size_t len = strlen(pids);

		if (len + 12 > sizeof(pids)) {
			snprintf(pids + len, sizeof(pids) - len, ",…");
			break;
		}
		snprintf(pids + len, sizeof(pids) - len, "%s%d", i ? "," : "", s->pids[i]);
	}
	if (!v->headed)
		printf("%-12s %-32s %-11s %-12s %-19s %-16s %s\n", "HOST", "MIGRATION", "ROLE",
		       "PEER", "SINCE", "PIDS", "STATE");
	v->headed = true;
	printf("%-12s %-32s %-11s %-12s %-19s %-16s %s\n", host, hex, s->role, s->peer, since, pids,
	       s->state);
	bool over = s->postcopying && !s->pages_left;
	if (s->postcopying && !over)
		printf(
		    "  fetching pages: %llu of %llu left; %llu waited for (p50 %llu us, p99 "
		    "%llu us, max %llu us), %llu pushed, %llu lost, %llu reconnects\n",
		    (unsigned long long)s->pages_left, (unsigned long long)s->postcopy.pages_lazy,
		    (unsigned long long)s->postcopy.faults, (unsigned long long)s->postcopy.p50_us,
		    (unsigned long long)s->postcopy.p99_us, (unsigned long long)s->postcopy.max_us,
		    (unsigned long long)s->postcopy.pushed, (unsigned long long)s->postcopy.lost,
		    (unsigned long long)s->postcopy.reconnects);
	if (s->postcopying && !over && s->histogram)
		print_histogram(s->histogram);
	if (s->postcopying && s->postcopy.lost)
		printf("  lost with the source: %llu pages\n",
		       (unsigned long long)s->postcopy.lost);
	for (size_t i = 0; i < s->n_losses; i++)
		printf("    %llu of process %d at %#llx-%#llx\n",
		       (unsigned long long)s->losses[i].pages, s->losses[i].pid,
		       (unsigned long long)s->losses[i].start,
		       (unsigned long long)s->losses[i].end);
}

static int ask(struct status_view *v, const struct hosts *hosts, const char *host,
	       struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_STATUS), reply;
	char address[ADDR_TEXT];
	int r = hosts_find(hosts, host, address, err);

	if (r == 0)
		r = agent_connect(&l, host, address, NULL, NULL, AGENT_TIMEOUT_MS, err);
	if (r == 0)
		r = link_call(l, &m, MSG_STATUS_LIST, AGENT_TIMEOUT_MS, &reply, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < reply.status_list.n; i++)
		print_status(v, host, &reply.status_list.v[i]);
	msg_free(&reply);
	return 0;
}

static int ask_and_say(struct status_view *v, const struct hosts *hosts, const char *host)
{
	struct cr_err err = {0};

	if (ask(v, hosts, host, &err) == 0)
		return 0;
	cli_complain("%s", err.msg);
	return EXIT_FAILED;
}

/* The hosts named; else those of the hosts file; else this one. */
static int ask_all(struct status_view *v, const struct hosts *hosts, int n, char **names)
{
	int code = 0;

	for (int i = 0; i < n; i++)
		code |= ask_and_say(v, hosts, names[i]);
	for (size_t i = 0; !n && i < hosts->list.n; i++)
		code |= ask_and_say(v, hosts, hosts->list.v[i].name);
	if (!n && !hosts->list.n)
		code |= ask_and_say(v, hosts, "local");
	if (!v->json && !v->headed && code == 0)
		printf("no migrations\n");
	return code;
}

int cmd_status(int argc, char **argv)
{
	static const struct option longopts[] = {{"json", no_argument, NULL, 'j'},
						 {"hosts", required_argument, NULL, 'f'},
						 {"help", no_argument, NULL, 'h'},
						 {0}};
	struct status_view view = {0};
	struct hosts hosts = {0};
	struct cr_err err = {0};
	const char *path = NULL;
	int id;

	opterr = 0;
	while ((id = getopt_long(argc, argv, ":", longopts, NULL)) != -1) {
		if (id == 'j') {
			view.json = true;
		} else if (id == 'f') {
			path = optarg;
		} else if (id == 'h') {
			cli_usage(true);
			return 0;
		} else {
			return cli_bad_usage(id == ':' ? "%s needs a value" : "unknown option %s",
					     argv[optind - 1]);
		}
	}
	if (hosts_read(&hosts, path, &err) < 0) {
		cli_complain("%s", err.msg);
		hosts_done(&hosts);
		return EXIT_USAGE;
	}
	int code = ask_all(&view, &hosts, argc - optind, argv + optind);
	hosts_done(&hosts);
	return code;
}
