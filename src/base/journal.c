#include "base/journal.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char *const state_names[] = {"none",   "preparing", "prepared",
					  "commit", "done",      "aborted"};

int journal_add_rename(struct journal *j, const char *from, const char *to, struct cr_err *err)
{
	if (strpbrk(from, "\t\n") || strpbrk(to, "\t\n"))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "a socket's path with tabs or newlines: %s", to);
	struct journal_rename m = {strdup(from), strdup(to)};
	struct journal_rename *slot = m.from && m.to ? vec_push(&j->renames) : NULL;
	if (!slot) {
		free(m.from);
		free(m.to);
		return cr_err_oom(err);
	}
	*slot = m;
	return 0;
}

int journal_add_carried(struct journal *j, const char *temp, const char *path, uint64_t dev,
			uint64_t ino, struct cr_err *err)
{
	if (strpbrk(path, "\t\n"))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "a file's path with tabs or newlines: %s", path);
	struct journal_carried c = {temp ? strdup(temp) : NULL, strdup(path), dev, ino};
	struct journal_carried *slot = c.path && (c.temp || !temp) ? vec_push(&j->carried) : NULL;
	if (!slot) {
		free(c.temp);
		free(c.path);
		return cr_err_oom(err);
	}
	*slot = c;
	return 0;
}

int journal_add_dir(struct journal *j, const char *path, struct cr_err *err)
{
	char *copy = strdup(path), **slot = copy ? vec_push(&j->dirs) : NULL;

	if (!slot) {
		free(copy);
		return cr_err_oom(err);
	}
	*slot = copy;
	return 0;
}

const char *journal_state_name(enum journal_state s)
{
	return (unsigned)s < ARRAY_SIZE(state_names) ? state_names[s] : "?";
}

static void path_of(char *buf, size_t n, const char *dir, const char *id, const char *role)
{
	snprintf(buf, n, "%s/%s.%s", dir, id, role);
}

static void print(FILE *f, const struct journal *j)
{
	fprintf(f, "state %s\nid %s\ntoken %s\nrole %s\npeer %s\ncgroup %s\nsince %lld\n",
		journal_state_name(j->state), j->id, j->token, j->role, *j->peer ? j->peer : "-",
		*j->cgroup ? j->cgroup : "-", (long long)j->since_sec);
	if (j->lazy)
		fputs("lazy 1\n", f);
	vec_foreach (p, &j->pids)
		fprintf(f, "pid %d %llu%s\n", p->pid, (unsigned long long)p->starttime,
			p->stopped ? " stopped" : "");
	vec_foreach (o, &j->objects)
		fprintf(f, "object %u %d %llx %llx\n", o->index, o->pid,
			(unsigned long long)o->start, (unsigned long long)o->end);
	vec_foreach (m, &j->renames)
		fprintf(f, "rename %s\t%s\n", m->from, m->to);
	vec_foreach (s, &j->shms)
		fprintf(f, "shm %d %d %d\n", s->id, s->cpid, s->kind);
	vec_foreach (d, &j->dirs)
		fprintf(f, "dir %s\n", *d);
	vec_foreach (c, &j->carried)
		fprintf(f, "carried %llu %llu\t%s\t%s\n", (unsigned long long)c->dev,
			(unsigned long long)c->ino, c->temp ? c->temp : "-", c->path);
	vec_foreach (a, &j->moved) {
		char text[DEVADDR_TEXT];

		fprintf(f, "moved %s\n", devaddr_text(a, text));
	}
	fputs("end\n", f);
}

/* Over what was there, in one write, shorter than a page in all but odd cases: a process that dies
 * does not leave half of it, and what follows "end" is of no account. Not by rename(2): replacing a
 * file so makes some file systems (ext4) write it out first, and this stands in the way of a
 * switch-over. */
int journal_write(const char *dir, const struct journal *j, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	size_t len = 0;
	char path[512];

	path_of(path, sizeof(path), dir, j->id, j->role);
	FILE *f = open_memstream(&text, &len);
	if (!f)
		return cr_err_oom(err);
	print(f, j);
	if (fclose(f))
		return cr_err_oom(err);
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || pwrite(fd, text, len, 0) != (ssize_t)len)
		return cr_err_sys(err, "writing the journal %s", path);
	return 0;
}

