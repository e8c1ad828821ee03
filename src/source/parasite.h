/* The executor inside the source's tasks: injected at a stop, cured before they run on.
 *
 * infect: the registers of the threads that are to be asked are saved, memory with the blob is
 * mapped in their address space, and they wait in the executor for batches; other threads stay as
 * they stopped. cure: parked at rt_sigreturn, memory
 * unmapped, registers as they were. Nothing stays in the tasks.
 *
 * Should this process die, at whatever moment, the tasks go back by themselves: from the executor
 * within a second by a signal frame, from an injected call by the detour. So in each task the way
 * back is laid before anything is changed, and of mask and registers those are written first that
 * leave it on that way. What then stays is a mapping that nobody uses. */
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
	uint64_t rseq_va; /* rseq(2); 0: none */
	uint32_t rseq_len, rseq_sig, rseq_flags;
	uint8_t *xstate; /* as far as it is not in its initial state */
	size_t xstate_len;
	struct rtask rt;
	bool running; /* in the executor; else stopped with its own registers */
};

struct parasite_entry {     /* where system calls can be injected; addresses in the process */
	uint64_t insn_va;   /* a `syscall` instruction */
	uint64_t detour_va; /* remote/detour.h; 0: no room for one: an injected call that is cut
			       short by our death then takes the process along */
	uint64_t string_va; /* a short string (any: the start of the vdso does) */
};

struct parasite { /* of one process */
	pid_t pid;
	int pidfd; /* borrowed */
	struct parasite_entry entry;
	struct rarea area;
	struct parasite_thread *threads;
	size_t n_threads;
	bool mapped;
	bool detour; /* it is laid */
};

/* The threads then stand ready for the executor, and calls can be queued and started; they run from
 * parasite_start() on. All threads tids[] are in PTRACE_EVENT_STOP. On failure everything has been
 * put back, unless the process died. */
int parasite_infect(struct parasite *p, pid_t pid, int pidfd, const pid_t *tids, size_t n,
		    const struct parasite_entry *entry, struct cr_err *err) must_check;
int parasite_start(struct parasite *p, struct parasite_thread *th, struct cr_err *err) must_check;
/* Put everything back; the threads are stopped again, with their own registers. */
int parasite_cure(struct parasite *p, enum park_how how, enum leave_how leave,
		  struct cr_err *err) must_check;
/* Free our side; the process is dead or cured. */
void parasite_done(struct parasite *p);

/* What ptrace tells of a stopped thread, into th, of which tid (and rseq_*, if known) is set. What
 * the thread was doing goes on with these registers wherever they are loaded; it stays as it is. */
int parasite_save(struct parasite_thread *th, bool rseq_known, struct cr_err *err) must_check;
struct parasite_thread *parasite_find(struct parasite *p, pid_t tid);
