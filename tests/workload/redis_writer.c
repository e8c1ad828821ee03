/* Writes numbered keys to a Redis as fast as it can and remembers which were acknowledged.
 *
 *   redis_writer --host IP [--port N] [--prefix P] [--value-bytes N] [--count N] --out FILE
 *   redis_writer --host IP [--port N] --verify FILE
 *
 * Key P:N has a value that follows from N alone. Writing goes on until SIGTERM or --count; a
 * connection that breaks is opened again, and what was in flight on it counts as unknown: those
 * numbers are neither written again nor expected. FILE then says, a line each: `prefix P`,
 * `value-bytes N`, `acked N`, `unknown N`, `reconnects N`, `longest-stall-us N` (the longest time
 * without an acknowledgement), and a `range FIRST LAST` for every run of acknowledged numbers.
 * READY is printed at the first acknowledgement. --verify reads every acknowledged key back and
 * compares: exit 0 if all are right. */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PIPELINE = 64, MAX_VALUE = 65536, CONNECT_MS = 200, REPLY_MS = 3000, RETRY_US = 1000 };

struct options {
	const char *host, *prefix, *out, *verify;
	int port;
	size_t value_bytes;
	uint64_t count; /* 0: no end */
};

struct range {
	uint64_t first, last;
};

struct writer {
	const struct options *opt;
	redisContext *redis; /* NULL while there is no connection */
	uint64_t next;       /* number of the next key */
	uint64_t in_flight;  /* the last in_flight numbers before next are sent, not acknowledged */
	uint64_t acked, unknown, reconnects;
	uint64_t last_ack_us, longest_stall_us;
	struct range *ranges;
	size_t n_ranges, cap_ranges;
};

static volatile sig_atomic_t stop;

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

/* splitmix64, seeded by the number: does not compress. */
static void fill_value(char *buf, size_t len, uint64_t number)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t x = (number + 1) * 0xd1342543de82ef95ull + i * 0x9e3779b97f4a7c15ull;

		x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
		x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
		x ^= x >> 31;
		memcpy(buf + i, &x, len - i < 8 ? len - i : 8);
	}
}

static redisContext *open_redis(const struct options *opt)
{
	const struct timeval connect = {.tv_usec = CONNECT_MS * 1000};
	const struct timeval reply = {.tv_sec = REPLY_MS / 1000};
	redisContext *c = redisConnectWithTimeout(opt->host, opt->port, connect);

	if (c && !c->err && redisSetTimeout(c, reply) == REDIS_OK)
		return c;
	if (c)
		redisFree(c);
	return NULL;
}

static void remember(struct writer *w, uint64_t number)
{
	struct range *r = w->n_ranges ? &w->ranges[w->n_ranges - 1] : NULL;

	w->acked++;
	if (r && r->last + 1 == number) {
		r->last = number;
		return;
	}
	if (w->n_ranges == w->cap_ranges) {
		w->cap_ranges = w->cap_ranges ? 2 * w->cap_ranges : 64;
		w->ranges = reallocarray(w->ranges, w->cap_ranges, sizeof(*w->ranges));
		if (!w->ranges)
			err(1, "out of memory");
	}
	w->ranges[w->n_ranges++] = (struct range){number, number};
}

static void note_ack_time(struct writer *w)
{
	uint64_t now = now_us();

	if (!w->last_ack_us) {
		printf("READY\n");
		fflush(stdout);
	} else if (now - w->last_ack_us > w->longest_stall_us) {
		w->longest_stall_us = now - w->last_ack_us;
	}
	w->last_ack_us = now;
}

static void drop_connection(struct writer *w)
{
	redisFree(w->redis);
	w->redis = NULL;
	w->unknown += w->in_flight;
	w->in_flight = 0;
	w->reconnects++;
}

/* False when there is no connection yet: try again. The server may be on its way to another host.
 */
static bool connected(struct writer *w)
{
	const struct timespec pause = {.tv_nsec = RETRY_US * 1000};

	if (!w->redis)
		w->redis = open_redis(w->opt);
	if (!w->redis)
		nanosleep(&pause, NULL);
	return w->redis != NULL;
}

static bool send_batch(struct writer *w, uint64_t n)
{
	char value[MAX_VALUE];
	int done = 0;

	for (; n; n--) {
		fill_value(value, w->opt->value_bytes, w->next);
		if (redisAppendCommand(w->redis, "SET %s:%llu %b", w->opt->prefix,
				       (unsigned long long)w->next, value,
				       w->opt->value_bytes) != REDIS_OK)
			errx(1, "out of memory");
		w->next++;
		w->in_flight++;
	}
	while (!done)
		if (redisBufferWrite(w->redis, &done) != REDIS_OK)
			return false;
	return true;
}

/* A Redis that answers with an error breaks the test, not the connection. */
static bool receive_one(struct writer *w)
{
	redisReply *reply = NULL;

	if (redisGetReply(w->redis, (void **)&reply) != REDIS_OK)
		return false;
	if (reply->type != REDIS_REPLY_STATUS || strcmp(reply->str, "OK") != 0)
		errx(1, "key %" PRIu64 ": Redis says: %s", w->next - w->in_flight,
		     reply->str ? reply->str : "something else than OK");
	freeReplyObject(reply);
	remember(w, w->next - w->in_flight);
	w->in_flight--;
	note_ack_time(w);
	return true;
}

