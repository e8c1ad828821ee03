/* What the files of shells.h share.
 *
 *   shells.c            the hole, slots, the objects themselves, their end
 *   shells_processes.c  making processes and zombies, sessions and groups; what cannot be had here
 *   shell_stop.c        processes that a signal had stopped
 *   shell_tty.c         controlling terminals
 *   shells_threads.c    threads, the way to our descriptors, parking */
#pragma once
#include "dest/shells.h"

/* Out of all proportion: why it is not tried; NULL if it is. */
const char *shells_too_large(const struct tree *t);

/* A shell with its leader's slot; no process yet. */
int shell_new(struct shells *s, pid_t pid, pid_t ppid, struct shell **ret,
	      struct cr_err *err) must_check;
void shell_free(struct shells *s, struct shell *sh);
/* Kill and reap the process. */
void shell_kill(struct shell *sh);
/* A slot for one more thread, the last of sh->threads; no task yet. */
int shell_add_thread(struct shells *s, struct shell *sh, pid_t tid, struct cr_err *err) must_check;
void shell_thread_free(struct shells *s, struct shell_thread *th);

/* Have a shell clone: a child process (flags 0) or a thread. */
int shell_clone(struct shell *parent, struct shell_thread *child, uint64_t flags,
		uint32_t exit_signal, struct cr_err *err) must_check;
/* What ended or stopped child processes have left pending. */
int shell_drain_sigchld(struct shell *sh, struct cr_err *err) must_check;
int shell_seize(struct shell_thread *th, struct cr_err *err) must_check;
