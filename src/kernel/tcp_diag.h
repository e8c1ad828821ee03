/* The TCP connections of this network namespace as sock_diag(7) lists them: without touching a
 * socket. (A descriptor of one that is held here, if only for a moment, keeps it in the epoll
 * instances of a program that closes it, and its end from its peer.) */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include "base/err.h"
#include "base/vec.h"

struct tcp_diag_entry {
	uint64_t ino; /* of its socket; never 0 */
	uint8_t state;
	int family; /* of the socket */
	struct sockaddr_storage us, peer;
	bool md5;     /* segments are signed, RFC 2385 */
	char ulp[16]; /* upper layer protocol, "": none */
};

struct tcp_diag {
	VEC(struct tcp_diag_entry) list; /* ascending by ino */
};

/* Listeners, of which nothing but ino, family, us and md5 is told. */
int tcp_diag_listeners(struct tcp_diag *ret, struct cr_err *err) must_check;

/* One that its program has closed, and whose peer has not acknowledged everything yet, our end at
 * least: in FIN_WAIT1, CLOSING or LAST_ACK. Nobody has a descriptor of it. */
struct tcp_unowned {
	int family;
	struct sockaddr_storage us, peer;
	uint32_t bytes; /* not acknowledged */
	bool stuck;     /* something was sent again already, or the peer takes nothing more */
};

struct tcp_unowned_list {
	VEC(struct tcp_unowned) list;
};

int tcp_diag_unowned(struct tcp_unowned_list *ret, struct cr_err *err) must_check;
/* The same of those that wait to be accepted, as accept(2) would give them. */
int tcp_diag_unaccepted(struct tcp_unowned_list *ret, struct cr_err *err) must_check;
void tcp_unowned_done(struct tcp_unowned_list *l);

/* device: of one that is bound to it, 0: to none. Ends one, as tcp(7) ends a connection that is
 * aborted: its peer is told, if there is a way there. Linux 4.5, CONFIG_INET_DIAG_DESTROY. -ENOENT:
 * there is none. */
int tcp_diag_destroy(const struct sockaddr_storage *us, const struct sockaddr_storage *peer,
		     int device, struct cr_err *err) must_check;

/* All that have a peer, or are on the way there, and belong to a descriptor. */
int tcp_diag_read(struct tcp_diag *ret, struct cr_err *err) must_check;
void tcp_diag_done(struct tcp_diag *d);
const struct tcp_diag_entry *tcp_diag_find(const struct tcp_diag *d, uint64_t ino);
