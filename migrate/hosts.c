#include "migrate/hosts.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 20 };

static const struct host_entry *find(const struct hosts *h, const char *name)
{
	for (size_t i = 0; i < h->list.n; i++)
		if (!strcmp(h->list.v[i].name, name))
			return &h->list.v[i];
	return NULL;
}

/* Letters, digits and ".-_", so that a name is never taken for an endpoint or for "SOURCE->DEST".
 */
static bool name_ok(const char *name)
{
	if (!isalnum((unsigned char)name[0]) || name[strlen(name) - 1] == '-')
		return false;
	for (const char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr(".-_", *c))
			return false;
	return strlen(name) < sizeof(((struct host_entry *)0)->name);
}

/* line is cut up. */
static int parse_line(struct hosts *h, char *line, struct cr_err *err)
{
	char *save, *name, *endpoint;

	line[strcspn(line, "#")] = 0;
	name = strtok_r(line, " \t\r", &save);
	endpoint = strtok_r(NULL, " \t\r", &save);
	if (!name)
		return 0;
	if (!endpoint || strtok_r(NULL, " \t\r", &save))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "expected NAME ENDPOINT");
	if (!name_ok(name))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "'%s' cannot be the name of a host",
				  name);
	if (find(h, name))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "%s is there twice", name);
	struct host_entry *e = vec_push(&h->list);
	if (!e)
		return cr_err_oom(err);
	snprintf(e->name, sizeof(e->name), "%s", name);
	return endpoint_parse(endpoint, &e->endpoint, err);
}

int hosts_parse(struct hosts *h, const char *text, struct cr_err *err)
{
	_cleanup_free_ char *copy = strdup(text);
	int number = 0;

	if (!copy)
		return cr_err_oom(err);
	for (char *line = copy, *next; line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = 0;
		number++;
		if (parse_line(h, line, err) < 0)
			return cr_err_ctx(err, "%s, line %d", h->path[0] ? h->path : "hosts",
					  number);
	}
	return 0;
}

int hosts_read(struct hosts *h, const char *path, struct cr_err *err)
{
	if (!path)
		path = getenv("CR_MIGRATE_HOSTS");
	if (!path || !*path)
		return 0;
	snprintf(h->path, sizeof(h->path), "%s", path);
	_cleanup_file_ FILE *f = fopen(path, "re");
	_cleanup_free_ char *text = malloc(FILE_BYTES_MAX + 1);
	if (!f)
		return cr_err_set(err, CR_ERR_IO, errno, "cannot read the hosts file %s: %s", path,
				  strerror(errno));
	if (!text)
		return cr_err_oom(err);
	size_t n = fread(text, 1, FILE_BYTES_MAX, f);
	if (ferror(f) || !feof(f))
		return cr_err_set(err, CR_ERR_IO, EIO, "cannot read the hosts file %s", path);
	text[n] = 0;
	return hosts_parse(h, text, err);
}

void hosts_done(struct hosts *h)
{
	vec_done(&h->list);
}

static int refuse_tls(const struct hosts *h, const char *host, bool listed, struct cr_err *err)
{
	if (!listed && h->path[0])
		return cr_err_set(
		    err, CR_ERR_UNSUPPORTED, EOPNOTSUPP,
		    "%s is not in the hosts file %s, and agents over TLS are not supported "
		    "yet: add it there, or name the agent's socket as unix:/PATH",
		    host, h->path);
	return cr_err_set(
	    err, CR_ERR_UNSUPPORTED, EOPNOTSUPP,
	    "%s: agents over TLS (HOST:PORT) are not supported yet: name the agent's socket "
	    "as unix:/PATH%s",
	    host, listed ? " in the hosts file" : ", or give a hosts file with --hosts");
}

int hosts_find(const struct hosts *h, const char *host, char *buf, struct cr_err *err)
{
	const struct host_entry *e = find(h, host);
	struct endpoint given;
	const struct endpoint *p = &given;

	if (e) {
		p = &e->endpoint;
	} else {
		int r = endpoint_parse(host, &given, err);
		if (r < 0)
			return r;
	}
	switch (p->kind) {
	case ENDPOINT_UNIX:
		snprintf(buf, ADDR_TEXT, "unix:%s", p->path);
		return 0;
	case ENDPOINT_TCP:
		return refuse_tls(h, host, e, err);
	case ENDPOINT_SSH:
		return cr_err_set(
		    err, CR_ERR_UNSUPPORTED, EOPNOTSUPP,
		    "%s: agents over ssh are not supported yet: forward the agent's socket "
		    "(ssh -L /PATH:" AGENT_LOCAL_SOCKET " %s%s%s) and name it as unix:/PATH",
		    host, p->user, p->user[0] ? "@" : "", p->host);
	}
	return cr_err_set(err, CR_ERR_BUG, EINVAL, "%s: endpoint of unknown kind", host);
}