static void save(const struct writer *w)
{
	FILE *f = fopen(w->opt->out, "w");

	if (!f)
		err(1, "%s", w->opt->out);
	fprintf(f, "prefix %s\nvalue-bytes %zu\n", w->opt->prefix, w->opt->value_bytes);
	fprintf(f, "acked %" PRIu64 "\nunknown %" PRIu64 "\nreconnects %" PRIu64 "\n", w->acked,
		w->unknown, w->reconnects);
	fprintf(f, "longest-stall-us %" PRIu64 "\n", w->longest_stall_us);
	for (size_t i = 0; i < w->n_ranges; i++)
		fprintf(f, "range %" PRIu64 " %" PRIu64 "\n", w->ranges[i].first,
			w->ranges[i].last);
	if (fclose(f))
		err(1, "%s", w->opt->out);
}

static uint64_t batch_size(const struct writer *w)
{
	uint64_t left = w->opt->count ? w->opt->count - w->next : PIPELINE;

	return left < PIPELINE ? left : PIPELINE;
}

static int write_keys(const struct options *opt)
{
	struct writer w = {.opt = opt};

	while (!stop && batch_size(&w)) {
		bool ok;

		if (!connected(&w))
			continue;
		ok = send_batch(&w, batch_size(&w));
		while (ok && w.in_flight)
			ok = receive_one(&w);
		if (!ok)
			drop_connection(&w);
	}
	save(&w);
	if (w.redis)
		redisFree(w.redis);
	free(w.ranges);
	return 0;
}

/* ---- reading back ---- */

struct check {
	redisContext *redis;
	char prefix[64];
	size_t value_bytes;
	uint64_t right, missing, wrong;
};

static void check_reply(struct check *c, uint64_t number)
{
	char value[MAX_VALUE];
	redisReply *reply = NULL;

	if (redisGetReply(c->redis, (void **)&reply) != REDIS_OK)
		errx(1, "reading key %" PRIu64 " back: %s", number, c->redis->errstr);
	fill_value(value, c->value_bytes, number);
	if (reply->type == REDIS_REPLY_NIL)
		c->missing++;
	else if (reply->type != REDIS_REPLY_STRING || reply->len != c->value_bytes ||
		 memcmp(reply->str, value, reply->len) != 0)
		c->wrong++;
	else
		c->right++;
	if (reply->type == REDIS_REPLY_NIL && c->missing == 1)
		warnx("%s:%" PRIu64 " is missing", c->prefix, number);
	freeReplyObject(reply);
}

static void check_range(struct check *c, uint64_t first, uint64_t last)
{
	for (uint64_t at = first; at <= last; at += PIPELINE) {
		uint64_t n = last - at + 1 < PIPELINE ? last - at + 1 : PIPELINE;

		for (uint64_t i = 0; i < n; i++)
			redisAppendCommand(c->redis, "GET %s:%llu", c->prefix,
					   (unsigned long long)(at + i));
		for (uint64_t i = 0; i < n; i++)
			check_reply(c, at + i);
	}
}

static int verify_keys(const struct options *opt)
{
	struct check c = {.redis = open_redis(opt)};
	uint64_t acked = 0, first, last;
	char line[256];
	FILE *f = fopen(opt->verify, "r");

	if (!f)
		err(1, "%s", opt->verify);
	if (!c.redis)
		errx(1, "no connection to %s port %d", opt->host, opt->port);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "prefix %63s", c.prefix) == 1 ||
		    sscanf(line, "value-bytes %zu", &c.value_bytes) == 1 ||
		    sscanf(line, "acked %" SCNu64, &acked) == 1)
			continue;
		if (c.value_bytes > MAX_VALUE)
			errx(1, "%s: value too long", opt->verify);
		if (sscanf(line, "range %" SCNu64 " %" SCNu64, &first, &last) == 2)
			check_range(&c, first, last);
	}
	fclose(f);
	redisFree(c.redis);
	printf("acked %" PRIu64 " right %" PRIu64 " missing %" PRIu64 " wrong %" PRIu64 "\n", acked,
	       c.right, c.missing, c.wrong);
	return acked && c.right == acked && !c.missing && !c.wrong ? 0 : 1;
}

static struct options parse_options(int argc, char **argv)
{
	enum { HOST = 1, PORT, PREFIX, BYTES, COUNT, OUT, VERIFY };
	static const struct option longs[] = {
	    {"host", required_argument, NULL, HOST},
	    {"port", required_argument, NULL, PORT},
	    {"prefix", required_argument, NULL, PREFIX},
	    {"value-bytes", required_argument, NULL, BYTES},
	    {"count", required_argument, NULL, COUNT},
	    {"out", required_argument, NULL, OUT},
	    {"verify", required_argument, NULL, VERIFY},
	    {0},
	};
	struct options o = {.port = 6379, .prefix = "key", .value_bytes = 32};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case HOST:
			o.host = optarg;
			break;
		case PORT:
			o.port = (int)strtol(optarg, NULL, 10);
			break;
		case PREFIX:
			o.prefix = optarg;
			break;
		case BYTES:
			o.value_bytes = strtoul(optarg, NULL, 10);
			break;
		case COUNT:
			o.count = strtoull(optarg, NULL, 10);
			break;
		case OUT:
			o.out = optarg;
			break;
		case VERIFY:
			o.verify = optarg;
			break;
		default:
			exit(2);
		}
	}
	if (!o.host || !o.out == !o.verify || o.value_bytes > MAX_VALUE || strlen(o.prefix) > 63)
		errx(2, "usage: redis_writer --host IP [--port N] --out FILE | --verify FILE");
	return o;
}

int main(int argc, char **argv)
{
	const struct options o = parse_options(argc, argv);
	const struct sigaction sa = {.sa_handler = on_term};

	if (o.verify)
		return verify_keys(&o);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	return write_keys(&o);
}
