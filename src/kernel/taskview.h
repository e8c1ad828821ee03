/* What the kernel keeps about each thread of a process and shows to nobody but the thread itself.
 *
 * Read by a BPF task iterator (Documentation/bpf/bpf_iterators.rst; 5.8, of one process 6.1): all
 * threads in one read(2), 0.2 us each, without stopping any. Where the fields lie the kernel's BTF
 * tells. Needs CAP_BPF and CAP_PERFMON and a kernel with CONFIG_DEBUG_INFO_BTF; what it says is
 * compared with what system calls say before it is believed. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/vec.h"

struct task_facts { /* of one thread */
	pid_t tid;  /* in this process's pid namespace */
	char comm[16];
	uint64_t altstack_sp, altstack_size;
	int32_t altstack_flags; /* as sigaltstack(2) says, less SS_ONSTACK */
	int32_t pdeathsig;
	uint64_t clear_tid_va, robust_list_va, timer_slack_ns;
	uint64_t rseq_va;
	uint32_t rseq_len, rseq_sig;
	uint64_t pending;      /* signals for this thread alone; bit 0 is signal 1 */
	uint32_t seccomp_mode; /* SECCOMP_MODE_* */
	bool no_new_privs;
	bool sem_undo;      /* has, or had, something to undo of System V semaphores, semop(2) */
	uint64_t undo_list; /* tells lists of such things apart; 0: it has none */
	bool has_children;  /* that were started by this thread, not by another of its process */
};

struct task_facts_list {
	VEC(struct task_facts) list;
	size_t cursor; /* of task_facts_find */
};

struct taskview;
/* Takes some 40 ms. -ENOTSUP: not to be had here, or not to be believed; err says why. The result
 * may be used by processes forked since. */
int taskview_new(struct taskview **ret, struct cr_err *err) must_check;
void taskview_free(struct taskview *tv);
/* All threads of a process, zombies included. Exact as far as they are stopped. */
int taskview_read(const struct taskview *tv, pid_t pid, struct task_facts_list *ret,
		  struct cr_err *err) must_check;
void task_facts_done(struct task_facts_list *l);
struct undoview;
/* NULL: not to be had here. It goes with tv. */
const struct undoview *taskview_undo(const struct taskview *tv);
/* NULL: not there. Fast if asked for in the kernel's order. */
const struct task_facts *task_facts_find(struct task_facts_list *l, pid_t tid);
