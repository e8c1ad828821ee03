/* Programs that choose among the sockets that share a port (SO_ATTACH_REUSEPORT_CBPF and _EBPF,
 * socket(7)), and eBPF programs that are filters, which no system call tells: a BPF iterator tells
 * where the kernel keeps a socket and its group, and what lies there is read out of the kernel's
 * memory (kread.h). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"

struct reuseview;

struct chosen_socket { /* one of a group that has such a program */
	int fd;
	uint64_t group; /* the same for all of it */
	uint32_t place; /* in the group, as the program knows it; UINT32_MAX: it is not chosen any
			   more */
	uint32_t n;     /* how many there are to choose among */
	bool ebpf;      /* else it is classic: */
	uint64_t *code; /* an instruction each: code, jt, jf, k from the lowest bits on */
	size_t n_code;
};

struct chosen_list {
	VEC(struct chosen_socket) list; /* by fd, ascending */
};

/* -ENOTSUP: not to be had here; err says why. The result may be used by processes forked since. */
int reuseview_new(struct reuseview **ret, struct cr_err *err) must_check;
void reuseview_free(struct reuseview *v);
/* Of a process that is stopped; of one that runs, of any moment: -EAGAIN, something changed
 * meanwhile. The caller calls chosen_done(). */
int reuseview_read(const struct reuseview *v, pid_t pid, struct chosen_list *ret,
		   struct cr_err *err) must_check;
/* The id of the eBPF program that is the filter of a socket, our fd (SO_ATTACH_BPF); 0: there is
 * none. -EAGAIN as above. */
int reuseview_filter(const struct reuseview *v, int fd, uint32_t *ret,
		     struct cr_err *err) must_check;
void chosen_done(struct chosen_list *l);
