/* Core dumps held back until their process's memory is whole.
 *
 * A process that dumps core has its memory read by the kernel for the last time, and is served no
 * userfaults for it. But all its threads have stopped before the kernel opens the file that the
 * core goes to (core(5)), it reads memory only afterwards, and meanwhile pages can still be put in
 * place. So the opening is held back, by a permission event of fanotify(7): for files right in the
 * directories where cores of given processes would be made, and only if who opens one is dumping.
 *
 * Everybody else's opening of a file there is answered at once, and takes some 10 us more. SIGKILL
 * ends the wait as it ends a dump. When the group is closed, and be it by the end of the process
 * that has it, all who wait go on.
 *
 * Where a program takes cores (core_pattern with '|') its execution is held back in the same way
 * (FAN_OPEN_EXEC_PERM, 5.0): a kernel thread executes it when all threads of who dumps have
 * stopped, and memory is read once it has (call_usermodehelper_exec, UMH_WAIT_EXEC). For whom it is
 * executed nobody tells: while a process of ours is dumping, all executions of that program wait,
 * also those for others. SIGKILL does not end this wait. The program is who has that path for us.
 *
 * Cores that go to a socket ('@', 6.16) are not held back, nor those on remote file systems. Needs
 * CAP_SYS_ADMIN, CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and a kernel that leaves special files alone,
 * which is tried: a pipe's other end would notice that it is opened for us. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include "base/err.h"

/* A fanotify group that has shown that it does this; the caller closes it. Makes a temporary
 * directory for the trial. The group must be answered (below) as long as it is open, by a thread
 * that opens no files but of procfs and cgroupfs. */
int dump_hold_open(struct cr_err *err) must_check;

/* From now on, for where these processes are now; call it again when they may have moved. Those
 * that have ended are passed over. Returns the first error; the others have been done. */
int dump_hold_watch(int group, const pid_t *pids, size_t n, struct cr_err *err) must_check;

/* The directory for the core of pid, by core_pattern (core(5)), as a path of ours. false: it is no
 * file, or in a directory that is not known ahead. */
bool dump_hold_where(const char *pattern, pid_t pid, char *ret, size_t size) must_check;

/* The program of a core_pattern, as a path. false: it is none, or not known ahead. */
bool dump_hold_program(const char *pattern, char *ret, size_t size) must_check;

/* When the group is readable: lets all go on but processes of ours that are dumping, and programs
 * that may take their cores; these wait until the group is closed. list: how many are ours, and
 * which, malloc'ed; not called often. An error is a reason to close it. */
typedef ssize_t (*dump_hold_list)(void *arg, pid_t **ret);
int dump_hold_answer(int group, dump_hold_list list, void *arg, struct cr_err *err) must_check;
