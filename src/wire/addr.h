/* Where a party is: endpoints as a user writes them, and socket addresses as the parties tell each
 * other. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "base/err.h"

#define AGENT_LOCAL_SOCKET "/run/cr-agent/agent.sock"
enum { AGENT_DEFAULT_PORT = 7710 };

enum endpoint_kind {
	ENDPOINT_UNIX = 1, /* unix:PATH, and local */
	ENDPOINT_TCP,      /* HOST[:PORT], [V6][:PORT] */
	ENDPOINT_SSH,      /* ssh://[USER@]HOST */
};

struct endpoint {
	enum endpoint_kind kind;
	char path[108]; /* UNIX: absolute */
	char user[64];  /* SSH: "" if not given */
	char host[256]; /* TCP, SSH: without brackets */
	uint16_t port;  /* TCP; AGENT_DEFAULT_PORT if not given */
};

/* Errors: INPUT, saying what is expected. */
int endpoint_parse(const char *text, struct endpoint *ret, struct cr_err *err) must_check;

/* A socket address: "IP:PORT", "[V6]:PORT", "unix:/PATH". No name is looked up. */
struct addr {
	union {
		struct sockaddr sa;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
		struct sockaddr_un un;
	};
	socklen_t len;
};
enum { ADDR_TEXT = 128 };

/* Errors: INPUT. */
int addr_parse(const char *text, struct addr *ret, struct cr_err *err) must_check;
/* The same notation back; "?" for families that are none of ours. */
bool addr_is_loopback(const struct addr *a);
void addr_format(const struct addr *a, char buf[ADDR_TEXT]);
