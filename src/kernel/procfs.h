/* Parsers for /proc. Each parser proper works on text, so that it can be tested and fuzzed without
 * a process; the read_* functions fetch the file first. Errors: -ESRCH when the task is gone
 * (ENOENT, ESRCH, and an empty maps of a task without mm all mean that), CR_ERR_KERNEL otherwise:
 * -ENOENT when the task lives but has no such file, -EBADMSG for text that is not as the kernel
 * writes it. A text that ends inside a line is an error; one that ends between two mappings cannot
 * be told from a whole one. Parsers initialise *out; after a failure nothing is left to free (done
 * is harmless). Sources: proc(5) and Documentation/filesystems/proc.rst. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/arena.h"
#include "base/err.h"
#include "base/vec.h"

/* Whole file below /proc/PID (rel e.g. "status" or "task/12/stat") into a malloc'd, NUL-terminated
 * buffer. Returns its length or negative errno. */
ssize_t proc_read(pid_t pid, const char *rel, char **ret, struct cr_err *err) must_check;
/* readlink of /proc/PID/rel, malloc'd. */
int proc_readlink(pid_t pid, const char *rel, char **ret, struct cr_err *err) must_check;

struct proc_map {
	uint64_t start, end, offset, dev, ino; /* dev as makedev(3) */
	uint32_t prot;                         /* PROT_* */
	bool shared;
	uint32_t vmflags; /* enum vma_flag of model/tree.h; only from smaps */
	uint32_t pkey;    /* protection key, pkeys(7); only from smaps */
	/* only from smaps: the size of its pages; of those of hugetlb, in bytes: mapped by it
	 * alone, and all that are there */
	uint64_t page_bytes, own_huge, all_huge;
	/* only from smaps: what VmFlags says that no mapping can be given from outside, or NULL */
	const char *special;
	bool fetched; /* only from smaps: somebody's userfaultfd is asked for missing pages */
	const char
	    *name; /* path or [name]; "" for none; " (deleted)" kept; \012 undone. In the arena */
};
struct proc_maps {
	VEC(struct proc_map) list;
	struct arena *names;
};
/* Hand parser: 60,000 lines cost as much as reading them. text is not kept. -EBADMSG where it makes
 * no sense: of a task that runs, read in pieces, while mappings came and went; read it again. */
int proc_maps_parse(const char *text, struct proc_maps *out, struct cr_err *err) must_check;
int proc_smaps_parse(const char *text, struct proc_maps *out, struct cr_err *err) must_check;
void proc_maps_done(struct proc_maps *m);
/* Leaves of smaps what maps would have said at that moment; returns its length. */
size_t proc_smaps_to_maps(char *text);

struct proc_stat { /* proc_pid_stat(5), fields by name */
	pid_t pid, ppid, pgrp, session;
	char state;
	char comm[64];
	uint32_t tty; /* device number of the controlling terminal, makedev(3); 0: none */
	int32_t nice, exit_signal, rt_priority, policy, exit_code;
	uint64_t flags, num_threads, starttime;
	uint64_t rss; /* pages that are in memory */
	uint64_t start_code, end_code, start_stack, start_data, end_data, start_brk;
	uint64_t arg_start, arg_end, env_start, env_end;
};
int proc_stat_parse(const char *text, struct proc_stat *out, struct cr_err *err) must_check;
int proc_stat_read(pid_t pid, pid_t tid, struct proc_stat *out, struct cr_err *err) must_check;

struct proc_status {             /* proc_pid_status(5) */
	uint32_t uid[4], gid[4]; /* real, effective, saved, fs */
	uint32_t umask;
	VEC(uint32_t) groups;
	uint64_t sig_pnd, shd_pnd, sig_blk, sig_ign, sig_cgt;
	uint64_t cap_inh, cap_prm, cap_eff, cap_bnd, cap_amb;
	pid_t tracer, tgid, ppid;
	int32_t threads;
	bool no_new_privs, thp_enabled;
	int32_t seccomp; /* 0 none, 1 strict, 2 filter */
	char state;
	VEC(int32_t) nspid; /* outermost first */
};
int proc_status_parse(const char *text, struct proc_status *out, struct cr_err *err) must_check;
int proc_status_read(pid_t pid, pid_t tid, struct proc_status *out, struct cr_err *err) must_check;
void proc_status_done(struct proc_status *s);

/* Thread ids of a process / direct children of a process, ascending, malloc'd. Returns the count.
 */
ssize_t proc_threads(pid_t pid, pid_t **ret, struct cr_err *err) must_check;
ssize_t proc_children(pid_t pid, pid_t **ret,
		      struct cr_err *err) must_check; /* of all its threads */
/* The same, of threads that are listed already: saves listing them again. */
ssize_t proc_children_of(pid_t pid, const pid_t *tids, size_t n_tids, pid_t **ret,
			 struct cr_err *err) must_check;
/* Descriptor numbers, ascending, malloc'd. */
ssize_t proc_fds(pid_t pid, int **ret, struct cr_err *err) must_check;

struct proc_rlimit {
	uint64_t cur, max; /* RLIM_INFINITY for unlimited */
};
int proc_limits_parse(const char *text, struct proc_rlimit out[16], struct cr_err *err) must_check;

struct proc_timer {                         /* proc_pid_timers(5) */
	int32_t id, signo, notify, clockid; /* notify: SIGEV_* */
	pid_t notify_tid;
	uint64_t sigval;
};
struct proc_timers {
	VEC(struct proc_timer) list;
};
int proc_timers_parse(const char *text, struct proc_timers *out, struct cr_err *err) must_check;

/* ctime of a process: tells a reused pid from the one that was meant. Clock ticks since boot. */
int proc_starttime(pid_t pid, uint64_t *ret, struct cr_err *err) must_check;
