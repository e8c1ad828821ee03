/* A stage for cr-migrate: two agents that play parts, a hosts file, and the program with its
 * output. */
#pragma once
#include "fake_agent.h"

#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <sys/stat.h>

struct stage {
	char dir[32], hosts[64], program[256];
	struct fake alpha, beta;
};

static struct stage *stage;

static inline int stage_up(void **state)
{
	static struct stage s;
	char exe[200] = "";

	(void)state;
	s = (struct stage){.dir = "/tmp/cliXXXXXX"};
	stage = &s;
	if (!mkdtemp(s.dir) || readlink("/proc/self/exe", exe, sizeof(exe) - 1) < 0)
		return -1;
	snprintf(s.program, sizeof(s.program), "%s/../../cr-migrate", dirname(exe));
	snprintf(s.hosts, sizeof(s.hosts), "%s/hosts", s.dir);
	FILE *f = fopen(s.hosts, "w");
	if (!f)
		return -1;
	fprintf(f, "# the stage\nalpha unix:%s/alpha.sock\nbeta unix:%s/beta.sock # there\n", s.dir,
		s.dir);
	fprintf(f, "gamma 10.0.0.3:7710\ndelta ssh://root@delta\n");
	return fclose(f);
}

static inline int stage_down(void **state)
{
	(void)state;
	fake_stop(&stage->alpha);
	fake_stop(&stage->beta);
	unlink(stage->hosts);
	return rmdir(stage->dir);
}

typedef bool (*part)(struct fake *, struct link *, const struct msg *);

static inline void cast(part alpha, part beta)
{
	fake_start(&stage->alpha, "alpha", stage->dir, alpha);
	fake_start(&stage->beta, "beta", stage->dir, beta);
}

struct run {
	pid_t pid;
	int out, err_fd;
	char text[16384]; /* of standard output */
	size_t len;
	char err[8192];
	int code;
};

static inline void begin(struct run *r, char **args)
{
	char *argv[24] = {stage->program};
	int out[2];

	*r = (struct run){0};
	for (int i = 0; args[i]; i++)
		argv[i + 1] = args[i];
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	r->err_fd = memfd_create("stderr", MFD_CLOEXEC);
	r->pid = fork();
	if (r->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setenv("CR_MIGRATE_HOSTS", stage->hosts, 1);
		dup2(out[1], STDOUT_FILENO);
		dup2(r->err_fd, STDERR_FILENO);
		execv(stage->program, argv);
		_exit(127);
	}
	close(out[1]);
	r->out = out[0];
}

/* Reads on until text is there; NULL: to the end. */
static inline void read_until(struct run *r, const char *text)
{
	while (!text || !strstr(r->text, text)) {
		ssize_t n = read(r->out, r->text + r->len, sizeof(r->text) - 1 - r->len);

		if (n <= 0 && !text)
			return;
		if (n <= 0)
			fail_msg("'%s' never came; but: %s", text, r->text);
		r->len += (size_t)n;
		r->text[r->len] = 0;
	}
}

static inline void finish(struct run *r)
{
	int status;

	read_until(r, NULL);
	assert_int_equal(waitpid(r->pid, &status, 0), r->pid);
	close(r->out);
	ssize_t n = pread(r->err_fd, r->err, sizeof(r->err) - 1, 0);
	assert_true(n >= 0);
	close(r->err_fd);
	assert_true(WIFEXITED(status));
	r->code = WEXITSTATUS(status);
}

#define ARGS(...)                                                                                  \
	(char *[])                                                                                 \
	{                                                                                          \
		__VA_ARGS__, NULL                                                                  \
	}

#define RUN(r, ...)                                                                                \
	do {                                                                                       \
		begin((r), ARGS(__VA_ARGS__));                                                     \
		finish(r);                                                                         \
	} while (0)

#define HAS(text, part)                                                                            \
	do {                                                                                       \
		if (!strstr((text), (part)))                                                       \
			fail_msg("no '%s' in: %s", (part), (text));                                \
	} while (0)

#define MOVE "alpha->beta", "--pid", "4242"

#define STAGED(f) cmocka_unit_test_setup_teardown(f, stage_up, stage_down)

/* ---- parts that several tests have ---- */

