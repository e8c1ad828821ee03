/* System V semaphore sets and message queues, semctl(2), msgctl(2), in the caller's IPC namespace.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

enum sysv_ipc_kind { SYSV_IPC_SEM = 1, SYSV_IPC_MSG };

struct sysv_ipc {
	enum sysv_ipc_kind kind;
	int32_t id, key;
	uint32_t n; /* SEM: semaphores; MSG: messages */
};

/* Calls fn for every one on this host, until it returns something else than 0, which is then
 * returned. */
int sysv_ipc_each(int (*fn)(const struct sysv_ipc *i, void *arg), void *arg,
		  struct cr_err *err) must_check;
/* Who used it last, as far as the kernel keeps it: calls fn for each of them, as
 * sysv_ipc_each(). */
int sysv_ipc_users(const struct sysv_ipc *i, int (*fn)(pid_t pid, void *arg), void *arg);
/* Make one of that very id and key (CONFIG_CHECKPOINT_RESTORE, 3.9: kernel.sem_next_id,
 * msg_next_id). -EEXIST if one of them is taken. */
int sysv_ipc_create(const struct sysv_ipc *want, uint32_t mode, struct cr_err *err) must_check;
/* Remove it, a shared memory segment only if cpid made it. kind 0: shared memory. Nothing is no
 * error. */
void sysv_ipc_remove(int kind, int id, pid_t cpid);
