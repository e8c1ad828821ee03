/* Socket filters that are eBPF programs (SO_ATTACH_BPF, socket(7)), in struct file: program,
 * program_name, program_gpl. Nobody replaces one at the source, so that it is there whatever
 * happens to us: the lock of such a socket is a policy, sock_filter.h. */
#pragma once
#include "kernel/reuseview.h"
#include "model/tree.h"

struct capture;

/* Into f what is on fd, a duplicate of a socket's; nothing if that is no eBPF program. UNSUPPORTED:
 * it does not move, err says why as what follows "socket ". */
int sock_program_get(const struct capture *c, int fd, struct file *f,
		     struct cr_err *err) must_check;
/* Onto fd, in place of whatever filter is there. Nothing to do if f has none. */
int sock_program_set(int fd, const struct file *f, struct cr_err *err) must_check;
/* Would the kernel take it? */
int sock_program_check(const struct file *f, struct cr_err *err) must_check;
/* 0: the same, or none; else an order. */
int sock_program_cmp(const struct file *a, const struct file *b);

/* Whoever cleans up after a process that got lost: is the eBPF program on a socket a lock of ours
 * (sock_lock_program())? */
struct sock_program_owner {
	struct reuseview *view;
	bool asked;
	uint32_t id; /* that was looked at last … */
	bool ours;   /* … and what it was */
};
bool sock_program_is_ours(struct sock_program_owner *o, int fd);
void sock_program_owner_done(struct sock_program_owner *o);