static void set_text(char *dst, size_t n, const char *src)
{
	snprintf(dst, n, "%s", strcmp(src, "-") ? src : "");
}

static bool parse_carried(struct journal *j, char *value)
{
	struct cr_err ignored = {0};
	unsigned long long dev, ino;
	int at = 0;

	if (sscanf(value, "%llu %llu %n", &dev, &ino, &at) != 2 || !at)
		return false;
	char *temp = value + at, *tab = strchr(temp, '\t');
	if (!tab)
		return false;
	*tab = 0;
	return !journal_add_carried(j, strcmp(temp, "-") ? temp : NULL, tab + 1, dev, ino,
				    &ignored);
}

static bool parse_line(struct journal *j, const char *key, char *value)
{
	if (!strcmp(key, "state")) {
		for (size_t i = 0; i < ARRAY_SIZE(state_names); i++)
			if (!strcmp(value, state_names[i]))
				j->state = (enum journal_state)i;
	} else if (!strcmp(key, "id")) {
		set_text(j->id, sizeof(j->id), value);
	} else if (!strcmp(key, "token")) {
		set_text(j->token, sizeof(j->token), value);
	} else if (!strcmp(key, "role")) {
		set_text(j->role, sizeof(j->role), value);
	} else if (!strcmp(key, "peer")) {
		set_text(j->peer, sizeof(j->peer), value);
	} else if (!strcmp(key, "cgroup")) {
		set_text(j->cgroup, sizeof(j->cgroup), value);
	} else if (!strcmp(key, "lazy")) {
		j->lazy = atoi(value) != 0;
	} else if (!strcmp(key, "since")) {
		j->since_sec = atoll(value);
	} else if (!strcmp(key, "pid")) {
		struct journal_pid *p = vec_push(&j->pids);
		unsigned long long start;

		if (!p || sscanf(value, "%d %llu", &p->pid, &start) != 2)
			return false;
		p->starttime = start;
		p->stopped = strstr(value, " stopped");
	} else if (!strcmp(key, "object")) {
		struct journal_object *o = vec_push(&j->objects);
		unsigned long long start, end;

		if (!o || sscanf(value, "%u %d %llx %llx", &o->index, &o->pid, &start, &end) != 4)
			return false;
		o->start = start;
		o->end = end;
	} else if (!strcmp(key, "shm")) {
		struct journal_shm *s = vec_push(&j->shms);

		if (!s || sscanf(value, "%d %d %d", &s->id, &s->cpid, &s->kind) < 2)
			return false;
	} else if (!strcmp(key, "dir")) {
		struct cr_err ignored = {0};

		return !journal_add_dir(j, value, &ignored);
	} else if (!strcmp(key, "carried")) {
		return parse_carried(j, value);
	} else if (!strcmp(key, "moved")) {
		struct cr_err ignored = {0};
		struct devaddr *a = vec_push(&j->moved);

		return a && !devaddr_parse(value, a, &ignored);
	} else if (!strcmp(key, "rename")) {
		struct cr_err ignored = {0};
		char *tab = strchr(value, '\t');

		if (!tab)
			return false;
		*tab = 0;
		return !journal_add_rename(j, value, tab + 1, &ignored);
	}
	return true;
}

static int read_file(const char *path, struct journal *ret, struct cr_err *err)
{
	_cleanup_file_ FILE *f = fopen(path, "re");
	char line[8800], key[32]; /* two paths */
	bool ended = false;
	int at;

	if (!f)
		return cr_err_sys(err, "reading the journal %s", path);
	*ret = (struct journal){0};
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		if (!strcmp(line, "end")) {
			ended = true;
			break; /* what follows is of an earlier, longer record */
		}
		if (sscanf(line, "%31s %n", key, &at) != 1 || !parse_line(ret, key, line + at)) {
			journal_done(ret);
			return cr_err_set(err, CR_ERR_IO, EBADMSG, "journal %s: bad line", path);
		}
	}
	if (ended && ret->state != JOURNAL_NONE)
		return 0;
	journal_done(ret);
	return cr_err_set(err, CR_ERR_IO, EBADMSG, "journal %s is not whole", path);
}

