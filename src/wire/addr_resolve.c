#include "wire/addr_resolve.h"

#include <netdb.h>
#include <stdio.h>
#include <string.h>

int addr_resolve(const char *text, char ret[ADDR_TEXT], struct cr_err *err)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *list;
	struct addr a;
	char host[256];
	const char *colon = strrchr(text, ':');
	size_t n = colon ? (size_t)(colon - text) : 0;
	struct cr_err ignored = {0};

	if (!addr_parse(text, &a, &ignored)) {
		snprintf(ret, ADDR_TEXT, "%s", text);
		return 0;
	}
	if (!n || n >= sizeof(host))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "%s: HOST:PORT is expected", text);
	memcpy(host, text, n);
	host[n] = 0;
	int r = getaddrinfo(host, colon + 1, &hints, &list);
	if (r)
		return cr_err_set(err, CR_ERR_INPUT, EHOSTUNREACH, "%s: %s", text, gai_strerror(r));
	memcpy(&a.sa, list->ai_addr, list->ai_addrlen);
	a.len = list->ai_addrlen;
	addr_format(&a, ret);
	freeaddrinfo(list);
	return 0;
}
