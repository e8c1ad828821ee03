#include "resource/file_kind.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

const char *sockaddr_text(const void *sa, size_t len, char *buf, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "";
	const struct sockaddr *a = sa;

	if (len < sizeof(a->sa_family)) {
		snprintf(buf, size, "?");
	} else if (a->sa_family == AF_INET && len >= sizeof(struct sockaddr_in)) {
		const struct sockaddr_in *in = sa;

		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(buf, size, "%s:%u", host, ntohs(in->sin_port));
	} else if (a->sa_family == AF_INET6 && len >= sizeof(struct sockaddr_in6)) {
		const struct sockaddr_in6 *in6 = sa;

		if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
			inet_ntop(AF_INET, &in6->sin6_addr.s6_addr[12], host, sizeof(host));
			snprintf(buf, size, "%s:%u", host, ntohs(in6->sin6_port));
			return buf;
		}
		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(buf, size, "[%s]:%u", host, ntohs(in6->sin6_port));
	} else if (a->sa_family == AF_UNIX && len > offsetof(struct sockaddr_un, sun_path)) {
		const struct sockaddr_un *un = sa;
		int n = (int)(len - offsetof(struct sockaddr_un, sun_path));

		if (un->sun_path[0])
			snprintf(buf, size, "%.*s", n, un->sun_path);
		else
			snprintf(buf, size, "@%.*s", n - 1, un->sun_path + 1);
	} else {
		snprintf(buf, size, "an address of family %d", a->sa_family);
	}
	return buf;
}
