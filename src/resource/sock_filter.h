/* Filters on sockets, socket(7): the program's own, and the locks that we put on.
 *
 * A lock is a filter that drops what comes in, before the socket sees it. It dies with the socket.
 * It says by itself that it is one, and has the program's own filter behind it, as instructions
 * that are never reached or only by what it lets through: whoever cleans up after a process that
 * got lost finds all that is needed in the socket. Where the program has locked its filter, which
 * nobody can replace then, or has an eBPF one (sock_program.h), the lock is a policy
 * (sock_policy.h), and SOCK_LOCK_NEW keeps out what SOCK_LOCK_ALL does: handshakes that have begun
 * do not come to their end here, either. */
#pragma once
#include <linux/bpf.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/err.h"

enum sock_lock {
	SOCK_LOCK_ALL = 1, /* nothing comes in */
	SOCK_LOCK_NEW,     /* TCP listeners: no new handshakes; what has begun comes to its end */
};

/* Errors: UNSUPPORTED for what sock_filter_trouble() tells. On a socket that is locked already: the
 * new lock takes its place. */
int sock_lock(int fd, enum sock_lock how, struct cr_err *err) must_check;
/* By a classic filter. */
bool sock_is_locked(int fd);
/* By a filter, or perhaps by a policy, which does not show, or by a program, which does not say so.
 */
bool sock_may_be_locked(int fd);
/* SOCK_LOCK_ALL for thousands: on a socket that is known to have no filter, program is put in its
 * place, which takes a tenth of the time that a filter of its own takes. *ret_by: it was, and
 * sock_unlock_by() has to come before sock_unlock(). Who does not know asks sock_program_is_ours().
 * program -1: sock_lock().
 */
int sock_lock_by(int fd, int program, bool *ret_by, struct cr_err *err) must_check;
int sock_unlock_by(int fd, struct cr_err *err) must_check;
int sock_lock_program(void); /* -1: none can be had */
#define SOCK_LOCK_NAME "cr_lock"
enum { SOCK_LOCK_INSNS = 2 };
void sock_lock_code(struct bpf_insn ret[SOCK_LOCK_INSNS]);
/* Is an eBPF program on it? */
bool sock_filter_is_ebpf(int fd);
/* The program's own filter is back. Nothing to do where it is not locked. */
int sock_unlock(int fd, struct cr_err *err) must_check;

/* Has the program locked its filter, or that there is none (SO_LOCK_FILTER)? And: do so. */
bool sock_filter_is_locked(int fd);
int sock_filter_lock(int fd, struct cr_err *err) must_check;

/* Nothing is on it, and something may be put there. */
bool sock_filter_is_plain(int fd);
/* What is on it that leaves us no way to lock it; NULL: nothing. */
const char *sock_filter_trouble(int fd);

/* The program's own, a lock of ours or not: *ret in the arena, an instruction each (code, jt, jf
 * and k from the lowest bits on). n 0: none. */
int sock_filter_get(int fd, struct arena *a, uint64_t **ret, size_t *n,
		    struct cr_err *err) must_check;
/* n 0: nothing to do. */
int sock_filter_set(int fd, const uint64_t *code, size_t n, struct cr_err *err) must_check;
/* The same for a program that chooses among the sockets of fd's group (SO_ATTACH_REUSEPORT_CBPF).
 */
int sock_filter_choose(int fd, const uint64_t *code, size_t n, struct cr_err *err) must_check;