static inline bool play_dest(struct fake *f, struct link *l, const struct msg *m)
{
	if (m->type == MSG_RECEIVE)
		return fake_receive(f, l, m);
	if (m->type == MSG_QUERY)
		return fake_state(l, MSG_STATE_PREPARING);
	return false;
}

static inline bool send_rounds(struct link *l)
{
	for (uint32_t i = 1; i <= 2; i++) {
		struct msg m = {.type = MSG_ROUND,
				.round = {.round = i,
					  .pages_written = 4000 / i,
					  .pages_sent = 3000 / i,
					  .bytes_wire = 12000000 / i,
					  .duration_us = 5000 / i,
					  .rate = 2400000000,
					  .predicted_downtime_us = 900 / i}};

		if (!fake_send(l, m))
			return false;
	}
	return true;
}

static inline struct msg done_of(enum msg_outcome o)
{
	return (struct msg){.type = MSG_DONE,
			    .done = {.outcome = o,
				     .downtime_us = 2150,
				     .total_us = 84000,
				     .phases = {100, 200, 300, 400, 500, 650},
				     .memory_bytes = 268435456,
				     .stop_pages = 1234,
				     .stops = 1,
				     .longest_stop_us = 480}};
}

static inline struct msg failure(enum msg_outcome o)
{
	struct msg m = done_of(o);

	m.done.error = (struct cr_err){.kind = CR_ERR_PEER,
				       .code = ECONNRESET,
				       .stage = "last pages",
				       .pid = 4250,
				       .msg = "the page-server went away"};
	return m;
}

static inline bool play_source(struct fake *f, struct link *l, const struct msg *m)
{
	static struct msg_note note = {"alpha", 4242, "process 17",
				       "outside of the cgroup; it moves too"};
	struct msg warning = {.type = MSG_WARNING, .warning = {&note, 1}};

	if (m->type != MSG_MIGRATE)
		return false;
	fake_note_migrate(f, m);
	return fake_event(l, "check", "1 process, 5 threads") && fake_send(l, warning) &&
	       send_rounds(l) && fake_event(l, "commit", "") &&
	       fake_send(l, done_of(MSG_OUTCOME_MIGRATED));
}

/* ---- JSON ---- */

static inline json_t *last_line(const char *text)
{
	_cleanup_free_ char *copy = strdup(text);
	json_t *last = NULL;
	char *save;

	for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		json_error_t e;

		json_decref(last);
		last = json_loads(line, JSON_REJECT_DUPLICATES, &e);
		if (!last)
			fail_msg("%s: %s", e.text, line);
		assert_true(json_is_string(json_object_get(last, "event")));
	}
	return last;
}

/* The keys, in this order and no others. */
static inline void has_keys(json_t *object, const char *const *keys)
{
	const char *key;
	json_t *value;
	size_t i = 0;

	json_object_foreach(object, key, value)
	{
		assert_non_null(keys[i]);
		assert_string_equal(key, keys[i]);
		i++;
	}
	assert_null(keys[i]);
}

static inline const char *text_of(json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

static inline json_int_t number_of(json_t *object, const char *key)
{
	assert_true(json_is_integer(json_object_get(object, key)));
	return json_integer_value(json_object_get(object, key));
}

static inline void has_shape(json_t *done)
{
	static const char *const keys[] = {"event",      "outcome", "migration", "downtime_us",
					   "total_us",   "rounds",  "phases_us", "memory_bytes",
					   "stop_pages", "error",   NULL};
	static const char *const phases[] = {"freeze", "last_pages", "capture", "rebuild",
					     "launch", "commit",     NULL};
	static const char *const round[] = {"round",      "pages_written", "pages_sent",
					    "bytes_wire", "duration_us",   NULL};
	static const char *const error[] = {"kind", "code", "stage", "pid", "message", NULL};

	has_keys(done, keys);
	has_keys(json_object_get(done, "phases_us"), phases);
	for (size_t i = 0; i < json_array_size(json_object_get(done, "rounds")); i++)
		has_keys(json_array_get(json_object_get(done, "rounds"), i), round);
	if (!json_is_null(json_object_get(done, "error")))
		has_keys(json_object_get(done, "error"), error);
	assert_string_equal(text_of(done, "event"), "done");
	assert_int_equal(strlen(text_of(done, "migration")), 32);
}
