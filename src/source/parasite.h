/* The executor inside the source's tasks: injected at a stop, cured before they run on.
 *
 * infect: every thread's registers are saved, a memfd with the blob is mapped in each address
 * space, and the threads wait in the executor for batches. cure: parked at rt_sigreturn, memory
 * unmapped, registers as they were. Nothing stays in the tasks. */
#pragma once
#include <stdbool.h>
#include <sys/user.h>
#include "base/err.h"
#include "base/vec.h"
#include "model/tree.h"
#include "remote/area.h"
#include "remote/park.h"

struct parasite_thread {
	pid_t tid;
	struct user_regs_struct gp; /* as stopped */
	uint64_t sigmask;
	struct rtask rt;
	bool running; /* in the executor; else stopped with its own registers */
};

struct parasite { /* of one process */
	pid_t pid;
	int pidfd; /* borrowed */
	struct rarea area;
	struct parasite_thread *threads;
	size_t n_threads;
	bool mapped;
};

/* All threads tids[] are in PTRACE_EVENT_STOP. insn_va: a `syscall` instruction in the process;
 * string_va: a short string in it (any: the start of the vdso does). On failure everything has been
 * put back, unless the process died. */
int parasite_infect(struct parasite *p, pid_t pid, int pidfd, const pid_t *tids, size_t n,
		    uint64_t insn_va, uint64_t string_va, struct cr_err *err) must_check;
/* Put everything back; the threads are stopped again, with their own registers. */
int parasite_cure(struct parasite *p, enum park_how how, enum leave_how leave,
		  struct cr_err *err) must_check;
/* Free our side; the process is dead or cured. */
void parasite_done(struct parasite *p);

struct parasite_thread *parasite_find(struct parasite *p, pid_t tid);