int journal_read(const char *dir, const char *id, const char *role, struct journal *ret,
		 struct cr_err *err)
{
	char path[512];

	path_of(path, sizeof(path), dir, id, role);
	return read_file(path, ret, err);
}

int journal_remove(const char *dir, const struct journal *j, struct cr_err *err)
{
	char path[512];

	journal_forget_kept(dir, j);
	path_of(path, sizeof(path), dir, j->id, j->role);
	if (unlink(path) && errno != ENOENT)
		return cr_err_sys(err, "removing the journal %s", path);
	return 0;
}

int journal_each(const char *dir, int (*fn)(struct journal *j, void *arg), void *arg,
		 void (*bad)(const struct cr_err *why), struct cr_err *err)
{
	_cleanup_dir_ DIR *d = opendir(dir);
	struct dirent *e;
	int r = 0;

	if (!d)
		return errno == ENOENT ? 0 : cr_err_sys(err, "opening %s", dir);
	while (!r && (e = readdir(d))) {
		char path[800];
		struct journal j;
		const char *dot = strrchr(e->d_name, '.');

		if (!dot || (strcmp(dot, ".source") && strcmp(dot, ".destination")))
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		struct cr_err why = {0};
		int unread = read_file(path, &j, &why);
		if (unread) { /* one that was settled meanwhile is none */
			if (unread != -ENOENT && bad)
				bad(&why);
			continue;
		}
		r = fn(&j, arg);
		journal_done(&j);
	}
	return r;
}

struct journal journal_take(struct journal *from)
{
	struct journal j = *from;

	memset(&from->renames, 0, sizeof(from->renames));
	memset(&from->carried, 0, sizeof(from->carried));
	memset(&from->dirs, 0, sizeof(from->dirs));
	memset(&from->shms, 0, sizeof(from->shms));
	memset(&from->pids, 0, sizeof(from->pids));
	memset(&from->objects, 0, sizeof(from->objects));
	memset(&from->moved, 0, sizeof(from->moved));
	return j;
}

void journal_done(struct journal *j)
{
	vec_foreach (m, &j->renames) {
		free(m->from);
		free(m->to);
	}
	vec_done(&j->renames);
	vec_foreach (c, &j->carried) {
		free(c->temp);
		free(c->path);
	}
	vec_done(&j->carried);
	vec_foreach (d, &j->dirs)
		free(*d);
	vec_done(&j->dirs);
	vec_done(&j->shms);
	vec_done(&j->objects);
	vec_done(&j->pids);
	vec_done(&j->moved);
}

/* ---- beside it ---- */

static void kept_path(char *buf, size_t n, const char *dir, const struct journal *j)
{
	snprintf(buf, n, "%s/%s.%s.kept", dir, j->id, j->role);
}

int journal_keep(const char *dir, const struct journal *j, const void *data, size_t len,
		 struct cr_err *err)
{
	char path[512];
	const char *at = data;

	kept_path(path, sizeof(path), dir, j);
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return cr_err_sys(err, "%s", path);
	while (len) {
		ssize_t n = write(fd, at, len);

		if (n <= 0)
			return cr_err_sys(err, "writing %s", path);
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int journal_kept(const char *dir, const struct journal *j, uint8_t **ret, size_t *ret_len,
		 struct cr_err *err)
{
	struct stat st;
	char path[512];
	size_t got = 0;

	kept_path(path, sizeof(path), dir, j);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return cr_err_sys(err, "%s", path);
	_cleanup_free_ uint8_t *data = malloc((size_t)st.st_size + 1);
	if (!data)
		return cr_err_oom(err);
	while (got < (size_t)st.st_size) {
		ssize_t n = read(fd, data + got, (size_t)st.st_size - got);

		if (n <= 0)
			return cr_err_set(err, CR_ERR_IO, EIO, "%s cannot be read", path);
		got += (size_t)n;
	}
	*ret = take_ptr(data);
	*ret_len = got;
	return 0;
}

void journal_forget_kept(const char *dir, const struct journal *j)
{
	char path[512];

	kept_path(path, sizeof(path), dir, j);
	unlink(path);
}
