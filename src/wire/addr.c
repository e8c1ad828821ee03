#include "wire/addr.h"

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(((struct endpoint *)0)->path) == sizeof(((struct sockaddr_un *)0)->sun_path),
	       "a path that fits one fits the other");

static int bad(struct cr_err *err, const char *text, const char *why)
{
	return cr_err_set(err, CR_ERR_INPUT, EINVAL, "'%s': %s", text, why);
}

static bool parse_port(const char *s, bool zero_ok, uint16_t *ret)
{
	char *end;

	if (*s < '0' || *s > '9') /* strtoul takes signs and blanks */
		return false;
	unsigned long v = strtoul(s, &end, 10);
	if (*end || v > UINT16_MAX || (!v && !zero_ok))
		return false;
	*ret = (uint16_t)v;
	return true;
}

/* Splits "HOST", "HOST:PORT", "[V6]", "[V6]:PORT"; *port is "" if there is none. */
static int split_port(const char *text, char *host, size_t size, const char **port, bool *bracketed,
		      struct cr_err *err)
{
	const char *start = text, *end;

	*bracketed = text[0] == '[';
	if (*bracketed) {
		start = text + 1;
		end = strchr(start, ']');
		if (!end)
			return bad(err, text, "']' is missing");
		if (end[1] && end[1] != ':')
			return bad(err, text, "a port is written [ADDRESS]:PORT");
		*port = end[1] ? end + 2 : "";
		if (end[1] && !**port)
			return bad(err, text, "the port is missing after ':'");
	} else {
		end = strchrnul(text, ':');
		if (*end && strchr(end + 1, ':'))
			return bad(err, text,
				   "an IPv6 address is written in brackets: [ADDRESS]:PORT");
		*port = *end ? end + 1 : "";
		if (*end && !**port)
			return bad(err, text, "the port is missing after ':'");
	}
	if (end == start)
		return bad(err, text, "no host is named");
	if ((size_t)(end - start) >= size)
		return bad(err, text, "the host's name is too long");
	snprintf(host, size, "%.*s", (int)(end - start), start);
	return 0;
}

static int parse_unix_path(const char *text, const char *path, char *ret, size_t size,
			   struct cr_err *err)
{
	if (path[0] != '/')
		return bad(err, text, "the path of a socket must begin with '/'");
	if (strlen(path) >= size)
		return bad(err, text, "the path of a socket has at most 107 bytes");
	snprintf(ret, size, "%s", path);
	return 0;
}

/* The name goes to programs and resolvers: what none of them could take is not let through. */
static bool host_ok(const char *host)
{
	return host[0] != '-' && !host[strcspn(host, " \t/@\\'\"<>|;&$`()*?!")];
}

static int parse_ssh(const char *text, struct endpoint *ret, struct cr_err *err)
{
	const char *rest = text + strlen("ssh://");
	const char *at = strchr(rest, '@');

	ret->kind = ENDPOINT_SSH;
	if (at) {
		if (at == rest || (size_t)(at - rest) >= sizeof(ret->user))
			return bad(err, text, "expected ssh://[USER@]HOST");
		snprintf(ret->user, sizeof(ret->user), "%.*s", (int)(at - rest), rest);
		rest = at + 1;
	}
	if (strlen(rest) >= sizeof(ret->host))
		return bad(err, text, "the host's name is too long");
	snprintf(ret->host, sizeof(ret->host), "%s", rest);
	if (!*rest || !host_ok(rest) || ret->user[0] == '-')
		return bad(err, text, "expected ssh://[USER@]HOST");
	return 0;
}

static int parse_tcp(const char *text, struct endpoint *ret, struct cr_err *err)
{
	const char *port;
	bool bracketed;
	int r = split_port(text, ret->host, sizeof(ret->host), &port, &bracketed, err);

	if (r < 0)
		return r;
	ret->kind = ENDPOINT_TCP;
	ret->port = AGENT_DEFAULT_PORT;
	if (*port && !parse_port(port, false, &ret->port))
		return bad(err, text, "the port is not a number from 1 to 65535");
	if (!host_ok(ret->host))
		return bad(err, text, "not the name of a host");
	return 0;
}

int endpoint_parse(const char *text, struct endpoint *ret, struct cr_err *err)
{
	struct endpoint e = {0};
	int r = 0;

	if (!*text)
		return bad(err, text,
			   "expected local, HOST[:PORT], ssh://[USER@]HOST or unix:/PATH");
	if (!strcmp(text, "local")) {
		e.kind = ENDPOINT_UNIX;
		snprintf(e.path, sizeof(e.path), "%s", AGENT_LOCAL_SOCKET);
	} else if (!strncmp(text, "unix:", 5)) {
		e.kind = ENDPOINT_UNIX;
		r = parse_unix_path(text, text + 5, e.path, sizeof(e.path), err);
	} else if (!strncmp(text, "ssh://", 6)) {
		r = parse_ssh(text, &e, err);
	} else if (strstr(text, "://")) {
		r = bad(err, text, "expected local, HOST[:PORT], ssh://[USER@]HOST or unix:/PATH");
	} else {
		r = parse_tcp(text, &e, err);
	}
	if (r == 0)
		*ret = e;
	return r;
}

static int parse_ip(const char *text, struct addr *ret, struct cr_err *err)
{
	char host[INET6_ADDRSTRLEN];
	const char *port_text;
	bool bracketed;
	uint16_t port;
	int r = split_port(text, host, sizeof(host), &port_text, &bracketed, err);

	if (r < 0)
		return r;
	if (!parse_port(port_text, true, &port))
		return bad(err, text, "expected IP:PORT, [V6]:PORT or unix:/PATH");
	if (bracketed && inet_pton(AF_INET6, host, &ret->v6.sin6_addr) == 1) {
		ret->v6.sin6_family = AF_INET6;
		ret->v6.sin6_port = htons(port);
		ret->len = sizeof(ret->v6);
		return 0;
	}
	if (!bracketed && inet_pton(AF_INET, host, &ret->v4.sin_addr) == 1) {
		ret->v4.sin_family = AF_INET;
		ret->v4.sin_port = htons(port);
		ret->len = sizeof(ret->v4);
		return 0;
	}
	return bad(err, text, "expected IP:PORT, [V6]:PORT or unix:/PATH");
}

int addr_parse(const char *text, struct addr *ret, struct cr_err *err)
{
	memset(ret, 0, sizeof(*ret));
	if (strncmp(text, "unix:", 5) != 0)
		return parse_ip(text, ret, err);
	ret->un.sun_family = AF_UNIX;
	ret->len = sizeof(ret->un);
	return parse_unix_path(text, text + 5, ret->un.sun_path, sizeof(ret->un.sun_path), err);
}

void addr_format(const struct addr *a, char buf[ADDR_TEXT])
{
	char ip[INET6_ADDRSTRLEN] = "";

	switch (a->sa.sa_family) {
	case AF_INET:
		inet_ntop(AF_INET, &a->v4.sin_addr, ip, sizeof(ip));
		snprintf(buf, ADDR_TEXT, "%s:%u", ip, ntohs(a->v4.sin_port));
		break;
	case AF_INET6:
		inet_ntop(AF_INET6, &a->v6.sin6_addr, ip, sizeof(ip));
		snprintf(buf, ADDR_TEXT, "[%s]:%u", ip, ntohs(a->v6.sin6_port));
		break;
	case AF_UNIX:
		snprintf(buf, ADDR_TEXT, "unix:%.*s", (int)sizeof(a->un.sun_path), a->un.sun_path);
		break;
	default:
		snprintf(buf, ADDR_TEXT, "?");
	}
}

bool addr_is_loopback(const struct addr *a)
{
	if (a->sa.sa_family == AF_INET)
		return ntohl(a->v4.sin_addr.s_addr) >> 24 == 127;
	return a->sa.sa_family == AF_UNIX ||
	       (a->sa.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr));
}
